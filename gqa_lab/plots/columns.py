"""Which columns of a projection each head owns, drawn."""

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from gqa_lab.plots.frame import new_axes

MANY_COLUMNS = 96  # beyond this the columns are a smear


def head_columns(n_heads: int, head_dim: int, *, head: int | None = None) -> Axes:
    """Draws the columns of `q_proj` in a row, cut into heads: `head_dim` neighbours each.

    Args:
        n_heads: heads (H).
        head_dim: columns of one head (D).
        head: the head to be marked; None marks none.

    Raises:
        ValueError: for more than 96 columns, or a head that does not exist.
    """
    width = n_heads * head_dim
    if width > MANY_COLUMNS:
        raise ValueError(f"n_heads · head_dim ({width}) is more than {MANY_COLUMNS} columns; draw fewer")
    if head is not None and not 0 <= head < n_heads:
        raise ValueError(f"head ({head}) must be one of 0 to {n_heads - 1}")
    axes = new_axes(height=1.8)
    for i in range(n_heads):
        marked = i == head
        for column in range(i * head_dim, (i + 1) * head_dim):
            face = "black" if marked else "white"
            axes.add_patch(Rectangle((column, 0), 1, 1, facecolor=face, edgecolor="0.6", linewidth=0.6))
            if width <= 32:
                axes.text(
                    column + 0.5, 0.5, str(column), ha="center", va="center", color="white" if marked else "black"
                )
        axes.add_patch(Rectangle((i * head_dim, 0), head_dim, 1, fill=False, edgecolor="black", linewidth=2))
        if n_heads <= 16:
            weight = "bold" if marked else "normal"
            axes.text((i + 0.5) * head_dim, 1.35, f"head {i}", ha="center", va="center", weight=weight)
    axes.set_xlim(-0.1, width + 0.1)
    axes.set_ylim(-0.1, 1.7)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_xlabel("column of q_proj")
    axes.spines[:].set_visible(False)
    axes.set_label(head_columns_text(n_heads, head_dim, head=head))
    axes.set_title(axes.get_label().split(": ")[0], loc="left", fontsize=11)
    return axes


def head_columns_text(n_heads: int, head_dim: int, *, head: int | None = None) -> str:
    """Returns the picture of `head_columns` in words.

    Example:
        >>> head_columns_text(6, 2)
        '12 columns, 6 heads of 2: head 0 owns columns 0 to 1, head 5 owns 10 to 11.'
        >>> head_columns_text(6, 2, head=4)
        '12 columns, 6 heads of 2: head 0 owns columns 0 to 1, head 5 owns 10 to 11. Marked: head 4, columns 8 to 9.'
        >>> head_columns_text(1, 3)
        '3 columns, 1 head of 3: head 0 owns columns 0 to 2.'
    """
    last, heads = n_heads - 1, f"{n_heads} head{'s'[: n_heads > 1]}"
    owns = f"head 0 owns columns 0 to {head_dim - 1}"
    if last:
        owns += f", head {last} owns {last * head_dim} to {n_heads * head_dim - 1}"
    marked = "" if head is None else f" Marked: head {head}, columns {head * head_dim} to {(head + 1) * head_dim - 1}."
    return f"{n_heads * head_dim} columns, {heads} of {head_dim}: {owns}.{marked}"
