"""Counts by hand: each expected pair is (bytes read, bytes written), as arithmetic over the shapes."""

import re
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from gqa_lab.attention import expanded_attention, grouped_attention
from gqa_lab.cache import KVCache
from gqa_lab.config import ModelConfig
from gqa_lab.model import Transformer
from gqa_lab.traffic import TrafficMeter, distinct_bytes


def traffic(program):
    with TrafficMeter() as meter:
        program()
    return meter.bytes_read, meter.bytes_written


X = torch.zeros(10, 4)
Y = torch.zeros(10, 4)
TABLE = torch.zeros(100, 4)
SQUARE = torch.zeros(5, 5)
TWO = torch.tensor([3, 5])  # 16 bytes


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        # elementwise, and what shares memory
        (lambda: X + 1, (160, 160)),
        (lambda: X + Y, (320, 160)),
        (lambda: X + X, (160, 160)),
        (lambda: X + X[:, :1], (160, 160)),
        (lambda: X[:5] + X[5:], (160, 80)),
        (lambda: X[::2] + X[1::2], (160, 80)),
        (lambda: X[:6] + X[4:], (160, 96)),
        (lambda: SQUARE + SQUARE.t(), (100, 100)),
        (lambda: SQUARE[:, :3] + SQUARE.t()[:, :3], ((15 + 15 - 9) * 4, 60)),
        (lambda: X.view(-1).unfold(0, 8, 4).sum(), (160, 4)),
        (lambda: X.half() + 1, (160 + 80, 80 + 80)),
        (lambda: X[2:5] * 2, (48, 48)),
        (lambda: X.clone(), (160, 160)),
        (lambda: torch.cat([X, X[:1]]), (160, 176)),
        (lambda: torch.where(X > 0, X, Y), (160 + 40 + 320, 40 + 160)),
        (lambda: X.masked_fill(X > 0, 1.0), (160 + 160 + 40, 40 + 160)),
        (lambda: X.softmax(-1), (160, 160)),
        # views and what is already there
        (lambda: X[2:5].view(-1).reshape(3, 4).t().unsqueeze(0), (0, 0)),
        (lambda: X.contiguous().to(torch.float32).detach(), (0, 0)),
        (lambda: X.t().contiguous(), (160, 160)),
        (lambda: X.clone().t_(), (160, 160)),
        (lambda: X.expand(7, 10, 4).sum(), (160, 4)),
        (lambda: X.expand(7, 10, 4).clone(), (160, 1120)),
        (lambda: X.repeat_interleave(3, dim=1), (160, 480)),
        # written, not read
        (lambda: torch.empty(100), (0, 0)),
        (lambda: torch.empty_like(X), (0, 0)),
        (lambda: torch.zeros_like(X), (0, 160)),
        (lambda: torch.zeros(10), (0, 40)),
        (lambda: torch.arange(10), (0, 80)),
        (lambda: torch.zeros(4).normal_(), (0, 32)),
        (lambda: X.zero_(), (0, 160)),
        (lambda: X.fill_(0), (0, 160)),
        # in place
        (lambda: X.add_(0), (160, 160)),
        (lambda: X[:2].mul_(Y[:2]), (64, 32)),
        (lambda: X[:2].copy_(torch.ones(1)), (4, 4 + 32)),
        (lambda: torch.add(X, 1, out=Y), (160, 160)),
        (lambda: torch.add(X, 0, out=X), (160, 160)),
        # look-ups and writes to chosen places
        (lambda: F.embedding(TWO, TABLE), (16 + 32, 32)),
        (lambda: TABLE.index_select(0, TWO), (16 + 32, 32)),
        (lambda: TABLE[TWO], (16 + 32, 32)),
        (lambda: TABLE.gather(0, torch.tensor([[3, 5, 7, 9]])), (32 + 16, 16)),
        (lambda: TABLE.index_copy_(0, TWO, X[:2]), (16 + 32, 32)),
        (lambda: TABLE.index_add_(0, TWO, X[:2]), (16 + 32 + 32, 32)),
        (lambda: TABLE.index_put_((TWO,), X[:2]), (16 + 32, 32)),
        (lambda: TABLE.index_put_((TWO,), torch.tensor(0.0)), (16 + 4, 32)),
        (lambda: TABLE.index_put_((TWO,), X[:2], accumulate=True), (16 + 32 + 32, 32)),
        (lambda: TABLE.scatter_(0, torch.tensor([[3, 5, 7, 9]]), X[:1]), (32 + 16, 16)),
        # products
        (lambda: X @ X.mT, (160, 400)),
        (lambda: F.linear(X, TABLE, torch.zeros(100)), (160 + 1600 + 400, 400 + 4000)),
        (lambda: torch.baddbmm(torch.empty(1, 10, 10), X[None], Y[None].mT, beta=0), (320, 400)),
        (lambda: X[0, 0].item(), (4, 0)),
    ],
)
def test_traffic_equals_the_hand_count(program, expected):
    assert traffic(program) == expected


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_bytes_follow_the_element_size(dtype):
    x, table, rows = torch.zeros(10, 4, dtype=dtype), torch.zeros(100, 4, dtype=dtype), torch.tensor([1, 2])

    def program():
        y = x[2:8].t() + x[2:8].t()  # 24 read, 24 written
        z = y.expand(3, 4, 6) * 2  # 24 read, 72 written
        table.index_copy_(0, rows, x[:2])  # 8 read and 2 indices, 8 written
        table[5:7] = z[0, :2, :4]  # 8 read, 8 written

    assert traffic(program) == (64 * x.element_size() + 16, 112 * x.element_size())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_a_cache_writes_the_new_tokens_and_nothing_else(dtype):
    n_bytes = dtype.itemsize
    cache = KVCache(2, 3, 1000, 8, dtype=dtype, device="cpu")
    k, v = torch.zeros(2, 2, 3, 5, 8, dtype=dtype)
    read, written = traffic(lambda: cache.append(k, v))
    tokens, lengths = 2 * (2 * 3 * 5 * 8) * n_bytes, 2 * 4
    assert (read, written) == (tokens + lengths, tokens + lengths)
    cache.row(0).append(k[:1], v[:1])
    read, written = traffic(lambda: cache.append(k, v))  # ragged now: slots are computed, a few small integers
    assert tokens <= written < tokens + 500 and tokens <= read < tokens + 1000


