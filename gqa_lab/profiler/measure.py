"""`profile_decode`: the passes in turn, beside what `costs` says of the same steps."""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from gqa_lab.bandwidth import read_bandwidth, seconds_on_cpu, seconds_on_cuda
from gqa_lab.costs import decode_flops, prefill_flops, traffic_crossover, weight_bytes_held, weight_bytes_read
from gqa_lab.profiler import passes
from gqa_lab.profiler.decoders import decoder_of
from gqa_lab.profiler.limits import asked_for, cache_budget, cache_bytes, contexts_of, memory_bytes, what_fits
from gqa_lab.profiler.passes import WARM_UP, Clock, Decoder
from gqa_lab.profiler.profile import Ceilings, DecodeProfile
from gqa_lab.profiler.regions import REGIONS
from gqa_lab.recorded import environment


@torch.no_grad()
def profile_decode(
    model: Any,
    *,
    kv_len: int | Sequence[int] = 1024,
    batch_size: int | None = None,
    new_tokens: int = 16,
    max_seq_len: int | None = None,
    sweep: Sequence[int] | None = None,
    prefills: int = 1,
    attend: Callable | None = None,
    step: Callable | None = None,
    name: str | None = None,
    ceilings: Ceilings | None = None,
    memory: int | None = None,
    clock: Clock = time.perf_counter,
    progress: Callable[[float, str], None] = lambda done, what: None,
) -> DecodeProfile:
    """Returns where the bytes and the seconds of a model's decode steps go, beside what `costs` predicts.

    Three passes, each with a cache of its own, so that none disturbs another: *totals* read the clock twice per token;
    *split* reads it around every region and is slower for it; *bytes* counts one step under a `TrafficMeter`, untimed.
    Then other contexts, for the line t = t0 + bytes / bandwidth. What it does on a GPU (events, trying what fits) was
    written for one and not yet run on one.

    Args:
        model: a `Transformer`, or a causal model of transformers, of which the split is made where its modules are
            known.
        kv_len: tokens of each sequence, at least 2; a list for sequences of different lengths.
        batch_size: sequences of one length; with a list it is the list's length.
        new_tokens: decode steps that are timed in each pass, after 2 that are not.
        max_seq_len: tokens that the buffers have room for; None means as many as are needed.
        sweep: contexts of the line; None means five, up to 8,192 or to what the model and the memory hold; [] none.
        prefills: how often the prompts are read for the time of the first token. With 0 the cache is filled with
            random numbers, which take as long to read.
        attend: attention of the decode steps; None means `grouped_attention`.
        step: what takes a decode step; None means `decode_step`. Of `compiled()` the split clocks the program that
            leaves the attention apart: what is inside cannot be seen.
        name: what to call the model.
        ceilings: what the machine can do; None means they are measured.
        memory: bytes of memory; None means the machine's own.
        clock: returns seconds.
        progress: is told what part is done, from 0 to 1, and what comes.

    Raises:
        ValueError: for sizes that cannot be, or that neither model nor memory hold.

    Example:
        >>> from gqa_lab.checkpoint import load_pretrained, smollm2_path
        >>> model, _ = load_pretrained(smollm2_path())                     # doctest: +SKIP
        >>> print(profile_decode(model, kv_len=1000).table())              # doctest: +SKIP
    """
    decoder, held = decoder_of(model, attend, step), sum(p.nbytes for p in model.parameters())
    memory = memory_bytes(decoder.device) if memory is None else memory
    budget = cache_budget(memory, held, decoder.device)
    kv_lens, room = asked_for(decoder, kv_len, batch_size, WARM_UP, new_tokens, max_seq_len, prefills, budget)
    contexts = contexts_of(decoder, len(kv_lens), sweep, passes.SWEEP_TOKENS // 2, budget)

    progress(0.0, "ceilings of this machine")
    ceilings = ceilings or measure_ceilings(decoder.device, decoder.dtype, clock)
    progress(0.1, "first token and totals")
    totals = passes.totals(decoder, kv_lens, room, new_tokens, prefills, clock)
    progress(0.5, "split")
    split = passes.split(decoder, kv_lens, room, new_tokens, clock)
    progress(0.6, "bytes")
    counted = passes.counted(decoder, kv_lens, room)
    predicted, points = _predicted(decoder, kv_lens, new_tokens), []
    weight_bytes = predicted["weights_read_bytes"] or 0
    for i, n in enumerate(contexts):
        progress(0.65 + 0.35 * i / len(contexts), f"a context of {n:,} tokens")
        points.append(passes.context(decoder, n, len(kv_lens), weight_bytes, clock))
    none = dict(sweep=[], fit=None, what_if=[], notes=[])
    line = passes.line(decoder, kv_lens, points, weight_bytes, ceilings.read_bytes_per_s) if points else none
    fits = None
    if decoder.shape is not None and memory is not None:
        fits = what_fits(decoder.shape, decoder.device, kv_lens, decoder.dtype.itemsize, memory, held)
    progress(1.0, "done")
    notes = [*decoder.notes, *_notes(decoder, split["split_s"], predicted), *counted.pop("notes"), *line.pop("notes")]
    return DecodeProfile(
        **_described(decoder, name), **totals, **split, **counted, **predicted, **line,
        kv_lens=kv_lens, weights_held_bytes=held, ceilings=ceilings, fits=fits, notes=notes,
    )  # fmt: skip


def measure_ceilings(device: torch.device, dtype: torch.dtype, clock: Clock = time.perf_counter) -> Ceilings:
    """Returns the bytes per second that this machine reads, and the FLOPs per second of its matrix products.

    Of the products of a matrix with many rows and with one the faster counts: on a CPU in float16 it is the latter.
    """
    on_cuda = device.type == "cuda"
    seconds = seconds_on_cuda if on_cuda else lambda call: seconds_on_cpu(call, clock)
    n = 8192 if on_cuda else 1024
    x, weight = (torch.ones(n, n, dtype=dtype, device=device) for _ in range(2))
    many = min(seconds(lambda: F.linear(x, weight)) for _ in range(4))
    one = min(seconds(lambda: F.linear(x[:1], weight)) for _ in range(20))
    return Ceilings(read_bandwidth(device, seconds=seconds), 2 * n**2 / min(many / n, one))


def _described(decoder: Decoder, name: str | None) -> dict[str, Any]:
    shape, names = decoder.shape, ("n_layers", "n_heads", "n_kv_heads", "head_dim", "d_model", "vocab_size", "kind")
    names += ("max_seq_len", "sliding_window")
    return dict(
        environment=environment(),
        model=name or getattr(shape, "name", None) or type(decoder.model).__name__,
        how=decoder.how,
        device=decoder.device.type,
        dtype=str(decoder.dtype).removeprefix("torch."),
        sizes={} if shape is None else {name: getattr(shape, name) for name in names},
        warm_up_tokens=WARM_UP,
    )


def _predicted(decoder: Decoder, kv_lens: list[int], new_tokens: int) -> dict[str, int | float | None]:
    """Returns what `costs` says of the timed steps; None where it does not know the model."""
    shape, size = decoder.shape, decoder.dtype.itemsize
    seen = [[n + WARM_UP + i for n in kv_lens] for i in range(1, new_tokens + 1)]  # by each timed step
    both = dict(batch_size=len(kv_lens), weight_bytes_per_element=size, kv_bytes_per_element=size)

    def known(function: Callable, calls: list[dict]) -> int | float | None:
        try:
            return sum(function(shape, **call) for call in calls) if shape is not None else None
        except ValueError:  # what costs does not know of a model
            return None

    crossover = known(traffic_crossover, [both])
    in_all = known(cache_bytes, [dict(kv_lens=lens, bytes_per_element=size) for lens in seen])
    return dict(
        weights_predicted_bytes=known(weight_bytes_held, [dict(bytes_per_element=size)]),
        weights_read_bytes=known(weight_bytes_read, [dict(bytes_per_element=size)]),
        cache_read_bytes=None if in_all is None else in_all / new_tokens,
        step_flops=known(decode_flops, [dict(batch_size=1, kv_len=n) for n in seen[new_tokens // 2]]),
        prefill_flops=known(prefill_flops, [dict(batch_size=1, q_len=n) for n in kv_lens]),
        crossover_tokens=None if crossover == math.inf else crossover,
    )


def _notes(decoder: Decoder, split_s: dict[str, float], predicted: dict[str, Any]) -> list[str]:
    unseen, notes = [region for region in REGIONS if region not in split_s], []
    if split_s and unseen:
        notes.append(f"No {', '.join(unseen)} of this step can be seen from outside; its time is unattributed.")
    if decoder.shape is not None and predicted["weights_read_bytes"] is None:
        notes.append("Which weights a step reads is not known here: no roofline, and a context counts its cache alone.")
    if decoder.device.type == "cuda":
        notes.append("The split is time of the host; the GPU may lag behind it. This was not yet run on a GPU.")
    return notes
