"""`HfFolder`: a Hugging Face folder (config.json and safetensors), read as the sizes and the weights of our model.

In order: the folder (`read_folder`), its tensors (`_tensors`), their numbers (`HfFolder.read`); `hf_config` reads its
settings. No pickle is ever opened and no code in the folder is ever run.
"""

import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PureWindowsPath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gqa_lab.config import ModelConfig
from gqa_lab.hf_config import WINDOW_KEYS, check_settings, model_config

SUPPORTED = (
    f"a folder with config.json of model_type {', '.join(WINDOW_KEYS)}, and model.safetensors or the parts "
    "that model.safetensors.index.json lists: one kind of attention in all layers, RoPE of type default, linear or "
    "llama3, float weights, no pickle, no code of the folder's own"
)
NAMES = {"attention": "self_attn", "attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
IGNORED = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")  # follows from config.json
DTYPES = {"F64", "F32", "F16", "BF16"}
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class HfFolder:
    """What a Hugging Face folder says: its settings, and its tensors by name, on disk until they are asked for."""

    settings: dict[str, Any]
    tensors: dict[str, Any]  # name -> the open file that holds it

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every weight by Hugging Face's name, from the headers of the files.

        An output matrix beside tied embeddings is none: `read` sees to it that it repeats them.

        Raises:
            ValueError: for a tensor of a type that is not a plain float, named.
        """
        shapes = {}
        for name, file in self.tensors.items():
            if IGNORED.fullmatch(name):
                continue
            header = file.get_slice(name)
            if header.get_dtype() not in DTYPES:
                raise ValueError(f"tensor {name} has type {header.get_dtype()}; only float weights are read")
            shapes[name] = tuple(header.get_shape())
        if self.config.tie_embeddings and shapes.get("lm_head.weight") == shapes.get("model.embed_tokens.weight"):
            shapes.pop("lm_head.weight", None)
        return shapes

    @cached_property
    def config(self) -> ModelConfig:
        """The sizes that config.json states.

        Raises:
            ValueError: for a size that is missing or that no model can have, and for a window that only some
                layers have.
        """
        return model_config(self.settings)

    def name(self, ours: str) -> str:
        """Returns Hugging Face's name of one of our tensors.

        Example:
            >>> HfFolder({}, {}).name("layers.0.attention.q_proj.weight")
            'model.layers.0.self_attn.q_proj.weight'
        """
        theirs = ".".join(NAMES.get(part, part) for part in ours.split("."))
        return theirs if theirs.startswith("lm_head.") else f"model.{theirs}"

    def read(self, ours: str, *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Returns one of our tensors, in memory of its own.

        Raises:
            ValueError: if tied embeddings come with an output matrix that differs from them.
        """
        name = self.name(ours)
        weight = self.tensors[name].get_tensor(name)
        if ours == "embed_tokens.weight" and self.config.tie_embeddings and "lm_head.weight" in self.tensors:
            if not torch.equal(weight, self.tensors["lm_head.weight"].get_tensor("lm_head.weight")):
                raise ValueError("tie_word_embeddings is true, but lm_head.weight differs from the embeddings")
        return weight.to(device, dtype, copy=True)  # a copy, because what safetensors returns is the file itself


def read_json(path: Path) -> dict[str, Any]:
    """Returns the object that a JSON file holds.

    Raises:
        ValueError: if it is not JSON, or not an object; names the file.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path.name} holds a {type(found).__name__}, not an object {{...}}")
    return found


def read_folder(folder: Path) -> HfFolder:
    """Returns settings and tensors of a Hugging Face folder; no weight is read yet.

    Raises:
        ValueError: if a file is missing, damaged or of a kind that is never loaded, or if config.json says anything
            that our model would ignore.
    """
    files = {path.name for path in folder.iterdir()}
    if not files:
        raise ValueError("the folder is empty")
    if "config.json" not in files:
        raise ValueError(f"the folder has no config.json{_other_weights(files)}")
    settings = read_json(folder / "config.json")
    check_settings(settings)
    if "adapter_config.json" in files:
        raise ValueError("it has an adapter_config.json; merge the adapter into the weights first")
    return HfFolder(settings, _tensors(folder, files))


def _tensors(folder: Path, files: set[str]) -> dict[str, Any]:
    """Returns the open file of every tensor by the tensor's name; their headers are checked by safetensors."""
    if "model.safetensors" in files:
        file = _open(folder / "model.safetensors")
        return dict.fromkeys(file.keys(), file)
    if INDEX not in files:
        raise ValueError(f"the folder has no model.safetensors and no {INDEX}{_other_weights(files)}")
    places = read_json(folder / INDEX).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise ValueError(f"{INDEX} has no weight_map from tensors to files")
    for name in sorted(set(places.values())):
        if PureWindowsPath(name).name != name or not name.endswith(".safetensors"):
            raise ValueError(f"{INDEX} names {name!r}, which is not a safetensors file of this folder")
        if name not in files:
            raise ValueError(f"{INDEX} names {name}, which is missing; download it again")
    opened = {name: _open(folder / name) for name in sorted(set(places.values()))}
    held = {name: set(file.keys()) for name, file in opened.items()}
    for tensor, name in places.items():
        if tensor not in held[name]:
            raise ValueError(f"{INDEX} places tensor {tensor} in {name}, which lacks it")
    for name, tensors in held.items():
        for tensor in sorted(tensors):
            if places.get(tensor) != name:
                raise ValueError(f"tensor {tensor} of {name} is not listed there by {INDEX}")
    return {tensor: opened[name] for tensor, name in places.items()}


def _other_weights(files: set[str]) -> str:
    """Returns what to do with the weights that a folder has in another form."""
    for name in sorted(files):
        if name.endswith(".gguf"):
            return f"; to load {name}, give the path of that file"
    for name in sorted(files):
        if name.endswith((".bin", ".pt", ".pth", ".bin.index.json")):
            return (
                f"; {name} is a pickle, which can run code and is never loaded: rewrite it where you trust it, with "
                "transformers' AutoModelForCausalLM.from_pretrained(...).save_pretrained(...)"
            )
    return ""


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path.name} is truncated or damaged ({error})") from error
