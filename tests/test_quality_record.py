import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from statistics import mean, stdev

import pytest

from gqa_lab.costs import n_parameters
from gqa_lab.plots import Picture, loss_by_kv_heads, recall_by_kv_heads
from gqa_lab.plots.quality import agreement
from gqa_lab.recorded import RESULTS, recorded

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
import quality  # noqa: E402
import quality_runs  # noqa: E402

FEWER = ("4", "2", "1")


@pytest.fixture(scope="module")
def record():
    if not (RESULTS / "quality.json").exists():
        pytest.skip("benchmarks/quality.py has not been run to its end")
    return recorded("quality")


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """The folder of an interrupted and resumed smoke, its record, and what it printed."""
    folder = tmp_path_factory.mktemp("parts")
    return folder, quality.measure(quality_runs.SMOKE, folder)


def test_every_path_runs_and_the_table_shows_every_comparison(smoke):
    _, made = smoke
    assert set(made["runs"]) == set(quality.runs(quality_runs.SMOKE)) and len(made["runs"]) == 2 * 21
    lines = quality.table(made["summary"]).splitlines()
    assert len(lines) == 1 + 2 * (1 + 3) + (1 + 4) + 3 * (1 + 9)
    assert json.loads(json.dumps(made)) == made


def test_a_measurement_that_was_interrupted_goes_on_and_finds_the_same(smoke, capsys):
    folder, made = smoke
    lost = ["text_1_1", "equalised_0_2", "recall_1_8", "control_0", "random_1_2"]
    for name in lost:
        (folder / f"quality_{name}.json").unlink()
    again = quality.measure(quality_runs.SMOKE, folder)
    assert f"37 runs are there, {len(lost)} to make" in capsys.readouterr().out
    assert again["runs"] == made["runs"] and again["summary"] == made["summary"]


def test_runs_of_other_sizes_are_made_again(smoke):
    folder, _ = smoke
    assert len(quality.kept(folder, quality_runs.SMOKE)) == 42
    assert not quality.kept(folder, replace(quality_runs.SMOKE, rate=1e-3))


def test_the_control_begins_where_the_trained_decoder_ended_and_expansion_changes_nothing(smoke):
    _, made = smoke
    for seed in (0, 1):
        assert made["runs"][f"control_{seed}"]["losses"]["0%"] == made["runs"][f"text_{seed}_8"]["loss"]
    assert all(run["changed_by_expansion"] < 1e-4 for run in made["runs"].values() if "loss" in run)
    assert quality.RULES.keys() == made["summary"]["conversion"].keys()


def test_the_difference_of_pairs_is_that_of_a_t_table():
    found = quality.differences([2.931, 2.951, 2.917], [2.930, 2.948, 2.919])
    assert found["pairs"] == pytest.approx([0.001, 0.003, -0.002]) and found["n_worse"] == 2
    half = 4.303 * stdev([0.001, 0.003, -0.002]) / 3**0.5
    assert found["interval"] == pytest.approx([found["mean"] - half, found["mean"] + half])


def test_the_windows_that_are_measured_lie_in_the_held_out_text_and_are_told_once():
    sizes = quality_runs.Sizes()
    windows, text = quality_runs.held_out_windows(sizes), quality_runs.held_out_text()
    assert windows.shape == (sizes.held_out_windows, sizes.window + 1) and len(
        {tuple(w.tolist()) for w in windows}
    ) == len(windows)
    for window in windows[::10]:
        assert bytes(window.tolist()) in text.encode()
    assert bytes(windows[-1].tolist()) not in quality_runs.training_text().encode()


def test_the_record_was_made_by_this_script_at_these_sizes(record):
    sizes = quality_runs.Sizes()
    assert record["sizes"] == quality.plain(sizes) and set(record["runs"]) == set(quality.runs(sizes))
    models = {"text": quality_runs.TEXT_MODEL, "recall": quality_runs.RECALL_MODEL}
    assert record["models"] == {name: asdict(config) for name, config in models.items()}
    assert record["recall_task"] == quality_runs.PAIRS | {"solved": quality_runs.SOLVED}
    assert "dirty" not in "".join(record["commits"]) and record["provenance"]["commit"] in record["commits"]


def test_the_recorded_summary_follows_from_the_recorded_runs(record):
    assert json.loads(json.dumps(quality.summary(record["runs"], quality_runs.Sizes().seeds))) == record["summary"]


def test_every_recorded_difference_is_that_of_its_own_seed(record):
    runs, said = record["runs"], record["summary"]
    for seed in range(6):
        for n in FEWER:
            mha, control = runs[f"text_{seed}_8"]["loss"], runs[f"control_{seed}"]["losses"]
            for name in ("text", "equalised"):
                assert said[name][n]["pairs"][seed] == runs[f"{name}_{seed}_{n}"]["loss"] - mha
            for rule, share in ((rule, share) for rule in ("mean", "first", "random") for share in control):
                pair = runs[f"{rule}_{seed}_{n}"]["losses"][share] - control[share]
                assert said["conversion"][rule][n][share]["pairs"][seed] == pair


def test_recorded_means_intervals_and_counts_are_those_of_their_pairs(record):
    said = record["summary"]
    compared = [said[name][n] for name in ("text", "equalised") for n in FEWER]
    compared += [d for by_n in said["conversion"].values() for shares in by_n.values() for d in shares.values()]
    assert len(compared) == 2 * 3 + 3 * 3 * 3
    for d in compared:
        half = 2.571 * stdev(d["pairs"]) / 6**0.5
        assert len(d["pairs"]) == 6 and d["mean"] == pytest.approx(mean(d["pairs"]))
        assert d["interval"] == pytest.approx([d["mean"] - half, d["mean"] + half])
        assert d["n_worse"] == len([pair for pair in d["pairs"] if pair > 0])


