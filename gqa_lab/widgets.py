"""A slider in front of a figure of `plots`: it never flickers, works by keyboard, and is saved as a picture."""

import base64
import html
from collections.abc import Callable, Sequence
from dataclasses import replace

import ipywidgets
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes

from gqa_lab import plots
from gqa_lab.config import divisors
from gqa_lab.costs import GPUS, SHAPES, Plan, Shape, plan


class LiveFigure(ipywidgets.VBox):
    """Controls above a figure that is redrawn whenever one of them moves, with its text alternative below.

    The picture is the value of one HTML widget, so the old one stays until the new one is there. Saved in a
    notebook, the first picture and its text remain visible where no kernel runs.

    Args:
        draw: `draw(**values) -> Axes`, called with the controls' values by name.
        table: `table(**values) -> str`, lines of fixed width above the picture; None means none.
        controls: widgets by the names of its arguments.
    """

    def __init__(
        self, draw: Callable[..., Axes], *, table: Callable[..., str] | None = None, **controls: ipywidgets.Widget
    ):
        self._draw, self._table, self._controls = draw, table, controls
        self._view = ipywidgets.HTML()
        super().__init__([*controls.values(), self._view])
        for control in controls.values():
            control.observe(self._refresh, "value")
        self._refresh()

    def _refresh(self, _change=None) -> None:
        values = {name: control.value for name, control in self._controls.items()}
        self._picture = plots.Picture(self._draw(**values))
        text, image = html.escape(self._picture.text), base64.b64encode(self._picture.png).decode()
        lines = f"<pre>{html.escape(self._table(**values))}</pre>" if self._table else ""
        self._view.value = f'{lines}<img alt="{text}" src="data:image/png;base64,{image}"><p>{text}</p>'

    def _repr_mimebundle_(self, **kwargs):
        live = super()._repr_mimebundle_(**kwargs)
        still, metadata = self._picture._repr_mimebundle_()
        still["image/png"] = base64.b64encode(still["image/png"]).decode()
        return live | still, metadata


def bytes_explorer(shape: Shape) -> LiveFigure:
    """Returns the bytes per token of `shape` with a slider over every `n_kv_heads` it could have."""
    return LiveFigure(
        lambda n_kv_heads: plots.bytes_per_token(replace(shape, n_kv_heads=n_kv_heads)),
        n_kv_heads=_kv_heads_slider(shape.n_heads, shape.n_kv_heads),
    )


def head_map_explorer(n_heads: int = 8, n_kv_heads: int = 2) -> LiveFigure:
    """Returns the head map with its bytes: a number field for `n_heads`, a slider over its divisors below."""
    heads = ipywidgets.BoundedIntText(
        n_heads, min=1, max=plots.MANY_HEADS, description="n_heads", style={"description_width": "90px"}
    )
    kv_heads = _kv_heads_slider(n_heads, n_kv_heads)
    figure = LiveFigure(
        lambda n_kv_heads: plots.head_map(max(kv_heads.options), n_kv_heads, head_dim=128),
        n_kv_heads=kv_heads,
    )

    def new_heads(change) -> None:
        nearest = min(divisors(change.new), key=lambda g: abs(g - kv_heads.value))
        kv_heads.options = divisors(change.new)
        kv_heads.value = nearest
        figure._refresh()

    heads.observe(new_heads, "value")
    figure.children = (heads, *figure.children)
    return figure


def saturation_explorer(head_dim: int = 64, *, scaled: bool = False) -> LiveFigure:
    """Returns the weights of random queries with a number and a slider for head_dim, and a switch for the scale."""
    style = {"description_width": "90px"}
    number = ipywidgets.BoundedIntText(head_dim, min=1, max=256, description="head_dim", style=style)
    slider = ipywidgets.IntSlider(head_dim, min=1, max=256, description="head_dim", readout=False, style=style)
    ipywidgets.link((number, "value"), (slider, "value"))
    figure = LiveFigure(
        lambda head_dim, scaled: plots.saturation(head_dim, scaled=scaled),
        head_dim=slider,
        scaled=ipywidgets.Checkbox(scaled, description="divide scores by √head_dim"),
    )
    figure.children = (number, *figure.children)
    return figure


def head_viewer(
    weights: Float[np.ndarray, "L H T S"], words: Sequence[str], *, layer: int = 0, head: int = 0
) -> LiveFigure:
    """Returns the attention weights of one head on one sentence, with sliders for the layer and the head.

    Args:
        weights: of every layer and head; T = S, each row sums to 1.
        words: the tokens, T of them.
        layer, head: shown first.

    Raises:
        ValueError: for words that are not as many as the tokens, or fewer than three.
    """
    if not len(words) == weights.shape[2] == weights.shape[3] >= 3:
        raise ValueError(f"words ({len(words)}) must be 3 or more, and weights [L, H, T, T] with as many tokens T")
    words = [word.strip() or repr(word) for word in words]

    def draw(layer: int, head: int) -> Axes:
        shown = weights[layer, head]
        return plots.attention_weights(
            shown, queries=words, keys=words, title=f"Layer {layer}, head {head}: {_habits(shown)}"
        )

    return LiveFigure(
        draw,
        layer=_slider("layer", layer, len(weights) - 1),
        head=_slider("head", head, weights.shape[1] - 1),
    )


