"""Models of transformers, tiny and random: what their caches hold, what their steps copy, where their regions are."""

import inspect

import pytest
import torch

transformers = pytest.importorskip("transformers")

from gqa_lab.attention import grouped_attention  # noqa: E402
from gqa_lab.profiler import Ceilings, DecodeProfile, profile_decode  # noqa: E402
from gqa_lab.profiler.decoders import shape_of  # noqa: E402

SIZES = dict(
    hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=3,
    vocab_size=50, max_position_embeddings=128, bos_token_id=0, eos_token_id=0, pad_token_id=0,
)  # fmt: skip
PER_TOKEN = 2 * 3 * 4 * 4  # K and V, G, D, bytes


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def _here(monkeypatch):
    said = dict(device="a machine", versions="torch 2", commit="abc", date="2026-01-02")
    monkeypatch.setattr("gqa_lab.profiler.measure.environment", lambda: said)


def profile(model, clock=None, **asked) -> DecodeProfile:
    """Every step takes a second more than its parts."""
    clock = clock or Clock()
    forward = model.forward

    def slow(*args, **kwargs):
        clock.now += 1.0
        return forward(*args, **kwargs)

    slow.__signature__ = inspect.signature(forward)
    model.forward = slow
    quick = dict(kv_len=20, new_tokens=1, sweep=[], ceilings=Ceilings(1e9, 1e12), memory=10**9, clock=clock)
    return profile_decode(model.eval(), **(quick | asked))


def llama(**changes):
    torch.manual_seed(1)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**(SIZES | changes)))


def test_a_llamas_cache_is_as_predicted_and_concatenated_at_every_step():
    found = profile(llama(), batch_size=2)
    assert found.predicted_bytes == found.allocated_bytes == found.used_bytes == 2 * 2 * 20 * PER_TOKEN
    assert found.read_bytes == 2 * 2 * (19 + 20) * PER_TOKEN  # by cat, and by the attention
    assert {(copy.kind, copy.operation, copy.layer) for copy in found.copies} == {
        ("concatenated", "cat", i) for i in (0, 1)
    }
    assert sum(copy.written_bytes for copy in found.copies) == found.allocated_bytes
    assert [(q.n_tokens, q.n_slots, q.wasted_bytes) for q in found.sequences] == [(20, 20, 0)] * 2
    assert found.token_s == [1.0] and found.first_token_s == [1.0]
    assert found.how == "transformers, LlamaForCausalLM" and found.sizes["n_kv_heads"] == 3
    assert DecodeProfile.from_json(found.to_json()) == found


def test_eager_attention_expands_what_it_has_concatenated():
    found = profile(llama(attn_implementation="eager"))
    assert {copy.kind for copy in found.copies} == {"concatenated", "expanded"}
    assert found.read_bytes == 2 * (19 + 20 + 2 * 20) * PER_TOKEN


def test_the_split_of_a_llama_is_made_where_its_modules_are_known():
    clock, model = Clock(), llama()

    def lasting(seconds, function):
        def slow(*args, **kwargs):
            clock.now += seconds
            return function(*args, **kwargs)

        return slow

    for i, layer in enumerate(model.model.layers):
        own = layer.self_attn
        layer.mlp.forward = lasting(4 + i, layer.mlp.forward)
        own.forward = lasting(16, own.forward)
        for linear in (own.q_proj, own.k_proj, own.v_proj, own.o_proj):
            linear.forward = lasting(0.25, linear.forward)
    model.lm_head.forward = lasting(64, model.lm_head.forward)
    found = profile(model, clock=clock)
    assert found.split_s == {
        "attention": 32, "append": 0, "projections": 2, "mlp": 9, "head": 64, "unattributed": 1,
    }  # fmt: skip
    assert found.split_by_layer_s[1] == {"attention": 16, "append": 0, "projections": 1, "mlp": 5}
    assert any("timed with its RoPE" in note for note in found.notes)
    assert found.region_read_bytes["append"] == 2 * 20 * PER_TOKEN  # the 19 that were there, and the new one


