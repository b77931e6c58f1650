"""Why is my GQA not faster? Looks at *your* attention, or at a step of your model, and names what holds it back."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from gqa_lab import evidence
from gqa_lab.attention import grouped_attention
from gqa_lab.bandwidth import seconds_on_cpu, seconds_on_cuda
from gqa_lab.evidence import Evidence
from gqa_lab.generate import decode_step

Seconds = Callable[[Callable[[], object]], float]
NEAR = 0.7  # of the read bandwidth: only fewer bytes help from there on


@dataclass(frozen=True)
class Finding:
    """One cause, the numbers that show it, and what can be done."""

    cause: str
    because: str
    remedy: str


@dataclass(frozen=True)
class Diagnosis:
    """All causes that hold, the first to look at in front. Prints itself as a text to read."""

    findings: tuple[Finding, ...]
    evidence: Evidence = field(repr=False)

    @property
    def cause(self) -> str:
        """The first cause."""
        return self.findings[0].cause

    @property
    def causes(self) -> list[str]:
        """All of them, in order."""
        return [finding.cause for finding in self.findings]

    def __repr__(self) -> str:
        lines = []
        for finding in self.findings:
            lines += [finding.cause, f"  because  {finding.because}", f"  so       {finding.remedy}"]
        return "\n".join([*lines, *_sums(self.evidence)])


def why_not_faster(
    program: Callable[..., Tensor] | nn.Module,
    caches: list | None = None,
    *,
    batch_size: int = 1,
    n_heads: int = 32,
    n_kv_heads: int = 8,
    q_len: int = 1,
    kv_len: int = 1024,
    head_dim: int = 64,
    n_slots: int | None = None,
    window: int | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    attend: Callable[..., Tensor] = grouped_attention,
    step: Callable[..., Tensor] = decode_step,
    read_bytes_per_s: float | None = None,
    wall_s: Seconds | None = None,
    device_s: Seconds | None = None,
) -> Diagnosis:
    """Returns the causes that apply to your own attention, or to a decode step of your model, with their evidence.

    In this order: prefill, MATH fallback, expanded, concatenated, copied, read again, empty slots read, launch-bound,
    weights outweigh the cache. Where none holds: at the roofline, or nothing wasted. What rests on bytes is counted
    and the same every time; seconds are measured on a GPU, and elsewhere only if `read_bytes_per_s` or a clock is
    given.

    Args:
        program: an attention, called as `program(q, k, v)` on K and V as a cache hands them out, the start of longer
            buffers; or a model, which makes two tokens, or with a clock some more.
        caches: those of the model, filled with what it shall see. Your own class will do.
        batch_size, q_len: sequences (B), and new tokens of each (T).
        n_heads, n_kv_heads, kv_len, head_dim: sizes for an attention (H, G, S, D).
        n_slots: hand an attention buffers of so many slots, and `lengths`.
        window: hand it to an attention.
        dtype, device: of the attention's inputs; the device is CUDA if present, else the CPU.
        attend: the attention of a model.
        step: called as `step(model, ids [B, T], caches, attend=...)`.
        read_bytes_per_s: `read_bandwidth()`, to hold the time against.
        wall_s: measures a call in seconds; None means a clock, on a GPU events.
        device_s: measures how long of it a GPU works; None means the kernels in PyTorch's profiler.

    Raises:
        ValueError: for a model without caches.

    Example:
        >>> from gqa_lab.attention import expanded_attention
        >>> why_not_faster(expanded_attention, kv_len=100).cause, why_not_faster(grouped_attention, kv_len=100).cause
        ('expanded', 'nothing wasted')
    """
    if isinstance(program, nn.Module):
        if not caches:
            raise ValueError("caches must be those of the model, filled: model.new_caches(...), then prefill(...)")
        device = next(program.parameters()).device
        ids = torch.zeros(batch_size, q_len, dtype=torch.long, device=device)

        def call(attend=attend):
            return step(program, ids, caches, attend=attend)

        seen = evidence.of_step(call, attend, program)
    else:
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        sizes = (n_heads, q_len), (n_kv_heads, n_slots or kv_len + 3), (n_kv_heads, n_slots or kv_len + 3)
        q, k, v = (torch.randn(batch_size, *size, head_dim, dtype=dtype, device=device) for size in sizes)
        named = {} if window is None else {"window": window}
        if n_slots is None:
            k, v = k[:, :, :kv_len], v[:, :, :kv_len]
        else:
            named["lengths"] = torch.full((batch_size,), kv_len, dtype=torch.int32, device=device)

        def call():
            return program(q, k, v, **named)

        seen = evidence.of_attention(program, q, k, v, **named)
    seen = replace(seen, read_bytes_per_s=read_bytes_per_s)
    on_gpu = device.type == "cuda"
    if wall_s or on_gpu or read_bytes_per_s:
        seen = replace(seen, wall_s=_least(wall_s or (seconds_on_cuda if on_gpu else seconds_on_cpu), call))
    if device_s or on_gpu:
        seen = replace(seen, device_s=_least(device_s or busy_seconds_on_cuda, call))
    return diagnose(seen)


def diagnose(seen: Evidence) -> Diagnosis:
    """Returns the causes that evidence shows: the same ones for the same evidence."""
    found = [
        finding for finding in (*_of_shape(seen), *_of_copies(seen), *_of_reading(seen), *_of_time(seen)) if finding
    ]
    return Diagnosis(tuple(found) or (_nothing(seen),), seen)


def _of_shape(seen: Evidence):
    if seen.q_len > 1:
        yield Finding(
            "prefill",
            f"{seen.q_len} new tokens at once: each key that is read serves {seen.q_len} queries of each head",
            "time a decode step instead; here arithmetic decides, and GQA leaves that of attention as it is",
        )
    if "MATH" in seen.backends:
        copies = (seen.expanded_bytes + seen.copied_bytes) / max(1, seen.kv_bytes)
        yield Finding(
            "MATH fallback",
            "scaled_dot_product_attention chose MATH"
            + (f", which wrote copies {copies:.3g} times as large as K and V" if copies else ""),
            "lay the query heads of a group out as rows, q.view(B, G, R, D), without a mask: any backend takes that",
        )


def _of_copies(seen: Evidence):
    kv = seen.kv_bytes
    if seen.copies_held > 1 or seen.expanded_bytes >= 0.5 * kv > 0:
        yield Finding(
            "expanded",
            f"the cache holds {seen.copies_held} copies of each KV head"
            if seen.copies_held > 1
            else f"copies {seen.expanded_bytes / kv:.3g} times as large as K and V were written, and read again",
            "leave the keys as they are and group the queries: bgrtd,bgsd->bgrts",
        )
    if seen.appended_bytes >= 0.5 * kv > 0:
        new = f"{seen.q_len} token{'s' if seen.q_len > 1 else ''}"
        yield Finding(
            "concatenated",
            f"{seen.appended_bytes:,} bytes of K and V were written into a new place to add {new}",
            "preallocate, and write the new token in place",
        )
    if seen.copied_bytes >= 0.5 * kv > 0:
        yield Finding(
            "copied",
            f"{seen.copied_bytes:,} bytes of copies of K and V were written on the way to the scores",
            "look for contiguous(), a change of dtype, a factor on K: views of a cache need none of them",
        )


def _of_reading(seen: Evidence):
    if seen.rereads or seen.kv_bytes_read >= 1.5 * seen.kv_bytes_touched > 0:
        yield Finding(
            "read again",
            "enable_gqa on a CPU: one operation that works once for each query head; no meter sees inside"
            if seen.rereads
            else f"what is read of K and V is read {seen.kv_bytes_read / seen.kv_bytes_touched:.3g} times",
            "lay the query heads of a group out as rows of one product",
        )
    if seen.kv_bytes_touched >= 1.1 * seen.kv_bytes > 0:
        yield Finding(
            "empty slots read",
            f"{seen.kv_bytes_touched:,} bytes of cache read, {seen.kv_bytes:,} of tokens that count",
            "slice to the tokens that are there; where shapes must not change, a kernel with lengths, or small buckets",
        )


def _of_time(seen: Evidence):
    if seen.device_s is not None and seen.wall_s and seen.device_s < 0.5 * seen.wall_s:
        yield Finding(
            "launch-bound",
            f"the GPU works {_ms(seen.device_s)} of {_ms(seen.wall_s)} and waits for orders in the rest",
            "fewer launches: compiled(), captured(), a larger batch",
        )
    if seen.weight_bytes > seen.kv_bytes > 0:
        share = seen.kv_bytes / (seen.kv_bytes + seen.weight_bytes)
        yield Finding(
            "weights outweigh the cache",
            f"{share:.1%} of what a step has to read is cache: no number of KV heads can save more",
            "a larger batch shares the weights; a longer context makes the cache count; 16-bit weights halve them",
        )


def _nothing(seen: Evidence) -> Finding:
    if seen.unseen:
        return Finding("not counted", seen.unseen, "look at the function as it was before")
    read = f"K and V read {seen.kv_bytes_read / max(1, seen.kv_bytes):.3g} times, nothing copied"
    share = _share(seen)
    if share is None:
        return Finding("nothing wasted", read, "hand over read_bytes_per_s=read_bandwidth() to have it timed")
    read += f", {share:.0%} of the read bandwidth"
    if share >= NEAR:
        return Finding("at the roofline", read, "only fewer bytes help from here")
    return Finding("nothing wasted", read, "the time goes into arithmetic, small operations and Python: profile it")


def _sums(seen: Evidence):
    if seen.bytes_read is not None:
        weights = f", weights {seen.weight_bytes:,}" if seen.weight_bytes else ""
        moved = f"read {seen.bytes_read:,}, written {seen.bytes_written:,}"
        yield f"counted: K and V {seen.kv_bytes:,} bytes{weights}; {moved}"
    elif seen.unseen:
        yield f"not counted: {seen.unseen}"
    if seen.wall_s is not None:
        share = _share(seen)
        yield f"timed: {_ms(seen.wall_s)}" + (f", {share:.0%} of the read bandwidth" if share is not None else "")


def _share(seen: Evidence) -> float | None:
    """The bytes that have to be read, by the time and the bandwidth."""
    if seen.wall_s is None or seen.read_bytes_per_s is None:
        return None
    return (seen.weight_bytes + seen.kv_bytes) / seen.wall_s / seen.read_bytes_per_s


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms"


@torch.no_grad()
def _least(seconds: Seconds, call: Callable[[], object], repeats: int = 5) -> float:
    call()
    return min(seconds(call) for _ in range(repeats))


def busy_seconds_on_cuda(call: Callable[[], object]) -> float:
    """Returns the seconds in which the GPU worked on a call: the sum of its kernels, by PyTorch's profiler."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as recorded:
        call()
        torch.cuda.synchronize()
    return sum(event.self_device_time_total for event in recorded.key_averages()) / 1e6  # it counts in microseconds
