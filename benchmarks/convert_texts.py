"""The texts on which `convert_smollm2.py` trains and measures, and the loss that it measures.

Trained on: `pydoc_data.topics`, which every Python ships, without the held-out topics and without its repetitions
(half of it stands there twice). Measured on: A, two held-out topics that share no line of 40 characters with the
others; B, a story written for this course, `narrative.txt`.
"""

import hashlib
import platform
from pathlib import Path
from pydoc_data.topics import topics

import torch
import torch.nn.functional as F

WINDOW = 512
"""Tokens read at a time; the first sees no context, so each window predicts 511."""

HELD_OUT = ("debugger", "formatstrings")
N_WINDOWS = 2
"""Windows measured of each held-out topic, and of B."""


def training_text() -> str:
    """Returns every paragraph of every other topic, once."""
    seen, kept = set(), []
    for name in sorted(topics):
        for paragraph in [] if name in HELD_OUT else topics[name].split("\n\n"):
            key = " ".join(paragraph.split())
            if key and key not in seen:
                kept.append(paragraph)
            seen.add(key)
    return "\n\n".join(kept)


def narrative() -> str:
    """Returns B."""
    return (Path(__file__).parent / "narrative.txt").read_text(encoding="utf-8")


def windows(tokenizer, text: str, n: int | None = None) -> torch.Tensor:
    """Returns the first `n` windows of a text (None: all), `[n, WINDOW]`; what does not fill a window is left out."""
    ids = torch.tensor(tokenizer.encode(text))
    whole = ids[: len(ids) // WINDOW * WINDOW].view(-1, WINDOW)
    assert n is None or len(whole) >= n, f"{len(whole)} windows, wanted {n}"
    return whole[:n]


def held_out(tokenizer) -> dict[str, torch.Tensor]:
    """Returns the windows that are measured, `[n, WINDOW]`, of A and of B."""
    a = torch.cat([windows(tokenizer, topics[name], N_WINDOWS) for name in HELD_OUT])
    return {"A": a, "B": windows(tokenizer, narrative(), N_WINDOWS)}


def losses(model, texts: torch.Tensor, **attention) -> list[float]:
    """Returns the cross-entropy of each window, in nats per token, in float32."""
    found = []
    for ids in texts:
        with torch.no_grad():
            logits = model(ids[None], **attention)
        found.append(F.cross_entropy(logits[0, :-1].float(), ids[1:]).item())
    return found


def loss(model, texts: torch.Tensor, **attention) -> float:
    """Returns the mean of `losses`."""
    found = losses(model, texts, **attention)
    return sum(found) / len(found)


def description(tokenizer) -> dict:
    """Returns what has to be said beside every loss: which text, how long, in which windows."""
    train, held = training_text(), held_out(tokenizer)
    a = "\n\n".join(topics[name] for name in HELD_OUT)
    names = {
        "train": "pydoc_data.topics without the held-out topics, each paragraph once",
        "A": f"pydoc_data.topics, held out: {', '.join(HELD_OUT)}",
        "B": "benchmarks/narrative.txt, a story written for this course",
    }
    tokens = {"train": windows(tokenizer, train).numel(), **{k: ids.numel() for k, ids in held.items()}}
    return {
        name: {
            "text": names[name],
            "sha256": hashlib.sha256(text.encode()).hexdigest(),
            "python": platform.python_version() if name != "B" else None,
            "window": WINDOW,
            "n_tokens": tokens[name],
        }
        for name, text in (("train", train), ("A", a), ("B", narrative()))
    }
