"""Exercises are made from solutions; untouched they say "not attempted", solved "passed", wrong why."""

import doctest
import importlib.util
import os
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from gqa_lab.checks.answers import Hand
from gqa_lab.checks.engine import EXERCISES
from gqa_lab.checks.expose import FindMistake

ROOT = Path(__file__).resolve().parents[1]
spec = importlib.util.spec_from_file_location("build_exercises", ROOT / "tools" / "build_exercises.py")
tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool)
SOLUTIONS = sorted((ROOT / "solutions").glob("*.ipynb"))
CHECK = re.compile(r'check\(\s*"([\w.]+)"\s*,\s*(\w+)\s*\)')
code, text = nbformat.v4.new_code_cell, nbformat.v4.new_markdown_cell


def sample() -> nbformat.NotebookNode:
    """A solution notebook of lesson 05, as an author would write it, but short."""
    cells = [
        text("# Exercises\n\n## 1 · All of them (by hand, ●●○, 5 minutes, core)"),
        text("Only in the solution: why it works.", metadata={"tags": ["solution-only", "other"]}),
        code('from gqa_lab.checks import check, progress', metadata={"tags": ["setup"], "collapsed": True}),
        code('### BEGIN SOLUTION\n### STUB: head_map = {"map": None,\n'
             '### STUB:             "kv_head": None}\n'
             'head_map = {"map": [0, 0, 1, 1], "kv_head": 1}\n### END SOLUTION'),
        code('check("05.head_map", head_map)'),
        code('def expand_kv(k, n_heads):\n    """Returns k with H heads."""\n    ### BEGIN SOLUTION\n'
             '    return k.repeat_interleave(n_heads // k.shape[1], dim=1)\n    ### END SOLUTION'),
        code('check("05.expand", expand_kv)'),
        code('def grouped_attention(q, k, v, *, lengths=None, window=None):\n'
             '    ### BEGIN SOLUTION\n    return q\n    ### END SOLUTION'),
        code('check("05.grouped", grouped_attention)'),
        code("progress()"),
    ]  # fmt: skip
    for n, cell in enumerate(cells):
        cell.id = f"cell-{n}"
    cells[4].execution_count, cells[4].outputs = 3, [nbformat.v4.new_output("stream", text="old")]
    return nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": {"name": "mine", "display_name": "Mine"}})


# ---- the builder ---------------------------------------------------------------------------------


def test_solutions_become_stubs():
    cells = {cell.id: cell for cell in tool.exercise_from(sample()).cells}
    assert cells["cell-3"].source == 'head_map = {"map": None,\n            "kv_head": None}'
    assert cells["cell-5"].source.endswith('"""Returns k with H heads."""\n    raise NotImplementedError')
    assert "cell-1" not in cells and list(cells) == [f"cell-{n}" for n in range(10) if n != 1]
    assert cells["cell-4"].source == 'check("05.head_map", head_map)'


def test_the_examples_in_the_builder_run():
    assert doctest.testmod(tool).failed == 0


def test_outputs_counts_and_machine_metadata_are_removed():
    notebook = tool.exercise_from(sample())
    assert all(not c.outputs and c.execution_count is None for c in notebook.cells if c.cell_type == "code")
    assert notebook.metadata == tool.METADATA and notebook.metadata.kernelspec.name == "python3"
    assert notebook.cells[1].metadata == {"tags": ["setup"]}


def test_code_around_a_solution_stays():
    source = "a = 1\nif a:\n    ### BEGIN SOLUTION\n    ### STUB: b = ...\n    b = 2\n    ### END SOLUTION\nc = 3"
    assert tool.stubbed(source) == "a = 1\nif a:\n    b = ...\nc = 3"
    assert tool.stubbed("x = 1\n\n") == "x = 1\n\n"


@pytest.mark.parametrize(
    "source, part",
    [
        ("### BEGIN SOLUTION\nx", "without ### END"),
        ("### END SOLUTION", "without ### BEGIN"),
        ("### BEGIN SOLUTION\n### BEGIN SOLUTION\n### END SOLUTION", "inside"),
    ],
)
def test_a_broken_marker_is_named_with_notebook_and_cell(source, part):
    notebook = sample()
    notebook.cells[5].source = source
    with pytest.raises(ValueError, match=f"x.ipynb, cell cell-5: .*{part}"):
        tool.exercise_from(notebook, "x.ipynb")


