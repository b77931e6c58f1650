"""A profile in lines of fixed width, in sentences that say what to look at, and as a trace."""

import itertools
import json
import textwrap
from collections.abc import Iterable, Iterator

from gqa_lab.profiler.fit import LIMIT, percentile
from gqa_lab.profiler.regions import REGIONS

WIDTH, LABEL, COLUMN = 92, 36, 14
WORDS = {"mlp": "MLP", "append": "append to the cache", "head": "output matrix"}
SEQUENCES_SHOWN = 8


def profile_table(p: "gqa_lab.profiler.DecodeProfile") -> str:
    """Returns the report: bytes, seconds, where they go, ceilings, contexts, what if, what fits, what to look at."""
    parts = (_title, _bytes, _sequences, _seconds, _split, _roofline, _contexts, _what_if, _fits, _said)
    return "\n\n".join("\n".join(lines) for lines in (list(part(p)) for part in parts) if lines)


def _title(p) -> Iterator[str]:
    yield f"{p.model}, {p.dtype} on {p.device}: {p.how}"
    if p.sizes:
        s = p.sizes
        heads = f"{s['n_heads']} query heads on {_count(s['n_kv_heads'], 'KV head')} of {s['head_dim']}"
        yield f"{s['n_layers']} layers of {heads} ({s['kind'].upper()})"
    yield f"{_count(len(p.kv_lens), 'sequence')} of {_lens(p)} tokens, {_count(len(p.token_s), 'step')} timed"
    yield f"{p.environment['device']}, {p.environment['versions']}, {p.environment['date']}"


def _bytes(p) -> Iterator[str]:
    yield _row("BYTES OF KEYS AND VALUES", ["predicted", "allocated", "used", "read"])
    first = 0
    rows = [(r.predicted_bytes, r.allocated_bytes, r.used_bytes, r.read_bytes) for r in p.layers]
    for row, same in itertools.groupby(rows):
        last = first + len(list(same)) - 1
        yield _row(f"layer {first}" if first == last else f"each of layers {first} to {last}", map(_whole, row))
        first = last + 1
    yield _row("all layers", map(_whole, (p.predicted_bytes, p.allocated_bytes, p.used_bytes, p.read_bytes)))
    yield _row("weights, beside them", map(_whole, (p.weights_predicted_bytes, p.weights_held_bytes)))


def _sequences(p) -> Iterator[str]:
    yield _row("SEQUENCES", ["tokens", "slots", "wasted bytes", "in use"])
    for i, q in enumerate(p.sequences[:SEQUENCES_SHOWN]):
        share = _percent(q.used_bytes / (q.used_bytes + q.wasted_bytes))
        yield _row(f"sequence {i}", [_whole(q.n_tokens), _whole(q.n_slots), _whole(q.wasted_bytes), share])
    if len(p.sequences) > 1:
        sums = [_whole(sum(getattr(q, n) for q in p.sequences)) for n in ("n_tokens", "n_slots", "wasted_bytes")]
        yield _row(f"all {len(p.sequences)}", [*sums, _percent(p.occupancy)])


def _seconds(p) -> Iterator[str]:
    yield _row("MILLISECONDS", ["p50", "p90", "p99", "measured"])
    rows = (f"first token after {_lens(p)} tokens", p.first_token_s), ("next token", p.token_s)
    for label, values in (*rows, ("of it, between GPU events", p.device_token_s)):
        if values:
            yield _row(label, [*(_ms(percentile(values, n)) for n in (50, 90, 99)), f"{len(values)} x"])
    if not p.first_token_s:
        yield "The first token was not timed: the cache was filled with random numbers."
    yield f"{_number(p.tokens_per_s)} tokens per second; reading the clock takes {p.clock_s / p.step_s:.1%} of a step"


def _split(p) -> Iterator[str]:
    if p.split_s:
        total = f"a pass of its own, {_ms(p.split_total_s)} ms per token, {_number(p.slowdown)} x the totals"
        yield _row("SPLIT", ["ms", "share", "MB read", "GB/s"])
        for region, seconds in p.split_s.items():
            n_bytes = p.region_read_bytes.get(region)
            speed = _number(n_bytes / seconds / 1e9) if n_bytes and seconds > 0 else "-"
            cells = [_ms(seconds), _percent(seconds / p.split_total_s), _mb(n_bytes), speed]
            yield _row(WORDS.get(region, region), cells)
        yield total


