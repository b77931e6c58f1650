"""Lesson A1: exercises and predictions about a model that several GPUs share."""

from gqa_lab.checks.beyond_one_gpu.groups import GROUPS
from gqa_lab.checks.beyond_one_gpu.kv_heads import KV_HEADS
from gqa_lab.checks.beyond_one_gpu.per_gpu import PER_GPU
from gqa_lab.checks.beyond_one_gpu.predictions import PREDICTIONS
from gqa_lab.checks.beyond_one_gpu.wrapped import WRAPPED

__all__ = ["EXERCISES", "PREDICTIONS", "TITLE"]
TITLE = "A1 beyond_one_gpu"
EXERCISES = (PER_GPU, KV_HEADS, GROUPS, WRAPPED)
