"""What pooling does layer by layer, and whether the damages of single layers add up."""

import torch
from convert_texts import held_out, loss

from gqa_lab.convert import pool_layers
from gqa_lab.listen import calls_of_layers, loss_from

PARTS = {"k": ("k_proj",), "v": ("v_proj",), "both": ("k_proj", "v_proj")}
N_CHOSEN = 10


def first_windows(tokenizer) -> torch.Tensor:
    """Returns 1,024 tokens of A: the first window of each held-out topic."""
    return held_out(tokenizer)["A"][::2]


def layers(model, tokenizer) -> dict:
    """Returns how much the loss grows when only layer i is pooled to one KV head: keys, values, both."""
    ids = first_windows(tokenizer)
    calls = calls_of_layers(model, ids)
    before = loss_from(model, 0, calls[0], ids)
    damage = {name: [] for name in PARTS}
    for i, call in enumerate(calls):
        for name, parts in PARTS.items():
            damage[name].append(loss_from(pool_layers(model, 1, [i], parts=parts), i, call, ids) - before)
        print(f"layer {i}: " + ", ".join(f"{name} {found[-1]:+.3f}" for name, found in damage.items()), flush=True)
    return {"n_tokens": ids.numel(), "before": before, "damage": damage}


def choices(model, tokenizer, damage: list[float]) -> dict:
    """Returns, for several choices of ten layers, the sum of their single damages and what pooling them does."""
    every = range(model.config.n_layers)
    order = sorted(every, key=lambda i: damage[i])
    generator = torch.Generator().manual_seed(0)
    chosen = {
        "least": order[:N_CHOSEN],
        "middle": order[N_CHOSEN : 2 * N_CHOSEN],
        "worst": order[-N_CHOSEN:],
        "first": list(every)[:N_CHOSEN],
        "last": list(every)[-N_CHOSEN:],
        "every_third": list(every)[::3],
    }
    for n in range(4):
        chosen[f"random_{n}"] = torch.randperm(len(every), generator=generator)[:N_CHOSEN].tolist()
    a, short = first_windows(tokenizer), held_out(tokenizer)["B"][:1, :256]
    before, before_short, found = loss(model, a), loss(model, short), {}
    for name, picked in chosen.items():
        pooled = pool_layers(model, 1, picked)
        found[name] = {
            "layers": sorted(picked),
            "sum_of_single": sum(damage[i] for i in picked),
            "measured": loss(pooled, a) - before,
            "measured_on_256_of_B": loss(pooled, short) - before_short,
        }
        print(name, found[name], flush=True)
    return {"before": before, "before_on_256_of_B": before_short, "choices": found}


def spared(model, tokenizer, damage: list[float]) -> dict:
    """Returns the loss on A and on B when all layers are pooled but the n that are damaged most."""
    order = sorted(range(model.config.n_layers), key=lambda i: -damage[i])
    texts, found = {"A": first_windows(tokenizer), "B": held_out(tokenizer)["B"]}, []
    for n in (0, 1, 2, 4, 8, 16):
        pooled = pool_layers(model, 1, order[n:])
        found.append({"spared": sorted(order[:n]), "loss": {name: loss(pooled, ids) for name, ids in texts.items()}})
        print(found[-1], flush=True)
    return {"before": {name: loss(model, ids) for name, ids in texts.items()}, "steps": found}
