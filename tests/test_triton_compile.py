"""What the decode kernels become on a Hopper GPU, compiled without having one.

Run as a program it calls `triton_decode_attention` with a driver that only says "compute capability 9.0", so that
Triton's own launch code picks the types and alignments, compiles, and launches nothing. It runs in a process of its
own, because in this one the kernels may belong to the interpreter.
"""

import collections
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Of one multiprocessor of an H100 or H200 (CUDA C++ programming guide, compute capability 9.0), in bytes and in number.
SHARED, SHARED_PER_PROGRAM, SHARED_RESERVED, REGISTERS = 233_472, 232_448, 1024, 65_536

# (dtype, group_size, head_dim): from one tile of 16 heads to several of the largest.
USED = [("bfloat16", 4, 128), ("float16", 8, 64), ("bfloat16", 128, 128), ("float32", 4, 128), ("float32", 71, 128)]
OTHERS = [
    (dtype, group_size, head_dim)
    for dtype in ("bfloat16", "float16", "float32")
    for group_size in (1, 32, 64, 71)
    for head_dim in (64, 128)
]


def compiled_on_paper(configs, cache_dir):
    """A record per kernel that these configs launch, and how many variants a growing cache needs."""
    triton = pytest.importorskip("triton", reason="triton has no build for this system")
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    if not (tools / "cuobjdump").exists():
        pytest.skip(f"no cuobjdump in {tools.name}: this triton comes without NVIDIA's tools")
    env = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(cache_dir)}
    command = [sys.executable, "-m", f"tests.{Path(__file__).stem}", json.dumps(configs), str(tools / "cuobjdump")]
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def used(tmp_path_factory):
    return compiled_on_paper(USED, tmp_path_factory.mktemp("triton"))


def assert_fit_for_hopper(kernel):
    assert kernel["stack"] == kernel["local"] == 0, "numbers that find no register are kept in memory"
    assert kernel["shared"] <= SHARED_PER_PROGRAM
    registers = -(-kernel["registers"] // 8) * 8 * 32 * kernel["num_warps"]
    assert 2 * registers <= REGISTERS and 2 * (kernel["shared"] + SHARED_RESERVED) <= SHARED, "one program at a time"
    assert all(name.endswith(".128") for name in kernel["loads"] if name.startswith("LDGSTS")), "loads below 16 bytes"
    if kernel["name"] == "_attend_to_split":
        copies = sum(n for name, n in kernel["loads"].items() if name.startswith("LDGSTS"))
        assert copies >= 2 * 3 * 4, "K and V are not copied ahead of their use"
        assert sum(n for name, n in kernel["loads"].items() if name == "LDG.E") <= 1, "only a length is one number"
        assert kernel["tensor_core_instructions"] > 0


def test_every_config_compiles_to_code_that_keeps_a_hopper_gpu_busy(used):
    assert len(used["kernels"]) == 2 * len(USED)
    for kernel in used["kernels"]:
        assert_fit_for_hopper(kernel)


def test_the_recorded_resources_are_those_of_the_kernels(used):
    import triton

    from gqa_lab.recorded import recorded

    record = recorded("kernel_resources")
    if record["triton"] != triton.__version__:
        pytest.skip(f"recorded with triton {record['triton']}, this is {triton.__version__}")
    for row, kernel in zip(record["results"], used["kernels"], strict=True):
        assert row["kernel"] == kernel["name"].lstrip("_")
        assert [row["dtype"], row["group_size"], row["head_dim"]] == kernel["config"]
        assert row["registers_per_thread"] == kernel["registers"] and row["shared_memory_bytes"] == kernel["shared"]
        assert row["spilled_bytes"] == 0 and row["programs_per_multiprocessor"] >= 2


@pytest.mark.slow
def test_so_do_all_others(tmp_path):
    for kernel in compiled_on_paper(OTHERS, tmp_path)["kernels"]:
        assert_fit_for_hopper(kernel)


def test_a_growing_cache_never_compiles_anew(used):
    assert used["variants_of_a_growing_cache"] == {
        "one split": 1,
        "one split, lengths": 1,
        "splits": 2,  # the second kernel too
        "splits, lengths": 2,
    }


def main(configs, cuobjdump):
    import tempfile

    import torch
    import triton
    from jaxtyping import install_import_hook
    from triton.backends.compiler import GPUTarget
    from triton.runtime.jit import JITFunction

    install_import_hook("gqa_lab", "beartype.beartype")  # as conftest.py does for tests on a GPU
    from gqa_lab import triton_decode

    class HopperOnPaper:
        def get_current_target(self):
            return GPUTarget("cuda", 90, 32)

        def get_current_device(self):
            return 0

        def get_current_stream(self, device):
            return 0

    triton.runtime.driver.set_active(HopperOnPaper())
    launched, run = [], JITFunction.run
    JITFunction.run = lambda self, *args, **kwargs: launched.append(run(self, *args, **kwargs | {"warmup": True}))
    triton_decode._check = lambda *args: None  # which would refuse these tensors, for they are on the CPU
    triton_decode._resident = lambda device: 2 * 132

    def launch(dtype, group_size, head_dim, kv_len, *, with_lengths=True, **kwargs):
        q = torch.empty(2, 2 * group_size, 1, head_dim, dtype=getattr(torch, dtype))
        k, v = torch.empty(2, 2, 2, 4096, head_dim, dtype=q.dtype)[:, :, :, :kv_len]
        lengths = torch.full((2,), kv_len, dtype=torch.int32) if with_lengths else None
        launched.clear()
        triton_decode.triton_decode_attention(q, k, v, lengths=lengths, **kwargs)
        return launched[:]

    def growing(n_splits, with_lengths):
        kwargs = [dict(kv_len=n) for n in (1, 2, 16, 100, 1024, 4096)] + [dict(kv_len=100, window=n) for n in (1, 16)]
        kernels = [
            kernel
            for kw in kwargs
            for n in n_splits
            for kernel in launch("bfloat16", 4, 128, n_splits=n, with_lengths=with_lengths, **kw)
        ]
        return len(set(map(id, kernels)))

    def record(config, kernel):
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(kernel.asm["cubin"])
            file.flush()
            dump = [cuobjdump, "--dump-resource-usage", "--dump-sass", file.name]
            text = subprocess.run(dump, capture_output=True, text=True, check=True).stdout
        operations = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z][A-Z0-9_.]*)", text)
        usage = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}
        return dict(
            config=config,
            name=kernel.metadata.name,
            registers=usage["REG"],
            stack=usage["STACK"],
            local=usage["LOCAL"],
            shared=kernel.metadata.shared,
            num_warps=kernel.metadata.num_warps,
            loads=collections.Counter(o for o in operations if re.match(r"LDG(STS)?\.", o)),
            tensor_core_instructions=sum(bool(re.match("HG?MMA", o)) for o in operations),
        )

    kernels = [record(config, k) for config in configs for k in launch(*config, kv_len=4096, n_splits=4)]
    variants = {
        f"{name}{', lengths' if with_lengths else ''}": growing(n_splits, with_lengths)
        for name, n_splits in (("one split", (1,)), ("splits", (2, 3, 16, 17)))
        for with_lengths in (False, True)
    }
    print(json.dumps(dict(kernels=kernels, variants_of_a_growing_cache=variants)))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), sys.argv[2])
