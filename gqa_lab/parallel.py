"""Tensor-parallel decode: P processes, each with its share of the heads, add up their parts twice in every layer.

Every process reads the same tokens and runs the same program. It has H / P query heads, the KV heads that these read
(copies of one, where G < P), their keys and values only, and a share of the MLP. Token tables and norms are held
whole. The cache of a process is what `costs` predicts for its `shard_config`.

    torchrun --standalone --nproc-per-node 3 -m gqa_lab.parallel --prompt "Why is the sky blue?"

`torchrun` is `python -m torch.distributed.run`. On several hosts, the same line on each, with one of them named:

    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 \\
        --rdzv-conf join_timeout=60 -m gqa_lab.parallel --model FOLDER

Each process takes a GPU of its host where every one has its own, and they speak through NCCL; else the CPU, through
gloo. Tested with gloo on the processes of one machine; NCCL and several hosts have not been tried.
"""

import argparse
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn

from gqa_lab import costs
from gqa_lab.checkpoint import load_pretrained, smollm2_path
from gqa_lab.config import ModelConfig, check_heads, divisors
from gqa_lab.generate import Sampler, generate, greedy
from gqa_lab.model import Transformer

Group = dist.ProcessGroup | None  # None: all processes
COMMAND = ("torchrun", "--standalone", "--nproc-per-node", "2", "-m", "gqa_lab.parallel")


class LostProcess(RuntimeError):
    """Another process has failed, was never started, or has not answered in time; this one cannot go on alone."""


# ---- who holds what -------------------------------------------------------------------------------------


def allowed_processes(n_heads: int, n_kv_heads: int) -> list[int]:
    """Returns the numbers of processes that can share these heads, each with whole ones and all with as many.

    P divides H; and P divides G, or G divides P and each KV head is held P / G times.

    Example:
        >>> allowed_processes(64, 8), allowed_processes(9, 3)
        ([1, 2, 4, 8, 16, 32, 64], [1, 3, 9])
    """
    check_heads(n_heads, n_kv_heads)
    return [n for n in divisors(n_heads) if n_kv_heads % n == 0 or n % n_kv_heads == 0]