def test_recorded_decoders_have_the_parameters_of_their_config(record):
    mha = n_parameters(quality_runs.TEXT_MODEL)
    assert mha == 836_736
    for seed in range(6):
        counts = [record["runs"][f"text_{seed}_{n}"]["n_parameters"] for n in (8, 4, 2, 1)]
        assert counts == [836_736, 771_200, 738_432, 722_048]
        assert all(abs(record["runs"][f"equalised_{seed}_{n}"]["n_parameters"] - mha) <= 768 for n in FEWER)


def test_a_recorded_recall_ends_where_it_is_solved_or_with_the_last_step(record):
    sizes = record["sizes"]
    for name, run in record["runs"].items():
        if name.startswith("recall"):
            *before, last = run["accuracies"]
            solved = last >= record["recall_task"]["solved"]
            n_steps = sizes["recall_every"] * len(run["accuracies"])
            assert run["steps_to_solve"] == (n_steps if solved else None)
            assert solved or n_steps == sizes["recall_steps"]
            assert all(accuracy < record["recall_task"]["solved"] for accuracy in before)
    for n, found in record["summary"]["recall"].items():
        steps = [record["runs"][f"recall_{seed}_{n}"]["steps_to_solve"] for seed in range(6)]
        assert found == {"n_solved": sum(step is not None for step in steps), "steps_to_solve": steps}


def test_recorded_losses_lie_between_nothing_learnt_and_everything_known(record):
    for run in record["runs"].values():
        if "training_losses" in run:
            assert 1 < run["loss"] < 3.5 and run["training_losses"][0] > run["training_losses"][-1]
            assert run["changed_by_expansion"] < 1e-4


def heights(dots):
    return [y for _, y in dots.get_offsets().tolist()]


def test_the_figure_of_losses_draws_every_pair_its_mean_and_its_interval(smoke):
    _, made = smoke
    axes, said = loss_by_kv_heads(made), made["summary"]
    of_mha, *others = axes.collections
    losses = [made["runs"][f"text_{seed}_8"]["loss"] for seed in (0, 1)]
    assert heights(of_mha) == pytest.approx([loss - mean(losses) for loss in losses])
    drawn = [said[name][n] for n in FEWER for name in ("text", "equalised")]
    assert [heights(dots) for dots in others] == [pytest.approx(found["pairs"]) for found in drawn]
    assert [len(dots.get_facecolor()) and dots.get_facecolor()[0].tolist() == [1, 1, 1, 1] for dots in others] == [
        False,
        True,
    ] * 3
    bars = [list(line.get_ydata()) for line in axes.lines if len(line.get_ydata()) == 2]
    assert bars == [[0, 0], *(found["interval"] for found in drawn)]
    assert "recorded on" in axes.get_xlabel() and axes.get_title(loc="left") == Picture(axes).text.split(". ")[0]
    assert f"1: {said['text']['1']['mean']:+.3f}" in Picture(axes).text


def test_the_figure_of_recall_draws_every_seed_and_those_that_did_not_solve_it_hollow(smoke):
    _, made = smoke
    made = json.loads(json.dumps(made)) | {"sizes": made["sizes"] | {"recall_steps": 100}}
    for n, steps in {"8": [20, 40], "4": [40, 60], "2": [60, None], "1": [None, None]}.items():
        made["summary"]["recall"][n] = {"n_solved": 2 - steps.count(None), "steps_to_solve": steps}
    axes = recall_by_kv_heads(made)
    solved, not_solved = axes.collections[::2], axes.collections[1::2]
    assert [heights(dots) for dots in solved] == [[20, 40], [40, 60], [60], []]
    assert [heights(dots) for dots in not_solved] == [[], [], [100], [100, 100]]
    assert Picture(axes).text == (
        "The fewer KV heads, the later recall is solved. Median steps by KV heads: 8: 30, 4: 50, 2: not solved, "
        "1: not solved. Seeds that solve it within 100 steps: 8: 2 of 2, 4: 2 of 2, 2: 1 of 2, 1: 0 of 2."
    )
    made["summary"]["recall"]["4"]["steps_to_solve"] = [20, 40]
    assert recall_by_kv_heads(made).get_title(loc="left") == "Steps until recall is solved, by KV heads"


@pytest.mark.parametrize(
    ("signs", "said"),
    [
        ({"4": "++", "2": "++", "1": "++"}, "all 2 seeds lose more with 4, 2 and 1 KV heads"),
        ({"4": "--", "2": "+-", "1": "++"}, "all 2 seeds lose more with 1 KV head and lose less with 4 KV heads, they disagree on 2"),
        ({"4": "+-", "2": "-+", "1": "+-"}, "the 2 seeds disagree on 4, 2 and 1 KV heads"),
    ],
)  # fmt: skip
def test_what_seeds_say_together_is_said_only_if_all_say_it(signs, said):
    assert agreement({n: {"pairs": [float(f"{sign}0.1") for sign in of]} for n, of in signs.items()}) == said


def test_the_figures_of_the_record_say_its_numbers(record):
    said = Picture(loss_by_kv_heads(record)).text
    assert f"MHA loses {record['summary']['mha']['mean']:.2f}" in said
    for name in ("text", "equalised"):
        assert agreement(record["summary"][name]) in said
    solved = record["summary"]["recall"]["1"]["n_solved"]
    assert f"1: {solved} of 6." in Picture(recall_by_kv_heads(record)).text
