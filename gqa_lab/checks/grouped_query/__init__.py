"""Lesson 05: exercises and predictions about grouped-query attention."""

from gqa_lab.checks.grouped_query.expand import EXPAND
from gqa_lab.checks.grouped_query.good_test import GOOD_TEST
from gqa_lab.checks.grouped_query.grouped import GROUPED
from gqa_lab.checks.grouped_query.head_map import HEAD_MAP
from gqa_lab.checks.grouped_query.predictions import PREDICTIONS
from gqa_lab.checks.grouped_query.shapes import SHAPES

__all__ = ["EXERCISES", "PREDICTIONS", "TITLE"]
TITLE = "05 grouped_query"
EXERCISES = (HEAD_MAP, EXPAND, GROUPED, GOOD_TEST, SHAPES)
