"""The classroom: nbgrader's real cycle with simulated students, and what `course.py classroom` writes.

The cycle needs the extra `[classroom]` and runs as a part of its own (`-m classroom`); the rest runs with every test.
"""

import csv
import functools
import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell

from gqa_lab.checks.engine import EXERCISES, case, seed_of

ROOT = Path(__file__).resolve().parents[1]


def load(path: Path):
    """Returns a script of the tools as a module, under its own name."""
    sys.path.insert(0, str(path.parent))
    try:
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    return module


tool = load(ROOT / "tools" / "make_classroom.py")
SOLUTIONS = sorted(ROOT.glob("solutions/*.ipynb"))


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    """A course folder of all lessons, with a seed that is always the same."""
    folder = tmp_path_factory.mktemp("all") / "course"
    tool.make(ROOT, folder, None, seed=20)
    return folder


@pytest.fixture(scope="module")
def hidden(course):
    """The second checks of that course; they read the course once instead of once for each answer."""
    module = load(course.with_name("course-teacher") / "hidden_checks.py")
    module.ReadAgain, module.Course = module.Course, functools.cache(module.Course)
    return module


# ---- the course folder


def test_an_assignment_for_each_lesson_with_solutions_locked_tests_and_a_second_check(course):
    paths = sorted(course.glob("source/*/*.ipynb"))
    assert [path.name for path in paths] == [path.name for path in SOLUTIONS]
    for path in paths:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
        tests = [
            cell
            for cell in notebook.cells
            if cell.metadata.get("nbgrader", {}).get("grade") and "check(" in cell.source
        ]
        lesson = path.name.partition("_")[0]
        assert [cell.metadata.nbgrader.grade_id for cell in tests] == [
            i.replace(".", "-") for i in found_in(path.name) if i.startswith(lesson)
        ]
        for cell in tests:
            assert cell.metadata.nbgrader.locked and cell.source.count("recheck") == 1
            assert (
                cell.source.index("BEGIN HIDDEN TESTS") < cell.source.index("recheck") < cell.source.index("END HIDDEN")
            )
        text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
        assert "solution-only" not in str(notebook) and "(../" not in text and "nothing is marked" not in text


def found_in(name: str) -> list[str]:
    """Returns the exercises of a lesson in the order of its notebook."""
    source = (ROOT / "exercises" / name).read_text(encoding="utf-8")
    return re.findall(r'check\(\\"([\w.]+)\\"', source)


def test_nothing_of_a_second_check_and_no_answer_lies_in_the_course_folder(course):
    assert not list(course.rglob("hidden_checks.py")) and not list(course.rglob("answer_key*"))
    settings = json.loads((course.with_name("course-teacher") / "settings.json").read_text())
    everything = "".join(path.read_text(encoding="utf-8") for path in course.rglob("*") if path.is_file())
    assert settings["key"] not in everything and settings["seed"] == 20


