"""`TrafficMeter`: counts the bytes that each operation of an eager program reads and writes, the same every time.

It watches PyTorch's dispatcher, in the thread that entered it. Each operation reads every distinct input byte once
and writes its output once; views are free; dimensions of stride 0 count once; a look-up reads only the rows it was
asked for, and a copy into a slice touches only the slice. It cannot see inside an operation: a fused kernel that reads
its keys again for every query head counts like one that reads them once. Where it cannot see at all (compiled code,
the replay of a CUDA graph, Triton kernels, other libraries' operations) it raises. Never time a program under it.
"""

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
EMPTY = {aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten.new_empty_strided}  # memory, no bytes
SHAPE_ONLY = {  # the input says how large the output is; its bytes are not read
    *(aten.zeros_like, aten.ones_like, aten.full_like, aten.new_zeros, aten.new_ones, aten.new_full),
    *(aten.rand_like, aten.randn_like, aten.randint_like),
}
WRITE_ONLY = {  # what stood in the first argument is replaced unseen
    *(aten.copy_, aten.fill_, aten.zero_, aten.normal_, aten.uniform_, aten.random_, aten.bernoulli_),
    aten.exponential_,
}
LOOK_UPS = {aten.embedding, aten.index_select, aten.index, aten.gather, aten.take}  # read as much as they return
SLICE_WRITES = {aten.index_put_, aten._index_put_impl_, aten.index_copy_, aten.scatter_, aten.index_fill_}
SLICE_ADDS = {aten.index_add_, aten.scatter_add_}  # these read what they add to
BETA = {aten.addmm, aten.addmv, aten.addbmm, aten.baddbmm}  # beta = 0 leaves the first argument unread


@dataclass(frozen=True)
class Operation:
    """One operation and its traffic in bytes."""

    name: str
    bytes_read: int
    bytes_written: int


class TrafficMeter(TorchDispatchMode):
    """Counts bytes while its `with` block runs; entered again, it goes on counting.

    Attributes:
        operations: every operation that moved bytes, in order.

    Raises:
        RuntimeError: inside the block, where something runs whose traffic it cannot see; says what.

    Example:
        >>> x = torch.zeros(10, 4)
        >>> with TrafficMeter() as meter:
        ...     y = x[:5].t() + 1            # the views are free
        >>> meter.bytes_read, meter.bytes_written
        (80, 80)
    """

    def __init__(self):
        super().__init__()
        self.operations: list[Operation] = []
        self._guards: list[contextlib.ExitStack] = []

    @property
    def bytes_read(self) -> int:
        """Bytes read by all operations."""
        return sum(op.bytes_read for op in self.operations)

    @property
    def bytes_written(self) -> int:
        """Bytes written by all operations."""
        return sum(op.bytes_written for op in self.operations)

    def table(self) -> str:
        """Returns the traffic of each kind of operation as lines of text, the largest first."""
        kinds: dict[str, list[int]] = {}
        for op in self.operations:
            row = kinds.setdefault(op.name, [0, 0, 0])
            kinds[op.name] = [row[0] + 1, row[1] + op.bytes_read, row[2] + op.bytes_written]
        kinds = dict(sorted(kinds.items(), key=lambda item: -sum(item[1][1:])))
        kinds["all"] = [len(self.operations), self.bytes_read, self.bytes_written]
        lines = [f"{name:<40}{n:>8}{read:>18,}{written:>18,}" for name, (n, read, written) in kinds.items()]
        return "\n".join([f"{'operation':<40}{'calls':>8}{'bytes read':>18}{'bytes written':>18}", *lines])

    def __enter__(self):
        self._guards.append(_guards())
        return super().__enter__()

    def __exit__(self, *exception):
        self._guards.pop().close()
        return super().__exit__(*exception)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.namespace not in ("aten", "prim"):
            raise _unseen(f"the operation {func}")
        for x in _tensors((args, kwargs)):
            if x.layout != torch.strided:
                raise _unseen(f"a tensor of layout {x.layout}")
        before = _replaced(func.overloadpacket, args, kwargs)
        result = func(*args, **kwargs)
        read, written = _traffic(func, args, kwargs, result) if before is None else before
        if read or written:
            self.operations.append(Operation(func.overloadpacket.__name__, read, written))
        return result


# ---- what one operation moves ----------------------------------------------------------------------------


def distinct_bytes(*tensors: Tensor) -> int:
    """Returns the bytes that the tensors occupy together; what several show, or one shows twice, counts once.

    Example:
        >>> x = torch.zeros(1, 6)
        >>> distinct_bytes(x.expand(100, 6)), distinct_bytes(x, x[:, :2]), distinct_bytes(x[:, :2], x[:, 4:])
        (24, 24, 16)
    """
    storages: dict[int, dict[tuple, tuple[int, int, Tensor]]] = {}
    for x in tensors:
        if x.numel():
            extents = [(size, stride) for size, stride in zip(x.shape, x.stride(), strict=True) if stride and size > 1]
            first = x.storage_offset() * x.element_size()
            last = first + (sum((size - 1) * stride for size, stride in extents) + 1) * x.element_size()
            storage = storages.setdefault(x.untyped_storage()._cdata, {})
            storage[first, x.element_size(), tuple(sorted(extents))] = first, last, x
    return sum(_union(sorted(views.values(), key=lambda view: view[:2])) for views in storages.values())


