"""The product of 10.review: what it asks for, and the numbers that follow from a choice."""

from itertools import count

import numpy as np

from gqa_lab.checks.answers import Hand, Mistake, agrees
from gqa_lab.config import divisors


def draw(seed: int) -> dict:
    """Returns a product: a model whose KV heads are still open, a card, a workload, a quality target."""
    if seed == 0:
        return _product(44, 6144, 48, 112, 34, 14, 60_000, 40)
    rng = np.random.default_rng((105, seed))
    for _ in count():
        h, d = int(rng.choice((24, 36, 40, 48, 60))), int(rng.choice((80, 96, 112, 144)))
        sizes = int(rng.integers(30, 64)), 128 * h, h, d, int(rng.integers(12, 60))
        product = _product(*sizes, int(rng.integers(6, 20)), 5000 * int(rng.integers(6, 25)), int(rng.integers(20, 61)))
        met = [g for g in divisors(h) if meets(product, g)]
        if 2 <= len(met) and 3 <= max(met) < h / 2 and all(_is_clear(product, g) for g in divisors(h)):
            return product


def _product(n_layers, d_model, n_heads, head_dim, weights_gb, agents, tokens, ms) -> dict:
    return {
        "n_layers": n_layers,
        "d_model": d_model,
        "n_heads": n_heads,
        "head_dim": head_dim,
        "weights_gb": weights_gb,
        "card_gb": 141,
        "kept_free": 0.2,
        "bandwidth_gb_per_s": 4800,
        "agents_at_once": agents,
        "tokens_per_agent": tokens,
        "ms_per_token_wanted": ms,
        "quality_wanted": "of 100 facts from the start of a chat as many are found as with MHA, or at most 2 fewer",
    }


def meets(product: dict, n_kv_heads: int, bytes_per_element: int = 2) -> bool:
    """True if so many KV heads hold all agents and keep to the time."""
    numbers = right(product | {"n_kv_heads": n_kv_heads, "bytes_per_element": bytes_per_element, "price_per_hour": 1})
    return numbers["chats"] >= product["agents_at_once"] and numbers["ms_per_token"] <= product["ms_per_token_wanted"]


def _is_clear(product: dict, n_kv_heads: int) -> bool:
    """True if as many chats fit however the size of one was rounded."""
    for size in (1, 2):
        chat = right(product | {"n_kv_heads": n_kv_heads, "bytes_per_element": size, "price_per_hour": 1})["chat_gb"]
        if len({int(_room_gb(product) / (chat * slip)) for slip in (0.995, 1, 1.005)}) > 1 and chat > 1:
            return False
    return True


def _room_gb(product: dict) -> float:
    return product["card_gb"] * (1 - product["kept_free"]) - product["weights_gb"]


def right(numbers: dict) -> dict:
    """Returns what follows from a choice: `n_kv_heads`, bytes per element of the cache, price of an hour."""
    g, size, agents = numbers["n_kv_heads"], numbers["bytes_per_element"], numbers["agents_at_once"]
    token = 2 * numbers["n_layers"] * g * numbers["head_dim"] * size
    chat_gb = token * numbers["tokens_per_agent"] / 1e9
    step_s = (numbers["weights_gb"] + agents * chat_gb) / numbers["bandwidth_gb_per_s"]
    return {
        "bytes_per_token": token,
        "chat_gb": chat_gb,
        "chats": int(_room_gb(numbers) / chat_gb),
        "ms_per_token": 1000 * step_s,
        "crossover_tokens": numbers["weights_gb"] * 1e9 / (agents * token),
        "first_token_speedup": 1.0,
        "cost_per_million": numbers["price_per_hour"] / 3600 * step_s / agents * 1e6,
    }


