"""Lesson 04: exercises and predictions about multi-query attention."""

from gqa_lab.checks.multi_query.broadcast import BROADCAST
from gqa_lab.checks.multi_query.mqa import MQA
from gqa_lab.checks.multi_query.predictions import PREDICTIONS
from gqa_lab.checks.multi_query.ratio import RATIO
from gqa_lab.checks.multi_query.what_shrinks import WHAT_SHRINKS

__all__ = ["EXERCISES", "PREDICTIONS", "TITLE"]
TITLE = "04 multi_query"
EXERCISES = (RATIO, MQA, BROADCAST, WHAT_SHRINKS)
