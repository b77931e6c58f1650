"""One layer alone: keys and values of its one KV head, fitted until its attention says what it said before.

Plain least squares on the values cannot help: the head nearest to three is their mean, and the mean is linear in the
weights, so the fit returns the mean of the weights. What has to be kept is not each head but what the layer says.
"""

import copy
import time

import torch
import torch.nn.functional as F
from convert_layers import first_windows
from convert_texts import held_out, loss, losses, training_text, windows
from torch import Tensor

from gqa_lab.convert import convert_kv_heads, pool_layers

STEPS = 60
N_WINDOWS = 2
"""Windows of the training text that are fitted: 1,024 tokens."""
LEARNING_RATE = 1e-3


def listen_to(model, ids: Tensor) -> list[tuple]:
    """Returns what each attention is called with and what it says: inputs, keyword arguments, output."""
    heard = []
    hooks = [
        layer.attention.register_forward_hook(lambda m, *call: heard.append(call), with_kwargs=True)
        for layer in model.layers
    ]
    with torch.no_grad():
        model.hidden(ids)
    for hook in hooks:
        hook.remove()
    return heard


def fit(attention, call, wanted: Tensor, *, steps: int = STEPS, learning_rate: float = LEARNING_RATE) -> list[float]:
    """Trains keys and values of an attention until it says what is wanted; returns the errors, 1 for silence."""
    weights = [attention.k_proj.weight.requires_grad_(), attention.v_proj.weight.requires_grad_()]
    optimizer, errors = torch.optim.Adam(weights, lr=learning_rate), []
    for _ in range(steps):
        error = F.mse_loss(attention(*call[0], **call[1]), wanted) / wanted.square().mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        errors.append(error.item())
    return errors


def refit_output(attention, call, wanted: Tensor, *, ridge: float = 1e-2) -> None:
    """Sets `o_proj` by least squares, held near the old one, so that the attention says what is wanted."""
    heard = []
    hook = attention.o_proj.register_forward_pre_hook(lambda module, args: heard.append(args[0].flatten(0, 1).double()))
    with torch.no_grad():
        said = attention(*call[0], **call[1])
    hook.remove()
    x, missing = heard[0], (wanted - said).flatten(0, 1).double()
    gram = x.T @ x
    gram.diagonal().add_(ridge * gram.diagonal().mean())
    attention.o_proj.weight.data += torch.linalg.solve(gram, x.T @ missing).T.float()


def with_attention(model, i: int, attention):
    """Returns the model with another attention in layer i; it shares all other weights."""
    changed = pool_layers(model, 1, [])
    changed.layers[i].attention = attention
    return changed


def least_squares_minus_mean(model, call, i: int) -> float:
    """Returns how far the values of the least-squares head for all heads are from those of their mean: about 0."""
    x = call[0][0].flatten(0, 1).double()
    v = model.layers[i].attention.v_proj.weight.double().unflatten(0, (model.config.n_kv_heads, -1))
    wanted = (x @ v.mT).mean(0)  # nearest to all heads at once, token by token
    fitted = x @ torch.linalg.lstsq(x, wanted, driver="gelsd").solution
    return ((fitted - x @ v.mean(0).T).norm() / wanted.norm()).item()


def one_layer(model, tokenizer, chosen: list[int]) -> dict:
    """Returns for some layers the loss on A: pooled, fitted, and with `o_proj` set by least squares instead."""
    ids, held = windows(tokenizer, training_text(), N_WINDOWS), first_windows(tokenizer)
    pooled, before, found = convert_kv_heads(model, 1), loss(model, held), {}
    heard = listen_to(model, ids)
    for i in chosen:
        *call, wanted = heard[i]
        attention = pooled.layers[i].attention
        here = {"pooled": loss(with_attention(model, i, attention), held)}
        begun, fitted, refitted = time.perf_counter(), copy.deepcopy(attention), copy.deepcopy(attention)
        errors = fit(fitted, call, wanted)
        here |= {"fit_seconds": time.perf_counter() - begun, "error_before": errors[0], "error_after": errors[-1]}
        here["fitted"] = loss(with_attention(model, i, fitted), held)
        refit_output(refitted, call, wanted)
        here["output_refitted"] = loss(with_attention(model, i, refitted), held)
        here["least_squares_minus_mean"] = least_squares_minus_mean(model, call, i)
        found[str(i)] = here
        print(f"layer {i}: {here}", flush=True)
    return {
        "n_tokens": ids.numel(),
        "n_steps": STEPS,
        "learning_rate": LEARNING_RATE,
        "before": before,
        "layers": found,
    }


def layer_by_layer(model, tokenizer, path) -> dict:
    """Returns the losses of a model in which every layer was fitted, from the first on, to what it said before.

    Args:
        path: where the fitted model's keys and values are kept.
    """
    ids, held = windows(tokenizer, training_text(), N_WINDOWS), held_out(tokenizer)
    student, errors, begun = convert_kv_heads(model, 1), [], time.perf_counter()
    x = student.embed_tokens(ids)
    for i, (layer, (_, how, wanted)) in enumerate(zip(student.layers, listen_to(model, ids), strict=True)):
        call = (layer.attention_norm(x),), how  # what the layers before it, fitted already, hand on
        errors.append(fit(layer.attention, call, wanted)[:: STEPS - 1])
        layer.attention.requires_grad_(False)
        x = layer(x, None, **how)
        print(f"layer {i}: error {errors[-1][0]:.3f} -> {errors[-1][1]:.3f}", flush=True)
    seconds = time.perf_counter() - begun
    torch.save({k: w for k, w in student.state_dict().items() if ".k_proj." in k or ".v_proj." in k}, path)
    found = {"n_tokens": ids.numel(), "n_steps": STEPS, "learning_rate": LEARNING_RATE}
    return found | {
        "seconds": seconds,
        "errors": errors,
        "losses": {text: losses(student, x) for text, x in held.items()},
    }
