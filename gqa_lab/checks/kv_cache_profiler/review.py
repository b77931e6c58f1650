"""10.review: decide `n_kv_heads` for a product on one page. Its numbers are checked; its reasons are for a person."""

import re
from dataclasses import dataclass

from gqa_lab.checks.answers import Mistake, has_blanks, listed, not_attempted, plain
from gqa_lab.checks.kv_cache_profiler import product as products
from gqa_lab.checks.kv_cache_profiler.product import meets, near_one, numbers_for, right
from gqa_lab.checks.verdict import Verdict
from gqa_lab.config import divisors

TABLES = {  # what the published comparisons of lesson 07 say about fewer KV heads
    "gqa-1": ("for", "Ainslie et al. 2023, Table 1: T5-XXL with 8 of 64 KV heads 47.1, MHA 47.2"),
    "llama2-18": (
        "for",
        "Touvron et al. 2023, Table 18: 30B from scratch, mean of 11 tasks with 8 KV heads 44.28, MHA 44.16",
    ),
    "gemma2-8": ("for", "Gemma Team 2024, Table 8: 9B, GQA 50.8, MHA 50.3"),
    "deepseek2-8": ("against", "DeepSeek-AI 2024, Table 8: 7B, MMLU with 8 KV heads 41.2, MHA 45.2"),
    "shazeer-3": ("against", "Shazeer 2019, Table 3: perplexity of a language model, MQA 30.2, MHA 29.9"),
    "deepseek2-9": ("neither", "DeepSeek-AI 2024, Table 9: MLA against MHA"),
    "shazeer-2": ("neither", "Shazeer 2019, Table 2: microseconds per token, MQA 3.8, MHA 46"),
}
_NUMBERS = (
    "bytes_per_token",
    "chat_gb",
    "chats",
    "ms_per_token",
    "crossover_tokens",
    "first_token_speedup",
    "cost_per_million",
)
_CHOSEN = ("n_kv_heads", "bytes_per_element", "price_per_hour")
_TEXTS = ("not_measured", "test_to_run", "stop_rule")
_KEYS = (*_CHOSEN, *_NUMBERS, "table_for", "table_against", *_TEXTS[:2], "signals_help", "signals_harm", _TEXTS[2])
_PARTS = "what you watch", "threshold with a number", "what you do then"
_WORDS = (
    "zero two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million dozen half third "
    "quarter twice"
).split()
_UNITS = (  # after these words "one" is a number; in "no one" and "one would like" it is none
    "percent point ms millisecond second minute hour day week month byte token step run seed test fact question "
    "answer chat agent jump spike crash error failure"
).split()
_NUMBER = rf"\d|\b({'|'.join(_WORDS)})\b|(?<!no )\bone (in|(\w+ )?({'|'.join(_UNITS)}))\b"


@dataclass(frozen=True)
class Review:
    """One page that decides. What follows from the choice is checked, and that every part of the page is there."""

    id: str
    level: str
    notice: str

    def draw(self, seed: int) -> dict:
        """Returns the product to decide on."""
        return products.draw(seed)

    @property
    def mistakes(self) -> tuple[Mistake, ...]:
        """Whole answers to the first product: one number or one part of the page wrong."""
        product, found = products.draw(0), []
        for g in divisors(product["n_heads"]):
            chosen = {"n_kv_heads": g, "bytes_per_element": 2, "price_per_hour": 4.0}
            found += [
                Mistake(f"G = {g}: {m.name}", example(product, g) | {m.name: m.wrong}, f"`{m.name}`: ")
                for m in products.mistakes(product | chosen)
            ]
        good = example(product, 4)
        for name, (side, _) in TABLES.items():
            for key, wanted in (("table_for", "for"), ("table_against", "against")):
                if side != wanted:
                    found.append(Mistake(f"{key}: {name}", good | {key: name}, _about_table(key, name)))
        return tuple(found)

    def judge(self, answer: object, seed: int = 0) -> Verdict:
        """Returns the verdict on a dict: the choice, its numbers, two tables, signals and a rule to stop."""
        if answer is None or answer is ... or answer == {}:
            return not_attempted(self.id, list(_KEYS))
        if not isinstance(answer, dict):
            return Verdict("failed", f"Hand over a dict with the keys {listed(_KEYS)}.", self.id)
        if missing := [key for key in _KEYS if _is_blank(answer.get(key))]:
            return not_attempted(self.id, missing)
        try:
            given = {key: plain(answer[key]) for key in _KEYS}
        except TypeError as error:
            return Verdict("failed", str(error), self.id)
        product = products.draw(seed)
        if problem := _no_choice(product, given):
            return Verdict("failed", problem, self.id)
        chosen = {key: given[key] for key in _CHOSEN}
        numbers = {key: given[key] for key in _NUMBERS}
        if near_one(numbers["first_token_speedup"]):
            numbers["first_token_speedup"] = 1.0
        verdict = numbers_for(product, chosen).judge(numbers)
        missed = _missed(product, chosen)
        problems = ([] if verdict else [verdict.message]) + _page_problems(given)
        if problems or missed:
            good = [f"Numbers right. {missed}".rstrip()] if verdict else []
            return Verdict("failed", "\n".join(problems + good), self.id)
        return Verdict("passed", f"{_reply(product, chosen)} {_reminders(given)}{self.notice}", self.id)


