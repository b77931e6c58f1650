import math
from dataclasses import FrozenInstanceError, replace

import pytest

from gqa_lab.costs import (
    GPUS,
    SHAPES,
    decode_step_s,
    kv_cache_bytes,
    largest_batch,
    plan,
    prefill_s,
    weight_bytes_held,
    with_kv_heads,
)
from gqa_lab.costs.__main__ import main

LLAMA, LLAMA_70B, H100 = SHAPES["llama-3.1-8b"], SHAPES["llama-2-70b"], GPUS["h100-sxm"]
CHATS = dict(kv_len=100_000, batch_size=4)


def test_a_plan_on_one_gpu_says_what_the_functions_say():
    found = plan(LLAMA, H100, **CHATS, price_per_hour=3.6)
    assert found.fits and found.gpus_needed == 1 and found.n_kv_heads == 8
    assert found.cache_bytes == kv_cache_bytes(LLAMA, **CHATS, bytes_per_element=2) == 4 * 13_107_200_000
    assert found.needed_bytes == weight_bytes_held(LLAMA, bytes_per_element=2) + found.cache_bytes
    assert found.step_s == decode_step_s(LLAMA, H100, **CHATS)
    assert found.first_token_s == prefill_s(LLAMA, H100, batch_size=1, q_len=100_000)
    assert found.largest_context == (72e9 - found.weight_bytes) // (4 * 131_072)
    assert found.chats == found.chats_of(100_000) == largest_batch(LLAMA, H100, kv_len=100_000) == 4
    assert (found.capacity_crossover, found.traffic_crossover) == (30_632, 28_628)  # a quarter of those at batch 1
    # 3.6 an hour is 0.001 a second; a step of 4 tokens takes (15.009 + 52.429) GB / 3,350 GB/s = 20.13 ms
    assert found.cost_per_million_tokens == pytest.approx(0.001 * 0.02013 / 4 * 1e6, rel=1e-3)
    assert found.cost_per_chat_hour == 0.9


def test_a_plan_with_other_kv_heads_and_bytes_is_that_of_the_other_model():
    asked = dict(CHATS, weight_bytes_per_element=1, kv_bytes_per_element=1)
    other = plan(LLAMA, H100, **asked, n_kv_heads=4)
    of_its_own = plan(with_kv_heads(LLAMA, 4), H100, **asked)
    for name in ("fits", "cache_bytes", "weight_bytes", "step_s", "chats", "traffic_crossover"):
        assert getattr(other, name) == getattr(of_its_own, name)
    assert [p.n_kv_heads for p in other.beside()] == [32, 8, 4, 1]
    assert [p.n_kv_heads for p in of_its_own.beside()] == [32, 4, 1]


@pytest.mark.parametrize(
    ("batch_size", "kv_len", "n_kv_heads", "who"),
    [(1, 8192, 8, "weights"), (32, 8192, 8, "cache"), (32, 8192, 1, "weights"), (2048, 16, 8, "compute")],
)
def test_what_decides_is_what_takes_longest(batch_size, kv_len, n_kv_heads, who):
    found = plan(LLAMA, H100, batch_size=batch_size, kv_len=kv_len, n_kv_heads=n_kv_heads)
    assert found.fits and found.decides == who


def test_what_does_not_fit_has_no_times_and_names_the_gpus_that_would_do():
    one = plan(LLAMA_70B, H100, **CHATS, price_per_hour=3.5)
    # (137.95 + 131.07) GB / 72 GB = 3.7
    assert (one.fits, one.gpus_needed) == (False, 4)
    assert one.step_s is one.tokens_per_s is one.first_token_s is one.cost_per_million_tokens is None
    assert one.chats == 0
    four = one.on_enough_gpus()
    assert four.n_gpus == 4 and four.fits and four.on_enough_gpus() is four
    read = 2 * (68_975_329_280 - 32_000 * 8192) + 131_072_000_000
    assert four.step_s == pytest.approx(read / (4 * 3350e9))
    assert four.cost_per_chat_hour == 4 * 3.5 / four.chats


@pytest.mark.parametrize(
    ("n_kv_heads", "n_gpus", "copies"), [(8, 1, 1), (8, 4, 1), (8, 8, 1), (8, 16, 2), (1, 4, 4), (8, 3, 9 / 8)]
)
def test_gpus_that_share_a_model_hold_whole_kv_heads(n_kv_heads, n_gpus, copies):
    found = plan(LLAMA_70B, H100, **CHATS, n_kv_heads=n_kv_heads, n_gpus=n_gpus)
    assert found.copies(n_gpus) == copies
    assert found.needed_bytes == found.weight_bytes + copies * found.cache_bytes
    assert found.capacity_crossover == int(found.weight_bytes / (copies * 4 * found.kv_bytes_per_token))
    assert any("times: they share it by whole heads" in note for note in found.notes) == (copies > 1)


