"""06.unseen: cache, chats and what sharing saves, for a model that nobody has seen, by hand."""

from itertools import count

import numpy as np

from gqa_lab.checks.answers import Hand, Mistake, tells_apart, unit_slip

_OTHER = {"chats": "chats_as_mha", "chats_as_mha": "chats"}
_AS_OTHER = {
    "chats": "That is with one KV head for each query head.",
    "chats_as_mha": "That is with the shared KV heads. MHA keeps one for each query head.",
}
_GROUPS = [(g * r, g) for g in (3, 5, 7, 9) for r in (3, 5, 6, 7) if r not in (g, 2 * g)]  # no wrong value twice
_HEAD_DIMS = ((112, 64), (144, 80), (112, 80), (144, 96), (80, 64), (112, 96))  # d_model / n_heads, and what is stated
_HALF = (
    "Half of it. Keys and values are both kept, and each element takes 2 bytes in bfloat16: one of these is missing."
)
_AS_MHA = "You took n_heads for n_kv_heads: that is MHA."
_MORE_TWICE = "You made the chat n_heads / n_kv_heads times larger twice."
_PLAIN_BYTES = "These are bytes; the answer has another unit."
_ONE_TOKEN = "That is one token."


def _draw(seed: int) -> dict:
    if seed == 0:
        return _numbers(32, 2560, 20, 5, 96, 18, 100_000)
    rng = np.random.default_rng((61, seed))
    for _ in count():
        h, g = _GROUPS[rng.integers(len(_GROUPS))]
        derived, d = _HEAD_DIMS[rng.integers(len(_HEAD_DIMS))]
        n_layers, weights_gb = int(rng.integers(20, 65)), int(rng.integers(8, 41))
        room_in_tokens = (72 - weights_gb) * 1e9 / (4 * n_layers * g * d)
        tokens = 100 * int(room_in_tokens / (rng.integers(14, 31) + 0.5) / 100)
        numbers = _numbers(n_layers, h * derived, h, g, d, weights_gb, tokens)
        if (
            _fits_clearly(numbers)
            and _each_room_holds_another_number(numbers)
            and tells_apart(numbers, _right, _wrong)
            and not _looks_like_bits(numbers)
        ):
            return numbers


def _numbers(n_layers: int, d_model: int, h: int, g: int, d: int, weights_gb: int, tokens: int) -> dict:
    sizes = {"n_layers": n_layers, "d_model": d_model, "n_heads": h, "n_kv_heads": g, "head_dim": d}
    card = {"weights_gb": weights_gb, "card_gb": 80, "kept_free": 0.1}
    return sizes | {"dtype": "bfloat16"} | card | {"tokens_per_chat": tokens}


def _fits_clearly(numbers: dict) -> bool:
    """True if at least two chats fit, and as many however the size of one was rounded."""
    right = _right(numbers)
    as_mha_gb = right["chat_gb"] * numbers["n_heads"] / numbers["n_kv_heads"]
    chats = [[_chats(numbers, gb * slip) for slip in (0.99, 1, 1.01)] for gb in (right["chat_gb"], as_mha_gb)]
    return min(chats[1]) >= 2 and all(len(set(rounded)) == 1 for rounded in chats)


