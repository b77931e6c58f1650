"""What each of several GPUs holds and reads when they share the heads of one model, drawn. Floors, nothing measured."""

from collections.abc import Callable

from matplotlib.axes import Axes

from gqa_lab.config import attention_kind, divisors
from gqa_lab.costs import Gpu, Plan, Shape, plan
from gqa_lab.plots.frame import STYLE, new_axes


def cache_per_gpu(shape: Shape, gpu: Gpu) -> Axes:
    """Draws what a token leaves in the cache of each GPU against the number of GPUs: MHA, the model's own, MQA.

    In 16 bits. Each GPU holds whole KV heads, so a line is level once there is one for each.

    Args:
        shape: a model of several KV heads.
        gpu: what it runs on.
    """
    return _against_gpus(
        shape,
        gpu,
        lambda p: p.kv_bytes_per_token * p.copies(p.n_gpus) / p.n_gpus / 1024,
        "KiB per token on each GPU",
        cache_per_gpu_text(shape, gpu),
        dict(kv_len=1, batch_size=1),
    )


def cache_per_gpu_text(shape: Shape, gpu: Gpu) -> str:
    """Returns the figure of `cache_per_gpu` in words.

    Example:
        >>> from gqa_lab.costs import GPUS, SHAPES
        >>> print(cache_per_gpu_text(SHAPES["llama-2-70b"], GPUS["h100-sxm"]).replace(". ", ".\\n"))
        With 8 KV heads the cache of a GPU stops shrinking at 8 GPUs.
        A token of Llama-2-70B, in 16 bits, on 1, 8 and 64 GPUs: 64 KV heads leave 2,560, 320 and 40 KiB on each, \
8 leave 320, 40 and 40, 1 leaves 40, 40 and 40.
    """
    own, most = shape.n_kv_heads, shape.n_heads
    said = []
    for g in _options(shape):
        kib = [
            p.kv_bytes_per_token * p.copies(p.n_gpus) / p.n_gpus / 1024
            for p in (_plan(shape, gpu, g, n, kv_len=1, batch_size=1) for n in (1, own, most))
        ]
        heads = f"{g} KV heads leave" if g == most else f"{g} leave{'s' if g == 1 else ''}"
        unit = " KiB on each" if g == most else ""
        said.append(f"{heads} {kib[0]:,.4g}, {kib[1]:,.4g} and {kib[2]:,.4g}{unit}")
    return (
        f"With {own} KV heads the cache of a GPU stops shrinking at {own} GPUs. A token of {shape.name}, in 16 bits, "
        f"on 1, {own} and {most} GPUs: {', '.join(said)}."
    )


def step_by_gpus(shape: Shape, gpu: Gpu, *, kv_len: int, batch_size: int) -> Axes:
    """Draws the floor of a decode step against the number of GPUs: MHA, the model's own KV heads, MQA.

    Weights are shared evenly and the cache by whole KV heads, in 16 bits; what the GPUs tell each other is not
    counted. A line starts where the model fits.

    Args:
        shape: a model of several KV heads.
        gpu: what it runs on.
        kv_len: tokens of each sequence.
        batch_size: sequences.

    Raises:
        ValueError: if it does not fit as many GPUs as it has KV heads.
    """
    sizes = dict(kv_len=kv_len, batch_size=batch_size)
    return _against_gpus(
        shape,
        gpu,
        lambda p: p.step_s and 1000 * p.step_s,
        "ms for the next token, at least",
        step_by_gpus_text(shape, gpu, **sizes),
        sizes,
    )


def step_by_gpus_text(shape: Shape, gpu: Gpu, *, kv_len: int, batch_size: int) -> str:
    """Returns the figure of `step_by_gpus` in words.

    Example:
        >>> from gqa_lab.costs import GPUS, SHAPES
        >>> said = step_by_gpus_text(SHAPES["llama-2-70b"], GPUS["h100-sxm"], kv_len=4096, batch_size=32)
        >>> print(said.replace(". ", ".\\n"))
        From 8 to 16 GPUs the step of 8 KV heads becomes 1.6 times faster, not 2.
        Llama-2-70B, 32 sequences of 4,096 tokens on H100 SXM, at least: 64 KV heads take 18.6 ms on 8 GPUs and 9.32 \
on 16, 8 take 6.73 and 4.17, 1 takes 6.64 and 4.12.
    """
    own, sizes = shape.n_kv_heads, dict(kv_len=kv_len, batch_size=batch_size)
    took = {g: [_plan(shape, gpu, g, n, **sizes).step_s for n in (own, 2 * own)] for g in _options(shape)}
    if None in took[own]:
        raise ValueError(
            f"{shape.name} with {batch_size} · {kv_len:,} tokens does not fit {own} {gpu.name}; take fewer"
        )
    said = []
    for g, seconds in took.items():
        if None not in seconds:  # where it fits
            first, then = (f"{1000 * s:.3g}" for s in seconds)
            heads, where = f"{g} take{'s' if g == 1 else ''}", ("", "")
            if not said:
                heads, where = f"{g} KV heads take", (f" ms on {own} GPUs", f" on {2 * own}")
            said.append(f"{heads} {first}{where[0]} and {then}{where[1]}")
    faster = took[own][0] / took[own][1]
    return (
        f"From {own} to {2 * own} GPUs the step of {own} KV heads becomes {faster:.2g} times faster, not 2. "
        f"{shape.name}, {batch_size} sequences of {kv_len:,} tokens on {gpu.name}, at least: {', '.join(said)}."
    )


def _options(shape: Shape) -> list[int]:
    return sorted({shape.n_heads, shape.n_kv_heads, 1}, reverse=True)


def _plan(shape: Shape, gpu: Gpu, n_kv_heads: int, n_gpus: int, **sizes: int) -> Plan:
    return plan(shape, gpu, n_kv_heads=n_kv_heads, n_gpus=n_gpus, **sizes)


def _against_gpus(
    shape: Shape, gpu: Gpu, value: Callable[[Plan], float | None], name: str, text: str, sizes: dict[str, int]
) -> Axes:
    axes, counts = new_axes(width=8.0, height=4.0), divisors(shape.n_heads)
    for g in _options(shape):
        ys = [value(_plan(shape, gpu, g, n, **sizes)) for n in counts]
        points = [(n, y) for n, y in zip(counts, ys, strict=True) if y is not None]
        style = STYLE[attention_kind(shape.n_heads, g)]
        axes.plot(*zip(*points, strict=True), linewidth=2, markersize=7, **style)
        kind = attention_kind(shape.n_heads, g).upper()
        at, offset, side = (-1, (0, -18), "right") if g == 1 else (0, (4, 9), "left")
        axes.annotate(
            f"{g} KV head{'s' if g > 1 else ''} ({kind})",
            points[at],
            offset,
            textcoords="offset points",
            ha=side,
            color=style["color"],
            weight="bold",
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xticks(counts, [str(n) for n in counts])
    axes.yaxis.set_major_formatter(lambda y, _: f"{y:,.4g}")
    axes.minorticks_off()
    axes.margins(0.05, 0.16)
    axes.grid(color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel("GPUs that share the model")
    axes.set_ylabel(name)
    axes.set_label(text)
    axes.set_title(text.split(". ")[0], loc="left", fontsize=11)
    return axes
