"""`KVCache`: the keys and values that one layer keeps, in a buffer that is allocated once."""

import torch
from jaxtyping import Float, Int32, Int64
from torch import Tensor


class KVCache:
    """Preallocated keys and values of one layer: `append` writes in place and returns views, never a copy.

    A token costs `2 * n_kv_heads * head_dim` elements per layer: keys and values of the KV heads only. Query
    heads are nowhere in here, which is why fewer KV heads make it smaller.

    With a `window` the buffer is a ring of that many slots: token n stands in slot `n % window`, where it
    replaces the one that no later query can see.

    Args:
        batch_size: sequences (B).
        n_kv_heads: KV heads (G).
        max_seq_len: tokens per sequence. Without a window the buffer has a slot for each from the start.
        head_dim: numbers per head (D).
        dtype: element type of both buffers.
        device: where they live.
        window: how many latest tokens are kept, or None for all.

    Attributes:
        k, v: the whole buffers, `[B, G, n_slots, D]`, zeros where nothing was written yet.
        lengths: int32 `[B]` on `device`, the tokens each sequence has seen.

    Example:
        >>> cache = KVCache(1, 2, 8, 4, dtype=torch.float32, device="cpu")
        >>> k_all, v_all = cache.append(torch.ones(1, 2, 3, 4), torch.zeros(1, 2, 3, 4))
        >>> k_all.shape, cache.lengths.tolist(), cache.nbytes
        (torch.Size([1, 2, 3, 4]), [3], 512)

    Source:
        The ring: Jiang et al. 2023 (arXiv 2310.06825) section 2, "Rolling Buffer Cache".
    """

    def __init__(
        self,
        batch_size: int,
        n_kv_heads: int,
        max_seq_len: int,
        head_dim: int,
        *,
        dtype: torch.dtype,
        device: torch.device | str,
        window: int | None = None,
    ):
        sizes = dict(batch_size=batch_size, n_kv_heads=n_kv_heads, max_seq_len=max_seq_len, head_dim=head_dim)
        for name, value in sizes.items() if window is None else (sizes | {"window": window}).items():
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise ValueError(f"dtype must be a floating-point type such as torch.float32, got {dtype!r}")
        self.max_seq_len, self.window = max_seq_len, window
        n_slots = max_seq_len if window is None else min(window, max_seq_len)
        self.k = torch.zeros(batch_size, n_kv_heads, n_slots, head_dim, dtype=dtype, device=device)
        self.v = torch.zeros_like(self.k)
        self.lengths = torch.zeros(batch_size, dtype=torch.int32, device=device)
        # Overflow and slices are decided on the host, so that no step waits for the device.
        self._host_lengths, self._rows = [0] * batch_size, range(batch_size)  # rows share the list

    @property
    def n_slots(self) -> int:
        """Tokens per sequence that the buffer has room for."""
        return self.k.shape[2]

    @property
    def host_lengths(self) -> list[int]:
        """The tokens each sequence has seen, known without asking the device."""
        return [self._host_lengths[b] for b in self._rows]

    @property
    def nbytes(self) -> int:
        """Bytes that both buffers hold, used or not."""
        return self.k.nbytes + self.v.nbytes

    @property
    def nbytes_used(self) -> int:
        """Bytes of the tokens that are kept at this moment."""
        batch_size, _, n_slots, _ = self.k.shape
        return self.nbytes // (batch_size * n_slots) * sum(min(n, n_slots) for n in self.host_lengths)

    def positions(self, q_len: int) -> slice | Int64[Tensor, "B 1 T"]:
        """Returns where the next `q_len` tokens stand: a slice if all sequences are equally long."""
        starts = self.host_lengths
        if len(set(starts)) == 1:
            return slice(starts[0], starts[0] + q_len)
        return self.lengths[:, None, None] + torch.arange(q_len, device=self.lengths.device)

    def kv_lengths(self, q_len: int) -> Int32[Tensor, "B"] | None:
        """Returns how many keys of each sequence are valid in what the last `append`, of `q_len` tokens, returned.

        None if all are: an attention needs no `lengths` then.
        """
        most_past = self.n_slots - 1
        if len({min(length - q_len, most_past) for length in self.host_lengths}) == 1:
            return None
        return self.lengths if self.window is None else (self.lengths - q_len).clamp(max=most_past) + q_len

    def row(self, b: int) -> "KVCache":
        """Returns the cache of sequence `b` alone: the same memory, so what is appended there stands here too.

        Raises:
            ValueError: if there is no such sequence.
        """
        batch_size = self.k.shape[0]
        if not 0 <= b < batch_size:
            raise ValueError(f"row {b} does not exist; this cache holds sequences 0 to {batch_size - 1}")
        view = object.__new__(KVCache)
        view.max_seq_len, view.window = self.max_seq_len, self.window
        view.k, view.v = self.k[b : b + 1], self.v[b : b + 1]
        view.lengths = self.lengths[b : b + 1]
        view._host_lengths, view._rows = self._host_lengths, self._rows[b : b + 1]
        return view

    def append(
        self, k: Float[Tensor, "B G T D"], v: Float[Tensor, "B G T D"]
    ) -> tuple[Float[Tensor, "B G S D"], Float[Tensor, "B G S D"]]:
        """Stores the keys and values of T new tokens behind each sequence's last one.

        Returns:
            The keys and values to attend to: views of both buffers up to the longest sequence. Where lengths
            differ, the shorter rows end in old values: pass `kv_lengths` to the attention.

            One token into a full ring: views of all its slots. They are not in the order of time, which one
            query cannot tell: attend without a window. Several tokens past the end of a ring: the early ones
            still need keys that the late ones replace, so this returns a temporary, the last `window - 1`
            tokens in order and the new ones behind them, to be attended with the window.

        Raises:
            ValueError: for a wrong shape or dtype, or when a sequence would outgrow `max_seq_len`. Nothing has
                been written then, and the cache goes on working.
        """
        starts = self.host_lengths
        self._check(k, v, max(starts))
        k, v = k.detach(), v.detach()  # a cache is memory, not a step to differentiate through
        n_new = k.shape[2]
        longest = max(starts) + n_new
        wraps = longest > self.n_slots and n_new > 1
        if wraps:
            attended = self._past_and_new(k, v, starts)
        self._store(k, v, starts)
        self.lengths += n_new
        self._set_lengths([start + n_new for start in starts])
        return attended if wraps else (self.k[:, :, :longest], self.v[:, :, :longest])

    def rewind(self, length: int) -> None:
        """Forgets all but the first `length` tokens of every sequence; the buffers are left as they are.

        Raises:
            ValueError: if a sequence has not got that many tokens, or if its ring has replaced tokens that would
                be seen again.
        """
        if type(length) is not int or not 0 <= length <= min(self.host_lengths):
            raise ValueError(f"cannot rewind to {length!r}: the sequences hold {self.host_lengths} tokens")
        if any(length not in (0, n) for n in self.host_lengths if n > self.n_slots):
            raise ValueError(
                f"cannot rewind to {length}: after {max(self.host_lengths)} tokens a window of {self.n_slots} has "
                "replaced the ones before; rewind(0) begins again"
            )
        self.lengths.fill_(length)
        self._set_lengths([length] * len(self._rows))

    def count_on_host(self, n_new: int) -> None:
        """Counts tokens that a recorded program has stored and counted on the device."""
        self._set_lengths([length + n_new for length in self.host_lengths])

    def _set_lengths(self, lengths: list[int]) -> None:
        for b, length in zip(self._rows, lengths, strict=True):
            self._host_lengths[b] = length

    def _store(self, k: Tensor, v: Tensor, starts: list[int]) -> None:
        """Writes the new tokens, or as many of the last ones as there are slots, each to its slot."""
        n_kept = min(k.shape[2], self.n_slots)
        n_dropped = k.shape[2] - n_kept
        if n_dropped:
            k, v = k[:, :, n_dropped:], v[:, :, n_dropped:]
        if len(set(starts)) == 1:
            first = (starts[0] + n_dropped) % self.n_slots
            n_behind = min(n_kept, self.n_slots - first)  # the others go on at slot 0
            for buffer, new in ((self.k, k), (self.v, v)):
                buffer[:, :, first : first + n_behind] = new if n_behind == n_kept else new[:, :, :n_behind]
                if n_behind < n_kept:
                    buffer[:, :, : n_kept - n_behind] = new[:, :, n_behind:]
        else:
            rows = torch.arange(k.shape[0], device=k.device)[:, None]
            slots = (self.lengths[:, None] + n_dropped + torch.arange(n_kept, device=k.device)) % self.n_slots
            self.k[rows, :, slots] = k.transpose(1, 2)
            self.v[rows, :, slots] = v.transpose(1, 2)

    def _past_and_new(self, k: Tensor, v: Tensor, starts: list[int]) -> tuple[Tensor, Tensor]:
        """Returns the last `window - 1` tokens of each sequence in order, and the new ones behind them."""
        n_past = [min(start, self.n_slots - 1) for start in starts]
        if not any(n_past):
            return k, v
        n_new = k.shape[2]
        k_all, v_all = (x.new_zeros(*x.shape[:2], max(n_past) + n_new, x.shape[3]) for x in (k, v))
        for b, (start, past) in enumerate(zip(starts, n_past, strict=True)):
            slots = torch.arange(start - past, start, device=k.device) % self.n_slots
            for out, buffer, new in ((k_all, self.k, k), (v_all, self.v, v)):
                out[b, :, :past] = buffer[b, :, slots]
                out[b, :, past : past + n_new] = new[b]
        return k_all, v_all

    def _check(self, k: Tensor, v: Tensor, longest: int) -> None:
        batch_size, n_kv_heads, _, head_dim = self.k.shape
        for name, x in (("k", k), ("v", v)):
            if not isinstance(x, Tensor):
                raise ValueError(f"{name} is a {type(x).__name__}; append takes torch tensors")
            if x.ndim != 4 or (x.shape[0], x.shape[1], x.shape[3]) != (batch_size, n_kv_heads, head_dim):
                raise ValueError(
                    f"{name} has shape {list(x.shape)}; this cache takes "
                    f"[batch {batch_size}, n_kv_heads {n_kv_heads}, new tokens, head_dim {head_dim}]"
                )
            if x.dtype != self.k.dtype or x.device != self.k.device:
                raise ValueError(f"{name} is {x.dtype} on {x.device}; this cache is {self.k.dtype} on {self.k.device}")
        if k.shape != v.shape:
            raise ValueError(f"k has {k.shape[2]} new tokens and v has {v.shape[2]}; they must be the same")
        if k.shape[2] == 0:
            raise ValueError("k has no new tokens; append takes at least one")
        if longest + k.shape[2] > self.max_seq_len:
            raise ValueError(
                f"{k.shape[2]} more tokens after {longest} make {longest + k.shape[2]}; this cache has "
                f"max_seq_len = {self.max_seq_len}. Make it larger, or rewind() it"
            )
