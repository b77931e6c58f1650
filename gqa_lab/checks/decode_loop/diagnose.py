"""08.diagnose: from one measurement to the cause, and among several to the one that can be mended first."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from gqa_lab.checks import sandbox
from gqa_lab.checks.answers import Mistake, not_attempted
from gqa_lab.checks.verdict import Verdict

CAUSES = (
    "prefill",
    "MATH fallback",
    "expanded",
    "concatenated",
    "empty slots read",
    "launch-bound",
    "weights outweigh the cache",
    "at the roofline",
)
_CLEAN = {
    "q_len": 1,
    "kv_len": 4000,
    "slots": 4000,
    "wall_ms": 20.0,
    "device_ms": None,
    "weight_bytes": 100_000_000,
    "kv_bytes": 400_000_000,
    "read_bytes": 510_000_000,
    "written_bytes": 6_000_000,
    "backend": "FLASH_ATTENTION",
}
_LOOK = {
    "prefill": "Look at q_len.",
    "MATH fallback": "Look at backend.",
    "expanded": "How many times kv_bytes was written?",
    "concatenated": "How many times kv_bytes was written?",
    "empty slots read": "Compare read_bytes with what the weights and the tokens hold.",
    "launch-bound": "Compare wall_ms with device_ms.",
    "weights outweigh the cache": "Nothing was copied, no empty slot was read, the GPU is busy. Compare "
    "weight_bytes with kv_bytes.",
    "at the roofline": "Nothing in this record is wasted.",
}


def _record(**changes) -> dict:
    return _CLEAN | changes


RECORDS = (  # some are mixed: the cause to name is the first that can be mended
    ("prefill", _record(q_len=512, backend="MATH", written_bytes=900_000_000, wall_ms=900.0)),
    ("MATH fallback", _record(backend="MATH", written_bytes=420_000_000, read_bytes=930_000_000)),
    ("MATH fallback", _record(backend="MATH", written_bytes=110_000_000, read_bytes=640_000_000)),
    ("expanded", _record(written_bytes=814_000_000, read_bytes=1_320_000_000, wall_ms=90.0)),
    ("concatenated", _record(written_bytes=408_000_000, read_bytes=910_000_000, wall_ms=45.0)),
    ("empty slots read", _record(kv_len=1000, kv_bytes=100_000_000, weight_bytes=50_000_000, read_bytes=460_000_000)),
    ("empty slots read", _record(kv_len=1000, kv_bytes=100_000_000, weight_bytes=50_000_000, read_bytes=460_000_000,
                                 device_ms=3.0, wall_ms=19.0)),
    ("at the roofline", _record(kv_len=1000, kv_bytes=100_000_000, weight_bytes=50_000_000, read_bytes=149_400_000,
                                written_bytes=1_000_000, backend="none")),  # of an embedding one row is read
    ("launch-bound", _record(device_ms=3.0, wall_ms=19.0)),
    ("weights outweigh the cache", _record(kv_len=600, slots=1024, kv_bytes=60_000_000, read_bytes=165_000_000,
                                           written_bytes=1_000_000)),
    ("at the roofline", _record(device_ms=17.0, wall_ms=19.0)),
    ("at the roofline", _record(slots=4096, backend="none")),
    ("expanded", _record(kv_len=400, slots=400, kv_bytes=40_000_000, written_bytes=165_000_000,
                         read_bytes=310_000_000)),
    ("launch-bound", _record(kv_len=400, slots=400, kv_bytes=40_000_000, read_bytes=145_000_000,
                             written_bytes=1_000_000, device_ms=2.0, wall_ms=11.0)),
    ("MATH fallback", _record(backend="MATH", written_bytes=1_700_000_000, read_bytes=2_500_000_000)),
)  # fmt: skip


def _reads_more(r: dict, factor: float) -> bool:
    return r["read_bytes"] > factor * (r["weight_bytes"] + r["kv_bytes"])


def truth(record: dict) -> str:
    """Returns the first cause that holds."""
    kv, device = record["kv_bytes"], record["device_ms"]
    signs = (
        record["q_len"] > 1,
        record["backend"] == "MATH",
        record["written_bytes"] > 1.5 * kv,
        record["written_bytes"] > 0.5 * kv,
        record["slots"] > record["kv_len"] and _reads_more(record, 1.2),
        device is not None and device < record["wall_ms"] / 2,
        record["weight_bytes"] > kv,
        True,
    )
    return CAUSES[signs.index(True)]


# ---- known mistakes --------------------------------------------------------------------------------------


def _in_order(*order: str, **rules: Callable[[dict], bool]) -> Callable[[dict], str]:
    """Makes a function that asks for the causes in this order, with some rules exchanged."""
    own = {
        "prefill": lambda r: r["q_len"] > 1,
        "MATH fallback": lambda r: r["backend"] == "MATH",
        "expanded": lambda r: r["written_bytes"] > 1.5 * r["kv_bytes"],
        "concatenated": lambda r: r["written_bytes"] > 0.5 * r["kv_bytes"],
        "empty slots read": lambda r: r["slots"] > r["kv_len"] and _reads_more(r, 1.2),
        "launch-bound": lambda r: r["device_ms"] is not None and r["device_ms"] < r["wall_ms"] / 2,
        "weights outweigh the cache": lambda r: r["weight_bytes"] > r["kv_bytes"],
    } | {name.replace("_", " ").replace("launch bound", "launch-bound"): rule for name, rule in rules.items()}
    return lambda record: next((cause for cause in order if own[cause](record)), "at the roofline")


_ORDER = CAUSES[:-1]


def _without(cause: str) -> Callable[[dict], str]:
    return _in_order(*(c for c in _ORDER if c != cause))


def _first(cause: str) -> Callable[[dict], str]:
    return _in_order(cause, *(c for c in _ORDER if c != cause))


_WEIGHTS_FIRST = "True of that record, but you can do nothing about the weights; look at written_bytes first."
_NO_DEVICE = "You called a step launch-bound without device_ms. Compare wall and device: only the difference says it."
_ANY_GAP = "A small gap between wall_ms and device_ms is no cause. Launch-bound means that the GPU mostly waits."
_MATH_LATER = "The copies of that record come from MATH: the backend made them. Ask for the backend before the copies."
_NO_TELLING = "Copied once or copied for every query head? How many times kv_bytes was written?"
_READ = "Reading more than K and V is not expanding: weights are read as well. What is written tells."
_SLOTS = (
    "Handed over is not read: in some records the empty slots were skipped. Compare read_bytes with the weights and "
    "the tokens together."
)
_NO_MARGIN = (
    "You left no margin: a step reads a little more than K, V and the weights, and that is no cause. Empty slots are "
    "many bytes more."
)
_NO_MATH = "You name MATH in no record that decodes. Look at backend: MATH makes copies of its own."
_FOUR = "A group need not have 4 query heads: with 2, expanding writes twice kv_bytes, and that is no single copy."
_PREFILL_LATER = "Several new tokens at once: then the rest of the record says nothing about decoding. Ask that first."

MISTAKES = (
    Mistake("weights first", _first("weights outweigh the cache"), _WEIGHTS_FIRST),
    Mistake("weights before launches", _in_order(*_ORDER[:5], *_ORDER[:4:-1]),
            "A small model that waits for launches: the weights outweigh the cache, true, but the launches are what "
            "you can change. Compare wall and device first."),
    Mistake("launch-bound by wall alone", _in_order(*_ORDER, launch_bound=lambda r: r["wall_ms"] > 15), _NO_DEVICE),
    Mistake("launch-bound without a device", _in_order(
        *_ORDER, launch_bound=lambda r: (r["device_ms"] or 0) < r["wall_ms"] / 2), _NO_DEVICE),
    Mistake("any gap", _in_order(*_ORDER, launch_bound=lambda r: r["device_ms"] is not None and
                                 r["device_ms"] < r["wall_ms"]), _ANY_GAP),
    Mistake("MATH after the copies", _in_order("prefill", "expanded", "concatenated", "MATH fallback", *_ORDER[4:]),
            _MATH_LATER),
    Mistake("never MATH", _without("MATH fallback"), _NO_MATH),
    Mistake("never MATH, slots not compared", _in_order(
        "prefill", *_ORDER[2:], empty_slots_read=lambda r: _reads_more(r, 1.2)), _NO_MATH),
    Mistake("concatenated first", _in_order(*_ORDER[:2], "concatenated", "expanded", *_ORDER[4:]), _NO_TELLING),
    Mistake("every copy is expanded", _in_order(*_ORDER, expanded=lambda r: r["written_bytes"] > 0.5 * r["kv_bytes"]),
            _NO_TELLING),
    Mistake("expanded by what is read", _in_order(*_ORDER, expanded=lambda r: r["read_bytes"] > r["kv_bytes"]), _READ),
    Mistake("expanded by what is read twice", _in_order(
        *_ORDER, expanded=lambda r: r["read_bytes"] > 2 * r["kv_bytes"]), _READ),
    Mistake("any writing is a copy", _in_order(*_ORDER, concatenated=lambda r: r["written_bytes"] > 0),
            "Every step writes a little: the new token, the scores. A copy is as large as K and V."),
    Mistake("no empty slots", _without("empty slots read"),
            "You name empty slots in no record: a mask hides them, it does not spare them. What is read tells."),
    Mistake("any empty slot", _in_order(*_ORDER, empty_slots_read=lambda r: r["slots"] > r["kv_len"]), _SLOTS),
    Mistake("slots alone", _in_order(*_ORDER, empty_slots_read=lambda r: r["slots"] > 1.5 * r["kv_len"]), _SLOTS),
    Mistake("no margin", _in_order(*_ORDER, empty_slots_read=lambda r: _reads_more(r, 1)), _NO_MARGIN),
    Mistake("no margin, slots compared", _in_order(
        *_ORDER, empty_slots_read=lambda r: r["slots"] > r["kv_len"] and _reads_more(r, 1)), _NO_MARGIN),
    Mistake("no margin, many slots", _in_order(
        *_ORDER, empty_slots_read=lambda r: r["slots"] > 1.5 * r["kv_len"] and _reads_more(r, 1)), _NO_MARGIN),
    Mistake("launches before empty slots", _in_order(*_ORDER[:4], "launch-bound", "empty slots read", _ORDER[6]),
            "A GPU that waits, true. But CAUSES has the empty slots before it, and they are read in that record."),
    Mistake("four copies", _in_order(*_ORDER, expanded=lambda r: r["written_bytes"] >= 4 * r["kv_bytes"]), _FOUR),
    Mistake("three copies", _in_order(*_ORDER, expanded=lambda r: r["written_bytes"] >= 3 * r["kv_bytes"]), _FOUR),
    Mistake("prefill last", _in_order(*_ORDER[1:], "prefill"), _PREFILL_LATER),
    Mistake("never prefill", _without("prefill"), _PREFILL_LATER),
    Mistake("never weights", _without("weights outweigh the cache"),
            "You name the weights in no record. They outweigh the cache as soon as weight_bytes is the larger one."),
    Mistake("never launch-bound", _without("launch-bound"),
            "You name no record launch-bound. Compare wall_ms with device_ms."),
)  # fmt: skip


# ---- the check -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BuildCause:
    """A function from a record to the name of a cause."""

    id: str
    level: str
    mistakes: tuple[Mistake, ...]
    notice: str

    def judge(self, answer: object, seed: int = 0) -> Verdict:
        """Returns the verdict on a function."""
        if answer is None or answer is ...:
            return not_attempted(self.id, [])
        if not callable(answer):
            text = f"Hand over the function itself, without calling it; this is of type {type(answer).__name__}."
            return Verdict("failed", text, self.id)
        deadline = time.monotonic() + sandbox.DEADLINE_S
        given = [dict(record) for _, record in RECORDS]
        runs = [sandbox.run(answer, [record], {}, deadline) for record in given]
        if runs[0].is_stub(answer):
            return not_attempted(self.id, [])
        problem = self._problem(runs)
        if not problem and given != [record for _, record in RECORDS]:
            problem = "Your function changed the record. Somebody else still needs it."
        if not problem and any(
            _tidy(sandbox.run(answer, [dict(r)], {}, deadline).value) != cause for cause, r in reversed(RECORDS)
        ):
            problem = "Right at first, wrong when asked again in another order: does it remember?"
        printed = sandbox.shown(runs[0].printed)
        if problem:
            return Verdict("failed", problem + printed, self.id)
        return Verdict(
            "passed", f"Right on {len(RECORDS)} records, some of them mixed. {self.notice}{printed}", self.id
        )

    def _problem(self, runs: list[sandbox.Run]) -> str | None:
        named = [_tidy(run.value) for run in runs]
        wrong = [n for n, (cause, _) in enumerate(RECORDS) if named[n] != cause]
        if not wrong:
            return None
        cause, record = RECORDS[wrong[0]]
        shown = "\n".join(f"  {key:<14}{_shown(value)}" for key, value in record.items())
        right = f"{len(RECORDS) - len(wrong)} of {len(RECORDS)} records are right."
        if any(run.used_package for run in runs):
            return "That is the package's. Write yours; afterwards compare."
        for run, (_, one) in zip(runs, RECORDS, strict=True):
            if run.error is not None:
                on_cpu = " On a CPU device_ms is None." if one["device_ms"] is None and "None" in run.trouble() else ""
                return f"{run.trouble()}{on_cpu}\nThe record:\n" + "\n".join(
                    f"  {key:<14}{_shown(value)}" for key, value in one.items()
                )
        if odd := [run.value for run, name in zip(runs, named, strict=True) if name not in CAUSES]:
            return f"{odd[0]!r} is none of the eight names: {', '.join(CAUSES)}."
        known = next((m for m in self.mistakes if [m.wrong(r) for _, r in RECORDS] == named), None)
        first = known.diagnosis if known else f"{_LOOK[cause]} {_also(named[wrong[0]], record)}".strip()
        return f"{first}\nThe first record that is not right (you said {named[wrong[0]]!r}; {right}):\n{shown}"


def _also(said: str, record: dict) -> str:
    """Says it where the cause that was named holds as well, but comes later."""
    holds = said in _ORDER and _in_order(said)(record) == said
    return f"{said!r} holds as well, but something before it can be mended." if holds else ""


def _shown(value: object) -> str:
    return f"{value:,}" if type(value) is int else str(value)


def _tidy(value: object) -> object:
    """Returns the cause that a text names, whatever its capitals and with or without an article."""
    if not isinstance(value, str):
        return value
    words = value.strip().lower().replace("_", " ").replace("launch bound", "launch-bound").replace(" the ", " ")
    return {cause.lower().replace(" the ", " "): cause for cause in CAUSES}.get(words, value)


DIAGNOSE = BuildCause(
    id="08.diagnose",
    level="build ●●● 15 min, further",
    mistakes=MISTAKES,
    notice="Notice: the order is part of the answer. What you cannot change comes last, however true it is. "
    "`why_not_faster` asks the same way, of your own code.",
)
