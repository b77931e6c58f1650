"""Lesson 07 and its optional page beyond their outputs: what they quote is what is recorded."""

import re
from pathlib import Path
from statistics import mean

import nbformat
import pytest

from gqa_lab.listen import story
from gqa_lab.recorded import recorded

ROOT = Path(__file__).resolve().parents[1]
CELLS = {c.id: c for c in nbformat.read(ROOT / "notebooks" / "07_quality.ipynb", as_version=4).cells}
SOLUTION = {c.id: c.source for c in nbformat.read(ROOT / "solutions" / "07_quality.ipynb", as_version=4).cells}
PAGE = (ROOT / "docs" / "quality_further.md").read_text(encoding="utf-8")
LIVE = "convert_live"


@pytest.fixture(scope="module")
def record():
    return recorded("convert_smollm2")


def printed(cell_id: str) -> str:
    return "".join(out.get("text", "") for out in CELLS[cell_id].outputs)


def on(record: dict, name: str, text: str) -> float:
    return mean(record["before_after"][name][text])


# ---- what the lesson measures live ---------------------------------------------------------------


def test_everything_the_lesson_measures_is_recorded_for_machines_without_the_model():
    names = re.findall(r"measured\(\s*\"(\w+)\"", "\n".join(c.source for c in CELLS.values()))
    assert set(names) | {"k_proj", "v_proj"} == set(recorded(LIVE)["found"])


def test_what_is_measured_live_is_what_the_long_record_has_of_the_same_window(record):
    found, raw = recorded(LIVE)["found"], record["before_after"]
    for live, name in (("original", "original"), ("pooled", "mean"), ("expanded", "expanded")):
        assert found[live] == pytest.approx(raw[name]["B"][0], abs=1e-3)
    for part in ("k_proj", "v_proj"):
        assert found[part] == pytest.approx(record["summary"]["geometry"][part]["length_of_mean"], abs=1e-4)


def test_the_saved_outputs_are_the_recorded_numbers():
    found = recorded(LIVE)["found"]
    assert f"3 KV heads {found['original']:.2f}, 1 KV head {found['pooled']:.2f}" in printed("p2-settle")
    assert f"mean times √3 {found['rescaled']:.2f}" in printed("rescale-run")
    assert "layer 0 pooled {:.2f}, and fitted {:.2f}".format(*found["layer_0"]) in printed("fit-run")


def test_the_story_of_the_lesson_is_the_one_that_was_measured(record):
    assert story() == (ROOT / "benchmarks" / "narrative.txt").read_text(encoding="utf-8")
    assert record["texts"]["B"]["n_tokens"] == 1024


# ---- the optional page ---------------------------------------------------------------------------


def rows_of(heading: str) -> list[list[str]]:
    """The cells of the first table under a heading, without its head."""
    lines = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0].splitlines()
    table = [line for line in lines if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[2:]]


def test_the_table_of_repairs_without_training_is_the_record(record):
    losses, rows = record["why"]["losses"], rows_of("Without training")
    ways = ("mean", "mean_rescaled", "turned_mean", "turned_mean_rescaled", "low_rank")
    for way, (_, *numbers) in zip(ways, rows, strict=True):
        k, v, both = (losses[way][part] for part in ("k", "v", "both"))
        assert numbers == [f"{x:.2f}" for x in (k["A"], v["A"], both["A"], both["B"])]


def test_what_the_page_says_about_turning_is_recorded(record):
    why, geometry = record["why"], record["summary"]
    losses = why["losses"]
    for way in ("turned_mean", "low_rank"):
        gain = {text: losses["mean"]["both"][text] - losses[way]["both"][text] for text in "AB"}
        assert gain["A"] > gain["B"] > 1 and min(losses[way]["both"].values()) > 5
    assert why["largest_change_of_loss_by_turning"] < 1e-6 and why["n_tokens_for_turns"] == 4096
    said = re.search(r"keeps (\d+)% instead of (\d+)%, of values (\d+)% instead of (\d+)%", PAGE).groups()
    shares = [
        geometry[when][part]["kept_of_activations"]
        for part in ("k_proj", "v_proj")
        for when in ("geometry_turned", "geometry")
    ]
    assert list(said) == [f"{100 * share:.0f}" for share in shares]
    assert f"loses {on(record, 'original', 'A'):.2f} on A and {on(record, 'original', 'B'):.2f} on B" in PAGE


