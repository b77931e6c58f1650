"""Faster decode steps for `generate(..., step=...)`: one program, fixed shapes, one launch. Same tokens.

Each function returns a step, as `decode_step` is one: `(model, ids [B, 1], caches, *, attend) -> logits [B, vocab]`.
They stack: `captured(compiled())` is a graph of the compiled program.
"""

from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int32, Int64
from torch import Tensor, nn

from gqa_lab.attention import fused_is_faster, grouped_attention
from gqa_lab.cache import KVCache
from gqa_lab.config import ModelConfig
from gqa_lab.generate import decode_step
from gqa_lab.model import Layer, Transformer, rotate

Step = Callable[..., Tensor]
OPTIONS = {
    "size_asserts": False,  # the strides of all weights, looked at for every token
    "alignment_asserts": False,
    "cpp.enable_floating_point_contract_flag": "fast",  # a product and a sum in one instruction
}


# ---- one program ----------------------------------------------------------------------------------------


def compiled() -> Step:
    """Returns a step that is one compiled program, from the embedded token to the logits.

    The first token waits for the compiler (on a CPU some seconds, and a C++ compiler must be there). A layer is
    compiled once, and its code serves all, which are trusted to be as alike as `Transformer` makes them: after
    exchanging parts of one by hand, call `torch.compiler.reset()`.

    On a CPU the append to the caches and `grouped_attention` are inside the program, for sequences of one length and as
    long as `fused_is_faster`. Otherwise they stand apart: the program calls `KVCache.append` and the attention, any
    attention, as they are. Lengths and sizes of caches change no program. Batch size, dtype and kind of model do, and
    inside or apart, and the first token of an empty cache: each waits for the compiler when first met.

    One row times a matrix becomes a sum, `(weight * x).sum(-1)`: the compiler makes one loop over the rows of the
    weights of it, on all threads. It wants them by rows, so the first step lays out the weights anew;
    `model.lay_out_weights()` brings back what eager steps like best. In 16 bits the sums and x are float32.

    Raises:
        ValueError: if `attend` returns another shape or dtype than that of its q.
        RuntimeError: at the ninth program; nothing is stored then.
    """
    program = torch.compile(_logits, fullgraph=True, dynamic=False, options=OPTIONS)

    @torch.no_grad()
    def step(model: Transformer, ids: Tensor, caches: list[KVCache], *, attend=grouped_attention) -> Tensor:
        _check_one(ids)
        if not _head(model).weight.is_contiguous():
            _by_rows(model)
        x, (cos, sin) = model.embed_tokens(ids), model.rope(ids, caches)
        is_inside = _is_inside(model, ids, caches, attend)
        if is_inside:
            _check_room(ids, caches)
        apart = [] if is_inside else [partial(_over, cache, attend, model.config) for cache in caches]
        before = _layers_to_come.set(iter(apart))
        try:
            logits = program(model, x, cos, sin, *(_places(caches) if is_inside else ()))[:, 0]
        except torch._dynamo.exc.FailOnRecompileLimitHit as error:
            n_programs = torch._dynamo.config.recompile_limit
            raise RuntimeError(
                f"{n_programs} programs are compiled (one for each batch size, dtype and kind of model, with the "
                "attention inside or apart), and PyTorch keeps no more: forget them by torch.compiler.reset(), or "
                "raise torch._dynamo.config.recompile_limit"
            ) from error
        finally:
            _layers_to_come.reset(before)  # it would keep the caches alive
        if is_inside:
            _count(caches)
        return logits

    return step


