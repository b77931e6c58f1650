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
        axes.annotate(f"layer {i}", (i, damage["both"][i]), (7, 0), textcoords="offset points", va="center")
    axes.legend(frameon=False, loc="upper right")
    axes.set_xlim(-1, n_layers)
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


def recovery(record: Mapping) -> Axes:
    """Draws the loss of the pooled model and of the control against the tokens that both were trained on.

    Args:
        record: `recorded("convert_smollm2")`.
    """
    axes = new_axes(height=3.6)
    most = 0.0
    for run, kind in (("recovery_pooled", "mqa"), ("recovery_control", "gqa")):
        points = record[run]["points"]
        tokens = [point["n_tokens"] / 1000 for point in points]
        most = max(most, tokens[-1])
        style = STYLE[kind]
        for text, fill in (("A", style["color"]), ("B", "white")):
            y = [mean(point["losses"][text]) for point in points]
            axes.plot(tokens, y, **style, markerfacecolor=fill, markersize=6, linewidth=1.2)
            name = {"mqa": "pooled to 1 KV head", "gqa": "its own 3 KV heads"}[kind]
            kind_of_text = {"A": "like the training text", "B": "a story"}[text]
            axes.annotate(
                f"{name}: {kind_of_text}", (tokens[-1], y[-1]), (8, 0), textcoords="offset points", va="center"
            )
    axes.set_xlim(-0.02 * most, 1.62 * most)
    axes.set_xticks([point["n_tokens"] / 1000 for point in record["recovery_pooled"]["points"]])
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.set_ylim(bottom=0)
    axes.set_xlabel(f"tokens trained on, thousands\n{_caption(record, _measured_tokens(record))}")
    axes.set_ylabel("cross-entropy, nats per token")
    axes.set_label(recovery_text(record))
    axes.set_title(axes.get_label().split(". ")[0], loc="left", fontsize=11)
    return axes


def recovery_text(record: Mapping) -> str:
    """Returns the figure of `recovery` in words."""
    ends = {
        run: [
            {text: mean(losses) for text, losses in point["losses"].items()}
            for point in record[f"recovery_{run}"]["points"]
        ]
        for run in ("pooled", "control")
    }
    (pooled_a, pooled_b), (control_a, control_b) = (
        [f"from {points[0][text]:.1f} to {points[-1][text]:.1f}" for text in "AB"] for points in ends.values()
    )
    tokens = record["recovery_pooled"]["points"][-1]["n_tokens"] / 1000
    return (
        f"{tokens:.0f} thousand tokens of training bring the pooled model part of the way back. Pooled to one KV head, "
        f"its loss goes {pooled_a} on held-out text like the training text, and {pooled_b} on a story. The control, "
        f"with its own three KV heads, goes {control_a} and {control_b}."
    )


def _measured_tokens(record: Mapping) -> str:
    return f"{record['texts']['A']['n_tokens']:,} and {record['texts']['B']['n_tokens']:,}"


def _caption(record: Mapping, n_tokens: int | str) -> str:
    window = record["texts"]["A"]["window"]
    return f"SmolLM2-135M, float32, {n_tokens} tokens in windows of {window}\n{provenance(record)}"
