"""`profile_decode`: three passes that never mix. Totals (two readings of the clock), split (around regions), bytes."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gqa_lab.bandwidth import read_bandwidth, seconds_on_cpu, seconds_on_cuda
from gqa_lab.costs import (
    decode_flops,
    kv_cache_bytes,
    n_parameters,
    prefill_flops,
    traffic_crossover,
    weight_bytes_read,
)
from gqa_lab.profiler.decoders import TheirDecoder, decoder_of
from gqa_lab.profiler.fit import fit_line, percentile
from gqa_lab.profiler.limits import RESERVE, cache_bytes, memory_bytes, what_fits, what_if
from gqa_lab.profiler.meter import CacheMeter
from gqa_lab.profiler.profile import Ceilings, DecodeProfile, LayerBytes, SweepPoint, middle
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
    progress: Callable[[float, str], None] | None = None,
) -> DecodeProfile:
    """Returns where the bytes and the seconds of a model's decode steps go, beside what `costs` predicts.

    Three passes, each with a cache of its own, so that none disturbs another: *totals* read the clock twice per token;
    *split* reads it around every region and is slower for it; *bytes* counts one step under a `TrafficMeter`, untimed.
    Then other contexts, for the line t = t0 + bytes / bandwidth.

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
        progress: is told which part is done, from 0 to 1, and what comes.

    Raises:
        ValueError: for sizes that cannot be, or that neither model nor memory hold.

    Example:
        >>> from gqa_lab.checkpoint import load_pretrained, smollm2_path
        >>> model, _ = load_pretrained(smollm2_path())                     # doctest: +SKIP
        >>> print(profile_decode(model, kv_len=1000).table())              # doctest: +SKIP
    """
    decoder, tell = decoder_of(model, attend, step), progress or (lambda share, what: None)
    kv_lens = _lengths(kv_len, batch_size)
    if isinstance(decoder, TheirDecoder) and len(set(kv_lens)) > 1:
        raise ValueError("a model of transformers is profiled with sequences of one length; give kv_len as a number")
    for what, value, least in (("new_tokens", new_tokens, 1), ("prefills", prefills, 0)):
        if type(value) is not int or value < least:
            raise ValueError(f"{what} must be a whole number of at least {least}, got {value!r}")
    room = _room(decoder.shape, kv_lens, new_tokens, max_seq_len)
    memory = memory_bytes(decoder.device) if memory is None else memory
    _check_memory(decoder, kv_lens, room, memory)
    contexts = _contexts(decoder, len(kv_lens), sweep, memory)

    tell(0.0, "ceilings of this machine")
    ceilings = ceilings or measure_ceilings(decoder.device, decoder.dtype, clock)
    tell(0.1, "first token")
    first_token_s, cache = _first_tokens(decoder, kv_lens, room, prefills, clock)
    tell(0.4, "totals")
    token_s, device_token_s = _totals(decoder, cache, len(kv_lens), new_tokens, clock)
    del cache
    tell(0.5, "split")
    events = _split(decoder, decoder.filled(kv_lens, room), len(kv_lens), new_tokens, clock)
    tell(0.6, "bytes")
    counted = _bytes(decoder, kv_lens, room)
    points = []
    for i, n in enumerate(contexts):
        tell(0.65 + 0.35 * i / len(contexts), f"a context of {n:,} tokens")
        points.append(_sweep_point(decoder, n, len(kv_lens), clock))
    tell(1.0, "done")
    return _put_together(
        decoder, kv_lens, room, new_tokens, name=name, ceilings=ceilings, memory=memory, first_token_s=first_token_s,
        token_s=token_s, device_token_s=device_token_s, events=events, counted=counted, points=points,
        clock_s=2 * min(_one_reading_s(clock) for _ in range(20)),
    )  # fmt: skip


def measure_ceilings(device: torch.device, dtype: torch.dtype, clock: Clock = time.perf_counter) -> Ceilings:
    """Returns the bytes per second that this machine reads, and the FLOPs per second of a product of large matrices."""
    on_cuda = device.type == "cuda"
    seconds = seconds_on_cuda if on_cuda else lambda call: seconds_on_cpu(call, clock)
    n = 8192 if on_cuda else 1024
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    best = min(seconds(lambda: a @ b) for _ in range(4))
    return Ceilings(read_bytes_per_s=read_bandwidth(device, seconds=seconds), flops_per_s=2 * n**3 / best)


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
    """Returns the seconds of each decode step, and those of the GPU by its own events. (Not yet run on a GPU.)"""
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


def _split(decoder, cache, batch_size: int, n_tokens: int, clock: Clock) -> list[Event]:
    """Returns the regions of each step; a step itself is the last of its events, `unattributed` in what it owns."""
    places = decoder.places(cache)
    if not places:
        return []
    probe, ids = Probe(clock), _random_ids(decoder, batch_size, 1)
    whole = probe.wrap(lambda ids: decoder.step(ids, cache).argmax(-1, keepdim=True), "unattributed", None)
    with probe.watching(places):
        for i in range(WARM_UP + n_tokens):
            if i == WARM_UP:
                probe.events.clear()
            ids = whole(ids)
            _wait(decoder)
    return probe.events


def _bytes(decoder, kv_lens: list[int], room: int) -> dict[str, Any]:
    """Returns what one step reads and writes, and the cache in bytes after it."""
    cache, n_layers = decoder.filled([n - 1 for n in kv_lens], room), 0
    n_layers = len(decoder.allocated(cache))
    ids, meter = _random_ids(decoder, len(kv_lens), 1), CacheMeter(decoder.tensors(cache))
    probe, seen = Probe(lambda: meter.bytes_read), {"reason": None}
    try:
        with probe.watching(decoder.places(cache)), meter:
            decoder.step(ids, cache)
    except RuntimeError as error:
        if not str(error).startswith("TrafficMeter"):
            raise
        seen, cache = {"reason": str(error)}, decoder.filled(kv_lens, room)
    regions = {r: sum(e.own for e in probe.events if e.region == r) for r in {e.region for e in probe.events}}
    if seen["reason"] is None:
        seen |= dict(read=meter.bytes_read, written=meter.bytes_written, copies=meter.copies, regions=regions)
        seen |= dict(of_layers=meter.cache_bytes_read)
    predicted = decoder.predicted(cache) or [None] * n_layers
    rows = zip(
        predicted, decoder.allocated(cache), decoder.used(cache), seen.get("of_layers", [None] * n_layers), strict=True
    )
    layers = [LayerBytes(predicted_bytes=p, allocated_bytes=a, used_bytes=u, read_bytes=r) for p, a, u, r in rows]
    return seen | dict(layers=layers, sequences=decoder.sequences(cache))


def _sweep_point(decoder, kv_len: int, batch_size: int, clock: Clock) -> SweepPoint:
    """Returns the median seconds of steps that see `kv_len` tokens, the middle one exactly so many."""
    before = kv_len - WARM_UP - SWEEP_TOKENS // 2 - 1
    cache = decoder.filled([before] * batch_size, kv_len + SWEEP_TOKENS // 2)
    seconds, _ = _totals(decoder, cache, batch_size, SWEEP_TOKENS, clock)
    read = _weights_read(decoder) or 0
    read += batch_size * kv_cache_bytes(
        decoder.shape, batch_size=1, kv_len=kv_len, bytes_per_element=decoder.dtype.itemsize
    )
    return SweepPoint(kv_len=kv_len, read_bytes=read, seconds=percentile(seconds, 50))


def _put_together(
    decoder, kv_lens, room, new_tokens, *, name, ceilings, memory, first_token_s, token_s, device_token_s, events,
    counted, points, clock_s,
) -> DecodeProfile:  # fmt: skip
    """Returns the profile: what was measured beside what `costs` says of the same."""
    shape, itemsize = decoder.shape, decoder.dtype.itemsize
    held = sum(p.nbytes for p in decoder.model.parameters())
    weights_read = _weights_read(decoder)
    seen = [[n + WARM_UP + 1 + i for n in kv_lens] for i in range(new_tokens)]
    cache_read = flops = floor_s = of_prompts = crossover = fits = None
    notes, made_line, other_caches = [*decoder.notes], None, []
    if shape is not None:
        cache_read = sum(cache_bytes(shape, lens, itemsize) for lens in seen) / new_tokens
        flops = _or_none(lambda: sum(decode_flops(shape, batch_size=1, kv_len=n) for n in seen[new_tokens // 2]))
        of_prompts = _or_none(lambda: sum(prefill_flops(shape, batch_size=1, q_len=n) for n in kv_lens))
        crossover = _or_none(lambda: _finite(traffic_crossover(
            shape, batch_size=len(kv_lens), weight_bytes_per_element=itemsize, kv_bytes_per_element=itemsize)))  # fmt: skip
        if memory is not None:
            fits = what_fits(
                shape, decoder.device, kv_lens, bytes_per_element=itemsize, held_bytes=held, memory_bytes=memory
            )
    if weights_read is not None and flops is not None:
        floor_s = max((weights_read + cache_read) / ceilings.read_bytes_per_s, flops / ceilings.flops_per_s)
    if points:
        try:
            made_line = fit_line(
                [p.read_bytes for p in points], [p.seconds for p in points],
                ceiling_bytes_per_s=ceilings.read_bytes_per_s,
            )  # fmt: skip
            points = [replace(p, flagged=i in made_line.flagged) for i, p in enumerate(points)]
            other_caches = what_if(
                shape, kv_lens, made_line, weight_bytes=weights_read or 0, bytes_per_element=itemsize
            )
        except ValueError as error:
            notes.append(f"No line through the contexts: {error}.")
    if counted["reason"]:
        notes.append(f"No bytes were counted: {counted['reason']}.")
    split_s, by_layer, split_token_s = _by_region(events, len(counted["layers"]))
    notes += _notes_of_split(decoder, split_s)
    return DecodeProfile(
        environment=environment(),
        model=name or getattr(shape, "name", None) or type(decoder.model).__name__,
        how=decoder.how,
        device=decoder.device.type,
        dtype=str(decoder.dtype).removeprefix("torch."),
        sizes=_sizes(shape),
        kv_lens=kv_lens,
        max_seq_len=room,
        new_tokens=new_tokens,
        warm_up_tokens=WARM_UP,
        layers=counted["layers"],
        sequences=counted["sequences"],
        copies=counted.get("copies", []),
        weights_predicted_bytes=_or_none(lambda: n_parameters(shape) * itemsize) if shape else None,
        weights_held_bytes=held,
        weights_read_bytes=weights_read,
        cache_read_bytes=cache_read,
        step_read_bytes=counted.get("read"),
        step_written_bytes=counted.get("written"),
        first_token_s=first_token_s,
        token_s=token_s,
        device_token_s=device_token_s,
        clock_s=clock_s,
        split_token_s=split_token_s,
        split_s=split_s,
        split_by_layer_s=by_layer,
        region_read_bytes=counted.get("regions", {}),
        ceilings=ceilings,
        floor_s=floor_s,
        prefill_flops=of_prompts,
        crossover_tokens=crossover,
        sweep=points,
        fit=made_line,
        fits=fits,
        what_if=other_caches,
        notes=notes,
        events=events,
    )


def _by_region(events: list[Event], n_layers: int) -> tuple[dict[str, float], list[dict[str, float]], list[float]]:
    """Returns seconds per token by region, by layer and region, and of each whole step.

    A mean over the middle half of the steps, so that no pause of the machine counts; the regions and the rest add up.
    """
    tokens: list[list[Event]] = [[]]
    for event in events:
        tokens[-1].append(event)
        if event.region == "unattributed":
            tokens.append([])
    tokens.pop()
    token_s = [token[-1].took for token in tokens]
    kept = [event for i in middle(token_s) for event in tokens[i]]
    n_kept = len(middle(token_s))
    by_region: dict[str, float] = {}
    by_layer: list[dict[str, float]] = [{} for _ in range(n_layers)]
    for event in kept:
        by_region[event.region] = by_region.get(event.region, 0.0) + event.own / n_kept
        if event.layer is not None:
            at = by_layer[event.layer]
            at[event.region] = at.get(event.region, 0.0) + event.own / n_kept
    ordered = [r for r in (*REGIONS, "unattributed") if r in by_region]
    return {r: by_region[r] for r in ordered}, by_layer, token_s


def _notes_of_split(decoder, split_s: dict[str, float]) -> list[str]:
    notes = []
    unseen = [r for r in REGIONS if r not in split_s]
    if split_s and unseen:
        notes.append(
            f"The step calls no {', '.join(unseen)} that can be seen from outside; their time is unattributed."
        )
    if decoder.device.type == "cuda":
        notes.append("The split is time of the host; the GPU works on while it goes ahead. Not yet run on a GPU.")
    return notes


def _sizes(shape) -> dict[str, Any]:
    names = ("n_layers", "n_heads", "n_kv_heads", "head_dim", "d_model", "vocab_size", "max_seq_len")
    names += ("sliding_window", "kind")
    return {} if shape is None else {name: getattr(shape, name) for name in names}


def _weights_read(decoder) -> int | None:
    if decoder.shape is None:
        return None
    return _or_none(lambda: weight_bytes_read(decoder.shape, bytes_per_element=decoder.dtype.itemsize))


def _or_none(compute: Callable):
    """What `costs` does not know of a model raises; the profile says None and goes on."""
    try:
        return compute()
    except ValueError:
        return None


def _finite(tokens: int | float) -> int | None:
    return None if tokens == math.inf else tokens


def _lengths(kv_len: int | Sequence[int], batch_size: int | None) -> list[int]:
    """Returns the tokens of each sequence."""
    several = isinstance(kv_len, list | tuple)
    batch_size = len(kv_len) if batch_size is None and several else 1 if batch_size is None else batch_size
    if type(batch_size) is not int or batch_size < 1:
        raise ValueError(f"batch_size must be a whole number of at least 1, got {batch_size!r}")
    lens = list(kv_len) if several else [kv_len] * batch_size
    if len(lens) != batch_size:
        raise ValueError(f"kv_len has {len(lens)} lengths and batch_size is {batch_size}; leave batch_size out")
    for n in lens:
        if type(n) is not int or n < 2:
            raise ValueError(f"kv_len must be a whole number of at least 2, or a list of such numbers, got {n!r}")
    return lens


def _room(shape, kv_lens: list[int], new_tokens: int, max_seq_len: int | None) -> int:
    """Returns the tokens that each sequence's buffers need, or more if asked for."""
    needed = max(kv_lens) + WARM_UP + new_tokens
    if shape is not None and needed > shape.max_seq_len:
        raise ValueError(
            f"kv_len ({max(kv_lens)}) with {WARM_UP} tokens of warm-up and {new_tokens} new ones exceeds the model's "
            f"{shape.max_seq_len} positions; at most {shape.max_seq_len - WARM_UP - new_tokens} fit"
        )
    if max_seq_len is None:
        return needed
    if type(max_seq_len) is not int or max_seq_len < needed:
        raise ValueError(f"max_seq_len must be at least {needed} (kv_len, warm-up, new tokens), got {max_seq_len!r}")
    return max_seq_len


