"""Compiles the decode kernels for a Hopper GPU, without one, and notes what a program of each takes.

    python -m benchmarks.kernel_resources

Prints a table and writes benchmarks/results/kernel_resources.json. It compiles as tests/test_triton_compile.py does,
which also holds the record to what it compiles. Nothing is run and nothing is timed.
"""

import tempfile

import triton

from gqa_lab.recorded import environment, save_record
from tests import test_triton_compile as paper


def programs_at_a_time(kernel: dict) -> int:
    """Returns how many programs of a kernel fit one multiprocessor, by registers and by shared memory."""
    registers = -(-kernel["registers"] // 8) * 8 * 32 * kernel["num_warps"]
    return min(paper.REGISTERS // registers, paper.SHARED // (kernel["shared"] + paper.SHARED_RESERVED))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        kernels = paper.compiled_on_paper(paper.USED, folder)["kernels"]
    rows = [
        {
            "kernel": kernel["name"].lstrip("_"),
            **dict(zip(("dtype", "group_size", "head_dim"), kernel["config"], strict=True)),
            "registers_per_thread": kernel["registers"],
            "spilled_bytes": kernel["stack"] + kernel["local"],
            "shared_memory_bytes": kernel["shared"],
            "programs_per_multiprocessor": programs_at_a_time(kernel),
        }
        for kernel in kernels
    ]
    for row in rows:
        print(*row.values(), sep="\t")
    record = {"provenance": environment(), "triton": triton.__version__, "target": "compute capability 9.0"}
    save_record("kernel_resources", record | {"results": rows})


if __name__ == "__main__":
    main()
