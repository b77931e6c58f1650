"""What was measured elsewhere, or earlier: the JSON files of `benchmarks/results/`, each with its provenance."""

import json
from pathlib import Path

RESULTS = Path(__file__).resolve().parent.parent / "benchmarks" / "results"


def recorded(name: str) -> dict:
    """Returns the record `benchmarks/results/{name}.json`.

    Raises:
        FileNotFoundError: names the records that exist.
    """
    path = RESULTS / f"{name}.json"
    if not path.exists():
        known = ", ".join(sorted(p.stem for p in RESULTS.glob("*.json"))) or "none"
        raise FileNotFoundError(f"no record named {name!r} in benchmarks/results (there: {known})")
    return json.loads(path.read_text(encoding="utf-8"))


def provenance(record: dict) -> str:
    """Returns one line for a caption: recorded on what, with which versions, when."""
    made = record["provenance"]
    return f"recorded on {made['device']}, {made['versions']}, {made['date']}"
