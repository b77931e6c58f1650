"""Arrays in which each number says where it came from, and how the columns of a projection are cut into heads.

A number is 10000 · batch + 100 · token + column, so that a message can say what stands where.
"""

import numpy as np

from gqa_lab.checks.cases import Case

SIZES = (  # in turn: all axes differ; one token; T = H, which hides a missing transpose; H = D
    {"B": 2, "T": 3, "H": 6, "D": 4},
    {"B": 3, "T": 1, "H": 6, "D": 2},
    {"B": 2, "T": 4, "H": 4, "D": 3},
    {"B": 4, "T": 5, "H": 3, "D": 3},
)
SIZES_AGAIN = (
    {"B": 3, "T": 4, "H": 5, "D": 2},
    {"B": 2, "T": 1, "H": 4, "D": 3},
    {"B": 4, "T": 3, "H": 3, "D": 2},
    {"B": 3, "T": 6, "H": 2, "D": 2},
)


def labelled(batch_size: int, n_tokens: int, width: int) -> np.ndarray:
    """Returns `[B, T, width]` of numbers that say where they stand."""
    b, t, column = np.ogrid[:batch_size, :n_tokens, :width]
    return (10_000 * b + 100 * t + column).astype(np.float64)


def split(x: np.ndarray, n_heads: int) -> np.ndarray:
    """Returns x `[B, T, H·D]` as `[B, H, T, D]`."""
    return split_to(x, n_heads, x.shape[2] // n_heads)


def split_to(x: np.ndarray, n_heads: int, head_dim: int) -> np.ndarray:
    """Returns x as `[B, n_heads, T, head_dim]`; raises ValueError where these are not its columns."""
    return x.reshape(*x.shape[:2], n_heads, head_dim).transpose(0, 2, 1, 3)


def merge(x: np.ndarray) -> np.ndarray:
    """Returns x `[B, H, T, D]` as `[B, T, H·D]`."""
    b, h, t, d = x.shape
    return x.transpose(0, 2, 1, 3).reshape(b, t, h * d)


def split_by_reshape(x: np.ndarray, n_heads: int) -> np.ndarray:
    """Wrong: the tokens are dealt to the heads one after the other."""
    b, t, width = x.shape
    return x.reshape(b, n_heads, t, width // n_heads)


def merge_by_reshape(x: np.ndarray) -> np.ndarray:
    """Wrong: undoes `split_by_reshape`."""
    b, h, t, d = x.shape
    return x.reshape(b, t, h * d)


def split_as_dh(x: np.ndarray, n_heads: int) -> np.ndarray:
    """Wrong: head h gets every H-th column."""
    b, t, width = x.shape
    return x.reshape(b, t, width // n_heads, n_heads).transpose(0, 3, 1, 2)


def merge_as_dh(x: np.ndarray) -> np.ndarray:
    """Wrong: undoes `split_as_dh`."""
    b, h, t, d = x.shape
    return x.transpose(0, 2, 3, 1).reshape(b, t, h * d)


def cases(round_: int, of_heads: bool) -> list[Case]:
    """Returns the cases of `split_heads`, or with `of_heads` those of `merge_heads`."""
    made = []
    for sizes in SIZES_AGAIN if round_ else SIZES:
        x = labelled(sizes["B"], sizes["T"], sizes["H"] * sizes["D"])
        made.append(Case((split(x, sizes["H"]),) if of_heads else (x, sizes["H"]), sizes))
    return made


def origin(values: np.ndarray, sizes: dict[str, int]) -> str:
    """Returns in words where a few neighbouring numbers come from; empty if they are none of the input's.

    Example:
        >>> origin(np.array([102.0, 103.0]), {"B": 1, "T": 3, "H": 6, "D": 2})
        'token 1, columns 2, 3'
        >>> origin(np.array([0.5, 3.0]), {"B": 1, "T": 3, "H": 6, "D": 2})
        ''
    """
    whole = np.rint(values).astype(int)
    batches, tokens, columns = whole // 10_000, whole // 100 % 100, whole % 100
    inside = (batches < sizes["B"]) & (tokens < sizes["T"]) & (columns < sizes["H"] * sizes["D"])
    if not (np.isfinite(values) & (values == whole) & (whole >= 0) & inside).all():
        return ""
    if len(set(tokens.tolist())) == len(set(batches.tolist())) == 1:
        return f"token {tokens[0]}, column{'s'[: len(columns) > 1]} {', '.join(map(str, columns))}"
    return ", ".join(f"token {t} column {c}" for t, c in zip(tokens, columns, strict=True))