@pytest.mark.parametrize(("n_heads", "n_kv_heads"), [(8, 2), (8, 1), (6, 3), (6, 6)])
@pytest.mark.parametrize(("q_len", "kv_len"), [(1, 50), (3, 50), (1, 1100)])
def test_expanded_attention_moves_2r_plus_1_times_the_bytes_of_k_and_v(n_heads, n_kv_heads, q_len, kv_len):
    def kv_traffic(attend):
        """Bytes that grow with both S and D: those of K and V, but not scores, queries or outputs."""
        totals = [
            sum(traffic(lambda s=s, d=d: attend(torch.zeros(1, n_heads, q_len, d), *torch.zeros(2, 1, n_kv_heads, s, d))))
            - 2 * n_kv_heads * s * d * 4  # the zeros above are written under the meter
            for s in (kv_len, 2 * kv_len) for d in (4, 8)
        ]  # fmt: skip
        return (totals[3] - totals[2] - totals[1] + totals[0]) / (2 * n_kv_heads * kv_len * 4 * 4)

    group_size = n_heads // n_kv_heads
    assert kv_traffic(grouped_attention) == 1
    assert kv_traffic(expanded_attention) == 2 * group_size + 1


@torch.no_grad()
def test_a_decode_step_reads_every_weight_once():
    sizes = dict(n_layers=2, n_heads=6, n_kv_heads=3, head_dim=4, max_seq_len=16, rope_theta=1e4, norm_eps=1e-5)
    read = {}
    for d_model, d_ff, vocab_size in ((24, 32, 50), (48, 32, 50), (24, 64, 50), (48, 64, 50)):
        model = Transformer(ModelConfig(**sizes, d_model=d_model, d_ff=d_ff, vocab_size=vocab_size))
        caches, ids = model.new_caches(1, 16), torch.tensor([[3]])
        read[d_model, d_ff] = traffic(lambda m=model, c=caches, i=ids: m(i, c, attend=grouped_attention))[0]
    both = read[48, 64] - read[48, 32] - read[24, 64] + read[24, 32]
    assert both == 2 * 3 * (24 * 32) * 4  # layers x (gate, up, down) x what both axes added


