"""Lesson 03: right answers in every form pass, wrong ones that nobody listed are rejected and not misnamed."""

from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from torch.nn.attention.bias import causal_lower_right

from gqa_lab import plots, reference, widgets
from gqa_lab.cache import KVCache
from gqa_lab.checks import case, check, sandbox
from gqa_lab.checks.engine import EXERCISES
from gqa_lab.checks.kv_cache.cache import FIRST, SECOND
from gqa_lab.checks.kv_cache.is_causal import _run, _step
from gqa_lab.checks.kv_cache.wrong_caches import Concatenating, RightCache, _with
from gqa_lab.costs import SHAPES, kv_cache_bytes

pytestmark = pytest.mark.usefixtures("shapes_unchecked")  # the checks hand over wrong shapes on purpose, many times
SOLUTION = Path(__file__).resolve().parent.parent / "solutions" / "03_kv_cache.ipynb"
MASK, CACHE, ROWS = (EXERCISES[f"03.{name}"] for name in ("mask", "cache", "rows"))


# ---- 03.bytes ------------------------------------------------------------------------------------


def test_seed_0_is_phi_3_5_mini_as_published():
    numbers, shape = case("03.bytes"), SHAPES["phi-3.5-mini"]
    for name in ("n_layers", "n_heads", "head_dim"):
        assert numbers[name] == getattr(shape, name)
    assert shape.kind == "mha" and shape.max_seq_len >= numbers["tokens"] == 100_000
    right = {"elements_per_token": 196_608, "bytes_per_token": 393_216, "total_gb": 39.3, "total_gib": 36.6}
    assert check("03.bytes", right)
    assert kv_cache_bytes(shape, batch_size=1, kv_len=1, bytes_per_element=2) == 393_216


@pytest.mark.parametrize(
    "key, value, part",
    [
        ("elements_per_token", 98_304, "Keys only"),
        ("elements_per_token", 6_144, "one layer"),
        ("elements_per_token", 262_144, "128 for head_dim"),
        ("elements_per_token", 12_345, "What does one token leave behind"),
        ("bytes_per_token", 196_608, "one of these is missing"),
        ("bytes_per_token", 786_432, "4 bytes per element"),
        ("bytes_per_token", 3_145_728, "bits are not bytes"),
        ("total_gb", 36.6, "in another unit"),
        ("total_gib", 39.3, "in another unit"),
        ("total_gb", 393_216, "one token"),
        ("total_gb", 40.27, "1,024"),
        ("total_gb", 19.66, "one of these is missing"),
    ],
)
def test_wrong_bytes_are_told_apart(key, value, part):
    right = EXERCISES["03.bytes"].right(case("03.bytes"))
    verdict = check("03.bytes", right | {key: value})
    assert not verdict and part in verdict.message


# ---- 03.mask -------------------------------------------------------------------------------------


def mask_by_positions(q_len, kv_len):
    return torch.arange(kv_len)[None] <= torch.arange(kv_len - q_len, kv_len)[:, None]


def mask_by_tril(q_len, kv_len):
    return torch.ones(q_len, kv_len, dtype=torch.bool).tril(kv_len - q_len)


def mask_by_triu(q_len, kv_len):
    return ~torch.ones(q_len, kv_len).triu(kv_len - q_len + 1).bool()


def mask_by_loops(q_len, kv_len):
    mask = torch.zeros(q_len, kv_len, dtype=torch.bool)
    for t in range(q_len):
        for s in range(kv_len):
            if s <= t + kv_len - q_len:
                mask[t, s] = True
    return mask


def mask_by_blocks(q_len, kv_len):
    past = torch.ones(q_len, kv_len - q_len, dtype=torch.bool)
    return torch.cat([past, torch.ones(q_len, q_len, dtype=torch.bool).tril()], dim=1)


def mask_by_last_rows(q_len, kv_len):
    return torch.ones(kv_len, kv_len).tril()[-q_len:] > 0


def mask_by_bias(q_len, kv_len):
    return causal_lower_right(q_len, kv_len)._materialize()


def mask_by_numpy(q_len, kv_len):
    return torch.from_numpy(np.tri(q_len, kv_len, kv_len - q_len, dtype=bool))


def mask_by_lists(q_len, kv_len):
    return torch.tensor([[s in reference_keys(t, q_len, kv_len) for s in range(kv_len)] for t in range(q_len)])


