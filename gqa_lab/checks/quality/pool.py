"""07.pool: a projection with fewer KV heads, each the mean of those that become one."""

from collections.abc import Callable

import numpy as np
from torch import Tensor

from gqa_lab.checks.answers import Mistake
from gqa_lab.checks.cases import Case, normal
from gqa_lab.checks.functions import Build

_SIZES = (  # G old heads become g new ones
    {"old": 6, "new": 2, "D": 4, "C": 12},
    {"old": 8, "new": 4, "D": 3, "C": 10},
    {"old": 3, "new": 1, "D": 8, "C": 6},
    {"old": 4, "new": 4, "D": 8, "C": 9},
)
_STRIDED = "You averaged heads 0, 2, 4 and heads 1, 3, 5, say. Heads that will share stand side by side: 0, 1, 2."
_INSIDE = "You averaged rows inside a head. Its rows are different numbers; average whole heads, row by row."
_LENGTH = "You repaired the length of the mean. The task is the plain mean; does the length repair the direction? The "
_LENGTH += "lesson tests it."
_FIRST = "That is `first`, not `mean`: the other heads of each group are forgotten."
_SUM = "That is the sum. A mean divides by how many heads became one."
_DIVISOR = "You divided by the wrong number. How many heads became one?"
_COPIED = "Right means, copied back to every old head: the cache would be as large as before. Keep each once."
_COLUMNS = "You averaged columns. A column belongs to a number that comes in; heads are made of rows."


def _cases(round_: int) -> list[Case]:
    cases = []
    for n, sizes in enumerate(_SIZES):
        w = normal((76, round_, n), sizes["old"] * sizes["D"], sizes["C"])
        named = {"G": sizes["old"], "n_kv_heads": sizes["new"], "D": sizes["D"], "C": sizes["C"]}
        cases.append(Case((w, sizes["new"], sizes["D"]), named))
    return cases


