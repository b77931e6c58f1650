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