def _roofline(p) -> Iterator[str]:
    reads, computes = (_number(x / 1e9) for x in (p.ceilings.read_bytes_per_s, p.ceilings.flops_per_s))
    yield f"CEILINGS measured here: {reads} GB/s read, {computes} GFLOP/s in a matrix product"
    if p.floor_s is not None:
        weights, cache = _mb(p.weights_read_bytes), _mb(p.cache_read_bytes)
        yield f"{weights} MB of weights and {cache} MB of cache are to be read, the mean of the steps timed"
        yield f"next token at least {_ms(p.floor_s)} ms: {p.roofline_share:.0%} of the roofline was reached"
    if p.step_read_bytes is not None:
        yield f"the meter counted {_mb(p.step_read_bytes)} MB read, {_mb(p.step_written_bytes)} MB written"
    if p.prefill_share is not None:
        yield f"first token: {p.prefill_share:.0%} of the matrix product"
    if p.crossover_tokens is not None:
        yield f"a step reads more cache than weights beyond {p.crossover_tokens:,} tokens in each sequence"


def _contexts(p) -> Iterator[str]:
    if p.sweep:
        yield _row("CONTEXT, tokens", ["MB to read", "ms", "GB/s", "line, ms"])
    for point in p.sweep:
        said = "flagged" if point.flagged else _ms(p.fit.seconds(point.read_bytes)) if p.fit else "-"
        speed = _number(point.read_bytes / point.seconds / 1e9)
        yield _row(f"{point.kv_len:,}", [_mb(point.read_bytes), _ms(point.seconds), speed, said])
    if p.fit:
        speed, share = _number(p.fit.bytes_per_s / 1e9), p.fit.bytes_per_s / p.ceilings.read_bytes_per_s
        line = f"t = {_ms(p.fit.t0_s)} ms + bytes / {speed} GB/s, {share:.0%} of the ceiling"
        off, kv_len = max((abs(q.seconds - p.fit.seconds(q.read_bytes)), q.kv_len) for q in p.sweep if not q.flagged)
        yield f"{line}; residual {_ms(p.fit.residual_s)} ms, at most {_ms(off)} ({kv_len:,} tokens)"


