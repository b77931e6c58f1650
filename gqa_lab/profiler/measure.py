"""`profile_decode`: three passes that never mix. Totals (two readings of the clock), split (around regions), bytes."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gqa_lab.bandwidth import read_bandwidth, seconds_on_cpu, seconds_on_cuda
from gqa_lab.costs import decode_flops, prefill_flops, traffic_crossover, weight_bytes_held, weight_bytes_read
from gqa_lab.profiler.decoders import TheirDecoder, decoder_of
from gqa_lab.profiler.fit import fit_line, percentile
from gqa_lab.profiler.limits import (
    cache_budget,
    cache_bytes,
    check_lengths,
    check_memory,
    check_room,
    memory_bytes,
    what_fits,
    what_if,
)
from gqa_lab.profiler.meter import CacheMeter
from gqa_lab.profiler.profile import Ceilings, DecodeProfile, LayerBytes, SweepPoint
from gqa_lab.profiler.regions import REGIONS, Event, Probe
from gqa_lab.recorded import environment

Clock = Callable[[], float]
WARM_UP, SWEEP_TOKENS, LONGEST = 2, 5, 8192


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
        step: what takes a decode step, `compiled()` for instance; None means `decode_step`.
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
    decoder, kv_lens = decoder_of(model, attend, step), check_lengths(kv_len, batch_size)
    if isinstance(decoder, TheirDecoder) and len(set(kv_lens)) > 1:
        raise ValueError("a model of transformers is profiled with sequences of one length; give kv_len as a number")
    for what, value, least in (("new_tokens", new_tokens, 1), ("prefills", prefills, 0)):
        if type(value) is not int or value < least:
            raise ValueError(f"{what} must be a whole number of at least {least}, got {value!r}")
    shape, held = decoder.shape, sum(p.nbytes for p in model.parameters())
    room = check_room(shape, kv_lens, WARM_UP + new_tokens, max_seq_len)
    memory = memory_bytes(decoder.device) if memory is None else memory
    budget = cache_budget(memory, held, decoder.device)
    if shape is not None:
        check_memory(cache_bytes(shape, [room] * len(kv_lens), decoder.dtype.itemsize), budget)
    contexts = _contexts(decoder, len(kv_lens), sweep, budget)

    progress(0.0, "ceilings of this machine")
    ceilings = ceilings or measure_ceilings(decoder.device, decoder.dtype, clock)
    progress(0.1, "first token")
    first_token_s, cache = _first_tokens(decoder, kv_lens, room, prefills, clock)
    progress(0.4, "totals")
    token_s, device_token_s = _totals(decoder, cache, len(kv_lens), new_tokens, clock)
    del cache
    progress(0.5, "split")
    events, split_used_bytes = _split(decoder, kv_lens, room, new_tokens, clock)
    split_s, by_layer_s = by_region(events)
    progress(0.6, "bytes")
    counted, unseen = _bytes(decoder, kv_lens, room)
    sweep, fit, others, why_no_line = _sweep(decoder, kv_lens, contexts, ceilings, clock, progress)
    progress(1.0, "done")
    return DecodeProfile(
        environment=environment(),
        model=name or getattr(shape, "name", None) or type(model).__name__,
        how=decoder.how,
        device=decoder.device.type,
        dtype=str(decoder.dtype).removeprefix("torch."),
        sizes=_sizes(shape),
        kv_lens=kv_lens,
        warm_up_tokens=WARM_UP,
        weights_held_bytes=held,
        first_token_s=first_token_s,
        token_s=token_s,
        device_token_s=device_token_s,
        clock_s=2 * min(_one_reading_s(clock) for _ in range(20)),
        split_s=split_s,
        split_by_layer_s=by_layer_s,
        split_used_bytes=split_used_bytes,
        ceilings=ceilings,
        sweep=sweep,
        fit=fit,
        what_if=others,
        fits=None if shape is None or memory is None else
        what_fits(shape, decoder.device, kv_lens, decoder.dtype.itemsize, memory, held),
        notes=[*decoder.notes, *_notes(decoder, split_s), *unseen, *why_no_line],
        events=events,
        **counted,
        **_predicted(decoder, kv_lens, new_tokens),
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


# ---- the passes -----------------------------------------------------------------------------------------


def _first_tokens(decoder, kv_lens: list[int], room: int, n_times: int, clock: Clock) -> tuple[list[float], Any]:
    """Returns the seconds of reading the prompts, once for each time, and a cache that holds them."""
    if not n_times:
        return [], decoder.filled(kv_lens, room)
    prompts, seconds = [_random_ids(decoder, 1, n) for n in kv_lens], []
    decoder.prefill([prompt[:, :8] for prompt in prompts], decoder.new_cache(len(kv_lens), room))  # the warm-up
    for _ in range(n_times):
        cache = decoder.new_cache(len(kv_lens), room)
        start = clock()
        logits, cache = decoder.prefill(prompts, cache)
        logits.argmax(-1)
        _wait(decoder)
        seconds.append(clock() - start)
    return seconds, cache


def _totals(decoder, cache, batch_size: int, n_tokens: int, clock: Clock) -> tuple[list[float], list[float] | None]:
    """Returns the seconds of each decode step, and those of the GPU by its own events."""
    ids, seconds, on_gpu = _random_ids(decoder, batch_size, 1), [], []
    for _ in range(WARM_UP + n_tokens):
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if decoder.device.type == "cuda" else []
        start = clock()
        for mark in marks[:1]:
            mark.record()
        ids = decoder.step(ids, cache).argmax(-1, keepdim=True)
        for mark in marks[1:]:
            mark.record()
        _wait(decoder)
        seconds.append(clock() - start)
        on_gpu += [marks[0].elapsed_time(marks[1]) / 1000] if marks else []  # it counts in milliseconds
    return seconds[WARM_UP:], on_gpu[WARM_UP:] or None


def _split(decoder, kv_lens: list[int], room: int, n_tokens: int, clock: Clock) -> tuple[list[Event], list[int]]:
    """Returns the regions of each step, and the cache's used bytes after it.

    The step itself is the last of its events, `unattributed` what it owns.
    """
    cache, used = decoder.filled(kv_lens, room), []
    places, probe, ids = decoder.places(cache), Probe(clock), _random_ids(decoder, len(kv_lens), 1)
    step = probe.wrap(lambda ids: decoder.step(ids, cache).argmax(-1, keepdim=True), "unattributed", None)
    with probe.watching(places):
        for i in range(WARM_UP + n_tokens if places else 0):
            if i == WARM_UP:
                probe.events.clear()
            ids = step(ids)
            _wait(decoder)
            used.append(sum(decoder.used(cache)))
    return probe.events, used[WARM_UP:]


def by_region(events: list[Event]) -> tuple[dict[str, float], list[dict[str, float]]]:
    """Returns the seconds per token of each region, and of each region of each layer.

    They are means over the middle half of the steps, so that no pause of the machine counts, and add up to the mean of
    these steps.
    """
    tokens: list[list[Event]] = [[]]
    for event in events:
        tokens[-1].append(event)
        if event.region == "unattributed":
            tokens.append([])
    tokens = sorted(tokens[:-1], key=lambda token: token[-1].took)
    kept = tokens[len(tokens) // 4 : len(tokens) - len(tokens) // 4]
    seconds: dict[tuple[str, int | None], float] = {}
    for event in (event for token in kept for event in token):
        at = event.region, event.layer
        seconds[at] = seconds.get(at, 0.0) + event.own / len(kept)
    regions = [r for r in (*REGIONS, "unattributed") if any(region == r for region, _ in seconds)]
    layers = sorted({layer for _, layer in seconds if layer is not None})
    by_layer = [{r: seconds[r, i] for r in regions if (r, i) in seconds} for i in layers]
    return {r: sum(s for (region, _), s in seconds.items() if region == r) for r in regions}, by_layer


def _bytes(decoder, kv_lens: list[int], room: int) -> tuple[dict[str, Any], list[str]]:
    """Returns what one step reads and writes, and the cache in bytes after it; and why not, where it cannot be seen."""
    cache, unseen = decoder.filled([n - 1 for n in kv_lens], room), []
    ids, meter = _random_ids(decoder, len(kv_lens), 1), CacheMeter(decoder.tensors(cache))
    probe, read = Probe(lambda: meter.bytes_read), meter.cache_bytes_read
    try:
        with probe.watching(decoder.places(cache)), meter:
            decoder.step(ids, cache)
    except RuntimeError as error:
        if not str(error).startswith("TrafficMeter"):
            raise
        unseen, cache = [f"No bytes were counted: {error}."], decoder.filled(kv_lens, room)
        read = [None] * len(read)
    predicted = decoder.predicted(cache) or [None] * len(read)
    rows = zip(predicted, decoder.allocated(cache), decoder.used(cache), read, strict=True)
    of_regions = {} if unseen else _sum_by_region(probe.events)
    if of_regions:
        of_regions["unattributed"] = meter.bytes_read - sum(of_regions.values())
    return dict(
        layers=[LayerBytes(*row) for row in rows],
        sequences=decoder.sequences(cache),
        copies=[] if unseen else meter.copies,
        step_read_bytes=None if unseen else meter.bytes_read,
        step_written_bytes=None if unseen else meter.bytes_written,
        region_read_bytes=of_regions,
    ), unseen


def _sum_by_region(events: list[Event]) -> dict[str, int]:
    return {region: sum(e.own for e in events if e.region == region) for region in sorted({e.region for e in events})}


def _sweep(decoder, kv_lens: list[int], contexts: list[int], ceilings: Ceilings, clock: Clock, progress):
    """Returns the contexts with their seconds, the line, what it says of other caches, and why there is none."""
    if not contexts:
        return [], None, [], []
    points, itemsize, weights = [], decoder.dtype.itemsize, _or_none(_weights_read, decoder) or 0
    for i, n in enumerate(contexts):
        progress(0.65 + 0.35 * i / len(contexts), f"a context of {n:,} tokens")
        before = n - SWEEP_TOKENS // 2 - 1 - WARM_UP  # the middle one of the timed tokens sees n
        cache = decoder.filled([before] * len(kv_lens), n + SWEEP_TOKENS // 2)
        seconds, _ = _totals(decoder, cache, len(kv_lens), SWEEP_TOKENS, clock)
        n_bytes = weights + cache_bytes(decoder.shape, [n] * len(kv_lens), itemsize)
        points.append(SweepPoint(n, n_bytes, percentile(seconds, 50)))
    n_bytes, seconds = [p.read_bytes for p in points], [p.seconds for p in points]
    try:
        fit = fit_line(n_bytes, seconds, ceiling_bytes_per_s=ceilings.read_bytes_per_s)
        rise_s = fit.seconds(max(n_bytes)) - fit.seconds(min(n_bytes))
        if fit.residual_s > rise_s / 2:
            raise ValueError(
                f"it would rise by {1000 * rise_s:.3g} ms where the points lie {1000 * fit.residual_s:.3g} ms off it"
            )
    except ValueError as error:
        return points, None, [], [f"No line through the contexts: {error}."]
    points = [replace(p, flagged=i in fit.flagged) for i, p in enumerate(points)]
    return points, fit, what_if(decoder.shape, kv_lens, fit, weight_bytes=weights, itemsize=itemsize), []


# ---- what costs says ------------------------------------------------------------------------------------


def _predicted(decoder, kv_lens: list[int], new_tokens: int) -> dict[str, int | float | None]:
    """Returns what `costs` says of the timed steps; None where it does not know the model."""
    shape, itemsize = decoder.shape, decoder.dtype.itemsize
    names = ("weights_predicted_bytes", "weights_read_bytes", "cache_read_bytes", "step_flops", "prefill_flops")
    if shape is None:
        return dict.fromkeys([*names, "crossover_tokens"])
    seen = [[n + WARM_UP + i for n in kv_lens] for i in range(1, new_tokens + 1)]  # by each timed step
    sizes = dict(batch_size=len(kv_lens), weight_bytes_per_element=itemsize, kv_bytes_per_element=itemsize)
    crossover = _or_none(traffic_crossover, shape, **sizes)
    return dict(
        weights_predicted_bytes=_or_none(weight_bytes_held, shape, bytes_per_element=itemsize),
        weights_read_bytes=_or_none(_weights_read, decoder),
        cache_read_bytes=sum(cache_bytes(shape, lens, itemsize) for lens in seen) / new_tokens,
        step_flops=_sum_or_none(decode_flops, shape, [dict(kv_len=n) for n in seen[new_tokens // 2]]),
        prefill_flops=_sum_or_none(prefill_flops, shape, [dict(q_len=n) for n in kv_lens]),
        crossover_tokens=None if crossover == math.inf else crossover,
    )


def _weights_read(decoder) -> int:
    return weight_bytes_read(decoder.shape, bytes_per_element=decoder.dtype.itemsize)


def _sum_or_none(function: Callable, shape, calls: list[dict]) -> int | None:
    return _or_none(lambda: sum(function(shape, batch_size=1, **call) for call in calls))


def _or_none(function: Callable, *args, **kwargs):
    """What `costs` does not know of a model raises; the profile says None and goes on."""
    try:
        return function(*args, **kwargs)
    except ValueError:
        return None


def _sizes(shape) -> dict[str, Any]:
    names = ("n_layers", "n_heads", "n_kv_heads", "head_dim", "d_model", "vocab_size", "max_seq_len", "kind")
    return {} if shape is None else {name: getattr(shape, name) for name in (*names, "sliding_window")}


def _notes(decoder, split_s: dict[str, float]) -> Iterator[str]:
    unseen = [region for region in REGIONS if region not in split_s]
    if split_s and unseen:
        yield f"No {', '.join(unseen)} of this step can be seen from outside; its time is unattributed."
    if decoder.device.type == "cuda":
        yield "The split is time of the host; the GPU may lag behind it. The CUDA part was not yet run on a GPU."


def _contexts(decoder, batch_size: int, sweep: Sequence[int] | None, budget: int | float) -> list[int]:
    """Returns the contexts to measure: those asked for, or up to five that the model and the memory hold."""
    if decoder.shape is None or (sweep is not None and not len(sweep)):
        return []
    most, itemsize = decoder.shape.max_seq_len - SWEEP_TOKENS // 2, decoder.dtype.itemsize
    for n in sweep or ():
        if type(n) is not int or not 8 <= n <= most:
            raise ValueError(f"sweep holds {n!r}; a context must be a whole number from 8 to {most}")
        check_memory(cache_bytes(decoder.shape, [n] * batch_size, itemsize), budget)
    if sweep:
        return list(sweep)
    top = min(most, LONGEST)
    while top > 8 and cache_bytes(decoder.shape, [top] * batch_size, itemsize) > budget:
        top //= 2
    top -= top % 64 if top >= 512 else 0
    return sorted({n for n in (top // 8, top // 4, top // 2, top * 3 // 4, top) if n >= 8})


def _random_ids(decoder, batch_size: int, n_tokens: int) -> Tensor:
    generator = torch.Generator().manual_seed(n_tokens)  # on the CPU: the same tokens everywhere
    return torch.randint(decoder.vocab_size, (batch_size, n_tokens), generator=generator).to(decoder.device)


def _wait(decoder) -> None:
    if decoder.device.type == "cuda":
        torch.cuda.synchronize(decoder.device)


def _one_reading_s(clock: Clock) -> float:
    start = clock()
    return clock() - start
