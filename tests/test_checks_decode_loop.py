"""Lesson 08: right answers in every form pass, wrong ones are named, what is quoted is what the library does."""

import math
import statistics
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch

from gqa_lab.attention import expanded_attention, grouped_attention
from gqa_lab.checks import case, check, sandbox
from gqa_lab.checks.decode_loop import clock, diagnose, loop, meter
from gqa_lab.checks.engine import EXERCISES, PREDICTIONS
from gqa_lab.costs import SHAPES, kv_cache_bytes, weight_bytes_read
from gqa_lab.diagnosis import why_not_faster
from gqa_lab.generate import decode_step, generate, prefill
from gqa_lab.traffic import TrafficMeter

pytestmark = pytest.mark.usefixtures("shapes_unchecked")  # the checks hand over wrong types on purpose
BANDWIDTH, LOOP, METER, CLOCK, DIAGNOSE = (
    EXERCISES[f"08.{name}"] for name in ("bandwidth", "loop", "meter", "clock", "diagnose")
)
SOLUTION = Path(__file__).parents[1] / "solutions" / "08_decode_loop.ipynb"


# ---- 08.bandwidth --------------------------------------------------------------------------------

NUMBERS = {"gb_per_s": 29.2, "percent": 81.1, "floor_ms": 16.2}


def test_the_numbers_on_paper_are_smollm2_at_a_thousand_tokens():
    shape, four = SHAPES["smollm2-135m"], {"bytes_per_element": 4}
    numbers = case("08.bandwidth")
    assert numbers["weights_mb"] == round(weight_bytes_read(shape, **four) / 1e6)
    assert numbers["cache_mb"] == round(kv_cache_bytes(shape, batch_size=1, kv_len=1000, **four) / 1e6)
    assert check("08.bandwidth", NUMBERS) and check("08.bandwidth", NUMBERS | {"percent": 81, "gb_per_s": 584 / 20})


@pytest.mark.parametrize(
    "key, value, part",
    [
        ("gb_per_s", 26.9, "a well-known benchmark prints exactly this"),
        ("gb_per_s", 2.3, "The cache only"),
        ("gb_per_s", 29_200, "MB per ms *is* GB per s"),
        ("gb_per_s", 0.0292, "once too often"),
        ("gb_per_s", 27.2, "in another unit"),
        ("gb_per_s", 0.03425, "Upside down"),
        ("gb_per_s", 50, "tokens per second"),
        ("gb_per_s", 233.6, "bits are not bytes"),
        ("gb_per_s", 36, "All bytes that a step reads"),
        ("percent", 123, "Upside down"),
        ("percent", 0.811, "a hundred times that"),
        ("percent", 74.7, "The weights only"),
        ("percent", 6.4, "The cache only"),
        ("percent", 18.9, "what is lost"),
        ("percent", 7.9, "the cache's share of the bytes"),
        ("percent", 90, "as a percentage of the machine's"),
        ("percent", 75.5, "in GiB, the machine's in GB"),
        ("percent", 80, "80 is rounded too far"),
        ("floor_ms", 16, "16 is rounded too far. Give three digits"),
        ("floor_ms", 15.15, "in GiB, the machine's in GB"),
        ("floor_ms", 14.9, "The weights only. A step reads"),
        ("floor_ms", 1.28, "The cache only"),
        ("floor_ms", 0.0162, "These are seconds"),
        ("floor_ms", 24.7, "a floor lies below"),
        ("floor_ms", 20, "That is what was measured"),
        ("floor_ms", 10, "The same bytes at the machine's speed"),
    ],
)
def test_wrong_numbers_of_a_bandwidth_are_named(key, value, part):
    case("08.bandwidth")
    verdict = check("08.bandwidth", NUMBERS | {key: value})
    assert not verdict and part in verdict.message and "Right: " in verdict.message, verdict


def test_drawn_steps_stay_below_the_machine_and_hold_a_cache_that_counts():
    for seed in range(1, 60):
        right = BANDWIDTH.right(BANDWIDTH.draw(seed))
        assert 20 < right["percent"] < 100
        rounded = {key: float(f"{value:.3g}") for key, value in right.items()}
        assert BANDWIDTH.judge(rounded, seed)


