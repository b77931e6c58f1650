"""10.triage: eight symptoms after a launch, the first cheap test of each, and where the next change belongs."""

from dataclasses import dataclass

from gqa_lab.checks.answers import Mistake, has_blanks, listed, not_attempted, plain
from gqa_lab.checks.verdict import Page, Verdict

PLACES = {
    "model": "its weights and config: n_kv_heads, a window, training",
    "serving": "the program that runs it: cache layout and dtype, kernels, GPUs",
    "retrieval": "what is looked up and put into the context, and how much of it",
    "workflow": "how turns are built: what is sent again, and what is kept",
    "data": "what the model was trained on, or the documents themselves",
}
TESTS = {
    "time": "time a token at 1,000 and at 8,000 tokens",
    "count": "count the tokens that are read before each first token",
    "bytes": "read the profile: predicted, allocated, used, read",
    "short": "ask the same question in a short context",
    "three": "send only the three best passages",
    "degree": "compare n_kv_heads with the number of GPUs that share the model",
    "rerun": "run the same training with 4 KV heads",
}


@dataclass(frozen=True)
class Card:
    """A symptom, the test that is cheapest, the places where a change may belong, and what every other place is told.

    Attributes:
        look: what to tell who chose another test.
    """

    symptom: str
    test: str
    look: str
    places: tuple[str, ...]
    wrong: dict[str, str]


CARDS = {
    "a": Card(
        "A token takes 20 ms at the start of a chat and 60 ms at its end. The answers are good.",
        "time",
        "What is the difference between start and end? Measure that, and nothing else.",
        ("model", "serving"),
        {
            "retrieval": "Retrieval decides which tokens come in. How many bytes each leaves is decided elsewhere.",
            "workflow": "A shorter chat hides the slope. It is the bytes per token that make it.",
            "data": "Other data change what is said, not how many bytes a token leaves.",
        },
    ),
    "b": Card(
        "An agent's first token comes late after every tool call, the later ones come fast.",
        "count",
        "The first token waits for everything that has to be read before it. How much is that?",
        ("workflow", "serving"),
        {
            "model": "Fewer KV heads? Prefill is compute-bound: nearly all of its arithmetic would stay.",
            "retrieval": "The tool's answer is new and has to be read. What else is read again at each call?",
            "data": "The words are right. They are read too often.",
        },
    ),
    "c": Card(
        "The cache on the GPU takes group_size times the predicted bytes.",
        "bytes",
        "Which of the four numbers is wrong, and from which one on?",
        ("serving",),
        {
            "model": "The prediction was made of the config. Who stores each KV head once for every query head?",
            "retrieval": "As many tokens as were predicted. Each of them takes too much room.",
            "workflow": "As many tokens as were predicted. Each of them takes too much room.",
            "data": "Bytes per token do not depend on what the tokens say.",
        },
    ),
    "d": Card(
        "After 90,000 tokens (full cache, 16 bits, no window) a fact from the start of the chat is lost; in a chat of "
        "2,000 tokens it is found.",
        "short",
        "Length is under suspicion. Keep everything else and change the length.",
        ("model", "retrieval"),
        {
            "serving": "A full 16-bit cache keeps every key. The program computes what it was given; the model does "
            "not find it.",
            "workflow": "The fact is in the context. What turns send is not what fails.",
            "data": "In a short chat the fact is found, so the document that states it is in order.",
        },
    ),
    "e": Card(
        "A fact from the handbook is answered wrongly after 90,000 tokens, and after 2,000 as well.",
        "short",
        "Is it the length at all? Keep the question and take the length away.",
        ("retrieval", "data"),
        {
            "model": "More KV heads? A short context is lost, too: sharing is not the cause.",
            "serving": "It is wrong with a small cache and with a large one. Is the fact in the context at all?",
            "workflow": "Long turns or short ones, it is wrong. Is the fact in the context at all?",
        },
    ),
    "f": Card(
        "Forty passages are looked up for each question, most of them beside the point, and the answers drift.",
        "three",
        "Which single change takes the noise away and costs nothing?",
        ("retrieval",),
        {
            "model": "A better memory would keep the noise better, too. Send less of it.",
            "serving": "Any program has to read what is sent. Send less of it.",
            "workflow": "Not how turns are built: which passages are chosen, and how many.",
            "data": "The documents may be good. Who chose forty of them?",
        },
    ),
    "g": Card(
        "A model with 8 KV heads is shared by 16 GPUs instead of 8, and the cache on each GPU stays as it was.",
        "degree",
        "Two numbers of this card decide it. Which one is larger?",
        ("serving",),
        {
            "model": "8 KV heads go well with 8 GPUs. Before the model changes: 16 GPUs can be two copies of 8.",
            "retrieval": "The tokens are the same. Each KV head stands on two GPUs.",
            "workflow": "The tokens are the same. Each KV head stands on two GPUs.",
            "data": "Bytes per token do not depend on what the tokens say.",
        },
    ),
    "h": Card(
        "A model was cut from 8 KV heads to one. In fine-tuning on long inputs its loss jumps up again and again.",
        "rerun",
        "One thing was changed before the jumps. Change that one, and keep the rest.",
        ("model",),
        {
            "serving": "It happens in training; nothing is served yet.",
            "retrieval": "It happens in training, where nothing is looked up.",
            "workflow": "It happens in training, before there are turns.",
            "data": "The same data are the control: with 4 KV heads, does the loss jump on them?",
        },
    ),
}  # fmt: skip


