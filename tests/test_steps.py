"""Every step gives the tokens of `decode_step`; graphs are tried where there is a GPU."""

import gc
import importlib
import re
import shutil
import subprocess
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch._inductor.utils import fresh_cache, run_and_get_code
from torch.multiprocessing.reductions import StorageWeakRef

from gqa_lab import steps
from gqa_lab.attention import expanded_attention, grouped_attention, sdpa_attention
from gqa_lab.config import ModelConfig
from gqa_lab.generate import decode_step, generate, prefill
from gqa_lab.model import Transformer
from gqa_lab.steps import captured, compiled, fixed_shapes

SIZES = dict(n_layers=3, d_model=24, n_heads=6, n_kv_heads=3, head_dim=4, d_ff=40, vocab_size=50, max_seq_len=64)
needs_compiler = pytest.mark.skipif(not (shutil.which("g++") or shutil.which("c++")), reason="no C++ compiler here")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here: graphs are not tried")


def make_model(dtype=torch.float64, **changes) -> Transformer:
    torch.manual_seed(1)
    model = Transformer(ModelConfig(**(SIZES | changes), rope_theta=1e4, norm_eps=1e-5)).to(dtype)
    for p in model.parameters():
        p.requires_grad_(False)
        if p.ndim > 1:
            p.mul_(3)  # far from uniform, so that a wrong key changes the token
    model.lay_out_weights()
    return model


def tokens(model, prompts, n_new=30, **how) -> list:
    return list(generate(model, prompts, max_new_tokens=n_new, **how))


VARIANTS = [
    {},
    {"sliding_window": 7},
    {"qk_norm": True},
    {"attention_bias": True},
    {"n_kv_heads": 1},
]
PROMPTS = [[[3, 1, 4, 1, 5]], [[3, 1, 4, 1, 5, 9, 2], [6, 5], [3]]]


@pytest.mark.parametrize("attend", [grouped_attention, expanded_attention, sdpa_attention])
@pytest.mark.parametrize("prompts", PROMPTS, ids=["one", "ragged"])
@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_fixed_shapes_change_no_token_over_three_buckets(changes, prompts, attend):
    model = make_model(**changes)
    same = tokens(model, prompts, attend=attend)
    assert len({t for row in same for t in row}) > 5
    assert tokens(model, prompts, attend=attend, step=fixed_shapes(smallest=8)) == same


@pytest.mark.parametrize("changes", VARIANTS[:2], ids=str)
@pytest.mark.parametrize("prompts", PROMPTS, ids=["one", "ragged"])
def test_fixed_shapes_end_at_the_same_stop_tokens(prompts, changes):
    model = make_model(**changes)
    stop = [token for token in tokens(model, prompts)[9] if token is not None]
    same = tokens(model, prompts, stop=stop)
    assert len(same) < 30 or None in same[-1]
    assert tokens(model, prompts, stop=stop, step=fixed_shapes(smallest=8)) == same


