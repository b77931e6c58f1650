"""`python -m gqa_lab.profiler`: the report of a model on this machine."""

import argparse
import sys
from pathlib import Path

import torch

from gqa_lab.checkpoint import MAX_SEQ_LEN, load_pretrained, smollm2_path
from gqa_lab.config import ModelConfig
from gqa_lab.convert import convert_kv_heads
from gqa_lab.costs import SHAPES, ModelShape, weight_bytes_held, with_kv_heads
from gqa_lab.model import Transformer
from gqa_lab.profiler.limits import cache_budget, gb, memory_bytes
from gqa_lab.profiler.measure import profile_decode
from gqa_lab.smollm2 import DownloadError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise ValueError(message)


def main(argv: list[str] | None = None) -> int:
    """Prints the report that the arguments ask for; returns the exit status, 2 for arguments that cannot be."""
    try:
        said = _parser().parse_args(argv)
        files = {said.json: "to_json", said.trace: "to_chrome_trace"}
        for path in filter(None, files):
            if path.is_dir() or not path.parent.is_dir():
                raise ValueError(f"{path} cannot be written: it is a folder, or in a folder that is not there")
        model, name = _model(said)
        asked = dict(kv_len=said.kv_len, batch_size=said.batch_size, new_tokens=said.new_tokens)
        found = profile_decode(model, **asked, prefills=said.prefills, name=name, progress=_Bar(sys.stderr))
        print(found.table())
        for path, form in files.items():
            if path is not None:
                path.write_text(getattr(found, form)() + "\n", encoding="utf-8")
    except (ValueError, OSError, DownloadError) as error:
        print(f"{error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m gqa_lab.profiler",
        description="Where do the bytes and the milliseconds of a model's decode steps go, on this machine?",
        epilog="example: python -m gqa_lab.profiler --model smollm2 --kv-len 1000,200,50 --json profile.json",
    )
    add = parser.add_argument
    names = "smollm2, a folder, a .gguf file, or a published shape (python -m gqa_lab.costs --list shows them)"
    add("--model", required=True, metavar="NAME", help=f"{names}, whose weights are then random numbers")
    add("--kv-len", type=_tokens, default=1024, metavar="N[,N...]", help="tokens of each sequence (default: 1024)")
    add("--batch-size", type=int, metavar="N", help="sequences of one length (default: 1)")
    add("--new-tokens", type=int, default=16, metavar="N", help="steps timed in each pass (default: 16)")
    add("--prefills", type=int, default=1, metavar="N", help="readings of the prompt, 0 for none (default: 1)")
    add("--dtype", choices=DTYPES, help="of weights and cache (default: fp32 on a CPU, bf16 on a GPU)")
    add("--kv-heads", type=int, metavar="G", help="another number of KV heads; a real model's heads are pooled")
    add("--layers", type=int, metavar="N", help="of a shape with random weights: so many layers of it")
    add("--json", type=Path, metavar="FILE", help="write the profile there")
    add("--trace", type=Path, metavar="FILE", help="write a Chrome trace there, for ui.perfetto.dev")
    return parser


def _tokens(text: str) -> int | list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of tokens; write 1000, or 1000,200,50") from None
    return numbers[0] if len(numbers) == 1 else numbers


def _model(said: argparse.Namespace) -> tuple[Transformer, str]:
    """Returns the model that was named, and what to call it."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = DTYPES[said.dtype or ("bf16" if device.type == "cuda" else "fp32")]
    if said.model in SHAPES and not Path(said.model).exists():
        shape = SHAPES[said.model]
        shape = with_kv_heads(shape, said.kv_heads) if said.kv_heads is not None else shape
        config = config_of(shape, shape.n_layers if said.layers is None else said.layers)
        return random_model(config, dtype, device), f"{shape.name} with random weights"
    if said.layers is not None:
        raise ValueError("--layers cuts down a shape with random weights; a real model has the layers it has")
    if said.model != "smollm2" and not Path(said.model).exists():
        near = " or ".join(SHAPES.nearest(said.model))
        raise ValueError(f"{said.model!r} is no file or folder here, and no published shape; did you mean {near}?")
    path = smollm2_path() if said.model == "smollm2" else Path(said.model)
    model, name = load_pretrained(path, dtype=dtype, device=device)[0], path.stem
    if said.kv_heads not in (None, model.config.n_kv_heads):
        model = convert_kv_heads(model, said.kv_heads)
        name += f" with {said.kv_heads} KV head{'s' if said.kv_heads > 1 else ''}"
    return model, name


def config_of(shape: ModelShape, n_layers: int) -> ModelConfig:
    """Returns a published shape as our model computes it, with so many of its layers.

    Raises:
        ValueError: for a shape whose layers are others: experts, a latent cache, an MLP without a gate, two kinds of
            window; and for more layers than it has.
    """
    if not 1 <= n_layers <= shape.n_layers:
        raise ValueError(f"--layers must be from 1 to {shape.n_layers}, the layers of {shape.name}, got {n_layers}")
    mixed = shape.sliding_window is not None and shape.n_full_attention_layers
    other = "experts" if shape.n_experts else "a latent cache (MLA)" if shape.kind == "mla" else None
    other = other or ("an MLP without a gate" if shape.mlp_matrices != 3 else "two kinds of layers" if mixed else None)
    if other:
        raise ValueError(f"{shape.name} has {other}, which our model does not compute; take a shape like Llama's")
    names = ("d_model", "n_heads", "n_kv_heads", "head_dim", "d_ff", "vocab_size", "sliding_window")
    return ModelConfig(
        **{name: getattr(shape, name) for name in names},
        n_layers=n_layers,
        max_seq_len=min(shape.max_seq_len, MAX_SEQ_LEN),
        rope_theta=1e4,
        norm_eps=1e-5,
        tie_embeddings=bool(shape.tie_embeddings),
    )


def random_model(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> Transformer:
    """Returns a model of these sizes with random weights, which take as long to read as any.

    Raises:
        ValueError: where they do not fit into the memory, with their size.
    """
    needed, memory = weight_bytes_held(config, bytes_per_element=dtype.itemsize), memory_bytes(device)
    budget = cache_budget(memory, 0, device)
    if needed > budget:
        raise ValueError(
            f"its weights take {gb(needed)} and {gb(budget)} can be had; "
            f"--layers {max(1, int(config.n_layers * budget / needed / 2))} or a smaller --dtype cuts that down"
        )
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # or they would be made in float32 first, and take twice the memory
    try:
        with device:
            model = Transformer(config)
    finally:
        torch.set_default_dtype(before)
    model.eval().requires_grad_(False).lay_out_weights()
    return model


class _Bar:
    """A bar that moves where somebody looks, and a line for each part elsewhere."""

    def __init__(self, out):
        self.out, self.moving = out, out.isatty()

    def __call__(self, done: float, what: str) -> None:
        n = round(30 * done)
        line = f"[{'#' * n}{'.' * (30 - n)}] {done:4.0%} {what}"
        print(f"\r{line:<79}" if self.moving else line, end="" if self.moving and done < 1 else "\n", file=self.out)
        self.out.flush()


if __name__ == "__main__":
    sys.exit(main())