def test_distinct_bytes_of_views_that_meet_and_views_that_do_not():
    x = torch.zeros(10, 6)
    assert distinct_bytes() == 0
    assert distinct_bytes(x, x) == distinct_bytes(x, x.t()) == distinct_bytes(x[3:], x) == 240
    assert distinct_bytes(x[:5], x[5:]) == 240
    assert distinct_bytes(x[:, :2], x[:, 4:]) == 160
    assert distinct_bytes(x[:7], x[3:, 2:4]) == (7 * 6 + 3 * 2) * 4
    assert distinct_bytes(x.as_strided((3, 3), (2, 1))) == 7 * 4
    assert distinct_bytes(x, x.view(torch.int16)[:, :5], torch.zeros(3)) == 240 + 12


# ---- where it cannot see, it says so ------------------------------------------------------------------------


def refused(what):
    return pytest.raises(RuntimeError, match=re.escape(f"TrafficMeter cannot see what {what} reads and writes; run"))


def test_an_operation_that_is_not_pytorchs_own_is_refused():
    @torch.library.custom_op("gqa_lab_test::double", mutates_args=())
    def double(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    with refused("the operation gqa_lab_test.double.default"), TrafficMeter():
        double(X)


def test_a_tensor_without_strides_is_refused():
    sparse = torch.eye(3).to_sparse()
    with refused("a tensor of layout torch.sparse_coo"), TrafficMeter():
        sparse * 2


def test_the_replay_of_a_cuda_graph_is_refused_and_possible_again_afterwards():
    original = torch.cuda.CUDAGraph.replay
    with refused("the replay of a CUDA graph"), TrafficMeter():
        torch.cuda.CUDAGraph.replay(None)
    assert torch.cuda.CUDAGraph.replay is original


@pytest.mark.parametrize("compiled_before", [True, False])
def test_compiled_code_is_refused_and_runs_again_afterwards(compiled_before):
    compiled = torch.compile(lambda x: x + 1, backend="eager")
    if compiled_before:
        compiled(X)
    with refused("compiled code"), TrafficMeter():
        compiled(X)
    assert torch.equal(compiled(X), X + 1)
    with refused("compiled code"), TrafficMeter():
        torch.compile(lambda x: x)


TRITON = """
import os
os.environ["TRITON_INTERPRET"] = "HOW"
import torch, triton, triton.language as tl
from gqa_lab.traffic import TrafficMeter

@triton.jit
def double(x, n: tl.constexpr):
    i = tl.arange(0, n)
    tl.store(x + i, tl.load(x + i) * 2)

x = torch.ones(8)
try:
    with TrafficMeter():
        double[(1,)](x, n=8)
except RuntimeError as error:
    print(error)
if os.environ["TRITON_INTERPRET"] == "1":
    double[(1,)](x, n=8)
    print(x.sum().item())
"""


@pytest.mark.parametrize("interpret", ["1", "0"])
def test_a_triton_kernel_is_refused_in_the_interpreter_and_outside(interpret, tmp_path):
    pytest.importorskip("triton", reason="triton is not installed here")
    script = tmp_path / "kernel.py"
    script.write_text(TRITON.replace("HOW", interpret), encoding="utf-8")
    said = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True).stdout
    assert "TrafficMeter cannot see what a Triton kernel reads and writes" in said
    assert interpret == "0" or said.split()[-1] == "16.0"


def test_the_doors_open_again_after_an_error_and_meters_nest():
    original = torch.compile
    with pytest.raises(ZeroDivisionError), TrafficMeter():
        _ = 1 / 0
    assert torch.compile is original
    with TrafficMeter() as outer, TrafficMeter() as inner:
        X.add_(0)
    assert torch.compile is original
    assert (outer.bytes_read, inner.bytes_read) == (160, 160)


def test_a_meter_that_is_entered_again_goes_on_counting():
    meter = TrafficMeter()
    for _ in range(2):
        with meter:
            X.add_(0)
    assert meter.bytes_read == 320 and len(meter.operations) == 2


def test_the_table_sums_by_kind_and_ends_with_all():
    with TrafficMeter() as meter:
        X.add_(0), X.add_(0), X.zero_()
    rows = [line.split() for line in meter.table().splitlines()]
    assert rows[1:] == [["add_", "2", "320", "320"], ["zero_", "1", "0", "160"], ["all", "3", "320", "480"]]
