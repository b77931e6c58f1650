"""Lesson 02: exercises and predictions about multi-head attention."""

from gqa_lab.checks.multi_head.columns import COLUMNS
from gqa_lab.checks.multi_head.merge import MERGE
from gqa_lab.checks.multi_head.mha import MHA
from gqa_lab.checks.multi_head.params import PARAMS
from gqa_lab.checks.multi_head.predictions import PREDICTIONS
from gqa_lab.checks.multi_head.reshape import RESHAPE
from gqa_lab.checks.multi_head.split import SPLIT

__all__ = ["EXERCISES", "PREDICTIONS", "TITLE"]
TITLE = "02 multi_head"
EXERCISES = (COLUMNS, SPLIT, MERGE, MHA, RESHAPE, PARAMS)
