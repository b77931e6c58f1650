"""The checks never fail by themselves: whatever is handed over, the student gets a sentence."""

import html
import re
import sys
import time

import numpy as np
import pytest
import torch

from gqa_lab.checks import Verdict, case, check, engine, predict, progress, sandbox
from gqa_lab.checks.answers import Hand, Mistake, agrees, is_rounded_too_far, plain, unit_slip
from gqa_lab.checks.cases import Case, normal
from gqa_lab.checks.functions import Build


def twice(x):
    return 2 * x


BUILD = Build(
    id="99.twice",
    level="build",
    cases=lambda round_: [Case((normal((round_, n), 2, 3, 4),), {"B": 2, "H": 3, "D": 4}) for n in range(2)],
    reference=twice,
    names=("x",),
    axes="BHD",
    mistakes=(
        Mistake("three", lambda x: 3 * x, "You tripled."),
        Mistake("long", lambda x: torch.cat([x, x]), "Long."),
    ),
    tested="Tested.",
    notice="Notice.",
)


def message_of(function, status="failed", exercise=BUILD):
    verdict = exercise.judge(function)
    assert verdict.status == status, verdict
    return verdict.message


def test_a_verdict_says_the_same_in_text_and_in_html():
    verdict = Verdict("failed", "1 < 2 & so on\n  a table\n  of lines\nlast", "05.expand")
    text = html.unescape(re.sub("<[^>]*>", "\n", verdict._repr_html_()))
    assert text.split() == repr(verdict).split()
    assert "&lt;" in verdict._repr_html_() and 'role="status"' in verdict._repr_html_()
    assert "✗ failed" in repr(verdict) and not verdict and Verdict("passed", "")


def test_a_right_function_passes_and_its_prints_are_shown_shortened():
    def talks(x):
        for i in range(20):
            print("line", i)
        return x + x

    text = message_of(talks, "passed")
    assert "Tested. Notice." in text and "line 4" in text and "line 5" not in text and "15 more" in text


def test_warnings_and_stderr_do_not_reach_the_notebook(capfd):
    def noisy(x):
        import warnings

        warnings.warn("loud", stacklevel=1)
        print("to stderr", file=sys.stderr)
        return 2 * x

    assert "to stderr" in message_of(noisy, "passed")
    assert capfd.readouterr() == ("", "")


def stub(x):
    """A docstring."""
    raise NotImplementedError


def commented_stub(x):
    raise NotImplementedError("your code here")


def ellipsis(x): ...


def returns_dots(x):
    return ...


@pytest.mark.parametrize("answer", [None, ..., stub, commented_stub, ellipsis, returns_dots])
def test_what_was_left_as_it_is_counts_as_not_attempted(answer):
    message_of(answer, "not attempted")


def test_torch_saying_not_implemented_is_an_error_of_the_student():
    def unsupported(x):
        return torch.bmm(x > 0, (x > 0).mT)

    assert "NotImplementedError" in message_of(unsupported)


namespace = {}
exec("def spins(x):\n    while True: pass", namespace)  # in one line: no line events in CPython 3.11
spins = namespace["spins"]


def spins_inside_except(x):
    while True:
        try:
            x = x + 1
        except Exception:
            pass


def swallows_the_stop(x):
    try:
        while True:
            x = x + 1
    except:  # noqa: E722
        return 2 * x


@pytest.mark.parametrize("function", [spins, spins_inside_except, swallows_the_stop])
def test_a_loop_without_end_is_stopped_and_the_tracer_put_back(function, monkeypatch):
    monkeypatch.setattr(sandbox, "DEADLINE_S", 0.3)

    def tracer(frame, event, argument):
        return None

    before, start = sys.gettrace(), time.monotonic()
    sys.settrace(tracer)
    try:
        text = message_of(function)
        assert sys.gettrace() is tracer
    finally:
        sys.settrace(before)
    assert "still running" in text and time.monotonic() - start < 3
    if function is spins_inside_except:
        assert re.search(r"\(line \d+: `(while True:|try:|x = x \+ 1)`", text)


