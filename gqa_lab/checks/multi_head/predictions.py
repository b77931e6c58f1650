"""The predictions of lesson 02, with a reply to every letter."""

from gqa_lab.checks.answers import Prediction

PREDICTIONS = (
    Prediction(
        "02.p1",
        {
            "a": (
                "12 times",
                "Tempting: twelve heads, twelve times the work. But each head got narrower. The next cell counts both.",
            ),
            "b": (
                "the same",
                "2,359,296 both, as the next cell counts. What grows 12 times is the number of attention weights, "
                "H · T · S.",
            ),
            "c": (
                "a twelfth",
                "Tempting: a head of 64 is a twelfth of a head of 768. There are twelve of them; the next cell counts.",
            ),
        },
    ),
    Prediction(
        "02.p2",
        {
            "a": (
                "changes",
                "Tempting: the numbers do stand in other places. Follow head 4 in the next cell: does anybody ask "
                "where it stood?",
            ),
            "b": (
                "stays the same",
                "The same up to rounding, as the next cell shows: the output is a sum over heads, and a sum has no "
                "order.",
            ),
        },
    ),
    Prediction(
        "02.p3",
        {
            "a": (
                "fails",
                "Tempting if you expect an error. The sizes multiply to the same number, so a reshape never "
                "complains; run the next cell.",
            ),
            "b": (
                "is right",
                "Right, as the next cell shows: one token has nothing to be mixed with. That is why this mistake "
                "survives every test with one token.",
            ),
            "c": (
                "has the right shape and wrong numbers",
                "Tempting: that is what happens with two tokens and more. The next cell prints both cases.",
            ),
        },
    ),
)