# ---- 08.loop -------------------------------------------------------------------------------------


def with_for(model, token_ids, max_new_tokens):
    caches = model.new_caches(1, token_ids.shape[1] + max_new_tokens)
    ids = prefill(model, token_ids, caches).argmax(-1)
    answer = [ids.item()]
    for _ in range(max_new_tokens - 1):
        ids = decode_step(model, ids[:, None], caches).argmax(-1)
        answer.append(ids.item())
    return answer


def with_while(model, token_ids, max_new_tokens):
    caches = model.new_caches(1, token_ids.shape[1] + max_new_tokens - 1)
    logits, answer = prefill(model, token_ids, caches), []
    while True:
        answer.append(int(logits[0].argmax()))
        if len(answer) == max_new_tokens:
            return answer
        logits = decode_step(model, torch.tensor([answer[-1:]]), caches)


def by_numpy(model, token_ids, max_new_tokens):
    caches = model.new_caches(1, 200)
    logits, answer = prefill(model, token_ids, caches), []
    for n in range(max_new_tokens):
        answer.append(np.argmax(logits.numpy()[0]))
        if n < max_new_tokens - 1:
            logits = decode_step(model, torch.tensor(np.array([[answer[-1]]])), caches)
    return answer


def recursive(model, token_ids, max_new_tokens, caches=None):
    caches = caches or model.new_caches(1, token_ids.shape[1] + max_new_tokens)
    some = prefill if caches[0].host_lengths == [0] else decode_step
    token = some(model, token_ids, caches).argmax(-1)
    more = recursive(model, token[:, None], max_new_tokens - 1, caches) if max_new_tokens > 1 else []
    return [token.item(), *more]


@torch.no_grad()
def by_model(model, token_ids, max_new_tokens):
    caches, answer = model.new_caches(1, 200), []
    ids = token_ids
    for _ in range(max_new_tokens):
        ids = model(ids, caches, attend=grouped_attention)[:, -1].argmax(-1, keepdim=True)
        answer.append(ids)
    return torch.cat(answer, dim=1)[0].tolist()


def one_step_too_many(model, token_ids, max_new_tokens):
    caches = model.new_caches(1, token_ids.shape[1] + max_new_tokens)
    logits, answer = prefill(model, token_ids, caches), []
    for _ in range(max_new_tokens):
        answer.append(logits.argmax().item())
        logits = decode_step(model, torch.tensor([[answer[-1]]]), caches)
    return answer


def a_tuple(*args):
    return tuple(with_for(*args))


def prefill_for_all(model, token_ids, max_new_tokens):
    caches, ids, answer = model.new_caches(1, 200), token_ids, []
    for _ in range(max_new_tokens):
        ids = prefill(model, ids, caches).argmax(-1, keepdim=True)
        answer.append(ids.item())
    return answer


def prompt_by_steps(model, token_ids, max_new_tokens, n_prefilled=0):
    caches = model.new_caches(1, 200)
    if token_ids[:, :-1].numel() and n_prefilled:
        prefill(model, token_ids[:, :-1], caches)
    fed, answer = token_ids[0, caches[0].host_lengths[0] :].tolist(), []
    while len(answer) < max_new_tokens:
        logits = decode_step(model, torch.tensor([[fed.pop(0)]]), caches)
        if not fed:
            answer.append(logits.argmax().item())
            fed = answer[-1:]
    return answer


def last_of_prompt_by_a_step(model, token_ids, max_new_tokens):
    return prompt_by_steps(model, token_ids, max_new_tokens, n_prefilled=-1)


@pytest.mark.parametrize(
    "function, more",
    [(f, None) for f in (with_for, with_while, by_numpy, recursive, by_model, a_tuple, prefill_for_all)]
    + [
        (one_step_too_many, "that nobody read"),
        (prompt_by_steps, "Your 9 calls read all the weights 9 times; with the prompt in one prefill 5 do."),
        (last_of_prompt_by_a_step, "Your 6 calls read"),
    ],
)
def test_every_right_loop_passes_and_is_told_what_it_could_spare(function, more):
    verdict = check("08.loop", function)
    assert verdict and "Notice" in verdict.message, verdict
    assert more in verdict.message if more else verdict.message.endswith("stop tokens.")


