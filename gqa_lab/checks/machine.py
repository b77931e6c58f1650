"""Lesson 00's look at the machine: what is there, what is missing, and what to do about it."""

import platform
import sys

import torch

from gqa_lab.attention import grouped_attention, sdpa_attention
from gqa_lab.checkpoint import find_smollm2
from gqa_lab.checks.verdict import Page


def check_machine() -> Page:
    """Returns a line for Python, PyTorch, the device, the attention and the real model: ok, or what to do."""
    return Page("\n".join([_python(), _torch(), _device(), _attention(), _real_model()]))


def _line(ok: bool, text: str, remedy: str = "") -> str:
    return f"✓ ok       {text}" if ok else f"✗ missing  {text}: {remedy}"


def _python() -> str:
    return _line(sys.version_info >= (3, 11), f"Python {platform.python_version()}", "this course needs 3.11 or later")


def _torch() -> str:
    release = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    return _line(
        release >= (2, 13), f"PyTorch {torch.__version__}", "this course needs 2.13; run  python course.py lab"
    )


def _device() -> str:
    if torch.cuda.is_available():
        return _line(True, f"runs on {torch.cuda.get_device_name()}")
    return _line(True, f"runs on the CPU with {torch.get_num_threads()} threads; no GPU is needed")


def _attention() -> str:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, heads, 5, 8, generator=generator).to(device) for heads in (6, 3, 3))
    error = (grouped_attention(q, k, v) - sdpa_attention(q, k, v)).abs().max().item()
    return _line(
        error < 1e-5,
        "our attention agrees with PyTorch's here",
        f"it differs by {error:.1g}; please report it",
    )


def _real_model() -> str:
    here = find_smollm2() is not None
    return _line(here, "the real model, SmolLM2-135M-Instruct", "run  python course.py lab  once while online")
