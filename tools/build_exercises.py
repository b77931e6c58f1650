"""Makes `exercises/*.ipynb` from `solutions/*.ipynb`, the one source.

    python tools/build_exercises.py            write the exercises
    python tools/build_exercises.py --check    write nothing; exit 1 and name each file that is not in step

Rules for the author of a solution notebook:

1.  In a code cell, the lines from `### BEGIN SOLUTION` to `### END SOLUTION` become the stub, at the
    indentation of the BEGIN line. The stub is `raise NotImplementedError`, unless the lines hold comments
    `### STUB: ...`: then their text is the stub, line by line. Solutions are not nested.

        def expand_kv(k, n_heads):                     def expand_kv(k, n_heads):
            ### BEGIN SOLUTION                             raise NotImplementedError
            return k.repeat_interleave(...)
            ### END SOLUTION

        ### BEGIN SOLUTION                             head_map = {"map": None, "kv_head": None}
        ### STUB: head_map = {"map": None, "kv_head": None}
        head_map = {"map": [0, 0, 1, 1], "kv_head": 1}
        ### END SOLUTION

2.  A cell tagged `solution-only` is left out (explanations, alternatives, the mistake most people make).
3.  Everything else is copied: text, check cells, cell ids, other tags. Outputs and counts are removed.
4.  An exercise is a heading of level 2 that names difficulty and place, `## 1 · Which KV head? (by hand, ●○○,
    5 minutes, core)`, then `case("05.head_map")` if it has numbers of its own, cells with a solution, and
    `check("05.head_map", head_map)`. These get the metadata that nbgrader reads; to everybody else it is
    invisible. `05.head_map` becomes the grade id `05-head_map`. A check is a locked test cell, worth the points
    of `points_of`; a `case` is locked without points; an answer with the key "reason" is read by a person as well.
"""

import argparse
import re
import sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END, STUB = "### BEGIN SOLUTION", "### END SOLUTION", "### STUB:"
LEFT_OUT = "solution-only"
CHECK = re.compile(r'\bcheck\(\s*"([\w.]+)"\s*,\s*(\w+)\s*\)')
CASE = re.compile(r'\bcase\(\s*"([\w.]+)"\s*\)')
LEVEL = re.compile(r"^## .*\(.*?([●○]{3}).*(core|further)\)\s*$", re.M)
READ_BY_A_PERSON = '"reason"'
REASON_POINTS = 2
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def stubbed(source: str) -> str:
    """Returns the source of a code cell with each solution replaced by its stub.

    Raises:
        ValueError: for a marker without its partner.

    Example:
        >>> print(stubbed("def f(x):\\n    ### BEGIN SOLUTION\\n    return 2 * x\\n    ### END SOLUTION"))
        def f(x):
            raise NotImplementedError
    """
    lines, stub, indent = [], None, ""
    for line in source.split("\n"):
        marker = line.strip()
        if marker == BEGIN:
            if stub is not None:
                raise ValueError(f"{BEGIN} inside a solution")
            stub, indent = [], line[: len(line) - len(line.lstrip())]
        elif marker == END:
            if stub is None:
                raise ValueError(f"{END} without {BEGIN}")
            lines += [f"{indent}{text}".rstrip() for text in stub or ["raise NotImplementedError"]]
            stub = None
        elif stub is None:
            lines.append(line)
        elif marker.startswith(STUB):
            stub.append(marker.removeprefix(STUB).removeprefix(" "))
    if stub is not None:
        raise ValueError(f"{BEGIN} without {END}")
    return "\n".join(lines)


def points_of(heading: str) -> int:
    """Returns the points of the exercise that a heading announces: its filled circles, and twice that if it is core.

    Raises:
        ValueError: for a heading that names no difficulty or no place.

    Example:
        >>> points_of("## 1 · Which KV head? (by hand, ●○○, 5 minutes, core)")
        2
        >>> points_of("## 5 · Choose (decide, ●●●, 12 minutes, further)")
        3
    """
    found = LEVEL.search(heading)
    if not found:
        raise ValueError(f"{heading!r} names no difficulty and place, such as (build, ●●○, 8 minutes, core)")
    return found[1].count("●") * (2 if found[2] == "core" else 1)


