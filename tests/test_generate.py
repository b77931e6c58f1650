import functools
import itertools

import pytest
import torch

from gqa_lab.attention import expanded_attention, grouped_attention, sdpa_attention
from gqa_lab.config import ModelConfig
from gqa_lab.generate import decode_step, generate, greedy, prefill, random_sampler
from gqa_lab.model import Transformer

PROMPTS = [[3, 1, 4], [9], [2, 6, 5, 3, 5]]


def new_model(**changes):
    torch.manual_seed(0)
    config = dict(
        n_layers=2, d_model=24, n_heads=6, n_kv_heads=3, head_dim=4, d_ff=32, vocab_size=50, max_seq_len=32,
        rope_theta=1e4, norm_eps=1e-5,
    )  # fmt: skip
    return Transformer(ModelConfig(**config | changes)).double().eval()


@pytest.fixture(scope="module")
def model():
    return new_model()


@torch.no_grad()
def uncached(model, prompt, n):
    """The slow truth: read everything again for every token."""
    ids = list(prompt)
    for _ in range(n):
        ids.append(model(torch.tensor([ids]))[0, -1].argmax().item())
    return ids[len(prompt) :]


@functools.cache
def recomputed(n, window=None):
    """What `new_model` answers to each of PROMPTS, by the slow truth."""
    model = new_model(sliding_window=window)
    return [uncached(model, prompt, n) for prompt in PROMPTS]


@pytest.mark.parametrize("attend", [expanded_attention, grouped_attention, sdpa_attention], ids=lambda f: f.__name__)
def test_a_batch_of_different_prompts_streams_what_recomputing_each_gives(model, attend):
    steps = list(generate(model, PROMPTS, max_new_tokens=6, attend=attend, prefill_attend=attend))
    assert [list(answer) for answer in zip(*steps, strict=True)] == recomputed(6)


@pytest.mark.parametrize("window", [1, 2, 4])
@pytest.mark.parametrize("attend", [expanded_attention, grouped_attention, sdpa_attention], ids=lambda f: f.__name__)
def test_a_window_streams_what_recomputing_gives_from_prompts_shorter_and_longer_than_it(window, attend):
    model = new_model(sliding_window=window)
    steps = list(generate(model, PROMPTS, max_new_tokens=8, attend=attend, prefill_attend=attend))
    answers = [list(answer) for answer in zip(*steps, strict=True)]
    assert answers == recomputed(8, window)
    assert answers != recomputed(8), "this window changes nothing: it tests nothing"


def test_the_tests_model_does_not_answer_every_prompt_alike():
    answers = [tuple(answer) for answer in recomputed(6)]
    assert len(set(answers)) == 3 and all(len(set(a)) > 1 for a in answers)


def test_tokens_come_one_step_at_a_time(model):
    steps_taken = []

    def counting_step(*args, **kwargs):
        steps_taken.append(1)
        return decode_step(*args, **kwargs)

    stream = generate(model, PROMPTS, max_new_tokens=20, step=counting_step)
    list(itertools.islice(stream, 3))
    assert len(steps_taken) == 2  # the first token comes from the prompt


def test_a_stop_token_ends_its_sequence_and_is_no_part_of_the_answer(model):
    answers = recomputed(6)
    stop = answers[0][2]
    steps = list(generate(model, PROMPTS, max_new_tokens=6, stop=[stop]))
    for answer, got in zip(answers, zip(*steps, strict=True), strict=True):
        end = answer.index(stop) if stop in answer else 6
        assert list(got) == (answer[:end] + [None] * 6)[: len(steps)]


def test_nothing_more_is_yielded_when_all_have_finished(model):
    first = [answer[0] for answer in recomputed(6)]
    assert list(generate(model, PROMPTS, max_new_tokens=6, stop=first)) == []


def test_the_sampler_decides(model):
    assert list(generate(model, [[1, 2]], max_new_tokens=3, sampler=lambda logits: logits.argmin(-1))) != list(
        generate(model, [[1, 2]], max_new_tokens=3)
    )


def test_prefill_returns_the_logits_of_the_last_prompt_token(model):
    caches = model.new_caches(1, 8)
    with torch.no_grad():
        expected = model(torch.tensor([[3, 1, 4]]))[:, -1]
    torch.testing.assert_close(prefill(model, torch.tensor([[3, 1, 4]]), caches), expected)
    assert caches[0].host_lengths == [3]


def test_all_positions_of_the_model_can_be_used(model):
    assert len(list(generate(model, [[1] * 20], max_new_tokens=13))) == 13


