"""Counts by hand. Each row is a program and, for elements of e bytes, its (bytes read, bytes written)."""

import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

import gqa_lab
from gqa_lab.attention import expanded_attention, grouped_attention
from gqa_lab.cache import KVCache
from gqa_lab.config import ModelConfig
from gqa_lab.footprint import distinct_bytes
from gqa_lab.model import Transformer
from gqa_lab.traffic import TrafficMeter


def traffic(program):
    with TrafficMeter() as meter:
        program()
    return meter.bytes_read, meter.bytes_written


X = torch.zeros(10, 4)
TWO, SAME = torch.tensor([3, 5]), torch.tensor([3, 3])  # 16 bytes each
FOUR = torch.tensor([[3, 5, 7, 9]])  # 32 bytes
MASK = torch.arange(40).view(10, 4) < 7  # 40 bytes, 7 of them True
ROW_MASK = torch.arange(10) < 3  # 10 bytes, 3 of them True


def tensors(dtype):
    shapes = dict(
        x=(10, 4), y=(10, 4), square=(6, 6), table=(100, 4), bias=(100,), row=(1, 4), one=(), heads=(1, 3, 5, 2)
    )
    t = SimpleNamespace(**{name: torch.zeros(shape, dtype=dtype) for name, shape in shapes.items()})
    t.wide = torch.float64 if dtype == torch.float32 else torch.float32
    return t