def test_a_falcon_keeps_its_keys_once_per_query_head_and_is_found_out():
    sizes = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=6, vocab_size=50, max_position_embeddings=128)
    config = transformers.FalconConfig(
        **sizes, num_kv_heads=2, new_decoder_architecture=True, bos_token_id=0, eos_token_id=0
    )
    model = transformers.FalconForCausalLM(config)
    found = profile(model, batch_size=2)
    assert found.sizes["n_kv_heads"] == 2 and found.predicted_bytes == 2 * 2 * 20 * 2 * 2 * 4 * 4
    assert found.allocated_bytes == 3 * found.predicted_bytes
    said = "The cache takes 3 x what its 2 KV heads need: keys and values are kept once per query head."
    assert found.flags[0] == said
    assert found.split_s == {} and found.token_s == [1.0]
    assert "The modules of FalconForCausalLM are not known here (no self_attn and mlp): no split." in found.notes
    matrices = sum(p.numel() for name, p in model.named_parameters() if p.ndim > 1)
    assert found.weights_predicted_bytes == 4 * matrices


def test_a_falcon_has_the_kv_heads_that_its_config_means():
    falcon = transformers.FalconConfig
    grouped = falcon(num_attention_heads=6, num_kv_heads=2, new_decoder_architecture=True, hidden_size=24)
    multi_query = falcon(num_attention_heads=6, multi_query=True, hidden_size=24)
    multi_head = falcon(num_attention_heads=6, multi_query=False, hidden_size=24)
    assert [shape_of(c.to_dict()).n_kv_heads for c in (grouped, multi_query, multi_head)] == [2, 1, 6]


def test_of_a_family_that_is_not_known_the_totals_and_the_cache_are_measured():
    config = transformers.GPT2Config(
        n_embd=24, n_layer=2, n_head=3, vocab_size=50, n_positions=128, bos_token_id=0, eos_token_id=0
    )
    found = profile(transformers.GPT2LMHeadModel(config))
    assert found.predicted_bytes is found.fit is found.floor_s is found.fits is None and found.sizes == {}
    assert found.allocated_bytes == 2 * 2 * 20 * 24 * 4 and found.token_s == [1.0] and found.sweep == []
    assert any("The sizes of GPT2LMHeadModel are not known here: nothing is predicted" in note for note in found.notes)
    assert DecodeProfile.from_json(found.to_json()) == found
    assert "next token" in found.table()


def test_a_window_that_transformers_keeps_is_predicted_for_the_layers_that_have_it():
    config = transformers.MistralConfig(**SIZES, sliding_window=8)
    found = profile(transformers.MistralForCausalLM(config))
    assert found.predicted_bytes == 2 * 8 * PER_TOKEN == found.allocated_bytes  # a view of 7 of 8 tokens
    assert found.used_bytes == 2 * 7 * PER_TOKEN
    assert [(q.n_tokens, q.n_slots) for q in found.sequences] == [(7, 8)]


def test_what_a_model_of_transformers_cannot_take_is_refused(shapes_unchecked):
    with pytest.raises(ValueError, match="sequences of one length; give kv_len as a number"):
        profile(llama(), kv_len=[20, 10])
    with pytest.raises(ValueError, match="computes its own attention and step; leave attend and step out"):
        profile(llama(), attend=grouped_attention)


@pytest.mark.parametrize("kind", ["headless", "encoder"])
def test_what_does_not_generate_is_refused(kind, shapes_unchecked):
    if kind == "headless":
        model = transformers.LlamaModel(transformers.LlamaConfig(**SIZES))
    else:
        sizes = dict(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, vocab_size=50)
        model = transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes))
    with pytest.raises(ValueError, match="or a model of transformers that generates, no encoder"):
        profile(model)


def test_of_a_mixture_the_cache_is_predicted_and_the_weights_are_not():
    sizes = SIZES | dict(num_local_experts=4, num_experts_per_tok=2)
    found = profile(transformers.MixtralForCausalLM(transformers.MixtralConfig(**sizes)), sweep=[10, 100])
    assert found.predicted_bytes == found.allocated_bytes == 2 * 20 * PER_TOKEN
    assert found.floor_s is found.weights_read_bytes is None
    assert [p.read_bytes for p in found.sweep] == [2 * n * PER_TOKEN for n in (10, 100)]
    assert any("Which weights a step reads is not known here" in note for note in found.notes)


def test_the_sweep_of_a_llama_sees_the_contexts_that_were_asked_for():
    model, seen = llama(), []

    def watch(module, args, kwargs):
        seen.append(
            (
                kwargs["input_ids"].shape[1],
                kwargs["past_key_values"].get_seq_length() if "past_key_values" in kwargs else 0,
            )
        )

    model.register_forward_pre_hook(watch, with_kwargs=True)
    found = profile(model, sweep=[10, 100], prefills=0)
    assert [p.kv_len for p in found.sweep] == [10, 100]
    decode = [past + 1 for q_len, past in seen if q_len == 1 and past]
    assert decode[-14:] == [*range(6, 13), *range(96, 103)]
