"""`CacheMeter`: a `TrafficMeter` that knows keys and values when it sees them: of which layer, and copied or not."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from gqa_lab.footprint import distinct_bytes, tensors_in
from gqa_lab.traffic import TrafficMeter

aten = torch.ops.aten
_PRODUCTS = {aten.mm, aten.bmm, aten.addmm, aten.baddbmm, aten.mv, aten.addmv, aten.dot}


@dataclass(frozen=True)
class Copy:
    """An operation that wrote keys or values again: `times` the bytes that it read of them."""

    layer: int
    operation: str
    read_bytes: int
    written_bytes: int

    @property
    def kind(self) -> str:
        """What that usually is."""
        if self.operation == "cat":
            return "concatenated"
        return "expanded" if self.written_bytes > self.read_bytes else "copied"


class CacheMeter(TrafficMeter):
    """Counts what is read of each layer's keys and values, through whatever copies are made of them.

    An operation that reads them and writes at least half as many elements is a copy, unless it is a matrix product or
    an attention; what reads the copy reads the cache once more.

    Args:
        caches: the keys and values of each layer.
    """

    def __init__(self, caches: list[tuple[Tensor, Tensor]]):
        super().__init__()
        self.cache_bytes_read = [0] * len(caches)
        self.copies: list[Copy] = []
        self._layer_of = {_storage(x): i for i, both in enumerate(caches) for x in both}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        before = len(self.operations)
        result = super().__torch_dispatch__(func, types, args, kwargs)
        whole = not func.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd)
        if whole and len(self.operations) > before:
            self._follow(func, args, kwargs or {}, result)
        return result

    def _follow(self, func, args: tuple, kwargs: dict, result) -> None:
        op, read = self.operations[-1], {}
        arguments = func._schema.arguments
        named = dict(zip([a.name for a in arguments], args, strict=False)) | kwargs
        for argument in arguments:
            if not argument.is_write:
                for x in tensors_in(named.get(argument.name)):
                    if _storage(x) in self._layer_of:
                        read.setdefault(self._layer_of[_storage(x)], []).append(x)
        for layer, tensors in read.items():
            n_read = min(distinct_bytes(*tensors), op.bytes_read)
            self.cache_bytes_read[layer] += n_read
            n_written = sum(x.numel() for x in tensors_in(result))
            if _may_copy(func) and 2 * n_written * tensors[0].element_size() >= n_read:
                self.copies.append(Copy(layer, op.name, n_read, op.bytes_written))
                self._layer_of |= {_storage(x): layer for x in tensors_in(result)}


def _may_copy(func) -> bool:
    return func.overloadpacket not in _PRODUCTS and "scaled_dot_product" not in func.overloadpacket.__name__


def _storage(x: Tensor) -> StorageWeakRef:
    """What tensors have in common that share memory; a weak reference, so that no other storage gets its address."""
    return StorageWeakRef(x.untyped_storage())
