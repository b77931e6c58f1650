"""Follows K and V through a call: which of their bytes are read, and what becomes a copy of them. Same every time."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.attention import SDPBackend
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from gqa_lab.footprint import distinct_bytes, tensors_in
from gqa_lab.traffic import TrafficMeter

SOME, MUCH = 0.5, 1.5  # a result at least so large beside what it was made from is a copy; one so large, several
CONTRACTIONS = ("bmm", "mm", "addmm", "baddbmm", "mv", "dot", "linear", "matmul", "einsum", "convolution")
FUSED = ("_scaled_dot", "_flash", "_efficient", "_cudnn")


@dataclass(frozen=True)
class Evidence:
    """What one call did. Bytes of K and V are those of all layers together.

    Attributes:
        q_len: new tokens of each sequence.
        kv_bytes: of the keys and values that the new tokens may look at, each once.
        kv_bytes_touched: of K and V where they lie, each byte once however often it was read.
        kv_bytes_read: the same, as often as an operation read it.
        expanded_bytes: written into results several times as large as the K or V that they copy.
        appended_bytes: written by joining K or V with something, or by a cache that copies what it holds.
        copied_bytes: written into other copies of K and V.
        bytes_read: of everything, by the meter; `bytes_written` likewise. None where it could not count.
        unseen: why it could not.
        backends: what PyTorch chose for each call of `scaled_dot_product_attention`.
        rereads: such a call, on a CPU, had one query per head and fewer KV heads than query heads.
        copies_held: copies of each KV head that the cache held: 1, unless it keeps expanded ones.
        weight_bytes: of the weights that the step read.
        wall_s: seconds from the call to its result, where it was timed.
        device_s: seconds of these in which a GPU worked.
        read_bytes_per_s: what the machine can read.
    """

    q_len: int
    kv_bytes: int
    kv_bytes_touched: int = 0
    kv_bytes_read: int = 0
    expanded_bytes: int = 0
    appended_bytes: int = 0
    copied_bytes: int = 0
    bytes_read: int | None = None
    bytes_written: int | None = None
    unseen: str = ""
    backends: tuple[str, ...] = ()
    rereads: bool = False
    copies_held: int = 1
    weight_bytes: int = 0
    wall_s: float | None = None
    device_s: float | None = None
    read_bytes_per_s: float | None = None


@torch.no_grad()
def of_attention(attend: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, **named) -> Evidence:
    """Returns the evidence of one `attend(q, k, v, ...)`."""
    watch = Watch()
    return watch.run(lambda: watch.attended(attend, q, k, v, **named))


@torch.no_grad()
def of_step(step: Callable[[Callable], object], attend: Callable[..., Tensor], model: nn.Module) -> Evidence:
    """Returns the evidence of the second of two steps; the first shows where K and V lie before.

    Args:
        step: makes a token of each sequence with the attention that it is handed.
        attend: that attention.
        model: whose parameters are the weights, and whose `config`, if any, knows how many KV heads it has.
    """
    kept = []

    def keeping(q, k, v, **named):
        kept.extend((k, v))
        return attend(q, k, v, **named)

    step(keeping)
    config = getattr(model, "config", None)
    watch = Watch(kept, model.parameters(), getattr(config, "n_kv_heads", None))
    return watch.run(lambda: step(lambda q, k, v, **named: watch.attended(attend, q, k, v, **named)))


class Watch(TorchDispatchMode):
    """Takes down what each operation does with K, V and the weights.

    Args:
        kept: keys and values that a cache held before the call.
        weights: parameters; those that are only looked up in are not read.
        n_kv_heads: how many there should be; None means as many as are handed over.
    """

    def __init__(self, kept=(), weights=(), n_kv_heads: int | None = None):
        super().__init__()
        self.known = {_storage(x): StorageWeakRef(x.untyped_storage()) for x in kept}  # K, V and their copies
        self.weights, self.weights_read = {_storage(w): w.nbytes for w in weights}, set()
        self.n_kv_heads, self.copies_held, self.q_len = n_kv_heads, 1, 1
        self.n_bytes = dict.fromkeys(("kv_bytes", "kv_bytes_touched", "kv_bytes_read"), 0)
        self.n_bytes |= dict.fromkeys(("expanded_bytes", "appended_bytes", "copied_bytes"), 0)
        self.views: dict[int, list[Tensor]] | None = None  # while an attention runs: of its K and V, what was read

    def run(self, call: Callable[[], object]) -> Evidence:
        """Returns the evidence of one call, inside which every attention goes through `attended`."""
        sdpa, meter, unseen = _SdpaCalls(), TrafficMeter(), ""
        try:
            with sdpa, meter, self:
                call()
        except RuntimeError as error:
            if not str(error).startswith("TrafficMeter cannot see"):
                raise
            unseen = str(error)
        return Evidence(
            q_len=self.q_len,
            **self.n_bytes,
            bytes_read=None if unseen else meter.bytes_read,
            bytes_written=None if unseen else meter.bytes_written,
            unseen=unseen,
            backends=tuple(dict.fromkeys(sdpa.backends)),
            rereads=sdpa.rereads,
            copies_held=self.copies_held,
            weight_bytes=sum(self.weights[storage] for storage in self.weights_read),
        )

    def attended(self, attend: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, **named) -> Tensor:
        """Returns `attend(q, k, v, ...)`, watched as an attention."""
        self.q_len = q.shape[2]
        self.copies_held = max(self.copies_held, k.shape[1] // (self.n_kv_heads or k.shape[1]))
        self.known |= {_storage(x): StorageWeakRef(x.untyped_storage()) for x in (k, v)}
        self.views = {_storage(x): [] for x in (k, v)}
        with _disable_current_modes():
            self.n_bytes["kv_bytes"] += sum(_bytes_that_count(q.shape[2], x, **named) for x in (k, v))
        out = attend(q, k, v, **named)
        views, self.views = sum(self.views.values(), []), None
        with _disable_current_modes():
            self.n_bytes["kv_bytes_touched"] += distinct_bytes(*views)
        return out

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        with _disable_current_modes():
            self._note(func, args, kwargs or {}, result)
        return result

    def _note(self, func, args: tuple, kwargs: dict, result: object) -> None:
        name, arguments = func.overloadpacket.__name__, func._schema.arguments
        given = dict(zip([a.name for a in arguments], args, strict=False)) | kwargs
        changed = [x for a in arguments if a.is_write for x in tensors_in(given.get(a.name))]
        inputs = [x for x in tensors_in(given) if not any(x is y for y in changed)]
        old = {_storage(x) for x in (*inputs, *changed)}
        made = changed + [x for x in tensors_in(result) if _storage(x) not in old]
        if not made:  # a view
            return
        if name != "embedding":
            self.weights_read |= {_storage(x) for x in inputs} & self.weights.keys()
        sources = [x for x in inputs if self._is_kv(x)]
        read = [x for x in sources if _storage(x) in (self.views or {})]
        self.n_bytes["kv_bytes_read"] += distinct_bytes(*read)  # an operation reads a byte once, as the meter has it
        for x in read:
            self.views[_storage(x)].append(x)
        if sources and name not in CONTRACTIONS and not name.startswith(FUSED):
            self._note_copy(name, sources, made)

    def _note_copy(self, name: str, sources: list[Tensor], made: list[Tensor]) -> None:
        times = sum(x.numel() for x in made) / (distinct_bytes(*sources) / sources[0].element_size())
        if times < SOME:  # a sum, a maximum
            return
        self.known |= {_storage(x): StorageWeakRef(x.untyped_storage()) for x in made}
        kind = "expanded" if times >= MUCH else "appended" if name == "cat" or self.views is None else "copied"
        self.n_bytes[f"{kind}_bytes"] += distinct_bytes(*made)

    def _is_kv(self, x: Tensor) -> bool:
        reference = self.known.get(_storage(x))
        return reference is not None and not reference.expired()


class _SdpaCalls(TorchFunctionMode):
    """Asks, at each call of `scaled_dot_product_attention`, which backend PyTorch chooses for it."""

    def __init__(self):
        super().__init__()
        self.backends: list[str] = []
        self.rereads = False

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            q, k = (kwargs.get(name, args[i] if len(args) > i else None) for i, name in enumerate(("query", "key")))
            with _disable_current_modes():
                self.backends.append(SDPBackend(torch._fused_sdp_choice(*args, **kwargs)).name)
            fused = self.backends[-1] != "MATH" and q.device.type == "cpu"
            self.rereads |= fused and q.shape[-2] == 1 and q.shape[-3] > k.shape[-3]
        return func(*args, **kwargs)


def _bytes_that_count(q_len: int, x: Tensor, *, lengths: Tensor | None = None, window: int | None = None) -> int:
    """Bytes of K, or of V, that some new token may look at."""
    batch_size, n_kv_heads, n_slots, head_dim = x.shape
    ends = [n_slots] * batch_size if lengths is None else lengths.tolist()
    seen = sum(min(end, end if window is None else window + q_len - 1) for end in ends)
    return seen * n_kv_heads * head_dim * x.element_size()


def _storage(x: Tensor) -> int:
    """What tensors have in common that share memory."""
    return x.untyped_storage()._cdata