def test_check_names_what_is_stale_missing_or_orphaned(tmp_path, monkeypatch, capsys):
    solutions, exercises = tmp_path / "solutions", tmp_path / "exercises"
    solutions.mkdir()
    monkeypatch.setattr(tool, "ROOT", tmp_path)
    nbformat.write(sample(), solutions / "05_x.ipynb")
    assert tool.main(["--check"]) == 1 and "exercises/05_x.ipynb is not in step" in capsys.readouterr().out
    assert tool.main([]) == 0 and tool.main(["--check"]) == 0
    first = (exercises / "05_x.ipynb").read_bytes()
    assert tool.build(solutions, exercises) == [] and first.endswith(b"}\n") and b"\r" not in first
    (exercises / "05_x.ipynb").write_bytes(first + b"\n")
    nbformat.write(sample(), exercises / "09_gone.ipynb")
    assert tool.build(solutions, exercises, check=True) == ["05_x.ipynb", "09_gone.ipynb"]
    assert tool.main([]) == 0
    assert [p.name for p in exercises.iterdir()] == ["05_x.ipynb"] and (exercises / "05_x.ipynb").read_bytes() == first


def test_the_cells_of_an_exercise_carry_what_nbgrader_reads():
    data = {cell.id: cell.metadata.get("nbgrader") for cell in tool.exercise_from(sample()).cells}
    assert data["cell-4"] == {"schema_version": 3, "grade_id": "05-head_map", "grade": True, "solution": False,
                              "locked": True, "task": False, "points": 4}  # fmt: skip
    assert data["cell-5"] == {"schema_version": 3, "grade_id": "05-expand-answer", "grade": False, "solution": True,
                              "locked": False, "task": False}  # fmt: skip
    assert [i for i, found in data.items() if found is None] == ["cell-0", "cell-2", "cell-9"]


def test_numbers_are_locked_a_second_answer_is_counted_and_a_reason_is_read_by_a_person():
    notebook = sample()
    notebook.cells[2].source = 'case("05.head_map")'
    notebook.cells[4].source = '### BEGIN SOLUTION\n### STUB: x = {"reason": None}\nx = 1\n### END SOLUTION'
    cells = {cell.id: cell.metadata.get("nbgrader") for cell in tool.exercise_from(notebook).cells}
    assert cells["cell-2"] == {"schema_version": 3, "grade_id": "05-head_map-case", "grade": False, "solution": False,
                               "locked": True, "task": False}  # fmt: skip
    names = [cells[f"cell-{n}"]["grade_id"] for n in (3, 4, 5)]
    assert names == ["05-expand-answer", "05-expand-answer2", "05-expand-answer3"]
    assert [(c["grade"], c.get("points")) for c in (cells["cell-3"], cells["cell-4"])] == [(False, None), (True, 2)]


def test_a_check_without_a_level_or_beside_another_is_refused_by_name():
    notebook = sample()
    notebook.cells[0].source = "# Exercises"
    with pytest.raises(ValueError, match="x.ipynb: '# Exercises' names no difficulty and place"):
        tool.exercise_from(notebook, "x.ipynb")
    notebook = sample()
    notebook.cells[4].source *= 2
    with pytest.raises(ValueError, match="x.ipynb: cell cell-4 has 2 checks"):
        tool.exercise_from(notebook, "x.ipynb")


# ---- the notebooks -------------------------------------------------------------------------------


def checks_in(notebook) -> dict[str, str]:
    """Exercise ids and the names of the answers, as checked in the notebook."""
    return dict(match for cell in notebook.cells if cell.cell_type == "code" for match in CHECK.findall(cell.source))


def verdicts_in(cells) -> dict[str, str]:
    """Exercise ids and their latest verdicts, from the outputs."""
    texts = [
        out.data.get("text/plain", "") for c in cells if c.cell_type == "code" for out in c.outputs if "data" in out
    ]
    heads = (re.match(r". (passed|failed|not attempted) · ([\w.]+)\n(.*)", plain, re.S) for plain in texts)
    return {m[2]: f"{m[1]}: {m[3]}" for m in heads if m}


def mistake_of(exercise_id: str) -> tuple[str, str] | None:
    """Code that makes the first known mistake of an exercise, as `wrong`, and what the check has to say; None where
    wrong answers are run instead of listed."""
    exercise = EXERCISES[exercise_id]
    if isinstance(exercise, Hand):
        mistake = exercise.mistakes(exercise.draw(0))[0]
        answer = exercise.right(exercise.draw(0)) | {mistake.name: mistake.wrong}
        return f"wrong = {answer!r}", f"`{mistake.name}`: {mistake.diagnosis}"
    if mistakes := getattr(exercise, "mistakes", ()):
        return f'wrong = EXERCISES["{exercise_id}"].mistakes[0].wrong', mistakes[0].diagnosis
    if isinstance(exercise, FindMistake):
        return f"wrong = dict.fromkeys({exercise.keys!r}, 0)", "`exposing`: "
    return None


