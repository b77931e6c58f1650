"""Let the real model speak through any `attend`, right or wrong, and hear the difference."""

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

from gqa_lab.attention import Attend, grouped_attention, sdpa_attention
from gqa_lab.checkpoint import find_smollm2, load_pretrained
from gqa_lab.generate import generate
from gqa_lab.model import Transformer
from gqa_lab.recorded import RESULTS, provenance, recorded
from gqa_lab.tokenizer import Tokenizer

MISSING = "The real model is not on this machine yet. Bring it once with:  python course.py lab"

PARAGRAPH = """\
Every evening the harbour master walks along the quay and writes down which boats have come home. The list is long \
in summer, when the fishermen stay out until the light is gone, and short in winter, when ice closes the bay. He \
keeps the old lists in a wooden box beside the stove. Nobody has ever asked to read them, but he says that a harbour \
without a memory is only a hole in the coast. Last year a young woman came and wanted to know when her grandfather \
had sailed for the last time. He opened the box, turned the pages, and found the name within a minute."""
"""A text that no model has been trained on; `cross_entropy` reads it."""


def story() -> str:
    """Returns a story written for this course, some 1,000 tokens long: the text on which conversions are judged."""
    return (RESULTS.parent / "narrative.txt").read_text(encoding="utf-8")


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


@torch.no_grad()
def calls_of_layers(model: Transformer, ids: Int[Tensor, "B T"]) -> list[tuple[tuple, dict]]:
    """Returns what each layer is called with while the model reads: positional and keyword arguments."""
    calls: list[tuple[tuple, dict]] = []
    hooks = [
        layer.register_forward_pre_hook(lambda module, *call: calls.append(call), with_kwargs=True)
        for layer in model.layers
    ]
    model.hidden(ids)
    for hook in hooks:
        hook.remove()
    return calls


@torch.no_grad()
def loss_from(model: Transformer, i: int, call: tuple[tuple, dict], ids: Int[Tensor, "B T"]) -> float:
    """Returns the cross-entropy of the model from layer i on, in nats: layers below that nothing changed are saved.

    Args:
        i: the first layer that is computed.
        call: what it is called with, one of `calls_of_layers`.
        ids: the tokens that were read.
    """
    (x, *rest), attention = call
    for layer in model.layers[i:]:
        x = layer(x, *rest, **attention)
    logits = model.logits(model.norm(x))
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten()).item()
