"""Lesson 01: exercises and predictions about one attention head, in NumPy."""

from gqa_lab.checks.attention.axis import AXIS
from gqa_lab.checks.attention.by_hand import BY_HAND
from gqa_lab.checks.attention.head import ATTENTION
from gqa_lab.checks.attention.keys_used import KEYS_USED
from gqa_lab.checks.attention.predictions import PREDICTIONS
from gqa_lab.checks.attention.saturation import SATURATION
from gqa_lab.checks.attention.softmax import SOFTMAX

__all__ = ["EXERCISES", "PREDICTIONS", "TITLE"]
TITLE = "01 attention"
EXERCISES = (BY_HAND, SOFTMAX, ATTENTION, AXIS, SATURATION, KEYS_USED)
