"""Records what sharing KV heads costs small decoders trained from scratch, and what it costs to convert a trained one.

    python benchmarks/quality.py                every run that is not there yet, then the table and the record
    python benchmarks/quality.py --workers 2    in two processes, for two cores
    python benchmarks/quality.py --smoke        every path in seconds, with runs far too short to say anything

Writes benchmarks/results/quality.json. About 15 minutes of one core. Each run is kept in benchmarks/results/parts/ as
it ends, so that the whole can be interrupted and gone on with; a run that was made by other sizes is made again.

Text: decoders of 0.84 M parameters with 8, 4, 2 and 1 KV heads read the bytes of `pydoc_data.topics`, with the d_ff of
the one with 8 KV heads and once more with as many parameters (`equalised`). Recall: smaller ones, with heads of 4
numbers, learn to find a pair by its key. Conversion: each decoder with 8 KV heads of the first task is pooled and
trained further, beside itself trained further as the control. Runs of one seed begin with the same weights and see the
same batches, so they are compared pair by pair. All losses are cross-entropies in nats per byte, in float32, on the
held-out topics of `convert_texts`.
"""

import argparse
import hashlib
import json
import platform
import tempfile
import time
from contextlib import nullcontext
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, stdev

import torch
from convert_texts import HELD_OUT, training_text
from quality_runs import (
    N_KV_HEADS,
    PAIRS,
    RECALL_MODEL,
    RULES,
    SMOKE,
    SOLVED,
    TEXT_MODEL,
    Sizes,
    convert_run,
    held_out_text,
    recall_run,
    text_run,
)

from gqa_lab.recorded import RESULTS, environment, save_record

FEWER = N_KV_HEADS[1:]


def runs(sizes: Sizes) -> dict[str, tuple]:
    """Returns the name of every run, its function and what it is called with, in an order in which they can be made."""
    named = {}
    for seed in sizes.seeds:
        named |= {f"text_{seed}_{n}": (text_run, seed, n, False) for n in N_KV_HEADS}
        named |= {f"equalised_{seed}_{n}": (text_run, seed, n, True) for n in FEWER}
        named |= {f"recall_{seed}_{n}": (recall_run, seed, n) for n in N_KV_HEADS}
        named |= {f"control_{seed}": (convert_run, seed, N_KV_HEADS[0], None)}
        named |= {f"{rule}_{seed}_{n}": (convert_run, seed, n, rule) for rule in RULES for n in FEWER}
    return named


def differences(losses: list[float], baseline: list[float]) -> dict:
    """Returns the differences of pairs, their mean, its 95% interval, and how many are greater than 0.

    Source: the interval is Student's for paired differences, mean ± t · s / √n.
    """
    pairs = [a - b for a, b in zip(losses, baseline, strict=True)]
    half = T_95[len(pairs) - 1] * stdev(pairs) / len(pairs) ** 0.5
    interval = [mean(pairs) - half, mean(pairs) + half]
    return {"pairs": pairs, "mean": mean(pairs), "interval": interval, "n_worse": sum(d > 0 for d in pairs)}


T_95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571}
"""The 97.5% quantile of Student's t by degrees of freedom."""


def summary(found: dict[str, dict], seeds: tuple[int, ...]) -> dict:
    """Returns the numbers that are quoted, from those of the runs: pair by pair, against MHA or against the control."""

    def text(name: str, n: int) -> list[float]:
        return [found[f"{name}_{seed}_{n}"]["loss"] for seed in seeds]

    def later(name: str, share: str) -> list[float]:
        return [found[name.format(seed)]["losses"][share] for seed in seeds]

    def against_mha(name: str) -> dict:
        return {str(n): differences(text(name, n), text("text", N_KV_HEADS[0])) for n in FEWER}

    def against_control(rule: str, n: int) -> dict:
        return {share: differences(later(f"{rule}_{{}}_{n}", share), later("control_{}", share)) for share in shares}

    shares = list(found[f"control_{seeds[0]}"]["losses"])
    mha = text("text", N_KV_HEADS[0])
    steps = {str(n): [found[f"recall_{seed}_{n}"]["steps_to_solve"] for seed in seeds] for n in N_KV_HEADS}
    return {
        "mha": {"mean": mean(mha), "stdev": stdev(mha)},
        "text": against_mha("text"),
        "equalised": against_mha("equalised"),
        "recall": {n: {"n_solved": len(of) - of.count(None), "steps_to_solve": of} for n, of in steps.items()},
        "control": {share: mean(later("control_{}", share)) for share in shares},
        "conversion": {rule: {str(n): against_control(rule, n) for n in FEWER} for rule in RULES},
    }


