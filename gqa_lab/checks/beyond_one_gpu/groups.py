"""A1.groups: into groups of how many GPUs to put what there is, counted in chats."""

from itertools import count

import numpy as np

from gqa_lab.checks.answers import Hand, Mistake, tells_apart
from gqa_lab.config import divisors

_MODELS = ((40, 4), (40, 8), (24, 4), (48, 6), (56, 4), (72, 6), (24, 8), (36, 4))
_GIB = 2**30 / 1e9
_NEAREST_OR_LATE = (
    "You rounded to the nearest, or took the free tenth from what the weights left; it is a tenth of each card."
)
_COPIES = "Where G < P, KV heads are copied: the group holds the cache P / G times."


def _draw(seed: int) -> dict:
    if seed == 0:
        return _numbers(40, 40, 4, 128, 28, 16, 100_000)
    rng = np.random.default_rng((102, seed))
    for _ in count():
        h, g = _MODELS[rng.integers(len(_MODELS))]
        numbers = _numbers(
            int(rng.integers(30, 70)),
            h,
            g,
            128,
            int(rng.integers(20, 60)),
            int(rng.choice([16, 24])),
            1000 * int(rng.integers(30, 130)),
        )
        if _is_fair(numbers) and tells_apart(numbers, _right, _wrong):
            return numbers


def _numbers(n_layers: int, h: int, g: int, d: int, weights_gb: int, n_gpus: int, tokens: int) -> dict:
    sizes = {"n_layers": n_layers, "n_heads": h, "n_kv_heads": g, "head_dim": d, "dtype": "bfloat16"}
    return sizes | {
        "weights_gb": weights_gb,
        "card_gb": 80,
        "kept_free": 0.1,
        "n_gpus": n_gpus,
        "tokens_per_chat": tokens,
    }


def _is_fair(numbers: dict) -> bool:
    """True if copies are possible, tempt, do not pay, and no number of chats depends on how it was rounded."""
    allowed, right = _allowed(numbers), _right(numbers)
    no_copies = _chats(numbers, copies=lambda p, g: 1)
    sure = all(_chats(numbers, slip=slip) == right["chats"] for slip in (0.99, 1.01))
    best = [n == max(right["chats"]) for n in right["chats"]].count(True) == 1
    tempts = allowed[no_copies.index(max(no_copies))] > numbers["n_kv_heads"]
    return sure and best and tempts and len(allowed) >= 4 and right["choice"] <= numbers["n_kv_heads"]


def _allowed(numbers: dict) -> list[int]:
    h, g, n = (numbers[x] for x in ("n_heads", "n_kv_heads", "n_gpus"))
    return [p for p in divisors(h) if (p % g == 0 or g % p == 0) and n % p == 0]


def _chat_gb(numbers: dict) -> float:
    per_token = 2 * numbers["n_layers"] * numbers["n_kv_heads"] * numbers["head_dim"] * 2
    return per_token * numbers["tokens_per_chat"] / 1e9


