"""The picture of the house, enforced: imports go down, and the front door is light."""

import ast
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "gqa_lab"
FLOORS = [
    {"bandwidth", "config", "reference", "costs", "cache", "footprint", "recorded", "smollm2"},
    {"contract", "gguf_file", "hf_config", "plots", "traffic"},
    {"attention", "hf_folder", "triton_decode"},
    {"model", "tokenizer", "widgets"},
    {"checkpoint", "generate", "convert"},
    {"listen", "profiler", "steps"},
    {"checks"},
]
SAME_FLOOR = {("costs", "config")}


def floor_of(module: str) -> int:
    return next(i for i, floor in enumerate(FLOORS) if module in floor)


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "gqa_lab":
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        if isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("gqa_lab.")}
    return found


def modules() -> dict[str, set[str]]:
    found = {}
    for path in PACKAGE.rglob("*.py"):
        name = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if name != "__init__":
            found[name] = found.get(name, set()) | (imports_of(path) - {name})
    return found


def test_every_module_stands_on_a_floor_and_every_floor_is_built():
    assert set(modules()) == set().union(*FLOORS)


def test_a_module_imports_only_from_lower_floors():
    for module, imported in modules().items():
        for other in imported:
            assert floor_of(other) < floor_of(module) or (module, other) in SAME_FLOOR, f"{module} imports {other}"


def test_importing_the_package_brings_in_no_heavy_library():
    code = "import gqa_lab, sys; print([m for m in ('triton', 'matplotlib', 'ipywidgets', 'torch', 'transformers') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    assert out.stdout.strip() == "[]"


def test_the_core_brings_in_neither_triton_nor_matplotlib_nor_ipywidgets():
    code = (
        "import gqa_lab.generate, gqa_lab.checkpoint, gqa_lab.costs, sys;"
        "print([m for m in ('triton', 'matplotlib', 'ipywidgets', 'transformers') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    assert out.stdout.strip() == "[]"
