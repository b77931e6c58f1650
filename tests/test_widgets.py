import html

import numpy as np
import pytest

from gqa_lab import plots, widgets
from gqa_lab.costs import GPUS, SHAPES, plan


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


@pytest.mark.parametrize(
    "figure", [widgets.head_map_explorer(), widgets.bytes_explorer(SHAPES["phi-2"]), widgets.planner()]
)
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


def planner_parts(figure):
    """The view, and every control below the figure by its description; of a number and its slider, the number."""
    boxes = figure.children[:-1]
    controls = {control.description: control for box in boxes for control in box.children if control.description}
    sliders = {box.children[0].description: box.children[1] for box in boxes if len(box.children) == 2}
    return controls, sliders


def table_of(figure) -> str:
    return html.unescape(figure._view.value.split("<pre>")[1].split("</pre>")[0])


def test_the_planner_shows_the_figure_of_what_is_chosen():
    figure = widgets.planner()
    assert alt_text(figure).startswith("With 8 KV heads the cache is 70% of what a step reads. 32 sequences of 8,192")
    planner_parts(figure)[0]["n_kv_heads"].value = 1
    assert alt_text(figure).startswith("With 1 KV head the cache is 23% of what a step reads. 32 sequences of 8,192")


def test_the_planner_shows_the_table_of_what_is_chosen(monkeypatch):
    picture = plots.head_map(2, 1)
    monkeypatch.setattr(plots, "step_time", lambda plan: picture)  # seven changes, and the picture is not looked at
    figure = widgets.planner()
    controls, sliders = planner_parts(figure)
    first = plan(SHAPES["llama-3.1-8b"], GPUS["h100-sxm"], kv_len=8192, batch_size=32)
    assert table_of(figure) == first.table()
    controls["GPU"].value, controls["GPUs"].value, controls["cache"].value = "l4", 2, 1
    controls["n_kv_heads"].value, controls["price an hour"].value = 4, 0.7
    sliders["tokens each"].value, controls["sequences"].value = 5000, 3
    assert controls["tokens each"].value == 5000 and sliders["sequences"].value == 3
    chosen = plan(
        SHAPES["llama-3.1-8b"], GPUS["l4"], n_gpus=2, kv_len=5000, batch_size=3, n_kv_heads=4, kv_bytes_per_element=1,
        price_per_hour=0.7,
    )  # fmt: skip
    assert table_of(figure) == chosen.table()


def test_another_model_is_drawn_once_and_with_its_own_kv_heads():
    figure = widgets.planner()
    controls, _ = planner_parts(figure)
    seen = []
    figure._view.observe(lambda change: seen.append(table_of(figure).splitlines()[0]), "value")
    controls["model"].value = "smollm2-135m"
    assert controls["n_kv_heads"].options == (1, 3, 9)
    assert seen == ["SmolLM2-135M with 3 KV heads (GQA) on one H100 SXM"]
    controls["n_kv_heads"].value = 9
    assert seen[1:] == ["SmolLM2-135M with 9 KV heads (MHA) on one H100 SXM"]


def test_every_model_that_the_planner_offers_can_be_drawn():
    offered = planner_parts(widgets.planner())[0]["model"].options
    assert len(offered) == sum(s.mlp_matrices is not None for s in SHAPES.values()) > 60
    for key in offered:
        assert plan(SHAPES[key], GPUS["t4"], kv_len=99, batch_size=1).weight_bytes_read
