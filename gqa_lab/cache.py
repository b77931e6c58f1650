"""`KVCache`: the keys and values that one layer keeps, in a buffer that is allocated once."""

import torch
from jaxtyping import Float
from torch import Tensor


class KVCache:
    """Preallocated keys and values of one layer: `append` writes in place and returns views, never a copy.

    A token costs `2 * n_kv_heads * head_dim` elements per layer: keys and values of the KV heads only. Query
    heads are nowhere in here, which is why fewer KV heads make it smaller.

    Args:
        batch_size: sequences (B).
        n_kv_heads: KV heads (G).
        max_seq_len: slots per sequence. The buffer holds all of them from the start, whether used or not.
        head_dim: numbers per head (D).
        dtype: element type of both buffers.
        device: where they live.

    Attributes:
        k, v: the whole buffers, `[B, G, max_seq_len, D]`, zeros where nothing was written yet.
        lengths: int32 `[B]` on `device`, the tokens each sequence has cached.

    Example:
        >>> cache = KVCache(1, 2, 8, 4, dtype=torch.float32, device="cpu")
        >>> k_all, v_all = cache.append(torch.ones(1, 2, 3, 4), torch.zeros(1, 2, 3, 4))
        >>> k_all.shape, cache.lengths.tolist(), cache.nbytes
        (torch.Size([1, 2, 3, 4]), [3], 512)
    """

    def __init__(self, batch_size: int, n_kv_heads: int, max_seq_len: int, head_dim: int, *, dtype, device):
        for name, value in (
            ("batch_size", batch_size),
            ("n_kv_heads", n_kv_heads),
            ("max_seq_len", max_seq_len),
            ("head_dim", head_dim),
        ):
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
        shape = (batch_size, n_kv_heads, max_seq_len, head_dim)
        self.k = torch.zeros(shape, dtype=dtype, device=device)
        self.v = torch.zeros(shape, dtype=dtype, device=device)
        self.lengths = torch.zeros(batch_size, dtype=torch.int32, device=device)
        # Overflow and slices are decided on the host, so that no step waits for the device.
        self._host_lengths = torch.zeros(batch_size, dtype=torch.int32)

    @property
    def max_seq_len(self) -> int:
        """Slots per sequence."""
        return self.k.shape[2]

    @property
    def host_lengths(self) -> list[int]:
        """The tokens each sequence has cached, known without asking the device."""
        return self._host_lengths.tolist()

    @property
    def is_ragged(self) -> bool:
        """True if the sequences have different lengths, so that attention needs `lengths`."""
        return len(set(self.host_lengths)) > 1

    @property
    def nbytes(self) -> int:
        """Bytes that both buffers hold, used or not."""
        return self.k.nbytes + self.v.nbytes

    @property
    def nbytes_used(self) -> int:
        """Bytes of the tokens that are cached so far."""
        batch_size, _, max_seq_len, _ = self.k.shape
        return self.nbytes // (batch_size * max_seq_len) * sum(self.host_lengths)

    def row(self, b: int) -> "KVCache":
        """Returns the cache of sequence `b` alone: the same memory, so what is appended there stands here too."""
        view = object.__new__(KVCache)
        view.k, view.v = self.k[b : b + 1], self.v[b : b + 1]
        view.lengths, view._host_lengths = self.lengths[b : b + 1], self._host_lengths[b : b + 1]
        return view

    def append(
        self, k: Float[Tensor, "B G T D"], v: Float[Tensor, "B G T D"]
    ) -> tuple[Float[Tensor, "B G S D"], Float[Tensor, "B G S D"]]:
        """Stores the keys and values of T new tokens behind each sequence's last one.

        Returns:
            Views of both buffers up to the longest sequence. Where lengths differ, the shorter rows end in old
            values: pass `lengths` to the attention.

        Raises:
            ValueError: for a wrong shape or dtype, or when a sequence would outgrow its buffer. Nothing has
                been written then, and the cache goes on working.
        """
        self._check(k, v)
        k, v = k.detach(), v.detach()  # a cache is memory, not a step to differentiate through
        starts, n_new = self.host_lengths, k.shape[2]
        if len(set(starts)) == 1:
            self.k[:, :, starts[0] : starts[0] + n_new].copy_(k)
            self.v[:, :, starts[0] : starts[0] + n_new].copy_(v)
        else:
            rows = torch.arange(k.shape[0], device=k.device)[:, None]
            slots = self.lengths[:, None] + torch.arange(n_new, device=k.device)
            self.k[rows, :, slots] = k.transpose(1, 2)
            self.v[rows, :, slots] = v.transpose(1, 2)
        self.lengths += n_new
        self._host_lengths += n_new
        end = max(starts) + n_new
        return self.k[:, :, :end], self.v[:, :, :end]

    def rewind(self, length: int) -> None:
        """Forgets all but the first `length` tokens of every sequence; the buffers are left as they are.

        Raises:
            ValueError: if a sequence has not got that many tokens.
        """
        if not 0 <= length <= min(self.host_lengths):
            raise ValueError(f"cannot rewind to {length}: the sequences hold {self.host_lengths} tokens")
        self.lengths.fill_(length)
        self._host_lengths.fill_(length)

    def _check(self, k: Tensor, v: Tensor) -> None:
        batch_size, n_kv_heads, max_seq_len, head_dim = self.k.shape
        for name, x in (("k", k), ("v", v)):
            if x.ndim != 4 or (x.shape[0], x.shape[1], x.shape[3]) != (batch_size, n_kv_heads, head_dim):
                raise ValueError(
                    f"{name} has shape {list(x.shape)}; this cache takes "
                    f"[batch {batch_size}, n_kv_heads {n_kv_heads}, new tokens, head_dim {head_dim}]"
                )
            if x.dtype != self.k.dtype or x.device != self.k.device:
                raise ValueError(f"{name} is {x.dtype} on {x.device}; this cache is {self.k.dtype} on {self.k.device}")
        if k.shape != v.shape:
            raise ValueError(f"k has {k.shape[2]} new tokens and v has {v.shape[2]}; they must be the same")
        longest = max(self.host_lengths)
        if longest + k.shape[2] > max_seq_len:
            raise ValueError(
                f"{k.shape[2]} more tokens after {longest} need {longest + k.shape[2]} slots; this cache has "
                f"max_seq_len = {max_seq_len}. Make it larger, or rewind() it"
            )
