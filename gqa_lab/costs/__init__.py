"""What we *predict*: integers in, bytes, FLOPs and seconds out. No torch, no measurement; those are the profiler's.

Units are in the names: `_bytes` are bytes, `_s` seconds, 1 GB is 10**9 bytes and 1 GiB is 2**30. Every function takes
a `ModelConfig` or one of `SHAPES`; seconds also take one of `GPUS`. They are floors, from data sheets.

    python -m gqa_lab.costs --model llama-2-70b --gpu h100-sxm --kv-len 100000 --batch-size 4
"""

from gqa_lab.costs.catalogue import Catalogue
from gqa_lab.costs.from_config import shape_from_config
from gqa_lab.costs.gpus import GPUS, Gpu
from gqa_lab.costs.limits import capacity_crossover, largest_batch, largest_context, traffic_crossover
from gqa_lab.costs.planner import Plan, plan
from gqa_lab.costs.shapes import SHAPES, ModelShape, Shape, with_kv_heads
from gqa_lab.costs.sizes import kv_bytes_per_token, kv_cache_bytes, n_parameters, weight_bytes_held, weight_bytes_read
from gqa_lab.costs.steps import (
    attention_intensity,
    decode_flops,
    decode_step_s,
    prefill_flops,
    prefill_s,
    roofline_s,
    tokens_per_s_ceiling,
)

__all__ = [
    "Catalogue",
    "GPUS",
    "SHAPES",
    "Gpu",
    "ModelShape",
    "Plan",
    "Shape",
    "attention_intensity",
    "capacity_crossover",
    "decode_flops",
    "decode_step_s",
    "kv_bytes_per_token",
    "kv_cache_bytes",
    "largest_batch",
    "largest_context",
    "n_parameters",
    "plan",
    "prefill_flops",
    "prefill_s",
    "roofline_s",
    "shape_from_config",
    "tokens_per_s_ceiling",
    "traffic_crossover",
    "weight_bytes_held",
    "weight_bytes_read",
    "with_kv_heads",
]