def reference_keys(t, q_len, kv_len):
    return range(t + kv_len - q_len + 1)


RIGHT_MASKS = [
    mask_by_positions, mask_by_tril, mask_by_triu, mask_by_loops, mask_by_blocks, mask_by_last_rows, mask_by_bias,
    mask_by_numpy, mask_by_lists,
]  # fmt: skip


@pytest.mark.parametrize("function", RIGHT_MASKS)
def test_every_right_mask_passes(function):
    assert check("03.mask", function), check("03.mask", function)


def flipped(q_len, kv_len):
    return mask_by_tril(q_len, kv_len).flip(0)


def first_row_wrong(q_len, kv_len):
    mask = mask_by_tril(q_len, kv_len)
    mask[0, 0] = False
    return mask


WRONG_MASKS = [
    lambda t, s: mask_by_tril(t, s).float(),
    lambda t, s: mask_by_tril(t, s).int(),
    lambda t, s: torch.zeros(t, s).masked_fill(~mask_by_tril(t, s), -torch.inf),
    lambda t, s: mask_by_tril(t, s).numpy(),
    lambda t, s: mask_by_tril(t, s).tolist(),
    lambda t, s: mask_by_tril(t, s)[None, None],
    lambda t, s: mask_by_tril(t, s)[:, :-1],
    flipped,
    lambda t, s: mask_by_tril(t, s).flip(1),
    first_row_wrong,
    lambda t, s: mask_by_tril(t, s) & (torch.arange(s) > 0),
    lambda t, s: mask_by_tril(t, s) & (torch.arange(s) >= s - 3),
    lambda t, s: mask_by_tril(3, 7)[:t, :s],
    lambda t, s: torch.zeros(t, s, dtype=torch.bool),
    lambda t, s: torch.rand(t, s) > 0.5,
    lambda t, s: mask_by_tril(t, s) if (t, s) in ((3, 3), (1, 5), (2, 5), (3, 7)) else torch.ones(t, s).bool(),
    lambda t, s: reference.visible_keys(t, t, s),
    lambda t, s: mask_by_tril(t, s)[t + 1],
]


@pytest.mark.parametrize("function", WRONG_MASKS)
def test_masks_with_other_mistakes_are_rejected_and_not_misnamed(function):
    rejected_and_not_misnamed(MASK, function)


def rejected_and_not_misnamed(exercise, answer):
    verdict = check(exercise.id, answer)
    assert verdict.status == "failed" and "could not read" not in verdict.message
    assert not any(verdict.message.startswith(m.diagnosis) for m in exercise.mistakes), verdict
    return verdict


def test_a_wrong_row_is_printed():
    assert (
        "Your row there is 0 0 0" in check("03.mask", lambda t, s: mask_by_tril(t, s) & (torch.arange(s) > 0)).message
    )


@pytest.mark.parametrize(
    "name, again",
    [
        ("top-left", lambda t, s: torch.arange(s) <= torch.arange(t)[:, None]),
        ("nothing hidden", lambda t, s: torch.full((t, s), True)),
        ("strict", lambda t, s: torch.arange(s) < torch.arange(s - t, s)[:, None]),
        ("inverted", lambda t, s: torch.ones(t, s).triu(s - t + 1).bool()),
        ("only the new ones", lambda t, s: mask_by_blocks(t, s) & torch.cat([torch.zeros(s - t), torch.ones(t)]).bool()),
        ("transposed", lambda t, s: torch.arange(s)[:, None] <= torch.arange(s - t, s)),
        ("all S rows", lambda t, s: torch.arange(s) <= torch.arange(s)[:, None]),
    ],
)  # fmt: skip
def test_the_same_mask_mistake_written_differently_gets_the_same_diagnosis(name, again):
    [listed] = [m for m in MASK.mistakes if m.name == name]
    assert check("03.mask", again).message.startswith(listed.diagnosis)


# ---- 03.cache ------------------------------------------------------------------------------------


def test_the_script_is_the_one_of_the_task():
    assert FIRST.calls[:4] == (("append", 3), ("append", 1), ("append", 2), ("rewind", 4))
    assert FIRST.calls[4:] == (("append", 1), ("append", 5), ("append", 3)) and FIRST.max_seq_len == 8
    for script in (FIRST, SECOND):
        assert script.calls[script.refused][0] == script.calls[script.measured][0] == "append"


