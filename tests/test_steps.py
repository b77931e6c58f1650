"""Every step gives the tokens of `decode_step`; graphs are tried where there is a GPU."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

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
    if make is fixed_shapes:
        with pytest.raises(ValueError, match=r"makes 5; this cache has max_seq_len = 4"):
            step(model, torch.tensor([[5]]), caches)
    with pytest.raises(ValueError, match=r"ids has shape \[1, 2\]"):
        step(model, torch.tensor([[5, 6]]), caches)
    assert all(torch.equal(a, cache.k) and cache.host_lengths == [4] for a, cache in zip(before, caches, strict=True))


def test_a_graph_on_a_cpu_is_refused_with_the_remedy():
    model = make_model().cpu()
    with pytest.raises(ValueError, match="step=compiled"):
        tokens(model, PROMPTS[0], n_new=2, step=captured())


def compare_compiled(changes: dict) -> None:
    """Asserts that compiled steps answer as eager ones do, all layers with one program."""
    model = make_model(torch.float32, **changes)
    same, step = tokens(model, PROMPTS[0]), compiled()
    fixed = fixed_shapes(step, smallest=8)  # its positions are tensors: other programs
    for each in (step, fixed):
        tokens(model, PROMPTS[0], n_new=2, step=each)
    with torch._dynamo.config.patch(error_on_recompile=True):
        assert tokens(model, PROMPTS[0], step=step) == same
        assert tokens(model, PROMPTS[0], step=fixed) == same


@needs_compiler
@pytest.mark.parametrize("changes", [{}, *(pytest.param(c, marks=pytest.mark.slow) for c in VARIANTS[1:])], ids=str)
def test_compiled_pieces_serve_all_layers_and_change_no_token(changes):
    # in a process of its own: the compiler cannot see through the checks of shapes that conftest.py adds
    code = f"import test_steps; test_steps.compare_compiled({changes})"
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, check=True)


@needs_gpu
@pytest.mark.parametrize("inner", [decode_step, compiled()], ids=["eager", "compiled"])
@pytest.mark.parametrize("prompts", PROMPTS, ids=["one", "ragged"])
def test_a_graph_changes_no_token(prompts, inner):
    model = make_model(torch.float32).cuda()
    same, step = tokens(model, prompts), captured(inner, smallest=8)
    assert tokens(model, prompts, step=step) == same
    assert tokens(model, prompts, step=step) == same  # with other caches
