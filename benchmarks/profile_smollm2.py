"""Profiles the decode steps of SmolLM2 on this machine: where their bytes and their milliseconds go.

    python benchmarks/profile_smollm2.py [tokens]

Prints the report and writes benchmarks/results/profile_smollm2.json, what `DecodeProfile.from_json` reads. Batch 1,
float32, 1,000 tokens or as many as are asked for, then five contexts up to 8,128. With one thread (OMP_NUM_THREADS=1)
the clock counts that thread's own time, which a busy machine disturbs less; with more it is the clock on the wall.
"""

import sys
import time

import torch

from gqa_lab.checkpoint import load_pretrained, smollm2_path
from gqa_lab.profiler import profile_decode
from gqa_lab.recorded import save_record


def main(kv_len: int) -> None:
    model, _ = load_pretrained(smollm2_path(), device="cpu")
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    found = profile_decode(model, kv_len=kv_len, new_tokens=16, name="SmolLM2-135M-Instruct", clock=clock)
    print(found.table())
    save_record("profile_smollm2", found.record() | {"provenance": found.environment, "clock": clock.__name__})


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
