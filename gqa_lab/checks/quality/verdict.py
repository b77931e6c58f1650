"""07.verdict: six sentences; does a published table support them, contradict them, or not test them?"""

from dataclasses import dataclass, field

from gqa_lab.checks.answers import Mistake
from gqa_lab.checks.expose import Expose

VERDICTS = ("supported", "contradicted", "not tested")
TABLES = ("gqa-1", "llama2-18", "gemma2-8", "deepseek2-8")
_NOT_THIS = "{table} does not say it. "


@dataclass(frozen=True)
class Sentence:
    """A sentence and what the tables say about it.

    Attributes:
        text: as printed in the notebook.
        verdict: one of `VERDICTS`.
        table: the one that shows it; None where none does.
        replies: for each wrong verdict.
        elsewhere: for tables that somebody might name instead.
        look: where to look when another table is named.
    """

    text: str
    verdict: str
    table: str | None
    replies: dict[str, str]
    elsewhere: dict[str, str] = field(default_factory=dict)
    look: str = ""


SENTENCES = {
    "a": Sentence(
        "T5-XXL with 8 KV heads, converted and trained on, scores within 0.1 of T5-XXL with 64, on average.",
        "supported",
        "gqa-1",
        {
            "contradicted": "Read the last column, as printed. How far apart are the two?",
            "not tested": "Which table has T5 in it? Read its last column.",
        },
        look="Which table has T5 in it?",
    ),
    "b": Sentence(
        "A 7B model trained from scratch with 8 KV heads is as good as one with MHA.",
        "contradicted",
        "deepseek2-8",
        {
            "supported": "The tables disagree. Llama 2's at 30B supports it (44.28 against 44.15, our means), "
            "and Gemma 2's at 9B does. Which one is of 7B?",
            "not tested": "Which table has models of 7B that differ in their attention? Judge by scores "
            "alone: no table here prints a spread.",
        },
        {
            "llama2-18": "That one is of 30B, and it supports it (44.28 against 44.15): the tables disagree. "
            "Which is of 7B?",
            "gemma2-8": "That one is of 9B, and it supports it (50.8 against 50.3). Which is of 7B?",
            "gqa-1": "Its model was trained with MHA and then converted, and it is no 7B.",
        },
    ),
    "c": Sentence(
        "The larger the model, the more quality MQA costs.",
        "not tested",
        None,
        {
            "supported": "Which table has two sizes of the same model, each with MHA and with MQA? Tables of "
            "different teams differ in more than size.",
            "contradicted": "One large model without loss is no trend: PaLM 540B reports a neutral effect, in words. "
            "Which table has two sizes of the same model, each with MHA and with MQA?",
        },
    ),
    "d": Sentence(
        "In the GQA paper's measurement, 8 KV heads are as fast as one.",
        "contradicted",
        "gqa-1",
        {
            "supported": "Read the column of seconds. 0.28 is how much more than 0.24? (Llama 2 found them alike on "
            "eight GPUs, where the one KV head is held in eight copies.)",
            "not tested": "One of the tables has a column of seconds.",
        },
        look="Which of the tables has a column of seconds?",
    ),
    "e": Sentence(
        "A model converted by the mean of its heads is good before it is trained on.",
        "not tested",
        None,
        {
            "supported": "Which table has a model that was converted and not trained at all? In the GQA paper even "
            "0% of uptraining is followed by fine-tuning on each task.",
            "contradicted": "SmolLM2 contradicts it in this lesson, but no published table here tests it: every model "
            "in them was trained on.",
        },
    ),
    "f": Sentence(
        "The seven tasks of MQA-XXL average 46.6.",
        "contradicted",
        "gqa-1",
        {
            "supported": "It is printed. Add the seven numbers of its own row, and divide.",
            "not tested": "The seven numbers are there: add them, and divide.",
        },
        look="Which table has seven tasks?",
    ),
}


def _read(value: object) -> tuple[str, str | None] | None:
    """Returns verdict and table as written, or None if it is no pair."""
    if type(value) is str:
        value = [value, None]
    if type(value) is not list or len(value) != 2 or type(value[0]) is not str:
        return None
    verdict, table = value
    if type(table) is not str and table is not None:
        return None
    known = {"".join(t.split("-")): t for t in TABLES}
    plain = None if table is None else table.strip().lower()
    plain = known.get("".join(c for c in plain or "" if c.isalnum()), plain)
    return " ".join(verdict.lower().replace("_", " ").split()), None if plain in ("", "none", "-") else plain


def _problem(key: str, value: object) -> str | None:
    sentence, read = SENTENCES[key], _read(value)
    if read is None:
        return f'`{key}`: give a verdict and a table, such as ("supported", "gqa-1"), or ("not tested", None).'
    verdict, table = read
    if verdict not in VERDICTS:
        return f"`{key}`: {verdict!r} is no verdict; choose one of {', '.join(VERDICTS)}."
    if verdict != sentence.verdict:
        return f"`{key}`: {sentence.replies[verdict]}"
    if sentence.table is None:
        return None
    if table is None:
        return f"`{key}`: the verdict is right. Name the table: {', '.join(TABLES)}."
    if table not in TABLES:
        return f"`{key}`: the verdict is right; {table!r} is no table here. They are {', '.join(TABLES)}."
    if table != sentence.table:
        reply = sentence.elsewhere.get(table) or _NOT_THIS.format(table=table) + sentence.look
        return f"`{key}`: the verdict is right. {reply}"
    return None


def _examine(answer: dict) -> str | None:
    problems = {key: _problem(key, answer[key]) for key in SENTENCES}
    good = [f"`{key}`" for key, problem in problems.items() if problem is None]
    lines = [problem for problem in problems.values() if problem]
    return "\n".join([*lines, f"Right: {', '.join(good)}." if good else "None is right yet."]) if lines else None


GOOD = {key: (sentence.verdict, sentence.table) for key, sentence in SENTENCES.items()}

VERDICT = Expose(
    id="07.verdict",
    level="decide ●●○ 8 min, further",
    keys=tuple(SENTENCES),
    examine=_examine,
    notice="Notice: one team saw a loss at 7B, two others none at 9B and 30B, and no table prints a spread over seeds. "
    "c and e are often said, and these tables cannot tell.",
    mistakes=(
        *(
            Mistake(f"{key} {verdict}", GOOD | {key: (verdict, sentence.table)}, f"`{key}`: {reply}")
            for key, sentence in SENTENCES.items()
            for verdict, reply in sentence.replies.items()
        ),
        *(
            Mistake(f"b by {table}", GOOD | {"b": ("contradicted", table)}, f"`b`: the verdict is right. {reply}")
            for table, reply in SENTENCES["b"].elsewhere.items()
        ),
        Mistake(
            "d by Llama 2",
            GOOD | {"d": ("contradicted", "llama2-18")},
            "`d`: the verdict is right. llama2-18 does not say it. Which of the tables has a column of seconds?",
        ),
    ),
)
