"""Lesson 07: exercises and predictions about what sharing costs in quality."""

from gqa_lab.checks.quality.expand import EXPAND
from gqa_lab.checks.quality.pool import POOL
from gqa_lab.checks.quality.predictions import PREDICTIONS
from gqa_lab.checks.quality.spread import SPREAD
from gqa_lab.checks.quality.strided import STRIDED
from gqa_lab.checks.quality.verdict import VERDICT
from gqa_lab.checks.quality.which_layers import WHICH_LAYERS

__all__ = ["EXERCISES", "PREDICTIONS", "TITLE"]
TITLE = "07 quality"
EXERCISES = (SPREAD, EXPAND, POOL, STRIDED, VERDICT, WHICH_LAYERS)
