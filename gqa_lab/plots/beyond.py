"""What a token keeps under each idea that came after grouped-query attention, on one axis, drawn."""

from collections.abc import Mapping

from matplotlib.axes import Axes

from gqa_lab.plots.frame import STYLE, new_axes


def bytes_by_idea(ideas: Mapping[str, int | float], *, what: str) -> Axes:
    """Draws a bar for each idea: bytes of cache per token, from 0. MHA, GQA and MQA have their colours.

    Args:
        ideas: bytes per token by name; drawn from top to bottom.
        what: the model and the context that the bytes are of.
    """
    axes = new_axes(width=8.0, height=1.1 + 0.36 * len(ideas))
    for y, (name, size) in enumerate(ideas.items()):
        kind = name.split()[0].rstrip(",").lower()
        color = STYLE[kind]["color"] if kind in STYLE else "black"
        is_own = kind in STYLE and name.lower() == kind  # one of these three, and nothing else
        axes.barh(y, size / 1024, height=0.62, facecolor=color if is_own else "white", edgecolor=color, linewidth=1.3)
        axes.annotate(f"{size / 1024:,.3g}", (size / 1024, y), (4, 0), textcoords="offset points", va="center")
    axes.set_yticks(range(len(ideas)), list(ideas))
    axes.tick_params(left=False)
    axes.set_ylim(len(ideas) - 0.5, -0.5)
    axes.set_xlim(0, 1.1 * max(ideas.values()) / 1024)
    axes.set_xlabel(f"KiB of cache per token, all layers\n{what}")
    axes.set_label(bytes_by_idea_text(ideas, what=what))
    axes.set_title(axes.get_label().split(". ")[0], loc="left", fontsize=11)
    return axes


def bytes_by_idea_text(ideas: Mapping[str, int | float], *, what: str) -> str:
    """Returns the figure of `bytes_by_idea` in words.

    Example:
        >>> bytes_by_idea_text({"MHA": 524288, "GQA": 131072, "MLA": 36864}, what="a model")
        'A token keeps from 512 KiB (MHA) down to 36 (MLA). In KiB per token, a model: MHA 512, GQA 128, MLA 36.'
    """
    most, least = max(ideas, key=ideas.get), min(ideas, key=ideas.get)
    said = ", ".join(f"{name.replace(',', '')} {size / 1024:,.3g}" for name, size in ideas.items())
    return (
        f"A token keeps from {ideas[most] / 1024:,.3g} KiB ({most}) down to {ideas[least] / 1024:,.3g} ({least}). "
        f"In KiB per token, {what}: {said}."
    )