def _union(views: list[tuple[int, int, Tensor]]) -> int:
    """Returns how many bytes of one storage are in any of the views (first byte, end, tensor), sorted."""
    apart = all(a[1] <= b[0] for a, b in zip(views, views[1:], strict=False))
    if apart and not any(map(_overlaps_itself, (x for _, _, x in views))):
        return sum(_product(x) for _, _, x in views)
    start, end = views[0][0], max(last for _, last, _ in views)
    seen = torch.zeros(end - start, dtype=torch.bool)
    for first, _, x in views:
        size = x.element_size()
        strides = [stride * size for stride in x.stride()]
        seen.as_strided([*x.shape, size], [*strides, 1], first - start).fill_(True)
    return int(seen.sum())


def _product(x: Tensor) -> int:
    n = x.element_size()
    for size, stride in zip(x.shape, x.stride(), strict=True):
        n *= size if stride else 1
    return n


def _overlaps_itself(x: Tensor) -> bool:
    reach = 0  # offset of the last element that the smaller strides lead to
    for stride, size in sorted((stride, size) for size, stride in zip(x.shape, x.stride(), strict=True)):
        if stride and size > 1:
            if stride <= reach:
                return True
            reach += (size - 1) * stride
    return False


def _replaced(packet, args, kwargs) -> tuple[int, int] | None:
    """Returns the traffic of a write to chosen places, as it is before the write; None for other operations."""
    if packet not in SLICE_WRITES | SLICE_ADDS:
        return None
    target, rest = args[0], _tensors((args[1:], kwargs))
    if packet in (aten.index_put_, aten._index_put_impl_):
        n_places = aten.index(target, args[1]).numel()
    elif packet in (aten.scatter_, aten.scatter_add_):
        n_places = args[2].numel()
    else:
        n_places = aten.index_select(target, args[1], args[2]).numel()
    written = n_places * target.element_size()
    accumulates = packet in SLICE_ADDS or (len(args) > 3 and args[3] is True) or kwargs.get("accumulate", False)
    return distinct_bytes(*rest) + (written if accumulates else 0), written


def _traffic(func, args, kwargs, result) -> tuple[int, int]:
    """Returns the bytes that a call read and wrote."""
    packet, outputs = func.overloadpacket, _tensors(result)
    if packet in EMPTY or torch.Tag.inplace_view in func.tags:
        return 0, 0
    if packet in SHAPE_ONLY:
        return 0, distinct_bytes(*outputs)
    if packet in LOOK_UPS:
        chosen, (_, *indices) = distinct_bytes(*outputs), _tensors((args, kwargs))
        return chosen + distinct_bytes(*indices), chosen
    read, mutated = _arguments(func, args, kwargs)
    if not func._schema.is_mutable:
        fresh = [x for x in outputs if not any(_shares_memory(x, y) for y in read)]
        return (distinct_bytes(*read), distinct_bytes(*fresh)) if fresh or not outputs else (0, 0)
    return distinct_bytes(*read), distinct_bytes(*mutated)


def _arguments(func, args, kwargs) -> tuple[list[Tensor], list[Tensor]]:
    """Returns the tensors that a call reads and those that it writes to, as its schema declares them."""
    read, written = [], []
    values = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | kwargs
    for i, argument in enumerate(func._schema.arguments):
        tensors = _tensors(values.get(argument.name))
        is_written = argument.alias_info is not None and argument.alias_info.is_write
        unread = (is_written and (argument.is_out or func.overloadpacket in WRITE_ONLY)) or (
            i == 0 and func.overloadpacket in BETA and values.get("beta") == 0
        )
        written += tensors if is_written else []
        read += [] if unread else tensors
    return read, written


def _tensors(values: object) -> list[Tensor]:
    return [x for x in tree_leaves(values) if isinstance(x, Tensor)]


def _shares_memory(x: Tensor, y: Tensor) -> bool:
    return x.untyped_storage()._cdata == y.untyped_storage()._cdata


# ---- what it cannot see -----------------------------------------------------------------------------------


def _unseen(what: str) -> RuntimeError:
    return RuntimeError(f"TrafficMeter cannot see what {what} reads and writes; run the eager PyTorch program under it")


def _guards() -> contextlib.ExitStack:
    """Returns a stack that holds the doors shut through which a program leaves the dispatcher, until it is closed."""
    stack = contextlib.ExitStack()
    for owner, name, what, passes in _doors():
        stack.enter_context(_shut(owner, name, what, passes))
    return stack


def _doors() -> Iterator[tuple[object, str, str, Callable[..., bool]]]:
    """Yields owner and name of each function that leads out of sight, what it is, and which calls of it do not."""
    loaded = sys.modules

    def never(*args, **kwargs):
        return False

    yield torch.cuda.CUDAGraph, "replay", "the replay of a CUDA graph", never
    yield torch, "compile", "compiled code", never
    if "torch._dynamo.eval_frame" in loaded:  # every call of compiled code asks this; None and False mean eager
        frames = loaded["torch._dynamo.eval_frame"]
        yield frames, "_callback_from_stance", "compiled code", lambda callback: callback in (None, False)
    if "triton.runtime.jit" in loaded:
        yield loaded["triton.runtime.jit"].JITFunction, "run", "a Triton kernel", never
    if "triton.runtime.interpreter" in loaded:
        yield loaded["triton.runtime.interpreter"].InterpretedFunction, "run", "a Triton kernel", never


@contextlib.contextmanager
def _shut(owner: object, name: str, what: str, passes: Callable[..., bool]) -> Iterator[None]:
    original = getattr(owner, name)

    @functools.wraps(original)
    def guarded(*args, **kwargs):
        if not passes(*args, **kwargs):
            raise _unseen(what)
        return original(*args, **kwargs)

    setattr(owner, name, guarded)
    try:
        yield
    finally:
        setattr(owner, name, original)
