import numpy as np
import pytest

from gqa_lab import widgets
from gqa_lab.costs import SHAPES


def alt_text(figure) -> str:
    return figure._view.value.split('alt="')[1].split('"')[0]


def test_moving_the_slider_redraws_the_picture_and_its_text():
    figure = widgets.bytes_explorer(SHAPES["llama-2-70b"])
    before = figure._view.value
    figure.children[0].value = 1
    assert alt_text(figure).startswith("With 1 KV heads, a token keeps 40 KiB") and figure._view.value != before


def test_the_number_field_offers_the_divisors_of_the_new_number_of_heads():
    figure = widgets.head_map_explorer(8, 2)
    heads, kv_heads, _ = figure.children
    heads.value = 12
    assert kv_heads.options == (1, 2, 3, 4, 6, 12) and kv_heads.value == 2
    assert alt_text(figure).startswith("12 query heads on 2 KV heads (GQA), 6 on each")
    heads.value = 7
    assert kv_heads.options == (1, 7) and kv_heads.value == 1
    assert alt_text(figure).startswith("7 query heads on 1 KV head (MQA)")
    kv_heads.value = 7
    assert alt_text(figure).startswith("7 query heads on 7 KV heads (MHA)")


def test_the_head_viewer_shows_the_head_of_the_sliders_and_says_where_it_looks():
    weights = np.zeros((2, 3, 4, 4))
    weights[...] = np.eye(4)
    weights[1, 2] = np.eye(4, k=-1)
    weights[1, 2, 0, 0] = 1
    figure = widgets.head_viewer(weights, ["The", " dog", " ate", "\n"])
    assert alt_text(figure).startswith("Layer 0, head 0: 1.00 on itself, 0.00 one before, 0.00 on the first.")
    layer, head, _ = figure.children
    assert (layer.min, layer.max, head.min, head.max) == (0, 1, 0, 2)
    layer.value, head.value = 1, 2
    assert alt_text(figure).startswith("Layer 1, head 2: 0.00 on itself, 1.00 one before, 0.00 on the first.")
    assert "query dog at key The (1.00), query ate at key dog (1.00)" in alt_text(figure)
    with pytest.raises(ValueError, match="words .3. must be 3 or more"):
        widgets.head_viewer(weights, ["The", " dog", " ate"])


@pytest.mark.parametrize("figure", [widgets.head_map_explorer(), widgets.bytes_explorer(SHAPES["phi-2"])])
def test_a_saved_notebook_keeps_the_picture_and_its_text(figure):
    data, metadata = figure._repr_mimebundle_()
    assert {"image/png", "text/plain", "application/vnd.jupyter.widget-view+json"} <= set(data)
    assert metadata["image/png"]["alt"] == data["text/plain"]


def test_one_change_of_heads_never_shows_a_kv_count_that_does_not_divide():
    figure = widgets.head_map_explorer(8, 2)
    seen = []
    figure._view.observe(lambda change: seen.append(alt_text(figure)), "value")
    for n in (9, 10, 1, 72, 6):
        figure.children[0].value = n
    assert seen and all(int(t.split()[0]) % int(t.split(" on ")[1].split()[0]) == 0 for t in seen)
