"""A profile of a model's decode steps, drawn: records in, Axes out."""

from matplotlib.axes import Axes

from gqa_lab.plots.frame import STYLE, new_axes


def step_by_context(record: dict) -> Axes:
    """Draws the milliseconds of a token against the context: the predicted floor a line, the measurements dots.

    Args:
        record: a profile as `DecodeProfile.record()` returns it.
    """
    axes = new_axes(7.0, 3.6)
    points = record["sweep"]
    style = STYLE[record["sizes"]["kind"]]
    ceiling = record["ceilings"]["read_bytes_per_s"]
    axes.plot([p["kv_len"] for p in points], [1000 * p["read_bytes"] / ceiling for p in points], color=style["color"])
    axes.plot(
        [p["kv_len"] for p in points], [1000 * p["seconds"] for p in points], style["marker"], color=style["color"]
    )
    axes.set_label("provisional")
    return axes