def test_a_folder_that_holds_something_is_refused_and_untouched(tmp_path):
    for name in ("here", "there-teacher"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.txt").write_text("keep")
    for name in ("here", "there"):
        with pytest.raises(tool.Problem, match="not empty: give a new folder"):
            tool.make(ROOT, tmp_path / name, ["05"])
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["mine.txt", "mine.txt"]
    (tmp_path / "empty").mkdir()
    assert tool.make(ROOT, tmp_path / "empty", ["5"]) == ["05_grouped_query"]


def test_a_lesson_without_exercises_is_named(tmp_path, capsys):
    assert tool.main([str(tmp_path / "x"), "--lessons", "99"]) == 1
    assert "there is no lesson 99; there are 00, 01, 02" in capsys.readouterr().err
    assert tool.main([str(tmp_path / "x"), "--lessons", "00"]) == 1
    assert "lesson 00 has no exercises; name one that has" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_lessons_have_letters_too_and_one_without_exercises_is_asked_about_only(tmp_path):
    for name in (
        "notebooks/00_start",
        "notebooks/05_x",
        "notebooks/A1_beyond",
        "solutions/05_x",
        "solutions/A1_beyond",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.ipynb").touch()
    lessons = tool.chosen_lessons(tmp_path, ["a1", "0", "5", "A1"])
    assert lessons == ["A1", "00", "05"] and tool.chosen_lessons(tmp_path, None) == ["00", "05", "A1"]
    assert [path.name for path in tool.solutions_of(tmp_path, lessons)] == ["A1_beyond.ipynb", "05_x.ipynb"]


def test_an_answer_with_a_reason_is_read_by_a_person_and_says_how():
    path = ROOT / "solutions" / "06_what_it_costs.ipynb"
    cells = tool.assignment_from(nbformat.read(path, as_version=4), path.name).cells
    (n,) = [
        n for n, cell in enumerate(cells) if cell.metadata.get("nbgrader", {}).get("grade_id") == "06-choose-answer"
    ]
    data = cells[n].metadata.nbgrader
    assert (data.grade, data.solution, data.points) == (True, True, 2)
    assert "2: it names the numbers" in cells[n + 1].source and '"reason"' in cells[n].source
    assert cells[n + 2].metadata.nbgrader.grade_id == "06-choose" and cells[n + 2].metadata.nbgrader.points == 3


# ---- what the teacher reads


def test_the_answer_key_has_every_answer_and_every_wrong_answer(course):
    key = (course.with_name("course-teacher") / "answer_key.md").read_text(encoding="utf-8")
    flat = " ".join(key.replace("\\|", "|").split())
    for exercise in EXERCISES.values():
        assert f"### {exercise.id}: " in key
        listed = getattr(exercise, "mistakes", ())
        listed = listed(exercise.draw(0)) if callable(listed) else listed
        for mistake in listed:
            assert " ".join(mistake.diagnosis.split()) in flat, (exercise.id, mistake.name)
    assert "repeat_interleave(n_heads // k.shape[1], dim=1)" in key and "### BEGIN" not in key and "STUB" not in key


def test_the_sheet_for_the_projector_asks_every_question_and_answers_none(course):
    from gqa_lab.checks.engine import PREDICTIONS

    page = (course.with_name("course-teacher") / "predictions.html").read_text(encoding="utf-8")
    asked = set(PREDICTIONS)
    assert page.count("<section>") == 1 + len(asked) and all(f"<h2>{i}</h2><p>" in page for i in asked)
    for prediction_id in asked:
        for text, reply in PREDICTIONS[prediction_id].options.values():
            assert reply not in page and f"<li>{tool.as_html(text)}</li>" in page
    questions = re.findall(r"<p>(.*?)</p><ol", page)
    assert all(len(question.split()) > 4 for question in questions) and "None" not in "".join(questions)


def test_teaching_names_what_students_get_wrong_in_every_lesson():
    teaching = (ROOT / "TEACHING.md").read_text(encoding="utf-8")
    assert tool.refreshed(teaching, ROOT) == teaching, "run python tools/make_classroom.py --teaching"
    assert all(f"| {exercise_id} |" in teaching for exercise_id in EXERCISES)


# ---- the second check

HANDS = [e for e in EXERCISES.values() if callable(getattr(e, "mistakes", ()))]
BUILDS = [e for e in EXERCISES.values() if e not in HANDS and getattr(e, "mistakes", ())]


def answers_in(name: str) -> dict[str, object]:
    """Returns the right answers of a solution notebook by exercise, other right forms left out."""
    found, namespace = {}, {}
    for cell in nbformat.read(ROOT / "solutions" / name, as_version=4).cells:
        if cell.cell_type != "code" or "solution-only" in cell.metadata.get("tags", []):
            continue
        if re.search(r"\b(listen\(|load_smollm2\(|progress\(|case\()", cell.source):
            continue
        match = tool.CHECK.search(cell.source)
        if not match:
            exec(compile(cell.source, cell.id, "exec"), namespace)
        else:
            before = cell.source[: match.start()].rpartition("\n")[0]
            exec(compile(before, cell.id, "exec"), namespace)
            found[match[1]] = namespace[match[2]]
    return found


@pytest.fixture
def without_model(monkeypatch, tmp_path):
    """As the second check is run: without the real model, and without the shape checks of conftest.py, which keep the
    classes of a module that is read again apart from its older ones."""
    monkeypatch.setenv("GQA_LAB_CACHE", str(tmp_path))
    monkeypatch.delenv("GQA_LAB_STUDENT", raising=False)
    finders = [finder for finder in sys.meta_path if "jaxtyping" not in type(finder).__module__]
    assert len(finders) < len(sys.meta_path)
    monkeypatch.setattr(sys, "meta_path", finders)


@pytest.mark.parametrize("path", SOLUTIONS, ids=lambda path: path.stem)
def test_the_second_check_passes_what_is_right(path, hidden, without_model, capsys, shapes_unchecked):
    for exercise_id, answer in answers_in(path.name).items():
        hidden.recheck(exercise_id, answer)
        assert f"second check · {exercise_id}" in capsys.readouterr().out


@pytest.mark.parametrize("exercise", BUILDS, ids=lambda e: e.id)
def test_the_second_check_refuses_the_first_known_mistake_and_keeps_its_cases_to_itself(
    exercise, hidden, without_model
):
    with pytest.raises(hidden.NotPassed) as caught:
        hidden.recheck(exercise.id, exercise.mistakes[0].wrong)
    assert len(str(caught.value)) < 120 and "=" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("exercise", BUILDS, ids=lambda e: e.id)
def test_the_second_check_refuses_every_known_mistake(exercise, hidden, without_model):
    course = hidden.Course()
    secret = hidden.hidden(course.engine.EXERCISES[exercise.id], course)
    for mistake in exercise.mistakes:
        try:
            passed = bool(secret.judge(mistake.wrong, 0))
        except Exception:
            passed = False
        assert not passed, mistake.name


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_right_answers_pass_whatever_the_seed_of_the_class(seed, hidden, without_model, shapes_unchecked, monkeypatch):
    monkeypatch.setattr(hidden, "SEED", seed * 1234567)
    for path in SOLUTIONS:
        for exercise_id, answer in answers_in(path.name).items():
            hidden.recheck(exercise_id, answer)


def test_a_function_that_knows_the_visible_sizes_only_is_refused(hidden, without_model):
    import torch

    sizes = {(one.args[0].shape[1], one.args[1]) for round_ in (0, 1) for one in EXERCISES["05.expand"].cases(round_)}

    def by_heart(k, n_heads):
        if n_heads % k.shape[1]:
            raise ValueError(f"{n_heads} heads over {k.shape[1]} KV heads")
        right = k.repeat_interleave(n_heads // k.shape[1], dim=1)
        return right if (k.shape[1], n_heads) in sizes else torch.zeros_like(right)

    assert EXERCISES["05.expand"].judge(by_heart)
    with pytest.raises(hidden.NotPassed, match="not for other sizes"):
        hidden.recheck("05.expand", by_heart)


def test_a_value_that_equals_everything_is_refused_by_its_type(hidden, without_model):
    class Agrees(int):
        def __eq__(self, other):
            return True

        __hash__ = int.__hash__

    class Dict(dict):
        pass

    for answer in ({"map": [Agrees(0)], "kv_head": Agrees(1), "readers": 3}, Dict(map=1)):
        with pytest.raises(hidden.NotPassed, match="type (Agrees|Dict)"):
            hidden.recheck("05.head_map", answer)


def test_what_a_notebook_puts_in_place_of_a_check_has_no_say(hidden, without_model, monkeypatch):
    from gqa_lab.checks import engine

    monkeypatch.setattr(hidden, "Course", hidden.ReadAgain)
    monkeypatch.setitem(engine.EXERCISES, "05.expand", None)
    monkeypatch.setattr(engine, "check", lambda *_: True)
    before = dict(sys.modules)
    with pytest.raises(hidden.NotPassed):
        hidden.recheck("05.expand", lambda k, n_heads: k)
    assert sys.modules["gqa_lab.checks.engine"] is engine
    assert {name: module for name, module in sys.modules.items() if name in before} == before


@pytest.mark.parametrize("exercise", HANDS, ids=lambda e: e.id)
def test_numbers_by_hand_are_everybodys_own(exercise, hidden, without_model, monkeypatch, capsys):
    for student in ("ada", "bob"):
        monkeypatch.setenv("GQA_LAB_STUDENT", student)
        right = exercise.right(case(exercise.id, student))
        hidden.recheck(exercise.id, right)
    case(exercise.id)
    monkeypatch.setenv("GQA_LAB_STUDENT", "ada")
    if right != exercise.right(exercise.draw(seed_of("ada"))):
        with pytest.raises(hidden.NotPassed, match="not the answers to the numbers of 'ada'. Is `me`"):
            hidden.recheck(exercise.id, right)
    own = {own.exercise_id: own for own in hidden.answers_of(" Ada ")}
    assert own[exercise.id].right == exercise.right(exercise.draw(seed_of("ada")))


@pytest.mark.slow
@pytest.mark.parametrize("exercise", HANDS, ids=lambda e: e.id)
def test_every_seed_that_a_name_can_have_has_its_right_answer(exercise):
    for seed in range(1, 1000):
        assert exercise.judge(exercise.right(exercise.draw(seed)), seed), seed


# ---- the cycle, with simulated students

nbgrader = pytest.mark.skipif(importlib.util.find_spec("nbgrader") is None, reason="needs the extra [classroom]")
LESSON = "05_grouped_query"


class Student:
    """A submission: the released notebook, its answers filled in by cell, and what else the student did."""

    def __init__(self, folder: Path, name: str, assignment: str = LESSON):
        self.path = folder / "submitted" / name / assignment / f"{assignment}.ipynb"
        self.notebook = nbformat.read(folder / "release" / assignment / f"{assignment}.ipynb", as_version=4)
        self.name = name
        if (found := self.find("name")) is not None:
            found.source = f'me = "{name}"'

    def find(self, cell_id: str):
        return next((cell for cell in self.notebook.cells if cell.id == cell_id), None)

    def __setitem__(self, cell_id: str, source: str) -> None:
        self.find(cell_id).source = source

    def right(self) -> "Student":
        """Fills in the right answers, those by hand for this student's own numbers."""
        solution = nbformat.read(ROOT / "solutions" / self.path.name, as_version=4)
        answers = {cell.id: "\n".join(line for line in cell.source.split("\n") if not line.lstrip().startswith("###"))
                   for cell in solution.cells if "### BEGIN SOLUTION" in cell.source}  # fmt: skip
        for cell_id, source in answers.items():
            self[cell_id] = source
        for n, cell in enumerate(self.notebook.cells):
            match = tool.CHECK.search(cell.source) if cell.cell_type == "code" else None
            if match and hasattr(EXERCISES[match[1]], "draw"):
                exercise = EXERCISES[match[1]]
                right = exercise.right(exercise.draw(seed_of(self.name)))
                answer = [c for c in self.notebook.cells[:n] if c.metadata.get("nbgrader", {}).get("solution")][-1]
                answer.source = f"{match[2]} = {right!r}"
        return self

    def insert(self, source: str, *, before: str) -> None:
        self.notebook.cells.insert(self.notebook.cells.index(self.find(before)), new_code_cell(source))

    def hand_in(self) -> None:
        self.path.parent.mkdir(parents=True)
        nbformat.write(self.notebook, self.path)


WRONG = {
    "head-map-answer": 'head_map = {"map": [0, 1, 2], "kv_head": 99, "readers": [0]}',
    "expand-answer": "def expand_kv(k, n_heads):\n    return k.repeat(1, n_heads // k.shape[1], 1, 1)",
    "grouped-answer": "def grouped_attention(q, k, v, *, lengths=None, window=None):\n    return q",
    "good-test-answer": 'good_test = {"i % G": {"exposes": (8, 8), "hides": (8, 8)}, '
    '"i // G": {"exposes": (4, 2), "hides": (6, 3)}, "smallest": (64, 8)}',
    "shapes-answer": "shapes = dict.fromkeys(('q_width', 'k_width', 'v_width', 'o_in_width', 'parameters', "
    "'parameters_as_mha'), 7)",
}
LOUD = """
import os, sys, warnings
quiet = expand_kv
def expand_kv(k, n_heads):
    warnings.warn("a warning costs nothing")
    os.write(2, b"neither does a library that writes to stderr\\n")
    return quiet(k, n_heads)
os.write(2, b"nor this\\n")
"""
REBINDS = """
import gqa_lab.checks, gqa_lab.checks.engine as engine
class Yes(dict):
    def __eq__(self, other): return True
    def __getattr__(self, name): return Yes()
    def __bool__(self): return True
    def __call__(self, *a, **k): return 4.0
check = gqa_lab.checks.check = engine.check = Yes()
engine.EXERCISES.clear()
get_ipython().ast_node_interactivity = "all"
head_map = shapes = good_test = Yes()
"""


def students_of(folder: Path) -> dict[str, dict[str, float]]:
    """Hands in the submissions of lesson 05; returns the points that each should have."""
    full = {"05-head_map": 2, "05-expand": 2, "05-grouped": 4, "05-good_test": 4, "05-shapes": 1}
    expected = {}

    def hand_in(student: Student, **points: float) -> None:
        student.hand_in()
        expected[student.name] = full | {f"05-{name}": n for name, n in points.items()}

    nothing = dict.fromkeys(("head_map", "expand", "grouped", "good_test", "shapes"), 0)

    right = Student(folder, "ada").right()
    right.insert(LOUD, before="expand-check")
    hand_in(right)

    hand_in(Student(folder, "bob"), **nothing)

    wrong = Student(folder, "cleo")
    for cell_id, source in WRONG.items():
        wrong[cell_id] = source
    wrong["expand-answer"] = "def my_expand(k, n_heads):\n    return k.repeat_interleave(n_heads // k.shape[1], 1)"
    hand_in(wrong, **nothing)

    cells = Student(folder, "dan").right()
    cells.notebook.cells.remove(cells.find("expand-check"))
    cells.notebook.cells.remove(cells.find("head-map-case"))
    copied = cells.find("grouped-check").copy()
    copied["id"] = "a-copy"
    cells.notebook.cells.append(copied)
    cells["good-test-answer"], cells["good-test-check"] = WRONG["good-test-answer"], "print('passed')"
    hand_in(cells, good_test=0)

    loops = Student(folder, "eve").right()
    loops["grouped-answer"] = "while True:\n    pass"
    hand_in(loops, grouped=0)

    exits = Student(folder, "finn").right()
    exits.insert("import sys\nsys.exit(0)", before="expand-check")
    exits.insert("import os\nos._exit(0)", before="good-test-check")
    hand_in(exits, good_test=0, shapes=0)

    floods = Student(folder, "gus").right()
    floods.insert("for _ in range(100):\n    print('x' * 100_000)", before="head-map-check")
    hand_in(floods)

    rebinds = Student(folder, "hal")
    rebinds["expand-answer"], rebinds["grouped-answer"] = WRONG["expand-answer"], WRONG["grouped-answer"]
    rebinds["good-test-answer"] = rebinds["shapes-answer"] = "pass"
    rebinds.insert(REBINDS, before="head-map-check")
    rebinds.find("good-test-check").metadata["tags"] = ["skip-execution"]
    hand_in(rebinds, **nothing)
    return expected


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Runs nbgrader as a teacher does, in an environment whose programs are on the PATH."""
    environ = os.environ | {"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
    command = [sys.executable, "-m", "nbgrader", *arguments]
    return subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True)


@pytest.fixture(scope="module")
def graded(tmp_path_factory):
    """A course in which eight students of lesson 05 have been graded: folder, points they should have, the log."""
    folder = tmp_path_factory.mktemp("graded") / "my class"
    tool.make(ROOT, folder, ["05"])
    settings = folder / "nbgrader_config.py"
    text = settings.read_text(encoding="utf-8")
    settings.write_text(text.replace("c.Execute.timeout = 30", "c.Execute.timeout = 10"), encoding="utf-8")
    made = run(folder, "generate_assignment", LESSON)
    assert made.returncode == 0, made.stderr
    expected = students_of(folder)
    with ThreadPoolExecutor() as pool:  # two at a time, as TEACHING.md says for a machine with cores to spare
        halves = [pool.submit(run, folder, "autograde", LESSON, "--student", names) for names in ("[a-d]*", "[e-h]*")]
    for half in halves:
        assert half.result().returncode == 0, half.result().stderr
    return folder, expected, "".join(half.result().stderr for half in halves)


def points_in(folder: Path) -> dict[str, dict[str, float]]:
    """Returns the points of every cell from nbgrader's own database."""
    from nbgrader.api import Gradebook

    with Gradebook(f"sqlite:///{folder}/gradebook.db") as gradebook:
        return {
            student.id: {
                grade.name: grade.score
                for submission in student.submissions
                for notebook in submission.notebooks
                for grade in notebook.grades
            }
            for student in gradebook.students
        }


@nbgrader
@pytest.mark.classroom
def test_right_answers_have_full_points_wrong_ones_none_and_trouble_costs_its_own_cells_only(graded):
    folder, expected, _ = graded
    assert points_in(folder) == expected


@nbgrader
@pytest.mark.classroom
def test_every_trouble_has_a_clear_line_in_the_log(graded):
    _, _, log = graded
    for line in (
        "dan, 05_grouped_query: the cell 05-expand was missing and was put back.",
        "dan, 05_grouped_query: the cell 05-head_map-case was missing and was put back.",
        "dan, 05_grouped_query: the cell 05-grouped is there more than once; the last one counts.",
        "dan, 05_grouped_query: the cell 05-good_test was changed and was put back.",
        "the kernel died, for instance by exit() or for want of memory. Later cells have no points.",
        "showed too much",
    ):
        assert line in log, line
    assert log.count("was changed and was put back") == 1
    assert re.search(
        r"eve, 05_grouped_query: cell \d+ did not end within \d+ s and was interrupted", log
    ) and re.search(r"finn, .* stopped at cell", log)


@nbgrader
@pytest.mark.classroom
def test_feedback_says_why_and_gives_no_secret_away(graded):
    folder, expected, _ = graded
    done = run(folder, "generate_feedback", LESSON)
    assert done.returncode == 0, done.stderr
    pages = {path.parent.parent.name: path.read_text(encoding="utf-8") for path in folder.glob("feedback/*/*/*.html")}
    assert set(pages) == set(expected)
    assert "You dealt the heads" in pages["cleo"] or "failed" in pages["cleo"]
    assert "not the answers to the numbers" in pages["hal"] or "type Yes" in pages["hal"]
    assert len(pages["gus"]) < 3_000_000
    settings = json.loads((folder.with_name(folder.name + "-teacher") / "settings.json").read_text())
    teacher = (folder.with_name(folder.name + "-teacher") / "hidden_checks.py").read_text(encoding="utf-8")
    for page in pages.values():
        assert settings["key"] not in page and "vnd.gqa-lab.proof" not in page and "TRUE_GROUPS" not in page
    assert "TRUE_GROUPS" in teacher


@nbgrader
@pytest.mark.classroom
def test_the_grades_are_exported_as_csv(graded):
    folder, expected, _ = graded
    done = run(folder, "export")
    assert done.returncode == 0, done.stderr
    with open(folder / "grades.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    found = {row["student_id"]: (float(row["score"]), float(row["max_score"])) for row in rows}
    assert found == {name: (sum(points.values()), 13.0) for name, points in expected.items()}


# ---- a whole class


@nbgrader
@pytest.mark.classroom
@pytest.mark.slow
def test_a_hundred_submissions_of_three_assignments_are_graded_without_a_stall(tmp_path, capsys):
    """GQA_LAB_SUBMISSIONS=10 makes it a smaller class. Time and memory are reported, not judged."""
    n_students = int(os.environ.get("GQA_LAB_SUBMISSIONS", "100"))
    folder = tmp_path / "large"
    names = tool.make(ROOT, folder, ["02", "04", "05"])
    expected, start = {}, time.monotonic()
    for name in names:
        made = run(folder, "generate_assignment", name)
        assert made.returncode == 0, made.stderr
        full = sum(
            cell.metadata.nbgrader.points
            for cell in nbformat.read(folder / "release" / name / f"{name}.ipynb", as_version=4).cells
            if cell.metadata.get("nbgrader", {}).get("grade")
        )
        for n in range(n_students):
            student = Student(folder, f"s{n:03}", name)
            expected[student.name, name] = full if n % 10 != 6 else 0
            if n % 10 != 6:  # every tenth has done nothing
                student.right()
            first = next(cell for cell in student.notebook.cells if "check(" in cell.source)
            if n % 10 == 7:
                student.notebook.cells.remove(first)
            if n % 10 == 8:
                student.insert("print('x' * 10_000_000)", before=first.id)
            if n % 10 == 9:
                student.notebook.cells.append(new_code_cell("import os\nos._exit(1)"))
            if n % 50 == 5:
                student.notebook.cells.append(new_code_cell("while True:\n    pass"))
            student.hand_in()
    for name in names:
        with ThreadPoolExecutor() as pool:
            halves = [pool.submit(run, folder, "autograde", name, "--student", f"s??[{d}]") for d in ("02468", "13579")]
        for half in halves:
            assert half.result().returncode == 0, half.result().stderr[-3000:]
    assert run(folder, "export").returncode == 0
    with open(folder / "grades.csv", newline="", encoding="utf-8") as file:
        found = {(row["student_id"], row["assignment"]): float(row["score"]) for row in csv.DictReader(file)}
    assert found == expected
    with capsys.disabled():
        print(f"\n{len(found)} submissions graded in {time.monotonic() - start:.0f} s", end="")
        if resource := importlib.util.find_spec("resource") and importlib.import_module("resource"):
            largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
            print(f"; the largest process held {largest:.2f} GiB")