def test_the_models_of_the_check_choose_clearly_and_many_tokens():
    answers = []
    for seed, q_len, n_new in sum(loop._CASES, ()):
        model, ids = loop.Watched(seed), loop._prompt(seed, q_len)
        answer = loop.right(model, ids, n_new)
        with torch.no_grad():
            logits = model(torch.cat([ids, torch.tensor([answer])], dim=1))[0, q_len - 1 : -1]
        best, second = logits.topk(2).values.T
        assert (best - second).min() > 1e-3
        answers += answer
        assert with_for(model, ids, n_new) == [t for [t] in generate(model, ids.tolist(), max_new_tokens=n_new)]
    assert len(set(answers)) > 12


REMEMBERED = []


def remembers(model, token_ids, max_new_tokens):
    REMEMBERED.append(1)
    return (
        with_for(model, token_ids, max_new_tokens) if len(REMEMBERED) <= len(loop._CASES[0]) else [0] * max_new_tokens
    )


KEPT = []


def keeps_caches(model, token_ids, max_new_tokens, n_slots=200):
    if not KEPT:
        KEPT.extend(model.new_caches(1, n_slots))
    ids = prefill(model, token_ids, KEPT).argmax(-1)
    answer = [ids.item()]
    for _ in range(max_new_tokens - 1):
        ids = decode_step(model, ids[:, None], KEPT).argmax(-1)
        answer.append(ids.item())
    return answer


def in_place(model, token_ids, max_new_tokens):
    answer = with_for(model, token_ids, max_new_tokens)
    token_ids[0, 0] = answer[0]
    return answer


def short_cache(model, token_ids, max_new_tokens):
    caches = model.new_caches(1, token_ids.shape[1])
    ids = prefill(model, token_ids, caches).argmax(-1)
    answer = [ids.item()]
    for _ in range(max_new_tokens - 1):
        ids = decode_step(model, ids[:, None], caches).argmax(-1)
        answer.append(ids.item())
    return answer