def _what_if(p) -> Iterator[str]:
    if p.what_if:
        yield _row(f"WHAT IF, {_lens(p)} tokens", ["cache, MB", "ms", "tokens/s"])
    for row in p.what_if:
        cells = [_ms(row.seconds), _number(len(p.kv_lens) / row.seconds)] if row.seconds > 0 else ["-", "-"]
        yield _row(row.what, [_mb(row.cache_bytes), *cells])
    if _own(p):
        heads = _count(p.sizes["n_heads"] // p.sizes["n_kv_heads"], "query head")
        yield f"every byte at the line's price, which was fitted for {heads} per KV head"


def _fits(p) -> Iterator[str]:
    if p.fits:
        how = "allocated and freed" if p.fits.tried else f"computed, {p.fits.reserve:.0%} kept free"
        held = f"beside {_number(p.weights_held_bytes / 1e9)} GB of weights"
        yield f"WHAT FITS into {_number(p.fits.memory_bytes / 1e9)} GB {held} ({how})"
        one = f"{_count(p.fits.batch_size, 'sequence')} of {max(p.kv_lens):,} tokens"
        end = ", where the model ends" if p.fits.kv_len == p.sizes["max_seq_len"] else ""
        yield f"{one}; {len(p.kv_lens)} of up to {p.fits.kv_len:,}{end}"


def _said(p) -> Iterator[str]:
    for title, texts in (("LOOK AT", p.flags), ("NOTES", p.notes)):
        if texts:
            yield title
        for text in texts:
            yield from textwrap.wrap(text, WIDTH, initial_indent="- ", subsequent_indent="  ")


def flags_of(p: "gqa_lab.profiler.DecodeProfile") -> list[str]:
    """Returns what to look at first: what is copied, wasted, or cannot be."""
    return [*_flags_of_bytes(p), *_flags_of_seconds(p)]


def _flags_of_bytes(p) -> Iterator[str]:
    if p.predicted_bytes is not None and p.predicted_bytes != p.allocated_bytes:
        times, group_size = p.allocated_bytes / p.predicted_bytes, p.sizes["n_heads"] / p.sizes["n_kv_heads"]
        why = ": keys and values are kept once per query head" if round(times, 2) == round(group_size, 2) else ""
        yield f"The cache takes {times:.3g} x what its {_count(p.sizes['n_kv_heads'], 'KV head')} need{why}."
    by_kind = sorted(p.copies, key=lambda copy: (copy.kind, copy.operation))
    for (kind, operation), copies in itertools.groupby(by_kind, lambda copy: (copy.kind, copy.operation)):
        copies = list(copies)
        layers, written = {copy.layer for copy in copies}, sum(copy.written_bytes for copy in copies)
        where = f"{_mb(written)} MB in every step, in {_count(len(layers), 'layer')}"
        yield f"Keys and values are {kind}: the operation {operation} writes {where}."
    if p.occupancy < 0.5:
        yield f"Only {_percent(p.occupancy)} of the cache is in use."


def _flags_of_seconds(p) -> Iterator[str]:
    cannot = f"above {LIMIT:.0%} of what was measured here, so it came from a cache, or is counted wrongly."
    if p.roofline_share is not None and p.roofline_share > LIMIT:
        yield f"A step reached {p.roofline_share:.0%} of the roofline: {cannot}"
    if p.prefill_share is not None and p.prefill_share > LIMIT:
        yield f"The first token reached {p.prefill_share:.0%} of the matrix product: {cannot}"
    for region, seconds in p.split_s.items() if p.device == "cpu" else ():
        n_bytes = p.region_read_bytes.get(region, 0)
        if n_bytes > LIMIT * p.ceilings.read_bytes_per_s * seconds > 0:
            speed = _number(n_bytes / seconds / 1e9)
            yield f"{WORDS.get(region, region)} read at {speed} GB/s: {cannot}"
    for point in p.sweep:
        if point.flagged:
            speed = _number(point.read_bytes / point.seconds / 1e9)
            yield f"At {point.kv_len:,} tokens a step read at {speed} GB/s, and is not in the line: {cannot}"
    if p.fit and p.fit.t0_s < 0:
        yield (
            "The line's t0 is below zero: the cache, which grew, is read more slowly than the weights, which did not. "
            "The line holds between the contexts measured; of a step that reads nothing it says nothing."
        )
    if own := _own(p):
        near = [r.what for r in p.what_if if r != own and abs(r.seconds - own.seconds) < p.fit.residual_s]
        if near:
            yield (
                f"What if: {', '.join(near)} differ from what is by less than the line's residual, "
                f"{_ms(p.fit.residual_s)} ms: measure before you believe it."
            )
    if p.clock_s > 0.01 * p.step_s:
        yield "Reading the clock takes more than 1% of a step: the times are too long by it."


def _own(p) -> "gqa_lab.profiler.profile.WhatIf | None":
    """Returns what the line says of the cache as it is; None without a line, or without other KV heads to compare."""
    return next((row for row in p.what_if if row.what.endswith("as it is")), None)


def chrome_trace(p: "gqa_lab.profiler.DecodeProfile") -> str:
    """Returns the events as JSON text in Chrome's trace format: microseconds from the first one on."""
    if not p.events:
        raise ValueError("this profile has no events: its split saw no region, or it was read from JSON")
    begin, used = min(event.start for event in p.events), iter(p.split_used_bytes)
    rows = [dict(name="process_name", ph="M", pid=1, tid=1, args={"name": f"{p.model}, split pass"})]
    for e in p.events:
        args = {"own_us": e.own * 1e6} | ({} if e.layer is None else {"layer": e.layer})
        ts, name = (e.start - begin) * 1e6, e.region if e.region in REGIONS else "token"
        rows.append(dict(name=name, cat=e.region, ph="X", pid=1, tid=1, ts=ts, dur=e.took * 1e6, args=args))
        if name == "token":
            rows.append(dict(name="KV cache", ph="C", pid=1, ts=ts + e.took * 1e6, args={"used bytes": next(used)}))
    return json.dumps({"traceEvents": rows, "displayTimeUnit": "ms", "otherData": p.environment}, allow_nan=False)


def _row(label: str, cells: Iterable[str]) -> str:
    return (f"{label:<{LABEL}}" + "".join(f"{cell:>{COLUMN}}" for cell in cells)).rstrip()


def _lens(p) -> str:
    least, most = min(p.kv_lens), max(p.kv_lens)
    return f"{most:,}" if least == most else f"{least:,} to {most:,}"


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def _whole(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _ms(seconds: int | float) -> str:
    return _number(seconds * 1000)


def _mb(n_bytes: int | float | None) -> str:
    return "-" if n_bytes is None else _number(n_bytes / 1e6)


def _percent(share: int | float) -> str:
    return f"{share:.2%}" if share < 0.1 else f"{share:.1%}"


def _number(value: int | float) -> str:
    """Three digits, whole numbers from 1,000 on."""
    return f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:.3g}"