def kv_heads_of(rank: int, n_processes: int, n_heads: int, n_kv_heads: int) -> range:
    """Returns the KV heads that process `rank` holds: those that its own query heads read.

    Args:
        rank: which process, from 0.
        n_processes: how many share the model (P).
        n_heads: query heads (H), of which process r has H / P neighbours, from r · H / P on.
        n_kv_heads: KV heads (G).

    Raises:
        ValueError: for a number of processes that cannot share the heads, with those that can.

    Example:
        >>> [list(kv_heads_of(rank, 4, 8, 8)) for rank in range(4)]
        [[0, 1], [2, 3], [4, 5], [6, 7]]
        >>> [list(kv_heads_of(rank, 4, 8, 2)) for rank in range(4)]  # two neighbours hold the same one
        [[0], [0], [1], [1]]
    """
    fitting = allowed_processes(n_heads, n_kv_heads)
    if type(n_processes) is not int or n_processes not in fitting:
        raise ValueError(
            f"n_processes ({n_processes!r}) cannot share {n_heads} query heads over {n_kv_heads} KV heads; "
            f"try one of {', '.join(map(str, fitting))}"
        )
    if type(rank) is not int or rank not in range(n_processes):
        raise ValueError(f"rank ({rank!r}) must be one of 0 to {n_processes - 1}")
    first = rank * n_kv_heads // n_processes
    return range(first, first + max(1, n_kv_heads // n_processes))


def shard_config(config: ModelConfig, rank: int, n_processes: int) -> ModelConfig:
    """Returns the sizes of one process's share of a model.

    Heads are shared evenly. The columns of the MLP need not be: where P does not divide d_ff, some processes have one
    more than others, and the sum is the same.

    Raises:
        ValueError: as `kv_heads_of`, and for more processes than d_ff.

    Example:
        >>> config = ModelConfig(n_layers=80, d_model=8192, n_heads=64, n_kv_heads=8, head_dim=128, d_ff=28672,
        ...                      vocab_size=32000, max_seq_len=4096, rope_theta=1e4, norm_eps=1e-5)
        >>> for n_processes in (1, 8, 16):
        ...     share = shard_config(config, 0, n_processes)
        ...     print(share.n_heads, share.n_kv_heads, costs.kv_bytes_per_token(share, bytes_per_element=2))
        64 8 327680
        8 1 40960
        4 1 40960
    """
    kv_heads = kv_heads_of(rank, n_processes, config.n_heads, config.n_kv_heads)
    columns = _share(rank, n_processes, config.d_ff)
    if not columns:
        raise ValueError(f"n_processes ({n_processes}) must be at most d_ff ({config.d_ff}), or some have no MLP")
    return replace(config, n_heads=config.n_heads // n_processes, n_kv_heads=len(kv_heads), d_ff=len(columns))


def _share(rank: int, n_processes: int, n: int) -> range:
    """Returns which of n neighbours process `rank` has."""
    return range(rank * n // n_processes, (rank + 1) * n // n_processes)


# ---- the model in shares --------------------------------------------------------------------------------


class SumOverProcesses(nn.Module):
    """A matrix whose input is shared out: each process multiplies its columns, and all add up their results."""

    def __init__(self, columns: nn.Linear, group: Group = None):
        super().__init__()
        self.columns, self.group = columns, group

    def forward(self, x: Float[Tensor, "B T part"]) -> Float[Tensor, "B T C"]:
        """Returns the sum, the same in every process.

        Raises:
            LostProcess: if another process does not take part.
        """
        out = self.columns(x)
        with _others_may_be_lost():
            dist.all_reduce(out, group=self.group)
        return out


def shard(model: Transformer, rank: int, n_processes: int, group: Group = None) -> Transformer:
    """Returns process `rank`'s share of a model: a `Transformer` with fewer heads that adds up with the others.

    `prefill`, `decode_step` and `generate` take it as any other, in all processes at once, and its `new_caches` are
    those of its own KV heads; compiled steps do not take it. It shares the tables of the whole model, is for decoding
    only, and never trained.

    Args:
        model: the whole model; it is left alone.
        rank: which process this is, from 0.
        n_processes: how many share the model (P).
        group: the processes that share it; None means all.

    Raises:
        ValueError: for a number of processes that cannot share the model.

    Source:
        Shoeybi et al. 2019 (arXiv 1909.08053) section 3: rows, then columns, then one sum. Copies of KV heads:
        Touvron et al. 2023 (arXiv 2307.09288) appendix A.2.1.
    """
    config = shard_config(model.config, rank, n_processes)
    q_heads = _share(rank, n_processes, model.config.n_heads)
    kv_heads = kv_heads_of(rank, n_processes, model.config.n_heads, model.config.n_kv_heads)
    q, kv = (slice(x.start * config.head_dim, x.stop * config.head_dim) for x in (q_heads, kv_heads))
    mlp = _share(rank, n_processes, model.config.d_ff)
    mlp = slice(mlp.start, mlp.stop)
    rows = {"q_proj": q, "k_proj": kv, "v_proj": kv, "gate_proj": mlp, "up_proj": mlp}
    columns = {"o_proj": q, "down_proj": mlp}
    weights = {}
    for name, weight in model.state_dict().items():
        part = name.split(".")[-2]
        if part in rows:
            weight = weight[rows[part]].clone()  # of a bias, too
        elif part in columns:
            weight = weight[:, columns[part]].clone()
        weights[name] = weight
    with torch.device("meta"):  # the numbers come from the whole model
        own = Transformer(config)
    own.load_state_dict(weights, assign=True)
    del weights  # or it would keep what is laid out anew
    own.init_rope()
    own.eval().requires_grad_(False).lay_out_weights()
    for layer in own.layers:
        layer.attention.o_proj = SumOverProcesses(layer.attention.o_proj, group)
        layer.mlp.down_proj = SumOverProcesses(layer.mlp.down_proj, group)
    return own


def agreed(sampler: Sampler = greedy, group: Group = None) -> Sampler:
    """Returns a sampler whose choice in the first process is the choice of all, so that they never part ways."""

    def sample(logits: Tensor) -> Tensor:
        ids = sampler(logits)
        with _others_may_be_lost():
            dist.broadcast(ids, group=group, group_src=0)
        return ids

    return sample


# ---- the processes --------------------------------------------------------------------------------------


@contextmanager
def joined(timeout_s: int | float = 30) -> Iterator[tuple[int, int, torch.device]]:
    """Makes this one of the processes that `torchrun` started; yields its rank, how many there are, and its device.

    Args:
        timeout_s: longest wait for the others, at the start and in each sum. Give more where one process may load a
            large model that much later than another.

    Raises:
        ValueError: if torchrun did not start this process.
        LostProcess: if the others do not come.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    if missing := [name for name in names if name not in os.environ]:
        raise ValueError(f"{missing[0]} is not set: start this with {' '.join(COMMAND)}")
    rank, n_processes, local_rank, n_local = (int(os.environ[name]) for name in names[:4])
    on_gpus = torch.cuda.device_count() >= n_local
    device = torch.device("cuda", local_rank) if on_gpus else torch.device("cpu")
    if on_gpus:
        torch.cuda.set_device(device)
    elif n_local == n_processes:
        _speak_on_this_machine_only()
    with _others_may_be_lost(f"the others did not come (are all {n_processes} started?)"):
        dist.init_process_group("nccl" if on_gpus else "gloo", timeout=timedelta(seconds=timeout_s))
    yield rank, n_processes, device
    dist.destroy_process_group()  # not after an error: whoever is lost would be waited for


def _speak_on_this_machine_only() -> None:
    """Lets gloo use the loopback address, where the system names it; no other machine takes part."""
    loopback = {"lo", "lo0"} & {name for _, name in socket.if_nameindex()} if hasattr(socket, "if_nameindex") else ()
    for name in loopback:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


@contextmanager
def _others_may_be_lost(what: str = "another process has failed or does not answer") -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # gloo and NCCL have no class of their own for it
        raise LostProcess(f"{what}, so this one ends: {str(error).strip().splitlines()[0]}") from error


def tiny_model(n_kv_heads: int) -> Transformer:
    """Returns a random model of 8 query heads in float64, the same in every process, to try things on."""
    sizes = dict(n_layers=2, d_model=24, n_heads=8, head_dim=4, d_ff=44, vocab_size=60, max_seq_len=64)
    config = ModelConfig(**sizes, n_kv_heads=n_kv_heads, rope_theta=1e4, norm_eps=1e-5)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Transformer(config).double().eval().requires_grad_(False)


def main(argv: list[str] | None = None) -> int:
    """Runs one of the processes; returns its exit status, 2 if it cannot go on."""
    try:
        said = _parser().parse_args(argv)
        with joined(said.timeout_s) as (rank, n_processes, device):
            _answer(said, rank, n_processes, device)
    except (LostProcess, ValueError, FileNotFoundError) as error:
        print(f"process {os.environ.get('RANK', 0)}: {error}", file=sys.stderr, flush=True)
        return 2
    return 0


def _answer(said: argparse.Namespace, rank: int, n_processes: int, device: torch.device) -> None:
    """Streams the answer from the first process, then tells what each of them held."""
    if said.tiny:
        model, tokenizer, prompt = tiny_model(said.tiny), None, [1, 2, 3]
    else:
        model, tokenizer = load_pretrained(said.model or smollm2_path(), dtype=DTYPES[said.dtype], device="cpu")
        if tokenizer is None:
            raise ValueError(f"{said.model} has no tokenizer, so it cannot be spoken to")
        prompt = tokenizer.chat(said.prompt)
    own = shard(model, rank, n_processes).to(device)
    request = dict(max_new_tokens=said.max_new_tokens, stop=tokenizer.stop_ids if tokenizer else ())
    write = tokenizer.stream() if tokenizer else "{} ".format
    ids = []
    for [token] in generate(own, [prompt], sampler=agreed(), **request):
        ids.append(token)
        if rank == 0:
            print(write(token), end="", flush=True)
    lines = [""] * n_processes
    with _others_may_be_lost():
        dist.all_gather_object(lines, _held(model, own, rank, n_processes, len(prompt) + said.max_new_tokens - 1))
    if rank == 0:
        print("", *lines, sep="\n", flush=True)
    if rank == 0 and said.compare:
        alone = [token for [token] in generate(model, [prompt], **request)]
        print("one process alone:", "the same tokens" if alone == ids else f"other tokens, {alone}", flush=True)


def _held(model: Transformer, own: Transformer, rank: int, n_processes: int, n_tokens: int) -> str:
    """Returns a line on what this process holds of the heads, and of the cache in bytes."""
    q_heads = _share(rank, n_processes, model.config.n_heads)
    kv_heads = kv_heads_of(rank, n_processes, model.config.n_heads, model.config.n_kv_heads)
    held = sum(cache.nbytes for cache in own.new_caches(1, n_tokens))
    sizes = dict(batch_size=1, kv_len=n_tokens, bytes_per_element=own.dtype.itemsize)
    predicted = costs.kv_cache_bytes(own.config, **sizes)
    return (
        f"process {rank} of {n_processes}: {_named('query head', q_heads)}, {_named('KV head', kv_heads)}, "
        f"cache {held:,} bytes (predicted {predicted:,})"
    )


def _named(what: str, heads: range) -> str:
    return f"{what} {heads[0]}" if len(heads) == 1 else f"{what}s {heads[0]} to {heads[-1]}"


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=" ".join(COMMAND), description="One model answers, shared by several processes, one on each GPU."
    )
    parser.add_argument("--model", metavar="PATH", help="a GGUF file or a Hugging Face folder (default: SmolLM2-135M)")
    parser.add_argument("--prompt", default="Why is the sky blue?")
    parser.add_argument("--max-new-tokens", metavar="N", type=int, default=40)
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--tiny", metavar="G", type=int, help="no real model: a random one of 8 query and G KV heads")
    parser.add_argument("--compare", action="store_true", help="let the first process answer alone as well")
    parser.add_argument("--timeout-s", metavar="S", type=float, default=30, help="longest wait for the others")
    return parser


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # at once: where a process was lost, gloo's threads may abort while Python tidies up
