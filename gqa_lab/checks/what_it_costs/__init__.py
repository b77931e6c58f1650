"""Lesson 06: exercises and predictions about what a token costs."""

from gqa_lab.checks.what_it_costs.calculators import CALCULATORS
from gqa_lab.checks.what_it_costs.choose import CHOOSE
from gqa_lab.checks.what_it_costs.crossover import CROSSOVER
from gqa_lab.checks.what_it_costs.predictions import PREDICTIONS
from gqa_lab.checks.what_it_costs.step_time import STEP_TIME
from gqa_lab.checks.what_it_costs.unseen import UNSEEN

__all__ = ["EXERCISES", "PREDICTIONS", "TITLE"]
TITLE = "06 what_it_costs"
EXERCISES = (UNSEEN, CROSSOVER, STEP_TIME, CALCULATORS, CHOOSE)
