"""`python -m gqa_lab.costs`: the plan of a model on a GPU, as a table."""

import argparse
import sys

from gqa_lab.costs import GPUS, SHAPES, Catalogue, plan, shape_from_config

BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "fp8": 1, "int8": 1}
WEIGHT_BYTES = BYTES | {"fp4": 0.5, "int4": 0.5}


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise ValueError(message)


def main(argv: list[str] | None = None) -> int:
    """Prints the plan that the arguments ask for; returns the exit status, 2 for arguments that cannot be."""
    try:
        said = _parser().parse_args(argv)
        if said.list:
            print(_listing())
            return 0
        if (said.model is None) == (said.config is None):
            raise ValueError("name a model with --model (--list shows them), or a file with --config")
        shape = shape_from_config(said.config) if said.config else _named(SHAPES, said.model, "model")
        asked = plan(
            shape,
            _named(GPUS, said.gpu, "GPU"),
            kv_len=said.kv_len,
            batch_size=said.batch_size,
            n_kv_heads=said.kv_heads,
            weight_bytes_per_element=WEIGHT_BYTES[said.weight_dtype],
            kv_bytes_per_element=BYTES[said.kv_dtype],
            n_gpus=said.gpus,
            free_share=said.free_share,
            price_per_hour=said.price_per_hour,
        )
    except ValueError as error:
        print(f"{error}", file=sys.stderr)
        return 2
    print(asked.table())
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m gqa_lab.costs",
        description="Does it fit, how fast can it be at most, what decides? Floors from data sheets, before any run.",
        epilog="example: python -m gqa_lab.costs --model llama-3.1-8b --gpu h100-sxm --kv-len 100000 --batch-size 4",
    )
    parser.add_argument("--model", metavar="NAME", help="a published model, for instance llama-3.1-8b")
    parser.add_argument("--config", metavar="PATH", help="a config.json of Hugging Face or its folder, instead")
    parser.add_argument("--gpu", metavar="NAME", default="h100-sxm", help="default: h100-sxm")
    parser.add_argument("--gpus", metavar="N", type=int, default=1, help="how many share the model (default: 1)")
    parser.add_argument("--kv-len", metavar="TOKENS", type=int, default=8192, help="of each sequence (default: 8192)")
    parser.add_argument("--batch-size", metavar="N", type=int, default=1, help="sequences together (default: 1)")
    parser.add_argument("--kv-heads", metavar="G", type=int, help="another number of KV heads than the model's own")
    parser.add_argument("--kv-dtype", choices=BYTES, default="bf16", help="of the cache (default: bf16)")
    parser.add_argument("--weight-dtype", choices=WEIGHT_BYTES, default="bf16", help="(default: bf16)")
    parser.add_argument("--free-share", metavar="X", type=float, default=0.1, help="memory kept free (default: 0.1)")
    parser.add_argument("--price-per-hour", metavar="P", type=float, help="of one GPU, in your currency")
    parser.add_argument("--list", action="store_true", help="show the models and the GPUs that have a name here")
    return parser


def _named(table: Catalogue, name: str, what: str):
    try:
        return table[name]
    except KeyError as error:
        raise ValueError(f"{what} {error.args[0]}") from None


def _listing() -> str:
    models = [
        f"  {key:<24}{s.kind.upper():<5}{s.n_heads:>4} query heads on {s.n_kv_heads:>3} KV heads of {s.head_dim}"
        for key, s in SHAPES.items()
    ]
    gpus = [
        f"  {key:<24}{g.memory_gb:>5.4g} GB {g.bandwidth_gb_per_s:>7,.5g} GB/s  {g.name}" for key, g in GPUS.items()
    ]
    return "\n".join(["models", *models, "GPUs", *gpus])


if __name__ == "__main__":
    sys.exit(main())
