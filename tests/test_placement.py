"""Ten questions open one of four doors, say what was right, and never give a right letter away."""

import itertools
import re

import pytest

from gqa_lab.checks import placement, placement_again, placement_questions, questions_again
from gqa_lab.checks.placement import LESSONS, QUESTIONS
from gqa_lab.checks.placement_again import QUESTIONS_AGAIN
from gqa_lab.costs import SHAPES, prefill_flops, with_kv_heads
from gqa_lab.recorded import recorded
from gqa_lab.reference import visible_keys

RIGHT, RIGHT_AGAIN = ("".join(q.right for q in questions) for questions in (QUESTIONS, QUESTIONS_AGAIN))
both_times = pytest.mark.parametrize("questions", [QUESTIONS, QUESTIONS_AGAIN], ids=["first", "again"])


def answer(right: set[int]) -> str:
    return "".join(letter if n in right else "-" for n, letter in enumerate(RIGHT, start=1))


def lesson_of(verdict) -> int:
    return int(re.search(r"lesson (\d\d)", verdict.message)[1])


@both_times
def test_there_are_ten_questions_with_three_or_four_different_options(questions):
    assert len(questions) == 10
    for question in questions:
        assert 3 <= len(set(question.options)) == len(question.options) <= 4
        assert question.right in "abcd"[: len(question.options)]
    assert {[q.right for q in questions].count(letter) for letter in "abcd"} <= {2, 3}


@both_times
def test_the_right_option_is_not_known_by_its_length(questions):
    longest = sum(max(q.options, key=len) == q.options["abcd".index(q.right)] for q in questions)
    assert longest <= 4


@pytest.mark.parametrize("right", [set(x) for x in itertools.product(*[[0, n] for n in range(1, 8)])])
def test_the_first_gap_opens_the_door(right):
    right = right - {0}
    expected = 1 if not right >= {1, 2, 3} else 3 if not right >= {4, 5} else 5 if not right >= {6, 7} else 6
    assert lesson_of(placement(answer(right) if right else "a" + "-" * 9)) == expected


def test_the_last_three_questions_do_not_move_the_door():
    assert lesson_of(placement(answer(set(range(1, 8))))) == lesson_of(placement(RIGHT)) == 6
    assert set(LESSONS) == {1, 3, 5, 6}


def test_the_reply_marks_questions_without_giving_letters():
    verdict = placement(answer({1, 2, 3, 9}))
    assert verdict.status == "recorded" and not verdict
    assert "Right: 1, 2, 3, 9. Not yet: 4, 5, 6, 7, 8, 10." in verdict.message
    assert not re.search(r"\b[b-d]\)|\ba\)", verdict.message)
    assert "stays open" in verdict.message


def test_who_knows_nothing_yet_is_sent_to_the_beginning():
    verdict = placement("----------")
    assert verdict.status == "recorded" and "Start with lesson 01" in verdict.message


def test_upper_case_blanks_and_commas_are_read():
    assert placement(", ".join(RIGHT.upper())) == placement(RIGHT)


@pytest.mark.parametrize("untouched", [None, ..., 3])
def test_unanswered_is_not_attempted_and_says_how(untouched):
    verdict = placement(untouched)
    assert verdict.status == "not attempted" and "ten letters" in verdict.message


@pytest.mark.parametrize(
    "answers, part",
    [("abc", "That is 3 letters; there are 10"),
     (RIGHT + "a", "That is 11"), ("d" + RIGHT[1:], "Question 1 has"),
     (RIGHT[:4] + "?" + RIGHT[5:], "Question 5 has the options a, b, c, d and -")],
)  # fmt: skip
def test_what_cannot_be_read_is_said(answers, part):
    verdict = placement(answers)
    assert verdict.status == "not attempted" and part in verdict.message


@pytest.mark.parametrize("show, questions", [(placement_questions, QUESTIONS), (questions_again, QUESTIONS_AGAIN)])
def test_the_page_shows_all_questions_and_no_answers(show, questions):
    text = repr(show())
    assert all(q.text in text and all(o in text for o in q.options) for q in questions)
    assert len(re.findall(r"^\d+\. ", text, re.M)) == 10
    assert "right" not in text.lower() and "max-width" in show()._repr_html_()


