"""What the scale is for: the measurement, its two figures, the widget, and the exercise on keys used."""

import numpy as np
import pytest

from gqa_lab import plots, widgets
from gqa_lab.checks import case, check
from gqa_lab.checks.engine import EXERCISES

pytestmark = pytest.mark.usefixtures("shapes_unchecked")  # the checks hand over wrong shapes on purpose
KEYS_USED = EXERCISES["01.keys_used"]
RIGHT = {"keys": 2**1.75, "head_dim": 16}


# ---- measurement and figures ---------------------------------------------------------------------


def test_scores_have_a_standard_deviation_of_the_root_of_head_dim_and_scaled_ones_of_1():
    rng = np.random.default_rng(3)
    for head_dim in (4, 16, 64, 256):
        scores = rng.standard_normal((400, head_dim)) @ rng.standard_normal((400, head_dim)).T
        assert scores.std() == pytest.approx(head_dim**0.5, rel=0.06)


@pytest.mark.parametrize("head_dim, largest, keys", [(4, 0.25, 21), (64, 0.78, 2.1), (256, 0.89, 1.4)])
def test_without_the_scale_one_key_takes_nearly_everything(head_dim, largest, keys):
    weights = plots.random_weights(head_dim, scaled=False)
    assert np.allclose(weights.sum(-1), 1)
    assert weights.max(-1).mean() == pytest.approx(largest, abs=0.01)
    assert plots.effective_keys(weights) == pytest.approx(keys, rel=0.03)
    assert 0.09 < plots.random_weights(head_dim, scaled=True).max(-1).mean() < 0.12


def test_the_curve_is_what_was_measured():
    axes = plots.saturation_by_head_dim()
    without, scaled = (line.get_ydata() for line in axes.lines)
    assert list(axes.lines[0].get_xdata()) == [4, 8, 16, 32, 64, 128, 256]
    assert all(np.diff(without) > 0) and max(scaled) < 0.12
    assert without[4] == plots.random_weights(64, scaled=False).max(-1).mean()


@pytest.mark.parametrize("axes", [plots.saturation_by_head_dim(), plots.saturation(64, scaled=False)])
def test_both_figures_say_themselves_in_words_and_start_at_0(axes):
    data, metadata = plots.Picture(axes)._repr_mimebundle_()
    assert len(data["text/plain"]) > 40 and metadata["image/png"]["alt"] == data["text/plain"]
    assert axes.get_ylim() == (0, 1)


def test_the_widget_redraws_for_a_head_dim_by_slider_or_by_number_and_for_the_scale():
    figure = widgets.saturation_explorer(64)
    field, slider, scaled = figure.children[:3]
    assert "0.78 on average" in figure._view.value
    field.value = 256
    assert slider.value == 256 and "head_dim 256, not scaled" in figure._view.value
    slider.value = 16
    assert field.value == 16 and "head_dim 16, not scaled" in figure._view.value
    scaled.value = True
    assert "head_dim 16, scaled" in figure._view.value


# ---- 01.keys_used ---------------------------------------------------------------------------


def test_seed_0_is_what_the_notebook_prints():
    assert case("01.keys_used") == {
        "weights": [0.5, 0.25, 0.125, 0.125],
        "fewer_than": 6,
        "head_dims": [4, 8, 16, 64, 256],
    }
    assert check("01.keys_used", RIGHT)
    assert check("01.keys_used", {"keys": 3.36, "head_dim": np.int64(16)})


@pytest.mark.parametrize(
    "change, part",
    [
        ({"keys": 1.75}, "entropy in bits"),
        ({"keys": 1.213}, "natural logarithm. Take e to its power"),
        ({"keys": 2**1.213}, "2 goes with log₂"),
        ({"keys": 5.75}, "2 goes with log₂"),
        ({"keys": 4}, "You counted the weights"),
        ({"keys": 2}, "1 / the largest weight"),
        ({"keys": 2.909}, "sum of the squares"),
        ({"keys": 2**-1.75}, "minus sign"),
        ({"keys": 3.1}, "3.1 is not right"),
        ({"head_dim": 8}, "still uses 6 keys or more"),
        ({"head_dim": 64}, "a smaller one does as well"),
        ({"head_dim": 32}, "32 is not right"),
        ({"head_dim": "16"}, "is text"),
    ],
)
def test_a_wrong_count_of_keys_is_named(change, part):
    case("01.keys_used")
    verdict = check("01.keys_used", RIGHT | change)
    assert verdict.status == "failed" and part in verdict.message and "Right: " in verdict.message, verdict


@pytest.mark.parametrize("seed", range(0, 99, 7))
def test_the_limit_is_never_so_near_that_another_draw_decides(seed):
    """Students draw their own random numbers, 1,000 queries and keys of their own; all have to find the same head_dim."""
    numbers = KEYS_USED.draw(seed)
    rng, used = np.random.default_rng((77, seed)), []
    for d in numbers["head_dims"]:
        scores = rng.standard_normal((1000, d)) @ rng.standard_normal((64, d)).T
        e = np.exp(scores - scores.max(-1, keepdims=True))
        used.append(plots.effective_keys(e / e.sum(-1, keepdims=True)))
    first = next(d for d, n in zip(numbers["head_dims"], used, strict=True) if n < numbers["fewer_than"])
    assert first == KEYS_USED.right(numbers)["head_dim"], used
