"""The predictions of lesson 09, with a reply to every letter."""

from gqa_lab.checks.answers import Prediction

PREDICTIONS = (
    Prediction(
        "09.p1",
        {
            "a": (
                "the same",
                "Tempting: the keys are the same. But each program asks for them by itself; the next cell counts what "
                "is asked for.",
            ),
            "b": (
                "4 times as much",
                "As the next cell counts: four programs ask for each key. Some of these requests may be answered by "
                "the L2 cache of the GPU. Don't build on it.",
            ),
        },
    ),
    Prediction(
        "09.p2",
        {
            "a": (
                "by the arithmetic",
                "Tempting: eight heads are eight times the arithmetic. Compare 8 with the GPU's own ratio in the next "
                "cell.",
            ),
            "b": (
                "still by the memory",
                "8 FLOP per byte against 206, as the next cell computes: 4% of what the arithmetic units could do in "
                "that time.",
            ),
        },
    ),
    Prediction(
        "09.p3",
        {
            "a": (
                "8.5",
                "Tempting: the mean of two means. It would hold if both halves weighed the same; the next cell takes "
                "two pairs of halves.",
            ),
            "b": (
                "it can't be said",
                "One number per half is missing: how much weight it holds, its log-sum-exp. The next cell has two "
                "pairs of halves with these outputs, and two answers.",
            ),
        },
    ),
)