def executed(notebook, folder):
    """Runs it untouched, and then each exercise once more with its first known mistake put in."""
    first = len(notebook.cells)
    for exercise_id in checks_in(notebook):
        if mistake_of(exercise_id):
            notebook.cells.append(code(f"from gqa_lab.checks.engine import EXERCISES\n{mistake_of(exercise_id)[0]}"))
            notebook.cells.append(code(f'check("{exercise_id}", wrong)'))
    # without the real model: cells that need it end cleanly, and the test stays short
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    client = NotebookClient(notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(folder)}})
    client.execute(env=os.environ | {"PYTHONPATH": path, "GQA_LAB_CACHE": str(folder)})
    return notebook.cells[:first], notebook.cells[first:]


@pytest.fixture(scope="module", params=["sample", *(p.name for p in SOLUTIONS)])
def played(request, tmp_path_factory):
    """An exercise notebook, its cells run untouched, and the cells with mistakes put in."""
    if request.param == "sample":
        notebook = tool.exercise_from(sample())
    else:
        notebook = tool.exercise_from(nbformat.read(ROOT / "solutions" / request.param, as_version=4))
    names = checks_in(notebook)
    return names, *executed(notebook, tmp_path_factory.mktemp("work"))


def test_an_untouched_exercise_runs_and_nothing_is_attempted(played):
    names, untouched, _ = played
    verdicts = verdicts_in(untouched)
    assert names and set(verdicts) == set(names)
    assert all(verdict.startswith("not attempted") for verdict in verdicts.values()), verdicts


def test_a_known_mistake_put_in_is_named_in_the_notebook(played):
    names, _, wrong = played
    verdicts = verdicts_in(wrong)
    assert set(verdicts) == {i for i in names if mistake_of(i)}
    for exercise_id, verdict in verdicts.items():
        assert verdict.startswith(f"failed: {mistake_of(exercise_id)[1]}"), verdict


@pytest.mark.parametrize("path", sorted((ROOT / "exercises").glob("*.ipynb")), ids=lambda path: path.name)
def test_every_check_is_worth_what_its_level_says_and_grade_ids_follow_from_exercise_ids(path):
    cells, heading = nbformat.read(path, as_version=4).cells, ""
    ids = [data["grade_id"] for cell in cells if (data := cell.metadata.get("nbgrader"))]
    assert len(set(ids)) == len(ids) and all(re.fullmatch(r"[\w-]+", name) for name in ids)
    graded = {}
    for cell in cells:
        heading = cell.source if cell.cell_type == "markdown" and "## " in cell.source else heading
        if found := CHECK.search(cell.source):
            data, level = cell.metadata["nbgrader"], EXERCISES[found[1]].level
            kind, stars, _, _, place = re.fullmatch(r"(.+) (\S{3}) (\d+) (min), (\w+)", level).groups()
            graded[found[1]] = data["points"] == stars.count("●") * (2 if place == "core" else 1)
            assert data["grade_id"] == found[1].replace(".", "-") and data["grade"] and data["locked"]
            assert f"({kind}, {stars}, " in heading and f"minutes, {place})" in heading, level
    assert graded == dict.fromkeys(checks_in(nbformat.read(path, as_version=4)), True)


def test_exercises_are_in_step_with_their_solutions():
    assert tool.build(ROOT / "solutions", ROOT / "exercises", check=True) == []


@pytest.mark.parametrize("path", SOLUTIONS, ids=lambda path: path.name)
def test_a_solved_notebook_has_passed_every_check(path):
    notebook = nbformat.read(path, as_version=4)
    verdicts = verdicts_in(notebook.cells)
    assert set(verdicts) == set(checks_in(notebook)) != set()
    assert all(verdict.startswith("passed") for verdict in verdicts.values()), verdicts


@pytest.mark.parametrize("path", SOLUTIONS, ids=lambda path: path.name)
def test_a_solution_notebook_covers_every_exercise_of_its_lesson(path):
    lesson = path.name.partition("_")[0]
    assert set(checks_in(nbformat.read(path, as_version=4))) == {i for i in EXERCISES if i.startswith(lesson)}