def test_the_table_of_spared_layers_is_the_record(record):
    for step, row in zip(record["spared"]["steps"], rows_of("Which layers"), strict=True):
        assert row == [str(len(step["spared"])), f"{step['loss']['A']:.2f}", f"{step['loss']['B']:.2f}"]


def test_the_table_of_fitted_layers_is_the_record(record):
    one = record["one_layer"]
    assert (one["n_tokens"], one["n_steps"]) == (1024, 60)
    for (layer, found), row in zip(one["layers"].items(), rows_of("One layer, fitted"), strict=True):
        grown = [found[name] - one["before"] for name in ("pooled", "fitted", "output_refitted")]
        assert row == [layer, *(f"{x:.2f}" for x in grown)]
        assert found["least_squares_minus_mean"] < 1e-9


def test_the_page_says_where_fitting_first_begins_and_ends(record):
    first, *_, last = record["recovery_fitted"]["points"]
    for text in "AB":
        start, end = (mean(point["losses"][text]) for point in (first, last))
        assert f"from {start:.2f} to {end:.2f} on {text}" in PAGE
    assert record["layer_by_layer"]["n_steps"] == 60 and record["layer_by_layer"]["n_tokens"] == 1024


def test_the_table_of_converted_decoders_is_the_record_and_the_order_is_the_papers():
    scratch = recorded("quality")
    conversion, shares = scratch["summary"]["conversion"], ("0%", "5%", "10%")
    rows = rows_of("Small decoders, converted")
    assert [row[:2] for row in rows] == [[rule, n] for rule in ("mean", "first", "random") for n in "421"]
    for rule, n, *numbers in rows:
        assert numbers == [f"{conversion[rule][n][share]['mean']:.2f}" for share in shares]
        assert all(conversion[rule][n][share]["n_worse"] == 6 for share in shares)
    for n in "421":
        for share in shares:
            means = [conversion[rule][n][share]["mean"] for rule in ("mean", "first", "random")]
            assert means == sorted(means)
    control = [f"{scratch['summary']['control'][share]:.2f}" for share in shares]
    assert "The control itself loses {}, {} and {}".format(*control) in PAGE
    assert f"{scratch['sizes']['steps']} steps" in PAGE and len(scratch["sizes"]["seeds"]) == 6
    assert all(run["changed_by_expansion"] < 1e-6 for run in scratch["runs"].values() if "changed_by_expansion" in run)


# ---- the sentences of the lesson -----------------------------------------------------------------


def test_the_lesson_says_of_the_recovery_what_is_recorded(record):
    text = CELLS["recovery-text"].source
    for name, said in record["summary"]["recovery"].items():
        original = on(record, "original", name)
        assert f"{said['start']:.2f} to {said['end']:.2f} on {name}" in text
        assert f"{name}: {said['share_recovered']:.0%} back to the original" in printed("recovery-code")
        assert f"{original:.2f} to {said['control_end']:.2f}" in text
    pooled = record["recovery_pooled"]
    assert f"{pooled['points'][-1]['n_tokens']:,} other tokens" in CELLS["add-up-why"].source
    fitted = record["layer_by_layer"]
    assert f"({fitted['n_steps']} steps, {fitted['n_tokens']:,} tokens of A's kind)" in text
    starts = record["recovery_fitted"]["points"][0]["losses"]
    assert all(mean(starts[name]) < record["summary"]["recovery"][name]["end"] for name in "AB")
    assert pooled["learning_rate"] == record["recovery_control"]["learning_rate"]
    after_a_quarter = {name: mean(pooled["points"][2]["losses"][name]) for name in "AB"}
    said = record["summary"]["recovery"]["B"]
    assert after_a_quarter["B"] - said["end"] < (said["start"] - said["end"]) / 2
    assert pooled["points"][2]["n_tokens"] == 20_480