@pytest.mark.parametrize("gpu", ["t4", "l4", "h100-sxm"])
@pytest.mark.parametrize("n_kv_heads", [64, 8, 2, 1])
def test_one_gpu_fewer_than_needed_does_not_hold_it(gpu, n_kv_heads):
    asked = plan(LLAMA_70B, GPUS[gpu], kv_len=30_000, batch_size=4, n_kv_heads=n_kv_heads)
    enough = asked.gpus_needed
    assert replace(asked, n_gpus=enough).fits
    assert not any(replace(asked, n_gpus=n).fits for n in range(1, enough))


def test_a_cache_that_every_gpu_holds_whole_can_be_too_large_for_any_number_of_them():
    found = plan(LLAMA_70B, GPUS["t4"], kv_len=100_000, batch_size=4, n_kv_heads=1)  # 16.4 GB on each of 14.4 GB
    assert (found.fits, found.gpus_needed) == (False, None) and found.on_enough_gpus() is found
    assert "no number of them would hold it" in found.table().replace("\n", " ")
    latent = plan(SHAPES["deepseek-v3"], H100, kv_len=100_000, batch_size=4, n_gpus=16)
    assert latent.copies(16) == 16


def test_a_mixture_is_planned_as_far_as_it_is_known():
    mixtral = plan(SHAPES["mixtral-8x7b-v0.1"], GPUS["h200"], **CHATS)
    assert mixtral.fits is False and mixtral.gpus_needed == 2  # (93.4 + 52.4) GB, 126.9 GB offered
    assert mixtral.step_s is mixtral.decides is mixtral.cache_share is mixtral.traffic_crossover is None
    assert "Which weights a step of Mixtral-8x7B-v0.1 reads is not known here" in mixtral.table()
    kimi = plan(SHAPES["kimi-k2"], H100, **CHATS)
    assert kimi.fits is kimi.gpus_needed is kimi.chats is None and kimi.cache_bytes == 4 * 100_000 * 70_272
    assert "The weights are not known here." in kimi.table().replace("\n", " ")


def test_windows_that_stay_smaller_than_the_weights_never_outweigh_them():
    found = plan(SHAPES["mistral-7b-v0.1"], GPUS["rtx-4090"], kv_len=30_000, batch_size=1)
    assert found.capacity_crossover == math.inf
    assert "never" in found.table()


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (dict(CHATS), "was made for 4,096 tokens; 100,000 is arithmetic"),
        (dict(kv_len=8, batch_size=1, kv_bytes_per_element=1), "scales of numbers stored in 8 bits or fewer are not counted"),
    ],
)  # fmt: skip
def test_a_plan_says_what_to_know_before_believing_it(asked, says):
    assert any(says in note for note in plan(LLAMA_70B, H100, **asked).notes)
    assert plan(LLAMA, H100, kv_len=8, batch_size=1).notes == ()
    assert "reading alone" in plan(LLAMA, GPUS["m4"], kv_len=8, batch_size=1).notes[0]


def test_a_plan_cannot_be_changed_and_can_be_replaced():
    found = plan(LLAMA, H100, **CHATS)
    with pytest.raises(FrozenInstanceError):
        found.n_gpus = 2
    assert replace(found, n_gpus=2).offered_bytes == 2 * found.offered_bytes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
        ({"kv_len": -5}, "kv_len must be a whole number of at least 1, got -5"),
        ({"n_gpus": 0}, "n_gpus must be a whole number of at least 1, got 0"),
        ({"n_kv_heads": 3}, "n_heads .32. must be a multiple of n_kv_heads .3.; try 1, 2, 4, 8, 16 or 32"),
        ({"price_per_hour": -1}, "price_per_hour must be a number greater than 0, got -1"),
        ({"free_share": 1.0}, "free_share must be at least 0 and less than 1, got 1.0"),
        ({"weight_bytes_per_element": math.nan}, "weight_bytes_per_element must be a number greater than 0, got nan"),
    ],
)
def test_a_plan_with_impossible_numbers_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        plan(LLAMA, H100, **CHATS | change)


def test_a_latent_cache_has_no_other_number_of_kv_heads():
    with pytest.raises(ValueError, match="keeps one latent vector per token"):
        plan(SHAPES["deepseek-v2"], H100, **CHATS, n_kv_heads=8)
    assert len(plan(SHAPES["deepseek-v2"], H100, **CHATS).beside()) == 1


