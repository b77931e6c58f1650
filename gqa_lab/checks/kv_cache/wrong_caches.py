"""Caches with the mistakes that people make, each with the student's interface."""

import torch

from gqa_lab.checks.answers import Mistake


class RightCache:
    """A preallocated cache, right as it stands; each wrong one replaces a part."""

    def __init__(self, batch_size, n_heads, max_seq_len, head_dim):
        self.k = torch.zeros(batch_size, n_heads, max_seq_len, head_dim)
        self.v = torch.zeros_like(self.k)
        self.length, self.max_seq_len = 0, max_seq_len

    def append(self, k, v):
        self.refuse(k.shape[2])
        start, stop = self.place(k.shape[2])
        self.write(start, stop, k, v)
        self.length = self.grown(k.shape[2])
        return self.held(k, v)

    def rewind(self, length):
        self.length = length

    def refuse(self, n_new):
        if self.length + n_new > self.max_seq_len:
            raise ValueError("full")

    def place(self, n_new):
        return self.length, self.length + n_new

    def write(self, start, stop, k, v):
        self.k[:, :, start:stop] = k
        self.v[:, :, start:stop] = v

    def grown(self, n_new):
        return self.length + n_new

    def held(self, k, v):
        return self.k[:, :, : self.length], self.v[:, :, : self.length]


def _with(base=RightCache, **methods) -> type:
    """Returns a cache with some methods replaced."""
    return type("MyCache", (base,), methods)


class Concatenating(RightCache):
    """Keeps what there is and nothing more, and copies all of it each time."""

    def __init__(self, batch_size, n_heads, max_seq_len, head_dim):
        super().__init__(batch_size, n_heads, 0, head_dim)
        self.max_seq_len = max_seq_len

    def append(self, k, v):
        self.refuse(k.shape[2])
        self.k, self.v = torch.cat([self.k, k], dim=2), torch.cat([self.v, v], dim=2)
        self.length = self.k.shape[2]
        return self.k, self.v

    def rewind(self, length):
        self.k, self.v, self.length = self.k[:, :, :length], self.v[:, :, :length], length


def _no_check(self, n_new):
    pass


def _write_what_fits_then_raise(self, start, stop, k, v):
    room = self.max_seq_len - start
    self.k[:, :, start:stop], self.v[:, :, start:stop] = k[:, :, :room], v[:, :, :room]
    if stop > self.max_seq_len:
        raise ValueError("full")


def _one_by_one(self, k, v):
    for t in range(k.shape[2]):
        if self.length == self.max_seq_len:
            raise ValueError("full")
        self.k[:, :, self.length], self.v[:, :, self.length] = k[:, :, t], v[:, :, t]
        self.length += 1
    return self.held(k, v)


def _count_then_check(self, n_new):
    if self.length + n_new > self.max_seq_len:
        self.length += n_new
        raise ValueError("full")


def _wrap(self, start, stop, k, v):
    slots = torch.arange(start, stop) % self.max_seq_len
    self.k[:, :, slots], self.v[:, :, slots] = k, v


def _clip(self, start, stop, k, v):
    room = self.max_seq_len - start
    self.k[:, :, start:stop], self.v[:, :, start:stop] = k[:, :, :room], v[:, :, :room]


def _shift(self, start, stop, k, v):
    """Wrong: when full, the oldest tokens fall out."""
    drop = max(0, stop - self.max_seq_len)
    self.k, self.v = self.k.roll(-drop, 2), self.v.roll(-drop, 2)
    self.k[:, :, start - drop : stop - drop], self.v[:, :, start - drop : stop - drop] = k, v


def _at_most(self, n_new):
    return min(self.length + n_new, self.max_seq_len)


def _forget_some(self, length):
    self.length -= length


def _zero_kept(self, length):
    self.k[:, :, :length], self.v[:, :, :length], self.length = 0, 0, length


def _zero_all(self, length):
    self.k.zero_()
    self.v.zero_()
    self.length = length


def _restart(self, length):
    self.length = 0


def _is_early(self, n_new):
    if self.length + n_new >= self.max_seq_len:
        raise ValueError("full")


def _prepend(self, k, v):
    self.refuse(k.shape[2])
    self.k, self.v = torch.cat([k, self.k], dim=2), torch.cat([v, self.v], dim=2)
    self.length = self.k.shape[2]
    return self.k, self.v


def _only_length(self, length):
    self.length = length


def _cat_count(self, k, v):
    """Wrong: concatenates behind what a rewind has left there."""
    self.refuse(k.shape[2])
    self.k, self.v = torch.cat([self.k, k], dim=2), torch.cat([self.v, v], dim=2)
    self.length += k.shape[2]
    return self.k, self.v


_REWIND = "After rewind(4) the next token must land at index 4."
_WHOLE = "8 keys came back, 5 of them from empty slots. A zero key has score 0, not weight 0: attention looks at it."
_OVERWROTE = "Token 3 overwrote token 0: each append must begin where the last one ended."
_SILENT = "Nothing was raised when 5 tokens came into 3 free slots."
_HALF = "It raised, but slots 5–7 had changed: check before you write."
_SWAPPED = "Keys and values changed places."
_BOTH = "Keys and values came back as the same numbers."
_COPIED = "Right numbers. But the append after the rewind wrote"

