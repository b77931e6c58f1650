"""Times one decode step's attention on this CPU: ours and its peers in turn, over the used part of a cache.

    python benchmarks/cpu_decode.py [rounds]

Prints a table and one JSON line, and writes benchmarks/results/cpu_decode.json. B = 1, T = 1, H = 32, D = 128. In a
round every form runs once, in changing order (`expanded`, far behind, in the first two only); ratios are taken round
by round. Every run takes the next of several
buffers, so that none finds its keys in the cache of the CPU.

Peers: SDPA with `enable_gqa`; SDPA on packed rows (the query heads of a group as query rows of one KV head); SDPA after
`repeat_interleave`.
"""

import itertools
import json
import random
import statistics
import sys
import time

import torch
import torch.nn.functional as F

from gqa_lab.attention import grouped_attention
from gqa_lab.cache import KVCache
from gqa_lab.recorded import environment, save_record

N_HEADS, HEAD_DIM = 32, 128
N_KV_HEADS, KV_LENS = (1, 4, 8, 32), (256, 1024, 4096, 16384, 32768)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ROTATED_BYTES = 256e6  # well above the last-level cache of a desktop CPU


def enable_gqa(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=q.shape[1] != k.shape[1])


def packed(q, k, v):
    return F.scaled_dot_product_attention(q.view(1, k.shape[1], -1, q.shape[3]), k, v).view(q.shape)


def expanded(q, k, v):
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    return F.scaled_dot_product_attention(q, k, v)


PEERS = {"enable_gqa": enable_gqa, "packed": packed, "expanded": expanded}


def used_part(n_kv_heads: int, kv_len: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns keys and values as a decode step meets them: a prefix of a larger buffer."""
    cache = KVCache(1, n_kv_heads, kv_len + 128, HEAD_DIM, dtype=dtype, device="cpu")
    return cache.append(*torch.randn(2, 1, n_kv_heads, kv_len, HEAD_DIM).to(dtype))


@torch.no_grad()
def measure(n_kv_heads: int, kv_len: int, dtype: torch.dtype, n_rounds: int) -> dict:
    """Returns the median time of every form and the ratio of ours to the best peer, round by round."""
    kv_bytes = 2 * n_kv_heads * kv_len * HEAD_DIM * dtype.itemsize
    buffers = [used_part(n_kv_heads, kv_len, dtype) for _ in range(min(31, max(2, int(ROTATED_BYTES / kv_bytes))))]
    q = torch.randn(1, N_HEADS, 1, HEAD_DIM).to(dtype)
    forms = {"gqa_lab": grouped_attention} | PEERS
    if n_kv_heads == N_HEADS:
        del forms["packed"], forms["expanded"]  # both are the same call as enable_gqa there
    times = {name: [] for name in forms}
    next_buffers = itertools.cycle(buffers)
    for i in range(-1, n_rounds):
        for name in random.Random(i).sample(list(forms), len(forms)):
            if name == "expanded" and i >= 2:
                continue  # far behind everywhere, and slow
            k, v = next(next_buffers)
            start = time.perf_counter()
            forms[name](q, k, v)
            if i >= 0:
                times[name].append(time.perf_counter() - start)
    ms = {name: round(1e3 * statistics.median(t), 3) for name, t in times.items()}
    best = min((name for name in ms if name != "gqa_lab"), key=ms.get)
    ratios = {
        peer: statistics.median(a / b for a, b in zip(times["gqa_lab"], times[peer], strict=False))
        for peer in times
        if peer != "gqa_lab"
    }
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "n_kv_heads": n_kv_heads,
        "kv_len": kv_len,
        "median_ms": ms,
        "gb_per_s": round(kv_bytes / ms["gqa_lab"] / 1e6, 2),
        "best_peer": best,
        "time_over_best_peer": round(ratios[best], 3),
        "enable_gqa_over_ours": round(1 / ratios["enable_gqa"], 2),
    }


def main(n_rounds: int) -> None:
    record = {
        "provenance": environment(),
        "sizes": {"batch_size": 1, "n_heads": N_HEADS, "head_dim": HEAD_DIM, "q_len": 1},
        "rounds": n_rounds,
        "results": [],
    }
    print(
        f"{'dtype':<9}{'G':>3}{'S':>7}{'ours ms':>9}{'GB/s':>6}{'enable_gqa':>12}{'packed':>8}{'expanded':>10}", end=""
    )
    print("   ours / best peer   enable_gqa / ours")
    for dtype in DTYPES:
        for n_kv_heads in N_KV_HEADS:
            for kv_len in KV_LENS:
                row = measure(n_kv_heads, kv_len, dtype, n_rounds)
                record["results"].append(row)
                ms = row["median_ms"]
                peers = "".join(
                    f"{ms.get(name, float('nan')):>{w}.2f}" for name, w in zip(PEERS, (12, 8, 10), strict=True)
                )
                print(
                    f"{row['dtype']:<9}{n_kv_heads:>3}{kv_len:>7}{ms['gqa_lab']:>9.2f}{row['gb_per_s']:>6.1f}{peers}"
                    f"{row['time_over_best_peer']:>19.2f}{row['enable_gqa_over_ours']:>20.2f}",
                    flush=True,
                )
    save_record("cpu_decode", record)
    print(json.dumps(record))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 15)
