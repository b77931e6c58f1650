"""What holds the repository together for others: links, spelling, notebooks without traces, CI, versions that agree."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted(
    path for folder in ("notebooks", "solutions", "exercises") for path in ROOT.glob(f"{folder}/*.ipynb")
)
PAGES = sorted(ROOT.glob("*.md"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text(encoding="utf-8"))

every_text = pytest.mark.parametrize("path", [*NOTEBOOKS, *PAGES], ids=lambda path: f"{path.parent.name}/{path.stem}")


def text_of(path: Path) -> str:
    if path.suffix == ".md":
        return re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.S | re.M)
    cells = nbformat.read(path, as_version=4).cells
    return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def anchors_of(path: Path) -> set[str]:
    """Returns the anchors of a page's headings, as GitHub and Jupyter make them (which differ in capitals)."""
    found = set()
    for heading in re.findall(r"^#+ (.*)$", text_of(path), re.M):
        plain = re.sub(r"[`*]|\[([^]]*)\]\([^)]*\)", r"\1", heading).strip()
        found.add(re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-"))
        found.add(plain.replace(" ", "-"))
    return found


# ---- links


@every_text
def test_every_link_leads_to_a_file_and_to_a_heading_in_it(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(path)):
        if target.startswith("https://"):
            continue
        file, _, anchor = target.partition("#")
        goal = (path.parent / file).resolve() if file else path
        assert goal.exists() and goal.is_relative_to(ROOT), target
        assert not anchor or anchor in anchors_of(goal), target


@every_text
def test_every_address_is_whole_and_safe(path):
    assert not re.findall(r"\]\(http://", text_of(path))
    for address in re.findall(r"https://[^\s)>\]\"'`]+", text_of(path)):
        assert re.fullmatch(r"https://[\w.-]+\.\w+(/[\w./~%#?=&:+-]*)?", address.rstrip(".,;")), address


# ---- spelling


def test_nothing_is_misspelt():
    folders = ["gqa_lab", "tests", "tools", "benchmarks", "notebooks", "solutions", "exercises", ".github"]
    files = [path.name for path in ROOT.glob("*") if path.suffix in (".md", ".py", ".cff", ".yml")]
    command = [sys.executable, "-m", "codespell_lib", *files, *folders]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr


# ---- notebooks


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_notebook_is_valid_named_by_its_ids_and_ends_in_a_line(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids) and not any(re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f-]+)?", name) for name in ids)
    assert set(notebook.metadata) == {"kernelspec", "language_info"} and notebook.metadata.kernelspec.name == "python3"
    assert path.read_bytes().endswith(b"}\n") and b"\r" not in path.read_bytes()


@pytest.mark.parametrize("path", [p for p in NOTEBOOKS if p.parent.name == "exercises"], ids=lambda path: path.stem)
def test_an_exercise_has_no_results(path):
    cells = nbformat.read(path, as_version=4).cells
    assert all(not cell.outputs and cell.execution_count is None for cell in cells if cell.cell_type == "code")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_page_made_of_a_notebook_needs_nothing_from_the_network(path):
    """TEACHING.md writes pages without MathJax: formulas are words and code."""
    assert not re.search(r"\$[^$\n]+\$|\\\(|\\begin\{", text_of(path))
    for cell in nbformat.read(path, as_version=4).cells:
        for output in cell.get("outputs", []):
            assert not re.search(r"<(script|link|img)[^>]*\"https?:", output.get("data", {}).get("text/html", ""))


# ---- CI of others, citation, versions


def steps(job: str) -> list[str]:
    return [step["run"] for step in WORKFLOW["jobs"][job]["steps"] if "run" in step]


def test_the_workflow_calls_the_same_script_as_everybody_and_runs_elsewhere_with_cpu():
    assert steps("linux") == [".ci/run"]
    assert steps("elsewhere") == ["python course.py test --cpu"]
    assert WORKFLOW["jobs"]["elsewhere"]["strategy"]["matrix"]["os"] == ["macos-15", "windows-2025"]
    assert WORKFLOW["permissions"] == {"contents": "read"}


def test_the_workflow_tries_the_oldest_and_the_newest_pytorch_on_pythons_the_project_names():
    (bound,) = [line for line in PROJECT["dependencies"] if line.startswith("torch")]
    oldest, newest = WORKFLOW["jobs"]["pytorch"]["strategy"]["matrix"]["include"]
    assert oldest["requirement"] == bound.replace(">=", "==") + ".*" and newest["requirement"] == "torch"
    pythons = [name.rpartition(" ")[2] for name in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", name)]
    assert WORKFLOW["jobs"]["linux"]["strategy"]["matrix"]["python"] == [pythons[0], pythons[-1]]
    assert (oldest["python"], newest["python"]) == (pythons[0], pythons[-1])


def test_the_documented_command_for_the_lessons_is_the_one_of_course_py():
    teaching = (ROOT / "TEACHING.md").read_text(encoding="utf-8")
    course = (ROOT / "course.py").read_text(encoding="utf-8")
    (command,) = re.findall(r"^CUDA_VISIBLE_DEVICES=.*pytest (.*)$", teaching, re.M)
    for option in re.findall(r"--nbval-[a-z-]+", command):
        assert f'"{option}"' in course
    assert "--nbval " in command and command.endswith("notebooks solutions")


def test_citation_and_changelog_name_the_version_of_the_project():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0" and {"message", "title", "authors", "type"} <= set(citation)
    assert (citation["version"], citation["license"]) == (PROJECT["version"], PROJECT["license"])
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (\d+\.\d+\.\d+)", changes, re.M)[0] == PROJECT["version"]