MISTAKES = (
    Mistake("whole buffer", _with(held=lambda self, k, v: (self.k, self.v)), _WHOLE),
    Mistake(
        "length + 1",
        _with(grown=lambda self, n: self.length + 1),
        "After a prompt of 3 your length is 1: an append brings T tokens.",
    ),
    Mistake(
        "length stays 0",
        _with(grown=lambda self, n: self.length),
        "Your length stays 0 after a prompt of 3. What comes next will overwrite it.",
    ),
    Mistake(
        "length stays 0, views long enough",
        _with(
            grown=lambda self, n: self.length,
            held=lambda self, k, v: (
                self.k[:, :, : self.length + k.shape[2]],
                self.v[:, :, : self.length + k.shape[2]],
            ),
        ),
        "Your length stays 0 after a prompt of 3. What comes next will overwrite it.",
    ),
    Mistake(
        "length is the last T",
        _with(grown=lambda self, n: n),
        "Your length is that of the last append. It counts all tokens that the cache holds.",
    ),
    Mistake("always at 0", _with(place=lambda self, n: (0, n)), _OVERWROTE),
    Mistake(
        "at the end of the buffer",
        _with(place=lambda self, n: (self.max_seq_len - n, self.max_seq_len)),
        "You write at the end of the buffer. Its first free slot is at `length`.",
    ),
    Mistake(
        "returns before it counts",
        _with(
            held=lambda self, k, v: (self.k[:, :, : self.length - k.shape[2]], self.v[:, :, : self.length - k.shape[2]])
        ),
        "The new tokens are missing from what you return: cut the view after you have counted them.",
    ),
    Mistake(
        "one slot too many",
        _with(held=lambda self, k, v: (self.k[:, :, : self.length + 1], self.v[:, :, : self.length + 1])),
        "One slot too many came back: it is empty. A zero key has score 0, not weight 0.",
    ),
    Mistake(
        "one slot too few",
        _with(held=lambda self, k, v: (self.k[:, :, : self.length - 1], self.v[:, :, : self.length - 1])),
        "The newest token is missing from what you return. A query sees itself.",
    ),
    Mistake(
        "only the new ones",
        _with(held=lambda self, k, v: (k, v)),
        "Only the new tokens came back. Attention needs all that the cache holds.",
    ),
    Mistake(
        "new ones first",
        _with(Concatenating, append=_prepend),
        "The new tokens stand before the old ones. Token t belongs at index t.",
    ),
    Mistake("v into k", _with(write=lambda self, a, b, k, v: RightCache.write(self, a, b, v, v)), _BOTH),
    Mistake("k into v", _with(write=lambda self, a, b, k, v: RightCache.write(self, a, b, k, k)), _BOTH),
    Mistake("k and v swapped", _with(write=lambda self, a, b, k, v: RightCache.write(self, a, b, v, k)), _SWAPPED),
    Mistake("rewind forgets nothing", _with(rewind=lambda self, length: None), f"{_REWIND} Yours forgot nothing."),
    Mistake("rewind forgets all", _with(rewind=_restart), f"{_REWIND} Yours forgot everything."),
    Mistake("rewind zeroes all", _with(rewind=_zero_all), f"{_REWIND} And tokens 0 to 3 must still be there."),
    Mistake("rewind zeroes what stays", _with(rewind=_zero_kept), f"{_REWIND} And tokens 0 to 3 must still be there."),
    Mistake(
        "rewind by",
        _with(rewind=_forget_some),
        "rewind(4) keeps 4 tokens; yours took 4 away.",
    ),
    Mistake(
        "rewind one short",
        _with(rewind=lambda self, length: setattr(self, "length", length - 1)),
        f"{_REWIND} Yours lost one token more.",
    ),
    Mistake(
        "rewind one long",
        _with(rewind=lambda self, length: setattr(self, "length", length + 1)),
        f"{_REWIND} Yours kept one token more.",
    ),
    Mistake(
        "concatenated behind the rewound",
        _with(Concatenating, append=_cat_count, rewind=_only_length),
        f"{_REWIND} What was rewound still stands before it.",
    ),
    Mistake("half written, then raised", _with(refuse=_no_check, write=_write_what_fits_then_raise), _HALF),
    Mistake("one by one", _with(append=_one_by_one), f"{_HALF} Your length, too."),
    Mistake(
        "counted, then raised",
        _with(refuse=_count_then_check),
        "It raised, but your length had grown: check before you count.",
    ),
    Mistake(
        "wraps",
        _with(refuse=_no_check, write=_wrap, grown=_at_most),
        f"{_SILENT} The last ones overwrote the first tokens of the cache.",
    ),
    Mistake(
        "wraps, length grows",
        _with(refuse=_no_check, write=_wrap),
        f"{_SILENT} The last ones overwrote the first tokens of the cache.",
    ),
    Mistake(
        "clipped",
        _with(refuse=_no_check, write=_clip, grown=_at_most),
        f"{_SILENT} The last two are lost.",
    ),
    Mistake(
        "oldest fall out",
        _with(refuse=_no_check, write=_shift, grown=_at_most),
        f"{_SILENT} The oldest tokens fell out instead.",
    ),
    Mistake("grows", _with(Concatenating, refuse=_no_check), f"{_SILENT} Your cache grew beyond max_seq_len."),
    Mistake(
        "returns instead of raising",
        _with(
            append=lambda self, k, v: (
                RightCache.append(self, k, v) if self.length + k.shape[2] <= self.max_seq_len else self.held(k, v)
            )
        ),
        f"{_SILENT} They are lost, and nobody was told.",
    ),
    Mistake(
        "refuses the last slot",
        _with(refuse=_is_early),
        "You refused a token although a slot was free: 3 more tokens after 5 fill 8 slots.",
    ),
    Mistake("torch.cat", Concatenating, f"{_COPIED} 5 tokens instead of 1"),
    Mistake(
        "clone",
        _with(held=lambda self, k, v: (self.k[:, :, : self.length].clone(), self.v[:, :, : self.length].clone())),
        f"{_COPIED} 6 tokens instead of 1",
    ),
)
