"""The predictions of lesson 06, with a reply to every letter."""

from gqa_lab.checks.answers import Prediction

PREDICTIONS = (
    Prediction(
        "06.p1",
        {
            "a": (
                "1.5 ms",
                "Tempting: a fourth of the cache, so a fourth of the time. But the weights come through the same wire; "
                "the next cell adds both up.",
            ),
            "b": (
                "2.9 ms",
                "Tempting: a half sounds careful. How many bytes of the step are cache at all? The next cell counts.",
            ),
            "c": (
                "4.8 ms",
                "1.2 times faster, as the next cell computes: at 8,192 tokens 15.0 GB of each step are weights, "
                "and the cache falls from 4.3 to 1.1 GB beside them.",
            ),
        },
    ),
    Prediction(
        "06.p2",
        {
            "a": (
                "Llama-3.1-70B",
                "Tempting: it has ten times the parameters and more layers. Parameters are not in the formula; "
                "the next cell computes both.",
            ),
            "b": (
                "Llama-2-7B",
                "512 KiB against 320, as the next cell computes: 32 layers with 32 KV heads outweigh 80 layers with 8.",
            ),
        },
    ),
    Prediction(
        "06.p3",
        {
            "a": (
                "of the weights only",
                "One read of the weights serves every sequence; every sequence owns its cache. The next cell counts "
                "both.",
            ),
            "b": (
                "of attention only",
                "Tempting: attention is what this course is about. But twice the sequences bring twice the cache; the "
                "next cell counts both.",
            ),
            "c": (
                "of both",
                "Tempting: a batch is known to make everything efficient. Whose cache does the second sequence read? "
                "The next cell counts both.",
            ),
        },
    ),
    Prediction(
        "06.p4",
        {
            "a": (
                "75%",
                "Tempting: K and V are a fourth. But nearly all FLOPs of a prompt are elsewhere; the next cell "
                "counts them.",
            ),
            "b": (
                "50%",
                "Tempting: attention feels like half of the model. Count the MLP, and remember that no query head "
                "left; the next cell counts.",
            ),
            "c": (
                "9%",
                "Only k_proj and v_proj shrink, as the next cell counts: 9.1% at 8,192 tokens, less with longer "
                "prompts. The first token is not what GQA buys.",
            ),
        },
    ),
)
