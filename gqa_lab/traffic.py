"""`TrafficMeter`: counts the bytes that each operation of an eager program reads and writes, the same every time.

It watches PyTorch's dispatcher. Each operation reads every distinct byte of its inputs once and writes every byte
of its outputs once; views are free; dimensions of stride 0 count once; a look-up reads only the rows it was asked
for, and a copy into a slice or into chosen rows touches only those. It cannot see inside an operation: a fused
kernel that reads its keys again for every query head counts like one that reads them once. Nor does it see what
never was an operation: NumPy, `tolist()`, the list inside `torch.tensor([1, 2])`. Never time a program under it.
"""

import functools
import sys
import threading
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    _disable_current_modes,
    _get_current_dispatch_mode_stack,
)

from gqa_lab.footprint import bytes_moved, tensors_in


@dataclass(frozen=True)
class Operation:
    """One operation and its traffic in bytes."""

    name: str
    bytes_read: int
    bytes_written: int


class TrafficMeter(TorchDispatchMode):
    """Counts bytes while its `with` block runs, in the thread that entered it; other threads are not watched.

    In a second block it goes on counting. Where two meters are nested, both count.

    Attributes:
        operations: every operation that moved bytes, in order.

    Raises:
        RuntimeError: in the block, at what it cannot see: compiled code, CUDA graphs, TorchScript, Triton kernels,
            operations that are not PyTorch's own, tensors that are not plain memory. It never guesses.

    Example:
        >>> x = torch.zeros(10, 4)
        >>> with TrafficMeter() as meter:
        ...     y = x[:5].t() + 1            # the views are free
        >>> meter.bytes_read, meter.bytes_written
        (80, 80)
    """

    supports_higher_order_operators = True  # they come here, to be refused in our words

    def __init__(self):
        super().__init__()
        self.operations: list[Operation] = []

    @property
    def bytes_read(self) -> int:
        """Bytes read by all operations."""
        return _sums(self.operations)[0]

    @property
    def bytes_written(self) -> int:
        """Bytes written by all operations."""
        return _sums(self.operations)[1]

    def table(self) -> str:
        """Returns the bytes of each kind of operation as lines of text, the most first, and the sum of all."""
        kinds: dict[str, list[Operation]] = {}
        for op in self.operations:
            kinds.setdefault(op.name, []).append(op)
        rows = [(name, len(ops), *_sums(ops)) for name, ops in kinds.items()]
        rows.sort(key=lambda row: -row[2] - row[3])
        lines = [f"{'operation':<40}{'calls':>7}{'bytes read':>17}{'bytes written':>17}"]
        for name, calls, read, written in [*rows, ("all", len(self.operations), *_sums(self.operations))]:
            lines.append(f"{name[:39]:<40}{calls:>7}{read:>17,}{written:>17,}")
        return "\n".join(lines)

    def __enter__(self):
        if self in _get_current_dispatch_mode_stack():
            raise RuntimeError("this TrafficMeter is counting already; nest a new one in it")
        _guards.hold()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        _guards.release()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        _guards.refuse_compiled_code()
        if func.namespace in ("prim", "profiler"):  # where a tensor is, what a region is called: no bytes
            return func(*args, **kwargs)
        if func.namespace != "aten":
            raise _unseen(str(func), "use eager PyTorch operations")
        if func.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd):
            with self:  # inference_mode hands over a whole linear or einsum: take it apart
                return func.decompose(*args, **kwargs)
        _check_plain(func, (args, kwargs))
        result = func(*args, **kwargs)
        _check_plain(func, result)
        with _disable_current_modes():  # what the rules look up themselves is nobody's traffic
            read, written = bytes_moved(func, args, kwargs, result)
        if read or written:
            self.operations.append(Operation(func.overloadpacket.__name__, read, written))
        return result


def _sums(operations: list[Operation]) -> tuple[int, int]:
    return sum(op.bytes_read for op in operations), sum(op.bytes_written for op in operations)


def _unseen(what: str, remedy: str) -> RuntimeError:
    return RuntimeError(f"TrafficMeter cannot see what {what} reads and writes; {remedy}")


def _check_plain(func, values) -> None:
    for x in tensors_in(values):
        own_rules = type(x).__torch_dispatch__ is not Tensor.__torch_dispatch__
        if own_rules or x.layout is not torch.strided or x.is_nested or x.device.type == "meta":
            kind = f"{type(x).__name__} ({x.layout} on {x.device})"
            raise _unseen(f"{func} of a {kind}", "use plain dense tensors on a real device")


class _Guards:
    """Refuses, while meters count in a thread, what runs there past the dispatcher; restores everything after."""

    PAST_THE_DISPATCHER = (  # what is replaced by a refusal if its module is loaded, in words, and the remedy
        ("torch.cuda", "CUDAGraph", "capture_begin", "a CUDA graph", "run the step without a graph"),
        ("torch.cuda", "CUDAGraph", "replay", "a CUDA graph", "run the step that was captured"),
        ("torch", "ScriptFunction", "__call__", "TorchScript", "call the Python function"),
        ("torch", "ScriptMethod", "__call__", "TorchScript", "call the Python module"),
        ("triton.runtime.jit", "JITFunction", "run", "a Triton kernel", "count it by hand"),
        ("triton.runtime.interpreter", "InterpretedFunction", "run", "a Triton kernel", "count it by hand"),
    )

    def __init__(self):
        self.lock, self.n_meters, self.undo = threading.Lock(), 0, ExitStack()
        self.met_compiled_code: set[int] = set()  # threads

    def hold(self) -> None:
        import torch._dynamo  # the first operation under any dispatch mode would do it; it brings Triton along

        with self.lock:
            if not self.n_meters:
                self._install(torch._dynamo.eval_frame)
            self.n_meters += 1

    def release(self) -> None:
        with self.lock:
            self.n_meters -= 1
            if not self.n_meters:
                self.undo.close()
                self.met_compiled_code.clear()

    def refuse_compiled_code(self) -> None:
        if threading.get_ident() in self.met_compiled_code:
            self.met_compiled_code.discard(threading.get_ident())
            raise _unseen("compiled code", "call the function that was given to torch.compile")

    def _install(self, eval_frame) -> None:
        with ExitStack() as undo:
            _replace(undo, eval_frame, "_maybe_set_eval_frame", self._eager)
            for module, owner, name, what, remedy in self.PAST_THE_DISPATCHER:
                if module in sys.modules:
                    refusing = functools.partial(_refusing, error=_unseen(what, remedy))
                    _replace(undo, getattr(sys.modules[module], owner), name, refusing)
            self.undo = undo.pop_all()

    def _eager(self, set_eval_frame):
        """Every compiled function passes here. It then runs eagerly, up to its first operation, which raises.

        Raising at once would leave `torch.compile(dynamic=...)` half way in, with its settings changed.
        """

        def guard(callback):
            if callback is None or not _counting():
                return set_eval_frame(callback)
            self.met_compiled_code.add(threading.get_ident())
            return set_eval_frame(None)

        return guard


def _refusing(original, error):
    def guard(*args, **kwargs):
        if _counting():
            raise error
        return original(*args, **kwargs)

    return guard


def _replace(undo: ExitStack, owner, name: str, wrap) -> None:
    original = vars(owner)[name]
    undo.callback(setattr, owner, name, original)
    setattr(owner, name, wrap(original))


def _counting() -> bool:
    return any(isinstance(mode, TrafficMeter) for mode in _get_current_dispatch_mode_stack())


_guards = _Guards()
