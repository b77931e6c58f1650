"""A plan in lines of fixed width."""

import math
import textwrap
from collections.abc import Callable, Sequence

from gqa_lab.config import attention_kind
from gqa_lab.costs.shapes import name_of

WIDTH, LABEL, COLUMN = 92, 46, 11


def plan_table(plan: "gqa_lab.costs.Plan", beside: "Sequence[gqa_lab.costs.Plan]") -> str:
    """Returns the verdict on `plan`, a column for each plan of `beside`, and the notes."""
    lines = [_title(plan), _setting(plan), "", *_wrapped(_verdict(plan)), ""]
    lines += [_line("n_kv_heads", [_heads(p) for p in beside])]
    lines += [_line("", ["this plan" if p.n_kv_heads == plan.n_kv_heads else "" for p in beside])]
    for label, show in _rows(plan):
        cells = [show(p) for p in beside]
        if set(cells) != {"-"}:
            lines.append(_line(label, cells))
    floors = "Times are floors and rates ceilings, from data sheets: what no program beats, not what one reaches."
    notes = dict.fromkeys([floors, *(note for p in beside for note in p.notes)])
    return "\n".join([*lines, "", *(line for note in notes for line in _wrapped(note))])


def plan_notes(plan: "gqa_lab.costs.Plan") -> tuple[str, ...]:
    """Returns what to know before believing the numbers of `plan`."""
    shape, name, copies = plan.shape, name_of(plan.shape), plan.copies(plan.n_gpus)
    whole = "a latent cache" if shape.kind == "mla" else f"the cache of {_cache_name(plan)}"
    said = {
        f"{name} was made for {shape.max_seq_len:,} tokens; {plan.kv_len:,} is arithmetic.": (
            plan.kv_len > shape.max_seq_len
        ),
        f"How many weights {name} has is not known here, so neither is what fits.": plan.weight_bytes is None,
        f"Which weights a step of {name} reads is not known here (experts, or a latent cache): no times.": (
            plan.weight_bytes_read is None
        ),
        f"{plan.n_gpus} GPUs hold {whole} {copies:.3g} times: they share it by whole heads.": copies > 1,
        f"No 16-bit FLOP/s of {plan.gpu.name} are known here: times are those of reading alone.": (
            plan.gpu.dense_16bit_tflops is None
        ),
        "The scales of numbers stored in 8 bits or fewer are not counted.": (
            min(plan.weight_bytes_per_element, plan.kv_bytes_per_element) < 2
        ),
    }
    return tuple(note for note, holds in said.items() if holds)


def _title(plan: "gqa_lab.costs.Plan") -> str:
    return f"{name_of(plan.shape)} with {_cache_name(plan)} on {_count(plan.n_gpus, plan.gpu.name)}"


def _setting(plan: "gqa_lab.costs.Plan") -> str:
    sequences = "1 sequence" if plan.batch_size == 1 else f"{plan.batch_size:,} sequences"
    weights, cache = (f"{8 * size:.4g}-bit" for size in (plan.weight_bytes_per_element, plan.kv_bytes_per_element))
    return f"{sequences} of {plan.kv_len:,} tokens, {weights} weights, {cache} cache"


def _cache_name(plan: "gqa_lab.costs.Plan") -> str:
    if plan.shape.kind == "mla":
        return "a latent cache (MLA)"
    kind = attention_kind(plan.shape.n_heads, plan.n_kv_heads).upper()
    return f"{plan.n_kv_heads} KV head{'s' if plan.n_kv_heads > 1 else ''} ({kind})"


def _heads(plan: "gqa_lab.costs.Plan") -> str:
    kind = plan.shape.kind if plan.shape.kind == "mla" else attention_kind(plan.shape.n_heads, plan.n_kv_heads)
    return "MLA" if kind == "mla" else f"{plan.n_kv_heads} {kind.upper()}"


def _verdict(plan: "gqa_lab.costs.Plan") -> str:
    offer = f"{_count(plan.n_gpus, plan.gpu.name)} offers" if plan.n_gpus == 1 else f"{plan.n_gpus} GPUs offer"
    offer += f" {_gb(plan.offered_bytes)} GB ({plan.free_share:.0%} kept free)"
    if plan.fits is None:
        return f"The cache takes {_gb(plan.cache_bytes)} GB; {offer}. The weights are not known here."
    parts = f"weights {_gb(plan.weight_bytes)} GB + cache {_gb(plan.needed_bytes - plan.weight_bytes)} GB"
    if plan.fits:
        return f"Fits: {parts}; {offer}, so {_gb(plan.offered_bytes - plan.needed_bytes)} GB stay unused."
    if plan.gpus_needed is None:
        return f"Does not fit: {parts}; {offer}, and no number of them would hold it."
    return (
        f"Does not fit: {parts} = {_gb(plan.needed_bytes)} GB; {offer}. {plan.gpus_needed} of them hold it, by "
        f"division; what they tell each other is not counted. Every column below is for {plan.gpus_needed}."
    )


def _rows(plan: "gqa_lab.costs.Plan") -> list[tuple[str, Callable]]:
    tokens, price = f"{plan.kv_len:,}", plan.price_per_hour
    chats = [(f"{n:,}-token chats at once", n) for n in dict.fromkeys((plan.kv_len, 100_000))]
    rows = [
        ("cache per token, KiB", lambda p: _number(p.kv_bytes_per_token / 1024)),
        ("cache, GB", lambda p: _gb(p.cache_bytes)),
        ("weights, GB", lambda p: _gb(p.weight_bytes)),
        ("GPUs that hold it", lambda p: _number(p.gpus_needed)),
        *((label, lambda p, n=n: _number(p.chats_of(n))) for label, n in chats),
        ("tokens that fit in each sequence", lambda p: _number(p.largest_context).replace("never", "any")),
        ("next token, at least, ms", lambda p: _number(p.step_s and 1000 * p.step_s)),
        ("tokens per second of all, at most", lambda p: _number(p.tokens_per_s)),
        ("what decides", lambda p: p.decides or "-"),
        ("cache's part of the bytes read", lambda p: "-" if p.cache_share is None else f"{p.cache_share:.0%}"),
        ("cache > weights in memory beyond, tokens", lambda p: _number(p.capacity_crossover)),
        ("cache > weights in traffic beyond, tokens", lambda p: _number(p.traffic_crossover)),
        (f"first token after {tokens}, at least, s", lambda p: _number(p.first_token_s)),
    ]
    if price is not None:
        rows += [
            (f"a million tokens ({price:g} a GPU and hour)", lambda p: _number(p.cost_per_million_tokens)),
            (f"a {tokens}-token chat kept for an hour", lambda p: _number(p.cost_per_chat_hour)),
        ]
    return rows


def _line(label: str, cells: Sequence[str]) -> str:
    return (f"{label:<{LABEL}}" + "".join(f"{cell:>{COLUMN}}" for cell in cells)).rstrip()


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH)


def _count(n_gpus: int, name: str) -> str:
    return f"{'one' if n_gpus == 1 else n_gpus} {name}"


def _gb(n_bytes: int | float | None) -> str:
    return "-" if n_bytes is None else f"{n_bytes / 1e9:,.0f}" if n_bytes >= 1e11 else f"{n_bytes / 1e9:.3g}"


def _number(value: int | float | None) -> str:
    """Three digits below 1,000, whole numbers above."""
    if value is None:
        return "-"
    if value == math.inf:
        return "never"
    return f"{value:,.0f}" if isinstance(value, int) or value >= 1000 else f"{value:.3g}"
