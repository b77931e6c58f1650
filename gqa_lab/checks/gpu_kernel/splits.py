"""09.splits: into how many ranges to cut the keys, counted in waves."""

from itertools import count

import numpy as np

from gqa_lab.checks.answers import Hand, Mistake, tells_apart


def _draw(seed: int) -> dict:
    if seed == 0:
        return _numbers(12, 3, 39, [1, 2, 4, 5, 8])
    rng = np.random.default_rng((92, seed))
    for _ in count():
        n_kv_heads, full = int(rng.integers(2, 8)), int(rng.integers(3, 8))  # `full` splits make one full wave
        n_blocks = 2 * int(rng.integers(2, 13)) * full - int(rng.integers(1, full))  # not divided evenly
        between = int(rng.integers(2, full)) if full > 2 else 2
        numbers = _numbers(n_kv_heads * full, n_kv_heads, n_blocks, [1, between, full, full + 1, 2 * full])
        if _is_fair(numbers) and tells_apart(numbers, _right, _wrong):
            return numbers


def _numbers(n_slots: int, n_kv_heads: int, n_blocks: int, n_splits: list[int]) -> dict:
    return {"n_slots": n_slots, "n_kv_heads": n_kv_heads, "n_blocks": n_blocks, "n_splits": n_splits}


def _is_fair(numbers: dict) -> bool:
    """True if one full wave is best, as good as two of half the length, and just beyond it is worse."""
    *_, full, beyond, twice = _costs(numbers)
    return full == min(_costs(numbers)) == twice < beyond


def _waves(numbers: dict, n_splits: int) -> int:
    return -(-numbers["n_kv_heads"] * n_splits // numbers["n_slots"])


def _costs(numbers: dict) -> list[int]:
    return [_waves(numbers, n) * -(-numbers["n_blocks"] // n) for n in numbers["n_splits"]]


def _right(numbers: dict) -> dict:
    costs = _costs(numbers)
    return {"cost": costs, "choice": numbers["n_splits"][costs.index(min(costs))]}


def _idle(numbers: dict, n_splits: int) -> str:
    slots, programs = numbers["n_slots"], numbers["n_kv_heads"] * n_splits
    return f"{programs} programs in {slots} slots: {slots - programs} of them stand idle."


def _wrong(numbers: dict) -> list[Mistake]:
    slots, heads, blocks, splits = (numbers[key] for key in ("n_slots", "n_kv_heads", "n_blocks", "n_splits"))
    one, between, full, beyond, twice = splits
    late = heads * beyond % slots
    costs = [
        ([-(-blocks // n) for n in splits], "Waves are missing: where there are more programs than slots, some wait."),
        ([_waves(numbers, n) for n in splits], "These are waves. Each wave takes as long as its programs have blocks."),
        ([blocks * heads / slots] * len(splits),
         "You shared the work evenly. A slot without a program helps nobody, and part of a wave takes a whole one."),
        ([_waves(numbers, n) * blocks / n for n in splits],
         f"The longest program of {full} splits reads {-(-blocks // full)} whole blocks, not {blocks / full:.3g}."),
        ([_waves(numbers, n) * (blocks // n) for n in splits],
         "Blocks are left over. Some program reads one more, and the wave waits for it: round up."),
        ([_waves(numbers, n) * blocks for n in splits], "A program reads its split, not all the blocks."),
        ([heads * n * -(-blocks // n) for n in splits], "One after the other: slots work at the same time."),
    ]  # fmt: skip
    choices = [
        (one, _idle(numbers, one)),
        (between, _idle(numbers, between)),
        (beyond, f"{heads * beyond} programs: {late} of them wait for a second wave, and while it runs "
                 f"{slots - late} slots stand idle."),
        (twice, f"The same time as {full}. What does it cost to join twice as many partial results?"),
        (blocks, f"One block each, {_waves(numbers, blocks)} waves, and {blocks} partial results per head to join."),
        (slots, f"{heads} KV heads already make {heads} programs per split."),
    ]  # fmt: skip
    right = _right(numbers)["choice"]
    known = dict(reversed([pair for pair in choices if pair[0] != right]))  # of two reasons for one number the first
    return [Mistake("cost", value, text) for value, text in costs] + [
        Mistake("choice", value, text) for value, text in known.items()
    ]


SPLITS = Hand(
    id="09.splits",
    level="decide ●●○ 8 min, core",
    draw=_draw,
    right=_right,
    mistakes=_wrong,
    look={
        "cost": "One number for each number of splits: waves, rounded up, times blocks per program, rounded up.",
        "choice": "One of the numbers of splits: the lowest cost, and among equals the fewest partial results.",
    },
    notice="Notice: a program too many costs a whole wave. The package counts this way, and adds what it takes to "
    "start a program and to join the parts.",
)