TABLE = """\
Llama-2-70B with 8 KV heads (GQA) on one H100 SXM
4 sequences of 100,000 tokens, 16-bit weights, 16-bit cache

Does not fit: weights 138 GB + cache 131 GB = 269 GB; one H100 SXM offers 72 GB (10% kept
free). 4 of them hold it, by division; what they tell each other is not counted. Every
column below is for 4.

n_kv_heads                                         64 MHA      8 GQA      1 MQA
                                                           this plan
cache per token, KiB                                2,560        320         40
cache, GB                                           1,049        131       16.4
weights, GB                                           157        138        136
GPUs that hold it                                      22          4          3
100,000-token chats at once                             0          4          9
tokens that fit in each sequence                   12,517    114,478    232,541
next token, at least, ms                                -         20         15
tokens per second of all, at most                       -        200        267
what decides                                            -    weights    weights
cache's part of the bytes read                        87%        49%        33%
cache > weights in memory beyond, tokens           14,948    105,248    206,912
cache > weights in traffic beyond, tokens          14,898    104,848    206,112
first token after 100,000, at least, s                  -       6.77       6.71
a million tokens (3.5 a GPU and hour)                   -       19.5       14.6
a 100,000-token chat kept for an hour                   -        3.5       1.56

Times are floors and rates ceilings, from data sheets: what no program beats, not what one
reaches.
Llama-2-70B was made for 4,096 tokens; 100,000 is arithmetic.
4 GPUs hold the cache of 1 KV head (MQA) 4 times: they share it by whole heads.
"""


def test_the_command_line_prints_the_table(capsys):
    asked = "--model llama-2-70b --gpu h100-sxm --kv-len 100000 --batch-size 4 --kv-heads 8 --price-per-hour 3.5"
    assert main(asked.split()) == 0
    assert capsys.readouterr().out == TABLE


def test_the_command_line_passes_every_number_on(capsys):
    asked = "--model llama-3.1-8b --gpu l4 --gpus 2 --kv-len 5000 --batch-size 3 --kv-heads 4 --kv-dtype fp8 --weight-dtype int4"
    assert main([*asked.split(), "--free-share", "0.2", "--price-per-hour", "0.7"]) == 0
    expected = plan(
        LLAMA, GPUS["l4"], n_gpus=2, kv_len=5000, batch_size=3, n_kv_heads=4, kv_bytes_per_element=1,
        weight_bytes_per_element=0.5, free_share=0.2, price_per_hour=0.7,
    )  # fmt: skip
    assert capsys.readouterr().out == expected.table() + "\n"


def test_every_line_of_every_table_fits_and_every_model_has_one():
    for shape in SHAPES.values():
        heads = 2 if shape.n_heads % 2 == 0 and shape.kind != "mla" else None
        table = plan(
            shape, GPUS["m4-max-40"], kv_len=9_999_999, batch_size=99, n_kv_heads=heads, price_per_hour=9.99
        ).table()
        assert max(map(len, table.splitlines())) <= 92, table


def test_a_config_json_is_planned_too(tmp_path, capsys):
    (tmp_path / "config.json").write_text(
        '{"model_type": "llama", "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9, "vocab_size": 49152,'
        '"num_key_value_heads": 3, "intermediate_size": 1536, "max_position_embeddings": 8192, "tie_word_embeddings": true}'
    )
    assert main(["--config", str(tmp_path)]) == 0
    assert "cache per token, KiB                                 67.5       22.5        7.5" in capsys.readouterr().out


def test_the_list_has_every_model_and_every_gpu(capsys):
    assert main(["--list"]) == 0
    listed = {line.split()[0] for line in capsys.readouterr().out.splitlines()}
    assert set(SHAPES) | set(GPUS) <= listed


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ("--model llama2", "model 'llama2' is not known here; did you mean llama-2-7b or llama-2-13b or llama-2-70b?"),
        ("--model llama-2-7b --gpu h10", "GPU 'h10' is not known here; did you mean h100-sxm or h100-pcie or a10?"),
        ("--model llama-2-7b --kv-heads 5", "n_heads (32) must be a multiple of n_kv_heads (5); try 1, 2, 4, 8, 16 or 32"),
        ("--model llama-2-7b --batch-size x", "argument --batch-size: invalid int value: 'x'"),
        ("--model llama-2-7b --config x", "name a model with --model (--list shows them), or a file with --config"),
        ("", "name a model with --model (--list shows them), or a file with --config"),
        ("--config nowhere", "cannot read nowhere: No such file or directory; name a config.json or the folder that has it"),
    ],
)  # fmt: skip
def test_a_mistake_on_the_command_line_is_one_sentence_and_exit_status_2(asked, sentence, capsys):
    assert main(asked.split()) == 2
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", sentence + "\n")
