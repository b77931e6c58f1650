"""Let the real model speak through any `attend`, right or wrong, and hear the difference."""

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from gqa_lab import reference
from gqa_lab.attention import Attend, grouped_attention, sdpa_attention
from gqa_lab.checkpoint import find_smollm2, load_pretrained
from gqa_lab.generate import generate
from gqa_lab.model import Transformer
from gqa_lab.recorded import provenance, recorded
from gqa_lab.tokenizer import Tokenizer

MISSING = "The real model is not on this machine yet. Bring it once with:  python course.py lab"

PARAGRAPH = """\
Every evening the harbour master walks along the quay and writes down which boats have come home. The list is long \
in summer, when the fishermen stay out until the light is gone, and short in winter, when ice closes the bay. He \
keeps the old lists in a wooden box beside the stove. Nobody has ever asked to read them, but he says that a harbour \
without a memory is only a hole in the coast. Last year a young woman came and wanted to know when her grandfather \
had sailed for the last time. He opened the box, turned the pages, and found the name within a minute."""
"""A text that no model has been trained on; `cross_entropy` reads it."""


def listen(
    model: Transformer | None,
    tokenizer: Tokenizer | None,
    prompt: str,
    *,
    record: str,
    attend: Attend = grouped_attention,
    prefill_attend: Attend | None = None,
    max_new_tokens: int = 40,
) -> list[int]:
    """Prints the model's answer as it comes, and returns its token ids.

    Args:
        model: the real model, or None where it has not been brought: then the recorded answer is printed, and
            says that it is recorded.
        tokenizer: the model's.
        prompt: what a user says.
        record: name of the recorded answer to this prompt with this attention.
        attend: attention of the decode steps.
        prefill_attend: attention of the prompt; None means the same as `attend`.
        max_new_tokens: the answer ends there, or where the model ends it.
    """
    if model is None:
        answers = recorded("smollm2_answers")
        print(f"{MISSING}\nUntil then, an answer {provenance(answers)}:\n{answers['answers'][record]['text']}")
        return answers["answers"][record]["ids"]
    answer, piece = [], tokenizer.stream()
    steps = generate(
        model,
        [tokenizer.chat(prompt)],
        max_new_tokens=max_new_tokens,
        attend=attend,
        prefill_attend=prefill_attend or attend,
        stop=tokenizer.stop_ids,
    )
    for [token] in steps:
        answer.append(token)
        print(piece(token), end="", flush=True)
    print()
    return answer


def load_smollm2(device: str | None = None) -> tuple[Transformer, Tokenizer] | tuple[None, None]:
    """Returns SmolLM2-135M-Instruct and its tokenizer in float32, or (None, None) where it has not been brought.

    Args:
        device: where it runs; None means on a GPU if there is one. Never downloads.
    """
    path = find_smollm2()
    if path is None:
        print(MISSING)
        return None, None
    print("Loading SmolLM2-135M-Instruct, a few seconds ...", flush=True)
    return load_pretrained(path, device=device)


@torch.no_grad()
def cross_entropy(model: Transformer, token_ids: Int[Tensor, "1 T"], *, attend: Attend = sdpa_attention) -> float:
    """Returns the mean surprise of the model at each next token, in nats: lower is better, ln(vocab_size) is a guess.

    Args:
        token_ids: one text.
        attend: the attention to judge.
    """
    logits = model(token_ids, attend=attend)
    return F.cross_entropy(logits[0, :-1].float(), token_ids[0, 1:]).item()


def paragraph_loss(
    model: Transformer | None, tokenizer: Tokenizer | None, *, record: str, attend: Attend = grouped_attention
) -> float:
    """Returns the cross-entropy of `PARAGRAPH` in nats, or the recorded one where the model has not been brought.

    Args:
        model: the real model, or None.
        tokenizer: the model's.
        record: name of the recorded answer with this attention; its cross-entropy stands beside it.
        attend: the attention to judge.
    """
    if model is None:
        return recorded("smollm2_answers")["answers"][record]["cross_entropy"]
    token_ids = torch.tensor([tokenizer.encode(PARAGRAPH)], device=model.device)
    return cross_entropy(model, token_ids, attend=attend)


@torch.no_grad()
def head_weights(model: Transformer, token_ids: list[int]) -> Float[np.ndarray, "L H T T"]:
    """Returns where every head of every layer looks in a text: the attention weights, in float64.

    A model takes any `attend`; this one writes down the weights on its way.

    Args:
        model: any model.
        token_ids: one text.
    """
    weights = []

    def recording(q, k, v, *, lengths=None, window=None):
        rows, keys = q.double().cpu().numpy(), k.double().cpu().numpy()
        weights.append(reference.attention_weights(rows, keys, window=window))
        return sdpa_attention(q, k, v, lengths=lengths, window=window)

    model(torch.tensor([token_ids], device=model.device), attend=recording)
    return np.concatenate(weights)