def test_exit_becomes_a_sentence_and_an_interrupt_passes_through():
    def leaves(x):
        sys.exit(1)

    def interrupted(x):
        raise KeyboardInterrupt

    assert "ended Python" in message_of(leaves)
    with pytest.raises(KeyboardInterrupt):
        BUILD.judge(interrupted)
    assert not isinstance(sys.gettrace(), sandbox._Watch)


def test_an_error_is_told_in_one_line_with_the_students_own_line():
    def broken(x):
        y = x.sum()
        return y.reshape(5, 7)

    text = message_of(broken)
    assert "RuntimeError" in text and "`return y.reshape(5, 7)`" in text and "Traceback" not in text
    assert "gqa_lab/checks" not in text


def test_another_function_that_is_not_written_or_not_run_is_named():
    def split_heads(x):
        """An exercise that was left as it is."""
        raise NotImplementedError

    def builds_on_it(x):
        return split_heads(x) + 1

    assert message_of(builds_on_it).endswith(
        "calls `split_heads`, which is not written yet. Do that first, then check again."
    )
    message_of(split_heads, "not attempted")

    def builds_on_nothing(x):
        return merge_heads(x)  # noqa: F821

    assert "If `merge_heads` belongs to an earlier cell or exercise, run that one first." in message_of(
        builds_on_nothing
    )

    def too_early(x):
        x = y + x
        y = 1
        return y

    assert "earlier cell" not in message_of(too_early)


def test_an_error_whose_text_cannot_be_made_is_still_told():
    class Silent(Exception):
        def __str__(self):
            raise ValueError

    def broken(x):
        raise Silent

    assert "Silent" in message_of(broken)


class Agreeable(torch.Tensor):
    def __eq__(self, other):
        return True


def in_place(x):
    x *= 2
    return x


def restored_in_shape_only(x):
    y = 2 * x
    x.transpose_(0, 1)
    return y


@pytest.mark.parametrize(
    "function, part",
    [
        (lambda x: None, "not attempted"),
        (lambda x: x.numpy() * 2, "ndarray"),
        (lambda x: (2 * x, x), "tuple"),
        (lambda x: (2 * x).as_subclass(Agreeable), "Agreeable"),
        (lambda x: (2 * x).to_sparse(), "it should return"),
        (lambda x: (2 * x).to("meta"), "it should return"),
        (lambda x: (2 * x).transpose(1, 2), "Axes H and D look swapped"),
        (lambda x: (2 * x).permute(2, 0, 1), "in another order"),
        (lambda x: (2 * x)[0], "2 axes instead of 3"),
        (lambda x: (2 * x).float(), "lost precision"),
        (lambda x: (2 * x).bfloat16(), "lost precision"),
        (in_place, "changed `x`"),
        (restored_in_shape_only, "changed `x`"),
        (lambda x: x / 0, "NaN or infinity"),
        (lambda x: 3 * x, "You tripled."),
        (lambda x: torch.cat([x, x]), "Long."),
        (lambda x: x, "Wrong first at batch 0, head 0. No head is right"),
        (lambda x: torch.cat([2 * x[:, :2], x[:, 2:]], 1), "batch 0, head 2. Heads 0 and 1 are right"),
        (2 * torch.ones(2), "without calling it"),
        (lambda: 1, "TypeError"),
    ],
)
def test_each_wrong_result_gets_its_own_sentence(function, part):
    verdict = BUILD.judge(function)
    assert not verdict and part in f"{verdict.status} {verdict.message}"


def test_a_function_that_is_right_only_the_first_time_fails():
    memory = {}

    def remembers(x):
        return memory.setdefault(x.shape, 2 * x)

    calls = []

    def counts(x):
        calls.append(x)
        return 2 * x if len(calls) <= 2 else x

    assert "does it remember" in message_of(lambda x: 2 * x if not calls.append(x) and len(calls) <= 2 else x)
    calls.clear()
    assert "does it remember" in message_of(counts)
    assert "failed" in repr(BUILD.judge(remembers))