def _habits(weights: Float[np.ndarray, "T T"]) -> str:
    """Returns the mean weight on three places, over the queries for which these are three different tokens."""
    later = np.arange(2, len(weights))
    itself, before, first = (weights[later, keys].mean() for keys in (later, later - 1, 0))
    return f"{itself:.2f} on itself, {before:.2f} one before, {first:.2f} on the first"


def _slider(name: str, value: int, largest: int) -> ipywidgets.IntSlider:
    return ipywidgets.IntSlider(value, min=0, max=largest, description=name)


def cache_growth_explorer(
    models: tuple[str, ...] = ("llama-2-7b", "phi-2", "smollm2-1.7b", "command-r-v01"),
    turns: int = 50,
    tokens_per_turn: int = 2000,
) -> LiveFigure:
    """Returns the cache of a growing chat, with a list of `models` and two number fields: turns, tokens per turn."""
    wide = {"description_width": "110px"}
    return LiveFigure(
        lambda model, turns, tokens_per_turn: plots.cache_growth(
            SHAPES[model], turns=turns, tokens_per_turn=tokens_per_turn
        ),
        model=ipywidgets.Dropdown(options=models, value=models[0], description="model", style=wide),
        turns=ipywidgets.BoundedIntText(turns, min=1, max=500, description="turns", style=wide),
        tokens_per_turn=ipywidgets.BoundedIntText(
            tokens_per_turn, min=1, max=20_000, description="tokens per turn", style=wide
        ),
    )


def waves_explorer(n_kv_heads: int = 2, *, n_blocks: int = 20, n_slots: int = 8, n_splits: int = 1) -> LiveFigure:
    """Returns the programs of one sequence in the slots of a small GPU, with a slider for the number of splits."""
    return LiveFigure(
        lambda n_splits: plots.waves(n_kv_heads, n_blocks=n_blocks, n_splits=n_splits, n_slots=n_slots),
        n_splits=ipywidgets.IntSlider(
            n_splits, min=1, max=n_blocks, description="n_splits", style={"description_width": "90px"}
        ),
    )


def planner(
    model: str = "llama-3.1-8b", gpu: str = "h100-sxm", *, kv_len: int = 8192, batch_size: int = 32
) -> LiveFigure:
    """Returns the planner: model, GPU, context, batch, `n_kv_heads`, bytes of the cache, price; a table and a figure.

    The models are those whose decode step is known: neither mixtures of experts nor latent caches, which
    `python -m gqa_lab.costs` plans as far as they are known.

    Args:
        model, gpu: names in `SHAPES` and `GPUS`, shown first.
        kv_len, batch_size: tokens of each sequence, and sequences, shown first.
    """
    models = ipywidgets.Dropdown(options=[key for key, shape in SHAPES.items() if shape.mlp_matrices], value=model)
    heads = _kv_heads_slider(SHAPES[model].n_heads, SHAPES[model].n_kv_heads)
    controls = dict(
        gpu=ipywidgets.Dropdown(options=list(GPUS), value=gpu),
        n_gpus=ipywidgets.BoundedIntText(1, min=1, max=64),
        kv_len=ipywidgets.BoundedIntText(kv_len, min=1, max=262_144),
        batch_size=ipywidgets.BoundedIntText(batch_size, min=1, max=256),
        n_kv_heads=heads,
        kv_bytes_per_element=ipywidgets.Dropdown(options=[("32 bits", 4), ("16 bits", 2), ("8 bits", 1)], value=2),
        price_per_hour=ipywidgets.BoundedFloatText(0, min=0, max=10_000, step=0.1),
    )
    words = ("model", "GPU", "GPUs", "tokens each", "sequences", "n_kv_heads", "cache", "price an hour")
    for control, word in zip((models, *controls.values()), words, strict=True):
        control.description, control.style.description_width = word, "90px"

    def asked(gpu: str, price_per_hour: float, **sizes) -> Plan:
        return plan(SHAPES[models.value], GPUS[gpu], price_per_hour=price_per_hour or None, **sizes)

    figure = LiveFigure(
        lambda **values: plots.step_time(asked(**values)), table=lambda **values: asked(**values).table(), **controls
    )

    def new_model(change) -> None:
        heads.unobserve(figure._refresh, "value")  # or it would draw once with the options of the old model
        shape = SHAPES[change.new]
        heads.options, heads.value = divisors(shape.n_heads), shape.n_kv_heads
        heads.observe(figure._refresh, "value")
        figure._refresh()

    models.observe(new_model, "value")
    rows = (
        (models, controls["gpu"], controls["n_gpus"]),
        (controls["kv_len"], _linked_slider(controls["kv_len"])),
        (controls["batch_size"], _linked_slider(controls["batch_size"])),
        (heads, controls["kv_bytes_per_element"], controls["price_per_hour"]),
    )
    figure.children = (*(ipywidgets.HBox(row) for row in rows), figure._view)
    return figure


def _linked_slider(number: ipywidgets.BoundedIntText) -> ipywidgets.IntSlider:
    """A slider for the same value, which moves once the hand lets go."""
    slider = ipywidgets.IntSlider(number.value, min=number.min, max=number.max, readout=False, continuous_update=False)
    ipywidgets.link((number, "value"), (slider, "value"))
    return slider


def _kv_heads_slider(n_heads: int, n_kv_heads: int) -> ipywidgets.SelectionSlider:
    return ipywidgets.SelectionSlider(
        options=divisors(n_heads),
        value=n_kv_heads,
        description="n_kv_heads",
        style={"description_width": "90px"},
    )
