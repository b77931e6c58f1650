"""A2.int8: keys or values as whole numbers of 8 bits and a scale for each token of a KV head."""

import time
import warnings
from collections.abc import Callable

import numpy as np

from gqa_lab.checks import sandbox
from gqa_lab.checks.answers import Mistake
from gqa_lab.checks.cases import Case, copied, normal
from gqa_lab.checks.functions import Build

_SIZES = ((3, 5, 8), (2, 7, 4), (4, 1, 6), (1, 6, 5))


def _cases(round_: int) -> list[Case]:
    """Tokens of very different size, most with a negative number as their largest; in the last case one of zeros."""
    cases = []
    for n, (g, s, d) in enumerate(_SIZES):
        x = normal((104, round_, n), g, s, d)
        largest = np.abs(x).max(-1, keepdims=True)
        x = np.where((np.abs(x) == largest) & (np.arange(s)[:, None] % 4 != 1), -np.abs(x), x)
        x = x * 10.0 ** np.linspace(-2, 2, s)[None, :, None] * 3.0 ** np.arange(g)[:, None, None]
        sizes = {"G": g, "S": s, "D": d}
        if n == len(_SIZES) - 1:
            x[:, 2] = 0.0
            sizes |= {"with": "a token of zeros"}
        cases.append(Case((x,), sizes))
    return cases


def scale_of(x: np.ndarray) -> np.ndarray:
    """Returns one scale for each token of a KV head, `[G, S, 1]`; of zeros, 1."""
    scale = np.abs(x).max(-1, keepdims=True) / 127
    return np.where(scale > 0, scale, 1.0)


def _pack(value: object) -> object:
    """Returns codes, scales and flags, one for each of `_FORM`, in one array; None for anything but two arrays."""
    if type(value) not in (tuple, list) or len(value) != 2:
        return None
    codes, scales = (np.asarray(x) if isinstance(x, np.generic | float) else x for x in value)
    if any(type(x) is not np.ndarray or x.dtype.kind not in "iuf" for x in (codes, scales)):
        return None
    is_swapped = scales.dtype == np.int8 and codes.dtype.kind == "f"
    if is_swapped:
        codes, scales = scales, codes
    if codes.ndim != 3:
        return None
    flags = [codes.dtype == np.int8, scales.dtype == np.float64, not is_swapped]
    if scales.shape == codes.shape[:2]:
        scales = scales[..., None]
    try:
        scales = np.broadcast_to(scales, codes.shape)
    except ValueError:
        return None
    is_zero = ~codes.any(-1, keepdims=True) & np.isfinite(
        scales
    )  # whatever the scale of zeros, they come back as zeros
    kept = np.where(is_zero, 0.0, scales)
    flags = np.broadcast_to(np.array(flags, dtype=np.float64), (*codes.shape[:2], len(flags)))
    return np.concatenate([codes.astype(np.float64), kept, flags], axis=-1)


def _reference(x: np.ndarray) -> np.ndarray:
    return _pack(_right(x))


