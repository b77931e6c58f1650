"""Real weights in: a GGUF file of the Llama family becomes a `Transformer` and its `Tokenizer`.

In order: the file (`_open`), its sizes (`_config`), its weights (`_weights`), all of it together
(`load_pretrained`). The whole file is checked before a weight is read, and nothing in it is ever executed.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor
from torch.overrides import TorchFunctionMode

from gqa_lab.config import ModelConfig
from gqa_lab.model import Transformer
from gqa_lab.smollm2 import find_smollm2, smollm2_path
from gqa_lab.tokenizer import Tokenizer

__all__ = ["find_smollm2", "halves_from_pairs", "load_pretrained", "smollm2_path"]

SUPPORTED = (
    "a .gguf file (little-endian, version 2 or 3) of architecture 'llama': one head count for all layers, "
    "no experts, rotary positions over the whole head, unscaled or with rope_freqs.weight"
)


@dataclass(frozen=True)
class GgufFile:
    """What a GGUF file says: its metadata, and its tensors by name, on disk until they are asked for."""

    metadata: dict[str, Any]
    tensors: dict[str, Any]

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns a tensor's shape, rows first as in torch; GGUF writes them last."""
        return tuple(int(n) for n in reversed(self.tensors[name].shape))


def read_gguf(path: Path) -> GgufFile:
    """Returns metadata and tensors of a GGUF file, through the `gguf` package.

    Raises:
        ValueError: if it is no GGUF file, or a big-endian, truncated or damaged one.
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
    return GgufFile(metadata, {tensor.name: tensor for tensor in reader.tensors})


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


def _layout(config: ModelConfig) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Yields our name, GGUF's name and the shape of every tensor that a model of these sizes has."""
    d_model, d_ff = config.d_model, config.d_ff
    q_rows, kv_rows = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    layer = (
        ("attention_norm", "attn_norm", (d_model,)),
        ("attention.q_proj", "attn_q", (q_rows, d_model)),
        ("attention.k_proj", "attn_k", (kv_rows, d_model)),
        ("attention.v_proj", "attn_v", (kv_rows, d_model)),
        ("attention.o_proj", "attn_output", (d_model, q_rows)),
        ("mlp_norm", "ffn_norm", (d_model,)),
        ("mlp.gate_proj", "ffn_gate", (d_ff, d_model)),
        ("mlp.up_proj", "ffn_up", (d_ff, d_model)),
        ("mlp.down_proj", "ffn_down", (d_model, d_ff)),
    )
    yield "embed_tokens.weight", "token_embd.weight", (config.vocab_size, d_model)
    for i in range(config.n_layers):
        for ours, theirs, shape in layer:
            yield f"layers.{i}.{ours}.weight", f"blk.{i}.{theirs}.weight", shape
            if config.attention_bias and theirs in ("attn_q", "attn_k", "attn_v"):
                yield f"layers.{i}.{ours}.bias", f"blk.{i}.{theirs}.bias", shape[:1]
    yield "norm.weight", "output_norm.weight", (d_model,)
    if not config.tie_embeddings:
        yield "lm_head.weight", "output.weight", (config.vocab_size, d_model)


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
    """Returns the sizes that the metadata states, and what the names of the tensors say."""

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
    rope_freqs = _dequantize(file, "rope_freqs.weight") if "rope_freqs.weight" in file.tensors else None
    return ModelConfig(
        n_layers=size("block_count"),
        d_model=d_model,
        n_heads=n_heads,
        n_kv_heads=size("attention.head_count_kv", n_heads),
        head_dim=head_dim,
        d_ff=size("feed_forward_length"),
        vocab_size=file.shape("token_embd.weight")[0],
        max_seq_len=size("context_length"),
        rope_theta=size("rope.freq_base", 10000.0),
        norm_eps=size("attention.layer_norm_rms_epsilon"),
        rope_scaling=None if rope_freqs is None else tuple(rope_freqs.flatten().tolist()),
        tie_embeddings="output.weight" not in file.tensors,
        attention_bias="blk.0.attn_q.bias" in file.tensors,
    )


