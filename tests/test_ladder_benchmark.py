"""The benchmark of the ladder, as far as a machine without a GPU can run it."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
spec = importlib.util.spec_from_file_location("ladder", ROOT / "benchmarks" / "ladder.py")
ladder = importlib.util.module_from_spec(spec)
sys.modules["ladder"] = ladder  # dataclasses look their module up
spec.loader.exec_module(ladder)

from gqa_lab import costs  # noqa: E402
from gqa_lab.attention import expanded_attention, grouped_attention  # noqa: E402
from gqa_lab.cache import KVCache  # noqa: E402
from gqa_lab.generate import decode_step, generate  # noqa: E402
from gqa_lab.plots.ladder import MARKS  # noqa: E402

needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="the smoke run belongs to a CPU")


@needs_no_gpu
def test_the_smoke_run_goes_through_all_of_it_and_writes_nothing(monkeypatch, capsys):
    monkeypatch.setattr(ladder, "save_record", lambda *_: pytest.fail("a smoke run wrote a record"))
    record = ladder.main(["--smoke"])
    rungs = ["no cache", "concatenated", "preallocated", "grouped"]
    assert [(row["kv_len"], row["rung"]) for row in record["results"]] == [
        (n, rung) for n in (12, 40) for rung in rungs
    ]
    for row in record["results"]:
        assert row["tokens_as_grouped"] == 3  # the one that was fed and two new ones
        assert row["tokens_per_s"] > 0 and row["ms_min_max"][0] <= row["ms"] <= row["ms_min_max"][1]
    assert [row["n_kv_heads"] for row in record["heads"]] == [9, 3, 1] and not record["not_measured"]
    assert "concatenated" in capsys.readouterr().out


def test_the_bytes_that_a_rung_is_said_to_move_are_those_the_meter_counts():
    model, n = ladder.tiny(), 100
    ids, full = ladder.filled(model, n, 4)
    weights = costs.weight_bytes_read(model.config, bytes_per_element=4)
    kv = costs.kv_cache_bytes(model.config, batch_size=1, kv_len=n + 1, bytes_per_element=4)
    for name, times in (("concatenated", 9), ("preallocated", 7), ("grouped", 1)):  # R = 3
        rung = ladder.RUNGS[name]
        assert rung.times_kv(model.config.group_size) == times
        caches = ladder.caches_for(rung, model, ids, full)
        moved = ladder.metered(decode_step, model, caches, rung.attend, n)
        assert (moved["read"] + moved["written"]) * 1e6 == pytest.approx(weights + times * kv, rel=0.2), name


@pytest.mark.parametrize("attend", [expanded_attention, grouped_attention])
def test_every_eager_rung_gives_the_tokens_of_generate(attend):
    model = ladder.tiny()
    ids, full = ladder.filled(model, 20, 8)
    first = int(ids[0, -1])
    prompt = [[*ids[0].tolist(), first]]
    same = [token for [token] in generate(model, prompt, max_new_tokens=5)]
    for name in ("no cache", "concatenated", "preallocated", "grouped"):
        rung = ladder.RUNGS[name]
        caches = ladder.caches_for(rung, model, ids, full)
        for _ in range(2):  # a turn leaves the caches as they were
            _, tokens = ladder.turn(rung.make_step(), model, caches, attend, 5, first)
            assert tokens[1:] == same, name
            ladder.rewind(caches, 20)


def test_a_concatenated_cache_holds_what_a_cache_holds():
    sizes = dict(dtype=torch.float64, device="cpu")
    one, other = KVCache(1, 2, 20, 4, **sizes), ladder.ConcatenatedCache(1, 2, 1, 4, **sizes)
    for n in (5, 1, 3):
        new = torch.randn(2, 1, 2, n, 4, dtype=torch.float64)
        for a, b in zip(one.append(*new), other.append(*new), strict=True):
            assert torch.equal(a, b)
        for cache in (one, other):
            cache.rewind(5)
    assert other.kv_lengths(1) is None and other.host_lengths == [5]


def test_every_rung_has_a_mark_in_the_figure_and_each_triton_rung_its_kernel():
    assert {*ladder.RUNGS, *ladder.ON_A_GPU} - {"no cache"} == set(MARKS)
    assert all(not rung.eager for rung in ladder.ON_A_GPU.values())
    assert [name for name, rung in ladder.ON_A_GPU.items() if rung.attend is ladder.triton] == [
        "captured, compiled, triton"]  # fmt: skip


def test_a_model_with_random_weights_has_the_sizes_of_its_shape():
    model = ladder.tiny()
    config = model.config
    assert sum(p.numel() for p in model.parameters()) == costs.n_parameters(config)
    assert all(torch.isfinite(p).all() for p in model.parameters()) and model.rope_cos.isfinite().all()
    assert not any(p.requires_grad for p in model.parameters())


def test_the_shapes_for_a_gpu_are_dense_models_that_ours_can_run():
    for name in ladder.SHAPES:
        assert costs.SHAPES[name].mlp_matrices == 3 and costs.SHAPES[name].tie_embeddings is not None
        assert max(kv_len for _, kv_len in ladder.HEADS) <= costs.SHAPES["llama-3.1-8b"].max_seq_len
