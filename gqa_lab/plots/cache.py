"""What a KV cache keeps, drawn."""

from dataclasses import replace

from matplotlib.axes import Axes

from gqa_lab.config import attention_kind, divisors
from gqa_lab.costs import Shape, kv_cache_bytes
from gqa_lab.plots.frame import STYLE, new_axes


def bytes_per_token(shape: Shape, *, bytes_per_element: int = 2) -> Axes:
    """Draws what one token leaves in the cache for every `n_kv_heads` that `shape` could have, its own one filled.

    Args:
        shape: a model; its own `n_kv_heads` is the one marked.
        bytes_per_element: 2 for float16 and bfloat16.

    Raises:
        ValueError: for a model whose cache does not depend on `n_kv_heads` (MLA).
    """
    axes = new_axes(height=3.2)
    options = divisors(shape.n_heads)
    kib = [_token_bytes(shape, g, bytes_per_element) / 1024 for g in options]
    for x, (g, y) in enumerate(zip(options, kib, strict=True)):
        color, own = STYLE[attention_kind(shape.n_heads, g)]["color"], g == shape.n_kv_heads
        axes.bar(x, y, width=0.6, facecolor=color if own else "white", edgecolor=color, linewidth=1.5)
        axes.annotate(
            f"{y:,.4g}",
            (x, y),
            (0, 4),
            textcoords="offset points",
            ha="center",
            weight="bold" if own else "normal",
        )
    axes.set_xticks(range(len(options)), [f"{g}\n{_end_name(shape.n_heads, g)}" for g in options])
    axes.set_ylim(0, max(kib) * 1.2)
    axes.set_xlabel("n_kv_heads")
    axes.set_ylabel("KiB per token, all layers")
    axes.set_label(bytes_per_token_text(shape, bytes_per_element=bytes_per_element))
    axes.set_title(axes.get_label().split(". ")[0], loc="left", fontsize=11)
    return axes


def bytes_per_token_text(shape: Shape, *, bytes_per_element: int = 2) -> str:
    """Returns the figure of `bytes_per_token` in words.

    Example:
        >>> from gqa_lab.costs import SHAPES
        >>> bytes_per_token_text(SHAPES["llama-2-70b"])
        'With 8 KV heads, a token keeps 320 KiB. With 64 it would keep 2,560 KiB (MHA), with 1 40 KiB (MQA).'
    """
    own, most, least = (
        f"{_token_bytes(shape, g, bytes_per_element) / 1024:,.4g}" for g in (shape.n_kv_heads, shape.n_heads, 1)
    )
    return (
        f"With {shape.n_kv_heads} KV heads, a token keeps {own} KiB. With {shape.n_heads} it would keep {most} KiB "
        f"(MHA), with 1 {least} KiB (MQA)."
    )


def _token_bytes(shape: Shape, n_kv_heads: int, bytes_per_element: int) -> int:
    if shape.kind == "mla":
        raise ValueError(f"{shape.name} keeps one latent vector per token (MLA), whatever n_kv_heads would be")
    changed = replace(shape, n_kv_heads=n_kv_heads)
    return kv_cache_bytes(changed, batch_size=1, kv_len=1, bytes_per_element=bytes_per_element)


def _end_name(n_heads: int, n_kv_heads: int) -> str:
    kind = attention_kind(n_heads, n_kv_heads)
    return "" if kind == "gqa" else kind.upper()
