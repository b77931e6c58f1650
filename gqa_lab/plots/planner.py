"""What a plan's decode step takes as its sequences grow, drawn."""

import math
from dataclasses import replace

from matplotlib.axes import Axes

from gqa_lab.config import attention_kind, divisors
from gqa_lab.costs import Plan
from gqa_lab.plots.frame import INK, STYLE, new_axes

POINTS = 8  # a line is straight but for the bend of a full window, which is one of them


def step_time(plan: Plan) -> Axes:
    """Draws the floor of a decode step against the context, a line for every `n_kv_heads` that the model could have.

    The level line is the reading of the weights, what rises above it the reading of the cache. A line ends where the
    memory is full; the short upright line is where cache and weights take equally long. Where the plan does not fit,
    it is drawn for as many GPUs as it needs.

    Args:
        plan: drawn thick, with a dot at its own `kv_len`; the weights are those of its `n_kv_heads`.

    Raises:
        ValueError: for a model whose weights per step are not known here (experts, or a latent cache).
    """
    plan = _drawable(plan)
    axes, end = new_axes(width=8.0, height=4.2), 2 * plan.kv_len
    drawn = {
        g: _draw_line(axes, replace(plan, n_kv_heads=g), end, g == plan.n_kv_heads)
        for g in reversed(divisors(plan.shape.n_heads))
    }
    ends = {g: at for g, at in drawn.items() if at}
    if ends:
        _name_lines(axes, ends, plan, end)
    weights_ms, crossing = 1000 * _weights_s(plan), plan.traffic_crossover
    axes.axhline(weights_ms, color="black", linewidth=0.8)
    axes.annotate("weights", (end, weights_ms), (-2, -14), textcoords="offset points", fontsize=9, ha="right")
    if crossing < end:
        axes.plot([crossing] * 2, [0, 2 * weights_ms], color="black", linewidth=0.8, linestyle=(0, (1, 2)))
        axes.annotate("cache = weights", (crossing, 0), (4, 4), textcoords="offset points", fontsize=9)
    if plan.step_s is not None:
        axes.plot(plan.kv_len, 1000 * plan.step_s, "o", color="black", markersize=7, zorder=4)
    axes.set_xlim(0, end)
    axes.set_ylim(0, 1.1 * max([weights_ms, *(ms for _, ms in ends.values())]))
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
    axes.set_xlabel("tokens in each sequence")
    axes.set_ylabel("ms for the next token, at least")
    axes.set_label(step_time_text(plan))
    axes.set_title(axes.get_label().split(". ")[0], loc="left", fontsize=11)
    return axes


def step_time_text(plan: Plan) -> str:
    """Returns the figure of `step_time` in words.

    Example:
        >>> from gqa_lab.costs import GPUS, SHAPES, plan
        >>> chats = plan(SHAPES["llama-3.1-8b"], GPUS["h100-sxm"], kv_len=8192, batch_size=32)
        >>> print(step_time_text(chats).replace(". ", ".\\n"))
        With 8 KV heads the cache is 70% of what a step reads.
        32 sequences of 8,192 tokens on one H100 SXM, the next token at least: 32 KV heads do not fit, 8 KV heads \
14.7 ms, 1 KV head 5.62 ms.
        The weights alone take 4.48 ms; the cache takes longer beyond 3,578 tokens.
        A line ends where the memory is full.
    """
    plan = _drawable(plan)
    sequences = "1 sequence" if plan.batch_size == 1 else f"{plan.batch_size:,} sequences"
    took = []
    for other in plan.beside():
        fits = (
            f"{1000 * other.step_s:.3g} ms" if other.fits else "does not fit" if other.n_kv_heads == 1 else "do not fit"
        )
        took.append(f"{_heads(other.n_kv_heads)} {fits}")
    crossing = plan.traffic_crossover
    longer = "never takes longer" if crossing == math.inf else f"takes longer beyond {crossing:,} tokens"
    finding = (
        f"the cache is {plan.cache_share:.0%} of what a step reads" if plan.fits else "it fits no number of these GPUs"
    )
    return (
        f"With {_heads(plan.n_kv_heads)} {finding}. {sequences} of "
        f"{plan.kv_len:,} tokens on {_gpus(plan)}, the next token at least: {', '.join(took)}. The weights alone take "
        f"{1000 * _weights_s(plan):.3g} ms; the cache {longer}. A line ends where the memory is full."
    )


def _drawable(plan: Plan) -> Plan:
    if plan.weight_bytes_read is None:
        raise ValueError(f"which weights of {plan.shape.name} a step reads is not known here; take a dense model")
    return plan.on_enough_gpus()


def _draw_line(axes: Axes, plan: Plan, end: int, own: bool) -> tuple[int, float] | None:
    """Draws one line as far as the memory reaches and returns where it ends, None where nothing fits."""
    last = min(end, plan.largest_context)
    if last < 1:
        return None
    tokens = {max(1, round(last * i / POINTS)) for i in range(POINTS + 1)}
    tokens = sorted(tokens | {min(last, plan.shape.sliding_window or last)})
    ms = [1000 * replace(plan, kv_len=n).step_s for n in tokens]
    style = STYLE[attention_kind(plan.shape.n_heads, plan.n_kv_heads)]
    look = dict(color=style["color"], linewidth=2.4 if own else 1.1, zorder=3 if own else 2)
    axes.plot(tokens, ms, linestyle=style["linestyle"], **look)
    if last < end:
        axes.plot(last, ms[-1], marker="|", color=style["color"], markersize=9)
    return last, ms[-1]


def _name_lines(axes: Axes, ends: dict[int, tuple[int, float]], plan: Plan, end: int) -> None:
    """Writes how many KV heads each line has at its end, several into one name where they end together."""
    top, together = max(ms for _, ms in ends.values()), []
    for n_kv_heads, (tokens, ms) in ends.items():
        last = together[-1] if together else None
        if last and last[0] == end == tokens and last[1] - ms < 0.045 * top:
            last[2].append(n_kv_heads)
        else:
            together.append((tokens, ms, [n_kv_heads]))
    for tokens, ms, heads in together:
        full, own = tokens < end, plan.n_kv_heads in heads
        kind = attention_kind(plan.shape.n_heads, plan.n_kv_heads if own else heads[-1])
        ends_of = {plan.shape.n_heads: " MHA", 1: " MQA"}
        axes.annotate(
            ", ".join(f"{n}{ends_of.get(n, '')}" for n in heads),
            (tokens, ms),
            (0, 6) if full else (5, 0),
            textcoords="offset points",
            ha="center" if full else "left",
            va="bottom" if full else "center",
            color=INK[kind],
            weight="bold" if own else "normal",
            annotation_clip=False,
        )


def _weights_s(plan: Plan) -> float:
    return plan.weight_bytes_read / plan.n_gpus / plan.gpu.bandwidth_bytes_per_s


def _heads(n_kv_heads: int) -> str:
    return f"{n_kv_heads} KV head{'s' if n_kv_heads > 1 else ''}"


def _gpus(plan: Plan) -> str:
    return f"{'one' if plan.n_gpus == 1 else plan.n_gpus} {plan.gpu.name}"
