import pytest

from gqa_lab.config import ModelConfig, attention_kind, divisors

SIZES = dict(
    n_layers=2, d_model=24, n_heads=6, n_kv_heads=3, head_dim=4, d_ff=32, vocab_size=50, max_seq_len=16,
    rope_theta=1e4, norm_eps=1e-5,
)  # fmt: skip


@pytest.mark.parametrize(
    ("n_heads", "n_kv_heads", "kind", "group_size"),
    [(8, 8, "mha", 1), (8, 2, "gqa", 4), (6, 3, "gqa", 2), (8, 1, "mqa", 8), (1, 1, "mha", 1)],
)
def test_kind_and_group_size_follow_from_the_two_head_counts(n_heads, n_kv_heads, kind, group_size):
    config = ModelConfig(**SIZES | dict(n_heads=n_heads, n_kv_heads=n_kv_heads))
    assert (config.kind, config.group_size) == (kind, group_size)
    assert attention_kind(n_heads, n_kv_heads) == kind


def test_a_config_cannot_be_changed():
    with pytest.raises(AttributeError):
        ModelConfig(**SIZES).n_kv_heads = 1


def test_a_config_takes_keywords_only():
    with pytest.raises(TypeError):
        ModelConfig(*SIZES.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(n_kv_heads=4), r"n_heads \(6\) must be a multiple of n_kv_heads \(4\); try 1, 2, 3 or 6"),
        (dict(n_kv_heads=0), "n_kv_heads must be a whole number of at least 1, got 0"),
        (dict(n_heads=2, n_kv_heads=6), r"n_heads \(2\) must be a multiple of n_kv_heads \(6\); try 1 or 2"),
        (dict(head_dim=5), r"head_dim \(5\) must be even"),
        (dict(n_layers=0), "n_layers must be a whole number"),
        (dict(rope_theta=0.0), "rope_theta must be a number greater than 0 and finite, got 0.0"),
        (dict(rope_theta=float("inf")), "rope_theta must be a number greater than 0 and finite, got inf"),
        (dict(norm_eps=float("nan")), "norm_eps must be a number greater than 0 and finite, got nan"),
        (dict(norm_eps="1e-5"), "norm_eps must be a number greater than 0 and finite, got '1e-5'"),
        (dict(qk_norm=1), "qk_norm must be True or False, got 1"),
        (dict(sliding_window=2.5), "sliding_window must be a whole number of at least 1, got 2.5"),
        (dict(rope_scaling=(1.0, 0.0)), "every number of rope_scaling must be greater than 0 and finite, got 0.0"),
        (dict(n_heads=2**64, n_kv_heads=3 * 2**62), f"; try {2**62}$"),
        (dict(sliding_window=0), "sliding_window must be a whole number of at least 1, got 0"),
        (
            dict(rope_scaling=(1.0,)),
            "rope_scaling has 1 numbers; it needs one per frequency, head_dim // 2 = 2",
        ),
    ],
)
def test_an_impossible_size_is_refused_with_the_remedy(change, message, shapes_unchecked):
    with pytest.raises(ValueError, match=message):
        ModelConfig(**SIZES | change)


def test_divisors_are_all_and_only_the_divisors():
    for n in range(1, 65):
        assert divisors(n) == [d for d in range(1, n + 1) if n // d * d == n]