def triage_cards() -> Page:
    """Returns the eight cards, the tests and the places, to read."""
    lines = [f"{letter}. {card.symptom}" for letter, card in CARDS.items()]
    lines += ["", "First tests:"] + [f'  "{name}": {text}' for name, text in TESTS.items()]
    lines += ["", "Places:"] + [f'  "{name}": {text}' for name, text in PLACES.items()]
    return Page("\n".join(lines))


@dataclass(frozen=True)
class Triage:
    """A test and a place for every card."""

    id: str
    level: str
    notice: str

    @property
    def right(self) -> dict[str, tuple[str, str]]:
        """One right answer; some cards have two places."""
        return {letter: (card.test, card.places[0]) for letter, card in CARDS.items()}

    @property
    def mistakes(self) -> tuple[Mistake, ...]:
        """Whole answers: one card with a wrong place, or with another test."""
        found = []
        for letter, card in CARDS.items():
            for place, text in card.wrong.items():
                answer = self.right | {letter: (card.test, place)}
                found.append(Mistake(f"{letter}: {place}", answer, f"`{letter}`: {text}"))
            for test in TESTS.keys() - {card.test}:
                answer = self.right | {letter: (test, card.places[0])}
                found.append(Mistake(f"{letter}: {test}", answer, f"`{letter}`: {_other_test(card, test)}"))
        return tuple(sorted(found, key=lambda m: m.name))

    def judge(self, answer: object, seed: int = 0) -> Verdict:
        """Returns the verdict on a dict of pairs (test, place)."""
        if answer is None or answer is ... or answer == {}:
            return not_attempted(self.id, list(CARDS))
        if not isinstance(answer, dict):
            text = f"Hand over a dict with the keys {listed(CARDS)}, each with a pair (test, place)."
            return Verdict("failed", text, self.id)
        if missing := [letter for letter in CARDS if _is_blank(answer.get(letter))]:
            return not_attempted(self.id, missing)
        try:
            given = {letter: plain(answer[letter]) for letter in CARDS}
        except TypeError as error:
            return Verdict("failed", str(error), self.id)
        wrong = {letter: text for letter in CARDS if (text := _about(letter, given[letter]))}
        if not wrong:
            return Verdict("passed", f"All eight cards are placed, each with its cheapest test. {self.notice}", self.id)
        lines = [f"`{letter}`: {text}" for letter, text in wrong.items()]
        if good := [letter for letter in CARDS if letter not in wrong]:
            lines.append(f"Right: {listed(good)}.")
        return Verdict("failed", "\n".join(lines), self.id)


def _is_blank(value: object) -> bool:
    return value is None or has_blanks(value) or (type(value) in (list, tuple) and (None in value or not value))


def _about(letter: str, value: object) -> str:
    """Returns what is wrong with the answer to a card; empty if nothing is."""
    card = CARDS[letter]
    if not isinstance(value, list) or len(value) != 2 or not all(isinstance(word, str) for word in value):
        return 'write a pair of words, as ("time", "model").'
    test, place = (word.strip().lower() for word in value)
    if test not in TESTS:
        turned = " First the test, then the place." if test in PLACES and place in TESTS else ""
        return f"there is no test {test!r}.{turned} Take one of {', '.join(TESTS)}."
    if place not in PLACES:
        return f"there is no place {place!r}. Take one of {', '.join(PLACES)}."
    about_place = "" if place in card.places else card.wrong[place]
    return " ".join(filter(None, [about_place, "" if test == card.test else _other_test(card, test)]))


def _other_test(card: Card, test: str) -> str:
    return f'"{test}" does not tell here, or costs more than another. {card.look}'


TRIAGE = Triage(
    id="10.triage",
    level="decide ●●○ 10 min, further",
    notice="Notice: `n_kv_heads` of the model may be what to change in a, d and h, and only in h it is the first "
    "suspect. Measure, then change one thing.",
)
