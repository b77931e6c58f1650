import numpy as np
import pytest
import torch
import torch.nn.functional as F

from gqa_lab import reference


def inputs(n_heads, n_kv_heads, q_len, kv_len, batch_size=2, head_dim=4):
    rng = np.random.default_rng(0)
    kv_shape = (batch_size, n_kv_heads, kv_len, head_dim)
    return (
        rng.standard_normal((batch_size, n_heads, q_len, head_dim)),
        rng.standard_normal(kv_shape),
        rng.standard_normal(kv_shape),
    )


@pytest.mark.parametrize(("n_heads", "n_kv_heads"), [(8, 8), (8, 2), (8, 1), (6, 3)])
@pytest.mark.parametrize(("q_len", "kv_len"), [(5, 5), (1, 7), (3, 7)])
def test_the_reference_equals_torch_with_a_bottom_right_mask(n_heads, n_kv_heads, q_len, kv_len):
    q, k, v = inputs(n_heads, n_kv_heads, q_len, kv_len)
    mask = torch.ones(q_len, kv_len, dtype=torch.bool).tril(kv_len - q_len)
    expected = F.scaled_dot_product_attention(
        *map(torch.from_numpy, (q, k, v)), attn_mask=mask, enable_gqa=n_heads != n_kv_heads
    )
    np.testing.assert_allclose(reference.attention(q, k, v), expected.numpy(), atol=1e-10)


def test_weights_are_rows_that_sum_to_one_and_hide_the_future():
    q, k, _ = inputs(6, 3, 3, 7)
    weights = reference.attention_weights(q, k)
    np.testing.assert_allclose(weights.sum(-1), 1)
    assert (weights[..., 0, 5:] == 0).all() and (weights[..., 0, :5] > 0).all()


def test_lengths_and_window_select_the_same_keys_as_slicing_does():
    q, k, v = inputs(6, 3, 2, 9)
    out = reference.attention(q, k, v, lengths=np.array([9, 5]), window=3)
    for b, length in enumerate((9, 5)):
        for t in range(2):
            end = length - 2 + t
            one = np.s_[b : b + 1, :, t : t + 1], np.s_[b : b + 1, :, end - 2 : end + 1]
            expected = reference.attention(q[one[0]], k[one[1]], v[one[1]])
            np.testing.assert_allclose(out[b : b + 1, :, t : t + 1], expected)


def test_nothing_beyond_the_lengths_is_read():
    q, k, v = inputs(6, 3, 2, 9)
    k[1, :, 5:], v[1, :, 5:] = np.nan, np.nan
    assert np.isfinite(reference.attention(q, k, v, lengths=np.array([9, 5]))).all()


def test_the_result_is_float64_whatever_comes_in():
    q, k, v = (x.astype(np.float32) for x in inputs(6, 3, 2, 9))
    assert reference.attention(q, k, v).dtype == np.float64
