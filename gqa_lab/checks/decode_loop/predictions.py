"""The predictions of lesson 08, with a reply to every letter."""

from gqa_lab.checks.answers import Prediction

PREDICTIONS = (
    Prediction(
        "08.p1",
        {
            "a": (
                "four times as fast as MHA",
                "Tempting: the cache is four times smaller. But these keys are copied before they are used; count what "
                "is read and written, then run the next cell.",
            ),
            "b": (
                "as fast as MHA",
                "Tempting: the copies are as large as MHA's cache, so as much is read. Who writes them, and when? Run "
                "the next cell.",
            ),
            "c": (
                "several times as slow as MHA",
                "Every token makes the copies anew: read once, written four times, read four times. The next cell has "
                "a recorded run.",
            ),
        },
    ),
    Prediction(
        "08.p2",
        {
            "a": (
                "8%",
                "46 of 584 MB, as the next cell computes. The rest are weights, and they do not know how many KV heads "
                "there are.",
            ),
            "b": (
                "50%",
                "Tempting: 1,000 tokens sound long. What does one of them leave in this small model? The next cell "
                "computes both.",
            ),
            "c": (
                "90%",
                "Tempting, after seven lessons on the cache. Put the weights of 135 million parameters beside it; the "
                "next cell computes both.",
            ),
        },
    ),
    Prediction(
        "08.p3",
        {
            "a": (
                "about a quarter of the time",
                "Tempting: a quarter of the keys, and nothing is expanded. The next cell asks the meter and a clock.",
            ),
            "b": (
                "nearly the same time",
                "It works once for each query head, which no meter shows: that counts what goes into an operation. The "
                "next cell has a recorded run.",
            ),
        },
    ),
)
