"""A2.pages: the keys of one sequence, gathered from pages that lie anywhere."""

import numpy as np

from gqa_lab.checks.answers import Mistake
from gqa_lab.checks.cases import Case, copied, normal
from gqa_lab.checks.functions import Build

_SIZES = (  # pages, KV heads, page size, head_dim, table, length
    ((7, 3, 4, 5, (5, 0, 2), 10), (6, 2, 5, 3, (3, 1), 10), (9, 8, 2, 6, (8, 2, 5, 1), 7), (5, 1, 8, 4, (2,), 3)),
    ((8, 2, 4, 3, (6, 1, 3), 9), (5, 3, 2, 4, (4, 0, 2), 6), (7, 2, 3, 5, (1, 6, 0), 8), (6, 2, 6, 3, (5, 3), 12)),
)


def _cases(round_: int) -> list[Case]:
    cases = []
    for n, (n_pages, g, size, d, table, length) in enumerate(_SIZES[round_]):
        pages = normal((105, round_, n), n_pages, g, size, d)
        sizes = {"pages": n_pages, "G": g, "page size": size, "D": d, "length": length}
        cases.append(Case((pages, table, length), sizes))
    return cases


def gathered(pages: np.ndarray, table: tuple[int, ...], length: int) -> np.ndarray:
    """Returns `[G, S, D]`, token by token, as the definition has it."""
    size = pages.shape[2]
    return np.stack([pages[table[s // size], :, s % size] for s in range(length)], axis=1)


def _arguments(case: Case) -> list:
    pages, table, length = copied(case)
    return [pages, list(table), length]


def _whole(pages: np.ndarray, table: list[int]) -> np.ndarray:
    return np.concatenate([pages[page] for page in table], axis=1)


def _last_cut(pages: np.ndarray, table: list[int], length: int) -> np.ndarray:
    *full, last = [pages[page] for page in table]
    return np.concatenate([*full, last[:, : length % pages.shape[2]]], axis=1)


def _reshaped(pages: np.ndarray, table: list[int]) -> np.ndarray:
    return pages[table].reshape(pages.shape[1], -1, pages.shape[3])


def _tokens_first(pages: np.ndarray, table: list[int]) -> np.ndarray:
    return pages[table].reshape(-1, pages.shape[1], pages.shape[3])


def _with_table(change) -> object:
    return lambda pages, table, length: _whole(pages, change(table))[:, :length]


_END = "The last page is not full: what stands behind the last token was never written. Stop at `length`."
_CUT = "You rounded the number of pages down: the tokens of the last page, which is not full, are missing."
_MIXED = "You reshaped without moving the axes: KV heads and tokens of a page changed places."
_MISTAKES = (
    Mistake("not cut", lambda pages, table, length: _whole(pages, table), _END),
    Mistake("whole pages only",
            lambda pages, table, length: _whole(pages, table)[:, : length - length % pages.shape[2]], _CUT),
    Mistake("last page dropped",
            lambda pages, table, length: _whole(pages, table[: length // pages.shape[2]]), _CUT),
    Mistake("last page empty when full", _last_cut,
            "You cut the last page at length % page_size. What is that when the page is full?"),
    Mistake("heads cut", lambda pages, table, length: _whole(pages, table)[:length],
            "You cut the KV heads: `[:length]` stops on the first axis, and the tokens are the second."),
    Mistake("no axes moved", lambda pages, table, length: _reshaped(pages, table)[:, :length], _MIXED),
    Mistake("no axes moved, not cut", lambda pages, table, length: _reshaped(pages, table), _MIXED),
    Mistake("pages and tokens first",
            lambda pages, table, length: _tokens_first(pages, table)[:length].transpose(1, 0, 2), _MIXED),
    Mistake("one token more", lambda pages, table, length: _whole(pages, table)[:, : length + 1],
            "One token too many: a slice ends before its second number."),
    Mistake("last page first", _with_table(lambda table: [table[-1], *table[:-1]]),
            "You took the last page first. The table is in order."),
    Mistake("sorted", _with_table(sorted),
            "You took the pages in the order in which they lie. The table says which comes first."),
    Mistake("from the start", lambda pages, table, length: _whole(pages, range(len(table)))[:, :length],
            "You took the first pages of the pool. The table says which pages are this sequence's."),
    Mistake("backwards", _with_table(lambda table: table[::-1]), "You took the pages from the last to the first."),
    Mistake("one page", lambda pages, table, length: np.concatenate([pages[table[0]]] * len(table), 1)[:, :length],
            "You read the first page again and again. Token s stands in the table's page s // page_size."),
    Mistake("token modulo pages", lambda pages, table, length: np.stack(
        [pages[table[s % len(table)], :, s // len(table)] for s in range(length)], 1),
            "You dealt tokens out like cards. A page holds neighbours: token s stands in page s // page_size."),
    Mistake("the last tokens", lambda pages, table, length: _whole(pages, table)[:, -length:],
            "You kept the last tokens of the pages. They are filled from the start; the end is empty."),
    Mistake("table shifted", lambda pages, table, length: _whole(pages, [page - 1 for page in table])[:, :length],
            "Pages count from 0."),
)  # fmt: skip


def _explain(case: Case, got: np.ndarray, index: tuple) -> str:
    pages, table, _ = case.args
    g, s, _ = index
    found = np.argwhere(np.isclose(pages, got[g, s][None, None, None]).all(-1))
    if not len(found):
        return "What stands there is no key of the pool."
    page, head, slot = (int(x) for x in found[0])
    return f"There you have page {page}, KV head {head}, slot {slot}; the table is {list(table)}."


PAGES = Build(
    id="A2.pages",
    level="build ●●○ 9 min, further",
    cases=_cases,
    reference=gathered,
    names=("pages", "table", "length"),
    axes="GSD",
    mistakes=_MISTAKES,
    arguments=_arguments,
    result_type=np.ndarray,
    explain=_explain,
    tested="Tested with one to four pages in any order, last pages full and not.",
    notice="Notice: what you returned is a copy of all keys, made to see that the table is right. A kernel follows the "
    "table while it reads, and copies nothing.",
)
