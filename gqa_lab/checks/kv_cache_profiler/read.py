"""10.read: what a profile says about a cache: capacity, use, waste, and whether keys and values were copied."""

from itertools import count

import numpy as np

from gqa_lab.checks.answers import Hand, Mistake, agrees, tells_apart, unit_slip

_GROUPS = [(g * r, g) for g in (2, 3, 5, 7) for r in (2, 3, 5, 7) if r != g]
_HOW = ("once", "expanded", "slots", "gathered")  # how the step reads the cache


def _draw(seed: int) -> dict:
    if seed == 0:
        return _numbers(32, 15, 5, 64, 4096, [1200, 460, 80], "once")
    rng = np.random.default_rng((101, seed))
    for _ in count():
        h, g = _GROUPS[rng.integers(len(_GROUPS))]
        slots = int(2 ** rng.integers(11, 15))
        longest = slots / rng.uniform(3, 9)
        tokens = [10 * int(longest * share / 10) for share in (1, *rng.uniform(0.05, 0.6, rng.integers(2, 5)))]
        sizes = int(rng.integers(18, 60)), h, g, int(rng.choice((64, 80, 96, 128)))
        numbers = _numbers(*sizes, slots, tokens, _HOW[rng.integers(len(_HOW))])
        if min(tokens) and tells_apart(numbers, _right, _wrong) and not _looks_like_another_unit(numbers):
            return numbers


def _numbers(n_layers: int, h: int, g: int, d: int, slots: int, tokens: list[int], how: str) -> dict:
    one, r = 4 * n_layers * g * d, h // g
    used, new = one * sum(tokens), one * len(tokens)
    read, copied = {
        "once": (used, 0),
        "expanded": ((1 + r) * used, r * used),
        "slots": (one * slots * len(tokens), 0),
        "gathered": (2 * used, used),
    }[how]
    sizes = {"n_layers": n_layers, "n_heads": h, "n_kv_heads": g, "head_dim": d, "bytes_per_element": 2}
    lengths = {"slots_per_sequence": slots, "tokens": tokens}
    return sizes | lengths | {"kv_read_bytes": read, "kv_written_bytes": copied + new}


def _looks_like_another_unit(numbers: dict) -> bool:
    right = _right(numbers)
    return any(unit_slip(m.name, m.wrong, right[m.name]) for m in _wrong(numbers))


def _one_token(numbers: dict) -> int:
    return 2 * numbers["n_layers"] * numbers["n_kv_heads"] * numbers["head_dim"] * numbers["bytes_per_element"]


def _right(numbers: dict) -> dict:
    one, tokens = _one_token(numbers), numbers["tokens"]
    capacity, used = one * numbers["slots_per_sequence"] * len(tokens), one * sum(tokens)
    return {
        "capacity_bytes": capacity,
        "used_bytes": used,
        "occupancy_percent": 100 * used / capacity,
        "wasted_bytes": capacity - used,
        "copied": numbers["kv_written_bytes"] > one * len(tokens),
    }


