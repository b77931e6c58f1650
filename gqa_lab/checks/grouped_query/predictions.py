"""The predictions of lesson 05, with a reply to every letter."""

from gqa_lab.checks.answers import Prediction

PREDICTIONS = (
    Prediction(
        "05.p1",
        {
            "a": (
                "0",
                "Tempting: a wrong rule should be wrong everywhere. The next cell counts; look at the first and "
                "the last head.",
            ),
            "b": ("2", "Tempting: the first and the last head must be right. The next cell counts whether more are."),
            "c": (
                "4",
                "Heads 0, 2, 5 and 7, as the next cell shows. With G = 1 or G = H it would be all of them: half "
                "right is "
                "enough to pass a weak test.",
            ),
        },
    ),
    Prediction(
        "05.p2",
        {
            "a": (
                "a little worse",
                "Tempting: three of nine heads are still right. Read both answers in the next cells, then "
                "compare the losses.",
            ),
            "b": (
                "unreadable",
                "Recorded on a paragraph of 123 tokens: cross-entropy 3.76 becomes 12.2, and a uniform guess is "
                "10.8. Tiling "
                "only V gives 10.3. Read both answers in the next cells.",
            ),
        },
    ),
    Prediction(
        "05.p3",
        {
            "a": (
                "the 70B keeps 25 times more",
                "Tempting: it has 25 times the parameters. Parameters are not in the formula; the next cell "
                "computes both.",
            ),
            "b": (
                "both the same",
                "327,680 bytes per token, as the next cell computes: few KV heads pay for many layers.",
            ),
            "c": (
                "Phi-2 keeps more",
                "Tempting if you noticed that Phi-2 is MHA. Count its layers and its head_dim as well; the next "
                "cell computes "
                "both.",
            ),
        },
    ),
    Prediction(
        "05.p4",
        {
            "a": (
                "nearly equal",
                "Tempting: they read the same keys. But each asks with its own query; the next cells show how "
                "far their "
                "patterns lie apart.",
            ),
            "b": (
                "clearly different",
                "Recorded on a paragraph of 123 tokens: total variation distance 0.38 inside a group and 0.46 "
                "across groups "
                "(0 equal, 1 disjoint). Sharing a memory is not sharing an opinion.",
            ),
        },
    ),
)
