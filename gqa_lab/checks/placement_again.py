"""The ten questions of lesson 00 once more, with other numbers, at the end of the course. Still no marks."""

from gqa_lab.checks.placement import QUESTIONS, Question, listed_numbers, page, right_numbers
from gqa_lab.checks.verdict import Page, Verdict

LESSONS = {
    1: "01 attention",
    2: "01 attention",
    3: "02 multi_head",
    4: "03 kv_cache",
    5: "03 kv_cache",
    6: "05 grouped_query",
    7: "06 what_it_costs",
    8: "06 what_it_costs",
    9: "06 what_it_costs",
    10: "07 quality",
}
QUESTIONS_AGAIN = (
    Question(
        "Scores of shape [2 sequences, 4 heads, 3 queries, 7 keys] go through softmax. How many sums become 1?",
        ("56", "8", "24", "1"),
        "c",
    ),
    Question(
        "Entries of q and k are drawn from N(0, 1), head_dim grows from 64 to 256, and nobody scales. The spread of "
        "the scores",
        (
            "doubles, and one key takes more of the weight",
            "grows four times, and one key takes more of the weight",
            "stays, because softmax makes the weights sum to 1 in any case",
            "halves, and the weights become more even",
        ),
        "a",
    ),
    Question(
        "q_proj gives 30 numbers per token: 5 heads of head_dim 6. Which of them belong to head 2? (All counts "
        "from 0.)",
        ("10, 11, 12, 13, 14", "2, 7, 12, 17, 22, 27", "6, 7, 8, 9, 10, 11", "12, 13, 14, 15, 16, 17"),
        "d",
    ),
    Question(
        "A model with a KV cache makes one token while it sees 5,000, the new one included. In each layer, how many "
        "tokens go through k_proj, and how many keys does a query head read?",
        ("5,000 and 5,000", "1 and 5,000", "1 and 1", "5,000 and 1"),
        "b",
    ),
    Question(
        "Three new tokens arrive and six can be seen, the new ones included. Which keys may each look at? "
        "(1 = may look)",
        (
            "100000, 110000 and 111000",
            "111111, 111111 and 111111",
            "111100, 111110 and 111111",
            "000100, 000110 and 000111",
        ),
        "c",
    ),
    Question(
        "12 query heads share 4 KV heads. Which KV head does query head 7 read? (All counts from 0.)",
        ("2", "3", "1", "0"),
        "a",
    ),
    Question(
        "48 layers, d_model 3,072, 24 query heads, 6 KV heads, head_dim 112, 2 bytes a number. KV cache "
        "bytes per token?",
        ("64,512", "516,096", "147,456", "129,024"),
        "d",
    ),
    Question(
        "A step reads 15 GB of weights and 3 GB of cache. The cache becomes 4 times smaller. The step becomes "
        "faster by a factor of at most",
        ("4", "1.14", "1.2", "2"),
        "b",
    ),
    Question(
        "A model reads a prompt of 8,192 tokens in 1.00 s (the shape of Llama-3.1-8B, but 32 KV heads). With 8 KV "
        "heads, nothing else changed, it takes about",
        ("0.25 s", "0.50 s", "0.91 s", "1.09 s"),
        "c",
    ),
    Question(
        "SmolLM2's cross-entropy on a text is 2.8 (a blind guess has 10.8). Its three KV heads are averaged into one, "
        "and nothing is trained. It becomes",
        ("2.8, because the heads hold nearly the same", "2.9, about 5% worse", "4.2, three heads in one", "about 10"),
        "d",
    ),
)


def questions_again() -> Page:
    """Returns the ten questions with other numbers, to read."""
    return page(QUESTIONS_AGAIN)


def placement_again(answers: object, before: str | None = None) -> Verdict:
    """Returns which of your answers are right, the lesson of each that is not, and what is new since lesson 00.

    Args:
        answers: ten letters in the order of the questions, `-` for "I don't know"; None for not yet.
        before: the ten letters that you wrote in lesson 00, if you have them.
    """
    right = right_numbers(answers, QUESTIONS_AGAIN)
    if isinstance(right, str):
        return Verdict("not attempted", right, "ten questions again")
    wrong = sorted(set(LESSONS) - right)
    text = f"Right: {listed_numbers(right)}."
    if wrong:
        text += " Not yet: " + ", ".join(f"{n} (lesson {LESSONS[n]})" for n in wrong) + "."
    if before is not None:
        earlier = right_numbers(before, QUESTIONS)
        if isinstance(earlier, str):
            return Verdict("not attempted", f"Of lesson 00: {earlier}", "ten questions again")
        text += f"\nNew since lesson 00: {listed_numbers(right - earlier)}."
    if not wrong:
        text += "\nAll ten. What you can do now is read somebody else's profile and say what you would change."
    return Verdict("recorded", text, "ten questions again")
