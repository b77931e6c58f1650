"""08.meter: five decode loops, told apart by what the traffic meter says about each."""

from dataclasses import dataclass

import numpy as np

from gqa_lab.checks.answers import Hand, Mistake, listed
from gqa_lab.checks.verdict import Verdict

LOOPS = ("grouped", "expanded", "concatenated", "masked", "contiguous")
"""What a loop does: reads K and V where they lie · copies them for every query head · joins old and new with `cat` ·
reads all slots of the buffer, under a mask · makes the used part of the buffer contiguous."""
_SIZES = (  # H, G, D, S, slots
    (8, 2, 64, 1000, 4096),
    (12, 4, 64, 500, 2048),
    (16, 2, 32, 3000, 8192),
    (24, 8, 128, 1500, 4096),
    (32, 4, 64, 700, 1024),
    (20, 4, 96, 2500, 6000),
    (18, 6, 48, 900, 4000),
)


def _draw(seed: int) -> dict:
    rng = np.random.default_rng((83, seed))
    h, g, d, s, n_slots = _SIZES[0] if seed == 0 else _SIZES[int(rng.integers(len(_SIZES)))]
    loops = list(LOOPS) if seed == 0 else [str(x) for x in rng.permutation(LOOPS)]
    numbers = {"n_heads": h, "n_kv_heads": g, "head_dim": d, "kv_len": s, "n_slots": n_slots, "bytes_per_number": 4}
    return numbers | {letter: readings(loop, numbers) for letter, loop in zip("ABCDE", loops, strict=True)}


def readings(loop: str, numbers: dict) -> list[tuple[int, int]]:
    """Returns what a loop reads and writes of K and V, operation by operation, in one step of one layer, in bytes."""
    token = 2 * numbers["n_kv_heads"] * numbers["head_dim"] * numbers["bytes_per_number"]
    kv, copies = numbers["kv_len"] * token, numbers["n_heads"] // numbers["n_kv_heads"]
    return {
        "grouped": [(token, token), (kv, 0)],
        "expanded": [(token, token), (kv, copies * kv), (copies * kv, 0)],
        "concatenated": [(kv, kv), (kv, 0)],
        "masked": [(token, token), (numbers["n_slots"] * token, 0)],
        "contiguous": [(token, token), (kv, kv), (kv, 0)],
    }[loop]


def _right(numbers: dict) -> dict:
    loops = {repr(readings(loop, numbers)): loop for loop in LOOPS}
    return {letter: loops[repr(numbers[letter])] for letter in "ABCDE"}


def _wrong(numbers: dict) -> list[Mistake]:
    copies = numbers["n_heads"] // numbers["n_kv_heads"]
    slots_kv = numbers["n_slots"] * 2 * numbers["n_kv_heads"] * numbers["head_dim"] * numbers["bytes_per_number"]
    nothing_big = f"Nothing big was written. {slots_kv:,} = {numbers['n_slots']:,} slots."
    more_read = f"More is read than the {numbers['kv_len']:,} tokens hold. Which number of slots is it?"
    order = "Look at the order of the operations: is the new token there before the copy, or does it come with it?"
    large = f"What is {copies} times K and V?"
    no_copy = "Nothing as large as K and V is written here."
    all_tokens = "What is read by the attention is K and V of the tokens, no more."
    told = {
        "grouped": dict.fromkeys(("expanded", "concatenated", "contiguous"), no_copy) | {"masked": all_tokens},
        "expanded": dict.fromkeys(LOOPS, large) | {"grouped": "Something large is written. Grouped writes one token."},
        "concatenated": {
            "grouped": "K and V are written anew. Grouped writes one token.",
            "expanded": "One copy is written, not one for each query head.",
            "masked": all_tokens,
            "contiguous": order,
        },
        "masked": dict.fromkeys(("expanded", "concatenated", "contiguous"), nothing_big) | {"grouped": more_read},
        "contiguous": {
            "grouped": "K and V are written anew. Grouped writes one token.",
            "expanded": "One copy is written, not one for each query head.",
            "masked": all_tokens,
            "concatenated": order,
        },
    }
    return [
        Mistake(letter, loop, told[right][loop])
        for letter, right in _right(numbers).items()
        for loop in LOOPS
        if loop != right
    ]


@dataclass(frozen=True)
class Naming(Hand):
    """Names instead of numbers; capitals and spaces around them do not matter."""

    def judge(self, answer: object, seed: int = 0) -> Verdict:
        """Returns the verdict on a dict of names."""
        if isinstance(answer, dict):
            answer = {key: _tidy(value) for key, value in answer.items()}
            odd = [key for key in "ABCDE" if answer.get(key) not in (None, ..., *LOOPS)]
            if odd:
                return Verdict("failed", f"{listed(odd)}: write one of {', '.join(LOOPS)}, in quotes.", self.id)
        return super().judge(answer, seed)


def _tidy(value: object) -> object:
    return value.strip().lower() if isinstance(value, str) else value if value in (None, ...) else repr(value)


METER = Naming(
    id="08.meter",
    level="decide ●●○ 8 min, core",
    draw=_draw,
    right=_right,
    mistakes=_wrong,
    look=dict.fromkeys("ABCDE", "How much is written, how much does the last operation read?"),
    notice="Notice: bytes written tell expanded from concatenated, bytes read tell a mask from a slice, and the order "
    "tells a cache that grows from one that is tidied up. No clock was needed.",
)
