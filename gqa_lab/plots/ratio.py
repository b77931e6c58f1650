"""Shazeer's ratio of memory access to arithmetic, drawn."""

from matplotlib.axes import Axes

from gqa_lab.plots.frame import INK, STYLE, new_axes


def shazeer_ratio(n: int, d: int, h: int, *, batch_sizes: tuple[int, ...] = (1, 4, 16, 64, 256, 1024)) -> Axes:
    """Draws elements moved per multiply-add of MHA and MQA against the batch size, and the terms that they consist of.

    Both axes are logarithmic: where a line is flat, a larger batch no longer helps.

    Args:
        n: tokens in the cache.
        d: d_model.
        h: n_heads.
        batch_sizes: b, in rising order.

    Source: Shazeer 2019 (arXiv 1911.02150) sections 2.4.1 and 3.1; constant factors are left out there, too.
    """
    axes = new_axes(height=3.6)
    terms = {"1/b: weights": [1 / b for b in batch_sizes]}
    terms |= {name: [value] * len(batch_sizes) for name, value in _flat_terms(n, d, h).items()}
    for (name, ys), dashes in zip(terms.items(), ((6, 2), (2, 2), (8, 2, 2, 2), (1, 3)), strict=True):
        axes.plot(batch_sizes, ys, color="black", linewidth=0.8, dashes=dashes)
        at, offset, side = (-1, (6, -3), "left") if ys[0] == ys[-1] else (-2, (-10, -6), "right")
        axes.annotate(name, (batch_sizes[at], ys[at]), offset, textcoords="offset points", fontsize=9, ha=side)
    for kind in ("mha", "mqa"):
        ys = [_ratio(kind, n, d, h, b) for b in batch_sizes]
        axes.plot(batch_sizes, ys, linewidth=2, label=kind.upper(), **STYLE[kind])
        axes.annotate(kind.upper(), (batch_sizes[2], ys[2]), (4, 8), textcoords="offset points", weight="bold",
                      color=INK[kind])  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(batch_sizes, [str(b) for b in batch_sizes])
    axes.set_xlim(batch_sizes[0] / 1.3, batch_sizes[-1] ** 1.4)  # room for the labels
    axes.spines["bottom"].set_bounds(batch_sizes[0] / 1.3, batch_sizes[-1] * 1.3)
    axes.minorticks_off()
    axes.set_xlabel("batch size b, sequences decoded together", loc="left")
    axes.set_ylabel("elements moved per multiply-add")
    axes.set_label(shazeer_ratio_text(n, d, h, batch_sizes=batch_sizes))
    axes.set_title(axes.get_label().split(". ")[0], loc="left", fontsize=11)
    return axes


def shazeer_ratio_text(n: int, d: int, h: int, *, batch_sizes: tuple[int, ...] = (1, 4, 16, 64, 256, 1024)) -> str:
    """Returns the figure of `shazeer_ratio` in words.

    Example:
        >>> print(shazeer_ratio_text(2048, 4096, 32).replace(". ", ".\\n"))
        A larger batch helps MHA only until n/d rules, MQA far longer.
        With n = 2048, d = 4096, h = 32: from batch 1 to 1024, MHA falls from 1.5 to 0.501, MQA from 1.02 to 0.0168.
        MHA cannot fall below n/d = 0.5, MQA not below 1/d + n/(dh) = 0.0159.
    """
    first, last = batch_sizes[0], batch_sizes[-1]
    falls = (
        f"{kind.upper()}{' falls' if kind == 'mha' else ''} from {_ratio(kind, n, d, h, first):.3g} to "
        f"{_ratio(kind, n, d, h, last):.3g}"
        for kind in ("mha", "mqa")
    )
    return (
        f"A larger batch helps MHA only until n/d rules, MQA far longer. With n = {n}, d = {d}, h = {h}: from batch "
        f"{first} to {last}, {', '.join(falls)}. MHA cannot fall below n/d = {n / d:.3g}, MQA not below "
        f"1/d + n/(dh) = {1 / d + n / (d * h):.3g}."
    )


def _flat_terms(n: int, d: int, h: int) -> dict[str, float]:
    return {"n/d: cache of MHA": n / d, "n/(dh): cache of MQA": n / (d * h), "1/d: activations": 1 / d}


def _ratio(kind: str, n: int, d: int, h: int, b: int) -> float:
    return 1 / b + (n / d if kind == "mha" else 1 / d + n / (d * h))
