"""Times the attention of one decode step on this GPU, ours and its peers, beside the bandwidth at which it can read.

    python benchmarks/gpu_decode.py            24 rows, at most 8 minutes; writes benchmarks/results/gpu_decode.json
    python benchmarks/gpu_decode.py --smoke    two tiny rows on a CPU, in Triton's interpreter; writes nothing

bfloat16, T = 1, H = 32, D = 128. Every form is captured in a CUDA graph and replayed in turn with the others, in
changing order. The calls in a graph go round buffers of four times the L2 cache in all, so that no call finds its keys
there. Counted are the bytes of K and V, once. A percentage is of the read bandwidth measured here: the best of three
ways to read 4 GiB. A row misses if ours is below 90% of it, or slower than a peer, or wrong.

Peers: SDPA's flash and cuDNN kernels with `enable_gqa`; FlexAttention, compiled for each row; FlashAttention-3 where
`pip install fa3-fwd` has brought it. A peer that does not run is named with the reason.
"""

import functools
import json
import math
import os
import random
import statistics
import sys
import time
from collections.abc import Callable

if "--smoke" in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"  # read once, when triton is first imported

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch.nn.attention import SDPBackend, sdpa_kernel

from gqa_lab.attention import grouped_attention
from gqa_lab.recorded import environment, save_record
from gqa_lab.triton_decode import triton_decode_attention

N_HEADS, HEAD_DIM, DTYPE = 32, 128, torch.bfloat16
ROWS = [  # batch_size, n_kv_heads, kv_len
    *((1, g, s) for s in (8192, 131_072) for g in (1, 2, 4, 8, 16, 32)),
    *((32, g, 8192) for g in (1, 2, 4, 8, 16, 32)),
    *((8, g, 32_768) for g in (1, 8, 32)),
    (32, 8, 4096),
    *((64, g, 32_768) for g in (8, 32)),
]
SMOKE_ROWS = [(1, 4, 130), (2, 1, 70)]
N_REPEATS, LAST_ROW_S, LAST_COMPILED_S = 50, 420, 300  # seconds after which no row, and no compilation, is begun
WANTED, TOLERANCE = 90.0, 0.02  # percent of the read bandwidth; error relative to the norm of the exact output
LEAST_US = 400.0  # of one replay, so that the clock's own error is small


def sdpa(backend: SDPBackend) -> Callable:
    """Returns an attention that runs on one backend of SDPA, or raises."""

    def attend(q, k, v):
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v, enable_gqa=q.shape[1] != k.shape[1])

    return attend


def flex() -> Callable:
    """Returns FlexAttention, to be compiled when first called."""
    from torch.nn.attention.flex_attention import flex_attention

    torch._dynamo.reset()
    compiled = torch.compile(flex_attention, dynamic=False)
    return lambda q, k, v: compiled(q, k, v, enable_gqa=q.shape[1] != k.shape[1])


def flash_attention_3() -> Callable:
    """Returns FlashAttention-3's decode function for heads before tokens."""
    import fa3_fwd_config

    sys.modules.setdefault("flash_attn_config", fa3_fwd_config)
    from fa3_fwd_interface import flash_attn_with_kvcache

    def attend(q, k, v):
        out = flash_attn_with_kvcache(*(x.transpose(1, 2) for x in (q, k, v)), causal=True)
        return out.transpose(1, 2)

    return attend


FORMS = {  # each makes an attention, or raises where it is not to be had
    "gqa_lab": lambda: triton_decode_attention,
    "SDPA flash": lambda: sdpa(SDPBackend.FLASH_ATTENTION),
    "SDPA cuDNN": lambda: sdpa(SDPBackend.CUDNN_ATTENTION),
    "FlexAttention": flex,
    "FlashAttention-3": flash_attention_3,
}


def replayed(calls: list[Callable], device: torch.device) -> Callable:
    """Returns a function that makes all calls: on a GPU as one captured graph."""
    if device.type == "cpu":
        return lambda: [call() for call in calls]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in 2 * calls[:2]:  # compiles, and finds what has to be found once
            call()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return graph.replay


