"""`GgufFile`: what a GGUF file of the Llama family says, read as the sizes and the weights of our model.

In order: the file (`read_gguf`), its sizes (`_config`), its weights (`GgufFile.read`). Nothing in it is executed.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from gqa_lab.config import ModelConfig

SUPPORTED = (
    "a .gguf file (little-endian, version 2 or 3) of architecture 'llama': one head count for all layers, "
    "no experts, rotary positions over the whole head, unscaled or with rope_freqs.weight"
)
READ = {  # metadata under "llama." that is used below, or that says nothing about the numbers
    *("block_count", "context_length", "embedding_length", "feed_forward_length", "vocab_size"),
    *("attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.value_length"),
    *("attention.layer_norm_rms_epsilon", "rope.freq_base", "rope.dimension_count"),
    *("rope.scaling.original_context_length", "tensor_data_layout"),
}
NEUTRAL = {  # metadata that is harmless at this value only
    "expert_count": 0,
    "expert_used_count": 0,
    "rope.scaling.type": "none",
    "rope.scaling.factor": 1.0,
    "rope.scale_linear": 1.0,
    "attention.sliding_window": 0,
    "attention.causal": True,
}
NAMES = {  # our name of a module, GGUF's name of it
    "embed_tokens": "token_embd",
    "attention_norm": "attn_norm",
    "attention.q_proj": "attn_q",
    "attention.k_proj": "attn_k",
    "attention.v_proj": "attn_v",
    "attention.o_proj": "attn_output",
    "mlp_norm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "norm": "output_norm",
    "lm_head": "output",
}


@dataclass(frozen=True)
class GgufFile:
    """What a GGUF file says: its metadata, and its tensors by name, on disk until they are asked for."""

    metadata: dict[str, Any]
    tensors: dict[str, Any]

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every weight by GGUF's name, rows first as in torch; GGUF writes them last."""
        return {
            name: tuple(int(n) for n in reversed(tensor.shape))
            for name, tensor in self.tensors.items()
            if name != "rope_freqs.weight"
        }

    @cached_property
    def config(self) -> ModelConfig:
        """The sizes that the metadata states, and what the names of the tensors say.

        Raises:
            ValueError: for a size that is missing or that no model can have.
        """
        return _config(self)

    def name(self, ours: str) -> str:
        """Returns GGUF's name of one of our tensors."""
        module, kind = ours.rsplit(".", 1)
        if not module.startswith("layers."):
            return f"{NAMES[module]}.{kind}"
        _, i, module = module.split(".", 2)
        return f"blk.{i}.{NAMES[module]}.{kind}"

    def read(self, ours: str, *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Returns one of our tensors, in memory of its own."""
        weight = torch.from_numpy(dequantize(self, self.name(ours))).to(device, dtype)
        if "q_proj" in ours:
            return halves_from_pairs(weight, self.config.n_heads)
        return halves_from_pairs(weight, self.config.n_kv_heads) if "k_proj" in ours else weight


def read_gguf(path: Path) -> GgufFile:
    """Returns metadata and tensors of a GGUF file, through the `gguf` package.

    Raises:
        ValueError: if it is no GGUF file, or a big-endian, truncated or damaged one, or if its metadata says
            anything that our model would ignore.
    """
    from gguf import GGUFEndian, GGUFReader

    with open(path, "rb") as file:
        if file.read(4) != b"GGUF":
            raise ValueError("this is not a GGUF file, which starts with the letters GGUF")
    try:
        reader = GGUFReader(path)
        metadata = {key: field.contents() for key, field in reader.fields.items()}
    except Exception as error:  # a cut or garbled header makes the reader stumble in many ways
        raise ValueError(f"the file is truncated or damaged ({error})") from error
    if reader.endianess != GGUFEndian.LITTLE:
        raise ValueError("the file is big-endian")
    _check_metadata(metadata)
    return GgufFile(metadata, {tensor.name: tensor for tensor in reader.tensors})


def _check_metadata(metadata: dict[str, Any]) -> None:
    """Raises `ValueError` for anything that our model would ignore, by name."""
    architecture = metadata.get("general.architecture")
    if architecture != "llama":
        raise ValueError(f"the architecture is {architecture!r}")
    n_parts = metadata.get("split.count", 1)
    if n_parts not in (0, 1):
        raise ValueError(f"this is one of {n_parts} parts of a split model")
    for key, value in metadata.items():
        name = key.removeprefix("llama.")
        if name != key and name not in READ and value != NEUTRAL.get(name):
            raise ValueError(f"the metadata says {key} = {value!r}")


def _config(file: GgufFile) -> ModelConfig:
    def size(key, default=None):
        value = file.metadata.get(f"llama.{key}", default)
        if value is None:
            raise ValueError(f"the metadata lacks llama.{key}")
        if not isinstance(value, int | float):
            raise ValueError(f"llama.{key} is not one number for all layers: {value!r}")
        return value

    d_model, n_heads = size("embedding_length"), size("attention.head_count")
    head_dim = size("attention.key_length", d_model // max(n_heads, 1))
    for key in ("attention.value_length", "rope.dimension_count"):
        if size(key, head_dim) != head_dim:
            raise ValueError(f"llama.{key} is {size(key)}, but the head dimension is {head_dim}")
    if "token_embd.weight" not in file.tensors:
        raise ValueError("tensor token_embd.weight is missing")
    rows = file.shapes["token_embd.weight"][0]
    if size("vocab_size", rows) != rows:
        raise ValueError(f"llama.vocab_size is {size('vocab_size')}, but token_embd.weight has {rows} rows")
    rope_freqs = dequantize(file, "rope_freqs.weight") if "rope_freqs.weight" in file.tensors else None
    return ModelConfig(
        n_layers=size("block_count"),
        d_model=d_model,
        n_heads=n_heads,
        n_kv_heads=size("attention.head_count_kv", n_heads),
        head_dim=head_dim,
        d_ff=size("feed_forward_length"),
        vocab_size=rows,
        max_seq_len=size("context_length"),
        rope_theta=size("rope.freq_base", 10000.0),
        norm_eps=size("attention.layer_norm_rms_epsilon"),
        rope_scaling=None if rope_freqs is None else tuple(rope_freqs.flatten().tolist()),
        tie_embeddings="output.weight" not in file.tensors,
        attention_bias="blk.0.attn_q.bias" in file.tensors,
    )


def dequantize(file: GgufFile, name: str) -> np.ndarray:
    """Returns a tensor's numbers as float32, in memory of their own.

    Raises:
        ValueError: for a type that the `gguf` package cannot read, named.
    """
    from gguf.quants import dequantize

    tensor = file.tensors[name]
    try:
        numbers = dequantize(tensor.data, tensor.tensor_type)
    except NotImplementedError:
        kind = tensor.tensor_type.name
        raise ValueError(f"tensor {name} has type {kind}, which the gguf package cannot read") from None
    return np.require(numbers.reshape([int(n) for n in reversed(tensor.shape)]), np.float32, "W")


def halves_from_pairs(rows: Shaped[Tensor, "rows ..."], n_heads: int) -> Shaped[Tensor, "rows ..."]:
    """Returns the rows of a Q or K projection, or its bias, in the order that our RoPE turns them.

    GGUF stores the two numbers of a rotary pair side by side (0 with 1, 2 with 3); our model, like Hugging
    Face's, keeps the first of all pairs in the lower half of a head, the second in the upper (0 with D/2).

    Args:
        rows: `[n_heads * D, C]`, or `[n_heads * D]`.
        n_heads: H for Q and **G for K**. The wrong one gives the right shape and wrong numbers.

    Example:
        >>> halves_from_pairs(torch.arange(8), n_heads=2).tolist()
        [0, 2, 1, 3, 4, 6, 5, 7]

    Source:
        `LlamaModel.permute` in llama.cpp's convert_hf_to_gguf.py, of which this is the inverse.
    """
    return rows.unflatten(0, (n_heads, -1, 2)).transpose(1, 2).flatten(0, 2)
