"""What all figures share: the style of each kind of attention, empty Axes, and how a notebook shows a figure."""

import io

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

STYLE = {
    "mha": {"color": "#332288", "marker": "s", "linestyle": "-"},
    "gqa": {"color": "#CC3311", "marker": "o", "linestyle": "--"},
    "mqa": {"color": "#009988", "marker": "^", "linestyle": ":"},
}
"""Colour, marker and line of each kind; the smallest colour distance over normal and three colour-blind visions is
44 CIELAB units."""

INK = {kind: style["color"] for kind, style in STYLE.items()} | {"mqa": "#00796B"}
"""Colour of words about each kind: the same, but for MQA's, too light for letters. 4.5 : 1 or more on white."""


def new_axes(width: float = 7.0, height: float = 3.0) -> Axes:
    """Returns the Axes of a new figure of so many inches."""
    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def png(axes: Axes) -> bytes:
    """Returns the figure of `axes` as PNG, the same bytes for the same figure."""
    buffer = io.BytesIO()
    axes.figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


class Picture:
    """A figure as a notebook shows it: the image, and its text alternative where images are not.

    Example:
        >>> from gqa_lab.plots import head_map
        >>> Picture(head_map(4, 4))
        4 query heads on 4 KV heads (MHA): query head i reads KV head i.
    """

    def __init__(self, axes: Axes):
        self.png, self.text = png(axes), axes.get_label()

    def __repr__(self) -> str:
        return self.text

    def _repr_mimebundle_(self, include=None, exclude=None):
        return {"image/png": self.png, "text/plain": self.text}, {"image/png": {"alt": self.text}}
