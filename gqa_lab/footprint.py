"""`bytes_moved`: what one operation reads and writes, in bytes of distinct memory. `traffic` adds it up.

An operation without a rule of its own reads its inputs whole and writes its outputs whole. The rules are few: a
view moves nothing; a fill does not read what it overwrites; a look-up and a write into chosen rows touch those rows.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
_FREE = {aten.is_same_size, aten._has_same_storage_numel, aten.is_pinned, aten._fused_sdp_choice}  # look at no data
_FILLS = {aten.copy_, aten.fill_, aten.zero_, aten.normal_, aten.uniform_, aten.random_, aten.bernoulli_}
_FILLS |= {aten.exponential_, aten.geometric_, aten.cauchy_, aten.log_normal_}
_ADDS = {aten.index_add_, aten.scatter_add_}


def _row(x: Tensor, dim: int, index: Tensor, *_) -> list:
    return [None] * (dim % x.ndim) + [index]


def _along(x: Tensor, dim: int, index: Tensor, *_) -> list:
    places = list(torch.meshgrid(*map(torch.arange, index.shape), indexing="ij"))
    places[dim] = index
    return places


_CHOSEN = {  # what turns the arguments of an operation into indices, so that it touches x[indices] only
    aten.embedding: lambda x, index, *_: [index],
    aten.take: lambda x, index: torch.unravel_index(index, x.shape),
    **dict.fromkeys([aten.index, aten.index_put_, aten._index_put_impl_], lambda x, indices, *_: indices),
    **dict.fromkeys([aten.index_select, aten.index_copy_, aten.index_add_, aten.index_fill_], _row),
    **dict.fromkeys([aten.gather, aten.scatter_, aten.scatter_add_], _along),
    **dict.fromkeys([aten.masked_fill_, aten.masked_select], lambda x, mask, *_: [mask.expand(x.shape)]),
}


def bytes_moved(func, args: tuple, kwargs: dict, result) -> tuple[int, int]:
    """Returns the bytes read and the bytes written by one operation that has run.

    Args:
        func: the operation, as `__torch_dispatch__` names it.
        args: what it was called with, and `kwargs`.
        result: what it returned.

    Example:
        >>> x = torch.zeros(10, 4)
        >>> bytes_moved(torch.ops.aten.mul.Tensor, (x, x), {}, x * x)
        (160, 160)
    """
    packet, arguments = func.overloadpacket, func._schema.arguments
    name = packet.__name__
    if packet in _FREE or torch.Tag.inplace_view in func.tags or name.startswith(("empty", "new_empty")):
        return 0, 0
    given = dict(zip([a.name for a in arguments], args, strict=False)) | kwargs
    inputs = {key: tensors_in(value) for key, value in given.items()}
    known = {_storage(x) for values in inputs.values() for x in values}
    written = [x for x in tensors_in(result) if _storage(x) not in known]
    written += [x for a in arguments if a.is_write for x in inputs.get(a.name, [])]
    if tensors_in(result) and not written:  # a view
        return 0, 0
    choose = _CHOSEN.get(packet) if args and isinstance(args[0], Tensor) and args[0].ndim else None
    unread = {a.name for a in arguments if a.is_out}
    shaped_like = name.endswith("_like") or name.startswith("new_")
    if packet in _FILLS or choose or shaped_like or kwargs.get("beta") == 0:  # addmm with beta 0 does not look at it
        unread.add(arguments[0].name)
    read = distinct_bytes(*(x for key, values in inputs.items() if key not in unread for x in values))
    if not choose:
        return read, distinct_bytes(*written)
    chosen = _chosen_bytes(args[0], choose(*args))
    if not arguments[0].is_write:
        return read + chosen, distinct_bytes(*written)
    adds = packet in _ADDS or given.get("accumulate") or given.get("reduce")
    return read + chosen if adds else read, chosen


def tensors_in(value) -> list[Tensor]:
    """Returns the tensors in a tensor, a list or any nest of them."""
    return [x for x in tree_leaves(value) if isinstance(x, Tensor)]


def _chosen_bytes(x: Tensor, indices: Sequence[Tensor | None]) -> int:
    """Bytes of x that x[indices] takes; what is chosen twice counts once."""
    address, whole, dim = torch.zeros((), dtype=torch.long), [], 0
    for index in indices:
        if index is None:
            whole.append(dim)
            dim += 1
            continue
        index = index.cpu()
        for place in index.nonzero(as_tuple=True) if index.dtype in (torch.bool, torch.uint8) else [index]:
            address = address + place.long() % x.shape[dim] * x.stride(dim)
            dim += 1
    whole += range(dim, x.ndim)
    row = x.as_strided([x.shape[dim] for dim in whole], [x.stride(dim) for dim in whole])
    return address.unique().numel() * distinct_bytes(row)


def distinct_bytes(*tensors: Tensor) -> int:
    """Returns the bytes of memory that tensors occupy together, each counted once however often they overlap.

    Example:
        >>> x = torch.zeros(10, 4)
        >>> distinct_bytes(x[:1].expand(10, 4)), distinct_bytes(x, x[:, :1]), distinct_bytes(x[:6], x.t()[:, 4:])
        (16, 160, 160)
    """
    storages: dict[int, set[_Area]] = {}
    for x in tensors:
        if x.numel():
            storages.setdefault(_storage(x), set()).add(_area(x))
    return sum(_union(sorted(areas)) for areas in storages.values())


def _storage(x: Tensor) -> int:
    """What tensors have in common that share memory."""
    return x.untyped_storage()._cdata


class _Area(NamedTuple):
    """Where a tensor lies in its storage, in bytes: a run without gaps, repeated at strides."""

    start: int
    end: int
    run: int
    repeats: tuple[tuple[int, int], ...]  # (stride, size), the smallest stride first


def _area(x: Tensor) -> _Area:
    start, run, repeats = x.storage_offset() * x.element_size(), x.element_size(), []
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        stride *= x.element_size()
        if stride == run and not repeats:
            run *= size
        elif stride and size > 1:
            repeats.append((stride, size))
    return _Area(start, start + run + sum(stride * (size - 1) for stride, size in repeats), run, tuple(repeats))


def _union(areas: list[_Area]) -> int:
    """Bytes that the sorted areas of one storage cover; only those whose ranges meet can overlap."""
    groups: list[list[_Area]] = []
    end = 0
    for area in areas:
        if area.start >= end:
            groups.append([])
        groups[-1].append(area)
        end = max(end, area.end)
    return sum(map(_covered, groups))


def _covered(areas: list[_Area]) -> int:
    """Bytes covered by areas whose ranges meet: marked one by one, unless that is plain to see."""
    start, end = areas[0].start, max(area.end for area in areas)
    if any(area.run == end - start for area in areas):  # one that holds all the others
        return end - start
    if len(areas) == 1 and not _overlaps_itself(areas[0]):
        return areas[0].run * math.prod(size for _, size in areas[0].repeats)
    unit = math.gcd(*(n for area in areas for n in (area.start - start, area.run, *dict(area.repeats))))
    marks = np.zeros((end - start) // unit, dtype=bool)
    for area in areas:
        sizes = [size for _, size in area.repeats] + [area.run // unit]
        strides = [stride // unit for stride, _ in area.repeats] + [1]
        np.lib.stride_tricks.as_strided(marks[(area.start - start) // unit :], sizes, strides)[...] = True
    return int(marks.sum()) * unit


def _overlaps_itself(area: _Area) -> bool:
    """True if a repeat may start before the one before it has ended, as the windows of `unfold` do."""
    extent = area.run
    for stride, size in area.repeats:
        if stride < extent:
            return True
        extent += stride * (size - 1)
    return False
