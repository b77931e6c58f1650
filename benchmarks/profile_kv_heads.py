"""Times SmolLM2's decode steps with 9, 3 and 1 KV heads over its contexts, beside the bytes that `costs` predicts.

    python benchmarks/profile_kv_heads.py [rounds]

Prints a table and writes benchmarks/results/profile_kv_heads.json. Batch 1, float32. 9 KV heads are the model expanded,
which computes the same; 1 is the model pooled, which speaks nonsense in the same time. The three take turns; a number
is the median of the rounds, each the median of a few steps. With one thread (OMP_NUM_THREADS=1) the clock counts that
thread's own time, which a busy machine disturbs less; the record says which clock.
"""

import statistics
import sys
import time

import torch

from gqa_lab.checkpoint import load_pretrained, smollm2_path
from gqa_lab.convert import convert_kv_heads
from gqa_lab.profiler import measure_ceilings, profile_decode
from gqa_lab.recorded import environment, save_record

CONTEXTS = [1000, 2048, 4096, 8189]
N_KV_HEADS = (9, 3, 1)


def main(n_rounds: int) -> None:
    model, _ = load_pretrained(smollm2_path(), device="cpu")
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    ceilings = measure_ceilings(model.device, model.dtype, clock)
    points = {n: [[] for _ in CONTEXTS] for n in N_KV_HEADS}
    for _ in range(n_rounds):
        for n in N_KV_HEADS:
            of_n = model if n == model.config.n_kv_heads else convert_kv_heads(model, n)
            sizes = dict(kv_len=64, new_tokens=2, prefills=0, sweep=CONTEXTS, ceilings=ceilings, clock=clock)
            for seen, point in zip(points[n], profile_decode(of_n, **sizes).sweep, strict=True):
                seen.append(point)
    rows = [
        {
            "n_kv_heads": n,
            "kv_len": kv_len,
            "read_bytes": seen[0].read_bytes,
            "seconds": round(statistics.median(p.seconds for p in seen), 6),
            "min_max_seconds": [round(f(p.seconds for p in seen), 6) for f in (min, max)],
        }
        for n in N_KV_HEADS
        for kv_len, seen in zip(CONTEXTS, points[n], strict=True)
    ]
    for row in rows:
        ms, speed = 1000 * row["seconds"], row["read_bytes"] / row["seconds"] / 1e9
        print(f"{row['n_kv_heads']} KV heads, {row['kv_len']:>5,} tokens: {row['read_bytes'] / 1e6:>6,.0f} MB", end=" ")
        print(f"{ms:>7.1f} ms {speed:>6.1f} GB/s")
    sizes = {
        "dtype": "float32",
        "clock": clock.__name__,
        "rounds": n_rounds,
        "read_bytes_per_s": ceilings.read_bytes_per_s,
    }
    save_record("profile_kv_heads", {"provenance": environment(), **sizes, "results": rows})


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
