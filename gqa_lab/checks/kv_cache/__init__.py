"""Lesson 03: exercises and predictions."""

__all__ = ["EXERCISES", "PREDICTIONS", "TITLE"]
TITLE = "03 kv_cache"
EXERCISES = ()
PREDICTIONS = ()