def timed_us(
    replays: dict[str, Callable], n_calls: int, n_repeats: int, device: torch.device
) -> dict[str, list[float]]:
    """Returns microseconds per call of every form, `n_repeats` of them, taken in turn in changing order."""
    clocked = {name: [] for name in replays}
    for i in range(-2, n_repeats):
        for name in random.Random(i).sample(list(replays), len(replays)):
            if device.type == "cuda":
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record()
                replays[name]()
                end.record()
                clocked[name].append((start, end))
            else:
                start = time.perf_counter()
                replays[name]()
                clocked[name].append(1e6 * (time.perf_counter() - start))
    if device.type == "cuda":
        torch.cuda.synchronize()
        clocked = {name: [1e3 * a.elapsed_time(b) for a, b in pairs] for name, pairs in clocked.items()}
    return {name: [us / n_calls for us in times[2:]] for name, times in clocked.items()}  # the first two warm up


@triton.jit
def _read(x_ptr, out_ptr, BLOCK: tl.constexpr, N_BLOCKS: tl.constexpr):
    program = tl.program_id(0).to(tl.int64)
    places = program * N_BLOCKS * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.int32)
    for block in range(N_BLOCKS):
        total += tl.load(x_ptr + places + block * BLOCK)
    tl.store(out_ptr + program, tl.sum(total, 0))


