"""06.choose: a number of KV heads for a product. The numbers are checked, the choice is yours to defend."""

from dataclasses import dataclass

from gqa_lab.checks.answers import Hand, Mistake, agrees, has_blanks, listed, not_attempted, plain
from gqa_lab.checks.verdict import Verdict

PRODUCT = {
    "n_layers": 40,
    "d_model": 5120,
    "n_heads": 40,
    "head_dim": 128,
    "weights_gb": 28,
    "card_gb": 80,
    "kept_free": 0.1,
    "bandwidth_gb_per_s": 3350,
    "tokens_per_chat": 100_000,
    "chats_wanted": 4,
    "ms_wanted": 25,
}
CHOICES = (40, 10, 8, 5, 2, 1)
_NUMBERS = ("bytes_per_token", "chats", "ms_per_token")
_CHOSEN = ("n_kv_heads", "bytes_per_element")
_PER_CHAT = "One chat. Give the step in which all four get a token: four caches, one read of the weights."
_WEIGHTS_EACH = "One read of the weights serves all four chats."


def right(numbers: dict) -> dict:
    """Returns bytes per token, whole chats that fit, and ms of a step with the chats wanted."""
    g, size = numbers["n_kv_heads"], numbers["bytes_per_element"]
    per_token = 2 * numbers["n_layers"] * g * numbers["head_dim"] * size
    chat_gb = per_token * numbers["tokens_per_chat"] / 1e9
    room_gb = numbers["card_gb"] * (1 - numbers["kept_free"]) - numbers["weights_gb"]
    step_gb = numbers["weights_gb"] + numbers["chats_wanted"] * chat_gb
    ms = 1000 * step_gb / numbers["bandwidth_gb_per_s"]
    return {"bytes_per_token": per_token, "chats": int(room_gb / chat_gb), "ms_per_token": ms}


