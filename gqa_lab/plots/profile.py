"""A profile of a model's decode steps, drawn: the prediction is a line, the measurement is a dot.

A record is what `DecodeProfile.record()` returns, live or read from `benchmarks/results/`.
"""

from matplotlib.axes import Axes

from gqa_lab.plots.frame import STYLE, new_axes

SHADES = {"attention": "0.15", "append": "0.35", "projections": "0.5", "mlp": "0.65", "head": "0.8"}
UNKNOWN = {"color": "black", "marker": "o", "linestyle": "-"}  # a model whose kind of attention is not known
WORDS = {"mlp": "MLP", "append": "append", "head": "output matrix", "unattributed": "the rest"}


def step_by_context(record: dict) -> Axes:
    """Draws the milliseconds of a decode step against the context: what its bytes predict, and what was measured.

    The line is the predicted bytes of weights and cache, read at the measured bandwidth: no step is faster. Dots are
    the measured medians, hollow where they lie above the ceiling; the thin line is the one fitted through them.

    Raises:
        ValueError: for a profile without other contexts.
    """
    points, ceiling = record["sweep"], record["ceilings"]["read_bytes_per_s"]
    if not points:
        raise ValueError("this profile has no sweep; profile_decode(model, sweep=[1024, 4096]) measures one")
    axes, style = new_axes(7.0, 3.6), STYLE.get(record["sizes"].get("kind"), UNKNOWN)
    tokens, ms = [p["kv_len"] for p in points], [1000 * p["seconds"] for p in points]
    floor = [1000 * p["read_bytes"] / ceiling for p in points]
    axes.plot(tokens, floor, color=style["color"], linestyle=style["linestyle"])
    beside = -24 if floor[-1] > max(ms) / 4 else 6  # points below the line, or above one that lies at the bottom
    at = dict(textcoords="offset points", ha="right", fontsize=9)
    axes.annotate("predicted bytes, read at the ceiling", (tokens[-1], floor[-1]), (0, beside), **at)
    if record["fit"]:
        fitted = [1000 * (record["fit"]["t0_s"] + p["read_bytes"] / record["fit"]["bytes_per_s"]) for p in points]
        axes.plot(tokens, fitted, color="black", linewidth=0.8, linestyle=(0, (1, 2)))
    for n, y, point in zip(tokens, ms, points, strict=True):
        face = "none" if point["flagged"] else style["color"]
        axes.plot(n, y, style["marker"], color=style["color"], markerfacecolor=face, zorder=3)
    axes.set_xlim(0, 1.05 * max(tokens))
    axes.set_ylim(0, 1.15 * max(ms + floor))
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
    axes.set_xlabel("tokens in each sequence")
    axes.set_ylabel("ms for the next token")
    axes.set_label(_context_text(record, floor, ms))
    axes.set_title(axes.get_label().split(". ")[0], loc="left", fontsize=11)
    return axes


def step_split(record: dict) -> Axes:
    """Draws where the milliseconds of a decode step go: one bar, a part for each region, all measured.

    Raises:
        ValueError: for a profile without a split.
    """
    parts = {region: 1000 * seconds for region, seconds in record["split_s"].items()}
    if not parts:
        raise ValueError("this profile has no split: the modules of its model are not known")
    axes, left, total = new_axes(7.0, 1.6), 0.0, sum(parts.values())
    for region, ms in parts.items():
        shade = SHADES.get(region, "1.0")
        axes.barh(0, ms, left=left, color=shade, edgecolor="black", linewidth=0.6)
        if ms > 0.08 * total:
            text = f"{WORDS.get(region, region)}\n{_digits(ms)}"
            ink = "white" if float(shade) < 0.5 else "black"
            axes.text(left + ms / 2, 0, text, color=ink, ha="center", va="center", fontsize=9)
        left += ms
    axes.set_xlim(0, total)
    axes.set_yticks([])
    axes.set_xlabel("ms per token in the split pass")
    longest = max(parts, key=parts.get)
    what = WORDS.get(longest, longest)
    finding = f"{what[0].upper()}{what[1:]} takes {parts[longest] / total:.0%} of a token"
    listed = ", ".join(f"{WORDS.get(region, region)} {_digits(ms)} ms" for region, ms in parts.items())
    axes.set_label(f"{finding}. {record['model']} at {_tokens(record)}, measured: {listed}.")
    axes.set_title(finding, loc="left", fontsize=11)
    return axes


def _context_text(record: dict, floor: list[float], ms: list[float]) -> str:
    points = record["sweep"]
    first, last = points[0], points[-1]
    ends = f"from {_digits(ms[0])} to {_digits(ms[-1])} ms"
    text = f"From {first['kv_len']:,} to {last['kv_len']:,} tokens a step goes {ends}"
    text += (
        f". {record['model']}: the predicted bytes take {_digits(floor[0])} to {_digits(floor[-1])} ms at the measured "
    )
    text += f"{record['ceilings']['read_bytes_per_s'] / 1e9:.3g} GB/s"
    if record["fit"]:
        speed = record["fit"]["bytes_per_s"] / 1e9
        text += f". The line through the dots is {_digits(1000 * record['fit']['t0_s'])} ms + bytes / {speed:.3g} GB/s"
    flagged = [f"{p['kv_len']:,}" for p in points if p["flagged"]]
    return text + (f". Above the ceiling, hollow: {', '.join(flagged)} tokens." if flagged else ".")


def _tokens(record: dict) -> str:
    least, most = min(record["kv_lens"]), max(record["kv_lens"])
    return f"{most:,} tokens" if least == most else f"{least:,} to {most:,} tokens"


def _digits(value: int | float) -> str:
    """Three digits, whole numbers from 1,000 on."""
    return f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:.3g}"
