"""Runs a student's function: catches what it prints and raises, and stops its loops after a deadline.

A trace function on the current thread stops loops in Python, on every operating system. Two things are out of
reach inside one process: a native call that never returns, and a bare `except` in a loop, which swallows it.
"""

import contextlib
import io
import linecache
import os
import sys
import sysconfig
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType

import torch

DEADLINE_S = 5.0  # for all the student's code in one check
_CHECKS = os.path.dirname(os.path.abspath(__file__))
_PACKAGE = os.path.dirname(_CHECKS)
_LIBRARIES = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib"))


class TimeUp(BaseException):
    """Raised inside the student's code when the deadline has passed; `except Exception` does not catch it."""


@dataclass(frozen=True)
class Run:
    """What came of one call.

    Attributes:
        value: what the function returned.
        error: what it raised.
        printed: what it wrote to stdout and stderr.
        used_package: it called the package's own functions.
    """

    value: object = None
    error: BaseException | None = None
    printed: str = ""
    used_package: bool = False

    def is_stub(self, function: Callable) -> bool:
        """True if the function is as it was handed out: it raises NotImplementedError or does nothing."""
        if isinstance(self.error, NotImplementedError):
            if self.unwritten():
                return False
            line = student_line(self.error)
            return not self.error.args or bool(line and line[1].startswith("raise NotImplementedError"))
        size = len(getattr(getattr(function, "__code__", None), "co_code", b""))
        does_nothing = size == len((lambda: None).__code__.co_code)
        return self.error is None and (self.value is ... or (self.value is None and does_nothing))

    def unwritten(self) -> str:
        """Returns the name of another function that this one called and that is still a stub, or an empty text."""
        frames = [frame for frame, _ in _students_frames(self.error)]
        is_stub = isinstance(self.error, NotImplementedError) and len(frames) > 1
        if not is_stub or not student_line(self.error)[1].startswith("raise NotImplementedError"):
            return ""
        first, last = frames[0].f_code, frames[-1].f_code
        return "" if first is last else last.co_name

    def trouble(self) -> str:
        """Returns one sentence about the error, with the student's own line."""
        if name := self.unwritten():
            return f"Your function calls `{name}`, which is not written yet. Do that first, then check again."
        line = student_line(self.error)
        where = f" (line {line[0]}: `{_shorten(line[1], 90)}`)" if line else ""
        if isinstance(self.error, TimeUp):
            return f"Your function was still running after {DEADLINE_S:g} seconds{where}. Does every loop end?"
        if isinstance(self.error, SystemExit):
            return f"Your function ended Python{where}. Return the result instead."
        kind, text = type(self.error).__name__, _text_of(self.error)
        told = f"Your function raised {kind}{': ' + text if text else ''}{where}."
        if kind == "NameError" and self.error.name:
            told += f" If `{self.error.name}` belongs to an earlier cell or exercise, run that one first."
        if kind == "TypeError" and text.startswith("repeat() got an unexpected keyword argument 'axis'"):
            told += " NumPy's `repeat(…, axis=0)` is torch's `repeat_interleave(…, dim=0)`."
        return told


def run(function: Callable, args: list, keywords: dict, deadline: float) -> Run:
    """Calls `function(*args, **keywords)` and returns what came of it; only KeyboardInterrupt passes through.

    Args:
        deadline: in seconds of `time.monotonic()`.
    """
    printed, watch, value, error = io.StringIO(), _Watch(deadline), None, None
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        previous = sys.gettrace()
        sys.settrace(watch)
        try:
            value = function(*args, **keywords)
        except KeyboardInterrupt:
            raise
        except BaseException as caught:
            error = caught
        finally:
            sys.settrace(previous)
    if watch.is_late() and not isinstance(error, TimeUp):
        error = TimeUp()  # the student's code swallowed the stop
    return Run(value, error, printed.getvalue(), watch.used_package)


@contextlib.contextmanager
def plain_torch() -> Iterator[None]:
    """Makes float32, CPU and ordinary tensors the defaults, whatever the notebook has set, for a while."""
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.inference_mode(False), torch.device("cpu"):
            yield
    finally:
        torch.set_default_dtype(dtype)


def student_line(error: BaseException) -> tuple[int, str] | None:
    """Returns number and text of the last line of the student's own code that led to the error."""
    *_, last = [None, *_students_frames(error)]
    if last is None:
        return None
    frame, number = last
    text = linecache.getline(frame.f_code.co_filename, number, frame.f_globals).strip()
    return number, text or "(source not at hand)"


def _students_frames(error: BaseException | None) -> list[tuple[FrameType, int]]:
    """Returns the frames of the student's own code that led to the error, each with its line, the outermost first."""
    steps = traceback.walk_tb(error.__traceback__ if error else None)
    return [(frame, number) for frame, number in steps if _is_students(frame.f_code.co_filename)]


def shown(printed: str, n_lines: int = 5) -> str:
    """Returns what was printed, shortened and indented, to be added to a message."""
    lines = printed.rstrip().splitlines()
    if not lines:
        return ""
    more = [f"  … and {len(lines) - n_lines} more lines"] if len(lines) > n_lines else []
    return "\n".join(["\nYour code printed:", *(f"  {_shorten(line, 100)}" for line in lines[:n_lines]), *more])


class _Watch:
    """A trace function: looks at the clock at each step of the student's code and at each call."""

    def __init__(self, deadline: float):
        self.deadline = deadline
        self.used_package = False
        self._students: dict[str, bool] = {}

    def __call__(self, frame, event, argument):
        if self.is_late():
            raise TimeUp
        name = frame.f_code.co_filename
        if name not in self._students:
            self._students[name] = _is_students(name)
            self.used_package |= name.startswith(_PACKAGE + os.sep) and not name.startswith(_CHECKS)
        if not self._students[name]:
            return None
        frame.f_trace_opcodes = True  # `while True: pass` in one line has no line events
        return self

    def is_late(self) -> bool:
        return time.monotonic() > self.deadline


def _is_students(filename: str) -> bool:
    if filename.startswith("<"):  # code without a file: some is typed in, most is made by libraries
        return filename.startswith(("<stdin>", "<string>", "<ipython", "<cell"))
    return "site-packages" not in filename and not filename.startswith((_PACKAGE + os.sep, *_LIBRARIES))


def _text_of(error: BaseException) -> str:
    try:
        return _shorten(str(error).strip().split("\n")[0], 200)
    except Exception:
        return ""


def _shorten(text: str, n_characters: int) -> str:
    return text if len(text) <= n_characters else text[: n_characters - 1] + "…"
