"""What each rung of the decode loop takes, recorded, against the bytes that it has to move."""

from collections.abc import Mapping

from matplotlib.axes import Axes

from gqa_lab.plots.frame import new_axes
from gqa_lab.recorded import provenance

MARKS = {  # of each rung: shape and filling
    "concatenated": ("x", "black"),
    "preallocated": ("P", "white"),
    "grouped": ("D", "white"),
    "compiled": ("D", "black"),
    "captured": ("s", "white"),
    "captured, compiled": ("s", "#888888"),
    "captured, compiled, triton": ("s", "black"),
}


def ladder(record: Mapping, *, model: str, dtype: str) -> Axes:
    """Draws the ms of a token against the MB that its rung moves: a dot for each context; the wedge is reading alone.

    Args:
        record: `recorded("cpu_ladder")` or `recorded("gpu_ladder")`.
        model, dtype: of the rows to draw.

    Raises:
        ValueError: if the record has no such rows.
    """
    rows = rows_of(record, model, dtype)
    axes, longest = new_axes(width=7.5, height=4.2), max(row["kv_len"] for row in rows)
    end = 1.3 * max(row["moved_mb"] for row in rows)
    slowest, fastest = record["read_gb_per_s_min_max"]  # MB by GB/s are ms
    axes.fill_between([0, end], [0, end / fastest], [0, end / slowest], facecolor="#dddddd", edgecolor="#888888")
    axes.annotate(
        f"reading alone,\n{slowest:.3g} to {fastest:.3g} GB/s",
        (end, end / fastest),
        (-4, -18),
        textcoords="offset points",
        ha="right",
        va="top",
        fontsize=9,
    )
    for rung, (marker, fill) in MARKS.items():
        dots = [row for row in rows if row["rung"] == rung]
        look = {"color": "black"} if marker == "x" else {"facecolor": fill, "edgecolor": "black"}
        axes.scatter(
            [row["moved_mb"] for row in dots], [row["ms"] for row in dots], marker=marker, s=44, zorder=3, **look
        )
        for row in dots:
            if row["kv_len"] == longest:
                axes.annotate(rung, (row["moved_mb"], row["ms"]), textcoords="offset points", **_place(rung))
    axes.set_xlim(0, end)
    axes.set_ylim(0, 1.12 * max(row["ms"] for row in rows))
    contexts = sorted({row["kv_len"] for row in rows})
    axes.set_xlabel(
        f"MB moved for a token: weights, and K and V as often as the rung moves them\n{model}, {dtype}, batch 1, after "
        f"{', '.join(f'{n:,}' for n in contexts)} tokens; median of {record['turns']} turns\n{provenance(record)}"
    )
    axes.set_ylabel("ms for a token")
    axes.set_label(ladder_text(record, model=model, dtype=dtype))
    axes.set_title(axes.get_label().split(". ")[0], loc="left", fontsize=11)
    return axes


def _place(rung: str) -> dict:
    """Where the name of a rung stands: those that move the same bytes stand above each other."""
    if rung == "grouped":
        return {"xytext": (-8, 4), "ha": "right", "va": "center"}
    return {"xytext": (8, -9 if rung == "compiled" else 0), "va": "center"}


def ladder_text(record: Mapping, *, model: str, dtype: str) -> str:
    """Returns the figure of `ladder` in words."""
    rows = rows_of(record, model, dtype)
    longest = max(row["kv_len"] for row in rows)
    last = {row["rung"]: row for row in rows if row["kv_len"] == longest}
    least = min(row["moved_mb"] for row in last.values())
    best = min(last.values(), key=lambda row: row["ms"])
    worst = max(last.values(), key=lambda row: row["ms"])
    slowest, fastest = record["read_gb_per_s_min_max"]
    times = ", ".join(f"{rung} {row['ms']:.3g} ms for {row['moved_mb']:,.0f} MB" for rung, row in last.items())
    return (
        f"At {longest:,} tokens {worst['rung']} takes {worst['ms'] / best['ms']:.2g} times as long as {best['rung']}. "
        f"{times}. Reading alone takes {least / fastest:.3g} to {least / slowest:.3g} ms for {least:,.0f} MB. "
        "Each mark has a dot for each context, the longest on the right."
    )


def rows_of(record: Mapping, model: str, dtype: str) -> list[Mapping]:
    """Returns the rows of a model that say how many MB they move."""
    rows = [row for row in record["results"] if (row["model"], row["dtype"]) == (model, dtype) and row["moved_mb"]]
    if not rows:
        there = sorted({f"{row['model']} in {row['dtype']}" for row in record["results"]})
        raise ValueError(f"no rows of {model} in {dtype} in this record; it has {', '.join(there) or 'none'}")
    return rows
