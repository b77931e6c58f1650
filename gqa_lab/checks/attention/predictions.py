"""The predictions of lesson 01, with a reply to every letter."""

from gqa_lab.checks.answers import Prediction

PREDICTIONS = (
    Prediction(
        "01.p1",
        {
            "a": ("0.016", "Tempting: 64 keys, so about 1/64 each. That is the mean of the weights; the next cell "
                  "looks at the largest one."),
            "b": ("0.1", "Tempting, and right once the scores are divided by √64. The next cell computes both."),
            "c": ("0.8", "About 0.79: without the scale one key takes nearly everything, as the next cell shows."),
        },
    ),
    Prediction(
        "01.p2",
        {
            "a": ("is shuffled too", "Tempting: in a list the results would move along. Run the next cell and compare "
                  "row by row."),
            "b": ("does not change", "The output belongs to the query, and a sum does not care in which order its "
                  "terms come. The next cell compares."),
            "c": ("changes", "Tempting: the keys stand elsewhere now. But does any line of the function know where a "
                  "key stands? The next cell compares."),
        },
    ),
    Prediction(
        "01.p3",
        {
            "a": ("0", "Tempting: zero times anything is zero. But softmax comes afterwards, and e⁰ is 1. Look at the "
                  "next cell."),
            "b": ("small", "Tempting: a score of 0 sounds like little. Compare it with the other scores in the next "
                  "cell: some are negative."),
            "c": ("can be the largest of all", "e⁰ = 1, and every negative score gives less than that, as the next "
                  "cell shows."),
        },
    ),
)  # fmt: skip