class Narrow:
    def __init__(self, batch_size, n_heads, max_seq_len, head_dim):
        self.buffers = [torch.empty(batch_size, n_heads, max_seq_len, head_dim) for _ in "kv"]
        self.length = 0

    def append(self, k, v):
        if self.length + k.shape[2] > self.buffers[0].shape[2]:
            raise ValueError
        for buffer, new in zip(self.buffers, (k, v), strict=True):
            buffer.narrow(2, self.length, k.shape[2]).copy_(new)
        self.length += k.shape[2]
        return [buffer.narrow(2, 0, self.length) for buffer in self.buffers]

    def rewind(self, length):
        if not 0 <= length <= self.length:
            raise ValueError("cannot rewind to what is not there")
        self.length = length


class TokensFirst(RightCache):
    def __init__(self, batch_size, n_heads, max_seq_len, head_dim):
        super().__init__(batch_size, n_heads, max_seq_len, head_dim)
        self.k = torch.zeros(max_seq_len, batch_size, n_heads, head_dim)
        self.v = torch.zeros_like(self.k)

    def write(self, start, stop, k, v):
        self.k[start:stop], self.v[start:stop] = k.permute(2, 0, 1, 3), v.permute(2, 0, 1, 3)

    def held(self, k, v):
        return self.k[: self.length].permute(1, 2, 0, 3), self.v[: self.length].permute(1, 2, 0, 3)


class Indexed(RightCache):
    def write(self, start, stop, k, v):
        slots = torch.arange(start, stop)
        self.k.index_copy_(2, slots, k)
        self.v[:, :, slots] = v


class Looping(RightCache):
    def write(self, start, stop, k, v):
        for b in range(k.shape[0]):
            for h in range(k.shape[1]):
                for t in range(stop - start):
                    self.k[b, h, start + t] = k[b, h, t]
                    self.v[b, h, start + t] = v[b, h, t]


class Lazy(RightCache):
    def __init__(self, batch_size, n_heads, max_seq_len, head_dim):
        self.sizes, self.k, self.v, self.length = (batch_size, n_heads, max_seq_len, head_dim), None, None, 0
        self.max_seq_len = max_seq_len

    def append(self, k, v):
        if self.k is None:
            self.k, self.v = k.new_empty(self.sizes), v.new_empty(self.sizes)
        return super().append(k, v)


class Module(torch.nn.Module):
    def __init__(self, batch_size, n_heads, max_seq_len, head_dim):
        super().__init__()
        for name in ("k", "v"):
            self.register_buffer(name, torch.zeros(batch_size, n_heads, max_seq_len, head_dim))
        self.length = 0

    append, held, place, rewind = RightCache.append, RightCache.held, RightCache.place, RightCache.rewind
    grown, write = RightCache.grown, RightCache.write

    def refuse(self, n_new):
        if n_new > self.k.size(2) - self.length:
            raise ValueError(f"no room for {n_new}")


class LengthInATensor(RightCache):
    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.length = torch.tensor(0)

    def grown(self, n_new):
        return self.length + n_new

    def rewind(self, length):
        self.length = torch.tensor(length)


class LengthAsProperty(Narrow):
    @property
    def length(self):
        return self.n

    @length.setter
    def length(self, n):
        self.n = n


class ZeroesWhatIsForgotten(RightCache):
    def rewind(self, length):
        self.k[:, :, length:], self.v[:, :, length:], self.length = 0, 0, length


class Talking(RightCache):
    def append(self, k, v):
        print("appending", k.shape[2])
        return super().append(k, v)


RIGHT_CACHES = [
    RightCache, Narrow, TokensFirst, Indexed, Looping, Lazy, Module, LengthInATensor, LengthAsProperty,
    ZeroesWhatIsForgotten, Talking,
]  # fmt: skip


@pytest.mark.parametrize("cache", RIGHT_CACHES)
def test_every_right_cache_passes(cache):
    verdict = check("03.cache", cache)
    assert verdict, verdict


def test_what_it_prints_is_shown():
    assert "appending 3" in check("03.cache", Talking).message


class Shared(RightCache):
    """One buffer for all caches of the class."""

    buffers = {}

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.k, self.v = self.buffers.setdefault(sizes, (self.k, self.v))