def _wrong(numbers: dict) -> list[Mistake]:
    one, tokens, slots = _one_token(numbers), numbers["tokens"], numbers["slots_per_sequence"]
    right, n, longest = _right(numbers), len(tokens), max(numbers["tokens"])
    capacity, used, n_layers = right["capacity_bytes"], right["used_bytes"], numbers["n_layers"]
    r = numbers["n_heads"] // numbers["n_kv_heads"]
    amounts = (("capacity_bytes", capacity), ("used_bytes", used), ("wasted_bytes", capacity - used))
    wrong = [
        Mistake(key, factor, text)
        for key, value in amounts
        for factor, text in (
            (value // n_layers, "One layer. Every layer has a cache of its own."),
            (value // 2, "Half of it. K and V are both kept, and an element takes 2 bytes: one of these is missing."),
            (value // 4, "A quarter of it. Both K and V are kept, and an element takes 2 bytes."),
            (value * r, "You counted n_heads. A cache holds KV heads only."),
            (value // numbers["n_kv_heads"], "That is one KV head."),
            (2 * value, "Twice too much. Count K and V once each, and 2 bytes for an element."),
            (value / 1e6, "These are MB. Give bytes."),
            (value / 1e9, "These are GB. Give bytes."),
        )
    ]
    only_longest = "Only the longest sequence. The others count as well."
    padded = "You counted every sequence as if it were as long as the longest."
    return [
        *wrong,
        Mistake("capacity_bytes", one * slots, f"One sequence. The buffer holds {n} of them."),
        Mistake("capacity_bytes", one, "That is one token."),
        Mistake("capacity_bytes", slots * n, "These are slots. How many bytes does one take?"),
        Mistake("used_bytes", one, "That is one token."),
        Mistake("used_bytes", sum(tokens), "These are tokens. How many bytes does one leave?"),
        Mistake("used_bytes", used + one * n, "The new tokens are among `tokens` already: they count after the step."),
        Mistake("used_bytes", used - one * n, "The new tokens count too: `tokens` are those after the step."),
        Mistake("used_bytes", used // n, "That is a mean over the sequences. Add them up."),
        Mistake("used_bytes", one * longest, only_longest),
        Mistake("used_bytes", one * longest * n, padded),
        Mistake("used_bytes", capacity, "That is what was allocated. Used are the slots that hold a token."),
        Mistake("occupancy_percent", 100 * longest / slots, only_longest),
        Mistake("occupancy_percent", 100 * sum(tokens) / slots, f"The slots of one sequence. There are {n} of them."),
        Mistake("occupancy_percent", 100 * sum(tokens) / (n * longest),
                "You divided by the longest sequence. What is allocated are slots."),
        Mistake("occupancy_percent", used / capacity, "That is a share of 1. Give it in percent."),
        Mistake("occupancy_percent", 100 - 100 * used / capacity, "That is what stands empty."),
        Mistake("occupancy_percent", 100 * capacity / used, "Upside down: used, divided by what was allocated."),
        *(
            [Mistake("occupancy_percent", rounded, "Nearly: whole percents are too coarse.")]
            if not agrees(rounded := float(round(right["occupancy_percent"])), right["occupancy_percent"])
            else []
        ),
        Mistake("wasted_bytes", slots * n - sum(tokens), "These are slots. How many bytes does one take?"),
        Mistake("wasted_bytes", capacity - one * longest, only_longest),
        Mistake("wasted_bytes", capacity - one * longest * n, padded),
        Mistake("wasted_bytes", 100 - 100 * used / capacity, "That is a share, in percent. Give bytes."),
        Mistake("wasted_bytes", 1 - used / capacity, "That is a share. Give bytes."),
        Mistake("wasted_bytes", used, "That is what is used. Wasted is what was allocated and holds no token."),
        Mistake("wasted_bytes", capacity, "That is all that was allocated. Some of it is used."),
        Mistake("copied", not right["copied"], _about_copies(numbers)),
    ]  # fmt: skip


def _about_copies(numbers: dict) -> str:
    """Returns what to tell who took a copy for none, or the other way round."""
    one, tokens = _one_token(numbers), numbers["tokens"]
    new, used = one * len(tokens), one * sum(tokens)
    if numbers["kv_written_bytes"] > new:
        copies = round((numbers["kv_written_bytes"] - new) / used)
        times = f"{copies} times" if copies > 1 else "once"
        return (
            f"Beside the new tokens, the used bytes were written {times}. Who writes keys and values that the cache "
            "already has?"
        )
    if numbers["kv_read_bytes"] > used:
        return (
            "Only the new tokens were written, and a copy has to be written. More is read than used, because empty "
            "slots are read as well."
        )
    return (
        "As many bytes are read as are used, and only the new tokens were written. A copy would be written, and read "
        "again."
    )


READ = Hand(
    id="10.read",
    level="by hand ●●○ 8 min, core",
    draw=_draw,
    right=_right,
    mistakes=_wrong,
    look={
        "capacity_bytes": "K and V, layers, KV heads, head_dim, bytes of an element, slots, sequences.",
        "used_bytes": "As for the capacity, with the tokens in place of the slots.",
        "occupancy_percent": "The used bytes in percent of the capacity.",
        "wasted_bytes": "What was allocated and holds no token.",
        "copied": "True or False. What does a step have to write in any case? Is more written here?",
    },
    notice="Notice: four numbers, four questions. Predicted against allocated finds a wrong formula, allocated against "
    "used finds waste, used against read finds copies and empty slots.",
)
