"""`TrafficMeter`: counts the bytes that each operation of an eager program reads and writes, the same every time.

It watches PyTorch's dispatcher. Each operation reads every distinct input byte once and writes its output once;
views are free; dimensions of stride 0 count once; a look-up reads only the rows it was asked for, and a copy into
a slice touches only the slice. It cannot see inside an operation: a fused kernel that reads its keys again for
every query head counts like one that reads them once. Never time a program under it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
_WRITE_ONLY = {aten.copy_, aten.fill_, aten.zero_}  # what stood in the first argument is not read
_LOOK_UPS = {aten.embedding, aten.index_select, aten.index, aten.gather}  # read as much as they return
_SLICE_WRITES = {
    aten.index_put_: 2,
    aten._index_put_impl_: 2,
    aten.index_copy_: 3,
}  # position of the new values


@dataclass(frozen=True)
class Operation:
    """One operation and its traffic in bytes."""

    name: str
    bytes_read: int
    bytes_written: int


class TrafficMeter(TorchDispatchMode):
    """Counts bytes while its `with` block runs.

    Attributes:
        operations: every operation that moved bytes, in order.

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

    @property
    def bytes_read(self) -> int:
        """Bytes read by all operations."""
        return sum(op.bytes_read for op in self.operations)

    @property
    def bytes_written(self) -> int:
        """Bytes written by all operations."""
        return sum(op.bytes_written for op in self.operations)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.namespace not in ("aten", "prim"):
            raise RuntimeError(f"TrafficMeter cannot see what {func} reads and writes; use eager PyTorch operations")
        result = func(*args, **kwargs)
        read, written = _traffic(func.overloadpacket, func, args, kwargs, result)
        if read or written:
            self.operations.append(Operation(func.overloadpacket.__name__, read, written))
        return result


def distinct_bytes(x: Tensor) -> int:
    """Returns the bytes that `x` occupies in memory; an expanded (stride 0) dimension counts once.

    Example:
        >>> distinct_bytes(torch.zeros(1, 6).expand(100, 6))
        24
    """
    n = x.element_size()
    for size, stride in zip(x.shape, x.stride(), strict=True):
        n *= size if stride or not size else 1
    return n


def _traffic(packet, func, args, kwargs, result) -> tuple[int, int]:
    inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    outputs = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
    if packet in _SLICE_WRITES:
        values = args[_SLICE_WRITES[packet]]
        target = args[0]
        n = distinct_bytes(values) // values.element_size() * target.element_size()
        return _sum_distinct([x for x in inputs if x is not target]), n
    if packet in _LOOK_UPS:
        table, *indices = inputs
        return sum(map(distinct_bytes, outputs)) + _sum_distinct(indices), sum(map(distinct_bytes, outputs))
    if not func._schema.is_mutable:
        fresh = [x for x in outputs if not any(_shares_memory(x, y) for y in inputs)]
        if outputs and not fresh or packet.__name__.startswith("empty") or packet is aten.new_empty:
            return 0, 0
        return _sum_distinct(inputs), sum(map(distinct_bytes, fresh))
    written = _mutated(func, args, kwargs)
    read = [x for x in inputs if not (packet in _WRITE_ONLY and x is args[0]) and x is not kwargs.get("out")]
    return _sum_distinct(read), _sum_distinct(written)


def _mutated(func, args, kwargs) -> list[Tensor]:
    values = dict(zip([a.name for a in func._schema.arguments], args, strict=False)) | kwargs
    writes = [a.name for a in func._schema.arguments if a.alias_info is not None and a.alias_info.is_write]
    return [x for name in writes for x in tree_leaves(values.get(name)) if isinstance(x, Tensor)]


def _shares_memory(x: Tensor, y: Tensor) -> bool:
    return x.untyped_storage().data_ptr() == y.untyped_storage().data_ptr() and x.untyped_storage().nbytes() > 0


def _sum_distinct(tensors: list[Tensor]) -> int:
    """Bytes of the tensors; one that is passed twice, or once more transposed, is read once."""
    return sum(n for _, n in {(x.data_ptr(), distinct_bytes(x)) for x in tensors})
