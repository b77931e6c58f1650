"""The student's desk: `check`, `predict`, `case` and `progress`, over the exercises of all lessons.

A lesson is a folder with `TITLE`, `EXERCISES` and `PREDICTIONS`, each exercise in a module of its own. What was checked
and predicted is remembered in this process only.
"""

import difflib
import os
import zlib
from collections.abc import Iterable

from gqa_lab.checks import (
    attention,
    beyond_gqa,
    beyond_one_gpu,
    decode_loop,
    gpu_kernel,
    grouped_query,
    kv_cache,
    kv_cache_profiler,
    multi_head,
    multi_query,
    quality,
    start_here,
    what_it_costs,
)
from gqa_lab.checks.verdict import SYMBOLS, Page, Verdict

LESSONS = (
    start_here,
    attention,
    multi_head,
    kv_cache,
    multi_query,
    grouped_query,
    what_it_costs,
    quality,
    decode_loop,
    gpu_kernel,
    kv_cache_profiler,
    beyond_one_gpu,
    beyond_gqa,
)
EXERCISES = {exercise.id: exercise for lesson in LESSONS for exercise in lesson.EXERCISES}
PREDICTIONS = {prediction.id: prediction for lesson in LESSONS for prediction in lesson.PREDICTIONS}

_seeds: dict[str, int] = {}  # the seed last drawn of each hand exercise
_verdicts: dict[str, str] = {}  # the latest status of each exercise; one that has passed stays passed
_predicted: dict[str, str] = {}  # the latest letter of each prediction


def check(exercise_id: str, answer: object) -> Verdict:
    """Returns the verdict on an answer: "passed", "failed" or "not attempted", and why.

    Under nbgrader it also prints the verdict, and raises unless the answer passed.

    Args:
        exercise_id: for instance "05.expand".
        answer: your function itself, or your dict.

    Raises:
        ValueError: for an unknown exercise.
        AssertionError: under nbgrader, for an answer that has not passed.
    """
    exercise = EXERCISES[_known(exercise_id, EXERCISES)]
    try:
        verdict = exercise.judge(answer, _seeds.get(exercise_id, 0))
    except Exception as error:  # an answer may be any object, and no traceback of ours helps the student
        text = f"The check could not read your answer ({type(error).__name__}). Compare its form with the task."
        verdict = Verdict("failed", text, exercise_id)
    if _verdicts.get(exercise_id) != "passed":
        _verdicts[exercise_id] = verdict.status
    if "NBGRADER_EXECUTION" in os.environ:
        print(verdict)
        if not verdict:
            raise AssertionError(verdict.message)
    return verdict


def predict(prediction_id: str, choice: object) -> Verdict:
    """Records your prediction and replies to it. A prediction is never failed.

    Args:
        prediction_id: for instance "05.p1".
        choice: a letter, or None for not yet.

    Raises:
        ValueError: for an unknown prediction.
    """
    options = PREDICTIONS[_known(prediction_id, PREDICTIONS)].options
    if choice is None or choice is ...:
        return Verdict("not attempted", "Choose a letter, then run this cell again.", prediction_id)
    letter = choice.strip().lower().rstrip(")") if isinstance(choice, str) else None
    if letter not in options:
        text = f'Choose one of {", ".join(options)}, written as "{next(iter(options))}".'
        return Verdict("not attempted", text, prediction_id)
    _predicted[prediction_id] = letter
    chosen, reply = options[letter]
    return Verdict("recorded", f"You chose {letter}) {chosen}. {reply}", prediction_id)


def case(exercise_id: str, seed: int | str = 0) -> dict:
    """Returns the numbers of an exercise by hand; `check` then expects the answers to these.

    Args:
        exercise_id: for instance "05.head_map".
        seed: 0 gives the numbers printed in the notebook; a class may choose its own, or everybody their name.

    Raises:
        ValueError: for an exercise that has no numbers to draw, and for an empty name.
    """
    seed = seed_of(seed) if isinstance(seed, str) else seed
    drawn = {i: e for i, e in EXERCISES.items() if hasattr(e, "draw")}
    numbers = drawn[_known(exercise_id, drawn)].draw(seed)
    _seeds[exercise_id] = seed
    return numbers


def seed_of(name: str) -> int:
    """Returns the seed of a name, 1 to 999, the same on every machine; capitals and spaces around it do not count.

    Raises:
        ValueError: for an empty name.
    """
    if not name.strip():
        raise ValueError('name ("") is empty; write the name under which you hand in, for instance "ada"')
    return 1 + zlib.crc32(name.strip().lower().encode()) % 999


def progress() -> Page:
    """Returns how far you are since this notebook was started: the exercises of the lessons you have checked."""
    here = [lesson for lesson in LESSONS if any(e.id in _verdicts for e in lesson.EXERCISES)]
    here = here or [lesson for lesson in LESSONS if lesson.EXERCISES]
    lines = []
    for lesson in here:
        lines.append(lesson.TITLE)
        for exercise in lesson.EXERCISES:
            status = _verdicts.get(exercise.id, "not attempted")
            lines.append(f"  {SYMBOLS[status]} {exercise.id:<16} {status:<14} {exercise.level}")
        chosen = [f"{p.id} {_predicted[p.id]}" for p in lesson.PREDICTIONS if p.id in _predicted]
        lines += ["  predictions: " + ", ".join(chosen)] if chosen else []
    n_passed = list(_verdicts.values()).count("passed")
    n_exercises = sum(len(lesson.EXERCISES) for lesson in here)
    return Page("\n".join([*lines, f"{n_passed} of {n_exercises} exercises passed."]), is_table=True)


def _known(wanted: str, ids: Iterable[str]) -> str:
    """Returns the id, or raises a ValueError that names the nearest ones."""
    if wanted in ids:
        return wanted
    near = difflib.get_close_matches(str(wanted), ids, n=3, cutoff=0.5) or list(ids)
    raise ValueError(f"there is no {wanted!r} here; did you mean {' or '.join(near)}?")
