"""Times the ladder from no cache to one launch, on SmolLM2 or on shapes of larger models, rung beside rung.

    python benchmarks/ladder.py [turns]    on a CPU: SmolLM2 in three dtypes, about 5 minutes -> cpu_ladder.json
                                           on a GPU: three shapes in bfloat16, at most 8 minutes -> gpu_ladder.json
    python benchmarks/ladder.py --smoke    a tiny model on whatever is here; writes nothing

Batch 1, greedy, one token after the other as `generate` does it, each token brought to the host. All rungs of a context
stand side by side in one process and take turns in changing order; a turn is a few tokens, and the median of the
turns counts. Every rung changes one thing. A percentage is of the read bandwidth measured before and after the same
turn, as other users of a machine change it within seconds; the bytes are those of the weights and of the cache, each
once, from `gqa_lab.costs`. Where it can see, the meter adds what a step moves. On a GPU the same shape then takes 32, 8
and 1 KV heads, in batches with long contexts, beside the floor.
"""

import copy
import functools
import itertools
import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import nn

from gqa_lab import costs
from gqa_lab.attention import expanded_attention, grouped_attention
from gqa_lab.bandwidth import read_bandwidth
from gqa_lab.cache import KVCache
from gqa_lab.checkpoint import load_pretrained, smollm2_path
from gqa_lab.config import ModelConfig
from gqa_lab.generate import decode_step, prefill
from gqa_lab.model import Transformer
from gqa_lab.recorded import environment, save_record
from gqa_lab.steps import captured, compiled
from gqa_lab.traffic import TrafficMeter

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
LAST_S = 440 if ON_GPU else 480  # seconds after which no context is begun
NO_CACHE_UP_TO = 300  # tokens: beyond, reading everything again takes minutes
SHAPES = ("smollm2-135m", "llama-3.2-1b", "llama-3.1-8b")
HEADS = [(1, 8192), (1, 131_072), (16, 8192), (16, 32_768)]  # batch_size, kv_len of the runs that differ in KV heads


class ConcatenatedCache(KVCache):
    """A cache as many programs have it: a tensor that `torch.cat` makes anew for each token."""

    def append(self, k, v):
        n = self.host_lengths[0]
        self.k, self.v = torch.cat([self.k[:, :, :n], k], dim=2), torch.cat([self.v[:, :, :n], v], dim=2)
        self.lengths += k.shape[2]
        self.count_on_host(k.shape[2])
        return self.k, self.v


def read_again(model: Transformer, ids: torch.Tensor, caches: list["AllTokens"], *, attend) -> torch.Tensor:
    """Returns the logits of the next token without a cache: the whole text goes through the model."""
    [seen] = caches
    seen.append(ids)
    return model.logits(model.hidden(seen.ids, attend=attend)[:, -1])


class AllTokens:
    """What a loop without a cache keeps: the ids."""

    def __init__(self, ids: torch.Tensor):
        self.ids = ids

    def append(self, ids: torch.Tensor) -> None:
        self.ids = torch.cat([self.ids, ids], dim=1)

    def rewind(self, n: int) -> None:
        self.ids = self.ids[:, :n]


@dataclass(frozen=True)
class Rung:
    """What a step is made with, and how often K and V are moved for a token: read or written, from its own logic."""

    make_step: object
    attend: object = grouped_attention
    cache: type = KVCache
    times_kv: object = lambda group_size: 1
    eager: bool = True  # else no meter sees it, and on a CPU it wants its weights laid out by rows


def triton():
    from gqa_lab.triton_decode import triton_decode_attention

    return triton_decode_attention


RUNGS = {
    "no cache": Rung(lambda: read_again, grouped_attention, AllTokens),
    "concatenated": Rung(lambda: decode_step, expanded_attention, ConcatenatedCache, lambda r: 2 + 2 * r + 1),
    "preallocated": Rung(lambda: decode_step, expanded_attention, KVCache, lambda r: 2 * r + 1),
    "grouped": Rung(lambda: decode_step),
    "compiled": Rung(compiled, eager=False),
}
ON_A_GPU = {
    "captured": Rung(captured, eager=False),
    "captured, compiled": Rung(lambda: captured(compiled()), eager=False),
    "captured, compiled, triton": Rung(lambda: captured(compiled()), triton, eager=False),
}


# ---- models ---------------------------------------------------------------------------------------------