def read_bandwidth(device: torch.device, n_bytes: int, n_repeats: int) -> dict[str, float]:
    """Returns GB/s of three ways to read `n_bytes`, a power of two."""
    x = torch.randint(-9, 9, (n_bytes // 4,), dtype=torch.int32, device=device)
    block, n_blocks = 4096, 16
    n_programs = x.numel() // (block * n_blocks)
    out = torch.empty(n_programs, dtype=torch.int32, device=device)
    ways = {
        "sum": lambda: x.sum(dtype=torch.int32),
        "amax": lambda: x.amax(),
        "triton": lambda: _read[(n_programs,)](x, out, BLOCK=block, N_BLOCKS=n_blocks, num_warps=8),
    }
    times = timed_us({name: replayed([way], device) for name, way in ways.items()}, 1, n_repeats, device)
    return {name: round(n_bytes / statistics.median(us) / 1e3, 1) for name, us in times.items()}


def buffers(batch_size: int, n_kv_heads: int, kv_len: int, device: torch.device) -> list[list[torch.Tensor]]:
    """Returns sets of q, k and v that together are four times the L2 cache, or one that is larger by itself."""
    shapes = [(batch_size, n, s, HEAD_DIM) for n, s in ((N_HEADS, 1), (n_kv_heads, kv_len), (n_kv_heads, kv_len))]
    l2 = torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 0
    n_sets = max(1, math.ceil(4 * l2 / kv_bytes(batch_size, n_kv_heads, kv_len)))
    return [[torch.randn(shape, device=device, dtype=DTYPE) for shape in shapes] for _ in range(n_sets)]


def kv_bytes(batch_size: int, n_kv_heads: int, kv_len: int) -> int:
    """Returns the bytes of K and V of one layer."""
    return 2 * batch_size * n_kv_heads * kv_len * HEAD_DIM * DTYPE.itemsize


def relative_error(attend: Callable, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> float:
    """Returns the error on the first sequence against float32, as a share of the norm of the output."""
    exact = grouped_attention(*(x[:1].float() for x in (q, k, v)))
    return float((attend(q, k, v)[:1].float() - exact).norm() / exact.norm())


def prepare(sets: list, n_rounds: int, names: list[str], device: torch.device) -> tuple[dict, dict, dict]:
    """Returns the forms ready to be replayed, their errors, and why the others do not run."""
    replays, errors, missing = {}, {}, {}
    for name in names:
        try:
            attend = FORMS[name]()
            errors[name] = round(relative_error(attend, *sets[0]), 5)
            calls = [functools.partial(attend, *one) for one in sets] * n_rounds
            replays[name] = replayed(calls, device)
        except Exception as error:  # whatever a peer raises is its reason
            missing[name] = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:160] if str(error) else ''}"
    return replays, errors, missing


def measure(
    row: tuple[int, int, int], names: list[str], bandwidth: float, n_repeats: int, device: torch.device
) -> dict:
    """Returns the record of one row: the median and the spread of every form, and in what it misses."""
    n_bytes, sets = kv_bytes(*row), buffers(*row, device)
    n_rounds = (
        max(1, math.ceil(LEAST_US / (len(sets) * (n_bytes / bandwidth / 1e3 + 5)))) if device.type == "cuda" else 1
    )
    replays, errors, missing = prepare(sets, n_rounds, names, device)
    if "gqa_lab" in missing:
        raise RuntimeError(f"ours did not run: {missing['gqa_lab']}")
    times = timed_us(replays, len(sets) * n_rounds, n_repeats, device)
    median = {name: statistics.median(us) for name, us in times.items()}
    percent = {name: 100 * n_bytes / us / 1e3 / bandwidth for name, us in median.items()}
    peers = {name: us for name, us in median.items() if name != "gqa_lab" and errors[name] <= TOLERANCE}
    best = min(peers, key=peers.get, default=None)
    misses = [f"{name} is wrong by {errors[name]:.1%}" for name in errors if errors[name] > TOLERANCE]
    if percent["gqa_lab"] < WANTED:
        misses.append(f"{percent['gqa_lab']:.0f}% of the read bandwidth")
    if best and median["gqa_lab"] > peers[best]:
        misses.append(f"{median['gqa_lab'] / peers[best]:.2f} times the time of {best}")
    misses += [f"{name} at {p:.0f}%: more than can be read" for name, p in percent.items() if p > 105]
    tenths = {name: statistics.quantiles(us, n=10) if len(us) > 1 else 9 * us for name, us in times.items()}
    return {
        **dict(zip(("batch_size", "n_kv_heads", "kv_len"), row, strict=True)),
        "kv_mb": round(n_bytes / 1e6, 1),
        "n_sets": len(sets),
        "median_us": {name: round(us, 2) for name, us in median.items()},
        "us_10_to_90": {name: [round(t[0], 2), round(t[-1], 2)] for name, t in tenths.items()},
        "percent_of_read": {name: round(p, 1) for name, p in percent.items()},
        "relative_error": errors,
        "missing": missing,
        "best_peer": best,
        "misses": misses,
    }


def printed(row: dict) -> str:
    """Returns one line of the table."""
    cells = "".join(f"{row['percent_of_read'].get(name, math.nan):>18.0f}" for name in FORMS)
    sizes = f"{row['batch_size']:>4}{row['n_kv_heads']:>4}{row['kv_len']:>8}{row['kv_mb']:>10,.0f}"
    return f"{sizes}{row['median_us']['gqa_lab']:>10.1f}{cells}"


@torch.no_grad()
def main(arguments: list[str]) -> dict:
    """Measures all rows, prints them and, unless it is a smoke run, writes the record; returns it."""
    smoke, begin = "--smoke" in arguments, time.perf_counter()
    if not smoke and not (torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)):
        raise SystemExit("this needs a GPU of compute capability 8.0 or more; --smoke runs a tiny version on a CPU")
    device = torch.device("cpu" if smoke else "cuda")
    n_repeats, n_bytes = (1, 2**20) if smoke else (N_REPEATS, 2**32)
    read = read_bandwidth(device, n_bytes, n_repeats)
    record = {
        "provenance": environment(),
        "triton": triton.__version__,
        "sizes": {"n_heads": N_HEADS, "head_dim": HEAD_DIM, "q_len": 1, "dtype": "bfloat16"},
        "repeats": n_repeats,
        "read_gb_per_s": read,
        "results": [],
        "not_measured": [],
    }
    print(f"read bandwidth in GB/s: {read}; below, microseconds of ours, then percent of the best of them")
    print(f"{'B':>4}{'G':>4}{'S':>8}{'K+V MB':>10}{'us':>10}" + "".join(f"{name:>18}" for name in FORMS))
    for row in SMOKE_ROWS if smoke else ROWS:
        elapsed = time.perf_counter() - begin
        names = [n for n in FORMS if n != "FlexAttention" or not (smoke or elapsed > LAST_COMPILED_S)]
        try:
            if elapsed > LAST_ROW_S:
                raise TimeoutError("the eight minutes were nearly over")
            record["results"].append(measure(row, names, max(read.values()), n_repeats, device))
            print(printed(record["results"][-1]), flush=True)
        except (TimeoutError, RuntimeError) as error:  # too little memory is one of these
            record["not_measured"].append({"row": row, "why": str(error).splitlines()[0][:160]})
        if device.type == "cuda":
            torch.cuda.empty_cache()
    report(record)
    if not smoke:
        save_record("gpu_decode", record)
        print(json.dumps(record))
    return record


def report(record: dict) -> None:
    """Prints every row that misses, every row that was not measured, and every peer that did not run."""
    for row in record["results"]:
        if row["misses"]:
            print(f"misses: B={row['batch_size']} G={row['n_kv_heads']} S={row['kv_len']}: {'; '.join(row['misses'])}")
    for left in record["not_measured"]:
        print(f"not measured: {left['row']}: {left['why']}")
    for why in sorted({f"{name}: {why}" for row in record["results"] for name, why in row["missing"].items()}):
        print(f"did not run somewhere: {why}")


if __name__ == "__main__":
    main(sys.argv[1:])
