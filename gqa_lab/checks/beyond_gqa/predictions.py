"""The predictions of lesson A2, with a reply to every letter."""

from gqa_lab.checks.answers import Prediction

PREDICTIONS = (
    Prediction(
        "A2.p1",
        {
            "a": (
                "2.25",
                "576 numbers against 2 · 128 for the key and the value of one KV head, as the next cell divides.",
            ),
            "b": (
                "4.5",
                "Tempting: 576 / 128. But one KV head keeps a key and a value; the latent is both at once. The next "
                "cell divides.",
            ),
            "c": (
                "16",
                "Tempting: all query heads read the latent, so it must be large. Count its numbers; the next cell "
                "divides.",
            ),
        },
    ),
    Prediction(
        "A2.p2",
        {
            "a": (
                "1.2 times",
                "Tempting: ten of 62 layers are left whole, and 62 / 52 is 1.2. The other 52 shrink without "
                "vanishing; the next cell adds up both.",
            ),
            "b": (
                "6 times",
                "The ten layers without a window keep nearly all, as the next cell adds up: 62 / 10 is 6.2, and "
                "the windows keep a little.",
            ),
            "c": (
                "128 times",
                "Tempting: 131,072 / 1,024. That is what one windowed layer saves; which layers keep the rest? The "
                "next cell adds up.",
            ),
        },
    ),
    Prediction(
        "A2.p3",
        {
            "a": (
                "halve, too",
                "Tempting: half the cache, half the reading. But who reads it? The meter in the next cell counts.",
            ),
            "b": (
                "stay",
                "Each layer reads the keys and values for its own queries, as the meter in the next cell counts. "
                "Sharing them saves memory, not traffic.",
            ),
        },
    ),
    Prediction(
        "A2.p4",
        {
            "a": (
                "keys",
                "The next cell and the recorded numbers below show it. Is that so of all keys, or of these? Look at "
                "random ones afterwards.",
            ),
            "b": (
                "values",
                "Tempting: values are what comes out. But what sets the scale of each? The next cell and the recorded "
                "numbers below show both.",
            ),
            "c": (
                "both alike",
                "Tempting, and of random numbers nearly true. Are a model's keys such? The next cell and the recorded "
                "numbers below show both.",
            ),
        },
    ),
)
