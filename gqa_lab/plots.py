"""The course's figures: numbers in, matplotlib Axes out. The label of an Axes is its text alternative.

Every kind of attention has one colour, marker and line through the whole course, so that colour is never the
only carrier; everything else is thin black. No pyplot: a figure belongs to the cell that shows it.
"""

import io
from dataclasses import replace

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from gqa_lab.config import attention_kind, check_heads, divisors
from gqa_lab.costs import Shape, kv_cache_bytes

STYLE = {
    "mha": {"color": "#332288", "marker": "s", "linestyle": "-"},
    "gqa": {"color": "#CC3311", "marker": "o", "linestyle": "--"},
    "mqa": {"color": "#009988", "marker": "^", "linestyle": ":"},
}
"""Colour, marker and line of each kind; the smallest colour distance over normal and three colour-blind visions is
44 CIELAB units."""

MANY_HEADS = 72  # beyond this a head map is a smear


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
        >>> Picture(head_map(4, 4))
        4 query heads on 4 KV heads (MHA): query head i reads KV head i.
    """

    def __init__(self, axes: Axes):
        self.png, self.text = png(axes), axes.get_label()

    def __repr__(self) -> str:
        return self.text

    def _repr_mimebundle_(self, include=None, exclude=None):
        return {"image/png": self.png, "text/plain": self.text}, {"image/png": {"alt": self.text}}


def head_map(n_heads: int, n_kv_heads: int) -> Axes:
    """Draws which KV head each query head reads: a line from every query head down to its KV head.

    Args:
        n_heads: query heads (H).
        n_kv_heads: KV heads (G), a divisor of H.
    """
    check_heads(n_heads, n_kv_heads)
    kind, group_size = attention_kind(n_heads, n_kv_heads), n_heads // n_kv_heads
    color = STYLE[kind]["color"]
    axes = new_axes(height=2.6)
    centres = [g * group_size + (group_size - 1) / 2 for g in range(n_kv_heads)]
    for i in range(n_heads):
        axes.plot([i, centres[i // group_size]], [1, 0], color="black", linewidth=0.8, zorder=1)
    size = max(20, 420 - 12 * n_heads)
    axes.scatter(range(n_heads), [1] * n_heads, s=size, facecolor="white", edgecolor="black", zorder=2)
    axes.scatter(centres, [0] * n_kv_heads, s=size, color=color, marker=STYLE[kind]["marker"], zorder=2)
    if n_heads <= 16:
        for i in range(n_heads):
            axes.text(i, 1, str(i), ha="center", va="center", zorder=3)
        for g, x in enumerate(centres):
            digits = "black" if kind == "mqa" else "white"  # each at least 4.5 : 1 on its colour
            axes.text(x, 0, str(g), ha="center", va="center", color=digits, zorder=3)
    axes.set_yticks([1, 0], ["query heads", "KV heads"])
    axes.tick_params(left=False)
    axes.set_xticks([])
    axes.spines[:].set_visible(False)
    axes.set_xlim(-0.8, n_heads - 0.2)
    axes.set_ylim(-0.35, 1.35)
    axes.set_label(head_map_text(n_heads, n_kv_heads))
    axes.set_title(axes.get_label().split(":")[0], loc="left", fontsize=11)
    return axes


def head_map_text(n_heads: int, n_kv_heads: int) -> str:
    r"""Returns the head map in words.

    Example:
        >>> print(head_map_text(6, 3).replace(": ", ":\n", 1))
        6 query heads on 3 KV heads (GQA), 2 on each:
        KV head 0 serves query heads 0 to 1, KV head 2 serves 4 to 5. Cache: 1/2 of MHA.
        >>> head_map_text(8, 1)
        '8 query heads on 1 KV head (MQA): all of them read KV head 0. Cache: 1/8 of MHA.'
        >>> head_map_text(4, 4)
        '4 query heads on 4 KV heads (MHA): query head i reads KV head i.'
    """
    kind, group_size = attention_kind(n_heads, n_kv_heads), n_heads // n_kv_heads
    title = f"{n_heads} query head{'s'[: n_heads > 1]} on {n_kv_heads} KV head{'s'[: n_kv_heads > 1]} ({kind.upper()})"
    if kind == "mha":
        return f"{title}: query head i reads KV head i."
    if kind == "mqa":
        return f"{title}: all of them read KV head 0. Cache: 1/{group_size} of MHA."
    last = n_kv_heads - 1
    return (
        f"{title}, {group_size} on each: KV head 0 serves query heads 0 to {group_size - 1}, "
        f"KV head {last} serves {last * group_size} to {n_heads - 1}. Cache: 1/{group_size} of MHA."
    )


def bytes_per_token(shape: Shape, *, bytes_per_element: int = 2) -> Axes:
    """Draws what one token leaves in the cache for every `n_kv_heads` that `shape` could have, its own one filled.

    Args:
        shape: a model; its own `n_kv_heads` is the one marked.
        bytes_per_element: 2 for float16 and bfloat16.

    Raises:
        ValueError: for a model whose cache does not depend on `n_kv_heads` (MLA).
    """
    axes = new_axes(height=3.2)
    options = divisors(shape.n_heads)
    kib = [_token_bytes(shape, g, bytes_per_element) / 1024 for g in options]
    for x, (g, y) in enumerate(zip(options, kib, strict=True)):
        color, own = STYLE[attention_kind(shape.n_heads, g)]["color"], g == shape.n_kv_heads
        axes.bar(x, y, width=0.6, facecolor=color if own else "white", edgecolor=color, linewidth=1.5)
        axes.annotate(
            f"{y:,.4g}",
            (x, y),
            (0, 4),
            textcoords="offset points",
            ha="center",
            weight="bold" if own else "normal",
        )
    axes.set_xticks(range(len(options)), [f"{g}\n{_end_name(shape.n_heads, g)}" for g in options])
    axes.set_ylim(0, max(kib) * 1.2)
    axes.set_xlabel("n_kv_heads")
    axes.set_ylabel("KiB per token, all layers")
    axes.set_label(bytes_per_token_text(shape, bytes_per_element=bytes_per_element))
    axes.set_title(axes.get_label().split(". ")[0], loc="left", fontsize=11)
    return axes


def bytes_per_token_text(shape: Shape, *, bytes_per_element: int = 2) -> str:
    """Returns the figure of `bytes_per_token` in words.

    Example:
        >>> from gqa_lab.costs import SHAPES
        >>> bytes_per_token_text(SHAPES["llama-2-70b"])
        'With 8 KV heads, a token keeps 320 KiB. With 64 it would keep 2,560 KiB (MHA), with 1 40 KiB (MQA).'
    """
    own, most, least = (
        f"{_token_bytes(shape, g, bytes_per_element) / 1024:,.4g}" for g in (shape.n_kv_heads, shape.n_heads, 1)
    )
    return (
        f"With {shape.n_kv_heads} KV heads, a token keeps {own} KiB. With {shape.n_heads} it would keep {most} KiB "
        f"(MHA), with 1 {least} KiB (MQA)."
    )


def _token_bytes(shape: Shape, n_kv_heads: int, bytes_per_element: int) -> int:
    if shape.kind == "mla":
        raise ValueError(f"{shape.name} keeps one latent vector per token (MLA), whatever n_kv_heads would be")
    changed = replace(shape, n_kv_heads=n_kv_heads)
    return kv_cache_bytes(changed, batch_size=1, kv_len=1, bytes_per_element=bytes_per_element)


def _end_name(n_heads: int, n_kv_heads: int) -> str:
    kind = attention_kind(n_heads, n_kv_heads)
    return "" if kind == "gqa" else kind.upper()