def _chats(numbers, *, copies=lambda p, g: max(1, p // g), slip=1.0, weights=None, free=None, heads=1.0, part=False):
    """Returns the chats of all groups together, for each allowed size of a group; with `part`, parts of chats too."""
    g, n = numbers["n_kv_heads"], numbers["n_gpus"]
    card = numbers["card_gb"] * (1 - (numbers["kept_free"] if free is None else free))
    weights = weights or (lambda p: numbers["weights_gb"])
    whole = float if part else int
    return [
        max(0, whole((p * card - weights(p)) / (_chat_gb(numbers) * slip * heads * copies(p, g)))) * (n // p)
        for p in _allowed(numbers)
    ]


def _right(numbers: dict) -> dict:
    chats, allowed = _chats(numbers), _allowed(numbers)
    return {"allowed": allowed, "chats": chats, "choice": allowed[chats.index(max(chats))]}


def _why_not(p: int, g: int, n: int) -> str:
    if n % p:
        return "the GPUs do not make whole groups of so many."
    return "neither of P and G divides the other."


def _follows(numbers: dict, given: dict) -> dict[str, str]:
    """Returns what to say of chats and a choice that are right for what was given before them."""
    allowed, chats = given["allowed"], given["chats"]
    if type(allowed) is not list or type(chats) is not list or len(allowed) != len(chats):
        return {}
    if not chats or any(type(x) not in (int, float) for x in allowed + chats):
        return {}
    told, right = {}, _right(numbers)
    truth = dict(zip(right["allowed"], right["chats"], strict=True))
    possible = [(p, c) for p, c in zip(allowed, chats, strict=True) if p in truth]
    if possible and all(c == truth[p] for p, c in possible):
        told["chats"] = "Right wherever your `allowed` is. Mend that first."
    if (given["choice"], max(chats)) in zip(allowed, chats, strict=True):
        told["choice"] = "It follows from your numbers of chats. Mend these first."
    return told


def _wrong(numbers: dict) -> list[Mistake]:
    h, g, n, weights = (numbers[x] for x in ("n_heads", "n_kv_heads", "n_gpus", "weights_gb"))
    right = _right(numbers)
    allowed, groups = right["allowed"], [n // p for p in right["allowed"]]
    lists = [
        ([p for p in allowed if p <= g], "More GPUs than KV heads are possible, too: then KV heads are copied."),
        ([p for p in divisors(h) if n % p == 0],
         "You asked that P divides H. A GPU also needs whole KV heads, and all as many: P divides G, or G divides P."),
        ([p for p in divisors(n) if p % g == 0 or g % p == 0],
         "You looked at KV heads only. P has to divide the query heads as well."),
        ([p for p in divisors(h) if p % g == 0 or g % p == 0],
         "That many GPUs do not make whole groups of those that are there."),
        ([p for p in divisors(h)],
         "These divide the query heads. P also has to divide the GPUs; and P divides G, or G divides P."),
        ([p for p in divisors(n)], "You divided the GPUs only. Which of these can share the heads?"),
        ([p for p in allowed if p > 1], "A group may be a single GPU."),
        *((sorted([*allowed, p]), f"P = {p}: {_why_not(p, g, n)}") for p in divisors(h) if p < n and p not in allowed),
    ]  # fmt: skip
    chats = [
        (_chats(numbers, copies=lambda p, g: 1), f"Are all of them held once? {_COPIES}"),
        ([c // k for c, k in zip(right["chats"], groups, strict=True)], "That is one group. How many are there?"),
        (_chats(numbers, weights=lambda p: p * weights),
         "You gave every GPU all the weights. A group shares one set of them."),
        (_chats(numbers, weights=lambda p: 1e-9), "Where are the weights? Each group holds them once."),
        (_chats(numbers, free=0.0), "The 10% were to stay free."),
        (_chats(numbers, heads=h / g), "You took n_heads for n_kv_heads."),
        (_chats(numbers, heads=h / g, copies=lambda p, g: 1), "You took n_heads for n_kv_heads, and copied nothing."),
        (_chats(numbers, heads=1 / _GIB), "Your chat is in GiB, the cards in GB of 10⁹ bytes."),
        (_chats(numbers, free=1 - (1 - numbers["kept_free"]) * _GIB),
         "You took a card's GB for GiB. Here 1 GB is 10⁹ bytes."),
        ([-(-c // k) * k for c, k in zip(_chats(numbers, part=True), groups, strict=True)],
         "You rounded up. The last chat of each group does not fit."),
        (_chats(numbers, part=True), "Only whole chats count, in each group."),
        ([int(c) for c in _chats(numbers, part=True)],
         "You rounded after you had multiplied by the groups. Each group holds whole chats."),
        ([round(c / k) * k for c, k in zip(_chats(numbers, part=True), groups, strict=True)], _NEAREST_OR_LATE),
        (_chats(numbers, weights=lambda p: weights * (1 - numbers["kept_free"])), _NEAREST_OR_LATE),
        (_chats(numbers, copies=lambda p, g: p),
         "You took every group's cache P times. As long as P divides G, each GPU holds other KV heads."),
        (_chats(numbers, heads=2.0), "You took 4 bytes per element; bfloat16 has 16 bits."),
        (_chats(numbers, heads=0.5), "A chat is twice as large: K and V, and two bytes in bfloat16."),
    ]  # fmt: skip
    no_copies = chats[0][0]
    choices = [
        (allowed[no_copies.index(max(no_copies))], f"That would be best if nothing were copied. {_COPIES}"),
        (n, "All GPUs in one group? Count its copies, or whether it can share the heads at all."),
        (1, "Then every GPU holds all the weights."),
        (max(right["chats"]), "That is the number of chats. Give the P that has it."),
        (n // right["choice"], "That is how many groups there are. How many GPUs has each?"),
    ]
    told = [Mistake("allowed", value, text) for value, text in lists]
    told += [Mistake("chats", value, text) for value, text in chats]
    found: dict[str, Mistake] = {}
    for m in [*told, *(Mistake("choice", value, text) for value, text in choices)]:
        if m.wrong != right[m.name]:
            found.setdefault(f"{m.name} {m.wrong}", m)  # of two reasons for one value the first is told
    return list(found.values())


GROUPS = Hand(
    id="A1.groups",
    level="decide ●●○ 10 min, core",
    draw=_draw,
    right=_right,
    mistakes=_wrong,
    look={
        "allowed": "Rising numbers: P divides the GPUs and the query heads; P divides G, or G divides P.",
        "chats": "One number for each allowed P: whole chats of a group, times the number of groups. A group has P "
        "cards of 72 GB and one set of weights.",
        "choice": "The P with the most chats.",
    },
    notice="Notice: beyond G a group holds its KV heads in copies. Two groups then hold more chats than one of twice "
    "the size, unless a second set of weights takes more room than the copies.",
    follows=_follows,
)
