"""The sizes and random arrays that tensor checks use: every axis a different size, K different from V."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

SIZES = (  # in each case the axes differ, so that two swapped axes cannot agree; C is G = H, D is G = 1
    {"B": 4, "H": 6, "G": 3, "T": 5, "S": 7, "D": 8},
    {"B": 3, "H": 8, "G": 2, "T": 1, "S": 9, "D": 6},
    {"B": 2, "H": 8, "G": 8, "T": 5, "S": 5, "D": 4},
    {"B": 2, "H": 8, "G": 1, "T": 3, "S": 7, "D": 4},
)


@dataclass(frozen=True)
class Case:
    """Arguments of one call (NumPy arrays and plain numbers) and the sizes to name in a message."""

    args: tuple
    sizes: dict[str, int]

    @property
    def name(self) -> str:
        """For instance `B=4 H=6 G=3 T=5 S=7 D=8`."""
        return " ".join(f"{letter}={size}" for letter, size in self.sizes.items())


def normal(seed: tuple[int, ...], *shape: int) -> np.ndarray:
    """Returns float64 numbers from N(0, 1), the same on every machine."""
    return np.random.default_rng(seed).standard_normal(shape)


def qkv(sizes: dict[str, int], seed: int) -> Case:
    """Returns q `[B, H, T, D]`, k and v `[B, G, S, D]`, independent of each other."""
    b, h, g, t, s, d = (sizes[letter] for letter in "BHGTSD")
    shapes = (b, h, t, d), (b, g, s, d), (b, g, s, d)
    return Case(tuple(normal((seed, i), *shape) for i, shape in enumerate(shapes)), sizes)


def fresh(value):
    """Returns a new tensor for an array; anything else as it is."""
    return torch.from_numpy(value.copy()) if isinstance(value, np.ndarray) else value


def copied(case: Case) -> list:
    """Returns the arguments of a case for a lesson in NumPy: new arrays for each call."""
    return [x.copy() if isinstance(x, np.ndarray) else x for x in case.args]


def as_in_a_model(value: np.ndarray) -> Tensor:
    """Returns `[batch, heads, seq, head_dim]` as a cache hands it out: the start of a longer buffer."""
    buffer = torch.full((*value.shape[:2], value.shape[2] + 3, value.shape[3]), 1e4, dtype=torch.float64)
    buffer[:, :, : value.shape[2]] = torch.from_numpy(value)
    return buffer[:, :, : value.shape[2]]
