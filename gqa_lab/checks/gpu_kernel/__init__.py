"""Lesson 09: exercises and predictions about a kernel that reads each key once."""

from gqa_lab.checks.gpu_kernel.combine import COMBINE
from gqa_lab.checks.gpu_kernel.join import JOIN
from gqa_lab.checks.gpu_kernel.online import ONLINE
from gqa_lab.checks.gpu_kernel.predictions import PREDICTIONS
from gqa_lab.checks.gpu_kernel.splits import SPLITS
from gqa_lab.checks.gpu_kernel.tail import TAIL

__all__ = ["EXERCISES", "PREDICTIONS", "TITLE"]
TITLE = "09 gpu_kernel"
EXERCISES = (JOIN, ONLINE, SPLITS, COMBINE, TAIL)
