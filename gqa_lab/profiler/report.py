"""A profile in lines of fixed width, in sentences that say what to look at, and as a trace."""

import itertools
import json
import textwrap
from collections.abc import Sequence

from gqa_lab.profiler.fit import LIMIT, percentile
from gqa_lab.profiler.regions import REGIONS

WIDTH, LABEL, COLUMN = 100, 36, 16
WORDS = {"mlp": "MLP", "append": "append to the cache", "head": "output matrix"}
ROWS_SHOWN = 8


def profile_table(p: "gqa_lab.profiler.DecodeProfile") -> str:
    """Returns the report: bytes, seconds, where they go, the ceiling, the line, what fits, what if, what to look at."""
    parts = [_title(p), _bytes(p), _seconds(p), _split(p), _roofline(p), _line_and_contexts(p), _what_if(p), _fits(p)]
    for title, said in (("look at", p.flags), ("notes", p.notes)):
        parts.append([title.upper(), *(line for text in said for line in _bullet(text))] if said else [])
    return "\n\n".join("\n".join(part) for part in parts if part)


def _title(p) -> list[str]:
    s = p.sizes
    heads = (
        f"{s['n_heads']} query heads on {s['n_kv_heads']} KV heads of {s['head_dim']} ({s['kind'].upper()})"
        if s
        else ""
    )
    made = p.environment
    return [
        f"{p.model}, {p.dtype} on {p.device}, {p.how}",
        *([f"{heads}, {s['n_layers']} layers"] if s else []),
        f"{_sequences(p.kv_lens)}, {p.new_tokens} new ones timed after {p.warm_up_tokens} that are not",
        f"{made['device']}, {made['versions']}, {made['date']}",
    ]


def _bytes(p) -> list[str]:
    lines = [_row("BYTES OF K AND V", ["predicted", "allocated", "used", "read by a step"])]
    rows = [(r.predicted_bytes, r.allocated_bytes, r.used_bytes, r.read_bytes) for r in p.layers]
    first = 0
    for row, same in itertools.groupby(rows):
        last = first + len(list(same)) - 1
        lines.append(_row(f"layer {first}" if first == last else f"each of layers {first}-{last}", map(_whole, row)))
        first = last + 1
    total = (p.predicted_bytes, p.allocated_bytes, p.used_bytes, p.read_bytes)
    lines.append(_row("all layers", map(_whole, total)))
    lines.append(_row("SEQUENCES", ["tokens", "slots", "wasted bytes", "in use"]))
    for i, q in enumerate(p.sequences[:ROWS_SHOWN]):
        lines.append(
            _row(
                f"sequence {i}", [_whole(q.n_tokens), _whole(q.n_slots), _whole(q.wasted_bytes), _percent(q.occupancy)]
            )
        )
    wasted = sum(q.wasted_bytes for q in p.sequences)
    if len(p.sequences) > 1:
        n_tokens, n_slots = (sum(getattr(q, name) for q in p.sequences) for name in ("n_tokens", "n_slots"))
        label = f"all {len(p.sequences)}"
        lines.append(_row(label, [_whole(n_tokens), _whole(n_slots), _whole(wasted), _percent(p.occupancy)]))
    return lines


def _seconds(p) -> list[str]:
    lines = [_row("MILLISECONDS", ["p50", "p90", "p99", "measured"])]
    prompt = f"first token, prompt of {_lens(p.kv_lens)}"
    for label, values in ((prompt, p.first_token_s), ("next token", p.token_s), ("of it, GPU", p.device_token_s)):
        if values:
            lines.append(_row(label, [*(_ms(percentile(values, n)) for n in (50, 90, 99)), f"{len(values)}"]))
    if not p.first_token_s:
        lines.append("first token: not measured, the cache was filled with random numbers")
    overhead = p.clock_s / p.step_s
    lines.append(f"{_number(p.tokens_per_s)} tokens per second of all sequences; reading the clock took {overhead:.3%}")
    return lines


def _split(p) -> list[str]:
    if not p.split_s:
        return []
    lines = [
        f"SPLIT: a pass of its own, {_ms(p.split_total_s)} ms a token, {_number(p.slowdown)} x the totals above",
        _row("", ["ms", "share", "MB read", "GB/s"]),
    ]
    for region, seconds in p.split_s.items():
        n_bytes = p.region_read_bytes.get(region)
        speed = f"{n_bytes / seconds / 1e9:.3g}" if n_bytes and seconds > 0 and region != "unattributed" else "-"
        cells = [_ms(seconds), _percent(seconds / p.split_total_s), _mb(n_bytes), speed]
        lines.append(_row(WORDS.get(region, region), cells))
    return lines


