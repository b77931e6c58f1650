"""Lesson 08: exercises and predictions about the decode loop and what holds it back."""

from gqa_lab.checks.decode_loop.bandwidth import BANDWIDTH
from gqa_lab.checks.decode_loop.clock import CLOCK
from gqa_lab.checks.decode_loop.diagnose import DIAGNOSE
from gqa_lab.checks.decode_loop.loop import LOOP
from gqa_lab.checks.decode_loop.meter import METER
from gqa_lab.checks.decode_loop.predictions import PREDICTIONS

__all__ = ["EXERCISES", "PREDICTIONS", "TITLE"]
TITLE = "08 decode_loop"
EXERCISES = (BANDWIDTH, LOOP, METER, CLOCK, DIAGNOSE)