def _check_tensors(file: GgufFile, config: ModelConfig) -> None:
    """Raises `ValueError` unless the file holds exactly the tensors of the model, each in its shape."""
    rest = {name: file.shape(name) for name in file.tensors if name != "rope_freqs.weight"}
    for _, name, shape in _layout(config):
        if name not in rest:
            raise ValueError(f"tensor {name} is missing")
        found = rest.pop(name)
        if found != shape:
            raise ValueError(f"tensor {name} has shape {found}, expected {shape}")
    if rest:
        name, shape = rest.popitem()
        raise ValueError(f"tensor {name} of shape {shape} belongs to no part of this model")


def _dequantize(file: GgufFile, name: str) -> np.ndarray:
    """Returns a tensor's numbers as float32, in memory of their own."""
    from gguf.quants import dequantize

    tensor = file.tensors[name]
    try:
        numbers = dequantize(tensor.data, tensor.tensor_type)
    except NotImplementedError:
        kind = tensor.tensor_type.name
        raise ValueError(f"tensor {name} has type {kind}, which the gguf package cannot read") from None
    return np.require(numbers.reshape(file.shape(name)), np.float32, "W")


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


class _Uninitialized(TorchFunctionMode):
    """Makes modules without filling their weights, so that their memory is reserved but never touched."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__module__", None) == "torch.nn.init":
            return None  # modules do not look at what an initialiser returns
        return func(*args, **(kwargs or {}))


def _weights(file: GgufFile, config: ModelConfig, *, dtype, device) -> dict[str, Tensor]:
    rotated = {"attn_q": config.n_heads, "attn_k": config.n_kv_heads}
    weights = {}
    for ours, theirs, _ in _layout(config):
        weight = torch.from_numpy(_dequantize(file, theirs)).to(device, dtype)
        n_heads = rotated.get(theirs.split(".")[-2])
        weights[ours] = weight if n_heads is None else halves_from_pairs(weight, n_heads)
    return weights


def _tokenizer(file: GgufFile) -> Tokenizer | None:
    if "tokenizer.ggml.model" not in file.metadata:
        return None
    try:
        return Tokenizer.from_gguf(file.metadata)
    except ValueError as error:
        warnings.warn(f"no tokenizer, the model takes token ids only: {error}", stacklevel=3)
        return None


def load_pretrained(
    path: str | Path, *, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
) -> tuple[Transformer, Tokenizer | None]:
    """Returns a real model, ready to answer and not to be trained, and its tokenizer.

    Args:
        path: a GGUF file of the Llama family, in any of the types that the `gguf` package dequantises.
        dtype: of the weights in memory; on disk they are usually smaller.
        device: CUDA if present, else CPU, if None.

    Returns:
        The model and the tokenizer, which is None if the file has none, or (with a warning) another kind.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged or holds something our model does not compute; says what, and
            what is supported. Nothing is half-loaded.

    Example:
        >>> model, tokenizer = load_pretrained(smollm2_path())  # doctest: +SKIP
        >>> model.config.n_heads, model.config.n_kv_heads       # doctest: +SKIP
        (9, 3)
    """
    path = Path(path)
    if not dtype.is_floating_point:
        raise ValueError(f"dtype must be a floating-point type such as torch.float32, got {dtype}")
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; smollm2_path() brings a model and returns its path")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        if path.is_dir():
            raise ValueError("this is a folder, not a file")
        file = read_gguf(path)
        _check_metadata(file.metadata)
        config = _config(file)
        _check_tensors(file, config)
        weights = _weights(file, config, dtype=dtype, device=device)
    except ValueError as error:
        raise ValueError(f"cannot load {path}: {error}. Supported: {SUPPORTED}") from error
    with _Uninitialized():
        model = Transformer(config)
    model.load_state_dict(weights, assign=True)
    model.init_rope()
    return model.eval().requires_grad_(False), _tokenizer(file)