def chosen(number: int, questions=QUESTIONS) -> str:
    question = questions[number - 1]
    return question.options["abcd".index(question.right)]


def test_the_right_options_are_what_is_computed():
    assert chosen(3) == ", ".join(str(column) for column in range(3 * 4, 4 * 4))
    rows = ["".join(str(int(s in visible_keys(t, 2, 5))) for s in range(5)) for t in range(2)]
    assert chosen(5) == " and ".join(rows)
    assert chosen(6) == str(6 // (8 // 2))
    assert chosen(7) == f"{2 * 24 * 4 * 64 * 2:,}"  # K and V, layers, KV heads, head_dim, bytes


# ---- the same ten at the end of the course -------------------------------------------------------


def chosen_again(number: int) -> str:
    return chosen(number, QUESTIONS_AGAIN)


def test_the_right_options_are_what_is_computed_again():
    assert chosen_again(1) == str(2 * 4 * 3)
    assert (256 / 64) ** 0.5 == 2 and chosen_again(2).startswith("doubles")
    assert chosen_again(3) == ", ".join(str(column) for column in range(2 * 6, 3 * 6))
    rows = ["".join(str(int(s in visible_keys(t, 3, 6))) for s in range(6)) for t in range(3)]
    assert chosen_again(5) == f"{rows[0]}, {rows[1]} and {rows[2]}"
    assert chosen_again(6) == str(7 // (12 // 4)) != str(7 % 4) and 12 // 4 != 4
    assert chosen_again(7) == f"{2 * 48 * 6 * 112 * 2:,}" and 3072 // 24 != 112
    assert chosen_again(8) == f"{(15 + 3) / (15 + 3 / 4):.2f}"
    shapes = [SHAPES["llama-3.1-8b"], with_kv_heads(SHAPES["llama-3.1-8b"], 32)]
    gqa, mha = (prefill_flops(shape, batch_size=1, q_len=8192) for shape in shapes)
    assert chosen_again(9) == f"{gqa / mha:.2f} s"
    losses = recorded("convert_smollm2")["summary"]["loss"]
    assert f" {losses['original']['A']:.1f} (" in QUESTIONS_AGAIN[9].text
    assert chosen_again(10) == f"about {losses['mean']['A']:.0f}"


def test_no_question_is_asked_twice_with_the_same_words():
    assert not {q.text for q in QUESTIONS} & {q.text for q in QUESTIONS_AGAIN} and RIGHT != RIGHT_AGAIN


def test_the_second_time_each_gap_names_its_lesson():
    verdict = placement_again("-" + RIGHT_AGAIN[1:6] + "--" + RIGHT_AGAIN[8:])
    assert verdict.status == "recorded" and not verdict
    assert "Right: 2, 3, 4, 5, 6, 9, 10." in verdict.message
    assert (
        "Not yet: 1 (lesson 01 attention), 7 (lesson 06 what_it_costs), 8 (lesson 06 what_it_costs)." in verdict.message
    )
    assert not re.search(r"\b[b-d]\)|\ba\)", verdict.message)


def test_what_is_new_since_the_first_time_is_said():
    verdict = placement_again(RIGHT_AGAIN, before=RIGHT[:3] + "-" * 7)
    assert "New since lesson 00: 4, 5, 6, 7, 8, 9, 10." in verdict.message and "All ten" in verdict.message
    assert "New since lesson 00: none." in placement_again(RIGHT_AGAIN, before=RIGHT).message


@pytest.mark.parametrize(
    "answers, before, part",
    [(None, None, "ten letters"), ("abc", None, "That is 3 letters"), (RIGHT_AGAIN, "abc", "Of lesson 00: That is 3 letters"),
     ("e" + RIGHT_AGAIN[1:], None, "Question 1 has the options a, b, c, d and -")],
)  # fmt: skip
def test_what_cannot_be_read_the_second_time_is_said(answers, before, part):
    verdict = placement_again(answers, before)
    assert verdict.status == "not attempted" and part in verdict.message
