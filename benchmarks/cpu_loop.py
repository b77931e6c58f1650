"""Times SmolLM2 on this CPU, our `generate` and transformers' in turn, with the same weights.

    python benchmarks/cpu_loop.py [pairs]

Prints a table and one JSON line, and writes benchmarks/results/cpu_loop.json. Batch 1, greedy, eager, both in one
process; a pair is one answer of each. Tokens per second are those of the decode steps, from the first token on; the
ratio is taken pair by pair, for them and for the whole answer with its prompt. `first_tokens_equal` says how many
tokens are the same from the start; in bfloat16 rounding parts them, which changes no work.
"""

import json
import logging
import statistics
import sys
import time

import torch

from gqa_lab.checkpoint import load_pretrained, smollm2_path
from gqa_lab.generate import generate
from gqa_lab.recorded import environment, save_record

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


def programs(dtype: torch.dtype) -> dict:
    """Returns two functions that answer the prompt with `N_NEW` tokens and say when each token came."""
    ours, tokenizer = load_pretrained(smollm2_path(), dtype=dtype, device="cpu")
    theirs = load_theirs(dtype)
    prompt = tokenizer.chat(PROMPT)
    ids = torch.tensor([prompt])

    def gqa_lab() -> list[tuple[int, float]]:
        return [(token, time.perf_counter()) for [token] in generate(ours, [prompt], max_new_tokens=N_NEW)]

    def transformers() -> list[tuple[int, float]]:
        clock = Clock()
        theirs.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=N_NEW, min_new_tokens=N_NEW, do_sample=False,
            pad_token_id=0, streamer=clock,
        )  # fmt: skip
        return clock.tokens

    return {"gqa_lab": gqa_lab, "transformers": transformers}


@torch.no_grad()
def measure(dtype: torch.dtype, n_pairs: int) -> dict:
    """Returns tokens per second of both, the ratios pair by pair, and how many first tokens agree."""
    both = programs(dtype)
    answers = {name: answer() for name, answer in both.items()}  # the warm-up
    same = [a[0] == b[0] for a, b in zip(*answers.values(), strict=True)]
    whole, decode = {name: [] for name in both}, {name: [] for name in both}
    for i in range(n_pairs):
        for name in list(both)[:: 1 if i % 2 else -1]:
            start = time.perf_counter()
            tokens = both[name]()
            whole[name].append(time.perf_counter() - start)
            decode[name].append((tokens[-1][1] - tokens[0][1]) / (N_NEW - 1))
    ratios, of_answers = (
        [b / a for a, b in zip(times["gqa_lab"], times["transformers"], strict=True)] for times in (decode, whole)
    )
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "tokens_per_s": {name: round(1 / statistics.median(t), 2) for name, t in decode.items()},
        "ratio_median": round(statistics.median(ratios), 3),
        "ratio_min_max": [round(min(ratios), 3), round(max(ratios), 3)],
        "ratio_median_with_prompt": round(statistics.median(of_answers), 3),
        "first_tokens_equal": (same + [False]).index(False),
    }


def main(n_pairs: int) -> None:
    import transformers

    made = environment()
    made["versions"] += f", transformers {transformers.__version__}"
    record = {"provenance": made, "n_new_tokens": N_NEW, "pairs": n_pairs, "results": []}
    print(
        f"{'dtype':<10}{'gqa_lab':>10}{'transformers':>14}   tokens/s    ratio (min - max)   with prompt   equal tokens"
    )
    for dtype in DTYPES:
        row = measure(dtype, n_pairs)
        record["results"].append(row)
        ours, theirs = row["tokens_per_s"].values()
        low, high = row["ratio_min_max"]
        print(
            f"{row['dtype']:<10}{ours:>10.1f}{theirs:>14.1f}{row['ratio_median']:>19.2f} ({low:.2f} - {high:.2f})"
            f"{row['ratio_median_with_prompt']:>14.2f}{row['first_tokens_equal']:>10} of {N_NEW}",
            flush=True,
        )
    save_record("cpu_loop", record)
    print(json.dumps(record))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 7)