def test_fixed_shapes_leave_the_caches_as_decode_step_does():
    model, ids = make_model(sliding_window=7), torch.tensor([[3, 1, 4, 1], [2, 7, 1, 8]])
    caches, others = model.new_caches(2, 20), model.new_caches(2, 20)
    step = fixed_shapes(smallest=2)
    for some in (caches, others):
        prefill(model, ids, some)
    for token in range(9):
        new = torch.full((2, 1), token)
        expected = decode_step(model, new, caches)
        torch.testing.assert_close(step(model, new, others), expected, rtol=1e-12, atol=1e-12)
    for a, b in zip(caches, others, strict=True):
        assert a.host_lengths == b.host_lengths == [13, 13] == b.lengths.tolist()
        torch.testing.assert_close(a.k, b.k, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(a.v, b.v, rtol=1e-12, atol=1e-12)


def test_what_lies_beyond_the_lengths_of_a_bucket_changes_nothing():
    model = make_model()
    caches, others = model.new_caches(1, 32), model.new_caches(1, 32)
    for some in (caches, others):
        prefill(model, torch.tensor([[3, 1, 4]]), some)
    for cache in others:
        cache.k[:, :, 3:], cache.v[:, :, 3:] = 1e4, -1e4
    new, step = torch.tensor([[5]]), fixed_shapes(smallest=16)
    torch.testing.assert_close(step(model, new, others), decode_step(model, new, caches), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("make", [fixed_shapes, compiled], ids=lambda f: f.__name__)
def test_a_full_cache_refuses_before_it_writes(make):
    model, step = make_model(), make()
    caches = model.new_caches(1, 4)
    prefill(model, torch.tensor([[3, 1, 4, 1]]), caches)
    before = [cache.k.clone() for cache in caches]
    with pytest.raises(ValueError, match=r"makes 5; this cache has max_seq_len = 4"):
        step(model, torch.tensor([[5]]), caches)
    with pytest.raises(ValueError, match=r"ids has shape \[1, 2\]"):
        step(model, torch.tensor([[5, 6]]), caches)
    assert all(torch.equal(a, cache.k) and cache.host_lengths == [4] for a, cache in zip(before, caches, strict=True))


def test_a_graph_on_a_cpu_is_refused_with_the_remedy_before_anything_is_stored():
    model = make_model().cpu()
    with pytest.raises(ValueError, match=r"^ids are on cpu, and only a CUDA device has graphs; use step=compiled\(\)"):
        tokens(model, PROMPTS[0], n_new=2, step=captured())
    caches = model.new_caches(1, 8)
    with pytest.raises(ValueError, match="step=compiled"):
        captured()(model, torch.tensor([[5]]), caches)
    assert caches[0].host_lengths == [0] and not caches[0].k.any()


@pytest.fixture
def recordings(monkeypatch):
    """Graphs that a CPU can play: a recording runs its step on the caches it was made with."""
    made = []

    def record(step, model, ids, caches, n_slots, attend):
        static, logits = ids.clone(), torch.empty(ids.shape[0], model.config.vocab_size, dtype=model.dtype)
        fixed = [steps.FixedCache(cache, n_slots) for cache in caches]

        def replay():
            logits.copy_(step(model, static, fixed, attend=attend))
            steps._count_one(fixed)

        made.append(n_slots)
        return SimpleNamespace(graph=SimpleNamespace(replay=replay), ids=static, logits=logits)

    monkeypatch.setattr(steps, "_record", record)
    monkeypatch.setattr(steps, "_has_graphs", lambda device: True)
    return made


@pytest.mark.parametrize("changes", VARIANTS[:2], ids=str)
@pytest.mark.parametrize("prompts", PROMPTS, ids=["one", "ragged"])
def test_a_recording_is_made_for_each_bucket_once_and_changes_no_token(recordings, prompts, changes):
    model = make_model(**changes)
    same, step = tokens(model, prompts), captured(smallest=8)
    assert tokens(model, prompts, step=step) == same
    buckets = [7] if changes else [8, 16, 32, len(max(prompts, key=len)) + 29]
    assert recordings == buckets
    assert tokens(model, prompts, step=step) == same
    assert recordings == 2 * buckets  # other caches, other addresses


def test_a_recording_keeps_no_cache_alive(recordings):
    model, step = make_model(), captured(smallest=8)
    caches = model.new_caches(1, 8)
    for token in (5, 6):
        step(model, torch.tensor([[token]]), caches)
    assert recordings == [8]
    alive = [weakref.ref(cache) for cache in caches]
    del caches
    gc.collect()
    assert not any(reference() for reference in alive)


def test_a_full_cache_refuses_a_recording_too(recordings):
    model, step = make_model(), captured()
    caches = model.new_caches(1, 1)
    step(model, torch.tensor([[5]]), caches)
    with pytest.raises(ValueError, match=r"makes 2; this cache has max_seq_len = 1"):
        step(model, torch.tensor([[5]]), caches)


def compare_compiled_logits(dtype: torch.dtype) -> None:
    """Asserts that a compiled step is at most twice as far from float64 as an eager one."""
    model, exact = make_model(dtype), make_model()
    exact.load_state_dict(model.state_dict())  # the same numbers, as far as the dtype could hold them
    for ids in (torch.tensor(PROMPTS[0]), torch.tensor([[3, 1, 4], [2, 7, 1]])):
        logits = []
        for each, step in ((exact, decode_step), (model, decode_step), (model, compiled())):
            caches = each.new_caches(len(ids), 8)
            prefill(each, ids, caches)
            logits.append(step(each, torch.full((len(ids), 1), 5), caches).double())
        eager, ours = ((one - logits[0]).abs().max() for one in logits[1:])
        assert logits[2].std() > 0.1 and ours <= max(2 * eager, 1e-12), (dtype, float(eager), float(ours))


def compare_compiled(changes: dict, prompts: list) -> None:
    """Asserts that compiled steps answer as eager ones do, with one program for all lengths."""
    model = make_model(torch.float32, **changes)
    same, step = tokens(model, prompts), compiled()
    fixed = fixed_shapes(step, smallest=8)  # its positions are tensors: other programs
    for each in (step, fixed):
        tokens(model, prompts, n_new=2, step=each)
    stop = [token for token in same[5] if token is not None]
    with torch._dynamo.config.patch(error_on_recompile=True):
        assert tokens(model, prompts, step=step) == same
        assert tokens(model, prompts, step=fixed) == same
        assert tokens(model, prompts, step=step, stop=stop) == tokens(model, prompts, stop=stop) != same


def compare_what_is_inside() -> None:
    """Asserts that one program stores and attends by itself, copies no cache, and that another takes over from it."""
    model, calls = make_model(torch.float32, max_seq_len=6000), []
    in_turn = steps._over

    def over(*args):
        calls.append(args[0].host_lengths)
        return in_turn(*args)

    steps._over = over
    step, ids, prompts = compiled(), torch.tensor([[5]]), [[3, 1, 4, 1], [2, 7, 1, 8]]
    tokens(model, [[3, 1, 4]], n_new=2, step=step)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for prompt, n_new in (([[3, 1, 4, 1, 5]], 30), ([[5] * 300], 40)):  # other caches, to the last slot of each
            assert tokens(model, prompt, n_new=n_new, step=step) == tokens(model, prompt, n_new=n_new)
    assert tokens(model, prompts, step=step) == tokens(model, prompts)  # its own program: two rows
    ring = make_model(torch.float32, sliding_window=7)
    assert tokens(ring, prompts, step=step) == tokens(ring, prompts)
    assert not calls

    mine = torch.compile(lambda k: k * 2 if k.shape[2] > 8 else k, fullgraph=True)  # the user's own over a used cache
    caches = model.new_caches(1, 64)
    with torch.device("meta"):  # a default that is not for this step
        prefill(model, torch.tensor([[3, 1, 4]], device="cpu"), caches)
        step(model, ids, caches)
    assert mine(caches[0].k).shape == caches[0].k.shape
    assert not calls

    caches, expected = model.new_caches(1, 6000), model.new_caches(1, 6000)
    for some in (caches, expected):
        prefill(model, torch.arange(5455)[None] % 50, some)
    torch.compiler.reset()
    with fresh_cache():
        _, codes = run_and_get_code(step, model, ids, caches)
    sizes = re.findall(r"empty_strided_cpu\(\((.*?)\)", "".join(codes))  # of all memory that the program takes
    assert len(sizes) > 5 and not [size for size in sizes if re.search(r"[su]\d", size)], sizes
    decode_step(model, ids, expected)
    assert not calls
    for n_past in range(5456, 5466):  # 3 KV heads of 5,462 keys are 16,384 rows: too many for one call in float32
        logits = step(model, ids, caches)
        torch.testing.assert_close(logits, decode_step(model, ids, expected), rtol=1e-4, atol=1e-4)
        assert len(calls) == 3 * max(0, n_past - 5460), (n_past, calls)
    for ours, theirs in zip(caches, expected, strict=True):
        assert ours.host_lengths == theirs.host_lengths == ours.lengths.tolist() == [5466]
        torch.testing.assert_close(ours.k, theirs.k, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(ours.v, theirs.v, rtol=1e-4, atol=1e-4)


def compare_what_the_compiler_cannot_see() -> None:
    """Asserts that the program calls the attention it is given, whatever that is, over the caches it is given."""
    model, step, ids = make_model(torch.float32), compiled(), torch.tensor([[5]])

    def nothing(q, k, v, **how):
        return q  # the very tensor: a program must not hand it back as its own

    def in_float64(q, k, v, **how):
        return grouped_attention(q, k, v, **how).double()

    def heads_lost(q, k, v, **how):
        return grouped_attention(q, k, v, **how)[:, :2]

    def fails(q, k, v, **how):
        raise KeyError("of the student's own")

    kept = {step: [], decode_step: []}

    def keeping(which, q, k, v, **how):
        out = grouped_attention(q, k, v, **how)
        kept[which] += [q, out]  # to draw them, say: the program must not write over them
        return out

    assert tokens(model, PROMPTS[0], step=step, attend=nothing) == tokens(model, PROMPTS[0], attend=nothing)
    for each in kept:
        tokens(model, PROMPTS[0], step=each, attend=partial(keeping, each))
    for ours, eager in zip(kept[step], kept[decode_step], strict=True):
        torch.testing.assert_close(ours, eager, rtol=1e-4, atol=1e-4)
    says = r"attend must return q's shape and dtype, torch.float32 \[1, 6, 1, 4\]; it returned torch.float"
    for attend, error, what in (
        (in_float64, ValueError, says + r"64 \[1, 6, 1, 4\]"),
        (heads_lost, ValueError, says + r"32 \[1, 2, 1, 4\]"),
        (fails, KeyError, "of the student's own"),
    ):
        with pytest.raises(error, match=what):
            step(model, ids, model.new_caches(1, 8), attend=attend)
    for caches, what in (  # what would not fit into the program is refused as without it
        (make_model(torch.float64).new_caches(1, 8), r"k is torch.float32 on cpu; this cache is torch.float64"),
        (model.new_caches(2, 8), r"k has shape \[1, 3, 1, 4\]; this cache takes \[batch 2, n_kv_heads 3"),
        (make_model(n_kv_heads=1).float().new_caches(1, 8), "this cache takes .batch 1, n_kv_heads 1"),
        ([*model.new_caches(1, 8)[:2], make_model(torch.float64).new_caches(1, 8)[2]], "this cache is torch.float64"),
    ):
        with pytest.raises(ValueError, match=what):
            step(model, ids, caches)
    with torch.inference_mode():
        assert tokens(model, PROMPTS[0], step=step) == tokens(model, PROMPTS[0])
    two = model.new_caches(2, 8)
    for attend in (grouped_attention, sdpa_attention):  # inside and apart; nothing is stored
        limit = torch._dynamo.config.patch(recompile_limit=1)
        with limit, pytest.raises(RuntimeError, match=r"torch.compiler.reset\(\)"):
            step(model, torch.tensor([[5], [6]]), two, attend=attend)
    assert not any(cache.k.any() or cache.v.any() or any(cache.host_lengths) for cache in two)
    apart = partial(grouped_attention)  # not the function itself
    for attend in (grouped_attention, apart):
        with ThreadPoolExecutor(2) as pool:  # two answers at once, each over its own caches
            answer = partial(tokens, model, step=step, attend=attend)
            answers = list(pool.map(answer, ([[3, 1, 4]], [[2, 7]])))
        assert answers == [tokens(model, [[3, 1, 4]]), tokens(model, [[2, 7]])]
        assert _dead_after_use(model, step, attend)
    model.layers[1].mlp_norm.eps = 10.0
    torch.compiler.reset()  # as the docstring asks after such a change
    expected = decode_step(model, ids, model.new_caches(1, 8))
    torch.testing.assert_close(step(model, ids, model.new_caches(1, 8)), expected, rtol=1e-4, atol=1e-4)
    importlib.reload(steps)  # as %autoreload does: the operation is defined anew
    assert tokens(model, PROMPTS[0], step=steps.compiled()) == tokens(model, PROMPTS[0])


def _dead_after_use(model: Transformer, step, attend) -> bool:
    caches = model.new_caches(1, 8)
    for token in (5, 6):
        step(model, torch.tensor([[token]]), caches, attend=attend)
    memory = [StorageWeakRef(x.untyped_storage()) for cache in caches for x in (cache.k, cache.v)]
    alive = [weakref.ref(cache) for cache in caches]
    del caches
    gc.collect()
    return not any(reference() for reference in alive) and all(reference.expired() for reference in memory)


slow = pytest.mark.slow


def apart(code: str) -> None:
    """Runs code in a process of its own: the compiler cannot see through the checks of shapes that conftest.py adds."""
    code = f"import torch\nfrom test_steps import *\n{code}"
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, check=True)


@needs_compiler
def test_the_compiled_program_changes_no_token_takes_any_attention_and_keeps_no_cache():
    apart(f"compare_compiled({{}}, {PROMPTS[0]})\ncompare_what_the_compiler_cannot_see()")


@needs_compiler
def test_the_compiled_program_stores_and_attends_by_itself_and_copies_no_cache():
    apart("compare_what_is_inside()")


@slow
@needs_compiler
@pytest.mark.parametrize(
    "changes, prompts",
    [
        pytest.param({}, PROMPTS[1], id="ragged"),
        pytest.param({"sliding_window": 7}, PROMPTS[1], id="ragged, window"),
        *((changes, PROMPTS[0]) for changes in VARIANTS[1:]),
    ],
    ids=str,
)
def test_the_compiled_program_changes_no_token_of_other_models(changes, prompts):
    apart(f"compare_compiled({changes}, {prompts})")


@slow
@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_the_compiled_program_errs_at_most_twice_as_much_as_eager_steps(dtype):
    apart(f"compare_compiled_logits({dtype})")


@needs_gpu
@pytest.mark.parametrize("inner", [decode_step, compiled()], ids=["eager", "compiled"])
@pytest.mark.parametrize("prompts", PROMPTS, ids=["one", "ragged"])
def test_a_graph_changes_no_token(prompts, inner):
    model = make_model(torch.float32).cuda()
    same, step = tokens(model, prompts), captured(inner, smallest=8)
    assert tokens(model, prompts, step=step) == same
    assert tokens(model, prompts, step=step) == same  # with other caches
