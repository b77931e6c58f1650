"""The course's figures: numbers in, matplotlib Axes out. The label of an Axes is its text alternative.

Every kind of attention has one colour, marker and line through the whole course, so that colour is never the
only carrier; everything else is thin black. No pyplot: a figure belongs to the cell that shows it.
"""

from gqa_lab.plots.cache import bytes_per_token, cache_growth, rows_projected
from gqa_lab.plots.columns import MANY_COLUMNS, head_columns
from gqa_lab.plots.conversion import damage_by_layer, recovery
from gqa_lab.plots.frame import STYLE, Picture, new_axes, png
from gqa_lab.plots.heads import MANY_HEADS, head_map
from gqa_lab.plots.kernel import split_cost, split_costs, split_grid, split_keys, waves
from gqa_lab.plots.models import models
from gqa_lab.plots.planner import step_time
from gqa_lab.plots.profile import step_by_context, step_split
from gqa_lab.plots.ratio import shazeer_ratio
from gqa_lab.plots.saturation import effective_keys, random_weights, saturation, saturation_by_head_dim
from gqa_lab.plots.weights import attention_weights

__all__ = [
    "MANY_COLUMNS",
    "MANY_HEADS",
    "Picture",
    "STYLE",
    "attention_weights",
    "bytes_per_token",
    "cache_growth",
    "damage_by_layer",
    "effective_keys",
    "head_columns",
    "head_map",
    "models",
    "new_axes",
    "png",
    "random_weights",
    "recovery",
    "rows_projected",
    "saturation",
    "saturation_by_head_dim",
    "shazeer_ratio",
    "split_cost",
    "split_costs",
    "split_grid",
    "split_keys",
    "step_by_context",
    "step_split",
    "step_time",
    "waves",
]
