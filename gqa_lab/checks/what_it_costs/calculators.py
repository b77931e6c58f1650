"""06.calculators: four calculators of cache bytes, each with one real bug; find the models that show it and hide it."""

from collections.abc import Callable
from dataclasses import dataclass

from gqa_lab.checks.answers import Mistake
from gqa_lab.checks.expose import ALREADY_SHOWS, BOTH_AGREE, Expose
from gqa_lab.costs import SHAPES, ModelShape


def kept(shape: ModelShape, kv_len: int) -> int:
    """Returns tokens times layers that stay in the cache: all of them without a window."""
    window = shape.sliding_window or kv_len
    n_full = shape.n_full_attention_layers
    return n_full * kv_len + (shape.n_layers - n_full) * min(kv_len, window)


def right(shape: ModelShape, kv_len: int) -> int:
    """Returns the bytes of the cache in 16 bits."""
    return kept(shape, kv_len) * 2 * shape.n_kv_heads * shape.head_dim * 2


def calculator_a(shape, kv_len):
    return kept(shape, kv_len) * 2 * shape.n_kv_heads * (shape.d_model // shape.n_heads) * 2


def calculator_b(shape, kv_len):
    return kept(shape, kv_len) * 2 * shape.n_heads * shape.head_dim * 2


def calculator_c(shape, kv_len):
    return kept(shape, kv_len) * 2 * shape.group_size * shape.head_dim * 2


def calculator_d(shape, kv_len):
    return shape.n_layers * kv_len * 2 * shape.n_kv_heads * shape.head_dim * 2


@dataclass(frozen=True)
class Calculator:
    """A wrong calculator. `silent` says why a model exposes nothing, from its shape and the tokens."""

    wrong: Callable
    silent: Callable[[ModelShape, int], str]


def _a_silent(shape: ModelShape, kv_len: int) -> str:
    return f"its head_dim, {shape.head_dim}, is d_model / n_heads"


def _b_silent(shape: ModelShape, kv_len: int) -> str:
    return f"it has {shape.n_heads} query heads and {shape.n_kv_heads} KV heads"


def _c_silent(shape: ModelShape, kv_len: int) -> str:
    return f"{shape.n_heads} / {shape.n_kv_heads} = {shape.n_kv_heads}"


def _d_silent(shape: ModelShape, kv_len: int) -> str:
    window = shape.sliding_window
    return f"{kv_len:,} tokens do not leave its window of {window:,}" if window else "it has no window"


CALCULATOR = {
    "a": Calculator(calculator_a, _a_silent),
    "b": Calculator(calculator_b, _b_silent),
    "c": Calculator(calculator_c, _c_silent),
    "d": Calculator(calculator_d, _d_silent),
}
"""Their bugs: head_dim derived (vllm#2622), n_heads counted (vllm-fit#14), group_size counted, window ignored."""


def _read(value: object, where: str) -> tuple[str, int] | str:
    """Returns a preset and tokens, or a sentence on why not."""
    if type(value) is not list or len(value) != 2 or type(value[0]) is not str or type(value[1]) is not int:
        return f'{where}: give a pair, a name of SHAPES and tokens, such as ("llama-2-7b", 4096).'
    name, kv_len = value[0].strip().lower(), value[1]
    if name not in SHAPES:
        return f'{where}: SHAPES has no {value[0]!r}. `list(SHAPES)` shows the names; they look like "llama-2-7b".'
    shape = SHAPES[name]
    if shape.kv_lora_rank:
        return f"{where}: {name} keeps a latent vector, no K and V per head. Choose another model."
    if shape.n_full_attention_layers is None:
        return f"{where}: which layers of {name} have a window is not known here. Choose another model."
    if not 1 <= kv_len <= shape.max_seq_len:
        return f"{where}: {name} reads 1 to {shape.max_seq_len:,} tokens, not {kv_len:,}."
    return name, kv_len


def _exposing(key: str, value: object) -> str | None:
    where = f"`{key}` exposes"
    read = _read(value, where)
    if isinstance(read, str):
        return read
    name, kv_len = read
    calculator, shape = CALCULATOR[key], SHAPES[name]
    if calculator.wrong(shape, kv_len) != right(shape, kv_len):
        return None
    return f"{where}: {name} exposes nothing here: {calculator.silent(shape, kv_len)}. {BOTH_AGREE}"


def _hiding(key: str, value: object) -> str | None:
    where = f"`{key}` hides"
    read = _read(value, where)
    if isinstance(read, str):
        return read
    name, kv_len = read
    calculator, shape = CALCULATOR[key], SHAPES[name]
    wrong, true = calculator.wrong(shape, kv_len), right(shape, kv_len)
    if wrong != true:
        return f"{where}: {ALREADY_SHOWS.format(f'{wrong / 2**30:.3g} GiB instead of {true / 2**30:.3g}')}"
    if key == "d" and not shape.sliding_window:
        return (
            f"{where}: True, but too small to fool anybody: {name} has no window. Try again with a model that has one."
        )
    if key == "d" and kv_len == 1:
        return f"{where}: True, but too small to fool anybody: one token says nothing about a window. Take some more."
    return None


def _examine(answer: dict) -> str | None:
    problems = []
    for key in CALCULATOR:
        entry = answer[key]
        if type(entry) is not dict or set(entry) != {"exposes", "hides"}:
            return f'"{key}" needs a dict with the keys "exposes" and "hides".'
        problems += [_exposing(key, entry["exposes"]), _hiding(key, entry["hides"])]
    return "\n".join(filter(None, problems)) or None


GOOD = {
    "a": {"exposes": ("qwen3-0.6b", 4096), "hides": ("llama-3.1-8b", 4096)},
    "b": {"exposes": ("mistral-7b-v0.1", 4096), "hides": ("llama-2-7b", 4096)},
    "c": {"exposes": ("mistral-7b-v0.1", 4096), "hides": ("llama-2-70b", 4096)},
    "d": {"exposes": ("mistral-7b-v0.1", 32768), "hides": ("mistral-7b-v0.1", 4096)},
}


def _but(key: str, what: str, name: str, kv_len: int = 4096) -> dict:
    return GOOD | {key: GOOD[key] | {what: (name, kv_len)}}


CALCULATORS = Expose(
    id="06.calculators",
    level="expose ●●○ 12 min, further",
    keys=tuple(CALCULATOR),
    examine=_examine,
    notice="All four calculators were run on your models. Notice: each bug is silent on some famous model, so a "
    "calculator needs one test where head_dim is stated, one with 1 < G < H and G ≠ R, and one longer than a window.",
    mistakes=(
        Mistake(
            "LLaMA 2 70B's sizes",
            _but("c", "exposes", "llama-2-70b"),
            "`c` exposes: llama-2-70b exposes nothing here: 64 / 8 = 8.",
        ),
        Mistake(
            "head_dim as derived",
            _but("a", "exposes", "llama-3.1-8b"),
            "`a` exposes: llama-3.1-8b exposes nothing here: its head_dim, 128, is d_model / n_heads.",
        ),
        Mistake(
            "no group",
            _but("b", "exposes", "llama-2-7b"),
            "`b` exposes: llama-2-7b exposes nothing here: it has 32 query heads and 32 KV heads.",
        ),
        Mistake(
            "inside the window",
            _but("d", "exposes", "mistral-7b-v0.1"),
            "`d` exposes: mistral-7b-v0.1 exposes nothing here: 4,096 tokens do not leave its window of 4,096.",
        ),
        Mistake(
            "no window to ignore",
            _but("d", "exposes", "llama-3.1-8b"),
            "`d` exposes: llama-3.1-8b exposes nothing here: it has no window.",
        ),
        Mistake("a group shows", _but("b", "hides", "mistral-7b-v0.1"), "`b` hides: The mistake already shows here"),
        Mistake(
            "nothing to hide behind",
            _but("d", "hides", "llama-2-7b"),
            "`d` hides: True, but too small to fool anybody: llama-2-7b has no window.",
        ),
        Mistake(
            "one token",
            _but("d", "hides", "mistral-7b-v0.1", 1),
            "`d` hides: True, but too small to fool anybody: one token says nothing about a window.",
        ),
    ),
)
