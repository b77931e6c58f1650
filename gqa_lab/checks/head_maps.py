"""Which KV head a query head reads: the right rule, and the wrong ones with what to tell who uses them."""

from collections.abc import Callable

CARDS = "You dealt KV heads out like cards. Neighbours share."
DIVIDED = "You divided by the number of KV heads; divide by the group size."
FROM_ONE = "Count from 0."
BACKWARDS = "Group 0 comes first."

TRUE_GROUPS = [(h, g) for g in range(2, 7) for h in range(2 * g, 25, g) if g != h // g]
"""Sizes (H, G) with 1 < G < H and G different from R."""


def neighbours(i: int, n_heads: int, n_kv_heads: int) -> int:
    """Returns the KV head of query head `i`: neighbours share one."""
    return i // (n_heads // n_kv_heads)


def cards(i: int, n_heads: int, n_kv_heads: int) -> int:
    """Wrong: deals KV heads out one by one."""
    return i % n_kv_heads


def divided(i: int, n_heads: int, n_kv_heads: int) -> int:
    """Wrong: divides by the number of KV heads; for some sizes the result is no KV head at all."""
    return i // n_kv_heads


def divided_clamped(i: int, n_heads: int, n_kv_heads: int) -> int:
    """Wrong like `divided`, but never loud."""
    return min(i // n_kv_heads, n_kv_heads - 1)


def from_the_end(i: int, n_heads: int, n_kv_heads: int) -> int:
    """Wrong: neighbours share, but the last KV head comes first."""
    return n_kv_heads - 1 - neighbours(i, n_heads, n_kv_heads)


def head_map(rule: Callable, n_heads: int, n_kv_heads: int) -> list[int]:
    """Returns the KV head of each query head; raises IndexError where the rule leaves the KV heads."""
    kv_heads = [rule(i, n_heads, n_kv_heads) for i in range(n_heads)]
    if max(kv_heads) >= n_kv_heads:
        raise IndexError(f"KV head {max(kv_heads)} of {n_kv_heads}")
    return kv_heads