def _check_memory(decoder, kv_lens: list[int], room: int, memory: int | None) -> None:
    if decoder.shape is None or memory is None:
        return
    needed = cache_bytes(decoder.shape, [room] * len(kv_lens), decoder.dtype.itemsize)
    held = sum(p.nbytes for p in decoder.model.parameters()) if decoder.device.type == "cpu" else 0
    if needed + held > (1 - RESERVE) * memory:
        raise ValueError(
            f"the cache ({needed / 1e9:.3g} GB) does not fit beside the weights ({held / 1e9:.3g} GB) into "
            f"{1 - RESERVE:.0%} of {memory / 1e9:.3g} GB; take fewer or shorter sequences"
        )


def _contexts(decoder, batch_size: int, sweep: Sequence[int] | None, memory: int | None) -> list[int]:
    """Returns the contexts to measure: those asked for, or five up to the longest that model and memory hold."""
    if decoder.shape is None:
        return []
    most = decoder.shape.max_seq_len - SWEEP_TOKENS // 2
    if sweep is not None:
        for n in sweep:
            if type(n) is not int or not 8 <= n <= most:
                raise ValueError(f"sweep holds {n!r}; a context must be a whole number from 8 to {most}")
            _check_memory(decoder, [n] * batch_size, n + SWEEP_TOKENS // 2, memory)
        return list(sweep)
    top = min(most, LONGEST)
    while top > 8 and not _fits(decoder, batch_size, top, memory):
        top //= 2
    top = top // 64 * 64 if top >= 512 else top
    return sorted({n for n in (top // 8, top // 4, top // 2, top * 3 // 4, top) if n >= 8})


def _fits(decoder, batch_size: int, kv_len: int, memory: int | None) -> bool:
    try:
        _check_memory(decoder, [kv_len] * batch_size, kv_len, memory)
    except ValueError:
        return False
    return True


def _random_ids(decoder, batch_size: int, n_tokens: int) -> Tensor:
    generator = torch.Generator().manual_seed(n_tokens)  # on the CPU, the same tokens everywhere
    return torch.randint(decoder.vocab_size, (batch_size, n_tokens), generator=generator).to(decoder.device)


def _wait(decoder) -> None:
    if decoder.device.type == "cuda":
        torch.cuda.synchronize(decoder.device)


def _one_reading_s(clock: Clock) -> float:
    start = clock()
    return clock() - start
