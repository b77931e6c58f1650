"""Runs notebooks from top to bottom and saves their outputs, the same bytes each time.

    python tools/refresh_outputs.py [notebooks/05_grouped_query.ipynb ...]

Without arguments: all lessons and solutions, and the figure of the README. No timings, no widget state and no random
widget ids are stored, nothing that a cell tagged `live` prints, and cell ids are kept, so a refresh that changes
nothing leaves no diff. On a CPU, because that is what the tests compare with.
"""

import os
import sys
import time
from pathlib import Path

import nbformat
from build_exercises import METADATA
from nbclient import NotebookClient

from gqa_lab.costs import SHAPES
from gqa_lab.plots import Picture, bytes_per_token

ROOT = Path(__file__).resolve().parent.parent
WIDGET = "application/vnd.jupyter.widget-view+json"


def refresh(path: Path) -> None:
    """Executes one notebook and writes it back.

    Raises:
        CellExecutionError: from the first cell that fails; the file is then left as it was.
    """
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=300,
        kernel_name="python3",
        record_timing=False,
        store_widget_state=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(path.parent)}},
    )
    client.execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if o.output_type != "stream" or o.name == "stdout"]
            if "live" in cell.metadata.get("tags", []):  # it measures the machine that it runs on
                cell.outputs = []
            for output in cell.outputs:
                output.get("data", {}).pop(WIDGET, None)
    notebook.metadata = nbformat.from_dict(METADATA)
    path.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8", newline="\n")


def main(arguments: list[str]) -> None:
    """Refreshes the notebooks that are named, or all."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    paths = [Path(a) for a in arguments] or sorted(ROOT.glob("notebooks/*.ipynb")) + sorted(
        ROOT.glob("solutions/*.ipynb")
    )
    for path in paths:
        start = time.perf_counter()
        print(f"{path} ...", end=" ", flush=True)
        refresh(path)
        print(f"{time.perf_counter() - start:.1f} s")
    if not arguments:
        (ROOT / "docs" / "bytes_per_token.png").write_bytes(Picture(bytes_per_token(SHAPES["llama-3.1-70b"])).png)


if __name__ == "__main__":
    main(sys.argv[1:])