def table(said: dict) -> str:
    """Returns the summary as text."""

    def row(name: str, found: dict) -> str:
        low, high = found["interval"]
        worse = f"worse {found['n_worse']} of {len(found['pairs'])}"
        return f"  {name:<14}{found['mean']:>+9.4f}   95% from {low:+.4f} to {high:+.4f}   {worse}"

    mha = said["mha"]
    lines = [f"text: MHA loses {mha['mean']:.4f} nats per byte, standard deviation over seeds {mha['stdev']:.4f}"]
    for name, title in (("text", "same d_ff, against MHA"), ("equalised", "as many parameters, against MHA")):
        lines += [f"{title}, by KV heads", *(row(n, found) for n, found in said[name].items())]
    lines += ["recall, by KV heads"]
    for n, found in said["recall"].items():
        steps = ", ".join(str(step or "not") for step in found["steps_to_solve"])
        lines += [
            f"  {n}: solved with {found['n_solved']} of {len(found['steps_to_solve'])} seeds, after steps {steps}"
        ]
    for share, loss in said["control"].items():
        lines += [f"converted and trained {share} further, against the control, which loses {loss:.4f}"]
        lines += [row(f"{rule} {n}", of[share]) for rule, by_n in said["conversion"].items() for n, of in by_n.items()]
    return "\n".join(lines)


def make(job: tuple) -> tuple[str, dict]:
    """Makes one run and keeps it; returns its name and what it found."""
    name, (function, *arguments), sizes, folder, made = job
    begun = time.process_time()
    found = function(sizes, folder, *arguments)
    run = {"provenance": made, "sizes": asdict(sizes), "cpu_seconds": round(time.process_time() - begun, 1)}
    path = folder / f"quality_{name}.json"
    path.with_suffix(".part").write_text(json.dumps(run | {"found": found}), encoding="utf-8")
    path.with_suffix(".part").replace(path)  # whole, or not there
    return name, run


def kept(folder: Path, sizes: Sizes) -> dict[str, dict]:
    """Returns the runs of these sizes that are there, by name."""
    there = {}
    for name in runs(sizes):
        path = folder / f"quality_{name}.json"
        run = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if run.get("sizes") == plain(sizes):
            there[name] = run
    return there


def plain(sizes: Sizes) -> dict:
    """Returns the sizes as they come back from a file."""
    return json.loads(json.dumps(asdict(sizes)))


def one_thread() -> None:
    """Sets how many threads a process computes with; with more, or on another CPU, last digits may differ."""
    torch.set_num_threads(1)


def measure(sizes: Sizes, folder: Path, n_workers: int = 1) -> dict:
    """Makes every run that is not there yet; returns the record."""
    one_thread()
    folder.mkdir(exist_ok=True)
    made, there, begun, n_done = environment(), kept(folder, sizes), time.perf_counter(), 0
    jobs = [(name, call, sizes, folder, made) for name, call in runs(sizes).items() if name not in there]
    print(f"{len(there)} runs are there, {len(jobs)} to make", flush=True)
    with get_context("spawn").Pool(n_workers, one_thread) if n_workers > 1 else nullcontext() as pool:
        for conversions in (False, True):  # what is converted has to be trained before
            of_this_kind = [job for job in jobs if (job[1][0] is convert_run) == conversions]
            for name, run in pool.imap_unordered(make, of_this_kind) if pool else map(make, of_this_kind):
                n_done += 1
                left = (time.perf_counter() - begun) / n_done * (len(jobs) - n_done) / 60
                print(f"[{n_done}/{len(jobs)}] {name}: {run['cpu_seconds']} s, {left:.0f} min left", flush=True)
    return record(kept(folder, sizes), sizes)


def record(there: dict[str, dict], sizes: Sizes) -> dict:
    """Returns the record: the numbers that are quoted, and below them those of every run."""
    found = {name: there[name]["found"] for name in runs(sizes)}
    texts = {"train": training_text().encode(), "held_out": held_out_text().encode()}
    return {
        "provenance": max((run["provenance"] for run in there.values()), key=lambda made: made["date"]),
        "commits": sorted({run["provenance"]["commit"] for run in there.values()}),
        "cpu_seconds": round(sum(run["cpu_seconds"] for run in there.values())),
        "sizes": plain(sizes),
        "models": {"text": asdict(TEXT_MODEL), "recall": asdict(RECALL_MODEL)},
        "recall_task": PAIRS | {"solved": SOLVED},
        "texts": {
            "names": f"pydoc_data.topics, each paragraph once; held out: {', '.join(HELD_OUT)}",
            "python": platform.python_version(),
            "n_bytes": {name: len(text) for name, text in texts.items()},
            "sha256": {name: hashlib.sha256(text).hexdigest() for name, text in texts.items()},
        },
        "summary": summary(found, sizes.seeds),
        "runs": found,
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workers", type=int, default=1, help="processes, one thread each")
    parser.add_argument("--smoke", action="store_true", help="every path in seconds; nothing is recorded")
    asked = parser.parse_args(arguments)
    if asked.smoke:
        with tempfile.TemporaryDirectory() as folder:
            return print(table(measure(SMOKE, Path(folder), asked.workers)["summary"]))
    made = measure(Sizes(), RESULTS / "parts", asked.workers)
    print(table(made["summary"]))
    save_record("quality", made)


if __name__ == "__main__":
    main()
