"""Every exercise of every lesson: each listed mistake is rejected with its own diagnosis, and numbers drawn stay apart."""

import inspect
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from gqa_lab.checks import case, check
from gqa_lab.checks.answers import Hand
from gqa_lab.checks.engine import EXERCISES, LESSONS, PREDICTIONS
from gqa_lab.checks.functions import Build

pytestmark = pytest.mark.usefixtures("shapes_unchecked")  # the checks hand over wrong shapes on purpose, many times
HANDS = [e for e in EXERCISES.values() if isinstance(e, Hand)]
BUILDS = [e for e in EXERCISES.values() if isinstance(e, Build)]
LISTED = [(e, m) for e in EXERCISES.values() if not isinstance(e, Hand) for m in getattr(e, "mistakes", ())]
REJECTED, NAMED = Counter(), Counter()
N_SEEDS = 99


@pytest.mark.parametrize("exercise, mistake", LISTED, ids=lambda x: getattr(x, "id", None) or x.name)
def test_every_listed_mistake_is_rejected_with_its_own_diagnosis(exercise, mistake):
    verdict = check(exercise.id, mistake.wrong)
    REJECTED[exercise.id] += verdict.status == "failed"
    assert verdict.status == "failed" and verdict.message.startswith(mistake.diagnosis), verdict
    NAMED[exercise.id] += 1


@pytest.mark.parametrize("exercise", BUILDS, ids=lambda e: e.id)
def test_mistakes_that_agree_everywhere_share_a_diagnosis(exercise):
    results = {}
    for mistake in exercise.mistakes:
        key = []
        for one in exercise.cases(0):
            try:
                with np.errstate(all="ignore"):
                    packed = exercise.pack(mistake.wrong(*exercise.arguments(one)))
                    result = np.asarray(packed, dtype=np.float64)  # bool has no round
                key.append((result.shape, result.round(7).tobytes()))
            except Exception:
                key.append(b"raises")
        assert results.setdefault(tuple(key), mistake.diagnosis) == mistake.diagnosis


@pytest.mark.parametrize("exercise", BUILDS, ids=lambda e: e.id)
def test_an_exercise_knows_at_least_four_mistakes(exercise):
    assert len({mistake.diagnosis for mistake in exercise.mistakes}) >= 4


@pytest.mark.parametrize("exercise", BUILDS, ids=lambda e: e.id)
def test_the_second_round_of_cases_has_other_values(exercise):
    for first, second in zip(exercise.cases(0), exercise.cases(1), strict=True):
        assert len(first.args) == len(second.args) == len(exercise.names)
        arrays = [(a, b) for a, b in zip(first.args, second.args, strict=True) if isinstance(a, np.ndarray)]
        assert all(a.dtype in (np.float64, bool) for a, _ in arrays)
        drawn = [(a, b) for a, b in arrays if a.dtype != bool]
        assert not drawn or any(a.shape != b.shape or not np.array_equal(a, b) for a, b in drawn)


@pytest.mark.parametrize("exercise", HANDS, ids=lambda e: e.id)
def test_other_seeds_keep_right_and_wrong_answers_apart(exercise):
    drawn = [exercise.draw(seed) for seed in range(N_SEEDS + 1)]
    assert len({repr(numbers) for numbers in drawn}) > 0.8 * N_SEEDS
    judge = replace(exercise, draw=drawn.__getitem__).judge  # each draw is made once, not for every mistake
    for seed, numbers in enumerate(drawn):
        assert numbers == exercise.draw(seed)
        right = exercise.right(numbers)
        assert judge(right, seed)
        mistakes = exercise.mistakes(numbers)
        assert len({m.diagnosis for m in mistakes}) >= 2
        for mistake in mistakes:
            verdict = judge(right | {mistake.name: mistake.wrong}, seed)
            REJECTED[exercise.id] += not verdict
            NAMED[exercise.id] += 1
            assert mistake.diagnosis in verdict.message, (seed, verdict)
            if seed:  # the numbers of a real model may give one value for two reasons; drawn ones must not
                assert verdict.message.splitlines()[0] == f"`{mistake.name}`: {mistake.diagnosis}", (seed, verdict)


@pytest.mark.parametrize("exercise", HANDS, ids=lambda e: e.id)
def test_a_class_with_its_own_numbers_is_checked_against_these(exercise):
    right = exercise.right(case(exercise.id, seed=3))
    assert check(exercise.id, right)
    first = case(exercise.id)
    assert bool(check(exercise.id, right)) == (right == exercise.right(first))


@pytest.mark.parametrize("exercise", EXERCISES.values(), ids=lambda e: e.id)
def test_an_exercise_has_its_lessons_number_a_kind_minutes_and_a_place(exercise):
    assert exercise.level.split()[0] in ("by", "build", "expose", "decide")
    assert " min, " in exercise.level and exercise.level.split(", ")[-1] in ("core", "further")
    assert exercise.notice.startswith("Notice: ") or " Notice: " in exercise.notice


@pytest.mark.parametrize("exercise", EXERCISES.values(), ids=lambda e: e.id)
@pytest.mark.parametrize("nothing", [None, ...])
def test_no_answer_is_not_attempted(exercise, nothing):
    assert check(exercise.id, nothing).status == "not attempted"


@pytest.mark.parametrize("exercise", EXERCISES.values(), ids=lambda e: e.id)
@pytest.mark.parametrize(
    "odd", [0, "text", [], [1, 2], {"a": 1}, object(), int, lambda: 1, lambda *a, **k: 1 / 0, print]
)
def test_whatever_is_handed_over_gets_a_sentence(exercise, odd):
    verdict = check(exercise.id, odd)
    assert verdict.status in ("failed", "not attempted") and 10 < len(verdict.message)
    assert "Traceback" not in verdict.message and "could not read" not in verdict.message


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.TITLE)
def test_every_letter_of_a_prediction_has_its_own_reply(lesson):
    number = lesson.TITLE[:2]
    assert [e.id[:2] for e in lesson.EXERCISES] == [number] * len(lesson.EXERCISES)
    for n, prediction in enumerate(lesson.PREDICTIONS, start=1):
        assert prediction.id == f"{number}.p{n}" and prediction.id in PREDICTIONS
        assert list(prediction.options) == list("abcd")[: len(prediction.options)] and len(prediction.options) > 1
        assert len({reply for _, reply in prediction.options.values()}) == len(prediction.options)
        wrong = [reply for _, reply in prediction.options.values() if "Tempting" in reply]
        assert len(wrong) == len(prediction.options) - 1, prediction.id


def test_the_exercises_of_a_lesson_are_in_modules_of_their_own():
    for lesson in LESSONS:
        sources = inspect.getsource(lesson)
        assert len(sources.splitlines()) < 40


def test_kill_score(capsys):
    lines = [f"  {i:<16} {REJECTED[i]} of {NAMED[i]} rejected and named" for i in sorted(NAMED)]
    with capsys.disabled():
        print("\nlisted mistakes:", *lines, sep="\n")
    assert REJECTED == NAMED
