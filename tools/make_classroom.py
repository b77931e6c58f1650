"""Makes a course folder for nbgrader, and beside it the folder that only the teacher sees.

    python course.py classroom DIR [--lessons 03 04 05]        calls this with the course's own environment

`DIR` holds an assignment for each lesson with exercises, nbgrader's settings, and a README with the commands.
`DIR-teacher` holds the second checks, the answer key with the wrong answers, the rubrics, and the prediction
questions as a sheet for the projector.
"""

import argparse
import html
import json
import re
import secrets
import shutil
import sys
from pathlib import Path

import nbformat
from build_exercises import BEGIN, CASE, CHECK, LEFT_OUT, REASON_POINTS, exercise_from
from nbformat.v4 import new_code_cell, new_markdown_cell

ROOT = Path(__file__).resolve().parents[1]
TEMPLATES = ROOT / "tools" / "classroom"
FOR_TEACHER = ("hidden_checks.py", "grading.py")
HIDDEN = """
### BEGIN HIDDEN TESTS
import os, runpy
runpy.run_path(os.environ["GQA_LAB_HIDDEN_CHECKS"])["recheck"]("{exercise_id}", {answer})
### END HIDDEN TESTS"""
NAME = 'me = ""  # the name under which you hand in, between the quotes: your numbers follow from it'
RUBRIC = f"""**`reason` is read by a person: {REASON_POINTS} points.** 2: it names the numbers that decide, and what
would have to change for another choice. 1: it fits your numbers but names none of them. 0: nothing, or something that
your own numbers contradict. Another choice than your neighbour's can be worth as much."""
HANDED_IN = """**To be handed in; {points} points** ({each}). Write only into the cells with the answers and into new
cells of your own. A check cell that you delete or change is put back before marking, and a function keeps the name that
the task gives it. A passed check is looked at a second time with other sizes and numbers. Is a check wrong? Say so."""
ABOUT_THE_KEY = f"""The numbers of exercises by hand are those of the plain notebook. Everybody's own, and the right
answers to them: `python hidden_checks.py NAME`. The rubric of every answer with a `reason`:

{RUBRIC}"""


class Problem(Exception):
    """One sentence: what is wrong and what to do about it."""


def assignment_from(solution: nbformat.NotebookNode, name: str) -> nbformat.NotebookNode:
    """Returns the notebook of an assignment, with solutions, metadata for nbgrader and a second check in each test."""
    plain = exercise_from(solution, name)
    source = {cell.id: cell.source for cell in solution.cells}
    cells, points = [], {}
    for cell in plain.cells:
        data = cell.metadata.get("nbgrader", {})
        if data.get("grade"):
            points[data["grade_id"].replace("-answer", "'s reason")] = data["points"]
        if cell.cell_type == "markdown":
            cell.source = without_links(cell.source)
        elif data.get("solution"):
            cell.source = source[cell.id]
        elif data.get("grade"):
            [(exercise_id, answer)] = CHECK.findall(cell.source)
            cell.source += HIDDEN.format(exercise_id=exercise_id, answer=answer)
        elif data.get("locked"):
            cell.source = CASE.sub(r'case("\1", me)', cell.source)
        cells.append(cell)
        if data.get("solution") and data.get("grade"):
            cells.append(new_markdown_cell(RUBRIC, id=f"{cell.id}-rubric"))
    each = ", ".join(f"{name.replace('-', '.', 1)} {n}" for name, n in points.items())
    notice = HANDED_IN.format(points=sum(points.values()), each=each)
    cells.insert(1, new_markdown_cell(notice, id="handed-in"))
    if any(cell.source.startswith("case(") for cell in cells):
        cells.insert(2, new_code_cell(NAME, id="name"))
    return nbformat.from_dict(plain | {"cells": cells})


def without_links(text: str) -> str:
    """Returns the text of an exercise without what is true only inside the course's own folders."""
    text = re.sub(r"; nothing is marked|\s*Compare afterwards with \[[^]]*\]\([^)]*\)\.?", "", text)
    return re.sub(r"\[([^]]*)\]\(\.\.?/[^)]*\)", r"\1", text)


def lesson_of(path: Path) -> str:
    """Returns the id of a lesson from a notebook's name: 05, A1."""
    return path.name.partition("_")[0]


def chosen_lessons(root: Path, wanted: list[str] | None) -> list[str]:
    """Returns the ids of the wanted lessons, of all lessons if none is named.

    Raises:
        Problem: for a lesson that does not exist, and if none of them has exercises.
    """
    there = {
        lesson_of(path): path for name in ("notebooks", "solutions") for path in sorted(root.glob(f"{name}/*.ipynb"))
    }
    wanted = [lesson.upper().zfill(2) for lesson in wanted or there]
    if unknown := [lesson for lesson in wanted if lesson not in there]:
        raise Problem(f"there is no lesson {', '.join(unknown)}; there are {', '.join(sorted(there))}.")
    if not solutions_of(root, wanted):
        raise Problem(f"lesson {', '.join(wanted)} has no exercises; name one that has.")
    return list(dict.fromkeys(wanted))