def _is_inside(model: Transformer, ids: Int64[Tensor, "B 1"], caches: list[KVCache], attend) -> bool:
    """True if the program itself stores and attends: one slot and one length hold for all layers and sequences.

    Whatever does not fit is left to `KVCache.append` and to the attention, which say what is wrong.
    """
    first, config = caches[0], model.config
    if attend is not grouped_attention or model.device.type != "cpu" or len(set(first.host_lengths)) > 1:
        return False
    shape = (ids.shape[0], config.n_kv_heads, first.n_slots, config.head_dim)
    fitting = (KVCache, shape, model.dtype, model.device, config.sliding_window, first.max_seq_len)
    if any((type(c), c.k.shape, c.k.dtype, c.k.device, c.window, c.max_seq_len) != fitting for c in caches):
        return False
    n_seen = min(first.host_lengths[0] + 1, first.n_slots)
    return fused_is_faster(first.k[:, :, :n_seen], config.n_heads // config.n_kv_heads)


def _places(caches: list[KVCache]) -> tuple[Int64[Tensor, "1"], Bool[Tensor, "S"], list[Tensor], list[Tensor]]:
    """Returns the slot of the new token, something as long as what it sees, and the buffers of all layers.

    The compiler is told that the length changes, and that the size of the buffers tells it nothing: one program serves
    all of both, full buffers too. What is marked are aliases; the caches are the user's to compile over.
    """
    n_past, n_slots, cpu = caches[0].host_lengths[0], caches[0].n_slots, caches[0].k.device
    slot = torch.tensor([n_past % n_slots], device=cpu)
    seen = torch.empty(min(n_past + 1, n_slots), dtype=torch.bool, device=cpu)
    torch._dynamo.mark_dynamic(seen, 0)
    ks, vs = [cache.k.detach() for cache in caches], [cache.v.detach() for cache in caches]
    for buffer in (*ks, *vs):
        torch._dynamo.decorators.mark_unbacked(buffer, 2, shape_id="n_slots")
    return slot, seen, ks, vs


def _logits(
    model: Transformer, x: Float[Tensor, "B 1 C"], cos: Tensor, sin: Tensor, slot=None, seen=None, ks=(), vs=()
) -> Float[Tensor, "B 1 vocab"]:
    """The program: what `Transformer.forward` computes, in a form that the compiler makes few loops of."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    for i, layer in enumerate(model.layers):
        place = () if slot is None else (slot, seen, ks[i], vs[i])
        x = _layer(layer, x, cos, sin, *place)
    return _linear(_head(model), _norm(model.norm, x)).to(model.dtype)


def _head(model: Transformer) -> nn.Linear | nn.Embedding:
    return model.embed_tokens if model.config.tie_embeddings else model.lm_head


@torch.compiler.nested_compile_region  # compiled for the first layer, called by all
def _layer(layer: Layer, x: Float[Tensor, "B 1 C"], cos: Tensor, sin: Tensor, *place) -> Float[Tensor, "B 1 C"]:
    own, mlp = layer.attention, layer.mlp
    normed = _norm(layer.attention_norm, x)

    def heads(linear: nn.Linear) -> Float[Tensor, "B heads 1 D"]:
        return _linear(linear, normed).to(cos.dtype).unflatten(-1, (-1, own.head_dim)).transpose(1, 2)

    q, k = own.q_norm(heads(own.q_proj)), own.k_norm(heads(own.k_proj))
    attention = partial(_store_and_attend, *place) if place else torch.ops.gqa_lab.attention_of_the_next_layer
    out = attention(rotate(q, cos, sin), rotate(k, cos, sin), heads(own.v_proj)).to(x.dtype)
    x = x + _linear(own.o_proj, out.transpose(1, 2).flatten(2))
    normed = _norm(layer.mlp_norm, x)
    return x + _linear(mlp.down_proj, F.silu(_linear(mlp.gate_proj, normed)) * _linear(mlp.up_proj, normed))


def _store_and_attend(slot, seen, k_all, v_all, q, k, v) -> Float[Tensor, "B H 1 D"]:
    """What `KVCache.append` does, and the attention, for the compiler to look into."""
    k_all.index_copy_(2, slot, k)
    v_all.index_copy_(2, slot, v)
    n_seen = seen.shape[0]
    torch._check(n_seen <= k_all.shape[2])
    return grouped_attention(q, k_all[:, :, :n_seen], v_all[:, :, :n_seen])


_layers_to_come: ContextVar[Iterator[Callable]] = ContextVar("the attentions of the layers that have not run yet")

# What the compiler does not look into. Each call takes the next cache; the order is safe, as each layer needs the
# result of the one before. `torch.library.custom_op` would be shorter, and take some 30 us more at each call.
_operations = torch.library.Library("gqa_lab", "FRAGMENT")
_operations.define("attention_of_the_next_layer(Tensor q, Tensor k, Tensor v) -> Tensor")


@torch.library.impl(_operations, "attention_of_the_next_layer", "CompositeExplicitAutograd")
def _attention_of_the_next_layer(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return next(_layers_to_come.get())(q, k, v)


@torch.library.register_fake("gqa_lab::attention_of_the_next_layer", lib=_operations)
def _like_q(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.empty_like(q, memory_format=torch.contiguous_format)


def _over(cache: KVCache, attend, config: ModelConfig, q: Tensor, k: Tensor, v: Tensor) -> Float[Tensor, "B H 1 D"]:
    k, v = cache.append(k, v)
    window = config.sliding_window if cache.window is None else None  # a ring holds what it shows
    out = attend(q.clone(), k, v, lengths=cache.kv_lengths(1), window=window)
    if out.shape != q.shape or out.dtype != q.dtype:  # the program would read other bytes for it
        found = f"{out.dtype} {list(out.shape)}"
        raise ValueError(f"attend must return q's shape and dtype, {q.dtype} {list(q.shape)}; it returned {found}")
    return out.clone(memory_format=torch.contiguous_format)  # both clones: the program reuses the memory of its own


def _norm(norm: nn.RMSNorm, x: Float[Tensor, "B 1 C"]) -> Float[Tensor, "B 1 C"]:
    return F.rms_norm(x, norm.normalized_shape, norm.weight.to(x.dtype), norm.eps)


def _linear(linear: nn.Linear | nn.Embedding, x: Float[Tensor, "B 1 n"]) -> Float[Tensor, "B 1 m"]:
    weight, bias = linear.weight, getattr(linear, "bias", None)
    if x.shape[0] > 1:
        y = F.linear(x.to(weight.dtype), weight).to(x.dtype)
    else:
        y = (weight.to(x.dtype) * x[0]).sum(-1)[None, None]
    return y if bias is None else y + bias


def _by_rows(model: Transformer) -> None:
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if weight is not None and not weight.is_contiguous():
            weight.data = weight.data.contiguous()


# ---- fixed shapes ---------------------------------------------------------------------------------------


class FixedCache(KVCache):
    """A cache as a program of fixed shapes sees it: the first `n_slots` slots, and lengths that only the device knows.

    The same memory. One token is stored where the device's lengths say; counting is left to whoever runs the program.
    """

    def __init__(self, cache: KVCache, n_slots: int):
        self.__dict__.update(cache.__dict__)
        self.k, self.v = cache.k[:, :, :n_slots], cache.v[:, :, :n_slots]
        self.all_rows = torch.arange(cache.k.shape[0], device=cache.k.device)

    def positions(self, q_len: int) -> Int64[Tensor, "B 1 1"]:
        """Returns where the new token of each sequence stands, on the device."""
        return self.lengths[:, None, None].long()

    def append(
        self, k: Float[Tensor, "B G 1 D"], v: Float[Tensor, "B G 1 D"]
    ) -> tuple[Float[Tensor, "B G S D"], Float[Tensor, "B G S D"]]:
        """Stores one token of each sequence and returns views of all `n_slots`."""
        slots = self.lengths.long() % self.n_slots  # of a ring the first bucket that is full has all slots
        self.k[self.all_rows, :, slots] = k[:, :, 0]
        self.v[self.all_rows, :, slots] = v[:, :, 0]
        return self.k, self.v

    def kv_lengths(self, q_len: int) -> Int32[Tensor, "B"]:
        """Returns how many slots of each sequence hold a token, the new one included."""
        return (self.lengths + 1).clamp(max=self.n_slots)


def fixed_shapes(step: Step = decode_step, *, smallest: int = 256) -> Step:
    """Returns a step whose operations have the same shapes for many tokens: what a CUDA graph can record.

    The attention is handed the first `smallest` slots of the cache, then twice as many, and so on, with `lengths` to
    say how many count. An `attend` that masks reads all of them; `triton_decode_attention` reads only what counts.

    Args:
        step: what to run; anything that takes its caches as an argument.
        smallest: slots of the first bucket.
    """

    def fixed(model: Transformer, ids: Tensor, caches: list[KVCache], *, attend=grouped_attention) -> Tensor:
        _check_room(ids, caches)
        logits = step(model, ids, _fixed(caches, smallest), attend=attend)
        _count(caches)
        return logits

    return fixed


def _fixed(caches: list[KVCache], smallest: int) -> list[FixedCache]:
    n_slots = bucket(max(caches[0].host_lengths) + 1, smallest, caches[0].n_slots)
    return [FixedCache(cache, n_slots) for cache in caches]


def bucket(n_tokens: int, smallest: int, n_slots: int) -> int:
    """Returns how many slots to attend to: `smallest` times a power of two, as many as the tokens need.

    Example:
        >>> [bucket(n, 256, 2000) for n in (1, 256, 257, 1024, 1025)]
        [256, 256, 512, 1024, 2000]
    """
    while smallest < min(n_tokens, n_slots):
        smallest *= 2
    return min(smallest, n_slots)


def _count(caches: list[KVCache]) -> None:
    """Counts the token that a program has stored, on the device and on the host."""
    _count_one(caches)
    for cache in caches:
        cache.count_on_host(1)


def _count_one(caches: list[KVCache]) -> None:
    torch._foreach_add_([cache.lengths for cache in caches], 1)


def _check_one(ids: Tensor) -> None:
    if ids.ndim != 2 or ids.shape[1] != 1:
        raise ValueError(f"ids has shape {list(ids.shape)}; a decode step takes [batch, 1], prefill takes several")


def _check_room(ids: Tensor, caches: list[KVCache]) -> None:
    """What no recorded program can check, decided on the host before anything runs."""
    _check_one(ids)
    longest = max(caches[0].host_lengths)
    if longest + 1 > caches[0].max_seq_len:
        raise ValueError(
            f"1 more token after {longest} makes {longest + 1}; this cache has max_seq_len = {caches[0].max_seq_len}. "
            "Make it larger, or rewind() it"
        )


# ---- one launch -----------------------------------------------------------------------------------------


@dataclass
class _Graph:
    """A recorded step, the ids it reads, the logits it writes, and what else it reads: kept, as it knows addresses."""

    graph: "torch.cuda.CUDAGraph"
    ids: Tensor
    logits: Tensor
    fixed: list[FixedCache]


def captured(step: Step = decode_step, *, smallest: int = 256) -> Step:
    """Returns a step that is one launch: recorded as a CUDA graph for each bucket of lengths, then replayed.

    A graph remembers addresses, so it belongs to the caches that it was recorded with and goes when they go; other
    caches get their own. The logits live until the next step: copy them to keep them.

    Args, as `fixed_shapes`: what is recorded has fixed shapes.

    Raises:
        ValueError: on a CPU, which has no graphs; take `compiled()` there. At the first step.
    """
    of_caches: WeakKeyDictionary[KVCache, dict[tuple, _Graph]] = WeakKeyDictionary()

    def replay(model: Transformer, ids: Tensor, caches: list[KVCache], *, attend=grouped_attention) -> Tensor:
        if not _has_graphs(ids.device):
            raise ValueError(f"ids are on {ids.device}, and only a CUDA device has graphs; use step=compiled() here")
        _check_room(ids, caches)
        n_slots = bucket(max(caches[0].host_lengths) + 1, smallest, caches[0].n_slots)
        graphs, key = of_caches.setdefault(caches[0], {}), (model, attend, n_slots)
        if key not in graphs:
            graphs[key] = _record(step, model, ids, caches, n_slots, attend)
        recorded = graphs[key]
        recorded.ids.copy_(ids)
        recorded.graph.replay()
        for cache in caches:
            cache.count_on_host(1)
        return recorded.logits

    return replay


def _has_graphs(device: torch.device) -> bool:
    return device.type == "cuda"


@torch.no_grad()
def _record(step: Step, model: Transformer, ids: Tensor, caches: list[KVCache], n_slots: int, attend) -> _Graph:
    """Returns the recording. Warming up writes this token where the recording will write it again; nothing counts."""
    static_ids, fixed = ids.clone(), [FixedCache(cache, n_slots) for cache in caches]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):  # compilers and libraries prepare themselves at their first calls
            step(model, static_ids, fixed, attend=attend)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits = step(model, static_ids, fixed, attend=attend)
        _count_one(caches)
    return _Graph(graph, static_ids, logits, fixed)
