"""Records what pooling KV heads does to SmolLM2-135M (9 query heads, 3 KV heads), why, and how far training helps.

    python benchmarks/convert_smollm2.py            every part that is not there yet, then the record
    python benchmarks/convert_smollm2.py layers     these parts only

Writes benchmarks/results/convert_smollm2.json. Each part is kept in benchmarks/results/parts/ as it ends, so that the
whole can be interrupted and gone on with. All losses are cross-entropies in nats per token, in float32, of windows of
512 tokens; `texts` says of what.
"""

import json
import sys
import time
from statistics import mean

import torch
from convert_fit import layer_by_layer, one_layer
from convert_layers import choices, layers, spared
from convert_recovery import LEARNING_RATES, train
from convert_texts import description, held_out, losses
from convert_why import why

from gqa_lab.convert import convert_kv_heads, first_head, mean_heads, random_head
from gqa_lab.listen import load_smollm2
from gqa_lab.recorded import RESULTS, environment, save_record

PARTS_FOLDER = RESULTS / "parts"
FITTED = PARTS_FOLDER / "fitted.pt"


def before_after(model, tokenizer) -> dict:
    """Returns the losses as it came, with 9 KV heads, and with one, made by each rule."""
    torch.manual_seed(0)
    models = {
        "original": lambda: model,
        "expanded": lambda: convert_kv_heads(model, 9),
        "mean": lambda: convert_kv_heads(model, 1, mean_heads),
        "first": lambda: convert_kv_heads(model, 1, first_head),
        "random": lambda: convert_kv_heads(model, 1, random_head),
    }
    held = held_out(tokenizer)
    return {name: {text: losses(make(), ids) for text, ids in held.items()} for name, make in models.items()}


def search(rate: float):
    """Returns the part that tries a learning rate on the pooled model."""
    return lambda model, tokenizer: train(model, tokenizer, 1, rate, PARTS_FOLDER)


def recovery(n_kv_heads: int, fitted=None):
    """Returns the part that trains at the rate with the lowest training loss; the control takes the same recipe."""

    def part(model, tokenizer):
        tried = {rate: mean(kept(f"search_{rate}")["training_losses"][-8:]) for rate in LEARNING_RATES}
        return train(model, tokenizer, n_kv_heads, min(tried, key=tried.get), PARTS_FOLDER, fitted=fitted)

    return part


def some_layers(damage: list[float]) -> list[int]:
    """Returns the first layer, the three worst and one in the middle of the order by damage."""
    order = sorted(range(len(damage)), key=lambda i: damage[i])
    return sorted({0, *order[-3:], order[len(order) // 2]})


PARTS = {
    "texts": lambda model, tokenizer: description(tokenizer),
    "before_after": before_after,
    "layers": layers,
    "choices": lambda model, tokenizer: choices(model, tokenizer, kept("layers")["damage"]["both"]),
    "spared": lambda model, tokenizer: spared(model, tokenizer, kept("layers")["damage"]["both"]),
    "why": why,
    "one_layer": lambda model, tokenizer: one_layer(model, tokenizer, some_layers(kept("layers")["damage"]["both"])),
    "layer_by_layer": lambda model, tokenizer: layer_by_layer(model, tokenizer, FITTED),
    **{f"search_{rate}": search(rate) for rate in LEARNING_RATES},
    "recovery_pooled": recovery(1),
    "recovery_control": recovery(3),
    "recovery_fitted": recovery(1, FITTED),
}


def summary(found: dict) -> dict:
    """Returns the numbers that the lesson quotes, from the raw ones: means over windows and layers, and differences."""
    loss = {name: {text: mean(x) for text, x in texts.items()} for name, texts in found["before_after"].items()}
    geometry = {
        when: {
            part: {
                "length_of_mean": mean(layer["length_of_mean"] for layer in layers),
                "cosine": mean(mean(layer["cosines"]) for layer in layers),
                "largest_cosine": max(max(map(abs, layer["cosines"])) for layer in layers),
                "kept_of_activations": mean(layer["kept_of_activations"] for layer in layers),
            }
            for part, layers in found["why"][when].items()
        }
        for when in ("geometry", "geometry_turned")
    }
    recovery = {}
    for text, original in loss["original"].items():
        start, *_, end = (mean(point["losses"][text]) for point in found["recovery_pooled"]["points"])
        control = mean(found["recovery_control"]["points"][-1]["losses"][text])
        recovery[text] = {
            "start": start,
            "end": end,
            "control_end": control,
            "share_recovered": (start - end) / (start - original),
            "gap_to_control": end - control,
        }
    return {
        "loss": loss,
        "sum_of_single_damages": sum(found["layers"]["damage"]["both"]),
        "growth_with_all_layers": {
            way: {part: texts["A"] - loss["original"]["A"] for part, texts in parts.items()}
            for way, parts in found["why"]["losses"].items()
        },
        "recovery": recovery,
    } | geometry


def kept(part: str):
    """Returns what a part found."""
    return json.loads((PARTS_FOLDER / f"{part}.json").read_text(encoding="utf-8"))["found"]


def main(wanted: list[str]) -> None:
    PARTS_FOLDER.mkdir(exist_ok=True)
    made = environment()
    model, tokenizer = load_smollm2(device="cpu")
    for part in wanted or PARTS:
        path = PARTS_FOLDER / f"{part}.json"
        if path.exists():
            print(f"{part}: there already")
            continue
        begun = time.perf_counter()
        found = PARTS[part](model, tokenizer)
        done = {"provenance": made, "seconds": round(time.perf_counter() - begun), "found": found}
        path.write_text(json.dumps(done), encoding="utf-8")
        print(f"{part}: {done['seconds']} s", flush=True)
    missing = [part for part in PARTS if not (PARTS_FOLDER / f"{part}.json").exists()]
    if missing:
        return print(f"still missing: {', '.join(missing)}")
    parts = {part: json.loads((PARTS_FOLDER / f"{part}.json").read_text(encoding="utf-8")) for part in PARTS}
    made_by = {part: kept["provenance"]["commit"] for part, kept in parts.items()}
    found = {part: kept["found"] for part, kept in parts.items()}
    record = {"provenance": parts["recovery_pooled"]["provenance"], "commits": made_by, "summary": summary(found)}
    save_record("convert_smollm2", record | {"layer_damage": found["layers"]["damage"]["both"]} | found)


if __name__ == "__main__":
    main(sys.argv[1:])
