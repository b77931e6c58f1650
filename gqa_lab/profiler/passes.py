"""The passes: totals, split, bytes, other contexts. Each has a cache of its own, and returns fields of a profile."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from gqa_lab.profiler.decoders import OurDecoder, TheirDecoder
from gqa_lab.profiler.fit import fit_line, percentile
from gqa_lab.profiler.limits import cache_bytes, what_if
from gqa_lab.profiler.meter import CacheMeter
from gqa_lab.profiler.profile import LayerBytes, SweepPoint
from gqa_lab.profiler.regions import REGIONS, Event, Probe

Clock = Callable[[], float]
Decoder = OurDecoder | TheirDecoder
WARM_UP, SWEEP_TOKENS = 2, 5  # steps that are not timed; steps timed in each context, an odd number


def totals(
    decoder: Decoder, kv_lens: list[int], room: int, new_tokens: int, prefills: int, clock: Clock
) -> dict[str, Any]:
    """Returns the seconds of the first token, of each of the next, and of two readings of the clock."""
    prompts, first_token_s = [random_ids(decoder, 1, n) for n in kv_lens], []
    if prefills:
        decoder.prefill([prompt[:, :8] for prompt in prompts], decoder.new_cache(len(kv_lens), room))  # the warm-up
    for _ in range(prefills):
        cache = decoder.new_cache(len(kv_lens), room)
        start = clock()
        logits, cache = decoder.prefill(prompts, cache)
        logits.argmax(-1)
        wait(decoder)
        first_token_s.append(clock() - start)
    token_s, device_token_s = steps(decoder, cache if prefills else decoder.filled(kv_lens, room), new_tokens, clock)
    readings = [clock() for _ in range(40)]
    clock_s = 2 * min(b - a for a, b in zip(readings, readings[1:], strict=False))
    return dict(first_token_s=first_token_s, token_s=token_s, device_token_s=device_token_s, clock_s=clock_s)


def steps(decoder: Decoder, cache: Any, n_tokens: int, clock: Clock) -> tuple[list[float], list[float] | None]:
    """Returns the seconds of each step; on CUDA also those between two events around it (not yet run on a GPU)."""
    ids, seconds, on_gpu = random_ids(decoder, decoder.batch_size(cache), 1), [], []
    for _ in range(WARM_UP + n_tokens):
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if decoder.device.type == "cuda" else []
        start = clock()
        for mark in marks[:1]:
            mark.record()
        ids = decoder.step(ids, cache).argmax(-1, keepdim=True)
        for mark in marks[1:]:
            mark.record()
        wait(decoder)
        seconds.append(clock() - start)
        on_gpu += [marks[0].elapsed_time(marks[1]) / 1000] if marks else []  # it counts in milliseconds
    return seconds[WARM_UP:], on_gpu[WARM_UP:] or None


def split(decoder: Decoder, kv_lens: list[int], room: int, n_tokens: int, clock: Clock) -> dict[str, Any]:
    """Returns the seconds of each region, the events they come from, and the cache's used bytes after each step.

    A step itself is the last of its events, `unattributed` what it owns.
    """
    cache, used = decoder.filled(kv_lens, room), []
    places, probe, ids = decoder.places(cache), Probe(clock), random_ids(decoder, len(kv_lens), 1)
    step = probe.wrap(lambda ids: decoder.step(ids, cache).argmax(-1, keepdim=True), "unattributed", None)
    with probe.watching(places):
        for i in range(WARM_UP + n_tokens if places else 0):
            if i == WARM_UP:
                probe.events.clear()
            ids = step(ids)
            wait(decoder)
            used.append(sum(decoder.used(cache)))
    split_s, by_layer = by_region(probe.events)
    of_tokens = dict(split_used_bytes=used[WARM_UP:], events=probe.events)
    return dict(split_s=split_s, split_by_layer_s=by_layer) | of_tokens


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


def counted(decoder: Decoder, kv_lens: list[int], room: int) -> dict[str, Any]:
    """Returns what one step reads and writes, and the cache in bytes after it; never timed.

    Where the meter cannot see the step, what it would have counted is None, and a note says why.
    """
    cache, unseen = decoder.filled([n - 1 for n in kv_lens], room), []
    ids, meter = random_ids(decoder, len(kv_lens), 1), CacheMeter(decoder.tensors(cache))
    probe = Probe(lambda: meter.bytes_read)
    try:
        with probe.watching(decoder.places(cache)), meter:
            decoder.step(ids, cache)
    except RuntimeError as error:
        if not str(error).startswith("TrafficMeter"):
            raise
        unseen, cache = [f"No bytes were counted: {error}."], decoder.filled(kv_lens, room)
    n_layers = len(meter.cache_bytes_read)
    of_layers = [None] * n_layers if unseen else meter.cache_bytes_read
    predicted = decoder.predicted(cache) or [None] * n_layers
    rows = zip(predicted, decoder.allocated(cache), decoder.used(cache), of_layers, strict=True)
    seen = [r for r in REGIONS if any(e.region == r for e in probe.events)] if not unseen else []
    regions = {r: sum(e.own for e in probe.events if e.region == r) for r in seen}
    return dict(
        layers=[LayerBytes(*row) for row in rows],
        sequences=decoder.sequences(cache),
        copies=[] if unseen else meter.copies,
        step_read_bytes=None if unseen else meter.bytes_read,
        step_written_bytes=None if unseen else meter.bytes_written,
        region_read_bytes=regions and regions | {"unattributed": meter.bytes_read - sum(regions.values())},
        notes=unseen,
    )


def context(decoder: Decoder, kv_len: int, batch_size: int, weight_bytes: int, clock: Clock) -> SweepPoint:
    """Returns the median seconds of a step that sees `kv_len` tokens of each sequence, beside the bytes it reads."""
    before = kv_len - SWEEP_TOKENS // 2 - 1 - WARM_UP  # so that the middle one of the timed steps sees kv_len
    cache = decoder.filled([before] * batch_size, kv_len + SWEEP_TOKENS // 2)
    seconds, _ = steps(decoder, cache, SWEEP_TOKENS, clock)
    n_bytes = cache_bytes(decoder.shape, [kv_len] * batch_size, decoder.dtype.itemsize)
    return SweepPoint(kv_len, weight_bytes + n_bytes, percentile(seconds, 50))


def line(
    decoder: Decoder, kv_lens: list[int], points: list[SweepPoint], weight_bytes: int, ceiling: float
) -> dict[str, Any]:
    """Returns the line through the contexts and what it says of other caches; or a note why there is none."""
    n_bytes, seconds = [p.read_bytes for p in points], [p.seconds for p in points]
    try:
        fit = fit_line(n_bytes, seconds, ceiling_bytes_per_s=ceiling)
        rise_s = fit.seconds(max(n_bytes)) - fit.seconds(min(n_bytes))
        if fit.residual_s > rise_s / 2:
            off = f"{1000 * fit.residual_s:.3g} ms off it"
            raise ValueError(f"it would rise by {1000 * rise_s:.3g} ms where the points lie {off}")
    except ValueError as error:
        return dict(sweep=points, fit=None, what_if=[], notes=[f"No line through the contexts: {error}."])
    points = [replace(p, flagged=i in fit.flagged) for i, p in enumerate(points)]
    others = what_if(decoder.shape, kv_lens, fit, weight_bytes=weight_bytes, itemsize=decoder.dtype.itemsize)
    return dict(sweep=points, fit=fit, what_if=others, notes=[])


def random_ids(decoder: Decoder, batch_size: int, n_tokens: int) -> Int64[Tensor, "B T"]:
    """Returns token ids, the same everywhere."""
    generator = torch.Generator().manual_seed(n_tokens)  # on the CPU
    return torch.randint(decoder.vocab_size, (batch_size, n_tokens), generator=generator).to(decoder.device)


def wait(decoder: Decoder) -> None:
    """Returns when the device has done what it was told."""
    if decoder.device.type == "cuda":
        torch.cuda.synchronize(decoder.device)
