"""03.is_causal: a flag that is aligned top-left, in a decode loop."""

import torch
from torch.nn.functional import scaled_dot_product_attention

from gqa_lab.checks.cases import normal
from gqa_lab.checks.expose import FindMistake
from gqa_lab.checks.wrong_attention import bottom_right

_LARGEST = 64
_PAIRS = ((5, 5), (1, 1), (1, 5), (3, 7), (7, 7))
_ALIGN = "One query, one key: there is nothing to align."


def _step(q, k_new, v_new, k_past, v_past, *, is_right: bool = False):
    """The function of the notebook, wrong as printed there or repaired."""
    k = torch.cat([k_past, k_new], dim=2)  # 1
    v = torch.cat([v_past, v_new], dim=2)  # 2
    scale = q.shape[-1] ** -0.5  # 3
    how = {"attn_mask": bottom_right(q.shape[2], k.shape[2])} if is_right else {"is_causal": True}
    return scaled_dot_product_attention(q, k, v, scale=scale, **how)  # 4


def _run(q_len: int, kv_len: int, is_right: bool):
    q, k, v = (torch.from_numpy(normal((33, i), 1, 2, n, 4)) for i, n in enumerate((q_len, kv_len, kv_len)))
    past = kv_len - q_len
    return _step(q, k[:, :, past:], v[:, :, past:], k[:, :, :past], v[:, :, :past], is_right=is_right)


def _pair(value: object) -> tuple | str:
    if type(value) is not list or [type(x) for x in value] != [int, int]:
        return "give a pair of whole numbers (T, S)."
    q_len, kv_len = value
    if not 1 <= q_len <= _LARGEST or not 1 <= kv_len <= _LARGEST:
        return f"both numbers lie between 1 and {_LARGEST}."
    if q_len > kv_len:
        return f"the T new tokens are among the S visible ones, so {q_len} of {kv_len} cannot be."
    return q_len, kv_len


def _examine_wrong_ones(value: object) -> str | None:
    where = "`wrong_ones`: "
    if type(value) is not list or any(type(x) is not list or tuple(x) not in _PAIRS for x in value):
        return f"{where}give a list of pairs, each one of {', '.join(map(str, _PAIRS))}."
    given = {tuple(x) for x in value}
    wrong = {pair for pair in _PAIRS if not torch.allclose(_run(*pair, False), _run(*pair, True), rtol=1e-9)}
    problems = [_ALIGN] if (1, 1) in given else []
    problems += [f"{pair} is right: there T = S." for pair in _PAIRS if pair in given - wrong - {(1, 1)}]
    if missing := len(wrong - given):
        problems.append(f"{missing} more of the five {'goes' if missing == 1 else 'go'} wrong.")
    return where + " ".join(problems) if problems else None


IS_CAUSAL = FindMistake(
    id="03.is_causal",
    level="expose ●●○ 8 min, further",
    line=4,
    wrong=lambda q_len, kv_len: _run(q_len, kv_len, False),
    right=lambda q_len, kv_len: _run(q_len, kv_len, True),
    inputs=_pair,
    too_small=lambda q_len, kv_len: f"{_ALIGN} Try again with at least two." if kv_len == 1 else None,
    more={"wrong_ones": _examine_wrong_ones},
    notice="Both versions were run on your sizes. Notice: every test of a whole text has T = S, so none of them can "
    "see this. Test with a past, too: T < S.",
)