def _each_room_holds_another_number(numbers: dict) -> bool:
    """True if chats counted in a wrong room are another number than the right one."""
    chat_gb, right = _right(numbers)["chat_gb"], _right(numbers)["chats"]
    return all(room // chat_gb != right for room, _ in _wrong_rooms(numbers))


def _looks_like_bits(numbers: dict) -> bool:
    """True if a listed mistake is 8 times off by chance, as bits are from bytes."""
    right = _right(numbers)
    return any(unit_slip(m.name, m.wrong, right[m.name]) for m in _wrong(numbers))


def _elements(numbers: dict) -> int:
    return 2 * numbers["n_layers"] * numbers["n_kv_heads"] * numbers["head_dim"]


def _chats(numbers: dict, chat_gb: float) -> int:
    return int((numbers["card_gb"] * (1 - numbers["kept_free"]) - numbers["weights_gb"]) / chat_gb)


def _right(numbers: dict) -> dict:
    elements = _elements(numbers)
    chat_gb = 2 * elements * numbers["tokens_per_chat"] / 1e9
    return {
        "elements_per_token": elements,
        "bytes_per_token": 2 * elements,
        "chat_gb": chat_gb,
        "chats": _chats(numbers, chat_gb),
        "chats_as_mha": _chats(numbers, chat_gb * numbers["n_heads"] / numbers["n_kv_heads"]),
    }


def _wrong(numbers: dict) -> list[Mistake]:
    c, h, g, d, n_layers = (numbers[x] for x in ("d_model", "n_heads", "n_kv_heads", "head_dim", "n_layers"))
    right, tokens = _right(numbers), numbers["tokens_per_chat"]
    elements = right["elements_per_token"]
    in_elements = (
        (elements // g * h, _AS_MHA),
        (elements // d * (c // h), f"You took head_dim as d_model / n_heads = {c // h}. It is stated: {d}."),
        (elements // g * (h // g), "You took group_size for n_kv_heads."),
        (elements // n_layers, "That is one layer. Every layer has a cache of its own."),
        (elements // g, "That is one KV head."),
    )
    halves = (
        (elements // 2, "K only. Values are kept as well."),
        (2 * elements, "These are bytes. Count the numbers first, whatever each of them takes."),
    )
    in_bytes = (
        *((2 * value, text) for value, text in in_elements),
        (elements, _HALF),
        (elements // 2, "A quarter of it. Keys and values are both kept, and each element takes 2 bytes in bfloat16."),
        (4 * elements, "You took 4 bytes per element; bfloat16 has 16 bits."),
    )
    wrong = [Mistake("elements_per_token", value, text) for value, text in (*in_elements, *halves)]
    wrong += [Mistake("bytes_per_token", value, text) for value, text in in_bytes]
    wrong += [Mistake("chat_gb", value * tokens / 1e9, text) for value, text in in_bytes]
    wrong += [
        Mistake("chat_gb", 2.048 * elements * tokens / 1e9, "You took 1,024 tokens for each 1,000."),
        Mistake("chat_gb", 2 * elements * tokens, _PLAIN_BYTES),
        Mistake("chat_gb", 2 * elements / 1e9, _ONE_TOKEN),
        *_wrong_chats(numbers, right, [(value * tokens / 1e9, text) for value, text in in_bytes]),
    ]
    return [m for m in wrong if m.name not in _OTHER or m.wrong != right[m.name]]


def _wrong_rooms(numbers: dict) -> list[tuple[int | float, str]]:
    card, weights, used = numbers["card_gb"], numbers["weights_gb"], 1 - numbers["kept_free"]
    return [
        (card * used, "And the weights? They are on the card as well."),
        (card, "Where are the weights? They are on the card as well, and 10% stay free."),
        (card - weights, "The 10% were to stay free."),
        ((card - weights) * used, "10% of the card stay free, not of what the weights leave."),
    ]


def _wrong_chats(numbers: dict, right: dict, wrong_gb: list[tuple[int | float, str]]) -> list[Mistake]:
    """Wrong numbers of chats, those that follow from a chat of wrong size too; of two reasons the first is told."""
    left = numbers["card_gb"] * (1 - numbers["kept_free"]) - numbers["weights_gb"]
    more = numbers["n_heads"] / numbers["n_kv_heads"]
    told: dict[tuple, Mistake] = {}
    for key, chat in (("chats", right["chat_gb"]), ("chats_as_mha", right["chat_gb"] * more)):
        for value, text in (
            *((room // chat, text) for room, text in _wrong_rooms(numbers)),
            (right[_OTHER[key]], _AS_OTHER[key]),
            (right["chats"] * more, "MHA's cache is larger, so fewer chats fit."),
            *(
                (left * right["chat_gb"] / chat // gb, _MORE_TWICE if text == _AS_MHA and key != "chats" else text)
                for gb, text in wrong_gb
            ),
        ):
            told.setdefault((key, int(value)), Mistake(key, int(value), text))
        told[key, "left"] = Mistake(key, left / chat, "Only whole chats count.")
    return list(told.values())


UNSEEN = Hand(
    id="06.unseen",
    level="by hand ●●○ 8 min, core",
    draw=_draw,
    right=_right,
    mistakes=_wrong,
    look={
        "elements_per_token": "K and V, layers, KV heads, head_dim: one token leaves how many numbers?",
        "bytes_per_token": "The elements of a token, times the bytes of one element.",
        "chat_gb": "The bytes of one token, times the tokens of a chat. 1 GB is 10⁹ bytes.",
        "chats": "Take 10% of the card and the weights away. How many whole chats fit into the rest?",
        "chats_as_mha": "The same room, and a chat with one KV head for each query head. Whole chats.",
    },
    notice="Notice: d_model was in the config and in no formula, because head_dim is stated. The weights take "
    "their room before the first token.",
)
