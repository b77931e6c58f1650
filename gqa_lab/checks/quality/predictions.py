"""The predictions of lesson 07, with a reply to every letter."""

from gqa_lab.checks.answers import Prediction

PREDICTIONS = (
    Prediction(
        "07.p1",
        {
            "a": (
                "1",
                "Tempting: a mean lies among what it is the mean of. Lengths do not average when directions differ; "
                "the next cell measures.",
            ),
            "b": (
                "0.58",
                "1/√3, as the next cell measures: of the squared length of three unrelated vectors a third is left.",
            ),
            "c": (
                "0.33",
                "Tempting: each counts for a third. That would be the length if two of the three were zero; the next "
                "cell measures.",
            ),
        },
    ),
    Prediction(
        "07.p2",
        {
            "a": (
                "3.6",
                "Tempting: the GQA paper converts a model for 5% of its training, so little can be lost. Its points "
                "are all after training; the next cell has none.",
            ),
            "b": (
                "5",
                "Tempting: a third of the KV heads, some of the quality. Read the next cell, and what a uniform guess "
                "would get.",
            ),
            "c": (
                "above 9",
                "9.37, as the next cell shows; a uniform guess over its 49,152 words gets 10.8. The model is destroyed "
                "until it is trained again.",
            ),
        },
    ),
    Prediction(
        "07.p3",
        {
            "a": (
                "better",
                "Tempting: more heads, more room. But each new head is a copy; the next cell compares.",
            ),
            "b": (
                "the same",
                "Every query head reads the numbers it read before, as the next cell asserts. More copies hold no new "
                "information.",
            ),
            "c": (
                "worse",
                "Tempting after what pooling did. Which query head would read anything else than before? The next "
                "cell compares.",
            ),
        },
    ),
    Prediction(
        "07.p4",
        {
            "a": (
                "1 of 4",
                "Two of eight patterns, +++ and −−−, as the next cell counts. For six seeds it is 2 of 64: 1 of 32.",
            ),
            "b": (
                "1 of 8",
                "Tempting: a half, three times. But three seeds against MHA would have impressed you as much; the next "
                "cell counts both.",
            ),
            "c": (
                "1 of 100",
                "Tempting: three out of three looks like proof. There are only eight patterns; the next cell counts.",
            ),
        },
    ),
)