def solutions_of(root: Path, lessons: list[str]) -> list[Path]:
    """Returns the solutions of those of the lessons that have exercises."""
    return [path for lesson in lessons for path in sorted(root.glob(f"solutions/{lesson}_*.ipynb"))]


def make(root: Path, folder: Path, lessons: list[str] | None, seed: int | None = None) -> list[str]:
    """Writes the two folders and returns the names of the assignments.

    Args:
        seed: of the second checks; a new one for each class if None.

    Raises:
        Problem: if one of the folders holds something already, or for an unknown lesson.
    """
    lessons = chosen_lessons(root, lessons)
    solutions = solutions_of(root, lessons)
    teacher = folder.with_name(folder.name + "-teacher")
    for path in (folder, teacher):
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise Problem(f"{path} is not empty: give a new folder; what is there was not touched.")
    for path in (folder, teacher):
        path.mkdir(parents=True, exist_ok=True)
    for path in solutions:
        notebook = assignment_from(nbformat.read(path, as_version=4), path.name)
        nbformat.validate(notebook)
        target = folder / "source" / path.stem / path.name
        target.parent.mkdir(parents=True)
        nbformat.write(notebook, target)
    names = [path.stem for path in solutions]
    for name in FOR_TEACHER:
        shutil.copy(TEMPLATES / name, teacher)
    (teacher / "no-model").mkdir()
    settings = {"course": str(root), "seed": secrets.randbelow(10**9) if seed is None else seed}
    settings["key"] = secrets.token_hex(16)
    write(teacher / "settings.json", json.dumps(settings, indent=1) + "\n")
    shutil.copy(TEMPLATES / "nbgrader_config.py", folder)
    write(folder / ".gitignore", "/gradebook.db\n/release/\n/submitted/\n/autograded/\n/feedback/\n/grades.csv\n")
    readme = (TEMPLATES / "README.md").read_text(encoding="utf-8")
    write(folder / "README.md", readme.replace("ASSIGNMENT", names[0]).replace("TEACHER", teacher.name))
    write(teacher / "answer_key.md", answer_key(solutions))
    write(teacher / "predictions.html", prediction_sheet(root, lessons))
    return names


def write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")


# ---- what the teacher reads ----------------------------------------------------------------------------------------


def answer_key(solutions: list[Path]) -> str:
    """Returns the answers of the lessons, each with its reasons and with the wrong answers that the check names."""
    from gqa_lab.checks.engine import EXERCISES, PREDICTIONS

    parts = ["# Answer key: for the teacher only", ""]
    parts.append(ABOUT_THE_KEY)
    for path in solutions:
        notebook = nbformat.read(path, as_version=4)
        parts.append(f"\n## {path.stem}")
        for prediction in PREDICTIONS.values():
            if prediction.id.startswith(lesson_of(path)):
                parts.append(f"\n### Prediction {prediction.id}\n")
                parts += [f"- {letter}) {text}: {reply}" for letter, (text, reply) in prediction.options.items()]
        for heading, answers, why, exercise_id in worked(notebook):
            parts.append(f"\n### {exercise_id}: {heading}\n")
            parts += [f"```python\n{answer}\n```" for answer in answers]
            parts += ["", *why] if why else []
            parts += ["", *wrong_answers(EXERCISES[exercise_id])]
    return "\n".join(parts) + "\n"


def worked(notebook: nbformat.NotebookNode) -> list[tuple[str, list[str], list[str], str]]:
    """Returns for each exercise its heading, the solutions, the explanations, and its id."""
    found, heading, answers = [], "", []
    for cell in notebook.cells:
        left_out = LEFT_OUT in cell.metadata.get("tags", [])
        if cell.cell_type == "markdown" and (match := re.search(r"^## (.*)$", cell.source, re.M)):
            heading, answers = match[1], []
        elif cell.cell_type == "markdown" and left_out and found:
            found[-1][2].append(cell.source)
        elif cell.cell_type == "code" and not left_out and BEGIN in cell.source:
            answers.append("\n".join(line for line in cell.source.split("\n") if not line.strip().startswith("###")))
        elif cell.cell_type == "code" and not left_out and (match := CHECK.search(cell.source)):
            found.append((heading, answers, [], match[1]))
            answers = []
    return found


def wrong_answers(exercise: object) -> list[str]:
    """Returns a table of the mistakes that the check of an exercise names."""
    rows = []
    if callable(getattr(exercise, "mistakes", ())):
        numbers = exercise.draw(0)
        rows = [(f"`{m.name}`: {m.wrong}", m.diagnosis) for m in exercise.mistakes(numbers)]
    else:
        rows = [(m.name, m.diagnosis) for m in getattr(exercise, "mistakes", ())]
    rows = [[re.sub(r"\s+", " ", str(text)).replace("|", "\\|") for text in row] for row in dict.fromkeys(rows)]
    if not rows:
        return ["Wrong answers are run, not listed: the check shows where the two versions agree."]
    return ["| wrong answer | what the check says |", "|---|---|", *(f"| {a} | {b} |" for a, b in rows)]


