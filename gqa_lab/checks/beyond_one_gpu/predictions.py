"""The predictions of lesson A1, with a reply to every letter."""

from gqa_lab.checks.answers import Prediction

PREDICTIONS = (
    Prediction(
        "A1.p1",
        {
            "a": (
                "8 times smaller",
                "Tempting: one KV head instead of eight, on one GPU that is so. But which of the eight GPUs holds it? "
                "The next cell counts.",
            ),
            "b": (
                "as large",
                "40 KiB per token on each, as the next cell counts: one KV head cannot be cut by heads, so all eight "
                "GPUs hold a copy of it.",
            ),
            "c": (
                "larger",
                "Tempting: copies cost memory. They do, eight times the one head; compare that with eight heads held "
                "once. The next cell counts.",
            ),
        },
    ),
    Prediction(
        "A1.p2",
        {
            "a": (
                "2 times faster",
                "Tempting: twice the GPUs read twice as fast. Does each of them read half as much? The next cell adds "
                "up weights and cache.",
            ),
            "b": (
                "1.6 times faster",
                "Each GPU's weights halve, as the next cell adds up, and its cache does not: 8 KV heads are held twice "
                "by 16 GPUs.",
            ),
            "c": (
                "no faster",
                "Tempting: the cache stopped shrinking at 8. But the weights have not; the next cell adds up both.",
            ),
        },
    ),
    Prediction(
        "A1.p3",
        {
            "a": (
                "1",
                "Tempting: GPUs that share a model must surely talk as much as they read. Of what do they tell each "
                "other? The next cell counts the bytes.",
            ),
            "b": (
                "40",
                "Tempting: 160 sums in every step sound like a lot. Each carries one vector for the sequence; the next "
                "cell counts the bytes.",
            ),
            "c": (
                "4,000",
                "A sum carries 16 KiB, and the weights are gigabytes, as the next cell counts. The messages cost time, "
                "not bytes: they have to wait for each other.",
            ),
        },
    ),
)