@pytest.mark.parametrize(
    ("prompts", "n", "message"),
    [
        ([1, 2], 4, "for one prompt write"),
        ([], 4, "prompts must be a list of prompts"),
        ([[1], []], 4, "prompt 1 is empty"),
        ([[1], [50]], 4, "prompt 1 holds token id 50; this model knows 0 to 49"),
        (
            [[1] * 20],
            14,
            "prompt 0 has 20 tokens; with 14 new ones that exceeds the model's 32 positions: at most 13",
        ),
        ([[1]], 0, "max_new_tokens must be a whole number of at least 1, got 0"),
        ([[1]], 2.5, "max_new_tokens must be a whole number of at least 1, got 2.5"),
        ([[1.0]], 4, "prompt 0 holds token id 1.0; this model knows 0 to 49"),
        ([[-1]], 4, "prompt 0 holds token id -1"),
        ("hello", 4, "prompts must be a list of prompts"),
        (["hello"], 4, "prompts must be a list of prompts"),
        (torch.tensor([[1, 2]]), 4, "prompts must be a list of prompts"),
        (None, 4, "prompts must be a list of prompts"),
    ],
    ids=str,
)
def test_an_impossible_request_is_refused_at_the_call(model, prompts, n, message, shapes_unchecked):
    with pytest.raises(ValueError, match=message):
        generate(model, prompts, max_new_tokens=n)


@pytest.mark.parametrize("stop", [2, "end", torch.tensor([2]), [2.0], None])
def test_a_stop_that_could_never_stop_is_refused(model, stop, shapes_unchecked):
    with pytest.raises(ValueError, match=r"stop must be a list of token ids such as tokenizer.stop_ids, got"):
        generate(model, [[1]], max_new_tokens=4, stop=stop)


@pytest.mark.parametrize("sampler", [lambda x: x.argmax(-1, keepdim=True), lambda x: 3, lambda x: x[:, 0], lambda x: x])
def test_a_sampler_that_returns_no_ids_is_named(model, sampler):
    with pytest.raises(ValueError, match=r"sampler returned [\s\S]*; it must return a tensor of 3 token ids"):
        list(generate(model, PROMPTS, max_new_tokens=4, sampler=sampler))


def test_a_decode_step_takes_one_token_per_sequence(model, shapes_unchecked):
    with pytest.raises(ValueError, match=r"ids has shape \[1, 2\]; a decode step takes \[batch, 1\]"):
        decode_step(model, torch.tensor([[1, 2]]), model.new_caches(1, 8))


def test_greedy_takes_the_likeliest():
    assert greedy(torch.tensor([[0.0, 2.0, 1.0], [3.0, 0.0, 1.0]])).tolist() == [1, 0]


def test_a_random_sampler_draws_by_probability_and_repeats_with_its_seed():
    logits = torch.tensor([[0.5, 0.3, 0.2]]).log().repeat(4000, 1)
    draws = random_sampler(1.0, seed=3)(logits)
    shares = torch.bincount(draws, minlength=3) / 4000
    torch.testing.assert_close(shares, torch.tensor([0.5, 0.3, 0.2]), atol=0.04, rtol=0)
    assert torch.equal(draws, random_sampler(1.0, seed=3)(logits))
    assert not torch.equal(draws, random_sampler(1.0, seed=4)(logits))


def test_top_p_keeps_the_fewest_tokens_that_reach_it_and_a_low_temperature_the_first():
    logits = torch.tensor([[0.2, 0.5, 0.3]]).log().repeat(500, 1)
    assert set(random_sampler(1.0, top_p=0.6)(logits).tolist()) == {1, 2}
    assert set(random_sampler(1.0, top_p=0.4)(logits).tolist()) == {1}
    assert set(random_sampler(0.01)(logits).tolist()) == {1}


@pytest.mark.parametrize(("temperature", "top_p"), [(0, 1), (-1, 1), (float("inf"), 1), (1, 0), (1, 1.5)])
def test_a_sampler_outside_its_range_is_refused(temperature, top_p, shapes_unchecked):
    with pytest.raises(ValueError, match="temperature must be|top_p must be"):
        random_sampler(temperature, top_p=top_p)


def recording(calls):
    def attend(q, k, v, *, lengths=None, window=None):
        calls.append(q.shape[2])
        return sdpa_attention(q, k, v, lengths=lengths, window=window)

    return attend


def test_the_prompt_goes_through_prefill_attend_and_each_later_token_through_attend(model):
    prompt_calls, step_calls = [], []
    stream = generate(
        model, [[3, 1, 4]], max_new_tokens=4, attend=recording(step_calls), prefill_attend=recording(prompt_calls)
    )
    list(stream)
    n_layers = model.config.n_layers
    assert prompt_calls == [3] * n_layers and step_calls == [1] * 3 * n_layers


def test_prefill_computes_the_logits_of_one_position_only(model, monkeypatch):
    widths = []
    logits = type(model).logits
    monkeypatch.setattr(type(model), "logits", lambda self, hidden: widths.append(hidden.shape) or logits(self, hidden))
    prefill(model, torch.tensor([[3, 1, 4, 1, 5]]), model.new_caches(1, 8))
    assert widths == [(1, model.config.d_model)]


def test_inference_builds_no_graph(model):
    assert all(p.requires_grad for p in model.parameters())
    caches = model.new_caches(1, 8)
    logits = prefill(model, torch.tensor([[3, 1, 4]]), caches)
    assert not logits.requires_grad and not caches[0].k.requires_grad
    assert not decode_step(model, torch.tensor([[5]]), caches).requires_grad
