"""The predictions of lesson 04, with a reply to every letter."""

from gqa_lab.checks.answers import Prediction

PREDICTIONS = (
    Prediction(
        "04.p1",
        {
            "a": (
                "32 times",
                "Tempting: the keys are 32 times fewer. How many pairs of a query head and a key are there? The next "
                "cell counts.",
            ),
            "b": (
                "not at all",
                "Every query head still meets every key, as the next cell counts. The bytes shrink, the work does not.",
            ),
        },
    ),
    Prediction(
        "04.p2",
        {
            "a": (
                "equal, same memory",
                "Tempting: the caches are equal to the byte. The next cell holds the two measured numbers.",
            ),
            "b": (
                "the eight are better",
                "ln perplexity 1.439 against 1.518, where lower is better (Shazeer 2019, Table 1). Many readers of one "
                "memory are worth having.",
            ),
            "c": (
                "the one is better",
                "Tempting: what is made for one reader might suit it best. The next cell holds the two measured "
                "numbers.",
            ),
        },
    ),
    Prediction(
        "04.p3",
        {
            "a": (
                "raises",
                "Tempting: 8 heads against 1, and nobody asked for sharing. The next cell tries 1, and then 2.",
            ),
            "b": (
                "right",
                "An axis of size 1 broadcasts without a word. The next cell shows it, and a later one what it costs.",
            ),
            "c": (
                "wrong numbers",
                "Tempting: most silent mistakes are. The next cell compares with our own function.",
            ),
        },
    ),
)
