"""Lesson A2: exercises and predictions about what came after grouped-query attention."""

from gqa_lab.checks.beyond_gqa.int8 import INT8
from gqa_lab.checks.beyond_gqa.latent import LATENT
from gqa_lab.checks.beyond_gqa.pages import PAGES
from gqa_lab.checks.beyond_gqa.predictions import PREDICTIONS
from gqa_lab.checks.beyond_gqa.window import WINDOW

__all__ = ["EXERCISES", "PREDICTIONS", "TITLE"]
TITLE = "A2 beyond_gqa"
EXERCISES = (LATENT, INT8, WINDOW, PAGES)