PROGRAMS = {
    "elementwise": [
        (lambda t: t.x + 1, lambda e: (40 * e, 40 * e)),
        (lambda t: t.x + t.y, lambda e: (80 * e, 40 * e)),
        (lambda t: t.x > 0, lambda e: (40 * e, 40)),
        (lambda t: torch.where(MASK, t.x, t.y), lambda e: (40 + 80 * e, 40 * e)),
        (lambda t: t.x.masked_fill(MASK, 1.0), lambda e: (40 * e + 40, 40 * e)),
        (lambda t: t.x.softmax(-1), lambda e: (40 * e, 40 * e)),
        (lambda t: t.x.sum(), lambda e: (40 * e, e)),
        (lambda t: t.x.max(-1), lambda e: (40 * e, 10 * e + 10 * 8)),
        (lambda t: t.x[0, 0].item(), lambda e: (e, 0)),
        (lambda t: torch.cat([t.x, t.y]), lambda e: (80 * e, 80 * e)),
        (lambda t: t.x.sum() + 1, lambda e: (41 * e, 2 * e)),
    ],
    "views": [
        (lambda t: t.x[2:5].view(-1).reshape(3, 4).t().unsqueeze(0), lambda e: (0, 0)),
        (lambda t: t.x.expand(7, 10, 4).transpose(0, 1).split(3), lambda e: (0, 0)),
        (lambda t: t.x.contiguous().to(t.x.dtype).detach(), lambda e: (0, 0)),
        (lambda t: t.x[:].t_().squeeze_(), lambda e: (0, 0)),
        (lambda t: (t.x @ t.row.mT).view(5, 2), lambda e: (44 * e, 10 * e)),
        (lambda t: t.x[2:5] * 2, lambda e: (12 * e, 12 * e)),
        (lambda t: t.x.expand(7, 10, 4).sum(), lambda e: (40 * e, e)),
        (lambda t: t.x[:, :1].expand(10, 4).sum(), lambda e: (10 * e, e)),
        (lambda t: t.x.view(torch.uint8)[:, :1].sum(), lambda e: (10, 8)),
    ],
    "overlaps": [
        (lambda t: t.x + t.x, lambda e: (40 * e, 40 * e)),
        (lambda t: t.x + t.x[:, :1], lambda e: (40 * e, 40 * e)),
        (lambda t: t.x[:6] + t.x[4:], lambda e: (40 * e, 24 * e)),
        (lambda t: t.x[:5] + t.x[5:], lambda e: (40 * e, 20 * e)),
        (lambda t: t.x[::2] + t.x[1::2], lambda e: (40 * e, 20 * e)),
        (lambda t: t.x[:, :3] + t.x[:, 1:], lambda e: (40 * e, 30 * e)),
        (lambda t: t.x[:, :2] + t.x[:, 1:3], lambda e: (30 * e, 20 * e)),
        (lambda t: t.square + t.square.t(), lambda e: (36 * e, 36 * e)),
        (lambda t: t.square[:, :3] + t.square.t()[:, :3], lambda e: ((18 + 18 - 9) * e, 18 * e)),
        (lambda t: t.square[:2, :2] + t.square[4:, 4:], lambda e: (8 * e, 4 * e)),
        (lambda t: t.x.view(-1).unfold(0, 8, 4).sum(), lambda e: (40 * e, e)),
        (lambda t: t.x.view(-1)[:20].unfold(0, 3, 1)[::2].sum(), lambda e: (19 * e, e)),
        (lambda t: torch.cat([t.x, t.x[:1]]), lambda e: (40 * e, 44 * e)),
        (lambda t: t.x @ t.x.mT, lambda e: (40 * e, 100 * e)),
        (lambda t: t.x[1:].copy_(t.x[:-1].clone()), lambda e: ((36 + 36) * e, (36 + 36) * e)),
        (lambda t: t.x.view(-1)[20:].copy_(t.x.view(-1)[:20]), lambda e: (20 * e, 20 * e)),
        (lambda t: t.x.copy_(t.x[:, :1]), lambda e: (10 * e, 40 * e)),
    ],
    "copies": [
        (lambda t: t.x.clone(), lambda e: (40 * e, 40 * e)),
        (lambda t: t.x.t().contiguous(), lambda e: (40 * e, 40 * e)),
        (lambda t: t.x.to(t.wide), lambda e: (40 * e, 40 * (8 if e == 4 else 4))),
        (lambda t: t.x.t().reshape(-1), lambda e: (40 * e, 40 * e)),
        (lambda t: t.x.expand(7, 10, 4).clone(), lambda e: (40 * e, 280 * e)),
        (lambda t: t.x.repeat_interleave(3, dim=1), lambda e: (40 * e, 120 * e)),
        (lambda t: t.x.repeat(3, 1), lambda e: (40 * e, 120 * e)),
        (lambda t: t.x[:2].copy_(t.one), lambda e: (e, 8 * e)),
        (lambda t: t.x[2:4].copy_(t.y[:2]), lambda e: (8 * e, 8 * e)),
    ],
    "new": [
        (lambda t: [torch.empty(9), torch.empty_like(t.x), t.x.new_empty(9)], lambda e: (0, 0)),
        (lambda t: torch.zeros(9, dtype=t.x.dtype), lambda e: (0, 9 * e)),
        (lambda t: torch.full((9,), 2.0, dtype=t.x.dtype), lambda e: (0, 9 * e)),
        (lambda t: torch.arange(9), lambda e: (0, 72)),
        (lambda t: torch.randn(9, dtype=t.x.dtype), lambda e: (0, 9 * e)),
        (lambda t: [torch.zeros_like(t.x), torch.rand_like(t.x)], lambda e: (0, 80 * e)),
        (lambda t: [t.x.new_zeros(9), t.x.new_full((9,), 2.0)], lambda e: (0, 18 * e)),
    ],
    "in place": [
        (lambda t: t.x.add_(1), lambda e: (40 * e, 40 * e)),
        (lambda t: t.x[:2].mul_(t.y[:2]), lambda e: (16 * e, 8 * e)),
        (lambda t: t.x.add_(t.x[:, :1].clone()), lambda e: ((10 + 40 + 10) * e, (10 + 40) * e)),
        (lambda t: t.x[:2].zero_(), lambda e: (0, 8 * e)),
        (lambda t: t.x.fill_(t.one), lambda e: (e, 40 * e)),
        (lambda t: t.x.normal_().uniform_(), lambda e: (0, 80 * e)),
        (lambda t: t.x.random_().bernoulli_(0.5).exponential_(), lambda e: (0, 120 * e)),
        (lambda t: torch.add(t.x, 1, out=t.y), lambda e: (40 * e, 40 * e)),
        (lambda t: torch.add(t.x, 1, out=t.x), lambda e: (40 * e, 40 * e)),
        (lambda t: torch.mm(t.x, t.x.mT, out=torch.empty(10, 10, dtype=t.x.dtype)), lambda e: (40 * e, 100 * e)),
        (lambda t: torch._foreach_add_([t.x, t.y], 1.0), lambda e: (80 * e, 80 * e)),
    ],
    "look-ups": [
        (lambda t: F.embedding(TWO, t.table), lambda e: (16 + 8 * e, 8 * e)),
        (lambda t: F.embedding(SAME, t.table), lambda e: (16 + 4 * e, 8 * e)),
        (lambda t: t.table.index_select(0, TWO), lambda e: (16 + 8 * e, 8 * e)),
        (lambda t: t.table.index_select(-1, SAME), lambda e: (16 + 100 * e, 200 * e)),
        (lambda t: torch.index_select(t.table, 0, TWO, out=t.x[:2]), lambda e: (16 + 8 * e, 8 * e)),
        (lambda t: t.row.expand(9, 4)[TWO], lambda e: (16 + 4 * e, 8 * e)),
        (lambda t: t.table[TWO], lambda e: (16 + 8 * e, 8 * e)),
        (lambda t: t.table[torch.tensor([-1, 99])], lambda e: (16 + 4 * e, 8 * e)),
        (lambda t: t.table[TWO, torch.tensor([[0], [1]])], lambda e: (16 + 16 + 4 * e, 4 * e)),
        (lambda t: t.heads[:, torch.tensor([0, 0, 1, 1, 2, 2])], lambda e: (48 + 30 * e, 60 * e)),
        (lambda t: t.x[MASK], lambda e: (40 + 7 * e, 7 * e)),
        (lambda t: t.x[ROW_MASK], lambda e: (10 + 12 * e, 12 * e)),
        (lambda t: t.x.masked_select(MASK), lambda e: (40 + 7 * e, 7 * e)),
        (lambda t: t.table.gather(0, FOUR), lambda e: (32 + 4 * e, 4 * e)),
        (lambda t: t.table.take(torch.tensor([7, 399, -1])), lambda e: (24 + 2 * e, 3 * e)),
        (lambda t: t.one.index_select(0, TWO[:1] - 3), lambda e: (8 + 8 + e, 8 + e)),
        (lambda t: t.x[:0][TWO[:0]], lambda e: (0, 0)),
        (lambda t: t.table.gather(1, SAME[None]), lambda e: (16 + 1 * e, 2 * e)),
    ],
    "chosen writes": [
        (lambda t: t.table.index_copy_(0, TWO, t.x[:2]), lambda e: (16 + 8 * e, 8 * e)),
        (lambda t: t.table.index_add_(0, TWO, t.x[:2]), lambda e: (16 + 8 * e + 8 * e, 8 * e)),
        (lambda t: t.table.index_fill_(1, TWO[:1] - 3, 1.0), lambda e: (8 + 8, 8 + 100 * e)),
        (lambda t: t.table.index_put_((TWO,), t.x[:2]), lambda e: (16 + 8 * e, 8 * e)),
        (lambda t: t.table.index_put_((TWO,), t.one), lambda e: (16 + e, 8 * e)),
        (lambda t: t.table.index_put_((TWO,), t.row), lambda e: (16 + 4 * e, 8 * e)),
        (lambda t: t.table.index_put_((SAME,), t.row), lambda e: (16 + 4 * e, 4 * e)),
        (lambda t: t.table.index_put_((TWO,), t.x[:2], accumulate=True), lambda e: (16 + 8 * e + 8 * e, 8 * e)),
        (lambda t: t.x.index_put_((MASK,), t.one), lambda e: (40 + e, 7 * e)),
        (lambda t: t.x.masked_fill_(MASK, 1.0), lambda e: (40, 7 * e)),
        (lambda t: t.x.masked_fill_(ROW_MASK[:, None], 1.0), lambda e: (10, 12 * e)),
        (lambda t: t.table.scatter_(0, FOUR, t.row), lambda e: (32 + 4 * e, 4 * e)),
        (lambda t: t.table.scatter_(0, FOUR, 1.0), lambda e: (32, 4 * e)),
        (lambda t: t.table.scatter_(0, FOUR, t.row, reduce="add"), lambda e: (32 + 4 * e + 4 * e, 4 * e)),
        (lambda t: t.table.scatter_add_(0, FOUR, t.row), lambda e: (32 + 4 * e + 4 * e, 4 * e)),
        (lambda t: t.table.index_copy(0, TWO, t.x[:2]), lambda e: (16 + 8 * e + 400 * e, 400 * e)),
    ],
    "products": [
        (lambda t: torch.mm(t.x, t.y.t()), lambda e: (80 * e, 100 * e)),
        (lambda t: torch.bmm(t.x[None], t.y[None].mT), lambda e: (80 * e, 100 * e)),
        (lambda t: F.linear(t.x, t.table), lambda e: (440 * e, 1000 * e)),
        (lambda t: F.linear(t.x, t.table, t.bias), lambda e: (540 * e, 1000 * e)),
        (lambda t: F.linear(t.x[None, None], t.table, t.bias), lambda e: (540 * e, 1000 * e)),
        (lambda t: torch.addmm(t.bias, t.x, t.table.t(), beta=0), lambda e: (440 * e, 1000 * e)),
        (lambda t: t.square.addmm_(t.x[:6], t.y[:6].t(), beta=0), lambda e: (48 * e, 36 * e)),
        (lambda t: torch.einsum("bgtd,bgsd->bgts", t.heads, t.heads), lambda e: (30 * e, 3 * 25 * e)),
        # fused attention writes the output and one float32 logsumexp for each of the 3 heads and 5 queries
        (lambda t: F.scaled_dot_product_attention(t.heads, *torch.zeros_like(t.heads)[None].expand(2, 1, 3, 5, 2)),
         lambda e: (60 * e, 30 * e + 30 * e + 15 * max(e, 4))),
    ],
}  # fmt: skip
ROWS = [pytest.param(*row, id=f"{kind} {i}") for kind, rows in PROGRAMS.items() for i, row in enumerate(rows)]
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


