"""Lesson 01, beyond the values of the cases: large scores, other axes, what is printed, and the notebook's own code."""

import re
from pathlib import Path

import nbformat
import numpy as np
import pytest

from gqa_lab.checks import check, sandbox
from gqa_lab.checks.engine import EXERCISES

ROOT = Path(__file__).resolve().parent.parent
AXIS, SATURATION = EXERCISES["01.axis"], EXERCISES["01.saturation"]


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def head(change=lambda scores: scores, hidden=-np.inf, weigh=softmax):
    """Returns a head that changes its scores, or hides keys with another number."""
    return lambda q, k, v, mask: weigh(np.where(mask, change(q @ k.T / q.shape[1] ** 0.5), hidden)) @ v


def refusing(scores):
    if np.abs(scores).max() > 100:
        raise OverflowError("too large for me")
    return scores


def endless(scores):
    while np.abs(scores).max() > 100:
        pass
    return scores


def by_exponentials(x):
    with np.errstate(all="ignore"):
        return np.exp(x) / np.exp(x).sum(-1, keepdims=True)


def masked_and_divided_again(q, k, v, mask):
    """Right on paper: the weights of hidden keys are removed and the others divided anew."""
    weights = softmax(q @ k.T / q.shape[1] ** 0.5) * mask
    with np.errstate(all="ignore"):
        return weights / weights.sum(-1, keepdims=True) @ v


def test_a_head_that_hides_with_a_very_low_number_passes():
    assert check("01.attention", head(hidden=-1e9))
    assert check("01.attention", head(hidden=-1e30))


@pytest.mark.parametrize(
    "function, part",
    [
        (head(lambda x: np.clip(x, -50, 50)), "is no score cut off?"),
        (head(hidden=-100.0), "a hidden score far below every other"),
        (head(weigh=by_exponentials), "it holds NaN: is softmax stable"),
        (masked_and_divided_again, "its maximum one of keys that are seen"),
        (head(refusing), "too large for me"),
        (head(endless), "still running"),
    ],
)
def test_a_head_that_is_right_only_for_usual_scores_is_told_so(function, part, monkeypatch):
    monkeypatch.setattr(sandbox, "DEADLINE_S", 2.0)
    verdict = check("01.attention", function)
    assert verdict.status == "failed" and part in verdict.message and "usual size" in verdict.message, verdict


def only_tables(x):
    if x.ndim != 2:
        raise RuntimeError("a table, please")
    return softmax(x)


@pytest.mark.parametrize(
    "function, part", [(only_tables, "a table, please"), (lambda x: softmax(x) if x.ndim == 2 else None, "[2, 3, 4]")]
)
def test_a_softmax_that_knows_tables_only_is_told_why_it_fails(function, part):
    verdict = check("01.softmax", function)
    assert verdict.status == "failed" and part in verdict.message and "last axis" in verdict.message


def test_what_a_student_prints_stays_inside_the_verdict(capsys):
    def talking(x):
        print("debug")
        return softmax(x)

    assert "debug" in check("01.softmax", talking).message
    assert check("01.attention", lambda q, k, v, mask: head(lambda x: print("debug") or x)(q, k, v, mask))
    assert capsys.readouterr().out == ""


def test_a_function_of_plain_numbers_is_not_called_again_for_an_order_in_memory():
    calls = []

    def counted(head_dim, scale):
        calls.append(head_dim)
        rng = np.random.default_rng(0)
        q, k = rng.standard_normal((1000, head_dim)), rng.standard_normal((64, head_dim))
        return softmax(q @ k.T / (head_dim**0.5 if scale else 1.0)).max(-1).mean()

    assert check("01.saturation", counted)
    assert len(calls) == len(SATURATION.cases(0)) + len(SATURATION.cases(1))


def test_the_wrong_function_in_the_notebook_is_the_one_that_the_check_runs():
    notebook = nbformat.read(ROOT / "solutions" / "01_attention.ipynb", as_version=4)
    source = next(cell.source for cell in notebook.cells if cell.id == "axis-wrong")
    space = {"np": np}
    exec(source, space)
    printed = space[re.search(r"def (\w+)", source)[1]]
    rng = np.random.default_rng(1)
    for shape in ((2, 3), (4, 4), (5, 3)):
        s = rng.standard_normal(shape)
        assert np.allclose(printed(s), AXIS.wrong(s)) and not np.allclose(printed(s), AXIS.right(s))
        assert np.allclose(AXIS.right(s), softmax(s))
    [numbered] = [line for line in source.splitlines() if line.endswith(f"# {AXIS.line}")]
    exec(source.replace(numbered, numbered.replace("axis=0", "axis=1")), space)
    assert np.allclose(space[printed.__name__](s), AXIS.right(s))  # this line, and no other, has to be changed
