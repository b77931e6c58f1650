"""`Transformer`: the smallest real decoder. RMSNorm, RoPE, grouped-query attention, SwiGLU: any Llama-shaped model."""

from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from gqa_lab.attention import Attend, GroupedQueryAttention, sdpa_attention
from gqa_lab.cache import KVCache
from gqa_lab.config import ModelConfig


class MLP(nn.Module):
    """SwiGLU: `down(silu(gate(x)) * up(x))` (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, d_model: int, d_ff: int):
        super().__init__()
        self.gate_proj = nn.Linear(d_model, d_ff, bias=False)
        self.up_proj = nn.Linear(d_model, d_ff, bias=False)
        self.down_proj = nn.Linear(d_ff, d_model, bias=False)

    def forward(self, x: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C"]:
        """Returns the MLP of every token by itself."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """One decoder layer: attention and MLP, each behind a norm and added to what came in."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.d_model, eps=config.norm_eps)
        self.attention = GroupedQueryAttention(
            config.d_model,
            config.n_heads,
            config.n_kv_heads,
            config.head_dim,
            bias=config.attention_bias,
            qk_norm_eps=config.norm_eps if config.qk_norm else None,
        )
        self.mlp_norm = nn.RMSNorm(config.d_model, eps=config.norm_eps)
        self.mlp = MLP(config.d_model, config.d_ff)

    def forward(self, x: Float[Tensor, "B T C"], cache: KVCache | None, **attention) -> Float[Tensor, "B T C"]:
        """Returns x with this layer's attention and MLP added."""
        x = x + self.attention(self.attention_norm(x), cache, **attention)
        return x + self.mlp(self.mlp_norm(x))


