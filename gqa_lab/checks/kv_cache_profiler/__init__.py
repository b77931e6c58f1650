"""Lesson 10: exercises and predictions about a profile, a fitted line, and a decision on `n_kv_heads`."""

from gqa_lab.checks.kv_cache_profiler.fit import FIT
from gqa_lab.checks.kv_cache_profiler.predictions import PREDICTIONS
from gqa_lab.checks.kv_cache_profiler.read import READ
from gqa_lab.checks.kv_cache_profiler.review import REVIEW
from gqa_lab.checks.kv_cache_profiler.triage import TRIAGE, triage_cards
from gqa_lab.checks.kv_cache_profiler.whatif import WHATIF

__all__ = ["EXERCISES", "PREDICTIONS", "TITLE", "triage_cards"]
TITLE = "10 kv_cache_profiler"
EXERCISES = (READ, FIT, WHATIF, TRIAGE, REVIEW)
