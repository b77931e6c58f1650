"""Times one row times each matrix of SmolLM2 on this CPU, stored by rows and by columns, in turn.

    python benchmarks/cpu_weights.py [rounds]

Prints a table and one JSON line, and writes benchmarks/results/cpu_weights.json: GB/s of weights read. This is what
`gqa_lab.model.reads_faster_by_columns` decides by. Copies rotate, so that none is read from the cache of the CPU.
"""

import json
import statistics
import sys
import time

import torch
import torch.nn.functional as F

from gqa_lab.model import reads_faster_by_columns
from gqa_lab.recorded import environment, save_record

SHAPES = {"lm_head": (49152, 576), "gate, up": (1536, 576), "down": (576, 1536), "q, o": (576, 576), "k, v": (192, 576)}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@torch.no_grad()
def measure(shape: tuple[int, int], dtype: torch.dtype, n_rounds: int) -> dict[str, float]:
    """Returns GB/s by rows and by columns."""
    n_bytes = shape[0] * shape[1] * dtype.itemsize
    by_rows = [torch.randn(shape).to(dtype) for _ in range(min(60, max(2, int(150e6 / n_bytes))))]
    stored = {"by_rows": by_rows, "by_columns": [w.mT.contiguous().mT for w in by_rows]}
    x = torch.randn(1, 1, shape[1]).to(dtype)
    times = {name: [] for name in stored}
    for _ in range(n_rounds):
        for name, weights in stored.items():
            start = time.perf_counter()
            for weight in weights:
                F.linear(x, weight)
            times[name].append((time.perf_counter() - start) / len(weights))
    return {name: round(n_bytes / statistics.median(t) / 1e9, 1) for name, t in times.items()}


def main(n_rounds: int) -> None:
    record = {"provenance": environment(), "rounds": n_rounds, "results": []}
    print(f"{'dtype':<10}{'matrix':<10}{'shape':<14}{'by rows':>9}{'by columns':>12}   GB/s   chosen")
    for dtype in DTYPES:
        for name, shape in SHAPES.items():
            row = measure(shape, dtype, n_rounds)
            chosen = "by_columns" if reads_faster_by_columns(torch.empty(shape, dtype=dtype)) else "by_rows"
            short = str(dtype).removeprefix("torch.")
            record["results"].append(
                {"dtype": short, "matrix": name, "shape": shape, "gb_per_s": row, "chosen": chosen}
            )
            print(
                f"{short:<10}{name:<10}{shape!s:<14}{row['by_rows']:>9}{row['by_columns']:>12}          {chosen}",
                flush=True,
            )
    save_record("cpu_weights", record)
    print(json.dumps(record))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 11)