def rotary_tables(
    config: ModelConfig, *, dtype: torch.dtype, device: torch.device
) -> tuple[Float[Tensor, "N half"], Float[Tensor, "N half"]]:
    """Returns cosine and sine of `position * frequency` for every position up to `max_seq_len`.

    Frequency j turns the pair (j, j + D/2) of a head by `rope_theta ** (-2j / D)` per position, divided by
    `rope_scaling[j]` where a model has it.

    Source: Su et al. 2021 (arXiv 2104.09864); the pairing is Hugging Face's.
    """
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device=device) / config.head_dim
    frequencies = 1.0 / config.rope_theta**exponents
    if config.rope_scaling is not None:
        frequencies = frequencies / torch.tensor(config.rope_scaling, device=device)
    angles = torch.outer(torch.arange(config.max_seq_len, device=device).float(), frequencies)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Float[Tensor, "B heads T D"], cos: Tensor, sin: Tensor) -> Float[Tensor, "B heads T D"]:
    """Returns q or k turned by its positions; cos and sin `[(B, 1,) T, D]` as `Transformer.rope` returns them."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


def reads_faster_by_columns(weight: Float[Tensor, "rows columns"]) -> bool:
    """True where one row times `weight.T` is faster if the weight's columns, not its rows, lie whole in memory.

    On a CPU in float32, for a matrix with at least as many outputs as inputs: 17.7 instead of 9.2 GB/s for SmolLM2's
    output matrix. In bfloat16 the order hardly matters, in float16 columns are up to 50 times slower. Recorded in
    benchmarks/results/cpu_weights.json; another CPU may differ.
    """
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.shape[0] >= weight.shape[1]


class Transformer(nn.Module):
    """A decoder that computes its attention with whatever `attend` it is given, over caches that it is given.

    Args:
        config: the sizes.

    Example:
        >>> config = ModelConfig(n_layers=2, d_model=24, n_heads=6, n_kv_heads=3, head_dim=4, d_ff=32,
        ...                      vocab_size=50, max_seq_len=16, rope_theta=1e4, norm_eps=1e-5)
        >>> model = Transformer(config)
        >>> caches = model.new_caches(batch_size=1, max_seq_len=16)
        >>> model(torch.tensor([[1, 2, 3]]), caches).shape
        torch.Size([1, 3, 50])
        >>> model(torch.tensor([[4]]), caches).shape, caches[0].lengths.tolist()
        (torch.Size([1, 1, 50]), [4])
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.d_model)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.n_layers))
        self.norm = nn.RMSNorm(config.d_model, eps=config.norm_eps)
        if not config.tie_embeddings:
            self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.init_rope()

    @property
    def dtype(self) -> torch.dtype:
        """Element type of the weights, and so of new caches."""
        return self.embed_tokens.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are, and so new caches."""
        return self.embed_tokens.weight.device

    def init_rope(self) -> None:
        """(Re)computes the rotary tables where the weights are; they are no part of a checkpoint."""
        cos, sin = rotary_tables(self.config, dtype=self.dtype, device=self.device)
        self.register_buffer("rope_cos", cos, persistent=False)
        self.register_buffer("rope_sin", sin, persistent=False)

    def lay_out_weights(self) -> None:
        """Stores every frozen matrix in the order in which decoding reads it fastest here.

        No number and no shape changes, only strides; `contiguous()` brings back rows, where a file asks for them.
        Weights in training stay as they are: gradients and optimizers prefer rows.
        """
        for module in self.modules():
            is_product = isinstance(module, nn.Linear) or (module is self.embed_tokens and self.config.tie_embeddings)
            if is_product and not module.weight.requires_grad:
                weight = module.weight.data
                by_columns = reads_faster_by_columns(weight)
                module.weight.data = weight.mT.contiguous().mT if by_columns else weight.contiguous()

    def _apply(self, fn, recurse=True):
        """What `.to()`, `.half()`, `.cuda()` and the like go through: another dtype may like another order."""
        before = self.dtype, self.device
        super()._apply(fn, recurse)
        if (self.dtype, self.device) != before:
            self.init_rope()  # not what the other dtype had rounded
            self.lay_out_weights()
        return self

    def new_caches(self, batch_size: int, max_seq_len: int) -> list[KVCache]:
        """Returns one empty cache per layer, in the dtype and on the device of the weights.

        Raises:
            ValueError: if `max_seq_len` exceeds the positions this model knows.
        """
        config = self.config
        if max_seq_len > config.max_seq_len:
            raise ValueError(f"max_seq_len ({max_seq_len}) exceeds the {config.max_seq_len} positions of this model")
        return [
            KVCache(
                batch_size,
                config.n_kv_heads,
                max_seq_len,
                config.head_dim,
                dtype=self.dtype,
                device=self.device,
                window=config.sliding_window,
            )
            for _ in range(config.n_layers)
        ]

    def forward(
        self,
        token_ids: Int[Tensor, "B T"],
        caches: list[KVCache] | None = None,
        *,
        attend: Attend = sdpa_attention,
    ) -> Float[Tensor, "B T vocab"]:
        """Returns the logits of the token that follows each of the given ones.

        Args:
            token_ids: the T new tokens of each sequence.
            caches: one per layer; the new tokens stand behind what they hold. None means no past.
            attend: the attention to compute.

        Raises:
            ValueError: for ids outside the vocabulary, if a cache is too short, or if the sequence is longer than
                the model's positions. An error inside `attend` leaves tokens in the caches: rewind() them.
        """
        return self.logits(self.hidden(token_ids, caches, attend=attend))

    def hidden(
        self,
        token_ids: Int[Tensor, "B T"],
        caches: list[KVCache] | None = None,
        *,
        attend: Attend = sdpa_attention,
    ) -> Float[Tensor, "B T C"]:
        """Returns what the last layer makes of each new token; `logits` turns it into a prediction."""
        self._check_ids(token_ids)
        cos, sin = self.rope(token_ids, caches)
        turn = partial(rotate, cos=cos, sin=sin)
        x = self.embed_tokens(token_ids)
        for i, layer in enumerate(self.layers):
            cache = None if caches is None else caches[i]
            x = layer(x, cache, rotate=turn, attend=attend, window=self.config.sliding_window)
        return self.norm(x)

    def logits(self, hidden: Float[Tensor, "*tokens C"]) -> Float[Tensor, "*tokens vocab"]:
        """Returns the scores of every word of the vocabulary."""
        head = self.embed_tokens if self.config.tie_embeddings else self.lm_head
        return F.linear(hidden, head.weight)

    def _check_ids(self, token_ids: Tensor) -> None:
        if (
            not isinstance(token_ids, Tensor)
            or token_ids.ndim != 2
            or token_ids.dtype not in (torch.int64, torch.int32)
        ):
            found = f"{token_ids.dtype} {list(token_ids.shape)}" if isinstance(token_ids, Tensor) else repr(token_ids)
            raise ValueError(f"token_ids must be an integer tensor [batch, tokens], got {found}")
        if token_ids.device.type == "cpu":  # on an accelerator a look at the values would wait for all its work
            low, high = token_ids.aminmax()
            if low < 0 or high >= self.config.vocab_size:
                raise ValueError(
                    f"token_ids hold {int(low)} to {int(high)}; this model knows 0 to {self.config.vocab_size - 1}"
                )

    def rope(self, token_ids: Tensor, caches: list[KVCache] | None) -> tuple[Tensor, Tensor]:
        """Returns cosine and sine for the new tokens: `[T, D]`, or `[B, 1, T, D]` where their positions differ."""
        q_len = token_ids.shape[1]
        if caches is not None and len(caches) != self.config.n_layers:
            raise ValueError(f"caches has {len(caches)} entries; this model has {self.config.n_layers} layers")
        starts = [0] if caches is None else caches[0].host_lengths
        if caches is not None and any(cache.host_lengths != starts for cache in caches):
            raise ValueError("the caches hold different numbers of tokens (after a failed step?); rewind() them all")
        if max(starts) + q_len > self.config.max_seq_len:
            raise ValueError(
                f"{q_len} tokens after {max(starts)} exceed the {self.config.max_seq_len} positions of this model"
            )
        positions = slice(0, q_len) if caches is None else caches[0].positions(q_len)
        cos, sin = self.rope_cos[positions], self.rope_sin[positions]
        return torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)  # for x * cos + (x rolled by D/2) * sin
