"""Why the mean of KV heads says so little, tested: their lengths, their directions, and what turning them first gains.

Two heads may hold the same in another basis. A key and its queries can be turned together without changing a score,
as long as the turn commutes with RoPE: one angle for each pair (j, j + D/2), the same for all positions. A value and
the columns of `o_proj` that read it can be turned by any orthogonal matrix. Both turns are found on training text
(the idea: arXiv 2412.20677), by Procrustes. `low_rank` goes further: the one key and value of D numbers from which
all heads are best told, each by its own factors.
"""

import copy
from itertools import combinations

import torch
from convert_texts import held_out, loss, training_text, windows
from torch import Tensor

from gqa_lab.convert import pool_layers

N_WINDOWS = 8
"""Windows of the training text on which turns are found."""


def complex_pairs(x: Tensor, dim: int) -> Tensor:
    """Returns the pairs (j, j + D/2) of an axis as complex numbers: RoPE multiplies each by `exp(i * angle)`."""
    real, imaginary = x.chunk(2, dim)
    return torch.complex(real, imaginary)


def real_halves(z: Tensor, dim: int) -> Tensor:
    """Returns what `complex_pairs` was made from."""
    return torch.cat([z.real, z.imag], dim)


def attention_inputs(model, texts: Tensor) -> list[Tensor]:
    """Returns what the attention of each layer reads, `[tokens, C]`, in float64."""
    found = []
    hooks = [
        layer.attention.register_forward_pre_hook(lambda module, args: found.append(args[0].flatten(0, 1).double()))
        for layer in model.layers
    ]
    with torch.no_grad():
        model.hidden(texts)
    for hook in hooks:
        hook.remove()
    return found


def heads_of(weight: Tensor, head_dim: int) -> Tensor:
    """Returns a projection head by head, `[heads, D, C]`, in float64."""
    return weight.data.double().unflatten(0, (-1, head_dim))


def key_turns(keys: Tensor) -> Tensor:
    """Returns the unit complex factors `[G, D/2]` that bring the keys `[G, tokens, D]` of all heads together."""
    z = complex_pairs(keys, -1)
    gram = torch.einsum("gnj,hnj->jgh", z.conj(), z)
    turns = torch.linalg.eigh(gram).eigenvectors[..., -1].T.conj()  # [G, D/2], where power iteration would start
    for _ in range(50):
        turns = turns / turns.abs()
        turns = torch.einsum("nj,gnj->gj", torch.einsum("gj,gnj->nj", turns, z), z.conj())
    return turns / turns.abs()


def value_turns(values: Tensor) -> Tensor:
    """Returns the orthogonal matrices `[G, D, D]` for which `turn @ value` is closest together over the heads."""
    turns = torch.eye(values.shape[-1], dtype=values.dtype).repeat(len(values), 1, 1)
    for _ in range(50):
        mean = torch.einsum("gde,gne->nd", turns, values) / len(values)
        u, _, vh = torch.linalg.svd(torch.einsum("nd,gne->gde", mean, values))
        turns = u @ vh
    return turns


def turned(model, inputs: list[Tensor]):
    """Returns the model with turned heads: it computes the same, and its KV heads are as alike as turns make them."""
    model = copy.deepcopy(model)
    config = model.config
    for layer, x in zip(model.layers, inputs, strict=True):
        a = layer.attention
        q, k, v = (heads_of(p.weight, config.head_dim) for p in (a.q_proj, a.k_proj, a.v_proj))
        turn_k, turn_v = key_turns(x @ k.mT), value_turns(x @ v.mT)
        for_queries = turn_k.repeat_interleave(config.group_size, 0)
        a.q_proj.weight.data.copy_(real_halves(complex_pairs(q, 1) * for_queries[..., None], 1).flatten(0, 1))
        a.k_proj.weight.data.copy_(real_halves(complex_pairs(k, 1) * turn_k[..., None], 1).flatten(0, 1))
        a.v_proj.weight.data.copy_((turn_v @ v).flatten(0, 1))
        o = a.o_proj.weight.data.double().unflatten(1, (config.n_heads, -1))  # [C, H, D]
        for_outputs = turn_v.repeat_interleave(config.group_size, 0)
        a.o_proj.weight.data.copy_(torch.einsum("chd,hed->che", o, for_outputs).flatten(1))
    return model