def questions(root: Path, lesson: str) -> list[tuple[str, str, dict[str, str]]]:
    """Returns id, question and options of each prediction of a lesson, the question from the lesson's own text."""
    from gqa_lab.checks.engine import PREDICTIONS

    found = []
    for path in root.glob(f"notebooks/{lesson}_*.ipynb"):
        cells = nbformat.read(path, as_version=4).cells
        for before, cell in zip(cells, cells[1:], strict=False):
            if match := re.match(r'predict\("([\w.]+)"', cell.source):
                text = before.source.partition("**Predict.**")[2]
                question = re.split(r"\s+a\)\s", " ".join(text.split()))[0]
                options = {letter: said for letter, (said, _) in PREDICTIONS[match[1]].options.items()}
                found.append((match[1], question, options))
    return found


def prediction_sheet(root: Path, lessons: list[str]) -> str:
    """Returns a page for the projector: a question on each screen, without answers; space bar goes on."""
    screens = []
    for lesson in lessons:
        for prediction_id, question, options in questions(root, lesson):
            choices = "".join(f"<li>{as_html(text)}</li>" for text in options.values())
            screens.append(
                f'<section><h2>{prediction_id}</h2><p>{as_html(question)}</p><ol type="a">{choices}</ol></section>'
            )
    style = (
        "html{scroll-snap-type:y mandatory}section{min-height:100vh;box-sizing:border-box;padding:6vh 8vw;"
        "scroll-snap-align:start;break-after:page}body{margin:0;font:4vmin/1.35 system-ui,sans-serif;color:#111;"
        "background:#fff}h1,h2{font-size:4vmin}li{margin:2vmin 0}code{font-size:.95em}"
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>Predictions</title>'
        f"<style>{style}</style></head>\n<body><section><h1>Predict, then run</h1><p>Vote by raised fingers: "
        "one for a, two for b, and so on. Write the counts down before anything is run.</p></section>\n"
        + "\n".join(screens)
        + "\n</body></html>\n"
    )


def as_html(text: str) -> str:
    """Returns a line of a notebook's Markdown as HTML: code, stress and links."""
    text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", html.escape(text, quote=False))
    text = re.sub(r"`([^`]*)`", r"<code>\1</code>", text)
    return re.sub(r"\*\*?([^*]+)\*\*?", r"<em>\1</em>", text)


def what_goes_wrong(root: Path) -> str:
    """Returns a table for TEACHING.md: for each exercise what most people do, and how many mistakes its check names."""
    from gqa_lab.checks.engine import EXERCISES

    rows = ["| exercise | what students get wrong | wrong answers it names |", "|---|---|---|"]
    for path in sorted(root.glob("solutions/*.ipynb")):
        for _, _, why, exercise_id in worked(nbformat.read(path, as_version=4)):
            exercise = EXERCISES[exercise_id]
            listed = getattr(exercise, "mistakes", ())
            listed = listed(exercise.draw(0)) if callable(listed) else listed
            told = list(dict.fromkeys(m.diagnosis for m in listed))
            most = re.search(r"\*\*The mistakes? most people make\*\*:? ?(?:is |is to |are )?(.*)", " ".join(why), re.S)
            text = most[1] if most else told[0] if told else "see the solution"
            text = re.split(r"(?<=[.?])\s", " ".join(text.split()))[0].rstrip(".")
            rows.append(f"| {exercise_id} | {text.replace('|', chr(92) + '|')} | {len(told) or 'run, not listed'} |")
    return "\n".join(rows)


BLOCK = re.compile(r"(<!-- what goes wrong: made by tools/make_classroom.py -->\n).*?(<!-- end -->)", re.S)


def refreshed(teaching: str, root: Path) -> str:
    """Returns TEACHING.md with its table of mistakes made anew."""
    return BLOCK.sub(lambda match: f"{match[1]}{what_goes_wrong(root)}\n{match[2]}", teaching)


def main(arguments: list[str]) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="course.py classroom", description="Makes a course folder for nbgrader.")
    parser.add_argument("folder", nargs="?", type=Path, help="a new or an empty folder")
    parser.add_argument("--lessons", nargs="+", help="for example 03 04 05; all if left out")
    parser.add_argument("--teaching", action="store_true", help="renew the table of mistakes in TEACHING.md instead")
    options = parser.parse_args(arguments)
    if options.teaching:
        path = ROOT / "TEACHING.md"
        write(path, refreshed(path.read_text(encoding="utf-8"), ROOT))
        return 0
    if options.folder is None:
        parser.error("which folder?")
    folder = options.folder.resolve()
    try:
        names = make(ROOT, folder, options.lessons)
    except Problem as problem:
        print(f"course.py: {problem}", file=sys.stderr)
        return 1
    print(f"{folder}: for nbgrader, with {', '.join(names)}; what to do next is in its README.md.")
    print(f"{folder}-teacher: second checks, answer key, predictions.html for the projector. Keep it from students.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