def halves(model, token_ids, max_new_tokens):
    first = with_for(model, token_ids, (max_new_tokens + 1) // 2)
    longer = torch.cat([token_ids, torch.tensor([first])], dim=1)
    return first + (with_for(model, longer, max_new_tokens // 2) if max_new_tokens > 1 else [])


def for_ever(model, token_ids, max_new_tokens):
    while True:
        pass


def stops_when_it_repeats(model, token_ids, max_new_tokens):
    answer = []
    for token in with_for(model, token_ids, max_new_tokens):
        if token in answer or token > 25:
            break
        answer.append(token)
    return answer


WRONG_LOOPS = {
    "reversed": lambda *a: with_for(*a)[::-1],
    "sorted": lambda *a: sorted(with_for(*a)),
    "next id": lambda *a: [(t + 1) % 40 for t in with_for(*a)],
    "second best": lambda m, ids, n: loop._loop(m, ids, n, choose=lambda x: x.topk(2).indices[:, 1:]),
    "fed next id": lambda m, ids, n: loop._loop(m, ids, n, feed=lambda first, a: torch.tensor([[(a[-1] + 1) % 40]])),
    "fed the one before": lambda m, ids, n: loop._loop(m, ids, n, feed=lambda first, a: torch.tensor([[a[max(0, len(a) - 2)]]])),
    "prompt cut": lambda m, ids, n: with_for(m, ids[:, -4:], n),
    "prompt reversed": lambda m, ids, n: with_for(m, ids.flip(1), n),
    "prefill in halves, read again": halves,
    "a window": lambda m, ids, n: [with_for(m, loop._text(ids, with_for(m, ids, i)) if i else ids, 1)[0] for i in range(n)],
    "nothing new": lambda m, ids, n: [],
    "zeros": lambda m, ids, n: [0] * n,
    "stops early": stops_when_it_repeats,
    "stops after two": lambda *a: with_for(*a)[:2],
    "in place": in_place,
    "remembers": remembers,
    "keeps its caches": keeps_caches,
    "keeps its caches, full": lambda m, ids, n: keeps_caches(m, ids, n, n_slots=9),
    "short cache": short_cache,
    "for ever": for_ever,
    "raises": lambda m, ids, n: 1 / 0,
    "a tensor": lambda *a: torch.tensor(with_for(*a)),
    "an array": lambda *a: np.array(with_for(*a)),
    "a generator": lambda *a: (t for t in with_for(*a)),
    "a list of lists": lambda *a: [with_for(*a)],
    "a list of tensors": lambda *a: list(torch.tensor(with_for(*a))),
    "drawn": lambda m, ids, n: loop._loop(m, ids, n, choose=lambda logits: torch.multinomial(logits.softmax(-1), 1)),
    "floats": lambda *a: [float(t) for t in with_for(*a)],
    "text": lambda *a: " ".join(map(str, with_for(*a))),
    "nothing": lambda *a: print(with_for(*a)),
    "logits": lambda m, ids, n: prefill(m, ids, m.new_caches(1, 50)),
    "the package's": lambda m, ids, n: [t for [t] in generate(m, ids.tolist(), max_new_tokens=n)],
    "no arguments": lambda: [1, 2, 3],
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_LOOPS)
def test_a_wrong_loop_that_is_not_listed_is_rejected_and_not_misnamed(name, monkeypatch):
    REMEMBERED.clear(), KEPT.clear()
    if name == "for ever":
        monkeypatch.setattr(sandbox, "DEADLINE_S", 1.0)
    verdict = check("08.loop", WRONG_LOOPS[name])
    assert verdict.status == "failed", verdict
    named = [m.name for m in LOOP.mistakes if verdict.message.startswith(m.diagnosis)]
    assert named in ([], ["no cache"] if name == "a window" else []), verdict


@pytest.mark.parametrize(
    "name, part",
    [
        ("a tensor", "It should return a list of whole numbers"),
        ("a generator", "it returned a generator"),
        ("nothing", "Is a `return` missing?"),
        ("floats", "a list of whole numbers"),
        ("a list of tensors", "it returned a list of Tensor objects"),
        ("a list of lists", "it returned a list of list objects"),
        ("stops after two", "it stopped after 2 of 5 tokens, all right so far"),
        ("drawn", "Asked again, it answered otherwise"),
        ("keeps its caches", "Your caches still hold an earlier call"),
        ("keeps its caches, full", "Your caches still hold an earlier call"),
        ("in place", "changed `token_ids`"),
        ("remembers", "does it remember?"),
        ("short cache", "Tokens fed, call by call: 5, 1 after 5."),
        ("for ever", "still running after"),
        ("the package's", "That is the package's `generate`"),
        ("prefill in halves, read again", "read more than one token after the first"),
        ("reversed", "Tokens fed, call by call: 5, 1 after 5"),
        ("prompt cut", "Tokens fed, call by call: 4, 1 after 4"),
        ("raises", "ZeroDivisionError"),
    ],
)
def test_a_wrong_loop_is_told_what_is_wrong_with_it(name, part, monkeypatch):
    REMEMBERED.clear(), KEPT.clear()
    if name == "for ever":
        monkeypatch.setattr(sandbox, "DEADLINE_S", 1.0)
    verdict = check("08.loop", WRONG_LOOPS[name])
    assert part in verdict.message, verdict


# ---- 08.meter ------------------------------------------------------------------------------------

NAMED = {"A": "grouped", "B": "expanded", "C": "concatenated", "D": "masked", "E": "contiguous"}


def test_the_readings_are_what_the_meter_says_about_these_loops():
    numbers = case("08.meter")
    h, g, d, s, n_slots = (numbers[key] for key in ("n_heads", "n_kv_heads", "head_dim", "kv_len", "n_slots"))
    q, new = torch.randn(1, h, 1, d), torch.randn(1, g, 1, d)
    sdpa, r = torch.nn.functional.scaled_dot_product_attention, h // g
    rows = q.view(1, g, r, d)

    def run(loop: str) -> list:
        k, v = torch.randn(2, 1, g, n_slots, d).unbind(0)
        with TrafficMeter() as counted:
            if loop == "concatenated":
                k, v = (torch.cat([x[:, :, : s - 1], new], dim=2) for x in (k, v))
            else:
                for x in (k, v):
                    x[:, :, s - 1 : s] = new
            if loop in ("grouped", "expanded", "contiguous"):
                k, v = k[:, :, :s], v[:, :, :s]
            if loop == "contiguous":
                k, v = k.contiguous(), v.contiguous()
            if loop == "expanded":
                k, v = (x.repeat_interleave(r, dim=1) for x in (k, v))
                sdpa(q, k, v)
            else:
                sdpa(rows, k, v)
        return counted.operations

    for letter, name in NAMED.items():
        *moves, attention = run(name)
        moved = [(op.bytes_read, op.bytes_written) for op in moves]
        both = [tuple(np.add(a, b)) for a, b in zip(moved[::2], moved[1::2], strict=True)]  # K and V together
        assert both + [(attention.bytes_read - q.nbytes, 0)] == numbers[letter], name


def test_the_names_pass_in_any_spelling_of_capitals():
    case("08.meter")
    assert check("08.meter", NAMED) and check("08.meter", {key: f" {name.upper()} " for key, name in NAMED.items()})


@pytest.mark.parametrize(
    "change, part",
    [
        ({"D": "expanded"}, "Nothing big was written. 4,194,304 = 4,096 slots."),
        ({"D": "grouped"}, "More is read than the 1,000 tokens hold"),
        ({"B": "concatenated"}, "What is 4 times K and V?"),
        ({"B": "grouped"}, "Grouped writes one token"),
        ({"E": "concatenated"}, "Look at the order of the operations"),
        ({"C": "contiguous"}, "Look at the order of the operations"),
        ({"C": "expanded"}, "One copy is written, not one for each query head"),
        ({"A": "masked"}, "K and V of the tokens, no more"),
        ({"A": "expanded"}, "Nothing as large as K and V is written here"),
        ({"A": "fast"}, "`A`: write one of grouped, expanded, concatenated, masked, contiguous"),
        ({"A": 3, "B": ["x"]}, "`A`, `B`: write one of"),
    ],
)
def test_a_wrong_name_is_told_where_to_look(change, part):
    case("08.meter")
    verdict = check("08.meter", NAMED | change)
    assert verdict.status == "failed" and part in verdict.message, verdict


@pytest.mark.parametrize("answer", [{}, NAMED | {"C": None}, NAMED | {"A": ...}])
def test_names_not_yet_written_are_not_attempted(answer):
    assert check("08.meter", answer).status == "not attempted"


def test_letters_as_values_are_told_the_form():
    verdict = check("08.meter", {name: letter for letter, name in NAMED.items()})
    assert verdict.status == "failed" and "The keys of the dict are `A`, `B`" in verdict.message


def test_every_pair_of_names_has_its_sentence_and_the_readings_differ():
    for sizes_seed in range(12):
        numbers = METER.draw(sizes_seed)
        assert len({repr(numbers[letter]) for letter in "ABCDE"}) == 5
        assert numbers["n_heads"] // numbers["n_kv_heads"] > 2 and numbers["n_slots"] > numbers["kv_len"]
        assert len(METER.mistakes(numbers)) == 20
    assert METER.right(METER.draw(0)) == NAMED


# ---- 08.clock ------------------------------------------------------------------------------------


def median_of_list(step, clock, n_steps=5, n_warmup=2):
    for _ in range(n_warmup):
        step()
    times = []
    for _ in range(n_steps):
        start = clock()
        step()
        times.append(clock() - start)
    return statistics.median(times)


def by_marks(step, clock, n_steps=5, n_warmup=2):
    marks = [clock()]
    for _ in range(n_warmup + n_steps):
        step()
        marks.append(clock())
    return float(np.median(np.diff(marks[n_warmup:])))


def sorted_middle(step, clock, *, n_steps=5, n_warmup=2):
    times = []
    for i in range(n_warmup + n_steps):
        start = clock()
        step()
        if i >= n_warmup:
            times.append(clock() - start)
    return sorted(times)[n_steps // 2]


def by_tensor(step, clock, n_steps=5, n_warmup=2):
    return float(torch.tensor(clock_all(step, clock, n_steps, n_warmup), dtype=torch.float64).median())


def clock_all(step, clock, n_steps, n_warmup):
    return [b - a for a, b in [(clock(), (step(), clock())[1]) for _ in range(n_warmup + n_steps)]][n_warmup:]


@pytest.mark.parametrize("function", [median_of_list, by_marks, sorted_middle, by_tensor], ids=lambda f: f.__name__)
def test_every_right_benchmark_passes(function):
    verdict = check("08.clock", function)
    assert verdict and "time to first token" in verdict.message, verdict


def test_the_numbers_of_the_task_are_those_of_its_clock():
    (durations, _, n, w), *_ = [one.args for one in clock._cases(0)]
    assert durations == (0.1, 0.1, 0.01, 0.01, 0.01, 0.05, 0.01) and (n, w) == (5, 2)
    assert clock.truth(durations, None, n, w) == 0.01
    bench = clock.Bench(durations)
    mean = CLOCK.mistakes[0].wrong(bench.step, bench.clock)
    assert math.isclose(mean, 0.0414, rel_tol=0.001)  # as the broken one prints
    assert math.isclose(sum(durations[2:]) / 5, 0.018)


WRONG_CLOCKS = {
    "half": lambda *a, **k: median_of_list(*a, **k) / 2,
    "start of the clock": lambda step, clock, n_steps=5, n_warmup=2: clock(),
    "constant": lambda step, clock, n_steps=5, n_warmup=2: 0.01,
    "second fastest": lambda step, clock, n_steps=5, n_warmup=2: sorted(clock_all(step, clock, n_steps, n_warmup))[
        min(1, n_steps - 1)],
    "one warm-up too few": lambda step, clock, n_steps=5, n_warmup=2: statistics.median(
        clock_all(step, clock, n_steps + 1, max(0, n_warmup - 1))),
    "one step too many": lambda step, clock, n_steps=5, n_warmup=2: statistics.median(
        clock_all(step, clock, n_steps + 1, n_warmup)),
    "warm-up after": lambda step, clock, n_steps=5, n_warmup=2: statistics.median(
        clock_all(step, clock, n_steps + n_warmup, 0)[: n_steps + 1]),
    "deviation": lambda *a, **k: statistics.pstdev(clock_all(a[0], a[1], k["n_steps"], k["n_warmup"])),
    "negative": lambda *a, **k: -median_of_list(*a, **k),
    "nan": lambda *a, **k: math.nan,
    "a list": lambda step, clock, n_steps=5, n_warmup=2: clock_all(step, clock, n_steps, n_warmup),
    "nothing": lambda step, clock, n_steps=5, n_warmup=2: print(median_of_list(step, clock, n_steps, n_warmup)),
    "its own clock": lambda step, clock, n_steps=5, n_warmup=2: median_of_list(
        step, __import__("time").perf_counter, n_steps, n_warmup),
    "never steps": lambda step, clock, n_steps=5, n_warmup=2: clock() - clock() + 1e-3,
    "runs twice": lambda step, clock, n_steps=5, n_warmup=2: (
        median_of_list(step, clock, n_steps, n_warmup), median_of_list(step, clock, n_steps, 0))[0],
    "no defaults": lambda step, clock, n_steps, n_warmup: median_of_list(step, clock, n_steps, n_warmup),
    "no such names": lambda step, clock, n=5, w=2: median_of_list(step, clock, n, w),
    "a geometric mean": lambda step, clock, n_steps=5, n_warmup=2: statistics.geometric_mean(
        clock_all(step, clock, n_steps, n_warmup)),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_CLOCKS)
def test_a_wrong_benchmark_that_is_not_listed_is_rejected_and_not_misnamed(name):
    verdict = check("08.clock", WRONG_CLOCKS[name])
    assert verdict.status == "failed", verdict
    named = {m.name for m in CLOCK.mistakes if verdict.message.startswith(m.diagnosis)}
    assert not named, verdict


@pytest.mark.parametrize(
    "name, part",
    [
        ("runs twice", "ran 8 steps; 5 were asked for"),
        ("no defaults", "are missing from the first line"),
        ("a list", "it should return one number"),
        ("its own clock", "or another clock read than `clock`?"),
        ("half", "With n_steps=5 n_warmup=2 steps_ms=[100, 100, 10,"),
    ],
)
def test_a_wrong_benchmark_is_told_what_is_wrong_with_it(name, part):
    assert part in check("08.clock", WRONG_CLOCKS[name]).message, check("08.clock", WRONG_CLOCKS[name])


def test_a_benchmark_that_never_ends_is_stopped(monkeypatch):
    monkeypatch.setattr(sandbox, "DEADLINE_S", 1.0)

    def endless(step, clock, n_steps=5, n_warmup=2):
        while clock() < 2000:
            pass

    assert "still running after" in check("08.clock", endless).message


# ---- 08.diagnose ---------------------------------------------------------------------------------


def with_ifs(record):
    if record["q_len"] != 1:
        return "prefill"
    if record["backend"] == "MATH":
        return "MATH fallback"
    copies = record["written_bytes"] / record["kv_bytes"]
    if copies >= 2:
        return "expanded"
    if copies >= 0.9:
        return "Concatenated"
    if record["slots"] > record["kv_len"] and record["read_bytes"] - record["weight_bytes"] > 2 * record["kv_bytes"]:
        return "empty slots read"
    if record["device_ms"] and record["device_ms"] / record["wall_ms"] < 0.5:
        return "Launch-bound"
    if record["weight_bytes"] >= record["kv_bytes"]:
        return "weights outweigh cache"
    return "at the roofline"


def by_table(record):
    r = record
    rules = {
        "prefill": r["q_len"] > 1,
        "MATH fallback": "MATH" in r["backend"],
        "expanded": r["written_bytes"] > 2 * r["kv_bytes"],
        "concatenated": r["written_bytes"] > 0.7 * r["kv_bytes"],
        "empty slots read": r["read_bytes"] > 2 * (r["kv_bytes"] + r["weight_bytes"]),
        "launch_bound": r["device_ms"] is not None and r["wall_ms"] - r["device_ms"] > r["device_ms"],
        "weights outweigh the cache": r["weight_bytes"] > r["kv_bytes"],
    }
    return next((name for name, holds in rules.items() if holds), "at the roofline")


@pytest.mark.parametrize("function", [diagnose.truth, with_ifs, by_table], ids=lambda f: f.__name__)
def test_every_right_diagnosis_passes(function):
    verdict = check("08.diagnose", function)
    assert verdict and "why_not_faster" in verdict.message, verdict


def test_every_cause_has_a_record_and_some_are_mixed():
    causes = [cause for cause, _ in diagnose.RECORDS]
    assert set(causes) == set(diagnose.CAUSES)
    holding = [
        sum(diagnose._in_order(cause)(record) == cause for cause in diagnose.CAUSES[:-1]
            if not (cause == "concatenated" and diagnose._in_order("expanded")(record) == "expanded"))
        for _, record in diagnose.RECORDS
    ]  # fmt: skip
    mixed = {cause for n, (cause, _) in enumerate(diagnose.RECORDS) if holding[n] > 1}
    assert mixed >= {"prefill", "MATH fallback", "expanded", "empty slots read", "launch-bound"}
    for cause, record in diagnose.RECORDS:
        assert diagnose.truth(record) == cause and record["read_bytes"] >= record["kv_bytes"]


def test_k_and_v_read_three_times_without_an_empty_slot_are_not_called_empty_slots():
    again = diagnose._CLEAN | {"read_bytes": 1_300_000_000}
    assert diagnose.truth(again) != "empty slots read" == diagnose.truth(again | {"slots": 12_000})


def test_the_package_names_the_causes_alike():
    assert why_not_faster(expanded_attention, kv_len=99, device="cpu").cause in diagnose.CAUSES
    assert why_not_faster(grouped_attention, kv_len=99, q_len=2, device="cpu").cause in diagnose.CAUSES


WRONG_CAUSES = {
    "always the roofline": lambda r: "at the roofline",
    "always expanded": lambda r: "expanded",
    "by read alone": lambda r: "expanded" if r["read_bytes"] > 9e8 else "at the roofline",
    "no such name": lambda r: "slow",
    "a number": lambda r: 3,
    "a list": lambda r: [diagnose.truth(r)],
    "nothing": lambda r: print(diagnose.truth(r)),
    "compares None": lambda r: "launch-bound" if r["device_ms"] < r["wall_ms"] / 2 else diagnose.truth(r),
    "no such key": lambda r: r["cause"],
    "changes the record": lambda r: (diagnose.truth(r), r.update(q_len=9))[0],
    "by length": lambda r: "empty slots read" if r["kv_len"] < 2000 else diagnose.truth(r),
    "roofline if fast": lambda r: "at the roofline" if r["wall_ms"] < 12 else diagnose.truth(r),
    "swapped names": lambda r: {"expanded": "concatenated", "concatenated": "expanded"}.get(
        diagnose.truth(r), diagnose.truth(r)),
    "MATH unless FLASH": lambda r: "MATH fallback" if r["backend"] != "FLASH_ATTENTION" and r["q_len"] == 1
        else diagnose.truth(r),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_CAUSES)
def test_a_wrong_diagnosis_that_is_not_listed_is_rejected_and_not_misnamed(name):
    verdict = check("08.diagnose", WRONG_CAUSES[name])
    assert verdict.status == "failed", verdict
    assert not any(verdict.message.startswith(m.diagnosis) for m in DIAGNOSE.mistakes), verdict


@pytest.mark.parametrize(
    "name, part",
    [
        ("always the roofline", "Look at q_len."),
        ("always expanded", "How many times kv_bytes"),
        ("no such name", "'slow' is none of the eight names"),
        ("compares None", "On a CPU device_ms is None"),
        ("no such key", "KeyError"),
        ("changes the record", "Your function changed the record"),
        ("MATH unless FLASH", "Nothing in this record is wasted"),
        ("roofline if fast", "Compare wall_ms with device_ms"),
    ],
)
def test_a_wrong_diagnosis_is_told_where_to_look(name, part):
    verdict = check("08.diagnose", WRONG_CAUSES[name])
    if name == "always expanded":
        assert "The first record that is not right (you said 'expanded'" in verdict.message
        return
    assert part in verdict.message, verdict


# ---- all of them ---------------------------------------------------------------------------------


def test_the_right_prediction_is_the_one_that_the_lesson_proves():
    right = {p: [x for x, (_, reply) in PREDICTIONS[p].options.items() if "Tempting" not in reply] for p in PREDICTIONS}
    assert [right[f"08.p{n}"] for n in (1, 2, 3)] == [["c"], ["a"], ["b"]]


def test_the_notebook_prints_what_the_check_means():
    cells = {cell.id: cell.source for cell in nbformat.read(SOLUTION, as_version=4).cells}
    space = {}
    exec(cells["clock-broken"], space)
    bench = clock.Bench(clock._cases(0)[0].args[0])
    assert math.isclose(space["broken_step_s"](bench.step, bench.clock), 0.0414, rel_tol=0.001)
    exec(cells["diagnose-causes"], space)
    assert space["CAUSES"] == diagnose.CAUSES
    assert all(name in cells["meter"] for name in meter.LOOPS)


@pytest.mark.slow
def test_kill_score(capsys):
    wrong = [("08.loop", f) for f in WRONG_LOOPS.values()] + [("08.clock", f) for f in WRONG_CLOCKS.values()]
    wrong += [("08.diagnose", f) for f in WRONG_CAUSES.values()]
    wrong += [(e.id, m.wrong) for e in (LOOP, CLOCK, DIAGNOSE) for m in e.mistakes]
    REMEMBERED.clear(), KEPT.clear()
    n_rejected = sum(check(exercise_id, function).status == "failed" for exercise_id, function in wrong)
    with capsys.disabled():
        print(f"\nlesson 08: {n_rejected} of {len(wrong)} wrong functions rejected")
    assert n_rejected == len(wrong)
