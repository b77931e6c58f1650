"""Trains only `k_proj` and `v_proj` of SmolLM2, pooled to one KV head or as it came, and measures on the way."""

import copy
import math
import time

import torch
import torch.nn.functional as F
from convert_texts import held_out, losses, training_text, windows

from gqa_lab.attention import sdpa_attention
from gqa_lab.convert import convert_kv_heads

N_PASSES = 1
"""Times that the training text is read, one window of 512 tokens a step: no token twice."""
POINTS = (0, 0.125, 0.25, 0.5, 1)
WARM_UP = 10
LEARNING_RATES = (1e-4, 3e-4, 1e-3)
"""Each is tried on the pooled model for a quarter of the training; the last training losses decide."""


def trainable(model):
    """Returns the model in bfloat16 with its keys' and values' weights in float32, which alone are trained."""
    student = copy.deepcopy(model).to(torch.bfloat16).requires_grad_(False)
    for name, weight in student.named_parameters():
        weight.data = weight.data.contiguous()
        if ".k_proj." in name or ".v_proj." in name:
            weight.data = model.get_parameter(name).data.clone()
            weight.requires_grad_(True)
    return student


def one_dtype(q, k, v, **rest):
    """Attention of queries and keys that RoPE has turned in float32."""
    return sdpa_attention(q.to(v.dtype), k.to(v.dtype), v, **rest)


def step(student, optimizer, ids: torch.Tensor, learning_rate: float) -> float:
    """Trains on one window; returns its loss."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = student(ids[None], attend=one_dtype)
        loss = F.cross_entropy(logits[0, :-1], ids[1:])
    loss.backward()
    torch.nn.utils.clip_grad_norm_([p for p in student.parameters() if p.requires_grad], 1.0)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def adam(student):
    return torch.optim.Adam([p for p in student.parameters() if p.requires_grad], betas=(0.9, 0.95))


def train(model, tokenizer, n_kv_heads: int, learning_rate: float, folder, *, share: float = 1, fitted=None) -> dict:
    """Returns the losses on A and B after each share of the training, which goes on where it was interrupted.

    Args:
        n_kv_heads: 1 pools by the mean, 3 is the control.
        folder: where the state is kept.
        fitted: file with other keys and values to start from.
        share: how much of the training is done; more of it later goes on from there.
    """
    texts, held = windows(tokenizer, training_text()), held_out(tokenizer)
    start = convert_kv_heads(model, n_kv_heads)
    if fitted:
        start.load_state_dict(torch.load(fitted), strict=False)
    state_path = folder / f"run_{n_kv_heads}_{learning_rate}{'_fitted' * bool(fitted)}.pt"
    student, generator = trainable(start), torch.Generator().manual_seed(0)
    order = torch.cat([torch.randperm(len(texts), generator=generator) for _ in range(N_PASSES)]).tolist()
    optimizer, points, seconds, seen = adam(student), [], 0.0, []
    if state_path.exists():
        state = torch.load(state_path)
        student.load_state_dict(state["weights"])
        optimizer.load_state_dict(state["optimizer"])
        points, seconds, seen = state["points"], state["seconds"], state["seen"]
    stops = [round(share * len(order)) for share in POINTS]
    last = round(share * len(order))
    for i in range(len(seen), last + 1):
        if i in stops and i not in [point["step"] for point in points]:
            for name, weight in student.named_parameters():
                if weight.requires_grad:
                    start.get_parameter(name).data.copy_(weight.data)
            here = {name: losses(start, ids) for name, ids in held.items()}
            points.append({"step": i, "n_tokens": i * texts.shape[1], "losses": here})
            now = {"points": points, "seconds": seconds, "seen": seen}
            torch.save(now | {"weights": student.state_dict(), "optimizer": optimizer.state_dict()}, state_path)
            print(f"{n_kv_heads} KV heads, step {i}: {here}", flush=True)
        if i < last:
            begun = time.perf_counter()
            cosine = 0.5 * (1 + math.cos(math.pi * i / len(order)))
            rate = learning_rate * cosine * min(1, (i + 1) / WARM_UP)
            seen.append(step(student, optimizer, texts[order[i]], rate))
            seconds += time.perf_counter() - begun
            if i % 10 == 0:
                left = seconds / (i + 1) * (last - i) / 60
                print(
                    f"{n_kv_heads} KV heads at {learning_rate}, step {i}/{last}: {seen[-1]:.3f}, {left:.0f} min left",
                    flush=True,
                )
    n_trained = sum(p.numel() for p in student.parameters() if p.requires_grad)
    return {
        "n_kv_heads": n_kv_heads,
        "learning_rate": learning_rate,
        "n_trained_weights": n_trained,
        "n_steps": len(order),
        "n_passes": N_PASSES,
        "points": points,
        "training_losses": [round(x, 4) for x in seen],
        "seconds": seconds,
    }