def _is_blank(value: object) -> bool:
    """True for what is not written yet; a list or triple that holds an empty place is not, either."""
    if value is None or value is ... or (isinstance(value, str) and not value.strip()):
        return True
    if type(value) in (list, tuple):
        return not value or any(map(_is_blank, value))
    return has_blanks(value)


def _no_choice(product: dict, given: dict) -> str:
    heads = divisors(product["n_heads"])
    if type(given["n_kv_heads"]) is not int or given["n_kv_heads"] not in heads:
        return f"`n_kv_heads`: choose a number that divides {product['n_heads']}: {', '.join(map(str, heads))}."
    if type(given["bytes_per_element"]) is not int or given["bytes_per_element"] not in (1, 2):
        return "`bytes_per_element`: 2 for a 16-bit cache, 1 for an 8-bit one."
    price = given["price_per_hour"]
    if type(price) not in (int, float) or not 0 < price < 1e6:
        return "`price_per_hour`: what you pay for this card in an hour, a number above 0."
    return ""


def _page_problems(given: dict) -> list[str]:
    problems = [_about_table(key, given[key]) for key in ("table_for", "table_against")]
    problems += [_about_signals("signals_help", given["signals_help"], 3)]
    problems += [_about_signals("signals_harm", given["signals_harm"], 2)]
    watched = [_watched(signal) for key in ("signals_help", "signals_harm") for signal in _listed_signals(given[key])]
    if len(set(watched)) < len(watched):
        problems.append("`signals_help` and `signals_harm`: one signal stands there twice. Watch different things.")
    for key in _TEXTS:
        if not isinstance(given[key], str) or len(given[key].split()) < 4:
            what = "too short to act on" if isinstance(given[key], str) else "no text"
            problems.append(f"`{key}`: {what}; write a sentence.")
    if isinstance(given["stop_rule"], str) and not _has_number(given["stop_rule"]):
        problems.append("`stop_rule`: at which number do you stop? A rule without one stops nobody.")
    return list(filter(None, problems))


def _about_table(key: str, name: object) -> str:
    if not isinstance(name, str) or name not in TABLES:
        return f"`{key}`: take one of {', '.join(TABLES)}."
    side, text = TABLES[name]
    wanted = key.removeprefix("table_")
    if side == wanted:
        return ""
    if side == "neither":
        return f"`{key}`: {text}. It does not compare the quality of MHA with that of fewer KV heads."
    return f"`{key}`: {text}. That speaks {side} fewer KV heads."


def _listed_signals(value: object) -> list:
    return [signal for signal in value if isinstance(signal, list)] if isinstance(value, list) else []


def _watched(signal: list) -> str:
    return " ".join(str(signal[0]).lower().split()) if signal else ""


