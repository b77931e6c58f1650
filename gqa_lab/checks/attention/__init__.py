"""Lesson 01: exercises and predictions."""

__all__ = ["EXERCISES", "PREDICTIONS", "TITLE"]
TITLE = "01 attention"
EXERCISES = ()
PREDICTIONS = ()
