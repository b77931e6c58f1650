"""Checks that name the mistake: `check`, `predict`, `case`, `progress`, and the ten placement questions, twice."""

from gqa_lab.checks.engine import case, check, predict, progress
from gqa_lab.checks.machine import check_machine
from gqa_lab.checks.placement import placement, placement_questions
from gqa_lab.checks.placement_again import placement_again, questions_again
from gqa_lab.checks.verdict import Verdict

__all__ = [
    "Verdict",
    "case",
    "check",
    "check_machine",
    "placement",
    "placement_again",
    "placement_questions",
    "predict",
    "progress",
    "questions_again",
]
