"""Times SmolLM2 on this CPU, our `generate` and transformers' in turn, with the same weights.

    python benchmarks/cpu_loop.py [rounds [record]]

Prints a table and one JSON line, and writes benchmarks/results/cpu_loop.json, or another record for another machine.
Batch 1, greedy, all in one process: ours with eager steps, ours with `step=compiled()`, the same with the attention
apart from the program, and transformers; a round is one answer of each, in changing order, between two measurements of
the read bandwidth, which other users of a machine can double or halve within seconds.
Tokens per second are those of the decode steps, from the first token on; a ratio is taken round by round, for them and
for the whole answer with its prompt. The compiler works before the first round. `first_tokens_equal` says how many
tokens are transformers' from the start; in bfloat16 rounding parts them, which changes no work. A percentage, too, is
taken round by round: of its read bandwidth, for the weights and the cache of the middle of the answer.
"""

import copy
import itertools
import json
import logging
import random
import statistics
import sys
import time
from functools import partial

import torch

from gqa_lab.attention import grouped_attention
from gqa_lab.bandwidth import read_bandwidth
from gqa_lab.checkpoint import load_pretrained, smollm2_path
from gqa_lab.costs import kv_cache_bytes, weight_bytes_read
from gqa_lab.generate import decode_step, generate
from gqa_lab.recorded import environment, save_record
from gqa_lab.steps import compiled

PROMPT = "Tell me a long story about a harbour, its master and his wooden box."
N_NEW = 96
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def load_theirs(dtype: torch.dtype):
    """Returns the same file as a model of transformers."""
    from transformers import AutoModelForCausalLM, GgufConfig
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    path = smollm2_path()
    return AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=dtype, quantization_config=GgufConfig(dequantize=True)
    ).eval()


class Clock:
    """What transformers hands each token to."""

    def __init__(self):
        self.tokens: list[tuple[int, float]] = []
        self.prompt_seen = False

    def put(self, value) -> None:
        if self.prompt_seen:
            self.tokens.append((int(value), time.perf_counter()))
        self.prompt_seen = True

    def end(self) -> None:
        pass


def programs(dtype: torch.dtype) -> tuple[dict, int]:
    """Returns functions that answer the prompt and say when each token came, and the bytes of a step of ours."""
    ours, tokenizer = load_pretrained(smollm2_path(), dtype=dtype, device="cpu")
    theirs, prompt = load_theirs(dtype), tokenizer.chat(PROMPT)
    ids = torch.tensor([prompt])

    def with_step(model, step, attend=grouped_attention):
        def answer() -> list[tuple[int, float]]:
            tokens = generate(model, [prompt], max_new_tokens=N_NEW, step=step, attend=attend)
            return [(token, time.perf_counter()) for [token] in tokens]

        return answer

    def transformers() -> list[tuple[int, float]]:
        clock = Clock()
        theirs.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=N_NEW, min_new_tokens=N_NEW, do_sample=False,
            pad_token_id=0, streamer=clock,
        )  # fmt: skip
        return clock.tokens

    kv_len, size = len(prompt) + N_NEW // 2, dtype.itemsize
    n_bytes = weight_bytes_read(ours.config, bytes_per_element=size)
    n_bytes += kv_cache_bytes(ours.config, batch_size=1, kv_len=kv_len, bytes_per_element=size)
    by_rows = copy.deepcopy(ours)  # compiled steps lay out the weights anew
    return {
        "eager": with_step(ours, decode_step),
        "compiled": with_step(by_rows, compiled()),
        "apart": with_step(by_rows, compiled(), partial(grouped_attention)),  # not the function itself: not looked into
        "transformers": transformers,
    }, n_bytes


@torch.no_grad()
def measure(dtype: torch.dtype, n_rounds: int) -> tuple[list[dict], list[float]]:
    """Returns a row for each kind of step of ours, and the read bandwidth of each round, in bytes/s."""
    answers, n_bytes = programs(dtype)
    tokens = {name: [token for token, _ in answer()] for name, answer in answers.items()}  # the warm-up
    whole, decode = ({name: [] for name in answers} for _ in range(2))
    reads = [read_bandwidth("cpu", repeats=2)]
    for i in range(n_rounds):
        for name in random.Random(i).sample(list(answers), len(answers)):
            start = time.perf_counter()
            clocked = answers[name]()
            whole[name].append(time.perf_counter() - start)
            decode[name].append((clocked[-1][1] - clocked[0][1]) / (N_NEW - 1))
        reads.append(read_bandwidth("cpu", repeats=2))
    bandwidths, rows = [statistics.mean(pair) for pair in itertools.pairwise(reads)], []
    for name in ("eager", "apart", "compiled"):
        ratios, of_answers = (
            [b / a for a, b in zip(times[name], times["transformers"], strict=True)] for times in (decode, whole)
        )
        same = [a == b for a, b in zip(tokens[name], tokens["transformers"], strict=True)]
        step_s = statistics.median(decode[name])
        percents = [100 * n_bytes / s / bandwidth for s, bandwidth in zip(decode[name], bandwidths, strict=True)]
        rows.append(
            {
                "dtype": str(dtype).removeprefix("torch."),
                "step": name,
                "tokens_per_s": round(1 / step_s, 2),
                "transformers_tokens_per_s": round(1 / statistics.median(decode["transformers"]), 2),
                "ratio_median": round(statistics.median(ratios), 3),
                "ratio_min_max": [round(min(ratios), 3), round(max(ratios), 3)],
                "ratio_median_with_prompt": round(statistics.median(of_answers), 3),
                "gb_per_s": round(n_bytes / step_s / 1e9, 2),
                "percent_of_read": round(statistics.median(percents), 1),
                "percent_min_max": [round(min(percents), 1), round(max(percents), 1)],
                "first_tokens_equal": (same + [False]).index(False),
            }
        )
    return rows, bandwidths


def main(n_rounds: int, name: str) -> None:
    import transformers

    made, bandwidths, results = environment(), [], []
    made["versions"] += f", transformers {transformers.__version__}"
    print(f"{'dtype':<10}{'step':<10}{'ours':>7}{'theirs':>8} tokens/s   ratio (min - max)  with prompt  read  equal")
    for dtype in DTYPES:
        rows, of_rounds = measure(dtype, n_rounds)
        bandwidths += [round(bandwidth / 1e9, 1) for bandwidth in of_rounds]
        for row in rows:
            results.append(row)
            low, high = row["ratio_min_max"]
            print(
                f"{row['dtype']:<10}{row['step']:<10}{row['tokens_per_s']:>7.1f}{row['transformers_tokens_per_s']:>8.1f}"
                f"{row['ratio_median']:>16.2f} ({low:.2f} - {high:.2f}){row['ratio_median_with_prompt']:>11.2f}"
                f"{row['percent_of_read']:>6.0f}%{row['first_tokens_equal']:>4} of {N_NEW}",
                flush=True,
            )
    record = {
        "provenance": made,
        "read_gb_per_s": statistics.median(bandwidths),
        "read_gb_per_s_min_max": [min(bandwidths), max(bandwidths)],
        "n_new_tokens": N_NEW,
        "rounds": n_rounds,
        "results": results,
    }
    print(
        "read bandwidth {:.1f} GB/s ({:.1f} - {:.1f})".format(record["read_gb_per_s"], *record["read_gb_per_s_min_max"])
    )
    save_record(name, record)
    print(json.dumps(record))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 7, sys.argv[2] if len(sys.argv) > 2 else "cpu_loop")