@pytest.mark.filterwarnings("ignore:The reduce argument")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("program", "expected"), ROWS)
def test_traffic_equals_the_hand_count(program, expected, dtype):
    t = tensors(dtype)
    assert traffic(lambda: program(t)) == expected(dtype.itemsize)


@pytest.mark.parametrize(("program", "expected"), ROWS)
def test_inference_mode_and_a_meter_around_change_no_count(program, expected):
    with torch.inference_mode():
        t = tensors(torch.float32)
        with TrafficMeter() as outer:
            inner = traffic(lambda: program(t))
    assert inner == expected(4)
    assert (outer.bytes_read, outer.bytes_written) == inner


def test_the_distinct_bytes_of_any_two_views_are_those_that_marking_each_byte_finds():
    x, places, generator = torch.zeros(400), torch.arange(400), torch.Generator().manual_seed(0)
    for _ in range(300):
        numbers = torch.randint(0, 6, (2, 7), generator=generator).tolist()
        views = [x.as_strided((a + 1, b + 1, c), (d, e, f), g) for a, b, c, d, e, f, g in numbers]
        marks = {
            int(i)
            for view in views
            for i in places.as_strided(view.shape, view.stride(), view.storage_offset()).flatten()
        }
        assert distinct_bytes(*views) == 4 * len(marks), numbers
    assert distinct_bytes(x, x.view(torch.int16)[:9], torch.zeros(3)) == 1600 + 12


