"""How fast this machine reads memory: the ceiling that measured GB/s are held against."""

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

BUFFER = {"cpu": (2**28, 2**30), "cuda": (2**31, 2**32)}  # bytes: at least, at most
UNKNOWN_CACHE = 2**25  # bytes, where a machine does not say how large its last cache is


def read_bandwidth(
    device: torch.device | str | None = None,
    *,
    n_bytes: int | None = None,
    repeats: int = 5,
    seconds: Callable[[Callable[[], object]], float] | None = None,
) -> float:
    """Returns the bytes per second at which this machine reads a buffer that no cache can hold.

    Three plain ways to read every byte once, in turn: the sum, the largest value, and a product of the two halves,
    summed. The fastest reading of all counts, because whatever else runs on the machine can only slow one down.

    It is a measurement, not a specification: of this moment, with PyTorch's own threads, for reading from start to
    end. It is not the number on the data sheet, which no program reaches; not the bandwidth of a copy, which also
    writes; and not that of a cache, so a program whose bytes fit into one may pass it. Above 110% of it, suspect a
    cache or a wrong count.

    Args:
        device: where; None means CUDA if present, else the CPU.
        n_bytes: size of the buffer in bytes. None means eight times the last-level cache, but from 256 MiB to 1 GiB (on
            a GPU from 2 to 4 GiB), and never more than a quarter of the free memory.
        repeats: how often each way is tried, after one try that does not count.
        seconds: what runs a call and says how long it took; None means a clock here, and events on a GPU.

    Raises:
        ValueError: for a buffer below 8 bytes, or no repeats.

    Example:
        >>> read_bandwidth("cpu", n_bytes=2**20, repeats=1) > 0
        True
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    n_bytes = default_bytes(device) if n_bytes is None else n_bytes
    if n_bytes < 8:
        raise ValueError(f"n_bytes must be at least 8, got {n_bytes}; leave it out for a buffer that no cache holds")
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    seconds = seconds or (seconds_on_cuda if device.type == "cuda" else seconds_on_cpu)
    n_pairs = n_bytes // 8
    x = torch.ones(2 * n_pairs, device=device)  # written: memory that never was is no memory to read
    ways = ways_to_read(x)
    for way in ways:
        seconds(way)
    best = min(seconds(way) for _ in range(repeats) for way in ways)
    return 4 * x.numel() / best


def ways_to_read(x: Tensor) -> list[Callable[[], Tensor]]:
    """Returns three functions that each read every byte of `x [2n]` once and write next to nothing."""
    first, second = x.chunk(2)
    return [x.sum, x.amax, lambda: torch.dot(first, second)]


def seconds_on_cpu(call: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Returns how long a call takes, in seconds."""
    start = clock()
    call()
    return clock() - start


def seconds_on_cuda(call: Callable[[], object]) -> float:
    """Returns how long the GPU works on a call, in seconds, between two events in its own stream."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000  # it counts in milliseconds


def default_bytes(device: torch.device) -> int:
    """Returns the size of a buffer that the device can spare and its last-level cache cannot hold, in bytes."""
    if device.type == "cuda":
        cache = torch.cuda.get_device_properties(device).L2_cache_size
        free = torch.cuda.mem_get_info(device)[0]
    else:
        cache, free = last_level_cache_bytes(), _free_bytes()
    least, most = BUFFER[device.type]
    return max(8, min(max(least, 8 * cache), most, free // 4 if free else least))


def last_level_cache_bytes() -> int:
    """Returns the bytes of the CPU's largest cache, of all its parts together; 32 MiB where the system does not say."""
    parts: dict[str, int] = {}  # by the CPUs that share it
    with contextlib.suppress(OSError, ValueError):
        for cache in Path("/sys/devices/system/cpu").glob("cpu[0-9]*/cache/index3"):
            size = (cache / "size").read_text(encoding="ascii").strip()
            parts[(cache / "shared_cpu_list").read_text(encoding="ascii")] = int(size.removesuffix("K")) * 1024
    return sum(parts.values()) or UNKNOWN_CACHE


def _free_bytes() -> int:
    """Free memory of this machine in bytes, 0 where it does not say."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 0
