"""03.cache: a class of the student's, played through a script of calls.

Two scripts. The first has one cache, the second other sizes and a second cache beside it. What came of each call is
kept, so that a wrong class can be compared with the known ones call by call.
"""

import time
from dataclasses import dataclass, field

import numpy as np
import torch

from gqa_lab.checks import sandbox
from gqa_lab.checks.answers import Mistake, not_attempted
from gqa_lab.checks.cases import normal
from gqa_lab.checks.functions import shape_message, type_message
from gqa_lab.checks.kv_cache.wrong_caches import MISTAKES
from gqa_lab.checks.verdict import Verdict
from gqa_lab.traffic import TrafficMeter

_SLACK = 0.25  # of a token: what an index or a length kept as a tensor may write


@dataclass(frozen=True)
class Script:
    """Sizes of a cache and calls: ("append", tokens) or ("rewind", length). `refused` is the append too many."""

    batch_size: int
    n_heads: int
    max_seq_len: int
    head_dim: int
    calls: tuple[tuple[str, int], ...]
    refused: int
    measured: int

    @property
    def sizes(self) -> list[int]:
        """The arguments of the student's class."""
        return [self.batch_size, self.n_heads, self.max_seq_len, self.head_dim]


FIRST = Script(
    batch_size=2,
    n_heads=7,  # no number of tokens on the way, so that two swapped axes cannot agree
    max_seq_len=8,
    head_dim=9,
    calls=(("append", 3), ("append", 1), ("append", 2), ("rewind", 4), ("append", 1), ("append", 5), ("append", 3)),
    refused=5,
    measured=4,
)
SECOND = Script(
    batch_size=3,
    n_heads=6,
    max_seq_len=11,
    head_dim=10,
    calls=(("append", 2), ("append", 5), ("rewind", 0), ("append", 4), ("append", 1), ("append", 6), ("append", 1)),
    refused=6,
    measured=4,
)


@dataclass
class Step:
    """What came of one call, copied at once.

    Attributes:
        call: in words.
        run: what the sandbox saw.
        pair: k_all and v_all as arrays, None for anything else.
        slots: which token stands in each slot of them, None where it is none that came in.
        expected: the same, as it should be; None where nothing comes back.
        length: what the cache says afterwards, and what it should say.
        changed: a refused append has changed the cache's tensors.
        buffers: where what came back lies in memory.
        written: bytes written, where they were counted.
    """

    call: str
    run: sandbox.Run
    pair: list[np.ndarray | None] = field(default_factory=list)
    slots: list[object] = field(default_factory=list)
    expected: list[np.ndarray] | None = None
    length: object = None
    expected_length: int = 0
    changed: bool = False
    buffers: tuple = ()
    written: int | None = None

    def outcome(self) -> tuple:
        """What two caches are compared by."""
        error = type(self.run.error).__name__ if self.run.error is not None else ""
        kinds = [None if x is None else (x.shape, str(x.dtype)) for x in self.pair]
        return error, kinds, self.slots, self.length, self.changed


@dataclass(frozen=True)
class BuildCache:
    """A cache class to write."""

    id: str
    level: str
    mistakes: tuple[Mistake, ...]
    notice: str

    def judge(self, answer: object, seed: int = 0) -> Verdict:
        """Returns the verdict on a class."""
        if answer is None or answer is ...:
            return not_attempted(self.id, [])
        if not callable(answer):
            text = f"Hand over the class itself, without calling it; this is of type {type(answer).__name__}."
            return Verdict("failed", text, self.id)
        with sandbox.plain_torch():
            deadline = time.monotonic() + sandbox.DEADLINE_S
            steps = play(answer, FIRST, deadline)
            if empty := _still_empty(answer, steps):
                text = f"Still empty: {empty}. Write it, then run both cells again."
                return Verdict("not attempted", text, self.id)
            problem = self._first_round(steps) or _second_round(answer, deadline) or _bytes_moved(answer, steps)
        printed = sandbox.shown("".join(step.run.printed for step in steps))
        if problem:
            return Verdict("failed", problem + printed, self.id)
        tested = (
            "Played through 14 calls on two caches: appends, rewinds, one append too many, filled to the last slot."
        )
        return Verdict("passed", f"{tested} {self.notice}{printed}", self.id)

    def _first_round(self, steps: list[Step]) -> str | None:
        found = first_problem(steps, FIRST)
        if not found:
            return None
        stage, text = found
        if stage not in ("stopped", "package", "type", "dtype") and (mistake := self.recognise(steps)):
            return f"{mistake.diagnosis}\n{text}"
        return text

    def recognise(self, steps: list[Step]) -> Mistake | None:
        """Returns the known mistake that goes the same way through the whole script, if there is one."""
        outcomes = [step.outcome() for step in steps]
        for mistake in self.mistakes:
            deadline = time.monotonic() + sandbox.DEADLINE_S
            if [step.outcome() for step in play(mistake.wrong, FIRST, deadline)] == outcomes:
                return mistake
        return None


