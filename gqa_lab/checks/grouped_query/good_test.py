"""05.good_test: sizes that expose a wrong head map, and sizes that hide it."""

from collections.abc import Callable
from itertools import count

from gqa_lab.checks.answers import Mistake
from gqa_lab.checks.expose import ALREADY_SHOWS, BOTH_AGREE, Expose
from gqa_lab.checks.head_maps import cards, divided, head_map, neighbours

_MAPS = {"i % G": cards, "i // G": divided}
_LARGEST = 1024


def smallest_exposing_both() -> tuple[int, int]:
    """Returns the smallest (H, G) at which both wrong maps run and differ from the right one: a search."""
    for h in count(1):
        for g in range(1, h + 1):
            if h % g == 0 and all(_outcome(rule, h, g) == "differs" for rule in _MAPS.values()):
                return h, g


def _outcome(rule: Callable, n_heads: int, n_kv_heads: int) -> str:
    """Runs a wrong map beside the right one: it "agrees", "differs" or "raises"."""
    try:
        same = head_map(rule, n_heads, n_kv_heads) == head_map(neighbours, n_heads, n_kv_heads)
    except IndexError:
        return "raises"
    return "agrees" if same else "differs"


def _not_a_pair(value: object, where: str) -> str | None:
    if type(value) is not list or [type(x) for x in value] != [int, int]:
        return f"{where}: give a pair of whole numbers (H, G)."
    h, g = value
    if not 1 <= g <= h <= _LARGEST:
        return f"{where}: ({h}, {g}) needs 1 ≤ G ≤ H ≤ {_LARGEST}."
    return f"{where}: {h} heads cannot share {g} KV heads evenly." if h % g else None


def _loud(name: str, n_heads: int, n_kv_heads: int) -> str:
    largest = max(_MAPS[name](i, n_heads, n_kv_heads) for i in range(n_heads))
    return f"It raises; a loud mistake needs no test. ({name} asks for KV head {largest} of {n_kv_heads}.)"


def _examine_exposing(name: str, pair: object) -> str | None:
    where = f'"{name}" exposes'
    if problem := _not_a_pair(pair, where):
        return problem
    outcome = _outcome(_MAPS[name], *pair)
    alone = " (G = 1 and G = H are no groups at all.)" if pair[1] in (1, pair[0]) else ""
    reply = {"agrees": BOTH_AGREE + alone, "raises": _loud(name, *pair) + " Find sizes where it is silent."}
    return f"{where}: {reply[outcome]}" if outcome in reply else None


def _examine_hiding(name: str, pair: object) -> str | None:
    where, rule = f'"{name}" hides', _MAPS[name]
    exists = any(_outcome(rule, h, g) == "agrees" for h in range(2, 26) for g in range(2, h) if h % g == 0)
    if pair is None:
        return (
            f"{where}: some (H, G) with 1 < G < H does hide it. When do the two lines mean the same?"
            if exists
            else None
        )
    if problem := _not_a_pair(pair, where):
        return problem
    outcome, (h, g) = _outcome(rule, h := pair[0], g := pair[1]), pair
    if outcome == "raises":
        return f"{where}: {_loud(name, *pair)} Look for sizes where both lines mean the same."
    if outcome == "differs":
        first = next(i for i in range(h) if rule(i, h, g) != neighbours(i, h, g))
        none = " If you find none with 1 < G < H, write None." if not exists else ""
        return f"{where}: {ALREADY_SHOWS.format(f'first at head {first}')}{none}"
    if g in (1, h):
        none = ", or write None if there is none" if not exists else ""
        end = "G = 1" if g == 1 else "G = H"
        return f"{where}: True, but too small to fool anybody: {end} is no group. Try again with 1 < G < H{none}."
    return None


def _examine_smallest(pair: object) -> str | None:
    if problem := _not_a_pair(pair, "smallest"):
        return problem
    h, g = pair
    outcomes = {name: _outcome(rule, h, g) for name, rule in _MAPS.items()}
    if g in (1, h):
        return "smallest: No group at all."
    if "raises" in outcomes.values():
        return f"smallest: {_loud('i // G', h, g)}"
    if outcomes["i // G"] == "agrees":
        return (
            "smallest: G equals R here, so dividing by either is the same. LLaMA 2 70B, with 64 heads and 8 KV heads, "
            "hid R written for G in llama.cpp (llama.cpp#3364)."
        )
    return None if (h, g) == smallest_exposing_both() else "smallest: It exposes both. There is a smaller pair."


def _examine_test(answer: dict) -> str | None:
    problems = []
    for name in _MAPS:
        entry = answer[name]
        if type(entry) is not dict or set(entry) != {"exposes", "hides"}:
            return f'"{name}" needs a dict with the keys "exposes" and "hides".'
        problems += [_examine_exposing(name, entry["exposes"]), _examine_hiding(name, entry["hides"])]
    return "\n".join(filter(None, [*problems, _examine_smallest(answer["smallest"])])) or None


_GOOD = {
    "i % G": {"exposes": (8, 2), "hides": None},
    "i // G": {"exposes": (6, 3), "hides": (4, 2)},
    "smallest": (6, 3),
}

GOOD_TEST = Expose(
    id="05.good_test",
    level="expose ●●○ 8 min, core",
    keys=(*_MAPS, "smallest"),
    examine=_examine_test,
    notice="Both wrong maps were run on your sizes. "
    "Notice: G = 1 and G = H hide the first, G = R the second. A good test avoids all three.",
    mistakes=(
        Mistake("LLaMA 2 70B's own sizes", _GOOD | {"smallest": (64, 8)}, "smallest: G equals R here"),
        Mistake("no group", _GOOD | {"smallest": (8, 8)}, "smallest: No group at all."),
        Mistake("too many KV heads asked for", _GOOD | {"smallest": (6, 2)}, "smallest: It raises"),
        Mistake("a larger pair", _GOOD | {"smallest": (12, 4)}, "smallest: It exposes both. There is a smaller pair."),
        Mistake(
            "hidden by an end",
            _GOOD | {"i % G": {"exposes": (8, 2), "hides": (8, 8)}},
            '"i % G" hides: True, but too small to fool anybody',
        ),
    ),
)
