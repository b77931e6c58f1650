"""Trains only `k_proj` and `v_proj` of SmolLM2, pooled to one KV head or as it came, and measures on the way."""

import copy
import math
import time

import torch
import torch.nn.functional as F
from convert_texts import held_out, losses, training_text, windows

from gqa_lab.attention import sdpa_attention
from gqa_lab.convert import convert_kv_heads

BATCH_SIZE = 4
"""Windows of 512 tokens a step. With one, the loss fell to 6.6 within 19 steps of 1e-3, and then rose to 9 again."""
POINTS = (0, 0.125, 0.25, 0.5, 1)
WARM_UP = 4
LEARNING_RATES = (5e-4, 1e-3)
"""Each is tried on the pooled model for the whole training; the last training losses decide."""


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


def step(student, optimizer, batch: torch.Tensor, learning_rate: float) -> float:
    """Trains on the windows `[BATCH_SIZE, WINDOW]`, one after the other; returns their mean loss."""
    losses = []
    for ids in batch:
        with torch.autocast("cpu", torch.bfloat16):
            logits = student(ids[None], attend=one_dtype)
            loss = F.cross_entropy(logits[0, :-1], ids[1:])
        (loss / len(batch)).backward()
        losses.append(loss.item())
    torch.nn.utils.clip_grad_norm_([p for p in student.parameters() if p.requires_grad], 1.0)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.step()
    optimizer.zero_grad()
    return sum(losses) / len(losses)


def adam(student):
    return torch.optim.Adam([p for p in student.parameters() if p.requires_grad], betas=(0.9, 0.99))


def train(model, tokenizer, n_kv_heads: int, learning_rate: float, folder, *, fitted=None) -> dict:
    """Returns the losses on A and B after each share of the training, which reads no token twice.

    It goes on where it was interrupted.

    Args:
        n_kv_heads: 1 pools by the mean, 3 is the control.
        folder: where the state is kept.
        fitted: file with other keys and values to start from.
    """
    texts, held = windows(tokenizer, training_text()), held_out(tokenizer)
    start = convert_kv_heads(model, n_kv_heads)
    if fitted:
        start.load_state_dict(torch.load(fitted), strict=False)
    state_path = folder / f"run_{n_kv_heads}_{learning_rate}{'_fitted' * bool(fitted)}.pt"
    student, generator = trainable(start), torch.Generator().manual_seed(0)
    order = torch.randperm(len(texts), generator=generator).split(BATCH_SIZE)
    order = [batch for batch in order if len(batch) == BATCH_SIZE]
    optimizer, points, seconds, seen = adam(student), [], 0.0, []
    if state_path.exists():
        state = torch.load(state_path)
        student.load_state_dict(state["weights"])
        optimizer.load_state_dict(state["optimizer"])
        points, seconds, seen = state["points"], state["seconds"], state["seen"]
    last = len(order)
    stops = [round(share * last) for share in POINTS]
    for i in range(len(seen), last + 1):
        if i in stops and i not in [point["step"] for point in points]:
            for name, weight in student.named_parameters():
                if weight.requires_grad:
                    start.get_parameter(name).data.copy_(weight.data)
            here = {name: losses(start, ids) for name, ids in held.items()}
            points.append({"step": i, "n_tokens": i * BATCH_SIZE * texts.shape[1], "losses": here})
            now = {"points": points, "seconds": seconds, "seen": seen}
            torch.save(now | {"weights": student.state_dict(), "optimizer": optimizer.state_dict()}, state_path)
            print(f"{n_kv_heads} KV heads, step {i}: {here}", flush=True)
        if i < last:
            begun = time.perf_counter()
            cosine = 0.5 * (1 + math.cos(math.pi * i / last))
            rate = learning_rate * cosine * min(1, (i + 1) / WARM_UP)
            seen.append(step(student, optimizer, texts[order[i]], rate))
            seconds += time.perf_counter() - begun
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
        "n_steps": last,
        "batch_size": BATCH_SIZE,
        "points": points,
        "training_losses": [round(x, 4) for x in seen],
        "seconds": seconds,
    }
