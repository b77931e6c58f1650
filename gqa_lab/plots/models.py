"""What a token keeps in published models, drawn."""

from collections.abc import Mapping

from matplotlib.axes import Axes

from gqa_lab.costs import SHAPES, ModelShape, kv_bytes_per_token
from gqa_lab.plots.frame import INK, STYLE, new_axes

MLA_STYLE = {"color": "black", "marker": "x", "linewidth": 1}
NAMED = {  # which way from its marker a name stands, in points
    "gpt-2": (1, 9),
    "smollm2-135m": (7, -8),
    "qwen3-0.6b": (-6, 6),
    "qwen2.5-0.5b": (7, -9),
    "phi-2": (-6, 6),
    "llama-2-7b": (-6, 6),
    "falcon-7b": (-7, -4),
    "llama-3.1-8b": (7, 1),
    "command-r-v01": (-6, 6),
    "llama-2-70b": (6, -14),
    "llama-3.1-405b": (-10, 7),
    "deepseek-v3": (-1, 8),
}


def models(shapes: Mapping[str, ModelShape] = SHAPES) -> Axes:
    """Draws the bytes that a token keeps against parameters, a marker for each model; both axes are logarithmic.

    In 16 bits, all layers, before any window is full. Models whose number of parameters is not known are left out.

    Args:
        shapes: published models by name.
    """
    known = _known(shapes)
    axes = new_axes(width=8.0, height=5.0)
    for kind in ("mha", "gqa", "mqa", "mla"):
        points = [(s.params_billion, _kib(s)) for s in known.values() if s.kind == kind]
        style = MLA_STYLE if kind == "mla" else STYLE[kind] | {"edgecolor": "white", "linewidth": 0.5}
        look = {key: value for key, value in style.items() if key != "linestyle"}
        axes.scatter([x for x, _ in points], [y for _, y in points], s=42, label=kind.upper(), zorder=2, **look)
    for key in NAMED.keys() & known.keys():
        shape, (right, up) = known[key], NAMED[key]
        color = "black" if shape.kind == "mla" else INK[shape.kind]
        name = f"{shape.name.split(' (')[0]} ({shape.kind.upper()})"
        at = (shape.params_billion, _kib(shape))
        side = "left" if right > 0 else "right"
        axes.annotate(name, at, (right, up), textcoords="offset points", ha=side, fontsize=8.5, color=color)
    axes.set_xscale("log")
    axes.set_yscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.4g}")
    axes.yaxis.set_major_formatter(lambda y, _: f"{y:,.4g}")
    axes.grid(color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel("parameters, billions")
    axes.set_ylabel("KiB per token, all layers, 16 bits")
    axes.set_label(models_text(shapes))
    axes.set_title(axes.get_label().split(". ")[0], loc="left", fontsize=11)
    return axes


def models_text(shapes: Mapping[str, ModelShape] = SHAPES) -> str:
    """Returns the figure of `models` in words.

    Example:
        >>> print(models_text().replace(". ", ".\\n"))
        Models of one size keep from 8 to 512 KiB per token: Falcon-7B and Llama-2-7B.
        74 of 78 published models, from 0.124 to 671 billion parameters; of 4 that number is not known here.
        MHA (18): 36 to 1,280 KiB.
        GQA (49): 12 to 504 KiB.
        MQA (4): 8 to 26 KiB.
        MLA (3): 30.4 to 68.62 KiB.
    """
    known = _known(shapes)
    least, most = _widest_pair(known)
    sizes = [s.params_billion for s in known.values()]
    kinds = []
    for kind in ("mha", "gqa", "mqa", "mla"):
        kib = [_kib(s) for s in known.values() if s.kind == kind]
        if kib:
            kinds.append(f"{kind.upper()} ({len(kib)}): {min(kib):,.3g} to {max(kib):,.4g} KiB.")
    missing = f"; of {len(shapes) - len(known)} that number is not known here" if len(known) < len(shapes) else ""
    return (
        f"Models of one size keep from {_kib(least):,.4g} to {_kib(most):,.4g} KiB per token: {least.name} and "
        f"{most.name}. {len(known)} of {len(shapes)} published models, from {min(sizes):.3g} to {max(sizes):.3g} "
        f"billion parameters{missing}. {' '.join(kinds)}"
    )


def _known(shapes: Mapping[str, ModelShape]) -> dict[str, ModelShape]:
    return {key: shape for key, shape in shapes.items() if shape.params_billion}


def _kib(shape: ModelShape) -> float:
    return kv_bytes_per_token(shape, bytes_per_element=2) / 1024


def _widest_pair(known: Mapping[str, ModelShape]) -> tuple[ModelShape, ModelShape]:
    """The two models within 5% of parameters of each other whose bytes per token differ most."""
    pairs = (
        (low, high)
        for low in known.values()
        for high in reversed(known.values())  # the latest of equals
        if abs(low.params_billion / high.params_billion - 1) < 0.05
    )
    return max(pairs, key=lambda pair: _kib(pair[1]) / _kib(pair[0]))
