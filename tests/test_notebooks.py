"""What every notebook has to keep: outputs that nbval can compare, text alternatives, no machine's paths, sound links."""

import re
import statistics
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
LESSONS = sorted(ROOT.glob("notebooks/*.ipynb"))
EXECUTED = LESSONS + sorted(ROOT.glob("solutions/*.ipynb"))
ALL = EXECUTED + sorted(ROOT.glob("exercises/*.ipynb"))

every_lesson = pytest.mark.parametrize("path", LESSONS, ids=lambda p: p.stem)
every_executed = pytest.mark.parametrize("path", EXECUTED, ids=lambda p: f"{p.parent.name}/{p.stem}")
every_notebook = pytest.mark.parametrize("path", ALL, ids=lambda p: f"{p.parent.name}/{p.stem}")


def read(path, cell_type=None):
    cells = nbformat.read(path, as_version=4).cells
    return [cell for cell in cells if cell_type in (None, cell.cell_type)]


def lines(cell):
    return [line for line in cell.source.splitlines() if line.strip()]


@every_executed
def test_all_cells_were_run_from_top_to_bottom_so_that_nbval_compares_them(path):
    counts = [cell.execution_count for cell in read(path, "code")]
    assert counts == list(range(1, len(counts) + 1))


@every_executed
def test_no_saved_output_is_an_error_or_a_warning(path):
    for cell in read(path, "code"):
        assert all(o.output_type != "error" and o.get("name") != "stderr" for o in cell.outputs)


@every_notebook
def test_no_path_of_a_machine_and_no_metadata_of_a_session_is_stored(path):
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"/(root|home|tmp|work|Users)/\w|[A-Z]:\\\\", text)
    assert '"execution": {' not in text and "widget-view" not in text and '"widgets"' not in text


@every_lesson
def test_a_lesson_reads_in_small_steps(path):
    sizes = [len(lines(cell)) for cell in read(path, "code")]
    assert statistics.median(sizes) <= 4 and max(sizes) <= 15
    words = sum(len(cell.source.split()) for cell in read(path, "markdown"))
    assert 800 <= words <= 2100


@every_notebook
def test_no_code_line_runs_out_of_a_notebooks_cell(path):
    too_long = [line for cell in read(path, "code") for line in cell.source.splitlines() if len(line) > 92]
    assert not too_long


@every_notebook
def test_headings_do_not_skip_a_level(path):
    text = "\n".join(cell.source for cell in read(path, "markdown"))
    levels = [len(marks) for marks in re.findall(r"^(#+) ", text, re.M)]
    assert levels[0] == 1 and all(b <= a + 1 for a, b in zip(levels, levels[1:], strict=False))


@every_executed
def test_every_picture_has_its_text_and_a_sentence_after_it(path):
    cells = read(path)
    for cell, after in zip(cells, cells[1:], strict=False):
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                assert len(output.metadata["image/png"]["alt"]) > 40
                assert after.cell_type == "markdown" and re.search(r"\b(show|draw|figure|picture|bars)", after.source)


@every_lesson
def test_the_answer_to_a_prediction_is_collapsed_until_it_is_run(path):
    cells = read(path, "code")
    predictions = [i for i, cell in enumerate(cells) if cell.source.startswith("predict(")]
    assert predictions
    for i in predictions:
        following = cells[i + 1 : i + 5]
        assert any(cell.metadata.get("jupyter", {}).get("outputs_hidden") for cell in following)
        assert cells[i].source.endswith("None)")


@every_notebook
def test_links_lead_somewhere(path):
    for cell in read(path, "markdown"):
        for target in re.findall(r"\]\(([^)#]+)\)", cell.source):
            assert target.startswith("https://") or (path.parent / target).exists(), target


@every_lesson
def test_a_lesson_has_its_parts(path):
    text = "\n".join(cell.source for cell in read(path, "markdown"))
    for part in ("You need", "Map:", "**Predict.**", "## Take-away", "minutes", "Paper"):
        assert part in text, part


def test_a_lesson_runs_without_nbval_too(tmp_path, monkeypatch):
    """nbval is seldom released; should a new pytest break it, this still runs a lesson, without the real model."""
    monkeypatch.setenv("GQA_LAB_CACHE", str(tmp_path))
    notebook = nbformat.read(LESSONS[0], as_version=4)
    NotebookClient(notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    text = "".join(o.get("text", "") for cell in notebook.cells for o in cell.get("outputs", []))
    assert "python course.py lab" in text and "recorded on" in text


def test_the_figure_of_the_readme_is_what_the_library_draws():
    import matplotlib

    from gqa_lab.costs import SHAPES
    from gqa_lab.plots import Picture, bytes_per_token

    pinned = re.search(r"^matplotlib==(\S+)", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.M)[1]
    if matplotlib.__version__ != pinned:
        pytest.skip(f"drawn with matplotlib {pinned}, this is {matplotlib.__version__}")
    saved = (ROOT / "docs" / "bytes_per_token.png").read_bytes()
    assert saved == Picture(bytes_per_token(SHAPES["llama-3.1-70b"])).png


def test_links_of_the_readme_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / "README.md").read_text(encoding="utf-8")):
        assert target.startswith("https://") or (ROOT / target).exists(), target
