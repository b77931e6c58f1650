"""The predictions of lesson 03, with a reply to every letter."""

from gqa_lab.checks.answers import Prediction

PREDICTIONS = (
    Prediction(
        "03.p1",
        {
            "a": (
                "119",
                "Tempting: that is what a cache will make of it. Without one, every pass projects the whole text "
                "again; the next cell adds the passes up.",
            ),
            "b": (
                "2,000",
                "Tempting: 100 passes of 20 tokens. But the text grows by a token with each pass; the next cell adds "
                "them up.",
            ),
            "c": (
                "6,950",
                "20 + 21 + … + 119, as the next cell adds up. Each of the 119 tokens would be enough once: 58 times "
                "less.",
            ),
            "d": (
                "12,000",
                "Tempting: 100 passes of 120 tokens. But the early passes are shorter than the last; the next cell "
                "adds them up.",
            ),
        },
    ),
    Prediction(
        "03.p2",
        {
            "a": (
                "all five",
                "Tempting: the newest token may look at everything. That is what should happen; the next cell compares "
                "with what does.",
            ),
            "b": (
                "key 4 only",
                "Tempting: key 4 is the query's own. But the flag counts from the other end; the next cell shows "
                "which.",
            ),
            "c": (
                "key 0 only",
                "The output is the first value, exactly, as the next cell shows. The flag takes query 0 for token 0.",
            ),
        },
    ),
    Prediction(
        "03.p3",
        {
            "a": (
                "1,000 KiB",
                "Tempting: that is what is new. But cat makes a new tensor for old and new together, each time; the "
                "next cell counts.",
            ),
            "b": (
                "2,000 KiB",
                "Tempting: as if the old ones were copied once. They are copied in each step; the next cell counts.",
            ),
            "c": (
                "489 MiB",
                "1 + 2 + … + 1,000 = 500,500 KiB, and all but the new ones were read for it, as the next cell counts.",
            ),
        },
    ),
    Prediction(
        "03.p4",
        {
            "a": (
                "jumps",
                "Tempting: the sentence is ruined. But a loss on a whole text has T = S and no cache; the next cell "
                "computes it.",
            ),
            "b": (
                "stays",
                "Recorded on a paragraph of 123 tokens: 3.76 before and after. With T = S, top-left and bottom-right "
                "are the same corner.",
            ),
        },
    ),
)