def play(cache_class: object, script: Script, deadline: float, *, beside: bool = False, meter: bool = False):
    """Returns what came of making a cache and of each call, up to the first error that stops the script.

    Args:
        beside: fill a second cache of the same class in between.
        meter: count the bytes of the measured call.
    """
    made = sandbox.run(cache_class, script.sizes, {}, deadline)
    steps = [Step(f"MyCache({', '.join(map(str, script.sizes))})", made)]
    if made.error is not None or made.used_package:
        return steps
    cache, other = made.value, sandbox.run(cache_class, script.sizes, {}, deadline).value if beside else None
    kept: list[list[np.ndarray]] = [[], []]  # k and v of each token that should be in the cache
    known: dict[bytes, tuple] = {}  # every token that ever came in
    for n, (name, size) in enumerate(script.calls):
        length, refused = len(kept[0]), n == script.refused
        if name == "rewind":
            args = [size]
            kept = [tokens[:size] for tokens in kept]
            text = f"rewind({size})"
        else:
            args = [_tokens(script, size, n, way) for way in (0, 1)]
            text = f"append of {size} {'token' if size == 1 else 'tokens'} after {length}"
            new = [list(x.numpy().copy().swapaxes(0, 2)) for x in args]  # [H, B, D] of each token
            known |= {x.tobytes(): (way, n, t) for way in (0, 1) for t, x in enumerate(new[way])}
            if not refused:
                kept = [tokens + more for tokens, more in zip(kept, new, strict=True)]
        before = _tensors(cache) if refused else []
        written = None
        given = [x.clone() for x in args] if name == "append" else []
        if meter and n == script.measured:
            with TrafficMeter() as counted:
                run = sandbox.run(_call(cache, name), args, {}, deadline)
            written = counted.bytes_written
        else:
            run = sandbox.run(_call(cache, name), args, {}, deadline)
        step = Step(text, run, expected_length=len(kept[0]), written=written)
        if name == "append" and not refused:
            step.expected = [np.stack(tokens).swapaxes(0, 2) for tokens in kept]
        if run.error is None and name == "append":
            values = list(run.value) if type(run.value) in (tuple, list) else []
            step.pair = [_as_array(x) for x in values] if len(values) == 2 else []
            step.slots = [_slots(x, known) for x in step.pair]
            step.buffers = tuple(x.untyped_storage().data_ptr() for x in values if type(x) is torch.Tensor)
        said = sandbox.run(lambda: cache.length, [], {}, deadline)  # noqa: B023
        step.length = _as_number(said.value) if said.error is None else type(said.error).__name__
        after = _tensors(cache) if refused else []
        step.changed = refused and (
            len(before) != len(after)
            or any(not np.array_equal(a, b, equal_nan=True) for a, b in zip(before, after, strict=False))
        )
        if any(not torch.equal(a, b) for a, b in zip(given, args, strict=False)):
            step.changed = True
        steps.append(step)
        if beside:
            sandbox.run(_call(other, "rewind"), [0], {}, deadline)
            sandbox.run(
                _call(other, "append"), [_tokens(script, script.max_seq_len, 99, w) for w in (0, 1)], {}, deadline
            )
        expected_error = refused and isinstance(run.error, ValueError)
        if run.used_package or (run.error is not None and not expected_error):
            break
    return steps


