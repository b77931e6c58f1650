"""Ten questions that find the lesson to start with: a route, never a lock, and no marks."""

from dataclasses import dataclass

from gqa_lab.checks.verdict import Page, Verdict

LESSONS = {1: "01 attention", 3: "03 kv_cache", 5: "05 grouped_query", 6: "06 what_it_costs"}
UNANSWERED = "-"


@dataclass(frozen=True)
class Question:
    """One question, its options a, b, c, … in order, and the letter of the right one."""

    text: str
    options: tuple[str, ...]
    right: str


QUESTIONS = (
    Question(
        "Scores stand in a table: a row for each query, a column for each key. What does softmax make sum to 1?",
        (
            "each column: all the attention that one key receives from the queries",
            "each row: what one query gives to all keys",
            "the whole table",
        ),
        "b",
    ),
    Question(
        "What is the factor 1/√head_dim for?",
        (
            "it makes the weights of each query sum to 1, so that the result is an average",
            "it keeps later tokens from being seen",
            "it keeps scores from growing with head_dim and one key from taking all",
            "it makes the result as long as the values",
        ),
        "c",
    ),
    Question(
        "q_proj gives 32 numbers per token: 8 heads of head_dim 4. Which of them belong to head 3? (All "
        "counts from 0.)",
        ("12, 13, 14, 15", "3, 11, 19, 27", "8, 9, 10, 11", "3, 4, 5, 6"),
        "a",
    ),
    Question(
        "A model has a KV cache and makes token 1,000. What does the cache save it?",
        (
            "looking at the 999 earlier tokens at all: what attention made of them is kept",
            "projecting the 999 earlier tokens; their keys and values are still read",
            "reading their keys and values; only their projections have to be made again",
            "memory: without a cache it would have to hold more",
        ),
        "b",
    ),
    Question(
        "Two new tokens arrive and five can be seen, the new ones included. Which keys may each look at? "
        "(1 = may look)",
        ("10000 and 11000", "11111 and 11111", "00010 and 00011", "11110 and 11111"),
        "d",
    ),
    Question(
        "8 query heads share 2 KV heads. Which KV head does query head 6 read? (All counts from 0.)",
        ("0", "3", "1", "2"),
        "c",
    ),
    Question(
        "24 layers, d_model 1,024, 16 query heads, 4 KV heads, head_dim 64, 2 bytes a number. KV cache "
        "bytes per token?",
        ("12,288", "24,576", "98,304", "1,024"),
        "b",
    ),
    Question(
        "A model's KV cache becomes 4 times smaller. At a short context, why is a token not made 4 times faster?",
        (
            "each step still reads all the weights, and these outweigh the cache",
            "the KV heads that were removed have to be computed again",
            "as many bytes are read as before: each query head reads a copy of its own",
            "softmax takes most of the time, and there are as many scores as before",
        ),
        "a",
    ),
    Question(
        "A model with 4 times fewer KV heads reads a long prompt. What happens to the time to its first token?",
        (
            "it falls to a quarter, as the cache does",
            "it falls to about a half",
            "it grows, because query heads that share keys have to wait for each other",
            "it falls by a few percent: nearly all the arithmetic stays",
        ),
        "d",
    ),
    Question(
        "In a trained model, groups of KV heads are averaged into one, and nothing is trained "
        "afterwards. Its text becomes",
        (
            "practically the same, because the heads of a group hold nearly the same keys and values",
            "a little worse, by about 5%",
            "useless: those heads have little in common, so training has to follow",
            "the same, only faster",
        ),
        "c",
    ),
)


def placement_questions() -> Page:
    """Returns the ten questions, to read."""
    return page(QUESTIONS)


def page(questions: tuple[Question, ...]) -> Page:
    """Returns questions, to read."""
    blocks = []
    for number, question in enumerate(questions, start=1):
        options = [f"   {letter}) {text}" for letter, text in zip("abcd", question.options, strict=False)]
        blocks.append("\n".join([f"{number}. {question.text}", *options]))
    return Page("\n\n".join(blocks))


def placement(answers: object) -> Verdict:
    """Returns which of your answers are right and the lesson to start with.

    Args:
        answers: ten letters in the order of the questions, `-` for "I don't know"; None for not yet.
    """
    right = right_numbers(answers, QUESTIONS)
    if isinstance(right, str):
        return Verdict("not attempted", right, "placement")
    wrong = set(range(1, len(QUESTIONS) + 1)) - right
    marks = f"Right: {listed_numbers(right)}. Not yet: {listed_numbers(wrong)}."
    return Verdict("recorded", f"{marks}\n{_door(right)} Every other lesson stays open to you.", "placement")


def right_numbers(answers: object, questions: tuple[Question, ...]) -> set[int] | str:
    """Returns the numbers of the questions answered right, or a sentence on why the answers cannot be read."""
    if not isinstance(answers, str):
        return f'Write ten letters in a row, one per question, and {UNANSWERED} where you don\'t know: "ab-c…".'
    letters = "".join(answers.lower().replace(",", " ").split())
    if len(letters) != len(questions):
        return (
            f"That is {len(letters)} letters; there are {len(questions)} questions. Write {UNANSWERED} "
            f"for “don’t know”."
        )
    for number, (letter, question) in enumerate(zip(letters, questions, strict=True), start=1):
        options = "abcd"[: len(question.options)]
        if letter not in options + UNANSWERED:
            return f"Question {number} has the options {', '.join(options)} and {UNANSWERED}; you wrote “{letter}”."
    return {n for n, (letter, q) in enumerate(zip(letters, questions, strict=True), start=1) if letter == q.right}


def _door(right: set[int]) -> str:
    if not right:
        return f"Start with lesson {LESSONS[1]}: it begins at the beginning."
    if not right >= {1, 2, 3}:
        return f"Start with lesson {LESSONS[1]}: it builds what questions 1 to 3 ask."
    if not right >= {4, 5}:
        return f"Start with lesson {LESSONS[3]}: you know attention, and what a model keeps comes next."
    if not right >= {6, 7}:
        return f"Start with lesson {LESSONS[5]}: you know attention and caching."
    return f"Start with lesson {LESSONS[6]}: you know how it works; now what it costs."


def listed_numbers(numbers: set[int]) -> str:
    """Returns them for a sentence: 1, 4, 7."""
    return ", ".join(map(str, sorted(numbers))) or "none"
