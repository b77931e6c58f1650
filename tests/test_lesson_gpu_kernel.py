"""Lesson 09 beyond its outputs: its kernels compile for GPUs nobody here has, and its table shows a run once there is one."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from gqa_lab import plots, recorded

ROOT = Path(__file__).resolve().parent.parent
CELLS = {c.id: c.source for c in nbformat.read(ROOT / "notebooks" / "09_gpu_kernel.ipynb", as_version=4).cells}
KERNELS = ("step-1-code", "step-2-range", "step-3-code")

# In a process of its own, because in this one the kernels may belong to the interpreter.
COMPILE = """
import torch
from triton.backends.compiler import GPUTarget


class OnPaper:
    def __init__(self, capability):
        self.capability = capability

    def get_current_target(self):
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


x, length = torch.empty(10_000), torch.empty(1, dtype=torch.int32)
for capability in (80, 90):
    triton.runtime.driver.set_active(OnPaper(capability))
    sizes = dict(D=16, KEYS=32, warmup=True)
    step_3.device_caches.clear()
    compiled = step_3.run(x, x, x, length, x, x, 4, 100, ROWS=16, grid=(3, 2), **sizes)
    print(capability, compiled.metadata.target.arch, len(compiled.asm["cubin"]) > 1000)
"""


@pytest.mark.slow
def test_the_kernels_of_the_lesson_compile_for_gpus_from_ampere_on(tmp_path):
    triton = pytest.importorskip("triton", reason="triton has no build for this system")
    if not (Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas").exists():
        pytest.skip("this triton comes without NVIDIA's tools")
    head = "import triton\nimport triton.language as tl\n\njit = triton.jit\n\n\n"
    program = tmp_path / "kernels.py"
    program.write_text(head + "\n\n\n".join(CELLS[i] for i in KERNELS) + "\n" + COMPILE, encoding="utf-8")
    env = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, str(program)], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["80 80 True", "90 90 True"]


def test_without_a_run_on_a_gpu_the_lesson_says_so(tmp_path, monkeypatch):
    if not (recorded.RESULTS / "gpu_decode.json").exists():
        assert "claims nothing about the kernel's speed" in CELLS["gpu-text"]
    monkeypatch.setattr(recorded, "RESULTS", tmp_path)
    assert recorded.gpu_decode_table().startswith("No run on a GPU is recorded yet: python benchmarks/gpu_decode.py")
    assert CELLS["gpu"] == "print(gpu_decode_table())"


def test_a_run_on_a_gpu_is_shown_row_by_row(tmp_path, monkeypatch):
    pytest.importorskip("triton", reason="triton has no build for this system")
    spec = importlib.util.spec_from_file_location("gpu_decode", ROOT / "benchmarks" / "gpu_decode.py")
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    row = {"batch_size": 1, "n_kv_heads": 8, "kv_len": 8192, "best_peer": "SDPA flash"}
    row |= {"median_us": {"gqa_lab": 12.5}, "percent_of_read": {"gqa_lab": 64.0, "SDPA flash": 51.0}}
    alone = row | {"best_peer": None, "percent_of_read": {"gqa_lab": 64.0}}
    record = {"provenance": recorded.environment(), "read_gb_per_s": {"sum": 4000.0}, "results": [row, alone]}
    monkeypatch.setattr(recorded, "RESULTS", tmp_path)
    recorded.save_record("gpu_decode", record)
    said = recorded.gpu_decode_table().splitlines()
    assert said[0].startswith("recorded on ") and said[0].endswith("reads 4,000 GB/s")
    assert re.fullmatch(r"B=1   G=8   S=8192 +12\.5 us +64%  SDPA flash 51%", said[1])
    assert said[2].endswith("no peer")
    assert set(row) <= set(benchmark.measure((1, 8, 66), ["gqa_lab"], 1.0, 1, benchmark.torch.device("cpu")))


def test_the_registers_in_the_text_are_the_recorded_ones():
    rows = [r for r in recorded.recorded("kernel_resources")["results"] if r["kernel"] == "attend_to_split"]
    registers = [row["registers_per_thread"] for row in rows]
    assert f"{min(registers)} to {max(registers)} of them a thread" in CELLS["resources-text"]
    assert all(row["spilled_bytes"] == 0 for row in rows) and "spills none" in CELLS["resources-text"]
    assert min(row["programs_per_multiprocessor"] for row in rows) == 2
    [four] = [r for r in rows if r["dtype"] == "bfloat16" and r["group_size"] == 4]
    assert four["programs_per_multiprocessor"] == 3 and "in bfloat16 three would fit" in CELLS["resources-text"]


def test_the_numbers_in_the_text_are_those_of_the_figures():
    sizes = {"n_programs": 8, "n_blocks": 131_072 // 64, "n_slots": 2 * 132}
    costs = {n: plots.split_cost(n, **sizes) for n in (1, 33, 34)}
    assert list(costs.values()) == [2048, 63, 122] and "2,048 blocks to 63 at 33 splits" in CELLS["costs-text"]
    small = {n: plots.split_cost(n, n_programs=2, n_blocks=20, n_slots=8) for n in range(1, 21)}
    assert (small[1], small[4], small[5], min(small.values())) == (20, 5, 8, 5)
    assert f"{1 - 8 / 264:.0%}" == "97%" and "97% of them empty" in CELLS["idle"]


def test_the_package_chooses_the_splits_that_the_lesson_says():
    pytest.importorskip("triton", reason="triton has no build for this system")
    from gqa_lab.triton_decode import choose_splits

    assert choose_splits(8, 2048, 4, resident_programs=264) == 33


@pytest.mark.slow
def test_a_machine_without_triton_is_told_so_and_runs_the_rest(tmp_path):
    (tmp_path / "triton.py").write_text("raise ImportError('no build for this system')\n", encoding="utf-8")
    notebook = nbformat.read(ROOT / "notebooks" / "09_gpu_kernel.ipynb", as_version=4)
    client = NotebookClient(notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": tmp_path}})
    client.execute(env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])})
    said = {c.id: "".join(o.get("text", "") for o in c.outputs) for c in notebook.cells if c.cell_type == "code"}
    assert said["triton-import"].startswith("No Triton here.")
    assert said["gpu"] and not said["step-4-code"]
