"""The course's figures: numbers in, matplotlib Axes out. The label of an Axes is its text alternative.

Every kind of attention has one colour, marker and line through the whole course, so that colour is never the
only carrier; everything else is thin black. No pyplot: a figure belongs to the cell that shows it.
"""

from gqa_lab.plots.cache import bytes_per_token, bytes_per_token_text
from gqa_lab.plots.frame import STYLE, Picture, new_axes, png
from gqa_lab.plots.heads import MANY_HEADS, head_map, head_map_text
from gqa_lab.plots.ratio import shazeer_ratio, shazeer_ratio_text
from gqa_lab.plots.weights import attention_weights, attention_weights_text

__all__ = [
    "MANY_HEADS",
    "STYLE",
    "Picture",
    "attention_weights",
    "attention_weights_text",
    "bytes_per_token",
    "bytes_per_token_text",
    "head_map",
    "head_map_text",
    "new_axes",
    "png",
    "shazeer_ratio",
    "shazeer_ratio_text",
]