def first_problem(steps: list[Step], script: Script) -> tuple[str, str] | None:
    """Returns the stage and a sentence on the first call that went wrong."""
    for n, step in enumerate(steps, start=-1):
        found = _examine(step, script, n == script.refused)
        if found and found[0] == "package":
            return found
        if found:
            return found[0], f"In {step.call}: {found[1]}"
    return None


def _examine(step: Step, script: Script, refused: bool) -> tuple[str, str] | None:
    run = step.run
    if isinstance(run.error, sandbox.TimeUp | SystemExit):
        return "stopped", _trouble(run)
    if run.used_package:
        return "package", "That is the package's. Write yours; afterwards compare."
    if refused:
        return _examine_refused(step, script)
    if run.error is not None:
        return "raised", _trouble(run)
    if step.call.startswith("MyCache"):
        missing = [name for name in ("append", "rewind") if not callable(getattr(run.value, name, None))]
        return ("type", f"what came back has no method `{missing[0]}`.") if missing else None
    return _examine_values(step) or _examine_length(step)


def _examine_refused(step: Step, script: Script) -> tuple[str, str] | None:
    if step.run.error is None:
        return "values", f"nothing was raised. A cache of {script.max_seq_len} slots is full; stop with a ValueError."
    if not isinstance(step.run.error, ValueError):
        return (
            "raised",
            f"{_trouble(step.run)}\nThat is the right moment to stop. Check before you write, and say why "
            "with a ValueError.",
        )
    if found := _examine_length(step):
        return found
    if step.changed:
        return "changed", "it raised, but the cache's tensors had changed: check before you write."
    return None


def _examine_values(step: Step) -> tuple[str, str] | None:
    if step.expected is None:
        return None
    if step.run.value is None:
        return "type", "append returned None. Is a `return` missing?"
    if len(step.pair) != 2:
        return "type", "append should return two tensors, (k_all, v_all)."
    for name, got, expected, value in zip(("k_all", "v_all"), step.pair, step.expected, step.run.value, strict=True):
        if got is None:
            return "type", f"`{name}`: {type_message(value, torch.Tensor)}"
        if got.shape != expected.shape:
            return "shape", f"`{name}`: {shape_message(got.shape, expected.shape, 'BHSD')}"
        if got.dtype != expected.dtype:
            return "dtype", f"`{name}`: {expected.dtype} came in, {got.dtype} came out."
        wrong = got != expected
        if wrong.any():
            token = int(np.argwhere(wrong.any(axis=(0, 1, 3)))[0, 0])
            return "values", f"`{name}` is wrong first at token {token}: {_found(step, got, token)}"
    if step.changed:
        return "changed", "you changed the k or v that was handed over. Somebody else still needs it."
    return None


def _found(step: Step, got: np.ndarray, token: int) -> str:
    """Says what stands in a token's place."""
    there = got[:, :, token]
    if not there.any():
        return "zeros stand there."
    for name, tokens in zip("kv", step.expected, strict=True):
        for n in range(tokens.shape[2]):
            if np.array_equal(there, tokens[:, :, n]):
                return f"{name} of token {n} stands there."
    return "something else stands there."


def _examine_length(step: Step) -> tuple[str, str] | None:
    if type(step.length) is str:
        return "type", "your cache has no number `length`: keep the tokens that it holds in `self.length`."
    if step.length != step.expected_length:
        return "length", f"afterwards `length` is {step.length}; {step.expected_length} tokens should be there."
    return None


def _second_round(cache_class: object, deadline: float) -> str | None:
    if found := first_problem(play(cache_class, SECOND, deadline), SECOND):
        return f"Right at first, wrong with other sizes. {found[1]}"
    if found := first_problem(play(cache_class, SECOND, deadline, beside=True), SECOND):
        text = "Right alone, wrong when a second cache of your class is used in between: each needs memory of its own."
        return f"{text}\n{found[1]}"
    return None


