"""What fewer KV heads cost small decoders that were trained from scratch, seed by seed: recorded."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import mean, median

from matplotlib.axes import Axes

from gqa_lab.config import attention_kind
from gqa_lab.plots.frame import STYLE, new_axes
from gqa_lab.recorded import provenance

TRAINED_WITH = {"text": "same d_ff", "equalised": "as many parameters"}
"""The two comparisons of the record, and what the decoders with fewer KV heads have in common with those of MHA."""


def loss_by_kv_heads(record: Mapping) -> Axes:
    """Draws how much more each decoder loses than the MHA decoder of its seed, a dot a seed, for every `n_kv_heads`.

    The line at 0 is what to expect if the number of KV heads did not matter. Bars are 95% intervals of the mean
    difference. Above MHA itself stand its own losses less their mean: how far
    apart the seeds are.

    Args:
        record: `recorded("quality")`.
    """
    said, n_heads = record["summary"], record["models"]["text"]["n_heads"]
    axes = new_axes(height=3.8)
    axes.axhline(0, color="black", linewidth=0.8)
    mha = [run["loss"] for run in _runs_by_seed(record, f"text_{{}}_{n_heads}")]
    _dots(axes, 0, [loss - mean(mha) for loss in mha], "mha", filled=True)
    for x, n in enumerate(said["text"], start=1):
        for offset, name in ((-0.16, "text"), (0.16, "equalised")):
            found, kind = said[name][n], attention_kind(n_heads, int(n))
            _dots(axes, x + offset, found["pairs"], kind, filled=name == "text")
            axes.plot([x + offset + 0.1] * 2, found["interval"], color="black", linewidth=1)
            axes.plot(x + offset + 0.1, found["mean"], color="black", marker="_", markersize=6)
    axes.annotate("no\ndifference", (len(said["text"]) + 0.5, 0), (5, 0), textcoords="offset points", va="center")
    names = [f"{n_heads} (MHA)\nless the mean", *(f"{n}{' (MQA)' * (n == '1')}" for n in said["text"])]
    axes.set_xticks(range(len(names)), names)
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.set_xlabel(
        f"n_kv_heads; filled: {TRAINED_WITH['text']}, hollow: {TRAINED_WITH['equalised']}\n{_caption(record)}"
    )
    axes.set_ylabel("loss less that of MHA,\nnats per byte")
    axes.set_label(loss_by_kv_heads_text(record))
    axes.set_title(axes.get_label().split(". ")[0], loc="left", fontsize=11)
    return axes


def loss_by_kv_heads_text(record: Mapping) -> str:
    """Returns the figure of `loss_by_kv_heads` in words."""
    said = record["summary"]
    sentences = []
    for name, common in TRAINED_WITH.items():
        each = (
            f"{n}: {found['mean']:+.3f} ({found['interval'][0]:+.3f} to {found['interval'][1]:+.3f})"
            for n, found in said[name].items()
        )
        sentences.append(
            f"{common.capitalize()}: {agreement(said[name])}. Mean difference to MHA in nats per byte, and its 95% "
            f"interval, by KV heads: {', '.join(each)}. "
        )
    mha = (
        f"MHA loses {said['mha']['mean']:.2f}, with a standard deviation of {said['mha']['stdev']:.3f} over the seeds."
    )
    return "".join(sentences) + mha


def agreement(by_n: Mapping) -> str:
    """Returns with which numbers of KV heads all seeds say the same, and what they say.

    Args:
        by_n: for each number of KV heads its `pairs`, differences in loss.

    Example:
        >>> agreement({"4": {"pairs": [0.1, -0.2]}, "2": {"pairs": [0.1, -0.1]}, "1": {"pairs": [0.1, 0.3]}})
        'all 2 seeds lose more with 1 KV head, they disagree on 4 and 2'
    """
    says: dict[str, list[str]] = {}
    for n, found in by_n.items():
        more = [pair > 0 for pair in found["pairs"]]
        saying = "more" if all(more) else "less" if not any(more) else "disagree"
        says.setdefault(saying, []).append(n)
        n_seeds = len(more)
    if list(says) == ["disagree"]:
        return f"the {n_seeds} seeds disagree on {_listed(says['disagree'])}"
    clear = [f"lose {how} with {_listed(says[how])}" for how in ("more", "less") if how in says]
    unclear = f", they disagree on {_listed(says['disagree'], '')}" if "disagree" in says else ""
    return f"all {n_seeds} seeds {' and '.join(clear)}{unclear}"


def recall_by_kv_heads(record: Mapping) -> Axes:
    """Draws after how many steps each decoder had solved recall, a dot a seed, for every `n_kv_heads`.

    Args:
        record: `recorded("quality")`.
    """
    said, n_heads, most = (
        record["summary"]["recall"],
        record["models"]["recall"]["n_heads"],
        record["sizes"]["recall_steps"],
    )
    axes = new_axes(height=3.2)
    axes.axhline(most, color="black", linewidth=0.8, linestyle=":")
    axes.annotate("the last step; hollow: not solved", (-0.45, most), (0, 4), textcoords="offset points", fontsize=9)
    for x, (n, found) in enumerate(said.items()):
        kind = attention_kind(n_heads, int(n))
        _dots(axes, x, [step for step in found["steps_to_solve"] if step is not None], kind, filled=True)
        _dots(axes, x, [most] * found["steps_to_solve"].count(None), kind, filled=False)
    kinds = {str(n_heads): " (MHA)", "1": " (MQA)"}
    axes.set_xticks(range(len(said)), [n + kinds.get(n, "") for n in said])
    axes.set_xlim(-0.5, len(said) - 0.5)
    axes.set_ylim(0, most * 1.12)
    model, task = record["models"]["recall"], record["recall_task"]
    axes.set_xlabel(
        f"n_kv_heads\n{model['n_layers']} layers, {n_heads} query heads of {model['head_dim']} numbers, "
        f"{task['n_pairs']} pairs of {task['n_keys']} keys and {task['n_values']} values, solved at "
        f"{task['solved']:.0%}\n{provenance(record)}"
    )
    axes.set_ylabel("training steps until solved")
    axes.set_label(recall_by_kv_heads_text(record))
    axes.set_title(axes.get_label().split(". ")[0], loc="left", fontsize=11)
    return axes


def recall_by_kv_heads_text(record: Mapping) -> str:
    """Returns the figure of `recall_by_kv_heads` in words."""
    said, most = record["summary"]["recall"], record["sizes"]["recall_steps"]
    middle = [median(math.inf if step is None else step for step in found["steps_to_solve"]) for found in said.values()]
    rising = all(a < b or a == b == math.inf for a, b in pairwise(middle))
    finding = (
        "The fewer KV heads, the later recall is solved" if rising else "Steps until recall is solved, by KV heads"
    )
    each = ", ".join(
        f"{n}: {f'{steps:.0f}' if steps < math.inf else 'not solved'}" for n, steps in zip(said, middle, strict=True)
    )
    solved = ", ".join(f"{n}: {found['n_solved']} of {len(found['steps_to_solve'])}" for n, found in said.items())
    return f"{finding}. Median steps by KV heads: {each}. Seeds that solve it within {most} steps: {solved}."


def _dots(axes: Axes, x: int | float, heights: Sequence[int | float], kind: str, *, filled: bool) -> None:
    """Draws one dot of a kind of attention for every seed, beside each other so that equal ones can be counted."""
    across = [x + 0.025 * (i - (len(heights) - 1) / 2) for i in range(len(heights))]
    color, marker = STYLE[kind]["color"], STYLE[kind]["marker"]
    axes.scatter(
        across, heights, marker=marker, s=26, edgecolor=color, facecolor=color if filled else "white", zorder=3
    )


def _listed(numbers: Sequence[str], noun: str = " KV heads") -> str:
    *first, last = numbers
    noun = noun.removesuffix("s") if numbers == ["1"] else noun
    return (f"{', '.join(first)} and {last}" if first else last) + noun


def _runs_by_seed(record: Mapping, name: str) -> list[Mapping]:
    return [record["runs"][name.format(seed)] for seed in record["sizes"]["seeds"]]


def _caption(record: Mapping) -> str:
    sizes, n_seeds = record["sizes"], len(record["sizes"]["seeds"])
    n_bytes = sizes["steps"] * sizes["batch"] * sizes["window"]
    return (
        f"{n_seeds} seeds, trained on {n_bytes:,} bytes of text, {sizes['held_out_windows']} held-out windows of "
        f"{sizes['window']} bytes, float32\n{provenance(record)}"
    )
