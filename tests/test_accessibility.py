"""Nobody needs to see colours, or pictures: text alternatives, headings, table heads, contrast by the formula of WCAG 2.2."""

import re
from pathlib import Path

import nbformat
import pytest
from matplotlib.colors import to_rgb

from gqa_lab import plots
from gqa_lab.checks import verdict
from gqa_lab.costs import GPUS, SHAPES, plan
from gqa_lab.plots import frame

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted(
    path for folder in ("notebooks", "solutions", "exercises") for path in ROOT.glob(f"{folder}/*.ipynb")
)
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("tools/classroom/*.md")])

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: f"{path.parent.name}/{path.stem}")
every_text = pytest.mark.parametrize("path", [*NOTEBOOKS, *PAGES], ids=lambda path: f"{path.parent.name}/{path.stem}")


def markdown_of(path: Path) -> str:
    """Returns the text of a page, or of all text cells of a notebook, without its code."""
    if path.suffix == ".md":
        text = path.read_text(encoding="utf-8")
    else:
        cells = nbformat.read(path, as_version=4).cells
        text = "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    return re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)


def luminance(colour: object) -> float:
    """Returns the relative luminance of a colour, 0 for black and 1 for white. Source: WCAG 2.2, relative luminance."""
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in to_rgb(colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: object, b: object = "white") -> float:
    """Returns the contrast of two colours, 1 to 21. Source: WCAG 2.2, contrast ratio."""
    darker, lighter = sorted((luminance(a), luminance(b)))
    return (lighter + 0.05) / (darker + 0.05)


# ---- pictures in words


def says_what_it_shows(text: str) -> bool:
    """True for a sentence of its own with a number in it; "figure of the results" is none."""
    return (
        len(text.split()) >= 8
        and bool(re.search(r"\d", text))
        and not re.match(r"(figure|image|picture)\b", text, re.I)
    )


@every_text
def test_a_picture_in_a_text_says_what_it_shows(path):
    for alt in re.findall(r"!\[([^]]*)\]\(", markdown_of(path)):
        assert says_what_it_shows(alt), alt


@every_notebook
def test_a_picture_in_an_output_says_what_it_shows_twice(path):
    for cell in nbformat.read(path, as_version=4).cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                assert says_what_it_shows(output.metadata["image/png"]["alt"]), cell.id
                assert says_what_it_shows(data["text/plain"]), cell.id
            for image in re.findall(r"<img\b[^>]*>", data.get("text/html", "")):
                assert says_what_it_shows(re.search(r'alt="([^"]*)"', image)[1]), cell.id


# ---- headings and tables


@every_text
def test_headings_start_at_one_and_skip_no_level(path):
    levels = [len(marks) for marks in re.findall(r"^(#+) ", markdown_of(path), re.M)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b <= a + 1 for a, b in zip(levels, levels[1:], strict=False))


@every_text
def test_every_table_has_a_head_that_names_each_column(path):
    for table in re.findall(r"(?:^\|.*\n?)+", markdown_of(path), re.M):
        head, line, *rows = table.strip().split("\n")
        # the corner above the names of rows may be empty
        cells = [cell.strip() for cell in head.strip("|").split("|")]
        assert re.fullmatch(r"\|(\s*:?-+:?\s*\|)+", line) and rows, head
        assert all(cells[1:]) and len(cells) == len(line.strip("|").split("|")), head


@every_notebook
def test_a_table_in_an_output_has_a_head(path):
    for cell in nbformat.read(path, as_version=4).cells:
        for output in cell.get("outputs", []):
            for table in re.findall(r"<table.*?</table>", output.get("data", {}).get("text/html", ""), re.S):
                assert "<th" in table, cell.id


# ---- colour


def test_the_formula_gives_the_values_of_its_source():
    assert round(contrast("black"), 2) == 21 and contrast("white") == 1
    assert 4.5 <= contrast("#767676") < 4.6 and contrast("#777777") < 4.5  # the well-known edge of AA


@pytest.mark.parametrize("kind", plots.STYLE)
def test_marks_have_three_to_one_and_words_four_and_a_half_to_one_on_white(kind):
    assert contrast(plots.STYLE[kind]["color"]) >= 3
    assert contrast(frame.INK[kind]) >= 4.5


def test_digits_on_a_mark_can_be_read():
    ink = {"mha": "white", "gqa": "white", "mqa": "black"}
    assert all(contrast(ink[kind], style["color"]) >= 4.5 for kind, style in plots.STYLE.items())


def planned() -> object:
    return plots.step_time(plan(SHAPES["llama-3.1-8b"], GPUS["h100-sxm"], kv_len=8192, batch_size=32))


FIGURES = {
    "head_map mha": lambda: plots.head_map(6, 6),
    "head_map gqa": lambda: plots.head_map(6, 3),
    "head_map mqa": lambda: plots.head_map(6, 1),
    "models": lambda: plots.models(SHAPES),
    "step_time": planned,
    "shazeer_ratio": lambda: plots.shazeer_ratio(n=2048, d=4096, h=32),
    "head_columns": lambda: plots.head_columns(6, 2),
    "bytes_per_token": lambda: plots.bytes_per_token(SHAPES["llama-3.1-70b"]),
}


@pytest.mark.parametrize("name", FIGURES)
def test_every_word_in_a_figure_can_be_read(name):
    axes = FIGURES[name]()
    words = [
        text for text in axes.figure.findobj(lambda artist: hasattr(artist, "get_text")) if text.get_text().strip()
    ]
    fills = [style["color"] for style in plots.STYLE.values()]
    assert words
    for word in words:
        dark_ground = max(contrast(word.get_color(), fill) for fill in fills)  # white digits stand on a filled mark
        assert contrast(word.get_color()) >= 4.5 or dark_ground >= 4.5, word.get_text()


@pytest.mark.parametrize("name", ["models", "step_time", "shazeer_ratio"])
def test_lines_and_dots_of_different_colours_differ_in_form_too(name):
    axes = FIGURES[name]()
    kinds = {to_rgb(style["color"]) for style in plots.STYLE.values()}  # thin black lines have their names beside them
    lines = [line for line in axes.lines if len(line.get_xdata()) > 1 and to_rgb(line.get_color()) in kinds]
    looks = {(to_rgb(line.get_color()), line.get_linestyle(), line.get_marker()) for line in lines}
    for colour, style, marker in looks:
        assert all(colour == c or (style, marker) != (s, m) for c, s, m in looks), (colour, style, marker)
    forms = {tuple(dots.get_paths()[0].vertices.ravel().round(3)) for dots in axes.collections}
    assert len(forms) == len(axes.collections)


def test_a_verdict_has_a_mark_and_a_word_besides_its_colour():
    assert len(set(verdict.SYMBOLS.values())) == len(verdict.SYMBOLS)
    for status, symbol in verdict.SYMBOLS.items():
        page = verdict.Verdict(status, "text", "05.expand")._repr_html_()
        assert f"{symbol} {status}" in page and 'role="status"' in page
        assert contrast(verdict._COLOURS[status]) >= 3


def test_the_sheet_for_the_projector_has_a_language_a_title_and_readable_words():
    text = (ROOT / "tools" / "make_classroom.py").read_text(encoding="utf-8")
    assert '<html lang="en">' in text and "<title>Predictions</title>" in text
    (ink,) = re.findall(r"color:(#\w{3});", text)
    assert contrast("#" + "".join(2 * digit for digit in ink[1:])) >= 7