def with_random_weights(shape: costs.ModelShape, dtype: torch.dtype, max_seq_len: int) -> Transformer:
    """Returns a model of these sizes whose weights are random, made where it runs."""
    names = ("n_layers", "d_model", "n_heads", "n_kv_heads", "head_dim", "d_ff", "vocab_size", "tie_embeddings")
    sizes = {name: getattr(shape, name) for name in names}
    config = ModelConfig(**sizes, max_seq_len=max_seq_len, rope_theta=1e5, norm_eps=1e-5)
    with torch.device("meta"):
        model = Transformer(config).to(dtype)
    model = model.to_empty(device=DEVICE).requires_grad_(False)
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            module.weight.data.normal_(0, module.weight.shape[1] ** -0.5)
        elif isinstance(module, nn.RMSNorm):
            module.weight.data.fill_(1)
    model.init_rope()
    model.lay_out_weights()
    return model


@functools.cache
def tiny() -> Transformer:
    shape = replace(costs.SHAPES["smollm2-135m"], n_layers=2, d_model=36, d_ff=48, vocab_size=99)
    return with_random_weights(shape, torch.float32, 128)


# ---- one context ----------------------------------------------------------------------------------------


@torch.no_grad()
def filled(model: Transformer, kv_len: int, room: int) -> tuple[torch.Tensor, list[KVCache]]:
    """Returns ids and caches that hold `kv_len` tokens and have room for some more."""
    ids = torch.randint(0, model.config.vocab_size, (1, kv_len), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    caches = model.new_caches(1, kv_len + room)
    for chunk in ids.split(2048, dim=1):
        prefill(model, chunk, caches)
    return ids, caches


def caches_for(rung: Rung, model: Transformer, ids: torch.Tensor, full: list[KVCache]) -> list:
    """Returns caches of a rung's kind that hold what `full` holds."""
    if rung.cache is AllTokens:
        return [AllTokens(ids)]
    config, kv_len = model.config, ids.shape[1]
    sizes = (1, config.n_kv_heads, 1 if rung.cache is ConcatenatedCache else full[0].n_slots, config.head_dim)
    caches = [rung.cache(*sizes, dtype=model.dtype, device=DEVICE) for _ in full]
    for cache, source in zip(caches, full, strict=True):
        cache.append(source.k[:, :, :kv_len], source.v[:, :, :kv_len])
    return caches


def turn(step, model: Transformer, caches: list, attend, n_tokens: int, first: int) -> tuple[float, list[int]]:
    """Returns the seconds of a token in a turn of `n_tokens`, and the tokens; the caches are as before."""
    tokens = [first]
    start = time.perf_counter()
    for _ in range(n_tokens):
        ids = torch.tensor([[tokens[-1]]], device=DEVICE)
        tokens.append(int(step(model, ids, caches, attend=attend).argmax(-1)))
    seconds = (time.perf_counter() - start) / n_tokens
    return seconds, tokens


def metered(step, model, caches, attend, kv_len: int) -> dict[str, float]:
    """Returns the MB that a step reads and writes."""
    with TrafficMeter() as meter:
        step(model, torch.zeros(1, 1, dtype=torch.long, device=DEVICE), caches, attend=attend)
    rewind(caches, kv_len)
    return {"read": round(meter.bytes_read / 1e6, 1), "written": round(meter.bytes_written / 1e6, 1)}


def rewind(caches: list, kv_len: int) -> None:
    for cache in caches:
        cache.rewind(kv_len)


@torch.no_grad()
def measure(
    models: dict, name: str, kv_len: int, rungs: dict[str, Rung], read: Callable, n_turns: int, n_tokens: int
) -> list[dict]:
    """Returns a row for each rung at one context; `read()` measures the bandwidth, in bytes/s."""
    ids, full = filled(models[True], kv_len, n_tokens + 2)
    config, size = models[True].config, models[True].dtype.itemsize
    weights = costs.weight_bytes_read(config, bytes_per_element=size)
    kv_bytes = costs.kv_cache_bytes(config, batch_size=1, kv_len=kv_len, bytes_per_element=size)
    ready, rows = {}, {}
    for rung_name, rung in rungs.items():
        if rung_name == "no cache" and kv_len > NO_CACHE_UP_TO:
            continue
        model, attend = models[rung.eager], rung.attend() if rung.attend is triton else rung.attend
        caches, step = caches_for(rung, model, ids, full), rung.make_step()
        ready[rung_name] = functools.partial(turn, step, model, caches, attend, n_tokens, int(ids[0, -1])), caches
        rows[rung_name] = {
            "model": name,
            "dtype": str(model.dtype).removeprefix("torch."),
            "kv_len": kv_len,
            "rung": rung_name,
            "weight_mb": round(weights / 1e6, 1),
            "kv_mb": round(kv_bytes / 1e6, 1),
            "moved_mb": None if rung.cache is AllTokens
            else round((weights + kv_bytes * rung.times_kv(config.group_size)) / 1e6, 1),
            "metered_mb": metered(step, model, caches, attend, kv_len) if rung.eager else None,
        }  # fmt: skip
    times, answers, reads = {rung_name: [] for rung_name in ready}, {}, []
    for i in range(-2, n_turns):
        reads += [read()] if i >= 0 else []
        for rung_name in random.Random(i).sample(list(ready), len(ready)):
            one, caches = ready[rung_name]
            seconds, answers[rung_name] = one()
            rewind(caches, kv_len)
            times[rung_name] += [seconds] if i >= 0 else []  # the first two compile, record and warm up
    bandwidths = [statistics.mean(pair) for pair in itertools.pairwise([*reads, read()])]
    for rung_name, row in rows.items():
        ms = [1000 * s for s in times[rung_name]]
        percents = [1e5 * (weights + kv_bytes) / t / b for t, b in zip(ms, bandwidths, strict=True)]
        row |= {
            "ms": round(statistics.median(ms), 3),
            "ms_min_max": [round(min(ms), 3), round(max(ms), 3)],
            "tokens_per_s": round(1000 / statistics.median(ms), 2),
            "gb_per_s": round((weights + kv_bytes) / statistics.median(ms) / 1e6, 2),
            "read_gb_per_s": round(statistics.median(bandwidths) / 1e9, 1),
            "percent_of_read": round(statistics.median(percents), 1),
            "percent_min_max": [round(min(percents), 1), round(max(percents), 1)],
            "tokens_as_grouped": (
                [a == b for a, b in zip(answers[rung_name], answers["grouped"], strict=True)] + [False]
            ).index(False),
        }
        print(printed(row), flush=True)
    return list(rows.values())


def printed(row: dict) -> str:
    """Returns one line of the table."""
    moved = "-" if row["moved_mb"] is None else f"{row['moved_mb']:,.0f}"
    return (
        f"{row['model']:<14}{row['dtype']:<9}{row['kv_len']:>7}  {row['rung']:<28}{row['ms']:>9.2f}"
        f"{row['tokens_per_s']:>9.1f}{row['gb_per_s']:>8.1f}{row['percent_of_read']:>6.0f}%{moved:>9}"
    )


HEADER = f"{'model':<14}{'dtype':<9}{'tokens':>7}  {'rung':<28}{'ms':>9}{'tok/s':>9}{'GB/s':>8}{'read':>7}{'MB':>9}"


# ---- KV heads -------------------------------------------------------------------------------------------


@torch.no_grad()
def measure_heads(
    model: Transformer, n_kv_heads: int, batch_size: int, kv_len: int, step, attend, bandwidth: float, n_turns: int
) -> dict:
    """Returns the time of a step of a batch whose caches are full of random numbers, beside its floor."""
    config = model.config
    caches = model.new_caches(batch_size, kv_len + 1)
    for cache in caches:
        cache.k.normal_()
        cache.v.normal_()
        cache.lengths.fill_(kv_len)
        cache.count_on_host(kv_len)
    ids, ms = torch.zeros(batch_size, 1, dtype=torch.long, device=DEVICE), []
    for i in range(-2, n_turns):
        start = time.perf_counter()
        step(model, ids, caches, attend=attend).argmax(-1).tolist()
        ms += [1000 * (time.perf_counter() - start)] if i >= 0 else []
        rewind(caches, kv_len)
    size = model.dtype.itemsize
    weights = costs.weight_bytes_read(config, bytes_per_element=size)
    kv_bytes = costs.kv_cache_bytes(config, batch_size=batch_size, kv_len=kv_len, bytes_per_element=size)
    floor = 1000 * (weights + kv_bytes) / bandwidth
    return {
        "n_kv_heads": n_kv_heads,
        "batch_size": batch_size,
        "kv_len": kv_len,
        "ms": round(statistics.median(ms), 3),
        "ms_min_max": [round(min(ms), 3), round(max(ms), 3)],
        "floor_ms": round(floor, 3),
        "tokens_per_s": round(1000 * batch_size / statistics.median(ms), 1),
        "percent_of_floor": round(100 * floor / statistics.median(ms), 1),
    }


# ---- all of it ------------------------------------------------------------------------------------------


def plans(smoke: bool) -> list[tuple]:
    """Returns what to measure: a name, a function that makes the model, its contexts, its rungs."""
    if smoke:
        without = {name: rung for name, rung in RUNGS.items() if name != "compiled"}
        return [("tiny", tiny, (12, 40), without)]
    if not ON_GPU:
        dtypes = (torch.float32, torch.float16, torch.bfloat16)
        load = functools.partial(load_pretrained, smollm2_path(), device="cpu")
        return [("smollm2-135m", lambda d=d: load(dtype=d)[0], (128, 1024, 4096), RUNGS) for d in dtypes]
    rungs = RUNGS | ON_A_GPU
    return [
        (name, lambda n=name: with_random_weights(costs.SHAPES[n], torch.bfloat16, 8300), (128, 1024, 8192), rungs)
        for name in SHAPES
    ]


def main(arguments: list[str]) -> dict:
    """Measures, prints and, unless it is a smoke run, writes the record; returns it."""
    smoke, begin = "--smoke" in arguments, time.perf_counter()
    n_turns, n_tokens = (1, 2) if smoke else (15, 16) if ON_GPU else (9, 4)
    n_turns = next((int(a) for a in arguments if a.isdigit()), n_turns)
    bandwidths = []

    def read() -> float:
        bandwidths.append(read_bandwidth(DEVICE, n_bytes=2**20 if smoke else None, repeats=2))
        return bandwidths[-1]

    record = {
        "provenance": environment(),
        "turns": n_turns,
        "tokens_per_turn": n_tokens,
        "results": [],
        "heads": [],
        "not_measured": [],
    }
    print(HEADER)
    for name, make, contexts, rungs in plans(smoke):
        torch.compiler.reset()  # it keeps 8 programs, and those of the last model are of no use
        model = make()
        other = model if ON_GPU or all(rung.eager for rung in rungs.values()) else copy.deepcopy(model)
        for kv_len in contexts:
            if time.perf_counter() - begin > LAST_S:
                record["not_measured"].append(f"{name} at {kv_len} tokens: the time was nearly over")
                continue
            try:
                record["results"] += measure({True: model, False: other}, name, kv_len, rungs, read, n_turns, n_tokens)
            except torch.OutOfMemoryError as error:
                record["not_measured"].append(f"{name} at {kv_len} tokens: {str(error).splitlines()[0][:120]}")
        del model, other
    if ON_GPU or smoke:
        record["heads"] = all_heads(smoke, read, begin, record["not_measured"])
    gb_per_s = [round(b / 1e9, 1) for b in bandwidths or [read()]]
    record |= {"read_gb_per_s": statistics.median(gb_per_s), "read_gb_per_s_min_max": [min(gb_per_s), max(gb_per_s)]}
    print("read bandwidth {:.1f} GB/s ({:.1f} - {:.1f})".format(record["read_gb_per_s"], min(gb_per_s), max(gb_per_s)))
    for why in record["not_measured"]:
        print(f"not measured: {why}")
    if not smoke:
        save_record("gpu_ladder" if ON_GPU else "cpu_ladder", record)
        print(json.dumps(record))
    return record


def all_heads(smoke: bool, read: Callable, begin: float, not_measured: list[str]) -> list[dict]:
    """Returns the rows that differ in nothing but the number of KV heads."""
    shape = replace(costs.SHAPES["smollm2-135m"], n_layers=2, d_model=36, d_ff=48, vocab_size=99)
    choices, sizes = (9, 3, 1), [(2, 12)]
    if not smoke:
        shape, choices, sizes = costs.SHAPES["llama-3.1-8b"], (32, 8, 1), HEADS
    rows = []
    for n_kv_heads, (batch_size, kv_len) in itertools.product(choices, sizes):
        what = f"{n_kv_heads} KV heads, batch {batch_size}, {kv_len} tokens"
        if time.perf_counter() - begin > LAST_S:
            not_measured.append(f"{what}: the time was nearly over")
            continue
        torch.compiler.reset()
        try:
            model = with_random_weights(
                costs.with_kv_heads(shape, n_kv_heads), torch.float32 if smoke else torch.bfloat16, kv_len + 8
            )
            step, attend = (decode_step, grouped_attention) if smoke else (captured(compiled()), triton())
            rows.append(measure_heads(model, n_kv_heads, batch_size, kv_len, step, attend, read(), 1 if smoke else 30))
            print(f"{what}: {rows[-1]['ms']:.2f} ms, floor {rows[-1]['floor_ms']:.2f}", flush=True)
        except torch.OutOfMemoryError:
            not_measured.append(f"{what}: does not fit")
    return rows


if __name__ == "__main__":
    main(sys.argv[1:])