def test_what_the_lesson_says_of_single_layers_is_recorded(record):
    choices = record["choices"]["choices"]
    last, third = choices["last"], choices["every_third"]
    assert third["sum_of_single"] > 2 * last["sum_of_single"]
    assert last["measured"] == pytest.approx(third["measured"], abs=0.05)
    said = CELLS["add-up-why"].source
    assert f"Every third costs {third['measured'] / third['sum_of_single'] - 1:.0%} more than its sum" in said
    assert f"the last ten {last['measured'] / last['sum_of_single']:.1f} times theirs" in said
    assert "2.2 nats, at sums of 0.93 and 2.07" in SOLUTION["which-layers-alternative"]
    assert [f"{x['sum_of_single']:.2f}" for x in (last, third)] == ["0.93", "2.07"]


def test_what_the_lesson_says_of_the_repairs_is_recorded(record):
    losses = record["why"]["losses"]
    mean_, rescaled, turned = (losses[way] for way in ("mean", "mean_rescaled", "turned_mean"))
    assert rescaled["both"]["A"] > mean_["both"]["A"] and rescaled["both"]["B"] < mean_["both"]["B"]
    assert rescaled["v"]["A"] < mean_["v"]["A"] - 1.5 and rescaled["k"]["A"] > mean_["k"]["A"]
    gains = {part: mean_[part]["A"] - turned[part]["A"] for part in ("k", "v", "both")}
    assert min(gains.values()) > 1 and max(gains, key=gains.get) == "v"
    assert all(turned["both"][text] > on(record, "original", text) + 3 for text in "AB")


def test_what_the_lesson_says_of_decoders_from_scratch_is_recorded():
    scratch, text = recorded("quality"), CELLS["scratch-text"].source
    said, sizes = scratch["summary"], scratch["sizes"]
    bars = [found for name in ("text", "equalised") for found in said[name].values()]
    assert len(bars) == 6 and all(0 < bar["n_worse"] < 6 for bar in bars)
    assert all(bar["interval"][0] < 0 < bar["interval"][1] for bar in bars)
    assert said["text"]["1"]["n_worse"] == 5 and "five of six seeds are worse" in text
    assert f"{max(abs(end) for bar in bars for end in bar['interval']):.2f} nats" in text
    n_bytes = sizes["steps"] * sizes["batch"] * sizes["window"]
    n_parameters = {run["n_parameters"] for name, run in scratch["runs"].items() if name.startswith("text_0_8")}
    assert f"{n_bytes:,} bytes" in text and f"{n_parameters.pop() / 1e6:.2f} million" in text
    assert sizes["recall_every"] == 20 and "every 20 steps" in CELLS["recall-text"].source
    assert sizes["recall_steps"] == 500 and scratch["recall_task"]["n_pairs"] == 8
    mha, mqa = (scratch["runs"][f"recall_0_{n}"]["n_parameters"] for n in (8, 1))
    assert f"{1 - mqa / mha:.0%} fewer parameters" in text and scratch["models"]["recall"]["head_dim"] == 4


def test_the_replies_to_the_second_prediction_hold_the_recorded_number():
    from gqa_lab.checks.engine import PREDICTIONS

    assert f"{recorded(LIVE)['found']['pooled']:.2f}, as the next cell shows" in PREDICTIONS["07.p2"].options["c"][1]


def test_no_table_of_the_lesson_says_more_than_its_means():
    names: dict = {"mean": mean}
    exec(CELLS["tables-code"].source, names)
    exec(CELLS["tables-means"].source, names)
    apart = [row["MHA"] - row["GQA"] for row in names["means"].values()]
    assert sorted(abs(x) <= 0.5 for x in apart) == [False, True, True, True] and max(apart) == pytest.approx(3.925)
    assert f"{-apart[1]:+.2f}" == "+0.13" and "+0.13" in CELLS["tables-text"].source
