"""Records what lesson 07 measures on the real model, for machines that do not have it.

    python benchmarks/convert_live.py

Writes benchmarks/results/convert_live.json. Runs the lesson's own cells, so that the two cannot drift apart.
"""

from pathlib import Path

import nbformat

from gqa_lab.recorded import environment, save_record

LESSON = Path(__file__).resolve().parent.parent / "notebooks" / "07_quality.ipynb"


def measured_by(cells: list[str]) -> dict:
    """Returns what the cells put into `found`, from the first to the last that measures something."""
    last = max(i for i, cell in enumerate(cells) if "measured(" in cell)
    names: dict = {}
    for cell in cells[: last + 1]:
        exec(cell, names)
    assert names["model"] is not None, "the real model is needed: python course.py lab"
    return names["found"]


def main() -> None:
    cells = [c.source for c in nbformat.read(LESSON, as_version=4).cells if c.cell_type == "code"]
    found = measured_by(cells)
    save_record("convert_live", {"provenance": environment(), "found": found})
    print(found)


if __name__ == "__main__":
    main()