class NoLength(Narrow):
    def append(self, k, v):
        self.length = getattr(self, "n", 0)
        out = super().append(k, v)
        self.n = self.length
        del self.length
        return out


class LengthAsMethod(Narrow):
    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.length = lambda: self.n

    def append(self, k, v):
        method, self.length = self.length, getattr(self, "n", 0)
        out = super().append(k, v)
        self.n, self.length = self.length, method
        return out


class LengthAsText(LengthAsMethod):
    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.length = "3"


class TakesItsOwn(RightCache):
    def write(self, start, stop, k, v):
        super().write(start, stop, k, v)
        k.zero_()


class InDouble(RightCache):
    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.k, self.v = self.k.double(), self.v.double()


class InHalf(InDouble):
    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.k, self.v = self.k.half(), self.v.half()


class Endless(RightCache):
    def rewind(self, length):
        while self.length != -1:
            pass


class Leaves(RightCache):
    def append(self, k, v):
        raise SystemExit


class Raises(RightCache):
    def refuse(self, n_new):
        if self.length + n_new > self.max_seq_len:
            raise RuntimeError("full")


class Packaged(RightCache):
    def __init__(self, b, h, n, d):
        self.cache = KVCache(b, h, n, d, dtype=torch.float32, device="cpu")


class Forgetful(RightCache):
    """Right until it is rewound to 0."""

    def rewind(self, length):
        self.length = length or 1


class Rewritten(RightCache):
    """Right, but writes all slots each time."""

    def write(self, start, stop, k, v):
        is_new = torch.zeros(self.max_seq_len, 1, dtype=torch.bool)
        is_new[start:stop] = True
        for name, new in (("k", k), ("v", v)):
            padded = torch.zeros_like(self.k)
            padded[:, :, start:stop] = new
            setattr(self, name, torch.where(is_new, padded, getattr(self, name)))


class Listed(RightCache):
    """Right, but keeps single tokens and joins them each time."""

    def __init__(self, batch_size, n_heads, max_seq_len, head_dim):
        self.tokens, self.length, self.max_seq_len = [], 0, max_seq_len

    def write(self, start, stop, k, v):
        self.tokens += list(zip(k.split(1, dim=2), v.split(1, dim=2), strict=True))

    def held(self, k, v):
        return tuple(torch.cat(parts, dim=2) for parts in zip(*self.tokens, strict=True))

    def rewind(self, length):
        self.tokens, self.length = self.tokens[:length], length


class Contiguous(RightCache):
    def held(self, k, v):
        return tuple(x.contiguous() for x in super().held(k, v))


class InNumpy(RightCache):
    """Right, but the copies are made where the meter cannot see them."""

    def held(self, k, v):
        return tuple(torch.from_numpy(x.numpy().copy()) for x in super().held(k, v))


WRONG_CACHES = {
    "batch mixed": (_with(write=lambda self, a, b, k, v: RightCache.write(self, a, b, k.roll(1, 0), v)), "k_all"),
    "heads mixed": (_with(write=lambda self, a, b, k, v: RightCache.write(self, a, b, k, v.flip(1))), "v_all"),
    "tokens reversed": (
        _with(write=lambda self, a, b, k, v: RightCache.write(self, a, b, k.flip(2), v)),
        "k of token 2 stands there",
    ),
    "scaled": (_with(write=lambda self, a, b, k, v: RightCache.write(self, a, b, k * 2, v)), "something else"),
    "double": (InDouble, "float32 came in, float64 came out"),
    "half": (InHalf, "float32 came in, float16 came out"),
    "no length": (NoLength, "no number `length`"),
    "length is a method": (LengthAsMethod, "no number `length`"),
    "length is text": (LengthAsText, "no number `length`"),
    "one tensor": (_with(held=lambda self, k, v: torch.stack([k, v])), "return two tensors"),
    "a dict": (_with(held=lambda self, k, v: {"k": k, "v": v}), "return two tensors"),
    "arrays": (_with(held=lambda self, k, v: (k.numpy(), v.numpy())), "a torch tensor"),
    "nothing": (_with(held=lambda self, k, v: None), "Is a `return` missing?"),
    "heads behind tokens": (
        _with(held=lambda self, k, v: tuple(x.transpose(1, 2) for x in RightCache.held(self, k, v))),
        "it should be [B, H, S, D]",
    ),
    "input changed": (TakesItsOwn, "Somebody else still needs it"),
    "another error": (Raises, "Check before you write, and say why with a ValueError"),
    "torch's error": (_with(refuse=lambda self, n: None), "Check before you write, and say why with a ValueError"),
    "endless": (Endless, "still running"),
    "leaves": (Leaves, "ended Python"),
    "the package's": (KVCache, "raised"),
    "the package's inside": (Packaged, "That is the package's"),
    "no method": (type("Empty", (), {"__init__": lambda self, *sizes: None}), "no method `append`"),
    "shared": (Shared, "each needs memory of its own"),
    "rewinds to 1": (Forgetful, "Right at first, wrong with other sizes"),
    "all slots rewritten": (Rewritten, "Right numbers. But the append after the rewind wrote"),
    "list of tokens": (Listed, "Right numbers. But the append after the rewind wrote 5 tokens"),
    "contiguous": (Contiguous, "Right numbers. But the append after the rewind wrote 6 tokens"),
    "copied by NumPy": (InNumpy, "does not lie in one buffer"),
    "an instance": (RightCache(1, 1, 1, 1), "Hand over the class itself"),
    "three arguments": (type("Short", (), {"__init__": lambda self, a, b, c: None}), "raised TypeError"),
}


