"""Lesson 02: exercises and predictions."""

__all__ = ["EXERCISES", "PREDICTIONS", "TITLE"]
TITLE = "02 multi_head"
EXERCISES = ()
PREDICTIONS = ()