def test_regular_views_of_large_tensors_are_not_marked_byte_by_byte():
    huge = torch.zeros(1).expand(2**30, 2**30)
    assert distinct_bytes(huge, huge[5:], huge.t()) == 4
    packed = torch.empty(4, 2**38, dtype=torch.uint8, device="meta")  # 1 TiB, marked in four pieces of a row
    assert distinct_bytes(packed[:, : 2**36], packed[:, 2**37 :]) == 4 * (2**36 + 2**37)
    assert distinct_bytes(packed[:, : 2**36]) == 4 * 2**36


def test_the_backward_pass_is_counted():
    x = torch.zeros(10, 4, requires_grad=True)
    with TrafficMeter() as meter:
        (x * 2).sum().backward()
    assert [op.name for op in meter.operations] == ["mul", "sum", "ones_like", "mul"]
    assert (meter.bytes_read, meter.bytes_written) == (160 + 160 + 4, 160 + 4 + 4 + 160)


def test_vmap_and_a_named_region_count_like_the_program_without():
    def program(x):
        with torch.profiler.record_function("region"):
            return x * 2

    assert traffic(lambda: torch.vmap(program)(X)) == traffic(lambda: X * 2) == (160, 160)


# ---- the programs of the course ------------------------------------------------------------------------------


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_append_reads_and_writes_the_new_tokens_however_long_the_cache(ragged, dtype):
    batch_size, n_kv_heads, q_len = 2, 3, 5

    def append(head_dim, max_seq_len):
        cache = KVCache(batch_size, n_kv_heads, max_seq_len, head_dim, dtype=dtype, device="cpu")
        k, v = torch.zeros(2, batch_size, n_kv_heads, q_len, head_dim, dtype=dtype)
        cache.append(k, v)
        if ragged:
            cache.row(0).append(k[:1], v[:1])
        return traffic(lambda: cache.append(k, v))

    small, wide, long = append(4, 100), append(8, 100), append(4, 10_000)
    assert small == long
    new = 2 * batch_size * n_kv_heads * q_len * 4 * dtype.itemsize  # what doubling head_dim adds to K and V
    assert (wide[0] - small[0], wide[1] - small[1]) == (new, new)