@pytest.mark.parametrize("name", WRONG_CACHES)
def test_caches_with_other_mistakes_are_rejected_and_not_misnamed(name, monkeypatch):
    cache, part = WRONG_CACHES[name]
    if name == "endless":
        monkeypatch.setattr(sandbox, "DEADLINE_S", 0.5)
    if part.startswith("Right numbers. But the append after the rewind wrote"):
        assert check("03.cache", cache).message.startswith(part)
    else:
        assert part in rejected_and_not_misnamed(CACHE, cache).message


def test_the_same_cache_mistake_written_differently_gets_the_same_diagnosis():
    class Whole(Narrow):
        def append(self, k, v):
            super().append(k, v)
            return self.buffers

    class Counting(Narrow):
        def append(self, k, v):
            out = super().append(k, v)
            self.length -= k.shape[2] - 1
            return out

    class OneTensor(RightCache):
        def __init__(self, *sizes):
            super().__init__(*sizes)
            self.v = self.k

    class Ignoring(Listed):
        def rewind(self, length):
            pass

    class Growing(Concatenating):
        refuse = lambda self, n_new: None  # noqa: E731

    for name, again in (
        ("whole buffer", Whole), ("v into k", OneTensor), ("rewind forgets nothing", Ignoring), ("grows", Growing),
    ):  # fmt: skip
        [listed] = [m for m in CACHE.mistakes if m.name == name]
        assert check("03.cache", again).message.startswith(listed.diagnosis), check("03.cache", again)
    assert "length` is 1; 3 tokens should be there" in check("03.cache", Counting).message


def test_the_diagnoses_are_many_and_never_the_answer():
    texts = {m.diagnosis for m in CACHE.mistakes}
    assert len(texts) >= 20 and not any("self.k" in text or "[:" in text for text in texts)


@pytest.mark.parametrize("empty", ["__init__", "append", "rewind"])
def test_a_class_as_it_was_handed_out_is_not_attempted(empty):
    def stub(self, *args):
        raise NotImplementedError

    verdict = check("03.cache", _with(**{empty: stub}))
    assert verdict.status == "not attempted" and empty in verdict.message


def test_a_class_that_does_nothing_is_not_attempted():
    class Nothing:
        def __init__(self, batch_size, n_heads, max_seq_len, head_dim):
            pass

        def append(self, k, v):
            pass

        def rewind(self, length):
            pass

    assert check("03.cache", Nothing).status == "not attempted"


# ---- 03.is_causal --------------------------------------------------------------------------------

FOUND = {"line": 4, "exposing": (1, 5), "hiding": (5, 5), "wrong_ones": [(1, 5), (3, 7)]}


@pytest.mark.parametrize(
    "changed",
    [{}, {"exposing": (3, 7)}, {"exposing": [63, 64]}, {"hiding": (2, 2)}, {"wrong_ones": ((3, 7), (1, 5), (1, 5))}],
)
def test_right_ways_to_expose_the_flag_pass(changed):
    assert check("03.is_causal", FOUND | changed)


