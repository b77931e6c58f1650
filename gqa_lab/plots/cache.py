"""What a KV cache keeps, drawn."""

from collections.abc import Mapping
from dataclasses import replace

from matplotlib.axes import Axes

from gqa_lab.config import attention_kind, divisors
from gqa_lab.costs import ModelShape, Shape, kv_cache_bytes, weight_bytes_held
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


def cache_growth(shape: ModelShape, *, turns: int, tokens_per_turn: int, bytes_per_element: int = 2) -> Axes:
    """Draws the cache of one chat against its tokens as a line, the model's weights as a thin horizontal line.

    Args:
        shape: a published model.
        turns: questions with their answers, at least 1.
        tokens_per_turn: tokens of a question and its answer together, at least 1.
        bytes_per_element: of cache and weights; 2 for float16 and bfloat16.

    Raises:
        ValueError: for turns or tokens below 1.
    """
    gib, weights = _growth_gib(shape, turns, tokens_per_turn, bytes_per_element)
    axes = new_axes(height=3.4)
    style = STYLE.get(shape.kind, {"color": "black", "linestyle": "-"})
    tokens = [turn * tokens_per_turn for turn in range(turns + 1)]
    axes.plot(tokens, gib, color=style["color"], linestyle=style["linestyle"], linewidth=1.8)
    axes.axhline(weights, color="black", linewidth=0.8)
    top = 1.15 * max(weights, gib[-1])
    axes.set_xlim(0, tokens[-1])
    axes.set_ylim(0, top)
    apart = 9 if abs(gib[-1] - weights) < 0.08 * top else 0  # points, so that the two names do not overlap
    lift = apart if gib[-1] >= weights else -apart
    for name, y, up, weight in (("cache", gib[-1], lift, "bold"), ("weights", weights, -lift, "normal")):
        axes.annotate(
            f"{name} {y:,.3g}",
            (tokens[-1], y),
            (6, up),
            textcoords="offset points",
            va="center",
            weight=weight,
            annotation_clip=False,
        )
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
    axes.set_xlabel("tokens in the chat")
    axes.set_ylabel("GiB")
    axes.set_label(
        cache_growth_text(shape, turns=turns, tokens_per_turn=tokens_per_turn, bytes_per_element=bytes_per_element)
    )
    axes.set_title(axes.get_label().split(". ")[0], loc="left", fontsize=11)
    return axes


def cache_growth_text(shape: ModelShape, *, turns: int, tokens_per_turn: int, bytes_per_element: int = 2) -> str:
    """Returns the figure of `cache_growth` in words.

    Example:
        >>> from gqa_lab.costs import SHAPES
        >>> text = cache_growth_text(SHAPES["llama-2-7b"], turns=50, tokens_per_turn=2000)
        >>> text.split(". ")[0]
        'Llama-2-7B keeps 48.8 GiB after 50 turns, 3.89 times its weights'
        >>> text.split(". ")[1]
        'A line from 0 to 48.8 GiB over 100,000 tokens; the weights are a level line at 12.6 GiB, reached in turn 13'
    """
    gib, weights = _growth_gib(shape, turns, tokens_per_turn, bytes_per_element)
    tokens = turns * tokens_per_turn
    crossing = next((turn for turn, held in enumerate(gib) if held >= weights), None)
    reached = f"reached in turn {crossing}" if crossing else "not reached"
    beyond = f" This model was made for {shape.max_seq_len:,} tokens." if tokens > shape.max_seq_len else ""
    return (
        f"{shape.name} keeps {gib[-1]:,.3g} GiB after {turns} {'turn' if turns == 1 else 'turns'}, "
        f"{gib[-1] / weights:,.3g} times its weights. A line from 0 to {gib[-1]:,.3g} GiB over {tokens:,} tokens; "
        f"the weights are a level line at {weights:,.3g} GiB, {reached}.{beyond}"
    )


def _growth_gib(shape: ModelShape, turns: int, tokens_per_turn: int, bytes_per_element: int) -> tuple[list, float]:
    if turns < 1 or tokens_per_turn < 1:
        raise ValueError(f"turns ({turns}) and tokens_per_turn ({tokens_per_turn}) must be at least 1")
    held = [
        kv_cache_bytes(shape, batch_size=1, kv_len=turn * tokens_per_turn, bytes_per_element=bytes_per_element) / 2**30
        for turn in range(turns + 1)
    ]
    return held, weight_bytes_held(shape, bytes_per_element=bytes_per_element) / 2**30


def rows_projected(counted: Mapping[int, tuple[int, int]], *, prompt_len: int) -> Axes:
    """Draws how many rows go through a projection without and with a cache: formulas as lines, counts as dots.

    Args:
        counted: for each number of new tokens the rows counted without and with a cache.
        prompt_len: tokens of the prompt.
    """
    axes = new_axes(height=3.6)
    most = max(counted)
    n_new = range(1, most + 1)
    without = [sum(prompt_len + i for i in range(n)) for n in n_new]
    cached = [prompt_len + n - 1 for n in n_new]
    ways = (("without a cache", without, "-", "black"), ("with a cache", cached, "--", "white"))
    for way, (name, line, linestyle, inside) in enumerate(ways):
        axes.plot(n_new, line, color="black", linestyle=linestyle, linewidth=1)
        dots = [counted[n][way] for n in counted]
        axes.plot(list(counted), dots, "o", color="black", markerfacecolor=inside, markersize=5)
        axes.annotate(
            f"{name}: {line[-1]:,}", (most, line[-1]), (-10, 5 + 4 * way), textcoords="offset points", ha="right"
        )
    axes.set_xlim(0, most * 1.02)
    axes.set_ylim(0, without[-1] * 1.1)
    axes.set_xlabel(f"new tokens after a prompt of {prompt_len}")
    axes.set_ylabel("rows through k_proj")
    axes.set_label(rows_projected_text(counted, prompt_len=prompt_len))
    axes.set_title(axes.get_label().split(". ")[0], loc="left", fontsize=11)
    return axes


def rows_projected_text(counted: Mapping[int, tuple[int, int]], *, prompt_len: int) -> str:
    """Returns the figure of `rows_projected` in words.

    Example:
        >>> rows_projected_text({10: (245, 29), 100: (6950, 119)}, prompt_len=20)
        'A cache projects 58 times fewer rows for 100 new tokens. Counted, after a prompt of 20: 10 new tokens, \
245 rows without a cache and 29 with one; 100 new tokens, 6,950 rows without a cache and 119 with one.'
    """
    without, cached = counted[max(counted)]
    listed = "; ".join(
        f"{n} new {'token' if n == 1 else 'tokens'}, {rows[0]:,} rows without a cache and {rows[1]:,} with one"
        for n, rows in counted.items()
    )
    return (
        f"A cache projects {without / cached:.0f} times fewer rows for {max(counted)} new tokens. Counted, after a "
        f"prompt of {prompt_len}: {listed}."
    )
