"""Lesson 04: exercises and predictions."""

__all__ = ["EXERCISES", "PREDICTIONS", "TITLE"]
TITLE = "04 multi_query"
EXERCISES = ()
PREDICTIONS = ()
