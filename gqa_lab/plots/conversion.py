"""What pooling the KV heads of a trained model does, layer by layer, and how far training brings it back: recorded."""

from collections.abc import Mapping
from statistics import mean

from matplotlib.axes import Axes

from gqa_lab.plots.frame import STYLE, new_axes
from gqa_lab.recorded import provenance


def damage_by_layer(record: Mapping) -> Axes:
    """Draws how much the loss grows when one layer alone is pooled to one KV head: both, keys alone, values alone.

    Args:
        record: `recorded("convert_smollm2")`.
    """
    damage = record["layers"]["damage"]
    n_layers = len(damage["both"])
    axes = new_axes(height=3.4)
    axes.axhline(0, color="black", linewidth=0.8)
    looks = {
        "both": {"marker": STYLE["mqa"]["marker"], "color": STYLE["mqa"]["color"], "s": 36},
        "k": {"marker": "o", "facecolor": "white", "edgecolor": "black", "s": 22},
        "v": {"marker": "x", "color": "black", "linewidth": 1, "s": 22},
    }
    for part, look in looks.items():
        name = {"both": "keys and values", "k": "keys alone", "v": "values alone"}[part]
        axes.scatter(range(n_layers), damage[part], label=name, zorder=3, **look)
    for i in worst_layers(damage["both"]):
        side = {"ha": "right", "xytext": (-7, 0)} if i == 0 else {"ha": "left", "xytext": (7, 0)}
        axes.annotate(f"layer {i}", (i, damage["both"][i]), textcoords="offset points", va="center", **side)
    axes.legend(frameon=False, loc="upper right")
    axes.set_xlim(-3, n_layers)
    axes.set_xticks(range(0, n_layers, 5))
    axes.set_ylim(top=max(damage["both"]) * 1.12)
    axes.set_xlabel(f"the one layer that is pooled\n{_caption(record, record['layers']['n_tokens'])}")
    axes.set_ylabel("growth of the loss, nats per token")
    axes.set_label(damage_by_layer_text(record))
    axes.set_title(axes.get_label().split(". ")[0], loc="left", fontsize=11)
    return axes


def worst_layers(damage: list[float], n: int = 3) -> list[int]:
    """Returns the layers with the largest damage, the worst first.

    Example:
        >>> worst_layers([0.1, 2.0, 0.0, 0.4], n=2)
        [1, 3]
    """
    return sorted(range(len(damage)), key=lambda i: -damage[i])[:n]


def damage_by_layer_text(record: Mapping) -> str:
    """Returns the figure of `damage_by_layer` in words."""
    layers = record["layers"]
    both, keys, values = (layers["damage"][part] for part in ("both", "k", "v"))
    worst = worst_layers(both)
    together = mean(record["before_after"]["mean"]["A"]) - mean(record["before_after"]["original"]["A"])
    keys_worse = sum(k > v for k, v in zip(keys, values, strict=True))
    return (
        f"Pooled alone, a layer costs {min(both):.2f} to {max(both):.2f} nats; all {len(both)} together cost "
        f"{together:.1f}. Layer {worst[0]} costs most, then {worst[1]} and {worst[2]}. Keys alone cost more than "
        f"values alone in {keys_worse} of {len(both)} layers."
    )


RUNS = {
    "recovery_pooled": ("mqa", "1 KV head, the mean"),
    "recovery_fitted": ("mqa", "1 KV head, fitted first"),
    "recovery_control": ("gqa", "its own 3 KV heads"),
}
"""Each run of the record: its style, and what it is called."""


def recovery(record: Mapping) -> Axes:
    """Draws the loss of the pooled models and of the control against the tokens that all were trained on.

    Filled marks are held-out text like the training text (A), hollow ones a story (B).

    Args:
        record: `recorded("convert_smollm2")`.
    """
    axes, ends = new_axes(height=4.0), []
    for run, (kind, name) in RUNS.items():
        points, style = record[run]["points"], STYLE[kind]
        tokens = [point["n_tokens"] / 1000 for point in points]
        for text, fill in (("A", style["color"]), ("B", "white")):
            y = [mean(point["losses"][text]) for point in points]
            axes.plot(tokens, y, **style, markerfacecolor=fill, markersize=6, linewidth=1.2)
            ends.append((y[-1], f"{name}, {text}"))
    for (y, name), height in zip(sorted(ends), spread(sorted(y for y, _ in ends), 0.55), strict=True):
        axes.annotate(f"{name}: {y:.1f}", (tokens[-1], height), (9, 0), textcoords="offset points", va="center")
    axes.set_xlim(-0.02 * tokens[-1], 1.5 * tokens[-1])
    axes.set_xticks(tokens, [f"{x:.0f}" for x in tokens])
    axes.set_ylim(0, 10.8)
    axes.set_xlabel(f"tokens trained on, thousands\n{_caption(record, _measured_tokens(record))}")
    axes.set_ylabel("cross-entropy, nats per token")
    axes.set_label(recovery_text(record))
    axes.set_title(axes.get_label().split(". ")[0], loc="left", fontsize=11)
    return axes


def spread(heights: list[float], distance: float) -> list[float]:
    """Returns rising heights moved up just so far that labels at them do not touch.

    Example:
        >>> spread([1.0, 1.25, 3.0], 0.5)
        [1.0, 1.5, 3.0]
    """
    apart = []
    for height in heights:
        apart.append(max(height, apart[-1] + distance) if apart else height)
    return apart


def recovery_text(record: Mapping) -> str:
    """Returns the figure of `recovery` in words."""
    said = {}
    for run in RUNS:
        first, *_, last = record[run]["points"]
        for text in "AB":
            start, end = (mean(point["losses"][text]) for point in (first, last))
            said[run, text] = f"{start:.1f} to {end:.1f}"
    tokens = record["recovery_pooled"]["points"][-1]["n_tokens"] / 1000
    return (
        f"{tokens:.0f} thousand tokens of training bring one KV head part of the way back. On held-out text like the "
        f"training text (A) the loss of the pooled model goes from {said['recovery_pooled', 'A']}, on a story (B) from "
        f"{said['recovery_pooled', 'B']}; with every layer fitted first, from {said['recovery_fitted', 'A']} and from "
        f"{said['recovery_fitted', 'B']}. The control, with its own 3 KV heads, goes from "
        f"{said['recovery_control', 'A']} and from {said['recovery_control', 'B']}."
    )


def _measured_tokens(record: Mapping) -> str:
    return f"{record['texts']['A']['n_tokens']:,} and {record['texts']['B']['n_tokens']:,}"


def _caption(record: Mapping, n_tokens: int | str) -> str:
    window = record["texts"]["A"]["window"]
    return f"SmolLM2-135M, float32, {n_tokens} tokens in windows of {window}\n{provenance(record)}"