@pytest.mark.parametrize(
    "changed, part",
    [
        ({"line": 3}, "Your inputs show it"),
        ({"line": "4"}, "`line`: write the number"),
        ({"exposing": (5, 5)}, "Both versions give the same numbers"),
        ({"exposing": (5, 3)}, "cannot be"),
        ({"exposing": (0, 3)}, "between 1 and"),
        ({"exposing": 5}, "pair of whole numbers"),
        ({"exposing": (1.0, 5)}, "pair of whole numbers"),
        ({"hiding": (1, 1)}, "there is nothing to align. Try again with at least two"),
        ({"hiding": (2, 5)}, "already shows here"),
        ({"wrong_ones": [(1, 5)]}, "1 more of the five goes wrong"),
        ({"wrong_ones": []}, "2 more of the five go wrong"),
        ({"wrong_ones": [(1, 5), (3, 7), (1, 1)]}, "One query, one key: there is nothing to align."),
        ({"wrong_ones": [(1, 5), (3, 7), (7, 7)]}, "(7, 7) is right"),
        ({"wrong_ones": [(2, 5)]}, "each one of"),
        ({"wrong_ones": "all"}, "give a list of pairs"),
        ({"wrong_ones": {1: 2}}, "give a list of pairs"),
    ],
)
def test_weak_inputs_are_told_why(changed, part):
    verdict = check("03.is_causal", FOUND | changed)
    assert not verdict and part in verdict.message


@pytest.mark.parametrize("key", FOUND)
def test_an_empty_key_is_not_attempted(key):
    assert check("03.is_causal", FOUND | {key: None}).status == "not attempted"


def test_the_function_in_the_notebook_is_the_one_that_is_checked():
    cells = {cell.id: cell.source for cell in nbformat.read(SOLUTION, as_version=4).cells}
    printed = {}
    exec("import torch\nimport torch.nn.functional as F\n" + cells["is-causal-code"], printed)
    q, k, v = (
        torch.from_numpy(np.random.default_rng(i).standard_normal((1, 2, n, 4))) for i, n in enumerate((2, 5, 5))
    )
    parts = q, k[:, :, 3:], v[:, :, 3:], k[:, :, :3], v[:, :, :3]
    assert torch.equal(printed["step"](*parts), _step(*parts))
    wrong = [line for line in cells["is-causal-code"].splitlines() if line.endswith("# 4")]
    assert len(wrong) == 1 and "is_causal=True" in wrong[0]


def test_the_repaired_function_agrees_with_the_reference():
    for q_len, kv_len in ((1, 5), (3, 7), (5, 5)):
        q, k, v = (
            np.random.default_rng(n).standard_normal((1, 2, size, 4)) for n, size in enumerate((q_len, kv_len, kv_len))
        )
        past = kv_len - q_len
        parts = q, k[:, :, past:], v[:, :, past:], k[:, :, :past], v[:, :, :past]
        got = _step(*map(torch.from_numpy, parts), is_right=True)
        np.testing.assert_allclose(got, reference.attention(q, k, v), atol=1e-10)


def test_one_query_with_the_flag_gets_the_first_value():
    wrong, right = _run(1, 5, False), _run(1, 5, True)
    first_value = torch.from_numpy(np.random.default_rng((33, 2)).standard_normal((1, 2, 5, 4)))[:, :, :1]
    assert torch.allclose(wrong, first_value, atol=1e-12) and not torch.allclose(right, first_value, atol=0.1)


def test_the_check_attends_with_spread_weights():
    for q_len, kv_len in ((1, 5), (3, 7), (5, 5), (7, 7)):
        q, k = (np.random.default_rng((33, i)).standard_normal((1, 2, n, 4)) for i, n in enumerate((q_len, kv_len)))
        weights = reference.attention_weights(q, k)
        assert weights[(weights > 0).sum(-1) >= 3].max(-1).mean() < 0.6


# ---- 03.rows -------------------------------------------------------------------------------------


def rows_by_loop(prompt_len, new_tokens, cached):
    total = 0
    for n in range(new_tokens):
        total += 1 if cached and n else prompt_len if cached else prompt_len + n
    return total


def rows_by_formula(prompt_len, new_tokens, cached):
    if cached:
        return prompt_len + new_tokens - 1
    return new_tokens * prompt_len + new_tokens * (new_tokens - 1) / 2


