"""One list of dependencies: `pyproject.toml`. Everything that repeats it is compared with it here."""

import ast
import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CONDA = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
CONDA_NAMES = {"torch": "pytorch"}
TORCH, TRITON = "2.13.0", "3.7.1"  # torch's CUDA build on PyPI requires exactly this triton


def requirements() -> dict[str, Requirement]:
    """Returns what pyproject.toml asks for, the extras included, by name."""
    lines = [*PROJECT["dependencies"], *sum(PROJECT["optional-dependencies"].values(), [])]
    return {canonicalize_name(Requirement(line).name): Requirement(line) for line in lines}


def pins() -> dict[str, Version]:
    """Returns the exact versions in constraints.txt by name; a line that is anything else fails here."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    matches = [re.fullmatch(r"([a-z0-9-]+)==([0-9.]+)", line) for line in lines if line and line[0] != "#"]
    return {match[1]: Version(match[2]) for match in matches}


def conda_packages() -> dict[str, Requirement]:
    """Returns the packages that environment.yml takes from conda-forge by their name there."""
    found = [Requirement(line) for line in CONDA["dependencies"] if isinstance(line, str) and "python=" not in line]
    return {package.name: package for package in found}


def test_conda_asks_for_the_same_packages_with_the_same_bounds():
    expected = {CONDA_NAMES.get(name, name): found.specifier for name, found in requirements().items()}
    del expected["triton"]  # conda-forge has it for Linux only; `pip install -e .` brings it there
    del expected["playwright"]  # not on conda-forge; the browser test says that it is skipped
    found = {name: package.specifier for name, package in conda_packages().items() if name != "pip"}
    assert found == expected


def test_the_conda_environment_ends_with_the_course_itself():
    assert CONDA["dependencies"][-1] == {"pip": ["-e ."]}
    assert CONDA["channels"] == ["conda-forge", "nodefaults"]
    assert CONDA["name"] == PROJECT["name"]


def test_the_conda_python_is_one_the_course_runs_on():
    (line,) = [line for line in CONDA["dependencies"] if str(line).startswith("python=")]
    assert f"Programming Language :: Python :: {line.removeprefix('python=')}" in PROJECT["classifiers"]


def test_every_requirement_is_pinned():
    assert set(requirements()) - set(pins()) == set()


@pytest.mark.parametrize("name", sorted(requirements()))
def test_every_pin_satisfies_the_bounds(name):
    assert pins()[name] in requirements()[name].specifier


@pytest.mark.parametrize("name", sorted(requirements()))
def test_a_dependency_has_a_lower_bound_and_no_exact_version(name):
    operators = {bound.operator for bound in requirements()[name].specifier}
    assert ">=" in operators and "==" not in operators


def test_torch_and_triton_are_pinned_as_a_pair():
    assert (pins()["torch"], pins()["triton"]) == (Version(TORCH), Version(TRITON))


def test_the_installed_torch_asks_for_no_other_triton():
    asked = [Requirement(line) for line in importlib.metadata.requires("torch") or [] if line.startswith("triton")]
    assert all(requirement.specifier.contains(TRITON) for requirement in asked)  # none in the CPU build


def test_triton_is_a_dependency_on_linux_only():
    marker = requirements()["triton"].marker
    assert [marker.evaluate({"sys_platform": name}) for name in ("linux", "darwin", "win32")] == [
        True,
        False,
        False,
    ]


def test_course_py_needs_the_standard_library_only():
    tree = ast.parse((ROOT / "course.py").read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import)]
    froms = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    names = [alias.name for node in imports for alias in node.names] + [node.module for node in froms]
    assert {name.partition(".")[0] for name in names} <= set(sys.stdlib_module_names) and "json" in names


def test_course_py_runs_on_the_pythons_that_the_project_names():
    tree = ast.parse((ROOT / "course.py").read_text(encoding="utf-8"))
    (pythons,) = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and node.targets[0].id == "PYTHONS"
    ]
    prefix = "Programming Language :: Python :: "
    assert [prefix + version for version in pythons] == [c for c in PROJECT["classifiers"] if c.startswith(prefix)]
    assert PROJECT["requires-python"] == f">={pythons[0]}"


def test_the_tests_of_a_clean_clone_are_the_command_in_the_readme():
    assert "python3 course.py test\n" in (ROOT / ".ci/run").read_text(encoding="utf-8")