def low_rank(model, inputs: list[Tensor], parts: tuple[str, ...]):
    """Returns the model with all KV heads of a layer equal, and each query head reading them by its own factors."""
    model = copy.deepcopy(model)
    n_kv_heads, group_size, head_dim = model.config.n_kv_heads, model.config.group_size, model.config.head_dim
    for layer, x in zip(model.layers, inputs, strict=True):
        a = layer.attention
        q, k, v = (heads_of(p.weight, head_dim) for p in (a.q_proj, a.k_proj, a.v_proj))
        if "k_proj" in parts:
            z, w = complex_pairs(x @ k.mT, -1), complex_pairs(k, 1)
            weight = (x @ q.mT).square().mean(1).unflatten(0, (n_kv_heads, group_size)).sum(1)  # [G, D]
            weight = (weight[:, : head_dim // 2] + weight[:, head_dim // 2 :]).sqrt()  # how loud its queries are
            gram = torch.einsum("gnj,hnj->jgh", (z * weight[:, None]).conj(), z * weight[:, None])
            factors = torch.linalg.eigh(gram).eigenvectors[..., -1].T.conj()  # [G, D/2]
            one = torch.einsum("gj,gjc->jc", factors.conj() * weight, w)
            for_queries = (factors.conj() / weight).repeat_interleave(group_size, 0)
            a.q_proj.weight.data.copy_(real_halves(complex_pairs(q, 1) * for_queries[..., None], 1).flatten(0, 1))
            a.k_proj.weight.data.copy_(real_halves(one, 0).repeat(n_kv_heads, 1))
        if "v_proj" in parts:
            values = (x @ v.mT).transpose(0, 1).flatten(1)  # [tokens, G * D]
            basis = torch.linalg.eigh(values.T @ values).eigenvectors[:, -head_dim:]  # [G * D, D]
            a.v_proj.weight.data.copy_((basis.T @ v.flatten(0, 1)).repeat(n_kv_heads, 1))
            o = a.o_proj.weight.data.double().unflatten(1, (model.config.n_heads, -1))
            by_head = basis.unflatten(0, (n_kv_heads, head_dim)).repeat_interleave(group_size, 0)
            a.o_proj.weight.data.copy_(torch.einsum("chd,hde->che", o, by_head).flatten(1))
    return model


def kept_by_the_mean(heads: Tensor) -> float:
    """Returns the share of the heads' squared length that their mean has, copied to each: 1 alike, 1/G unrelated."""
    return (len(heads) * heads.mean(0).square().sum() / heads.square().sum()).item()


def geometry(model, inputs: list[Tensor]) -> dict:
    """Returns for each layer how long the mean of the heads is, and how alike they are: weights, then activations."""
    found = {}
    for part in ("k_proj", "v_proj"):
        layers = []
        for layer, x in zip(model.layers, inputs, strict=True):
            w = heads_of(getattr(layer.attention, part).weight, model.config.head_dim)
            flat, pairs = w.flatten(1), list(combinations(range(len(w)), 2))
            cosines = [torch.cosine_similarity(flat[i], flat[j], dim=0).item() for i, j in pairs]
            layers.append(
                {
                    "length_of_mean": (w.mean(0).norm() / w.flatten(1).norm(dim=1).mean()).item(),
                    "cosines": cosines,
                    "kept_of_activations": kept_by_the_mean(x @ w.mT),
                }
            )
        found[part] = layers
    return found


def why(model, tokenizer) -> dict:
    """Returns the geometry before and after turning, and the losses of every repair of the mean."""
    held = held_out(tokenizer)
    inputs = attention_inputs(model, windows(tokenizer, training_text(), N_WINDOWS))
    aligned = turned(model, inputs)
    same = max(abs(loss(aligned, ids) - loss(model, ids)) for ids in held.values())
    every = range(model.config.n_layers)
    choices = {"k": ("k_proj",), "v": ("v_proj",), "both": ("k_proj", "v_proj")}
    found = {"mean": {}, "mean_rescaled": {}, "turned_mean": {}, "turned_mean_rescaled": {}, "low_rank": {}}
    root = model.config.n_kv_heads**0.5
    for name, parts in choices.items():
        made = {
            "mean": pool_layers(model, 1, every, parts=parts),
            "mean_rescaled": pool_layers(model, 1, every, parts=parts, pool=lambda heads: heads.mean(1) * root),
            "turned_mean": pool_layers(aligned, 1, every, parts=parts),
            "turned_mean_rescaled": pool_layers(aligned, 1, every, parts=parts, pool=as_long_as_before),
            "low_rank": low_rank(model, inputs, parts),
        }
        for way, changed in made.items():
            found[way][name] = {text: loss(changed, ids) for text, ids in held.items()}
            print(f"{way}, {name}: {found[way][name]}", flush=True)
    return {
        "n_tokens_for_turns": N_WINDOWS * held["A"].shape[1],
        "geometry": geometry(model, inputs),
        "geometry_turned": geometry(aligned, inputs),
        "largest_change_of_loss_by_turning": same,
        "losses": found,
    }


def as_long_as_before(heads: Tensor) -> Tensor:
    """Pools by the mean and gives it the length that the heads had on average."""
    mean = heads.mean(1)
    lengths = heads.flatten(2).norm(dim=2).mean(1)
    return mean * (lengths / mean.flatten(1).norm(dim=1))[:, None, None]
