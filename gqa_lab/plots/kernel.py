"""How a decode kernel shares out the keys: which program reads what, and in which wave it runs. Nothing is measured."""

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from gqa_lab.plots.frame import STYLE, new_axes

_FILL = STYLE["gqa"]["color"]


def split_keys(kv_len: int, n_keys: int, n_splits: int) -> list[tuple[int, int]]:
    """Returns the first key of each split and the one after its last: whole blocks, as even as they go.

    Example:
        >>> split_keys(100, 32, 2)
        [(0, 64), (64, 100)]
        >>> split_keys(100, 32, 3)  # two blocks each, and nothing is left for the third
        [(0, 64), (64, 100), (100, 100)]
    """
    n_blocks = -(-kv_len // n_keys)
    step = -(-n_blocks // n_splits) * n_keys
    return [(min(i * step, kv_len), min((i + 1) * step, kv_len)) for i in range(n_splits)]


def split_grid(
    n_kv_heads: int, *, group_size: int, kv_len: int, n_keys: int, n_splits: int, program: tuple[int, int]
) -> Axes:
    """Draws the keys of every KV head as a row of blocks, framed by the program that reads them.

    Args:
        n_kv_heads: KV heads (G), one row each.
        group_size: query heads per KV head (R).
        kv_len: keys of a head.
        n_keys: keys per block; what the last block has too many is hatched.
        n_splits: ranges that the keys of a head are cut into.
        program: KV head and split of the one to fill.
    """
    axes = new_axes(height=0.9 + 0.62 * n_kv_heads)
    end = -(-kv_len // n_keys) * n_keys
    for g in range(n_kv_heads):
        for split, (first, last) in enumerate(split_keys(kv_len, n_keys, n_splits)):
            if first == last:
                continue
            own = (g, split) == program
            box = Rectangle(
                (first, g - 0.36), last - first, 0.72, facecolor=_FILL if own else "white", edgecolor="black"
            )
            axes.add_patch(box)
            ink, paper = ("white", _FILL) if own else ("black", "white")
            axes.text((first + last) / 2, g, f"({g}, {split})", ha="center", va="center", color=ink,
                      bbox={"facecolor": paper, "edgecolor": "none", "pad": 1}, zorder=3)  # fmt: skip
        if end > kv_len:
            rest = Rectangle(
                (kv_len, g - 0.36), end - kv_len, 0.72, facecolor="none", edgecolor="#888888", hatch="////"
            )
            axes.add_patch(rest)
        for edge in range(n_keys, kv_len, n_keys):
            axes.plot([edge, edge], [g - 0.36, g + 0.36], color="#888888", linewidth=0.8, linestyle=":")
    names = [f"KV head {g}\nquery heads {g * group_size} to {(g + 1) * group_size - 1}" for g in range(n_kv_heads)]
    axes.set_yticks(range(n_kv_heads), names)
    axes.tick_params(left=False)
    axes.set_xticks([edge for edge in range(0, kv_len, n_keys) if kv_len - edge > n_keys / 4] + [kv_len])
    axes.set_xlim(-1, end + 1)
    axes.set_ylim(n_kv_heads - 0.45, -0.55)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("key")
    axes.set_label(split_grid_text(n_kv_heads, group_size, kv_len, n_keys, n_splits, program))
    axes.set_title(axes.get_label().split(". ")[0], loc="left", fontsize=11)
    return axes


def split_grid_text(
    n_kv_heads: int, group_size: int, kv_len: int, n_keys: int, n_splits: int, program: tuple[int, int]
) -> str:
    """Returns the figure of `split_grid` in words.

    Example:
        >>> print(split_grid_text(3, 4, 100, 32, 2, (1, 1)).replace(". ", ".\\n"))
        6 programs share 3 KV heads: each key is read by one of them.
        The filled one, (1, 1), reads keys 64 to 99 of KV head 1 in blocks of 32, for query heads 4 to 7.
    """
    g, split = program
    ranges = split_keys(kv_len, n_keys, n_splits)
    n_busy = n_kv_heads * sum(first < last for first, last in ranges)
    first, last = ranges[split]
    return (
        f"{n_busy} programs share {n_kv_heads} KV heads: each key is read by one of them. The filled one, "
        f"({g}, {split}), reads keys {first} to {last - 1} of KV head {g} in blocks of {n_keys}, for query heads "
        f"{g * group_size} to {(g + 1) * group_size - 1}."
    )


def scheduled(n_kv_heads: int, n_blocks: int, n_splits: int, n_slots: int) -> list[tuple[int, int, int, int, int]]:
    """Returns slot, start, end, KV head and split of every program that has keys; a free slot takes the next program.

    Example:
        >>> scheduled(2, 6, n_splits=2, n_slots=3)
        [(0, 0, 3, 0, 0), (1, 0, 3, 1, 0), (2, 0, 3, 0, 1), (0, 3, 6, 1, 1)]
    """
    free = [0] * n_slots
    plan = []
    for split, (first, last) in enumerate(split_keys(n_blocks, 1, n_splits)):
        for g in range(n_kv_heads):
            slot = free.index(min(free))
            if first < last:
                plan.append((slot, free[slot], free[slot] + last - first, g, split))
                free[slot] += last - first
    return plan


def waves(n_kv_heads: int, *, n_blocks: int, n_splits: int, n_slots: int) -> Axes:
    """Draws when each program runs, a row for each slot of a GPU: full wave after full wave, or slots that wait.

    Args:
        n_kv_heads: KV heads (G) of one sequence.
        n_blocks: blocks of keys of a head; each takes one step of time.
        n_splits: ranges that the keys of a head are cut into.
        n_slots: programs that the GPU runs at a time.
    """
    plan = scheduled(n_kv_heads, n_blocks, n_splits, n_slots)
    axes = new_axes(height=0.9 + 0.28 * n_slots)
    end = max(entry[2] for entry in plan)
    for slot, start, stop, g, split in plan:
        late = start > 0
        face = {"facecolor": "white", "hatch": "///"} if late else {"facecolor": _FILL}
        axes.add_patch(Rectangle((start, slot - 0.4), stop - start, 0.8, edgecolor="black", **face))
        if (stop - start) * 7 / n_blocks > 0.35:
            shade = {"facecolor": "white", "edgecolor": "none", "pad": 0.6} if late else None
            axes.text((start + stop) / 2, slot, f"{g}, {split}", ha="center", va="center", fontsize=9,
                      color="black" if late else "white", bbox=shade)  # fmt: skip
    axes.plot([end, end], [-0.6, n_slots - 0.4], color="black", linewidth=1.2)
    axes.annotate(f"done: {end}", (end, -0.6), (4, -4), textcoords="offset points", va="top", weight="bold")
    axes.set_yticks(range(n_slots))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(n_slots - 0.4, -0.6)
    axes.set_xlim(0, n_blocks * 1.1)
    axes.set_xlabel("time, in blocks of keys; each bar is a program (KV head, split)")
    axes.set_ylabel("slot")
    axes.set_label(waves_text(n_kv_heads, n_blocks=n_blocks, n_splits=n_splits, n_slots=n_slots))
    axes.set_title(axes.get_label().split(". ")[0], loc="left", fontsize=11)
    return axes


def waves_text(n_kv_heads: int, *, n_blocks: int, n_splits: int, n_slots: int) -> str:
    """Returns the figure of `waves` in words.

    Example:
        >>> waves_text(2, n_blocks=20, n_splits=4, n_slots=8)
        '8 programs in 8 slots: done after 5 blocks of time, 0% of it idle. Nobody waits.'
        >>> waves_text(2, n_blocks=20, n_splits=5, n_slots=8)
        '10 programs in 8 slots: done after 8 blocks of time, 38% of it idle. 2 wait for a later wave.'
    """
    plan = scheduled(n_kv_heads, n_blocks, n_splits, n_slots)
    end, n_late = max(entry[2] for entry in plan), sum(entry[1] > 0 for entry in plan)
    idle = 1 - n_kv_heads * n_blocks / (n_slots * end)
    late = "Nobody waits" if not n_late else f"{n_late} wait{'s'[: n_late == 1]} for a later wave"
    return (
        f"{len(plan)} program{'s'[: len(plan) > 1]} in {n_slots} slots: done after {end} blocks of time, "
        f"{idle:.0%} of it idle. {late}."
    )


def split_cost(n_splits: int, *, n_programs: int, n_blocks: int, n_slots: int) -> int:
    """Returns waves, rounded up, times blocks per program, rounded up: when the last program is done.

    Args:
        n_splits: ranges that the keys of a head are cut into.
        n_programs: programs per split, one for each KV head of each sequence.
        n_blocks: blocks of keys of a head.
        n_slots: programs that the GPU runs at a time.

    Example:
        >>> split_cost(5, n_programs=2, n_blocks=20, n_slots=8)
        8
    """
    return -(-n_programs * n_splits // n_slots) * -(-n_blocks // n_splits)


def split_costs(*, n_programs: int, n_blocks: int, n_slots: int, most: int) -> Axes:
    """Draws `split_cost` against the number of splits as a line; three numbers of splits are marked.

    Args:
        n_programs, n_blocks, n_slots: as for `split_cost`.
        most: the largest number of splits drawn.
    """
    sizes = {"n_programs": n_programs, "n_blocks": n_blocks, "n_slots": n_slots}
    numbers = range(1, most + 1)
    costs = [split_cost(n, **sizes) for n in numbers]
    best = costs.index(min(costs)) + 1
    axes = new_axes(height=3.4)
    axes.plot(numbers, costs, color="black", linewidth=1.2)
    even = n_programs * n_blocks / n_slots
    axes.axhline(even, color="black", linewidth=0.8, linestyle=":")
    axes.annotate(
        f"shared evenly by all slots: {even:.0f}", (most, even), (0, -14), textcoords="offset points", ha="right"
    )
    marks = ((1, (8, 2), "left", "normal"), (best, (-8, -14), "right", "bold"), (best + 1, (7, 2), "left", "normal"))
    for n, offset, side, weight in marks:
        axes.plot(n, costs[n - 1], "o", color=_FILL, markersize=6)
        name = f"{n} split{'s'[: n > 1]}: {costs[n - 1]:,}"
        axes.annotate(name, (n, costs[n - 1]), offset, textcoords="offset points", ha=side, weight=weight)
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter(lambda y, _: f"{y:,.0f}")
    axes.set_ylim(even / 1.8, costs[0] * 1.4)
    axes.set_xlim(0, most * 1.02)
    axes.set_xlabel("splits of each KV head's keys")
    axes.set_ylabel("time, in blocks of keys")
    axes.set_label(split_costs_text(most=most, **sizes))
    axes.set_title(axes.get_label().split(". ")[0], loc="left", fontsize=11)
    return axes


def split_costs_text(*, n_programs: int, n_blocks: int, n_slots: int, most: int) -> str:
    """Returns the figure of `split_costs` in words.

    Example:
        >>> print(split_costs_text(n_programs=8, n_blocks=2048, n_slots=264, most=100).replace(". ", ".\\n"))
        33 splits fill 264 slots once; a split more takes 1.9 times as long.
        Without a cut 2,048 blocks of time, with 33 splits 63, with 34 122; after each full wave the line jumps up.
    """
    sizes = {"n_programs": n_programs, "n_blocks": n_blocks, "n_slots": n_slots}
    costs = [split_cost(n, **sizes) for n in range(1, most + 1)]
    best = costs.index(min(costs)) + 1
    n_waves = -(-n_programs * best // n_slots)
    times = "once" if n_waves == 1 else f"{n_waves} times"
    return (
        f"{best} splits fill {n_slots} slots {times}; a split more takes {costs[best] / costs[best - 1]:.1f} times as "
        f"long. Without a cut {costs[0]:,} blocks of time, with {best} splits {costs[best - 1]:,}, with {best + 1} "
        f"{costs[best]:,}; after each full wave the line jumps up."
    )