def grade_id(exercise_id: str) -> str:
    """Returns the id of an exercise as nbgrader allows it: `05-head_map` for `05.head_map`."""
    return exercise_id.replace(".", "-")


def graded(cells: list[nbformat.NotebookNode], solution: dict[str, str]) -> None:
    """Gives the cells of every exercise the metadata that nbgrader reads.

    Args:
        solution: the source of each cell, by id, before solutions became stubs.

    Raises:
        ValueError: for a check without a heading that says what it is worth, and for a cell with two checks.
    """
    heading, answers = "", []
    for cell in cells:
        if cell.cell_type == "markdown":
            headings = re.findall(r"^##? .*$", cell.source, re.M)
            heading = headings[-1] if headings else heading
            continue
        found = CHECK.findall(cell.source)
        if len(found) > 1:
            raise ValueError(f"cell {cell.id} has {len(found)} checks; give each a cell of its own")
        if BEGIN in solution[cell.id]:
            answers.append(cell)
        elif numbers := CASE.search(cell.source):
            cell.metadata["nbgrader"] = _cell_data(grade_id(numbers[1]) + "-case", locked=True)
        elif found:
            name = grade_id(found[0][0])
            cell.metadata["nbgrader"] = _cell_data(name, locked=True, points=points_of(heading))
            for n, answer in enumerate(answers, start=1):
                points = REASON_POINTS if READ_BY_A_PERSON in answer.source else None
                data = _cell_data(f"{name}-answer{n if n > 1 else ''}", solution=True, points=points)
                answer.metadata["nbgrader"] = data
            answers = []


def _cell_data(name: str, *, solution: bool = False, locked: bool = False, points: int | None = None) -> dict:
    data = {"schema_version": 3, "grade_id": name, "grade": points is not None, "solution": solution}
    return data | {"locked": locked, "task": False} | ({} if points is None else {"points": points})


def exercise_from(solution: nbformat.NotebookNode, name: str = "notebook") -> nbformat.NotebookNode:
    """Returns the exercise notebook of a solution notebook.

    Raises:
        ValueError: for a broken marker, and for a check that has no heading or is not alone in its cell; names the
            notebook and the cell.
    """
    cells = []
    for cell in solution.cells:
        if LEFT_OUT in cell.metadata.get("tags", []):
            continue
        kept = {"tags": cell.metadata["tags"]} if cell.metadata.get("tags") else {}
        new = nbformat.from_dict({"id": cell.id, "cell_type": cell.cell_type, "metadata": kept, "source": cell.source})
        if cell.cell_type == "code":
            try:
                new.source = stubbed(cell.source)
            except ValueError as error:
                raise ValueError(f"{name}, cell {cell.id}: {error}") from None
            new.outputs, new.execution_count = [], None
        cells.append(new)
    try:
        graded(cells, {cell.id: cell.source for cell in solution.cells})
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    return nbformat.from_dict({"nbformat": 4, "nbformat_minor": 5, "metadata": METADATA, "cells": cells})


def build(solutions: Path, exercises: Path, *, check: bool = False) -> list[str]:
    """Writes the exercise notebooks, or only compares.

    Returns:
        Names of the files that were written, or would have to be: changed, missing, or without a solution.
    """
    wanted = {}
    for path in sorted(solutions.glob("*.ipynb")):
        notebook = exercise_from(nbformat.read(path, as_version=4), path.name)
        nbformat.validate(notebook)
        wanted[path.name] = nbformat.writes(notebook) + "\n"
    stale = [name for name, text in wanted.items() if _text(exercises / name) != text]
    orphans = sorted({path.name for path in exercises.glob("*.ipynb")} - set(wanted))
    if not check:
        exercises.mkdir(exist_ok=True)
        for name in stale:
            (exercises / name).write_text(wanted[name], encoding="utf-8", newline="\n")
        for name in orphans:
            (exercises / name).unlink()
    return stale + orphans


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Makes exercises/*.ipynb from solutions/*.ipynb.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a file is not in step")
    check = parser.parse_args(arguments).check
    names = build(ROOT / "solutions", ROOT / "exercises", check=check)
    for name in names:
        print(f"exercises/{name} " + ("is not in step: run python tools/build_exercises.py" if check else "written"))
    return 1 if check and names else 0


def _text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.exists() else None


if __name__ == "__main__":
    sys.exit(main())