def pool_weight(w: np.ndarray, n_kv_heads: int, head_dim: int) -> np.ndarray:
    """Returns the means of neighbouring heads, one below the other."""
    n_shared = len(w) // head_dim // n_kv_heads
    heads = [w[g * head_dim : (g + 1) * head_dim] for g in range(len(w) // head_dim)]
    groups = [heads[n * n_shared : (n + 1) * n_shared] for n in range(n_kv_heads)]
    return np.concatenate([sum(group) / n_shared for group in groups])


def pool_strided(w: Tensor, n_kv_heads: int, head_dim: int) -> Tensor:
    """Wrong: heads that stand `n_kv_heads` apart become one."""
    n_shared = len(w) // head_dim // n_kv_heads
    heads = w.view(-1, head_dim, w.shape[1])
    one_each = heads.view(n_shared, n_kv_heads, head_dim, -1).mean(0)
    return one_each.reshape(n_kv_heads * head_dim, -1)


def _pooled(how: Callable[[Tensor], Tensor]) -> Callable:
    """Makes a function of the student's signature from `how`, `[g, shared, D, C]` -> `[g, D, C]`."""

    def pool(w: Tensor, n_kv_heads: int, head_dim: int) -> Tensor:
        return how(w.reshape(n_kv_heads, -1, head_dim, w.shape[1])).flatten(0, 1)

    return pool


def _as_long_as_before(heads: Tensor) -> Tensor:
    mean, lengths = heads.mean(1), heads.flatten(2).norm(dim=2).mean(1)
    return mean * (lengths / mean.flatten(1).norm(dim=1))[:, None, None]


def _explain(case: Case, got: np.ndarray, index: tuple) -> str:
    """Says of which old heads the first wrong new one is made, if it is a mixture of them."""
    w, n_kv_heads, head_dim = case.args
    heads = w.reshape(-1, head_dim * w.shape[1])
    one = got.reshape(n_kv_heads, -1)[index[0] // head_dim]
    shares, left, *_ = np.linalg.lstsq(heads.T, one, rcond=None)
    if not np.allclose(heads.T @ shares, one, atol=1e-6):
        return f"Its rows are no mixture of whole heads ({head_dim} rows each)."
    made = ", ".join(f"{share:.2g} of head {g}" for g, share in enumerate(shares) if abs(share) > 1e-6)
    return f"Your new head {index[0] // head_dim} is {made or 'zero'}."


POOL = Build(
    id="07.pool",
    level="build ●●○ 8 min, core",
    cases=_cases,
    reference=pool_weight,
    names=("w", "n_kv_heads", "head_dim"),
    axes="rC",
    explain=_explain,
    mistakes=(
        Mistake("strided heads", lambda w, n, d: w.reshape(-1, n, d, w.shape[1]).mean(0).flatten(0, 1), _STRIDED),
        *(
            Mistake(
                f"always {shared}",
                lambda w, n, d, shared=shared: w.unflatten(0, (-1, shared, d)).mean(1).flatten(0, 1),
                f"You make one head of every {shared}. How many become one follows from the sizes: compute it.",
            )
            for shared in (2, 3)
        ),
        Mistake("rows of each head", _pooled(lambda heads: heads.mean(2)), _INSIDE),
        Mistake("neighbouring rows", lambda w, n, d: w.unflatten(0, (n * d, -1)).mean(1), _INSIDE),
        Mistake(
            "cut as (D, G)",
            lambda w, n, d: w.unflatten(0, (d, n, -1)).mean(2).transpose(0, 1).flatten(0, 1),
            "You cut the rows as (head_dim, heads), so a head got every G-th row. Head axis first, then head_dim.",
        ),
        Mistake("sum", _pooled(lambda heads: heads.sum(1)), _SUM),
        Mistake("divided by the new heads", _pooled(lambda heads: heads.sum(1) / len(heads)), _DIVISOR),
        Mistake("divided by all old heads", _pooled(lambda heads: heads.mean(1) / len(heads)), _DIVISOR),
        Mistake("divided by head_dim", lambda w, n, d: _pooled(lambda heads: heads.sum(1) / d)(w, n, d), _DIVISOR),
        Mistake("divided by 2", _pooled(lambda heads: heads.sum(1) / 2), _DIVISOR),
        Mistake(
            "n_kv_heads as the size of a group",
            lambda w, n, d: w.unflatten(0, (-1, n, d)).mean(1).flatten(0, 1),
            "You made groups of n_kv_heads heads. It is the number of groups, and of new heads.",
        ),
        Mistake(
            "over the groups",
            _pooled(lambda heads: heads.mean(0)),
            "You averaged over the groups instead of inside each: the first heads of all groups became one, and so on.",
        ),
        Mistake(
            "one mean for all",
            _pooled(lambda heads: heads.mean((0, 1)).repeat(len(heads), 1, 1)),
            "All new heads are one mean of all heads. Each new head is the mean of its own group.",
        ),
        Mistake(
            "only one mean",
            lambda w, n, d: w.unflatten(0, (-1, d)).mean(0),
            "There is one mean of all heads. The result has n_kv_heads of them, one for each group.",
        ),
        Mistake("times the root of R", _pooled(lambda heads: heads.mean(1) * heads.shape[1] ** 0.5), _LENGTH),
        Mistake("as long as before", _pooled(_as_long_as_before), _LENGTH),
        Mistake(
            "divided by the root of R",
            _pooled(lambda heads: heads.mean(1) / heads.shape[1] ** 0.5),
            "Your mean is divided once more. The mean of unrelated heads is short enough as it is.",
        ),
        Mistake("first rows", lambda w, n, d: w[: n * d].clone(), _FIRST + " And these stand all in the first groups."),
        Mistake("first head of each", _pooled(lambda heads: heads[:, 0]), _FIRST),
        Mistake(
            "last head of each",
            _pooled(lambda heads: heads[:, -1]),
            "That is the last head of each group; the others are forgotten. Average them.",
        ),
        Mistake(
            "median",
            _pooled(lambda heads: heads.quantile(0.5, 1)),
            "That is the median, number by number; the task asks for the mean.",
        ),
        Mistake(
            "lower median",
            _pooled(lambda heads: heads.median(1).values),
            "That is torch's median, number by number; the task asks for the mean.",
        ),
        Mistake("largest", _pooled(lambda heads: heads.amax(1)), "That is the largest, number by number. Average."),
        Mistake(
            "groups reversed",
            _pooled(lambda heads: heads.mean(1).flip(0)),
            "Your groups come in the wrong order: new head 0 is the mean of the first heads.",
        ),
        Mistake("columns", lambda w, n, d: w.unflatten(1, (-1, len(w) // d // n)).mean(2), _COLUMNS),
        Mistake("strided columns", lambda w, n, d: w.unflatten(1, (len(w) // d // n, -1)).mean(1), _COLUMNS),
        Mistake(
            "unchanged",
            lambda w, n, d: w.clone(),
            "Nothing was pooled: the old heads are all still there.",
        ),
        Mistake(
            "heads left as an axis",
            lambda w, n, d: w.unflatten(0, (n, -1, d)).mean(1),
            "Right heads, still an axis of their own: [heads, D, C]. A projection is a matrix: merge the two.",
        ),
        *(
            Mistake(f"mean copied to all old heads, {how}", _pooled(back), _COPIED)
            for how, back in (
                ("side by side", lambda heads: heads.mean(1).repeat_interleave(heads.shape[1], 0)),
                ("tiled", lambda heads: heads.mean(1).repeat(heads.shape[1], 1, 1)),
            )
        ),
    ),
    tested="Tested from 6 to 2, 8 to 4, 3 to 1 and 4 to 4 heads, twice, and with weights that lie by columns.",
    notice="Notice: expanding what you pooled does not bring the old heads back. Of the two, only pooling loses "
    "something.",
)
