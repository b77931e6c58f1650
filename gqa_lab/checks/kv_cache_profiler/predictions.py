"""The predictions of lesson 10, with a reply to every letter."""

from gqa_lab.checks.answers import Prediction

PREDICTIONS = (
    Prediction(
        "10.p1",
        {
            "a": (
                "42%",
                "Tempting: 1,250 of 3,000 tokens, had every buffer been as long as the longest chat. These buffers are "
                "longer; the next cell fills them.",
            ),
            "b": (
                "12%",
                "Tempting: the longest chat in its own buffer, 1,000 of 8,192. The other two have as many slots; the "
                "next cell fills them.",
            ),
            "c": (
                "5%",
                "1,250 of 24,576 slots hold a token, as the next cell counts. The rest was allocated because nobody "
                "knows beforehand how long a chat will be.",
            ),
        },
    ),
    Prediction(
        "10.p2",
        {
            "a": (
                "100,000",
                "Tempting: so long is the chat in the end. But turn 20 sends turns 1 to 19 once more; the next cell "
                "adds up.",
            ),
            "b": (
                "1,050,000",
                "5,000 · (1 + 2 + … + 20), as the next cell adds up, unless the cache of the earlier turns is kept. "
                "The number of KV heads changes neither sum.",
            ),
        },
    ),
    Prediction(
        "10.p3",
        {
            "a": (
                "reading again is faster",
                "Tempting: 13 GB are much for a network. Reading them again is arithmetic over 100,000 tokens; the "
                "next cell compares both.",
            ),
            "b": (
                "sending is faster, and GQA makes both four times cheaper",
                "Tempting: the cache is four times smaller, after all. What is the work of reading: bytes or "
                "arithmetic? The next cell compares both.",
            ),
            "c": (
                "sending is faster, and GQA makes only the sending cheaper",
                "0.26 s against about 8, as the next cell computes. The cache is four times smaller than MHA's, the "
                "arithmetic of reading 4% less.",
            ),
        },
    ),
    Prediction(
        "10.p4",
        {
            "a": (
                "to about a third",
                "Tempting: the cache becomes three times smaller. Of the step's 915 MB, how many are cache? The next "
                "cell measures.",
            ),
            "b": (
                "to about two thirds, as the line says",
                "Tempting: 252 MB less, at the line's price. Does a byte of cache cost as much for nine query heads as "
                "for three? The next cell measures.",
            ),
            "c": (
                "to about three quarters",
                "105 ms become 79, where the line says 68: it was fitted with three query heads per KV head, and now "
                "nine use every byte. Fewer bytes, the same arithmetic.",
            ),
        },
    ),
)
