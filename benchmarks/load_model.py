"""Times loading SmolLM2 from its GGUF file, ours and transformers' in turn, each in a fresh process.

    python benchmarks/load_model.py [repeats]

Prints a table and one JSON line, and writes benchmarks/results/load_model.json. Model and tokenizer, float32, CPU;
imports are not counted.
"""

import json
import statistics
import subprocess
import sys

from gqa_lab.recorded import environment, save_record
from gqa_lab.smollm2 import smollm2_path

OURS = """
from gqa_lab.checkpoint import load_pretrained
import gguf, gguf.quants, jinja2.sandbox, time
start = time.perf_counter()
load_pretrained(PATH, device="cpu")
print(time.perf_counter() - start)
"""
THEIRS = """
import torch, time, gguf
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, LlamaForCausalLM
from transformers.utils.logging import disable_progress_bar
disable_progress_bar()
start = time.perf_counter()
AutoTokenizer.from_pretrained(PATH.parent, gguf_file=PATH.name)
AutoModelForCausalLM.from_pretrained(PATH.parent, gguf_file=PATH.name, dtype=torch.float32CONFIG)
print(time.perf_counter() - start)
"""
PROGRAMS = {
    "gqa_lab": OURS,
    "transformers, weights dequantised": THEIRS.replace("CONFIG", ", quantization_config=GgufConfig(dequantize=True)"),
    "transformers, as by default": THEIRS.replace("CONFIG", ""),
}


def seconds(program: str) -> float:
    """Returns what one fresh process measured."""
    code = f"import pathlib\nPATH = pathlib.Path({str(smollm2_path())!r})\n{program}"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(out.stdout.split()[-1])


def main(repeats: int) -> None:
    times: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    for _ in range(repeats):
        for name, program in PROGRAMS.items():
            times[name].append(seconds(program))
            print(f"{name:<36} {times[name][-1]:6.2f} s", flush=True)
    medians = {name: round(statistics.median(values), 3) for name, values in times.items()}
    record = {"provenance": environment(), "repeats": repeats, "median_s": medians, "all_s": times}
    save_record("load_model", record)
    print(json.dumps(record))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