def test_the_notebooks_own_defaults_do_not_matter():
    def with_defaults(x):
        two = torch.full(x.shape, 2.0)
        assert two.dtype == torch.float32 and not two.is_inference()
        x = x.clone()
        return x.mul_(two)

    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    try:
        with torch.inference_mode():
            assert BUILD.judge(with_defaults)
        assert torch.get_default_dtype() == torch.float64 and torch.ones(1).device.type == "meta"
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)


def test_callables_of_every_kind_are_accepted():
    class Doubler(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.factor = torch.nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

        def forward(self, x):
            return self.factor * x

    from functools import partial

    for function in (Doubler(), partial(torch.mul, 2), lambda x: torch.nn.Parameter(2 * x)):
        assert BUILD.judge(function)


HAND = Hand(
    id="99.hand",
    level="hand",
    draw=lambda seed: {"n": seed + 1},
    right=lambda numbers: {"bytes": numbers["n"] * 2**30, "share": 0.5, "heads": [0, 1]},
    mistakes=lambda numbers: [Mistake("heads", [1, 2], "Count from 0.")],
    look={"bytes": "Multiply.", "share": "Divide.", "heads": "List."},
    notice="Notice.",
)


@pytest.mark.parametrize(
    "change, part",
    [
        ({}, "passed"),
        ({"share": 0.504}, "passed"),
        ({"heads": np.array([0, 1])}, "passed"),
        ({"heads": (0, 1)}, "passed"),
        ({"bytes": np.int64(2**30)}, "passed"),
        ({"share": torch.tensor(0.5)}, "passed"),
        ({"bytes": float(2**30)}, "passed"),
        ({"bytes": 2**30 + 1}, "`bytes`: 1073741825 is not right. Multiply."),
        ({"bytes": 1_000_000_000}, "1 GiB is 2³⁰"),
        ({"bytes": 8 * 2**30}, "bits are not bytes"),
        ({"heads": [1, 2]}, "Count from 0."),
        ({"heads": [0, 1, 1]}, "You gave 3 numbers"),
        ({"heads": 1}, "not right"),
        ({"heads": {0: 0, 1: 1}}, "`heads`: That is a dict; write a list"),
        ({"share": [0.5]}, "`share`: [0.5] is a list; write one value"),
        ({"heads": True}, "not right"),
        ({"share": True}, "not right"),
        ({"share": "0.5"}, "`share`: '0.5' is text; write a number"),
        ({"share": float("nan")}, "not right"),
        ({"share": None}, "not attempted"),
        ({"share": ...}, "not attempted"),
        ({"share": {1}}, "type set is neither"),
        ({"share": object()}, "type object is neither"),
    ],
)
def test_numbers_by_hand_are_compared_as_numbers(change, part):
    verdict = HAND.judge({"bytes": 2**30, "share": 0.5, "heads": [0, 1]} | change)
    assert part in f"{verdict.status} {verdict.message}"


@pytest.mark.parametrize("answer", [None, ..., {}, {"bytes": 1}])
def test_an_empty_answer_is_not_attempted(answer):
    assert HAND.judge(answer).status == "not attempted"


def test_an_answer_that_pretends_to_equal_everything_fails():
    class Everything:
        def __eq__(self, other):
            return True

    class AnyInt(int):
        def __eq__(self, other):
            return True

        __hash__ = int.__hash__

    for pretender in (Everything(), AnyInt(7)):
        assert not HAND.judge({"bytes": pretender, "share": 0.5, "heads": [0, 1]})
    assert not agrees([1], [1, 2]) and agrees(plain(range(2)), [0, 1])
    assert unit_slip("ms", 8, 1) == ""
    assert is_rounded_too_far(12, 12.4) and not is_rounded_too_far(12, 12.05)


def test_an_answer_that_raises_when_touched_gets_a_sentence(monkeypatch):
    class Hostile(dict):
        def get(self, key, default=None):
            raise RuntimeError("no")

    monkeypatch.setitem(engine.EXERCISES, "99.hand", HAND)
    verdict = check("99.hand", Hostile(a=1))
    assert verdict.status == "failed" and "could not read" in verdict.message


def test_an_unknown_id_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 05.expand"):
        check("05.exapnd", None)
    with pytest.raises(ValueError, match="05.p"):
        predict("05.p9", None)
    with pytest.raises(ValueError, match="05.head_map"):
        case("05.expand")


def test_case_decides_which_numbers_check_expects(monkeypatch):
    monkeypatch.setitem(engine.EXERCISES, "99.hand", HAND)
    right = {"bytes": 3 * 2**30, "share": 0.5, "heads": [0, 1]}
    assert not check("99.hand", right)
    assert case("99.hand", seed=2) == {"n": 3}
    assert check("99.hand", right)
    case("99.hand")
    assert not check("99.hand", right)
    monkeypatch.delitem(engine._seeds, "99.hand")


def test_a_name_is_a_seed_the_same_everywhere_and_an_empty_one_is_refused(monkeypatch):
    monkeypatch.setitem(engine.EXERCISES, "99.hand", HAND)
    assert case("99.hand", "ada") == case("99.hand", " Ada ") == {"n": 1 + engine.seed_of("ada")}
    assert [engine.seed_of(name) for name in ("ada", "bob")] == [490, 999]
    assert all(1 <= engine.seed_of(str(n)) <= 999 for n in range(3000))
    with pytest.raises(ValueError, match="write the name under which you hand in"):
        case("99.hand", " ")
    monkeypatch.delitem(engine._seeds, "99.hand")


def test_under_nbgrader_a_check_prints_and_raises(monkeypatch, capsys):
    monkeypatch.setenv("NBGRADER_EXECUTION", "autograde")
    monkeypatch.setitem(engine.EXERCISES, "99.twice", BUILD)
    assert check("99.twice", twice).status == "passed"
    assert "✓ passed" in capsys.readouterr().out
    with pytest.raises(AssertionError, match="tripled"):
        check("99.twice", lambda x: 3 * x)
    with pytest.raises(AssertionError, match="Write the function"):
        check("99.twice", None)
    assert capsys.readouterr().err == ""


def test_a_prediction_is_recorded_and_never_failed(monkeypatch):
    monkeypatch.setattr(engine, "_predicted", {})
    assert predict("05.p1", None).message == "Choose a letter, then run this cell again."
    assert predict("05.p1", "x").message == 'Choose one of a, b, c, written as "a".'
    assert predict("05.p1", 3).status == "not attempted"
    assert predict("05.p1", "C").status == "recorded"
    assert predict("05.p1", "c") == predict("05.p1", " C) ")
    monkeypatch.setattr(engine, "_verdicts", {"05.expand": "failed"})
    assert "05.p1 c" in repr(progress())


def test_every_option_of_every_prediction_has_a_reply_of_its_own():
    for prediction in engine.PREDICTIONS.values():
        replies = [predict(prediction.id, letter).message for letter in prediction.options]
        assert len(set(replies)) == len(replies) >= 2
        assert sum("Tempting" not in reply for reply in replies) == 1
        assert all("next cell" in reply for reply in replies if "Tempting" in reply)


def test_what_has_passed_stays_passed_when_the_student_tries_on(monkeypatch):
    monkeypatch.setattr(engine, "_verdicts", {})
    monkeypatch.setattr(engine, "_seeds", {})
    monkeypatch.setitem(engine.EXERCISES, "99.hand", HAND)
    for share, status in ((0.1, "failed"), (0.5, "passed"), (0.1, "passed")):
        check("99.hand", {"bytes": 2**30, "share": share, "heads": [0, 1]})
        assert engine._verdicts == {"99.hand": status}


def test_progress_lists_every_exercise_and_its_state(monkeypatch):
    monkeypatch.setattr(engine, "_verdicts", {"05.expand": "passed"})
    lines = repr(progress()).splitlines()
    assert [line for line in lines if "05.expand" in line][0].split()[:3] == ["✓", "05.expand", "passed"]
    assert all(any(i in line for line in lines) for i in engine.EXERCISES if i.startswith("05"))
    assert not any("01." in line for line in lines) and "1 of 5 exercises passed." in lines
    monkeypatch.setattr(engine, "_verdicts", {})
    assert all(i in repr(progress()) for i in engine.EXERCISES)
    assert "05.expand" in progress()._repr_html_()