def mistakes(numbers: dict) -> list[Mistake]:
    """Returns wrong values for a choice; those that happen to be right are left out."""
    g, size, h, price = (numbers[x] for x in ("n_kv_heads", "bytes_per_element", "n_heads", "price_per_hour"))
    weights, agents, bandwidth = (numbers[x] for x in ("weights_gb", "agents_at_once", "bandwidth_gb_per_s"))
    answers = right(numbers)
    token, chat = answers["bytes_per_token"], answers["chat_gb"]
    room, step = numbers["card_gb"] * (1 - numbers["kept_free"]), answers["ms_per_token"]
    derived = numbers["d_model"] // h
    factors = (
        (h / g, "That is with all query heads. Count your KV heads."),
        (h // g / g, "You took group_size for n_kv_heads."),
        (derived / numbers["head_dim"], f"You took head_dim as d_model / n_heads = {derived}. It is stated."),
        (1 / 2, "Half of it: K and V, or the bytes of an element, are missing."),
        (2, "Double: count the bytes of an element and K and V once each."),
        (1 / numbers["n_layers"], "That is one layer."),
        (1 / g, "That is one KV head."),
    )
    whole = [Mistake("bytes_per_token", round(token * f), text) for f, text in factors]
    of_chat = [Mistake("chat_gb", chat * f, text) for f, text in factors]
    wrong = [
        *whole,
        *of_chat,
        Mistake("chat_gb", chat * agents, "These are the chats of all agents. Give one."),
        Mistake("chat_gb", chat * 1e9, "These are bytes."),
        Mistake("chat_gb", chat * 1e3, "These are MB."),
        Mistake("chat_gb", chat * 1.024, "You took 1,024 tokens for each 1,000."),
        Mistake("chats", int(numbers["card_gb"] / chat), "Where are the weights? And a part stays free."),
        Mistake("chats", int(room / chat), "Where are the weights?"),
        Mistake("chats", int((numbers["card_gb"] - weights) / chat), "A part of the card was to stay free."),
        Mistake("chats", int((numbers["card_gb"] - weights) * (1 - numbers["kept_free"]) / chat),
                "The part that stays free is a part of the card, not of what the weights leave."),
        Mistake("chats", (room - weights) / chat, "Only whole chats count."),
        Mistake("chats", int((room - weights) / chat) + 1, "Rounded up: that many are a little too many."),
        Mistake("ms_per_token", 1000 * (weights + chat) / bandwidth, "One chat. All agents' caches are read."),
        Mistake("ms_per_token", agents * 1000 * (weights + chat) / bandwidth,
                "One read of the weights serves all agents."),
        Mistake("ms_per_token", 1000 * agents * chat / bandwidth,
                "Only the caches. The weights come through the same wire: add them."),
        Mistake("ms_per_token", 1000 * weights / bandwidth,
                "Only the weights. The caches come through the same wire: add them."),
        Mistake("ms_per_token", step / agents, "Every agent waits for the whole step."),
        Mistake("ms_per_token", step / 1000, "These are seconds. Give milliseconds."),
        Mistake("crossover_tokens", weights * 1e9 / token, f"That is one agent. {agents} own a cache each."),
        Mistake("crossover_tokens", weights * 1e9 * agents / token, "More agents reach the weights sooner, not later."),
        Mistake("crossover_tokens", weights * 1e9 / (agents * token / g * h), "That is MHA's crossover."),
        Mistake("crossover_tokens", weights / (agents * token),
                "The two sizes need one unit: GB and bytes differ by 10⁹."),
        Mistake("first_token_speedup", h / g, "The cache shrinks so much; the arithmetic of the prompt does not."),
        Mistake("first_token_speedup", g / h, "The cache shrinks so much; the arithmetic of the prompt does not."),
        Mistake("first_token_speedup", float(g), "Count the arithmetic of the prompt: no query head left."),
        Mistake("cost_per_million", price / 3600 * step * agents / 1000 * 1e6,
                "More agents make more tokens: divide by them."),
        Mistake("cost_per_million", price / 3600 * step / 1000 * 1e6, "A step makes a token for every agent."),
        Mistake("cost_per_million", price / 3600 * step / agents * 1e6, "That counts milliseconds as seconds."),
        Mistake("cost_per_million", price / 3600 * step / agents / 1000, "That is one token. Give a million."),
        Mistake("cost_per_million", price * step / agents / 1000 * 1e6,
                "The price is for an hour, the step counts seconds."),
        Mistake("cost_per_million", price / 60 * step / agents / 1000 * 1e6, "An hour has 3,600 seconds."),
    ]  # fmt: skip
    wrong = [m for m in wrong if not agrees(m.wrong, answers[m.name]) and not _as_good(m)]
    told: dict[tuple, Mistake] = {}  # of two reasons for one number the first is told
    for m in wrong:
        told.setdefault((m.name, float(f"{m.wrong:.3g}") if isinstance(m.wrong, float) else m.wrong), m)
    return list(told.values())


def _as_good(mistake: Mistake) -> bool:
    return mistake.name == "first_token_speedup" and near_one(mistake.wrong)


def near_one(speedup: object) -> bool:
    """True for 1.0, and for who counts that narrower k_proj and v_proj save a little."""
    return type(speedup) in (int, float) and 1 <= speedup < 1.25


def numbers_for(product: dict, chosen: dict) -> Hand:
    """Returns the by-hand exercise of the numbers that follow from a product and the choices made for it."""
    return Hand(
        id="10.review",
        level="",
        draw=lambda seed: product | chosen,
        right=right,
        mistakes=mistakes,
        look={
            "bytes_per_token": "K and V, layers, your KV heads, head_dim, your bytes per element.",
            "chat_gb": "One agent's tokens, times the bytes of a token. 1 GB is 10⁹ bytes.",
            "chats": "Take the free part and the weights from the card. How many whole chats fit into the rest?",
            "ms_per_token": "The weights once and a cache for every agent, at the card's bandwidth.",
            "crossover_tokens": "Tokens per agent at which all caches together are as many bytes as the weights.",
            "first_token_speedup": "How many times sooner than with MHA, at equal weights: a prompt costs arithmetic.",
            "cost_per_million": "Price of a second, times the seconds of a step, shared by the tokens that a step "
            "makes, times a million.",
        },
        notice="",
    )