def _roofline(p) -> list[str]:
    c = p.ceilings
    lines = [
        f"ROOFLINE: measured here {_number(c.read_bytes_per_s / 1e9)} GB/s read, {_number(c.flops_per_s / 1e9)} GFLOP/s"
    ]
    if p.floor_s is not None:
        lines.append(
            f"a step reads {_mb(p.weights_read_bytes)} MB of weights and {_mb(p.cache_read_bytes)} MB of cache (by costs), "
            f"so at least {_ms(p.floor_s)} ms: it reached {p.roofline_share:.0%}"
        )
    if p.step_read_bytes is not None:
        lines.append(f"the meter counted {_mb(p.step_read_bytes)} MB read and {_mb(p.step_written_bytes)} MB written")
    if p.prefill_flops and p.first_token_s:
        rate = p.prefill_flops / percentile(p.first_token_s, 50)
        lines.append(f"the prompt: {_number(rate / 1e9)} GFLOP/s, {rate / c.flops_per_s:.0%} of the matrix product")
    if p.crossover_tokens is not None:
        lines.append(f"cache outweighs weights in what a step reads beyond {p.crossover_tokens:,} tokens per sequence")
    return [line for text in lines for line in textwrap.wrap(text, WIDTH)]


def _line_and_contexts(p) -> list[str]:
    if not p.sweep:
        return []
    lines = [_row("CONTEXT, tokens", ["MB read", "ms", "GB/s", "line, ms"])]
    for point in p.sweep:
        said = "flagged" if point.flagged else _ms(p.fit.seconds(point.read_bytes)) if p.fit else "-"
        speed = f"{point.read_bytes / point.seconds / 1e9:.3g}"
        lines.append(_row(f"{point.kv_len:,}", [_mb(point.read_bytes), _ms(point.seconds), speed, said]))
    if p.fit:
        share = p.fit.bytes_per_s / p.ceilings.read_bytes_per_s
        lines.append(
            f"t = {_ms(p.fit.t0_s)} ms + bytes / {_number(p.fit.bytes_per_s / 1e9)} GB/s ({share:.0%} of the ceiling), "
            f"residual {_ms(p.fit.residual_s)} ms"
        )
    return lines


def _what_if(p) -> list[str]:
    if not p.what_if:
        return []
    lines = [_row(f"WHAT IF, {_lens(p.kv_lens)} (the line)", ["cache, MB", "ms", "tokens/s"])]
    for row in p.what_if:
        cells = [_mb(row.cache_bytes), _ms(row.seconds), _number(len(p.kv_lens) / row.seconds)]
        lines.append(_row(row.what, cells))
    return lines


def _fits(p) -> list[str]:
    if p.fits is None:
        return []
    f = p.fits
    how = "allocated and freed" if f.tried else f"computed, {f.reserve:.0%} kept free"
    return [
        f"WHAT FITS into {_number(f.memory_bytes / 1e9)} GB ({how}) beside {_number(f.held_bytes / 1e9)} GB of weights",
        f"{f.batch_size:,} sequences of {max(p.kv_lens):,} tokens, or {len(p.kv_lens)} of {f.kv_len:,}",
    ]