def _right(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scale = scale_of(x)
    return np.round(x / scale).astype(np.int8), scale


def _in(dtype: type) -> Callable:
    """Returns a quantiser that divides by scales of another dtype."""
    return _with(lambda x: scale_of(x).astype(dtype))


def _with_a_zero_point(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scale = np.maximum(np.ptp(x, axis=-1, keepdims=True) / 255, 1e-300)
    zero_point = np.round(-128 - x.min(-1, keepdims=True) / scale)
    return np.clip(np.round(x / scale) + zero_point, -128, 127).astype(np.int8), scale


def _ones_if_any_zero(x: np.ndarray) -> np.ndarray:
    return scale_of(x) if x.any(-1).all() else np.ones((*x.shape[:2], 1))


def _length(x: np.ndarray) -> np.ndarray:
    return np.linalg.norm(x, axis=-1, keepdims=True)


def _with(scale: Callable, cast: Callable = lambda y: np.round(y).astype(np.int64).astype(np.int8)) -> Callable:
    """Returns a quantiser with another scale, or with another way from numbers to codes."""

    def quantise(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        s = np.asarray(scale(x))
        return cast(x / np.where(s == 0, 1.0, s)), s

    return quantise


def _clipped(y: np.ndarray) -> np.ndarray:
    return np.clip(np.round(y), -127, 127).astype(np.int8)


def _from_the_smallest(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scale = np.maximum(np.ptp(x, axis=-1, keepdims=True) / 255, 1e-300)
    return np.round((x - x.min(-1, keepdims=True)) / scale - 128).astype(np.int64).astype(np.int8), scale


def _over(*axes: int) -> Callable:
    return lambda x: np.abs(x).max(axes, keepdims=True) / 127


_ALL = "You took one scale for everything. A token of small numbers then gets codes near 0: give each its own scale."
_HEAD = "You took one scale for all tokens of a KV head. Each token has its own."
_CHANNEL = "You took the largest over tokens: a scale for each place. Take it over the numbers of one token."
_SIGNED = "You took the largest number, not the largest magnitude: a token whose largest is negative does not fit."
_128 = "The largest code of your scale is 128, and int8 ends at 127: it wraps around to −128, or is cut off."
_UNSIGNED = "You spread the codes over 255 steps from the smallest number on. Codes of int8 lie around 0: −127 to 127."
_MEAN = "You took a mean or a spread: numbers larger than that do not fit into a code. Take the largest magnitude."
_TOO_LARGE = "Your codes reach 254 or 255, and int8 ends at 127: they wrap around."
_CUT = "You cut off the digits behind the point. Round to the nearest: the error is half as large."
_FLOAT = "Right codes, but not stored as int8: they take as many bytes as before."
_SCALES = "Right, but the dtype of your scales is not float64: they were rounded."
_LENGTH = "You took the length of a token, the root of its sum of squares. Take the largest magnitude."
_INVERSE = "Your scale is upside down: codes times scales has to give x back."
_MISTAKES = (
    Mistake("one scale", _with(_over(0, 1, 2)), _ALL),
    Mistake("one scale for each head", _with(_over(1, 2)), _HEAD),
    Mistake("a scale for each place", _with(_over(1)), _CHANNEL),
    Mistake("a scale for each place of all heads", _with(_over(0, 1)), _CHANNEL),
    Mistake("over heads", _with(_over(0, 2)), "You took one scale for all KV heads of a token. Each has its own."),
    Mistake("over heads only", _with(_over(0)), _CHANNEL),
    Mistake("smallest, with its sign", _with(lambda x: -x.min(-1, keepdims=True) / 127), _SIGNED),
    Mistake("mean magnitude", _with(lambda x: np.abs(x).mean(-1, keepdims=True) / 127), _MEAN),
    Mistake("standard deviation", _with(lambda x: x.std(-1, keepdims=True) / 127), _MEAN),
    Mistake("largest, with its sign", _with(lambda x: x.max(-1, keepdims=True) / 127), _SIGNED),
    Mistake("largest, with its sign, cut", _with(lambda x: x.max(-1, keepdims=True) / 127, _clipped), _SIGNED),
    Mistake("128", _with(lambda x: np.abs(x).max(-1, keepdims=True) / 128), _128),
    Mistake("128, cut off", _with(lambda x: np.abs(x).max(-1, keepdims=True) / 128, _clipped), _128),
    Mistake("255", _with(lambda x: np.abs(x).max(-1, keepdims=True) / 255),
            _TOO_LARGE),
    Mistake("254", _with(lambda x: np.abs(x).max(-1, keepdims=True) / 254), _TOO_LARGE),
    Mistake("63", _with(lambda x: np.abs(x).max(-1, keepdims=True) / 63),
            "Your codes end at 63: half of what int8 can hold is unused, and the error is twice as large."),
    Mistake("254 steps between smallest and largest", _with(lambda x: np.ptp(x, axis=-1, keepdims=True) / 254),
            _UNSIGNED),
    Mistake("from the smallest on", _from_the_smallest, _UNSIGNED),
    Mistake("uint8", _with(scale_of, lambda y: np.round(y).astype(np.int64).astype(np.uint8)),
            "uint8 has no negative numbers; they wrap around. Use int8."),
    Mistake("255 steps between smallest and largest", _with(lambda x: np.ptp(x, axis=-1, keepdims=True) / 255),
            _UNSIGNED),
    Mistake("cast", _with(scale_of, lambda y: y.astype(np.int8)), _CUT),
    Mistake("floor", _with(scale_of, lambda y: np.floor(y).astype(np.int8)), _CUT),
    Mistake("towards 0", _with(scale_of, lambda y: (y * (1 + 1e-12)).astype(np.int8)), _CUT),
    Mistake("downwards", _with(scale_of, lambda y: np.floor(y + 1e-9).astype(np.int8)), _CUT),
    Mistake("upwards", _with(scale_of, lambda y: np.ceil(y - 1e-9).astype(np.int8)), _CUT),
    Mistake("not stored as int8", _with(scale_of, np.round), _FLOAT),
    Mistake("stored in 64 bits", _with(scale_of, lambda y: np.round(y).astype(np.int64)), _FLOAT),
    Mistake("not rounded at all", _with(scale_of, lambda y: y),
            "Your codes are no whole numbers: nothing was rounded, and nothing is saved."),
    Mistake("numbers again", lambda x: (_right(x)[0] * scale_of(x), scale_of(x)),
            "You multiplied the codes by the scale again. Return the codes themselves."),
    Mistake("upside down", lambda x: (_right(x)[0], 1 / scale_of(x)), _INVERSE),
    Mistake("the largest as scale", lambda x: (_right(x)[0], 127 * scale_of(x)),
            "Your scale is the largest number itself. Which scale makes a code of 127 come back as that?"),
    Mistake("root mean square", _with(lambda x: np.sqrt((x**2).mean(-1, keepdims=True)) / 127),
            _MEAN),
    Mistake("root mean square, cut off", _with(lambda x: np.sqrt((x**2).mean(-1, keepdims=True)) / 127, _clipped),
            _MEAN),
    Mistake("with a zero point", _with_a_zero_point, _UNSIGNED),
    Mistake("mean magnitude, not divided", _with(lambda x: np.abs(x).mean(-1, keepdims=True)), _MEAN),
    Mistake("root mean square, not divided", _with(lambda x: np.sqrt((x**2).mean(-1, keepdims=True))), _MEAN),
    Mistake("length", _with(lambda x: _length(x) / 127), _LENGTH),
    Mistake("length, not divided", _with(_length), _LENGTH),
    Mistake("times 127", _with(lambda x: np.abs(x).max(-1, keepdims=True) * 127),
            "You multiplied by 127: the codes are 0. What is the largest number divided by, so that its code is 127?"),
    Mistake("the largest divides, too", _with(lambda x: np.abs(x).max(-1, keepdims=True)),
            "Your scale is the largest number itself: its code is 1. Which scale makes its code 127?"),
    Mistake("ones if any is zero", _with(_ones_if_any_zero),
            "One token of zeros, and you set the scale of all to 1. Mend it only where it is 0."),
    Mistake("scales first", lambda x: _right(x)[::-1], "You returned the scales first. Return (codes, scales)."),
    Mistake("scales in float32", _in(np.float32), _SCALES),
    Mistake("scales in float16", _in(np.float16), _SCALES),
    Mistake("scales in float32, afterwards", lambda x: (_right(x)[0], scale_of(x).astype(np.float32)), _SCALES),
    Mistake("scales in float16, afterwards", lambda x: (_right(x)[0], scale_of(x).astype(np.float16)), _SCALES),
    Mistake("4 bits", _with(lambda x: np.abs(x).max(-1, keepdims=True) / 7),
            "Your codes end at 7: that is 4 bits. Eight bits reach 127."),
)  # fmt: skip


class _Watched(np.ndarray):
    """Refuses to make whole numbers of NaN with `astype`, of which NumPy only warns, if it may."""

    def astype(self, dtype, *args, **kwargs) -> np.ndarray:
        if np.dtype(dtype).kind in "iu" and np.isnan(self).any():
            raise FloatingPointError
        return super().astype(dtype, *args, **kwargs)


def _form(function: Callable) -> str | None:
    """The shape of the scales; and what 0 / 0 becomes as a whole number is not the same on every machine."""
    [x] = copied(_cases(0)[-1])
    deadline = time.monotonic() + sandbox.DEADLINE_S
    _, scales = sandbox.run(function, [x.copy()], {}, deadline).value
    if np.shape(scales) != (*x.shape[:2], 1):
        why = "codes · scales does not give x back. Keep the axis (keepdims)."
        if np.shape(scales) == x.shape:
            why = "each stands there D times, which takes more bytes than the codes save. Store it once."
        return f"Right numbers, but your scales have shape {list(np.shape(scales))} instead of [G, S, 1]: {why}"

    def warned(x: np.ndarray) -> bool:
        with np.errstate(invalid="warn"), warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            function(x)
        return any("invalid value encountered in cast" in str(warning.message) for warning in heard)

    run = sandbox.run(warned, [x.view(_Watched)], {}, deadline)
    if isinstance(run.error, FloatingPointError) or run.value:
        return (
            "Right numbers, by luck: a token of zeros is divided by a scale of 0, and what int8 makes of 0 / 0 depends "
            "on the machine. Let no NaN become a code."
        )
    return None


_FORM = ("The codes are not int8.", "The scales are not float64.", "The scales come first.")


def _explain(case: Case, got: np.ndarray, index: tuple) -> str:
    [x] = case.args
    d, (g, s, place) = x.shape[-1], index
    if place >= 2 * d:
        return _FORM[place - 2 * d]
    row = ", ".join(f"{value:.3g}" for value in x[g, s])
    what = f"Code {place}" if place < d else "The scale"
    return f"{what} of this token is {got[index]:.4g}. The token is {row}."


INT8 = Build(
    id="A2.int8",
    level="build ●●○ 11 min, core",
    cases=_cases,
    reference=_reference,
    names=("x",),
    axes="GSp",
    mistakes=_MISTAKES,
    arguments=copied,
    result_type=np.ndarray,
    pack=_pack,
    returns="two arrays, (codes, scales): int8 [G, S, D] and one scale for each token of a KV head, [G, S, 1]",
    explain=_explain,
    beyond=_form,
    tested="Tested with tokens of very different size, mostly with a negative number as their largest, and with zeros.",
    notice="Notice: with head_dim 128 and scales of 16 bits this is 130 bytes for 256, 50.8%. The scales are what "
    "keeps it from being half.",
)
