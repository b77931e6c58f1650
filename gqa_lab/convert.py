"""A trained model with another number of KV heads: more of them exactly, fewer of them by pooling."""

import copy
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import chain

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gqa_lab.config import divisors
from gqa_lab.model import Transformer

Pool = Callable[[Tensor], Tensor]


def mean_heads(heads: Float[Tensor, "G shared *rest"]) -> Float[Tensor, "G *rest"]:
    """Returns the mean of the heads that become one: what the paper found best after more training."""
    return heads.mean(1)


def first_head(heads: Float[Tensor, "G shared *rest"]) -> Float[Tensor, "G *rest"]:
    """Returns the first of the heads that become one; the others are forgotten."""
    return heads[:, 0]


def random_head(heads: Float[Tensor, "G shared *rest"]) -> Float[Tensor, "G *rest"]:
    """Returns a new head, drawn from torch's generator and spread like the old ones: it has everything to learn."""
    new = torch.randn(heads[:, 0].shape, dtype=torch.float32)  # on the CPU, where a seed means the same everywhere
    return (new * heads.float().std().cpu()).to(heads.device, heads.dtype)


def convert_kv_heads(model: Transformer, n_kv_heads: int, pool: Pool = mean_heads) -> Transformer:
    """Returns a copy of the model with `n_kv_heads` KV heads; queries, MLPs and all else stay as they are.

    More KV heads: each is repeated for the neighbours that shared it, and the model computes what it did before
    (Llama 2 70B as MHA, say: the same answers from a cache 8 times as large). Fewer: the ones that will share
    stand side by side and become one, and the model needs more training.

    Args:
        model: any decoder; it is left alone.
        n_kv_heads: a divisor of H that is a multiple or a divisor of the model's own G.
        pool: what makes one head of several, `[G, shared, D, C]` -> `[G, D, C]`, and of their biases
            `[G, shared, D]` -> `[G, D]`: `mean_heads`, `first_head`, `random_head`, or yours.

    Raises:
        ValueError: for a number that does not fit, with those that do; for a pool that returns another shape.

    Example:
        >>> from gqa_lab.config import ModelConfig
        >>> config = ModelConfig(n_layers=1, d_model=24, n_heads=6, n_kv_heads=3, head_dim=4, d_ff=32,
        ...                      vocab_size=50, max_seq_len=16, rope_theta=1e4, norm_eps=1e-5)
        >>> gqa = Transformer(config)
        >>> [convert_kv_heads(gqa, n).config.kind for n in (6, 1)]
        ['mha', 'mqa']

    Source:
        Ainslie et al. 2023 (arXiv 2305.13245) section 2.1 and Figure 4: mean, first, random.
    """
    old = model.config
    fitting = [n for n in divisors(old.n_heads) if not n % old.n_kv_heads or not old.n_kv_heads % n]
    if type(n_kv_heads) is not int or n_kv_heads not in fitting:
        raise ValueError(
            f"n_kv_heads ({n_kv_heads!r}) does not fit {old.n_heads} query heads over {old.n_kv_heads} KV heads; "
            f"try one of {', '.join(map(str, fitting))}"
        )
    weights = {}
    for name, weight in model.state_dict().items():
        is_kv = ".k_proj." in name or ".v_proj." in name
        weights[name] = _with_heads(weight, old.n_kv_heads, n_kv_heads, pool) if is_kv else weight.clone()
    with torch.device("meta"):  # the numbers come from the old model
        converted = Transformer(replace(old, n_kv_heads=n_kv_heads))
    converted.load_state_dict(weights, assign=True)
    del weights  # or it would keep what is laid out anew
    converted.init_rope()
    for new, before in zip(converted.parameters(), model.parameters(), strict=True):
        new.requires_grad_(before.requires_grad)
    converted.lay_out_weights()
    return converted.train(model.training)


def pool_layers(
    model: Transformer,
    n_kv_heads: int,
    layers: Iterable[int],
    *,
    parts: tuple[str, ...] = ("k_proj", "v_proj"),
    pool: Pool = mean_heads,
) -> Transformer:
    """Returns the model as if only some layers had `n_kv_heads` KV heads; it shares all other weights with the old one.

    A model has one `n_kv_heads`, so these layers keep their G heads, and heads that would become one are made equal:
    copies of one head compute what the one head would. Shows what pooling does to a layer, and saves no memory.

    Args:
        model: any decoder; it is left alone.
        n_kv_heads: a divisor of the model's own G.
        layers: which ones, from 0.
        parts: `("k_proj",)` pools the keys alone, `("v_proj",)` the values alone.
        pool: as in `convert_kv_heads`.

    Raises:
        ValueError: for a number of KV heads, a layer or a part that the model does not have.

    Example:
        >>> from gqa_lab.config import ModelConfig
        >>> config = ModelConfig(n_layers=2, d_model=24, n_heads=6, n_kv_heads=3, head_dim=4, d_ff=32,
        ...                      vocab_size=50, max_seq_len=16, rope_theta=1e4, norm_eps=1e-5)
        >>> pooled = pool_layers(Transformer(config), 1, [1])
        >>> first, second, third = pooled.layers[1].attention.k_proj.weight.unflatten(0, (3, 4))
        >>> torch.equal(first, third), pooled.config.n_kv_heads
        (True, 3)
    """
    n_old, layers = model.config.n_kv_heads, list(layers)
    if type(n_kv_heads) is not int or n_kv_heads < 1 or n_old % n_kv_heads:
        fitting = ", ".join(map(str, divisors(n_old)))
        raise ValueError(f"n_kv_heads ({n_kv_heads!r}) must divide the {n_old} KV heads of this model; try {fitting}")
    if wrong := [i for i in layers if i not in range(model.config.n_layers)]:
        raise ValueError(f"layers holds {wrong[0]!r}; this model has layers 0 to {model.config.n_layers - 1}")
    if wrong := [part for part in parts if part not in ("k_proj", "v_proj")]:
        raise ValueError(f'parts holds {wrong[0]!r}; it may hold "k_proj" and "v_proj"')
    shared = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    pooled = copy.deepcopy(model, shared)
    for projection in (getattr(pooled.layers[i].attention, part) for i in layers for part in parts):
        for name, weight in list(projection.named_parameters()):
            one = _with_heads(weight.detach(), n_old, n_kv_heads, pool)
            equal = nn.Parameter(_with_heads(one, n_kv_heads, n_old, pool), requires_grad=weight.requires_grad)
            setattr(projection, name, equal)
    return pooled


def _with_heads(weight: Float[Tensor, "rows *columns"], n_old: int, n_new: int, pool: Pool) -> Tensor:
    """Returns a K or V projection, or its bias, with another number of heads."""
    heads = weight.unflatten(0, (n_old, -1))  # [G, D, C], or [G, D]
    if n_new >= n_old:
        return heads.repeat_interleave(n_new // n_old, dim=0).flatten(0, 1)
    pooled = pool(heads.unflatten(0, (n_new, -1)))
    expected = (n_new, *heads.shape[1:])
    if not isinstance(pooled, Tensor) or pooled.shape != expected:
        found = f"shape {list(pooled.shape)}" if isinstance(pooled, Tensor) else f"a {type(pooled).__name__}"
        raise ValueError(f"pool returned {found}, expected shape {list(expected)}")
    return pooled.to(weight.dtype).flatten(0, 1).clone()