def rows_by_simulation(prompt_len, new_tokens, cached):
    rows, kept, text = 0, 0, [0] * prompt_len
    for _ in range(new_tokens):
        rows += len(text) - kept
        kept = len(text) if cached else 0
        text.append(0)
    return rows


@pytest.mark.parametrize(
    "function",
    [
        rows_by_loop,
        rows_by_formula,
        rows_by_simulation,
        lambda p, n, cached: np.int64(rows_by_loop(p, n, cached)),
        lambda p, n, c: p + n - 1 if c else sum(range(p, p + n)),
    ],
)
def test_every_right_count_passes(function):
    assert check("03.rows", function)


@pytest.mark.parametrize(
    "function",
    [
        lambda p, n, c: [119],
        lambda p, n, c: "119",
        lambda p, n, c: c,
        lambda p, n, c: torch.tensor(119),
        lambda p, n, c: 119 if c else 6950,
        lambda p, n, c: rows_by_loop(p, n, c) + 2,
        lambda p, n, c: 2 * rows_by_loop(p, n, c),
        lambda p, n, c: -rows_by_loop(p, n, c),
        lambda p, n, c: rows_by_loop(n, p, c),
        lambda p, n, c: float("nan"),
        lambda p, n, c: p / 0,
        lambda p, n, c: rows_by_loop(p, n, not c) + 1,
    ],
)
def test_counts_with_other_mistakes_are_rejected_and_not_misnamed(function):
    rejected_and_not_misnamed(ROWS, function)


@pytest.mark.parametrize(
    "value, cached, part",
    [
        (120, True, "You also fed the last new token"),
        (100, True, "The prompt has to be read once"),
        (7_070, False, "You also fed the last new token"),
        (7_050, False, "nobody reads what comes after the last new token"),
        (12_000, False, "Early passes are shorter than the last"),
        (2_000, False, "The text grows with each pass"),
    ],
)
def test_the_wrong_counts_of_the_task_have_a_diagnosis(value, cached, part):
    found = [m for m in ROWS.mistakes if m.wrong(20, 100, cached) == value]
    assert any(part in m.diagnosis for m in found)


# ---- figures and the widget ----------------------------------------------------------------------


def test_the_cache_line_is_the_formula_and_the_weights_are_level():
    shape = SHAPES["llama-2-7b"]
    axes = plots.cache_growth(shape, turns=50, tokens_per_turn=2000)
    line, weights = axes.lines
    assert line.get_xdata()[-1] == 100_000 and line.get_ydata()[-1] == 100_000 * 512 / 2**20
    assert len(set(weights.get_ydata())) == 1
    assert "reached in turn 13" in axes.get_label() and "made for 4,096 tokens" in axes.get_label()
    assert "not reached" in plots.cache_growth(shape, turns=1, tokens_per_turn=10).get_label()


@pytest.mark.parametrize("turns, tokens", [(0, 5), (5, 0)])
def test_a_chat_without_tokens_is_refused(turns, tokens):
    with pytest.raises(ValueError, match="at least 1"):
        plots.cache_growth(SHAPES["phi-2"], turns=turns, tokens_per_turn=tokens)


@pytest.mark.parametrize("model", ["mistral-7b-v0.1", "smollm2-135m", "falcon-7b"])
def test_any_model_can_be_drawn(model):
    assert SHAPES[model].name in plots.Picture(plots.cache_growth(SHAPES[model], turns=3, tokens_per_turn=9000)).text


def test_counts_lie_on_the_lines_of_the_formulas():
    counted = {n: (rows_by_loop(20, n, False), rows_by_loop(20, n, True)) for n in (1, 10, 100)}
    axes = plots.rows_projected(counted, prompt_len=20)
    for line, dots in (axes.lines[:2], axes.lines[2:]):
        on_line = dict(zip(line.get_xdata(), line.get_ydata(), strict=True))
        assert [on_line[x] for x in dots.get_xdata()] == list(dots.get_ydata())


def test_the_growth_explorer_follows_its_three_controls():
    figure = widgets.cache_growth_explorer()
    model, turns, tokens, view = figure.children
    assert view.value.count("Llama-2-7B keeps 48.8 GiB after 50 turns")
    model.value, turns.value, tokens.value = "phi-2", 1, 500
    assert "phi-2 keeps 0.153 GiB after 1 turn," in view.value
