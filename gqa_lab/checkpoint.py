"""Real weights in: a GGUF file or a Hugging Face folder becomes a `Transformer` and its `Tokenizer`.

`gguf_file` and `hf_folder` read the two forms; here is what they share: the shapes that a model of given sizes has
(`_shapes`), the check that the file has exactly these (`_check_tensors`), and all of it together (`load_pretrained`).
The headers are checked before a weight is read, and nothing in a file or folder is ever executed.
"""

import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.overrides import TorchFunctionMode

from gqa_lab import gguf_file, hf_folder
from gqa_lab.config import ModelConfig
from gqa_lab.gguf_file import GgufFile, halves_from_pairs
from gqa_lab.hf_folder import HfFolder
from gqa_lab.model import Transformer
from gqa_lab.smollm2 import find_smollm2, smollm2_path
from gqa_lab.tokenizer import Tokenizer

__all__ = ["find_smollm2", "halves_from_pairs", "load_pretrained", "smollm2_path"]

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
MAX_SEQ_LEN = 2**20  # rotary tables of 512 MiB at D = 128 in float32; the longest models of today reach it


def _shapes(config: ModelConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yields our name and the shape of every tensor that a model of these sizes has."""
    d_model, d_ff = config.d_model, config.d_ff
    q_rows, kv_rows = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    layer = {
        "attention_norm.weight": (d_model,),
        "attention.q_proj.weight": (q_rows, d_model),
        "attention.k_proj.weight": (kv_rows, d_model),
        "attention.v_proj.weight": (kv_rows, d_model),
        "attention.o_proj.weight": (d_model, q_rows),
        "mlp_norm.weight": (d_model,),
        "mlp.gate_proj.weight": (d_ff, d_model),
        "mlp.up_proj.weight": (d_ff, d_model),
        "mlp.down_proj.weight": (d_model, d_ff),
    }
    if config.attention_bias:
        layer |= {f"attention.{x}_proj.bias": layer[f"attention.{x}_proj.weight"][:1] for x in "qkv"}
    if config.qk_norm:
        layer |= {f"attention.{x}_norm.weight": (config.head_dim,) for x in "qk"}
    yield "embed_tokens.weight", (config.vocab_size, d_model)
    for i in range(config.n_layers):
        yield from ((f"layers.{i}.{name}", shape) for name, shape in layer.items())
    yield "norm.weight", (d_model,)
    if not config.tie_embeddings:
        yield "lm_head.weight", (config.vocab_size, d_model)


def _check_tensors(file: GgufFile | HfFolder, config: ModelConfig) -> None:
    """Raises `ValueError` unless the file holds exactly the tensors of the model, each in its shape."""
    rest = dict(file.shapes)
    for ours, shape in _shapes(config):
        name = file.name(ours)
        if name not in rest:
            raise ValueError(f"tensor {name} is missing")
        found = rest.pop(name)
        if found != shape:
            raise ValueError(f"tensor {name} has shape {found}, expected {shape}")
    if rest:
        name, shape = rest.popitem()
        raise ValueError(f"tensor {name} of shape {shape} belongs to no part of this model")


class _Uninitialized(TorchFunctionMode):
    """Makes modules without filling their weights, so that their memory is reserved but never touched."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__module__", None) == "torch.nn.init":
            return None  # modules do not look at what an initialiser returns
        return func(*args, **(kwargs or {}))


def _device(device: torch.device | str | None) -> torch.device:
    """Returns a device that is really there; CUDA if present, else CPU, if None."""
    try:
        found = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch has one for every kind of absence
        raise ValueError(f"device must be one of this machine, such as 'cpu', got {device!r}: {error}") from error
    return found


def _tokenizer(path: Path, file: GgufFile | HfFolder, vocab_size: int) -> Tokenizer | None:
    """Returns the tokenizer if there is one, and it fits; warns if there is one that cannot be used."""
    try:
        tokenizer = Tokenizer.from_folder(path) if path.is_dir() else Tokenizer.from_gguf(file.metadata)
        if tokenizer is not None and tokenizer.vocab_size > vocab_size:
            raise ValueError(f"it has {tokenizer.vocab_size} tokens, but the model knows {vocab_size}")
    except ValueError as error:
        warnings.warn(f"no tokenizer, the model takes token ids only: {error}", stacklevel=3)
        return None
    return tokenizer


def load_pretrained(
    path: str | Path, *, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
) -> tuple[Transformer, Tokenizer | None]:
    """Returns a real model, ready to answer and not to be trained, and its tokenizer.

    Memory: the weights, and one tensor on its way.

    Args:
        path: a GGUF file of the Llama family, in any of the types that the `gguf` package dequantises; or a
            Hugging Face folder of Llama, Mistral, Qwen2 or Qwen3.
        dtype: of the weights in memory; on disk they are usually smaller.
        device: CUDA if present, else CPU, if None.

    Returns:
        The model and the tokenizer, which is None if there is none, or (with a warning) one that does not fit.

    Raises:
        FileNotFoundError: if there is nothing at that path.
        ValueError: if the file or folder is damaged or holds something our model does not compute; says what,
            and what is supported. Nothing is half-loaded.

    Example:
        >>> model, tokenizer = load_pretrained(smollm2_path())  # doctest: +SKIP
        >>> model.config.n_heads, model.config.n_kv_heads       # doctest: +SKIP
        (9, 3)
    """
    if not isinstance(path, str | Path):
        raise ValueError(f"path must be a string or a Path, got {path!r}")
    path = Path(path)
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be a floating-point type such as torch.float32 or torch.bfloat16, got {dtype!r}")
    device = _device(device)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; smollm2_path() brings a model and returns its path")
    try:
        file = hf_folder.read_folder(path) if path.is_dir() else gguf_file.read_gguf(path)
        config = file.config
        if config.max_seq_len > MAX_SEQ_LEN:
            raise ValueError(f"it claims {config.max_seq_len} positions; at most {MAX_SEQ_LEN} are supported")
        _check_tensors(file, config)
        weights = {ours: file.read(ours, dtype=dtype, device=device) for ours, _ in _shapes(config)}
    except ValueError as error:
        supported = hf_folder.SUPPORTED if path.is_dir() else gguf_file.SUPPORTED
        raise ValueError(f"cannot load {path}: {error}. Supported: {supported}") from error
    with _Uninitialized():
        model = Transformer(config)
    model.load_state_dict(weights, assign=True)
    del weights  # or it would keep what is laid out anew
    model.init_rope()
    model.eval().requires_grad_(False).lay_out_weights()
    return model, _tokenizer(path, file, config.vocab_size)