def mistakes(numbers: dict) -> list[Mistake]:
    """Returns wrong values for a choice; those that happen to be right are left out."""
    g, size, h, n_layers = (numbers[x] for x in ("n_kv_heads", "bytes_per_element", "n_heads", "n_layers"))
    weights, n, bandwidth = (numbers[x] for x in ("weights_gb", "chats_wanted", "bandwidth_gb_per_s"))
    answers = right(numbers)
    token, chat = answers["bytes_per_token"], answers["bytes_per_token"] * numbers["tokens_per_chat"] / 1e9
    room = numbers["card_gb"] * (1 - numbers["kept_free"])
    wrong = [
        Mistake("bytes_per_token", token // g * h, "That is with all query heads. Count your KV heads."),
        Mistake("bytes_per_token", token // g * (h // g), "You took group_size for n_kv_heads."),
        Mistake("bytes_per_token", token // 2, "Half of it: K and V, or the bytes of an element, are missing."),
        Mistake("bytes_per_token", 2 * token, "Double: count the bytes of an element and K and V once each."),
        Mistake("bytes_per_token", token // n_layers, "That is one layer."),
        Mistake("bytes_per_token", token // g, "That is one KV head."),
        Mistake("chats", int(numbers["card_gb"] / chat), "Where are the weights? And 10% stay free."),
        Mistake("chats", int(room / chat), "Where are the weights?"),
        Mistake("chats", int((numbers["card_gb"] - weights) / chat), "The 10% were to stay free."),
        Mistake("chats", (room - weights) / chat, "Only whole chats count."),
        Mistake("ms_per_token", 1000 * (weights + chat) / bandwidth, _PER_CHAT),
        Mistake("ms_per_token", 1000 * n * (weights + chat) / bandwidth, _WEIGHTS_EACH),
        Mistake("ms_per_token", 1000 * n * chat / bandwidth, "Only the cache. The step reads the weights as well."),
        Mistake("ms_per_token", 1000 * weights / bandwidth, "Only the weights. The step reads four caches as well."),
        Mistake("ms_per_token", 1000 * max(weights, n * chat) / bandwidth, "Both come through the same wire: add."),
        Mistake("ms_per_token", answers["ms_per_token"] / n, "Every chat waits for the whole step. Don't divide by 4."),
        Mistake("ms_per_token", answers["ms_per_token"] / 1000, "These are seconds. Give milliseconds."),
    ]
    wrong = [m for m in wrong if not agrees(m.wrong, answers[m.name])]
    first = {m.wrong: m for m in reversed(wrong) if m.name == "chats"}  # of two reasons for one number of chats
    return [m for m in wrong if m.name != "chats" or first[m.wrong] is m]


def _numbers_for(n_kv_heads: int, bytes_per_element: int) -> Hand:
    return Hand(
        id="06.choose",
        level="",
        draw=lambda seed: PRODUCT | {"n_kv_heads": n_kv_heads, "bytes_per_element": bytes_per_element},
        right=right,
        mistakes=mistakes,
        look={
            "bytes_per_token": "K and V, layers, your KV heads, head_dim, your bytes per element.",
            "chats": "72 GB less the weights, divided by a chat of 100,000 tokens; whole chats.",
            "ms_per_token": "28 GB of weights and four chats, at 3,350 GB/s, in milliseconds.",
        },
        notice="",
    )


@dataclass(frozen=True)
class Choose:
    """A choice with its numbers. What follows from the choice is checked; the choice and its reason are not."""

    id: str
    level: str
    notice: str

    @property
    def mistakes(self) -> tuple[Mistake, ...]:
        """Whole answers, for every choice: one number wrong, the rest right."""
        found = []
        for g in CHOICES:
            for size in (2, 1):
                chosen = {"n_kv_heads": g, "bytes_per_element": size}
                answer = chosen | {"reason": "see the numbers"} | right(PRODUCT | chosen)
                found += [
                    Mistake(f"G = {g}, {size} bytes: {m.name}", answer | {m.name: m.wrong}, f"`{m.name}`: ")
                    for m in mistakes(PRODUCT | chosen)
                ]
        return tuple(found)

    def judge(self, answer: object, seed: int = 0) -> Verdict:
        """Returns the verdict on a dict with a choice, its numbers and a reason."""
        keys = (*_CHOSEN, *_NUMBERS, "reason")
        if answer is None or answer is ... or answer == {}:
            return not_attempted(self.id, list(keys))
        if not isinstance(answer, dict):
            return Verdict("failed", f"Hand over a dict with the keys {listed(keys)}.", self.id)
        if missing := [key for key in keys if answer.get(key) in (None, "") or has_blanks(answer[key])]:
            return not_attempted(self.id, missing)
        try:
            given = {key: plain(answer[key]) for key in keys}
        except TypeError as error:
            return Verdict("failed", str(error), self.id)
        problem = _no_choice(given) or _no_reason(given)
        if problem:
            return Verdict("failed", problem, self.id)
        g, size = (given[key] for key in _CHOSEN)
        verdict = _numbers_for(g, size).judge({key: given[key] for key in _NUMBERS})
        if not verdict:
            return verdict
        return Verdict("passed", f"{_reply(g, size)} {self.notice}", self.id)


def _no_choice(given: dict) -> str:
    if type(given["n_kv_heads"]) is not int or given["n_kv_heads"] not in CHOICES:
        return f"`n_kv_heads`: choose one of {', '.join(map(str, CHOICES))}."
    if given["bytes_per_element"] not in (1, 2) or type(given["bytes_per_element"]) is not int:
        return "`bytes_per_element`: 2 for a 16-bit cache, 1 for an 8-bit one."
    return ""


def _no_reason(given: dict) -> str:
    reason = given["reason"]
    few = not isinstance(reason, str) or len(reason.split()) < 3
    return "`reason`: defend your choice in a sentence, as text." if few else ""


def _reply(n_kv_heads: int, bytes_per_element: int) -> str:
    """Says what the numbers mean for the product; every choice with right numbers has a reply."""
    answers = right(PRODUCT | {"n_kv_heads": n_kv_heads, "bytes_per_element": bytes_per_element})
    chats, ms = answers["chats"], answers["ms_per_token"]
    fit = f"{chats or 'no'} chat{'' if chats == 1 else 's'} fit{'s' if chats == 1 else ''}, 4 are wanted"
    short = [fit] if chats < PRODUCT["chats_wanted"] else []
    slow = [f"{ms:.3g} ms, 25 are wanted"] if ms > PRODUCT["ms_wanted"] else []
    if short or slow:
        again = " With a one-byte cache it would be met: is that your defence?" if n_kv_heads in (10, 8) else ""
        return f"Numbers right. They do not meet the product: {' and '.join(short + slow)}.{again}"
    met = f"Numbers right. {chats} chats fit and a step takes {ms:.3g} ms: the product is met."
    if n_kv_heads <= 2:
        return f"{met} What does lesson 07 say that so few KV heads may cost?"
    room = " What happens when one chat more comes?" if chats <= 5 else ""
    small = " What does a one-byte cache cost? Measure it." if bytes_per_element == 1 else ""
    return met + room + small


CHOOSE = Choose(
    id="06.choose",
    level="decide ●●● 12 min, further",
    notice="Notice: the check read your numbers, not your reason. A colleague should: memory says which G is possible, "
    "quality which of these is wise.",
)
