"""What is profiled: our `Transformer`, or a model of the library `transformers`, which is not imported for it.

Both kinds answer the same questions: what are the sizes, give me a cache of so many tokens, read a prompt, take a step,
where are the regions. The passes of `measure` know no others.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from gqa_lab.attention import grouped_attention
from gqa_lab.cache import KVCache
from gqa_lab.costs import ModelShape, kv_cache_bytes, shape_from_config
from gqa_lab.generate import decode_step, prefill
from gqa_lab.model import Transformer
from gqa_lab.profiler.profile import SequenceBytes
from gqa_lab.profiler.regions import Place


def decoder_of(model: Any, attend: Callable | None, step: Callable | None) -> "OurDecoder | TheirDecoder":
    """Returns the model behind the questions that the passes ask.

    Raises:
        ValueError: for what is no decoder, and for an `attend` or `step` that a model of transformers cannot take.
    """
    if isinstance(model, Transformer):
        return OurDecoder(model, attend or grouped_attention, step or decode_step)
    config = getattr(model, "config", None)
    if not (hasattr(config, "to_dict") and hasattr(model, "generate")) or getattr(config, "is_encoder_decoder", False):
        what = f"model is a {type(model).__name__}"
        raise ValueError(f"{what}; it must be a Transformer, or a model of transformers that generates, no encoder")
    if attend or step:
        raise ValueError("a model of transformers computes its own attention and step; leave attend and step out")
    return TheirDecoder(model)


class OurDecoder:
    """A `Transformer` with the attention and the step that were passed."""

    notes: list[str] = []
    takes_lengths = True

    def __init__(self, model: Transformer, attend: Callable, step: Callable):
        self.model, self.attend, self.take_step, self.shape = model, attend, step, model.config
        self.dtype, self.device, self.vocab_size = model.dtype, model.device, model.config.vocab_size
        self.how = f"{_name(attend)}, {_name(step)}"

    def new_cache(self, batch_size: int, room: int) -> list[KVCache]:
        """Returns an empty cache of every layer, for `room` tokens of each sequence."""
        return self.model.new_caches(batch_size, room)

    def prefill(
        self, prompts: list[Int64[Tensor, "1 _"]], cache: list[KVCache]
    ) -> tuple[Float[Tensor, "B vocab"], list[KVCache]]:
        """Returns the logits after the prompts, and the cache that holds them."""
        if len({prompt.shape for prompt in prompts}) == 1:
            return prefill(self.model, torch.cat(prompts), cache), cache
        rows = [[layer.row(b) for layer in cache] for b in range(len(prompts))]
        return torch.cat([prefill(self.model, p, row) for p, row in zip(prompts, rows, strict=True)]), cache

    def filled(self, lens: Sequence[int], room: int) -> list[KVCache]:
        """Returns a cache that holds so many tokens of each sequence: random numbers, which take as long to read."""
        cache, generator = self.new_cache(len(lens), room), torch.Generator(self.device).manual_seed(0)
        for layer in cache:
            for b, length in enumerate(lens):
                k = layer.k.new_empty(1, layer.k.shape[1], length, layer.k.shape[3]).normal_(generator=generator)
                layer.row(b).append(k, k.flip(2))
        return cache

    def step(self, ids: Int64[Tensor, "B 1"], cache: list[KVCache]) -> Float[Tensor, "B vocab"]:
        """Returns the logits after one more token of each sequence."""
        return self.take_step(self.model, ids, cache, attend=self.attend)

    def batch_size(self, cache: list[KVCache]) -> int:
        """Returns how many sequences it holds."""
        return cache[0].k.shape[0]

    def tensors(self, cache: list[KVCache]) -> list[tuple[Tensor, Tensor]]:
        """Returns keys and values of every layer."""
        return [(layer.k, layer.v) for layer in cache]

    def allocated(self, cache: list[KVCache]) -> list[int]:
        """Returns the bytes that each layer holds."""
        return [layer.nbytes for layer in cache]

    def used(self, cache: list[KVCache]) -> list[int]:
        """Returns the bytes that hold tokens, of each layer."""
        return [layer.nbytes_used for layer in cache]

    def sequences(self, cache: list[KVCache]) -> list[SequenceBytes]:
        """Returns the bytes of each sequence in all layers."""
        n_slots, allocated = cache[0].n_slots, sum(self.allocated(cache)) // cache[0].k.shape[0]
        kept = [min(n, n_slots) for n in cache[0].host_lengths]
        per_token = allocated // n_slots
        return [SequenceBytes(n, n_slots, n * per_token, allocated - n * per_token) for n in kept]

    def predicted(self, cache: list[KVCache]) -> list[int]:
        """Returns the bytes that each layer should hold, by `costs`."""
        sizes = dict(batch_size=cache[0].k.shape[0], kv_len=cache[0].max_seq_len)
        one = kv_cache_bytes(replace(self.shape, n_layers=1), **sizes, bytes_per_element=self.dtype.itemsize)
        return [one] * len(cache)

    def places(self, cache: list[KVCache]) -> list[Place]:
        """Returns where the regions are."""
        at = {id(layer): i for i, layer in enumerate(cache)}
        found = [Place(self, "attend", "attention"), Place(self.model, "logits", "head")]
        found.append(Place(KVCache, "append", "append", lambda layer, *_: at.get(id(layer))))
        for i, layer in enumerate(self.model.layers):
            own = layer.attention
            found += [Place(x, "forward", "projections", i) for x in (own.q_proj, own.k_proj, own.v_proj, own.o_proj)]
            found.append(Place(layer.mlp, "forward", "mlp", i))
        return found


class TheirDecoder:
    """A causal model of transformers, as it comes: its own attention, and the cache that it makes itself."""

    takes_lengths = False  # it would need padding and a mask

    def __init__(self, model: nn.Module):
        self.model, self.shape = model, shape_of(model.config.to_dict())
        self.dtype, self.device, self.how = model.dtype, model.device, f"transformers, {type(model).__name__}"
        self.vocab_size = model.config.get_text_config().vocab_size
        takes = inspect.signature(model.forward).parameters
        self.prompt_options = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}
        self.layers = [m for m in model.modules() if hasattr(m, "self_attn") and hasattr(m, "mlp")]
        self.notes = [
            "The attention of a model of transformers is timed with its RoPE, and its append with what it copies."
            if self.layers
            else f"The modules of {type(model).__name__} are not known here (no self_attn and mlp): no split."
        ]
        if self.shape is None:
            self.notes.append(f"The sizes of {type(model).__name__} are not known here: nothing is predicted, no line.")

    def new_cache(self, batch_size: int, room: int) -> None:
        """Returns None: the model makes its cache when it reads a prompt, and it has no room but grows."""

    def prefill(self, prompts: list[Int64[Tensor, "1 _"]], cache: None) -> tuple[Float[Tensor, "B vocab"], Any]:
        """Returns the logits after the prompts, and the cache that holds them."""
        out = self.model(input_ids=torch.cat(prompts), use_cache=True, **self.prompt_options)
        return out.logits[:, -1], out.past_key_values

    def filled(self, lens: Sequence[int], room: int) -> Any:
        """Returns a cache that holds so many tokens of each sequence, all but the first of them random numbers."""
        _, cache = self.prefill([torch.zeros(1, 1, dtype=torch.long, device=self.device)] * len(lens), None)
        generator = torch.Generator(self.device).manual_seed(0)
        for i, both in enumerate(self.tensors(cache) if lens[0] > 1 else []):
            more = (x.new_empty(*x.shape[:2], lens[0] - 1, x.shape[3]).normal_(generator=generator) for x in both)
            cache.update(*more, i)
        return cache

    def step(self, ids: Int64[Tensor, "B 1"], cache: Any) -> Float[Tensor, "B vocab"]:
        """Returns the logits after one more token of each sequence."""
        return self.model(input_ids=ids, past_key_values=cache, use_cache=True).logits[:, -1]

    def batch_size(self, cache: Any) -> int:
        """Returns how many sequences it holds."""
        return self.tensors(cache)[0][0].shape[0]

    def tensors(self, cache: Any) -> list[tuple[Tensor, Tensor]]:
        """Returns keys and values of every layer."""
        if not all(isinstance(getattr(layer, "keys", None), Tensor) for layer in getattr(cache, "layers", [None])):
            raise ValueError(
                f"the {type(cache).__name__} of {type(self.model).__name__} has no keys and values in layers"
            )
        return [(layer.keys, layer.values) for layer in cache.layers]

    def allocated(self, cache: Any) -> list[int]:
        """Returns the bytes that each layer keeps alive."""
        return [sum(x.untyped_storage().nbytes() for x in both) for both in self.tensors(cache)]

    def used(self, cache: Any) -> list[int]:
        """Returns the bytes that hold tokens, of each layer."""
        return [k.nbytes + v.nbytes for k, v in self.tensors(cache)]

    def sequences(self, cache: Any) -> list[SequenceBytes]:
        """Returns the bytes of each sequence in all layers; tokens are those of the first layer."""
        batch_size, _, n_tokens, _ = self.tensors(cache)[0][0].shape
        used, held = sum(self.used(cache)) // batch_size, sum(self.allocated(cache)) // batch_size
        return [SequenceBytes(n_tokens, n_tokens * held // used, used, held - used)] * batch_size

    def predicted(self, cache: Any) -> list[int] | None:
        """Returns the bytes that each layer should hold, by `costs`; None for a model that it does not know."""
        if self.shape is None:
            return None
        found = []
        for layer in cache.layers:
            window = self.shape.sliding_window if getattr(layer, "is_sliding", False) else None
            one = replace(self.shape, n_layers=1, sliding_window=window, n_full_attention_layers=None)
            sizes = dict(batch_size=layer.keys.shape[0], kv_len=cache.get_seq_length())
            found.append(kv_cache_bytes(one, **sizes, bytes_per_element=layer.keys.element_size()))
        return found

    def places(self, cache: Any) -> list[Place]:
        """Returns where the regions are; none in a tree of modules that is not known."""
        if not self.layers:
            return []
        found = [Place(cache, "update", "append"), Place(self.model.get_output_embeddings(), "forward", "head")]
        for i, layer in enumerate(self.layers):
            linear = [m for m in layer.self_attn.children() if isinstance(m, nn.Linear)]
            found += [Place(m, "forward", "projections", i) for m in linear]
            found += [Place(layer.self_attn, "forward", "attention", i), Place(layer.mlp, "forward", "mlp", i)]
        return found


def shape_of(config: dict[str, Any]) -> ModelShape | None:
    """Returns the sizes in a config of transformers; None where `costs` does not know the family."""
    if config.get("model_type") == "falcon":  # it names its KV heads in three ways
        kept = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "max_position_embeddings")
        n_heads, grouped = config["num_attention_heads"], config.get("new_decoder_architecture")
        config = {key: config[key] for key in kept} | {
            "_name_or_path": "Falcon",
            "model_type": "phi",  # as plain an MLP, and head_dim = hidden_size / num_attention_heads
            "num_key_value_heads": config["num_kv_heads"] if grouped else 1 if config.get("multi_query") else n_heads,
            "intermediate_size": config.get("ffn_hidden_size") or 4 * config["hidden_size"],
            "tie_word_embeddings": config.get("tie_word_embeddings", True),
        }
    try:
        return shape_from_config(config)
    except ValueError:
        return None


def _name(function: Callable) -> str:
    """What to call an attention or a step: for a step that a function has made, `compiled()`, that function."""
    parts = getattr(function, "__qualname__", type(function).__name__).split(".<locals>.")
    return parts[-2] if parts[-1] in ("step", "fixed", "replay") and len(parts) > 1 else parts[-1]
