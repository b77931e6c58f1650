"""Lesson 03: exercises and predictions about the KV cache."""

from gqa_lab.checks.kv_cache.cache import CACHE
from gqa_lab.checks.kv_cache.cache_bytes import BYTES
from gqa_lab.checks.kv_cache.is_causal import IS_CAUSAL
from gqa_lab.checks.kv_cache.mask import MASK
from gqa_lab.checks.kv_cache.predictions import PREDICTIONS
from gqa_lab.checks.kv_cache.rows import ROWS

__all__ = ["EXERCISES", "PREDICTIONS", "TITLE"]
TITLE = "03 kv_cache"
EXERCISES = (BYTES, MASK, CACHE, IS_CAUSAL, ROWS)