def _about_signals(key: str, value: object, n_wanted: int) -> str:
    if not isinstance(value, list) or not all(isinstance(signal, list) for signal in value):
        return f"`{key}`: write a list of triples, each {_PARTS}."
    for number, signal in enumerate(value, start=1):
        if len(signal) != 3:
            return f"`{key}`: signal {number} is no triple, {_PARTS}."
        for part, value_of_part in zip(_PARTS, signal, strict=True):
            if not isinstance(value_of_part, str):
                return f"`{key}`: signal {number}: {value_of_part!r} is no text; write {part!r} in quotes."
        if not _has_number(signal[1]):
            return f"`{key}`: signal {number} has the threshold {signal[1]!r}. A threshold is a number with its unit."
        if not re.search(r"\w{3}", signal[2]):
            return f"`{key}`: signal {number}: and what do you do then?"
    if len(value) < n_wanted:
        return f"`{key}`: {len(value)} of at least {n_wanted}."
    return ""


def _has_number(text: str) -> bool:
    """True if a number stands there, in figures or words; the name p90 and a date to look again are none."""
    return bool(re.search(_NUMBER, re.sub(r"\bp\d+\b|\b(in|by|until) 20[23]\d\b", "", text.lower())))


def _missed(product: dict, chosen: dict) -> str:
    """Says what a choice does not meet; empty where it meets the product."""
    numbers, agents = right(product | chosen), product["agents_at_once"]
    chats, ms, wanted = numbers["chats"], numbers["ms_per_token"], product["ms_per_token_wanted"]
    short = [f"{chats or 'no'} chat{'' if chats == 1 else 's'} of {agents} fit"] if chats < agents else []
    slow = [f"{ms:.3g} ms instead of {wanted}"] if ms > wanted else []
    return f"But the choice does not meet the product: {' and '.join(short + slow)}." if short or slow else ""


def _reply(product: dict, chosen: dict) -> str:
    """Says what the numbers of a choice mean that meets the product."""
    numbers, size = right(product | chosen), chosen["bytes_per_element"]
    most = max(g for g in divisors(product["n_heads"]) if meets(product, g, size))
    at = f"at {size} byte{'s' if size > 1 else ''} an element"
    is_most = most == chosen["n_kv_heads"]
    room = f"No more KV heads would meet it {at}." if is_most else f"{most} KV heads would meet it, too: why fewer?"
    small = " What does a one-byte cache cost? Measure it." if size == 1 else ""
    fit = f"{numbers['chats']} chats fit, a step takes {numbers['ms_per_token']:.3g} ms."
    return f"Numbers right, and the page is whole. {fit} {room}{small}"


def _reminders(given: dict) -> str:
    """Returns what a page usually names and this one does not; no reason to fail it."""
    test = given["test_to_run"].lower()
    missing = [
        text
        for words, text in (
            (("seed", "repeat", "run"), "how many seeds"),
            (("long", "recall", "fact", "90", "60", "100"), "a recall of facts from far back"),
        )
        if not any(word in test for word in words)
    ]
    return f"Your test does not say {' or '.join(missing)}. " if missing else ""


def example(product: dict, n_kv_heads: int) -> dict:
    """Returns a whole page for a choice."""
    chosen = {"n_kv_heads": n_kv_heads, "bytes_per_element": 2, "price_per_hour": 4.0}
    return chosen | right(product | chosen) | {
        "table_for": "llama2-18",
        "table_against": "deepseek2-8",
        "not_measured": "recall over 60,000 tokens, on our own documents",
        "test_to_run": "100 facts from the start of long chats, three seeds, against MHA",
        "signals_help": [
            ("agents at once on one card", "at least 14", "keep it"),
            ("ms per token, 90th percentile", "at most 40 ms", "keep it"),
            ("cache bytes read over bytes used", "at most 1.1", "keep it"),
        ],
        "signals_harm": [
            ("facts found at 60,000 tokens", "more than 2 of 100 below MHA", "go back to 6 KV heads, one-byte cache"),
            ("loss jumps in fine-tuning", "more than 1 in 1,000 steps", "stop and rerun with more KV heads"),
        ],
        "stop_rule": "if two weeks of training do not bring recall within 2 of 100, the change is dropped",
    }  # fmt: skip


REVIEW = Review(
    id="10.review",
    level="decide ●●● 25 min, core",
    notice="Notice: the check read your numbers, and that every part is there. Now give yourself 0 to 3 for each line "
    "of the rubric, or better, let a colleague do it.",
)
