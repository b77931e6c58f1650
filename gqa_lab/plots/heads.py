"""Which KV head each query head reads, drawn."""

from matplotlib.axes import Axes

from gqa_lab.config import attention_kind, check_heads
from gqa_lab.plots.frame import STYLE, new_axes

MANY_HEADS = 72  # beyond this a head map is a smear


def head_map(n_heads: int, n_kv_heads: int, *, head_dim: int | None = None) -> Axes:
    """Draws which KV head each query head reads: a line from every query head down to its KV head.

    Args:
        n_heads: query heads (H).
        n_kv_heads: KV heads (G), a divisor of H.
        head_dim: numbers per head; if given, the bytes that a token leaves in the cache of one layer stand below.
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
    axes.set_label(head_map_text(n_heads, n_kv_heads, head_dim=head_dim))
    if head_dim is not None:
        axes.set_xlabel(_bytes_text(n_heads, n_kv_heads, head_dim))
    axes.set_title(axes.get_label().split(":")[0], loc="left", fontsize=11)
    return axes


def head_map_text(n_heads: int, n_kv_heads: int, *, head_dim: int | None = None) -> str:
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
    last = n_kv_heads - 1
    reads = {
        "mha": ": query head i reads KV head i.",
        "mqa": f": all of them read KV head 0. Cache: 1/{group_size} of MHA.",
        "gqa": f", {group_size} on each: KV head 0 serves query heads 0 to {group_size - 1}, "
        f"KV head {last} serves {last * group_size} to {n_heads - 1}. Cache: 1/{group_size} of MHA.",
    }
    return title + reads[kind] + (f" {_bytes_text(n_heads, n_kv_heads, head_dim)}." if head_dim else "")


def _bytes_text(n_heads: int, n_kv_heads: int, head_dim: int) -> str:
    """K and V of one token in one layer, two bytes a number."""
    own, mha = (f"{2 * heads * head_dim * 2:,}" for heads in (n_kv_heads, n_heads))
    versus = "" if own == mha else f", {mha} B if it were MHA"
    return f"A token keeps {own} B per layer (head_dim {head_dim}, 16 bits){versus}"
