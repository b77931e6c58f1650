"""What was measured elsewhere, or earlier: the JSON files of `benchmarks/results/`, each with its provenance."""

import contextlib
import datetime
import json
import platform
import subprocess
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


def save_record(name: str, record: dict) -> None:
    """Writes the record `benchmarks/results/{name}.json`; it has to say where it comes from.

    Raises:
        ValueError: for a record without the key "provenance".
    """
    if "provenance" not in record:
        raise ValueError(f'record {name!r} needs "provenance": environment()')
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def provenance(record: dict) -> str:
    """Returns one line for a caption: recorded on what, with which versions, when."""
    made = record["provenance"]
    return f"recorded on {made['device']}, {made['versions']}, {made['date']}"


def gpu_decode_table() -> str:
    """Returns the run of `benchmarks/gpu_decode.py`, a row for each size, or says that there is none yet."""
    try:
        runs = recorded("gpu_decode")
    except FileNotFoundError:
        return "No run on a GPU is recorded yet: python benchmarks/gpu_decode.py makes one."
    lines = [f"{provenance(runs)} reads {max(runs['read_gb_per_s'].values()):,.0f} GB/s"]
    for row in runs["results"]:
        sizes = f"B={row['batch_size']:<3} G={row['n_kv_heads']:<3} S={row['kv_len']:<7}"
        percent, best = row["percent_of_read"], row["best_peer"]
        peer = f"{best} {percent[best]:.0f}%" if best else "no peer"
        lines.append(f"{sizes} {row['median_us']['gqa_lab']:9.1f} us {percent['gqa_lab']:4.0f}%  {peer}")
    return "\n".join(lines)


def environment() -> dict:
    """Returns what a measurement on this machine has to say about itself: device, versions, commit and date."""
    import torch

    cpu = f"CPU {_cpu_name()}, {torch.get_num_threads()} threads"
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else cpu
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    return {"device": device, "versions": versions, "commit": _commit(), "date": datetime.date.today().isoformat()}


def _commit() -> str:
    git = ["git", "-C", str(RESULTS), "describe", "--always", "--dirty", "--exclude=*"]
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    return "unknown"


def _cpu_name() -> str:
    with contextlib.suppress(OSError):  # Linux says it here, and nowhere that `platform` looks
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.machine())
    return platform.processor() or platform.machine()
