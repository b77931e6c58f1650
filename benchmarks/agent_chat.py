"""Times a long chat with an agent's turns on SmolLM2, live to its 8,192 tokens: the first and the next tokens of each.

    python benchmarks/agent_chat.py [turns]

Prints a line for each turn and writes benchmarks/results/agent_chat.json. Batch 1, float32, one cache for the whole
chat. A turn brings what a tool returned, then the model answers. The first token waits until all that is new has been
read; `resent_first_token_s` is the same first token for who sends the whole history into an empty cache, measured in
turns 1, 2, 4, 8, 16. The text is benchmarks/narrative.txt over and over: what it says takes no time. With one thread
(OMP_NUM_THREADS=1) the clock counts that thread's own time, which a busy machine disturbs less; the record says which.
"""

import json
import statistics
import sys
import time
from itertools import cycle, islice
from pathlib import Path

import torch

from gqa_lab.checkpoint import load_pretrained, smollm2_path
from gqa_lab.costs import kv_cache_bytes
from gqa_lab.generate import decode_step, greedy, prefill
from gqa_lab.recorded import environment, save_record

READ, ANSWERED = 480, 32  # tokens of a turn
N_TURNS = 16
BEFORE, AFTER = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
CLOCK = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
TEXT = Path(__file__).parent / "narrative.txt"


def turns(tokenizer, n_turns: int):
    """Yields the ids that each turn brings: exactly `READ`, markers included."""
    before, after = (tokenizer.encode(text, special=True) for text in (BEFORE, AFTER))
    words = cycle(tokenizer.encode(TEXT.read_text(encoding="utf-8")))
    for _ in range(n_turns):
        yield [*before, *islice(words, READ - len(before) - len(after)), *after]


def timed_first(model, ids: list[int], caches) -> tuple[float, torch.Tensor]:
    """Returns the seconds until the first token after these ids is known, and that token `[1, 1]`."""
    start = CLOCK()
    token = greedy(prefill(model, torch.tensor([ids]), caches))
    int(token)
    return CLOCK() - start, token[:, None]


def answer(model, token: torch.Tensor, caches) -> tuple[list[float], list[int]]:
    """Returns the seconds of each next token, and all tokens of the answer; the last one is read into the cache too."""
    seconds, ids = [], [int(token)]
    for _ in range(ANSWERED):
        start = CLOCK()
        token = greedy(decode_step(model, token, caches))[:, None]
        ids.append(int(token))
        seconds.append(CLOCK() - start)
    return seconds, ids[:-1]


def main(n_turns: int) -> None:
    model, tokenizer = load_pretrained(smollm2_path(), dtype=torch.float32, device="cpu")
    caches, history, rows = model.new_caches(1, model.config.max_seq_len), [], []
    timed_first(model, [1] * 64, model.new_caches(1, 64))  # the warm-up
    for number, ids in enumerate(turns(tokenizer, n_turns), start=1):
        first_s, token = timed_first(model, ids, caches)
        history += ids
        resent_s = None
        if number & (number - 1) == 0:
            resent_s = round(timed_first(model, history, model.new_caches(1, len(history)))[0], 4)
        next_s, answered = answer(model, token, caches)
        history += answered
        used = sum(cache.nbytes_used for cache in caches)
        assert used == kv_cache_bytes(model.config, batch_size=1, kv_len=len(history), bytes_per_element=4)
        rows.append({
            "turn": number,
            "tokens_read": len(ids),
            "tokens_resent": len(history) - len(answered),
            "first_token_s": round(first_s, 4),
            "resent_first_token_s": resent_s,
            "next_token_ms": {
                "median": round(1000 * statistics.median(next_s), 2),
                "min": round(1000 * min(next_s), 2),
                "max": round(1000 * max(next_s), 2),
            },
            "kv_len": len(history),
            "cache_bytes": used,
        })  # fmt: skip
        print(json.dumps(rows[-1]), flush=True)
    sizes = {"dtype": "float32", "clock": CLOCK.__name__, "n_kv_heads": model.config.n_kv_heads, "answered": ANSWERED}
    save_record("agent_chat", {"provenance": environment(), **sizes, "turns": rows})


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else N_TURNS)
