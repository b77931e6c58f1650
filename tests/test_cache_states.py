"""A cache against a plain list of all tokens: any order of append, row append, overflow, wrap and rewind."""

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gqa_lab import reference
from gqa_lab.cache import KVCache

B, H, G, D = 2, 6, 3, 2


class CacheAgainstList(RuleBasedStateMachine):
    """`tokens[b]` is every (k, v) of sequence b that was not rewound; the cache must attend as if it held them all."""

    @initialize(max_seq_len=st.integers(1, 24), window=st.none() | st.integers(1, 6))
    def start(self, max_seq_len, window):
        self.cache = KVCache(B, G, max_seq_len, D, dtype=torch.float64, device="cpu", window=window)
        self.tokens = [[] for _ in range(B)]
        self.random = torch.Generator().manual_seed(max_seq_len)

    def new(self, batch_size, n):
        return torch.randn(2, batch_size, G, n, D, dtype=torch.float64, generator=self.random)

    def lengths(self):
        return [len(row) for row in self.tokens]

    @rule(n=st.integers(1, 9))
    def append(self, n):
        self.append_to(self.cache, self.tokens, n)

    @rule(b=st.integers(0, B - 1), n=st.integers(1, 9))
    def append_to_a_row(self, b, n):
        self.append_to(self.cache.row(b), self.tokens[b : b + 1], n)

    def append_to(self, cache, tokens, n):
        k, v = self.new(len(tokens), n)
        before = cache.k.clone(), cache.v.clone()
        if max(map(len, tokens)) + n > cache.max_seq_len:
            with pytest.raises(ValueError, match="max_seq_len"):
                cache.append(k, v)
            assert torch.equal(cache.k, before[0]) and torch.equal(cache.v, before[1])
            return
        got = cache.append(k, v)
        for b, row in enumerate(tokens):
            row += [(k[b, :, t], v[b, :, t]) for t in range(n)]
        self.attends_as_if_it_held_every_token(cache, tokens, n, *got)

    def attends_as_if_it_held_every_token(self, cache, tokens, n, k, v):
        q = torch.randn(len(tokens), H, n, D, dtype=torch.float64, generator=self.random)
        lengths = cache.kv_lengths(n)
        if cache.window is not None:
            assert k.shape[2] <= max(cache.window - 1, 0) + n
        window = None if n == 1 else cache.window
        got = reference.attention(
            q.numpy(), k.numpy(), v.numpy(), lengths=None if lengths is None else lengths.numpy(), window=window
        )
        for b, row in enumerate(tokens):
            k_all, v_all = (torch.stack(list(x), 1)[None].numpy() for x in zip(*row, strict=True))
            expected = reference.attention(q[b : b + 1].numpy(), k_all, v_all, window=cache.window)
            np.testing.assert_allclose(got[b : b + 1], expected, atol=1e-12)

    @precondition(lambda self: any(self.tokens[b] for b in range(B)))
    @rule(length=st.integers(-1, 24))
    def rewind(self, length):
        lengths, window = self.lengths(), self.cache.window
        kept = all(length in (0, n) or n <= (window or n) for n in lengths)
        if 0 <= length <= min(lengths) and kept:
            self.cache.rewind(length)
            self.tokens = [row[:length] for row in self.tokens]
        else:
            with pytest.raises(ValueError, match="cannot rewind"):
                self.cache.rewind(length)

    @invariant()
    def counts_agree(self):
        if hasattr(self, "cache"):
            assert self.cache.lengths.tolist() == self.cache.host_lengths == self.lengths()
            kept = sum(min(n, self.cache.window or n) for n in self.lengths())
            assert self.cache.nbytes_used == 2 * G * D * 8 * kept
            n_slots = min(self.cache.window or self.cache.max_seq_len, self.cache.max_seq_len)
            assert self.cache.nbytes == 2 * B * G * n_slots * D * 8


TestCacheAgainstList = CacheAgainstList.TestCase
TestCacheAgainstList.settings = settings(max_examples=120, stateful_step_count=25, deadline=None, derandomize=True)
