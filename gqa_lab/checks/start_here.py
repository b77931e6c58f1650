"""Lesson 00: one prediction, to see how they work."""

from gqa_lab.checks.answers import Prediction

TITLE = "00 start_here"
EXERCISES = ()
PREDICTIONS = (
    Prediction(
        "00.p1",
        {
            "a": ("Llama 3.1 70B, about 18 times more", "Tempting: it has 18 times the parameters. "
                                                        "Parameters are not "
                  "in the formula; the next cell computes both."),
            "b": ("Llama 3.1 70B, a little more", "Tempting: it has more layers. Count KV heads as well; "
                                                  "the next cell "
                  "computes both."),
            "c": ("Phi-3-mini", "393,216 bytes per token against 327,680, as the next cell computes: it "
                                "has fewer "
                  "layers, but every one of its 32 heads keeps keys and values of its own."),
        },
    ),
)  # fmt: skip