def flags_of(p: "gqa_lab.profiler.DecodeProfile") -> list[str]:
    """Returns what to look at first: what is copied, wasted, or cannot be."""
    found = []
    if p.predicted_bytes is not None and p.predicted_bytes != p.allocated_bytes:
        times = p.allocated_bytes / p.predicted_bytes
        why = ""
        if (
            p.sizes["n_heads"] != p.sizes["n_kv_heads"]
            and round(times, 2) == p.sizes["n_heads"] / p.sizes["n_kv_heads"]
        ):
            why = ": keys and values are kept once for each query head"
        found.append(f"The cache holds {times:.3g} x the bytes that its {p.sizes['n_kv_heads']} KV heads need{why}.")
    for (kind, operation), copies in _grouped(p.copies):
        n_layers, n_bytes = len({c.layer for c in copies}), sum(c.written_bytes for c in copies)
        found.append(
            f"Keys and values are {kind}: {operation} writes {_mb(n_bytes)} MB of them in every step, in {n_layers} "
            f"layer{'s' if n_layers > 1 else ''}."
        )
    if p.occupancy < 0.5:
        found.append(f"Only {_percent(p.occupancy)} of the cache is in use.")
    ceiling = p.ceilings.read_bytes_per_s
    if p.roofline_share is not None and p.roofline_share > LIMIT:
        found.append(_impossible(f"A step reached {p.roofline_share:.0%} of the roofline"))
    if p.prefill_flops and p.first_token_s:
        share = p.prefill_flops / percentile(p.first_token_s, 50) / p.ceilings.flops_per_s
        if share > LIMIT:
            found.append(f"The prompt reached {share:.0%} of the measured matrix product: measure the ceiling again.")
    for region, seconds in p.split_s.items():
        n_bytes = p.region_read_bytes.get(region, 0) if region != "unattributed" else 0
        if n_bytes > LIMIT * ceiling * seconds and p.device == "cpu":
            found.append(_impossible(f"{WORDS.get(region, region)} read at {_number(n_bytes / seconds / 1e9)} GB/s"))
    for point in p.sweep:
        if point.flagged:
            speed = _number(point.read_bytes / point.seconds / 1e9)
            found.append(_impossible(f"At {point.kv_len:,} tokens a step read at {speed} GB/s, and is not in the line"))
    if p.fit and p.fit.t0_s < 0:
        found.append(
            "The line's t0 is below zero: the growing part, the cache, is read more slowly than the weights. Between "
            "the contexts measured the line holds; it says nothing of a step that reads nothing."
        )
    if p.clock_s > 0.01 * p.step_s:
        found.append("Reading the clock took more than 1% of a step.")
    return found


def chrome_trace(p: "gqa_lab.profiler.DecodeProfile") -> str:
    """Returns the events as JSON text in Chrome's trace format, microseconds from the first of them."""
    if not p.events:
        raise ValueError("this profile has no events: its split saw no region, or it was read from JSON")
    begin, rows, n_token = min(e.start for e in p.events), [], 0
    whole = dict(pid=1, tid=1)
    rows.append(dict(whole, name="process_name", ph="M", args={"name": f"{p.model}, split pass"}))
    per_token = p.used_bytes // max(1, sum(q.n_tokens for q in p.sequences)) * len(p.kv_lens)
    for e in p.events:
        is_token = e.region not in REGIONS
        name = f"token {n_token}" if is_token else e.region
        args = {} if e.layer is None else {"layer": e.layer}
        at = dict(ts=(e.start - begin) * 1e6, dur=e.took * 1e6)
        rows.append(dict(whole, **at, name=name, cat=e.region, ph="X", args=args | {"own_us": e.own * 1e6}))
        if is_token:
            used = min(p.allocated_bytes, p.used_bytes + (p.warm_up_tokens + n_token + 1) * per_token)
            counts = {"used": used, "free": p.allocated_bytes - used}
            rows.append(dict(pid=1, name="KV cache, bytes", ph="C", ts=at["ts"], args=counts))
            n_token += 1
    return json.dumps({"traceEvents": rows, "displayTimeUnit": "ms", "otherData": p.environment}, allow_nan=False)


def _grouped(copies: Sequence) -> list:
    kinds: dict[tuple[str, str], list] = {}
    for copy in copies:
        kinds.setdefault((copy.kind, copy.operation), []).append(copy)
    return list(kinds.items())


def _impossible(what: str) -> str:
    return f"{what}: above {LIMIT:.0%} of what was measured here, so it came from a cache, or is counted wrongly."


def _row(label: str, cells) -> str:
    return (f"{label:<{LABEL}}" + "".join(f"{cell:>{COLUMN}}" for cell in cells)).rstrip()


def _bullet(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent="- ", subsequent_indent="  ")


def _lens(kv_lens: list[int]) -> str:
    return f"{max(kv_lens):,}" if len(set(kv_lens)) == 1 else f"{min(kv_lens):,} to {max(kv_lens):,}"


def _sequences(kv_lens: list[int]) -> str:
    return f"{len(kv_lens)} sequence{'s' if len(kv_lens) > 1 else ''} of {_lens(kv_lens)} tokens"


def _whole(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.3g}" if abs(seconds) < 1 else f"{seconds * 1000:,.0f}"


def _mb(n_bytes: float | None) -> str:
    return "-" if n_bytes is None else f"{n_bytes / 1e6:,.0f}" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.3g}"


def _percent(share: float) -> str:
    return f"{share:.2%}" if share < 0.1 else f"{share:.1%}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