@pytest.mark.parametrize(("n_heads", "n_kv_heads"), [(8, 2), (8, 1), (6, 3), (6, 6)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kv_len", [50, 17_000])  # grouped_attention takes another form over a long context
def test_expanded_attention_reads_k_and_v_once_writes_them_r_times_and_reads_those(n_heads, n_kv_heads, kv_len, dtype):
    def of_kv(attend):
        """Reads and writes that grow with S and with D: those of the size of K and V."""
        totals = {}
        for s in (kv_len, 2 * kv_len):
            for d in (4, 8):
                q, (k, v) = torch.zeros(1, n_heads, 1, d, dtype=dtype), torch.zeros(2, 1, n_kv_heads, s, d, dtype=dtype)
                totals[s, d] = traffic(lambda q=q, k=k, v=v: attend(q, k, v))
        grown = 2 * n_kv_heads * kv_len * 4 * dtype.itemsize
        return [
            (wide_long - long - wide + small) / grown
            for small, wide, long, wide_long in zip(*totals.values(), strict=True)
        ]

    group_size = n_heads // n_kv_heads
    assert of_kv(grouped_attention) == [1, 0]
    assert of_kv(expanded_attention) == [1 + group_size, group_size]  # 2R + 1


@torch.no_grad()
def test_a_decode_step_reads_every_weight_once():
    config = ModelConfig(n_layers=2, d_model=24, n_heads=6, n_kv_heads=3, head_dim=8, d_ff=32, vocab_size=50,
                         max_seq_len=16, rope_theta=1e4, norm_eps=1e-5)  # fmt: skip
    model = Transformer(config)
    caches = model.new_caches(1, 16)
    model(torch.tensor([[1, 2, 3]]), caches)
    with TrafficMeter() as meter:
        model(torch.tensor([[4]]), caches, attend=grouped_attention)
    read = {name: sum(op.bytes_read for op in meter.operations if op.name == name) for name in ("mm", "embedding")}
    weights = 2 * (24 * 6 * 8 * 2 + 24 * 3 * 8 * 2 + 3 * 24 * 32) + 24 * 50
    inputs = 2 * (3 * 24 + 6 * 8 + 2 * 24 + 32) + 24
    assert read == {"mm": (weights + inputs) * 4, "embedding": 24 * 4 + 8}


# ---- where it cannot see, it says so -------------------------------------------------------------------------


def refused(what):
    return pytest.raises(
        RuntimeError, match=f"^TrafficMeter cannot see what {what} reads and writes; (use|run|call|count)"
    )


def test_an_operation_that_is_not_pytorchs_own_is_refused():
    @torch.library.custom_op("gqa_lab_test::double", mutates_args=())
    def double(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    with refused("gqa_lab_test.double.default"), TrafficMeter():
        double(X)


def fake():
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode().from_tensor(X)


@pytest.mark.parametrize(
    "make",
    [X.to_sparse, X.to_mkldnn, lambda: X.to("meta"), lambda: torch.nested.nested_tensor([X, X[:3]]), fake,
     lambda: torch.nested.nested_tensor([X, X[:3]], layout=torch.jagged)],
    ids=["sparse", "mkldnn", "meta", "nested", "fake", "jagged"],
)  # fmt: skip
def test_a_tensor_that_is_not_plain_memory_is_refused(make):
    x = make()
    with refused("aten.* of a .*"), TrafficMeter():
        torch.neg(x)


@pytest.mark.parametrize("options", [{}, {"fullgraph": True}, {"dynamic": True}], ids=str)
@pytest.mark.parametrize("compiled_before", [True, False])
def test_compiled_code_is_refused_and_works_afterwards(compiled_before, options):
    runs = []

    def backend(graph, inputs):
        runs.append(graph)
        return graph.forward

    settings = torch._dynamo.config.assume_static_by_default
    compiled = torch.compile(lambda x: x * 2 + 1, backend=backend, **options)
    if compiled_before:
        compiled(X)
    with refused("compiled code"), TrafficMeter():
        compiled(X)
    assert torch._dynamo.config.assume_static_by_default == settings
    assert torch.equal(compiled(X), X * 2 + 1) and len(runs) == 1


def test_a_compiled_module_and_a_function_compiled_inside_are_refused():
    linear = torch.nn.Linear(4, 4)
    with refused("compiled code"), TrafficMeter():
        torch.compile(linear, backend="eager")(X)
    linear.compile(backend="eager")
    with refused("compiled code"), TrafficMeter() as outer, TrafficMeter() as inner:
        linear(X)
    assert outer.operations == inner.operations == []


def test_a_refusal_of_compiled_code_is_over_once_it_was_raised_or_the_block_has_ended():
    with TrafficMeter() as meter:
        with refused("compiled code"):
            torch.compile(lambda x: x + 1, backend="eager")(X)
        X.add_(0)
        torch.compile(lambda x: x, backend="eager")(X)  # no operation, no traffic
    with meter:
        X.add_(0)
    assert len(meter.operations) == 2


def test_flex_attention_is_refused_in_our_words():
    flex = pytest.importorskip("torch.nn.attention.flex_attention").flex_attention
    with refused(".*"), TrafficMeter():
        flex(X[None, None], X[None, None], X[None, None])


@pytest.mark.parametrize("method", ["replay", "capture_begin"])
def test_a_cuda_graph_is_refused_and_possible_again_afterwards(method, monkeypatch):
    called = []
    monkeypatch.setattr(torch.cuda.CUDAGraph, method, lambda self: called.append(self))
    graph = object()  # a real one needs a build with CUDA
    with refused("a CUDA graph"), TrafficMeter():
        getattr(torch.cuda.CUDAGraph, method)(graph)
    assert called == []
    getattr(torch.cuda.CUDAGraph, method)(graph)
    assert called == [graph]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("make", [
    lambda: torch.jit.trace(lambda x: x * 2, (X,)),
    lambda: torch.jit.trace(torch.nn.Linear(4, 4), (X,)),
    lambda: torch.jit.script(torch.nn.Linear(4, 4)),
])  # fmt: skip
def test_torchscript_is_refused_and_runs_again_afterwards(make):
    scripted = make()
    with refused("TorchScript"), TrafficMeter():
        scripted(X)
    assert scripted(X).shape == X.shape


TRITON = """
import sys, torch
import gqa_lab.traffic
assert "triton" not in sys.modules
from gqa_lab.traffic import TrafficMeter
import triton, triton.language as tl

@triton.jit
def double(x, n: tl.constexpr):
    i = tl.arange(0, n)
    tl.store(x + i, tl.load(x + i) * 2)

x, launch = torch.ones(8), double[(1,)]
for kernel in (launch, double[(1,)]):
    try:
        with TrafficMeter():
            kernel(x, n=8)
    except RuntimeError as error:
        print(error)
if INTERPRET:
    launch(x, n=8)
print(x.sum().item())
"""


@pytest.mark.parametrize("interpret", [1, 0])
def test_a_triton_kernel_is_refused_compiled_or_interpreted(interpret, tmp_path):
    pytest.importorskip("triton", reason="triton is not installed here")
    script = tmp_path / "kernel.py"
    script.write_text(f"import os; os.environ['TRITON_INTERPRET'] = '{interpret}'\nINTERPRET = {interpret}\n" + TRITON)
    environment = os.environ | {"PYTHONPATH": str(Path(gqa_lab.__file__).parent.parent)}
    run = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=True)
    refusal = "TrafficMeter cannot see what a Triton kernel reads and writes; count it by hand"
    assert run.stdout.splitlines() == [refusal, refusal, "16.0" if interpret else "8.0"]


# ---- meters together -----------------------------------------------------------------------------------------


def guarded():
    owners = [
        (torch._dynamo.eval_frame, "_maybe_set_eval_frame"),
        (torch.cuda.CUDAGraph, "replay"),
        (torch.ScriptFunction, "__call__"),
        (torch.ScriptMethod, "__call__"),
    ]
    return [vars(owner)[name] for owner, name in owners]


def test_everything_is_as_before_after_a_block_even_when_it_raises_or_is_nested():
    before = guarded()
    with pytest.raises(ZeroDivisionError), TrafficMeter():
        _ = 1 / 0
    assert guarded() == before
    with TrafficMeter():
        with TrafficMeter():
            assert all(now is not then for now, then in zip(guarded(), before, strict=True))
        assert all(now is not then for now, then in zip(guarded(), before, strict=True))
    assert guarded() == before


def test_a_meter_goes_on_counting_in_a_second_block_and_cannot_be_nested_in_itself():
    meter = TrafficMeter()
    for _ in range(2):
        with meter:
            X.add_(0)
    assert [op.bytes_read for op in meter.operations] == [160, 160]
    with pytest.raises(RuntimeError, match="counting already"), meter, meter:
        pass
    X.add_(0)
    assert len(meter.operations) == 2


def test_nested_meters_both_count():
    with TrafficMeter() as outer:
        X.add_(0)
        with TrafficMeter() as inner:
            X[:2] + X[:1]
    assert (outer.bytes_read, inner.bytes_read) == (160 + 32, 32)


def test_a_meter_neither_counts_nor_disturbs_another_thread():
    before, seen = guarded(), []
    compiled = torch.compile(lambda x: x + 1, backend=lambda graph, _: graph.forward)
    traced = torch.jit.trace(lambda x: x * 2, (X,))

    def work():
        seen.extend([traced(X), compiled(X)])  # while the other thread's meter counts
        mine = TrafficMeter()
        mine.__enter__()
        X[:1].add_(0)
        entered.set()
        left.wait(60)
        X[:1].add_(0)  # still counting, though the other meter has left
        with refused("TorchScript"):
            traced(X)
        mine.__exit__(None, None, None)
        seen.append(mine.bytes_read)

    entered, left, thread = threading.Event(), threading.Event(), threading.Thread(target=work)
    with TrafficMeter() as meter:
        thread.start()
        assert entered.wait(60)
    left.set()
    thread.join()
    assert len(seen) == 3 and seen[2] == 32 and meter.operations == []
    assert guarded() == before


def test_the_table_adds_up_each_kind_of_operation_and_all():
    with TrafficMeter() as meter:
        X.zero_(), X.add_(0), X.add_(0)
    rows = [line.split() for line in meter.table().splitlines()]
    assert rows[1:] == [["add_", "2", "320", "320"], ["zero_", "1", "0", "160"], ["all", "3", "320", "480"]]
    assert len({len(line) for line in meter.table().splitlines()}) == 1