def _bytes_moved(cache_class: object, steps: list[Step]) -> str | None:
    with TrafficMeter():
        torch.ones(1) + 1  # the first operation under a meter imports much of torch: not the student's time
    metered = play(cache_class, FIRST, time.monotonic() + sandbox.DEADLINE_S, meter=True)
    step = next((step for step in metered if step.written is not None), None)
    token = 2 * FIRST.batch_size * FIRST.n_heads * FIRST.head_dim * 4
    if step and step.run.error is None and step.written > (1 + _SLACK) * token:
        return (
            f"Right numbers. But the append after the rewind wrote {step.written / token:.3g} tokens instead of 1 "
            "(traffic meter): the buffer should be written in place and returned as a view."
        )
    if len({step.buffers for step in steps if step.buffers}) > 1:
        return (
            "Right numbers. But what append returns does not lie in one buffer from call to call: return views of "
            "the buffer that you write into."
        )
    return None


def _still_empty(answer: object, steps: list[Step]) -> str:
    """Returns the method that is as it was handed out, if nothing was found wrong before it, else an empty text."""
    last = steps[-1]
    if len(steps) == 1:
        return "`__init__`" if last.run.is_stub(answer) and last.run.error is not None else ""
    if steps[1].run.is_stub(getattr(answer, "append", None)):
        return "`append`"
    name = "rewind" if last.call.startswith("rewind") else "append"
    is_stub = isinstance(last.run.error, NotImplementedError) and last.run.is_stub(getattr(answer, name, None))
    return f"`{name}`" if is_stub and first_problem(steps[:-1], FIRST) is None else ""


def _trouble(run: sandbox.Run) -> str:
    return run.trouble().replace("Your function", "your class", 1)


def _tokens(script: Script, n_new: int, n: int, way: int) -> torch.Tensor:
    shape = script.batch_size, script.n_heads, n_new, script.head_dim
    return torch.from_numpy(normal((34, script.max_seq_len, n, way), *shape)).float()


def _slots(array: np.ndarray | None, known: dict[bytes, tuple]) -> object:
    """Returns the token in each slot of `[B, H, S, D]`: which call brought it, None for none."""
    if array is None or array.ndim != 4:
        return None
    return [known.get(token.tobytes()) for token in np.ascontiguousarray(array.swapaxes(0, 2)).copy()]


def _call(cache: object, name: str):
    return lambda *args: getattr(cache, name)(*args)


def _as_array(value: object) -> np.ndarray | None:
    """Returns a copy of a plain tensor, None for anything else."""
    if type(value) not in (torch.Tensor, torch.nn.Parameter) or value.layout != torch.strided:
        return None
    if value.device.type == "meta":
        return None
    value = value.float() if value.dtype == torch.bfloat16 else value
    return value.detach().cpu().resolve_conj().resolve_neg().numpy().copy()


def _as_number(value: object) -> int | str:
    """Returns a whole number of any kind as int, else the name of what it is."""
    if isinstance(value, torch.Tensor | np.ndarray | np.generic) and len(np.shape(value)) == 0:
        value = value.item()
    is_whole = type(value) is int or (type(value) is float and value.is_integer())
    return int(value) if is_whole else type(value).__name__


def _tensors(cache: object) -> list[np.ndarray]:
    """Returns copies of the four-dimensional tensors that an object holds, in lists and dicts too."""
    found, todo = [], [getattr(cache, "__dict__", {})]
    while todo and len(found) < 100:
        value = todo.pop()
        if isinstance(value, dict):
            todo += value.values()
        elif isinstance(value, list | tuple):
            todo += value
        elif isinstance(value, torch.Tensor) and value.ndim == 4 and (copied := _as_array(value)) is not None:
            found.append(copied)
    return found


CACHE = BuildCache(
    id="03.cache",
    level="build ●●● 15 min, core",
    mistakes=MISTAKES,
    notice="Notice: rewind can do without moving a byte. What lies behind `length` is not there, whatever it holds.",
)
