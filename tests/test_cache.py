import pytest
import torch

from gqa_lab.cache import KVCache


def new_cache(batch_size=2, n_kv_heads=3, max_seq_len=8, head_dim=4):
    return KVCache(batch_size, n_kv_heads, max_seq_len, head_dim, dtype=torch.float32, device="cpu")


def tokens(n, seed=0, batch_size=2):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, batch_size, 3, n, 4, generator=generator)


def test_append_returns_everything_that_was_appended_in_order():
    cache, (k, v) = new_cache(), tokens(6)
    for start, end in ((0, 3), (3, 4), (4, 6)):
        k_all, v_all = cache.append(k[:, :, start:end], v[:, :, start:end])
    assert torch.equal(k_all, k) and torch.equal(v_all, v)
    assert cache.lengths.tolist() == cache.host_lengths == [6, 6]


def test_append_returns_views_of_the_one_buffer():
    cache = new_cache()
    before = cache.k.data_ptr(), cache.v.data_ptr()
    k_all, v_all = cache.append(*tokens(3))
    assert (k_all.data_ptr(), v_all.data_ptr()) == before == (cache.k.data_ptr(), cache.v.data_ptr())


def test_nbytes_is_two_buffers_of_all_slots_and_used_bytes_are_those_of_the_tokens():
    cache = new_cache()
    assert cache.nbytes == 2 * 2 * 3 * 8 * 4 * 4
    cache.append(*tokens(3))
    assert cache.nbytes_used == cache.nbytes * 3 // 8


def test_an_overflow_raises_before_anything_is_written_and_the_cache_goes_on():
    cache, (k, v) = new_cache(), tokens(8)
    cache.append(k[:, :, :6], v[:, :, :6])
    buffers = cache.k.clone(), cache.v.clone()
    with pytest.raises(ValueError, match="3 more tokens after 6 make 9; this cache has max_seq_len = 8"):
        cache.append(*tokens(3, seed=1))
    assert torch.equal(cache.k, buffers[0]) and torch.equal(cache.v, buffers[1])
    assert cache.lengths.tolist() == cache.host_lengths == [6, 6]
    k_all, _ = cache.append(k[:, :, 6:], v[:, :, 6:])
    assert torch.equal(k_all, k)


def test_after_a_rewind_the_next_token_lands_behind_what_was_kept():
    cache, (k, v) = new_cache(), tokens(6)
    cache.append(k, v)
    cache.rewind(4)
    new_k, new_v = tokens(1, seed=1)
    k_all, v_all = cache.append(new_k, new_v)
    assert torch.equal(k_all, torch.cat([k[:, :, :4], new_k], 2))
    assert torch.equal(v_all, torch.cat([v[:, :, :4], new_v], 2))


@pytest.mark.parametrize("length", [-1, 4])
def test_a_rewind_to_tokens_that_are_not_there_is_refused(length):
    cache = new_cache()
    cache.append(*tokens(3))
    with pytest.raises(ValueError, match=rf"cannot rewind to {length}: the sequences hold \[3, 3\] tokens"):
        cache.rewind(length)


def test_rows_filled_one_by_one_become_a_ragged_batch_that_grows_together():
    cache, (k, v) = new_cache(), tokens(5)
    for b, n in ((0, 3), (1, 1)):
        cache.row(b).append(k[b : b + 1, :, :n], v[b : b + 1, :, :n])
    assert cache.lengths.tolist() == cache.host_lengths == [3, 1]
    k_all, v_all = cache.append(k[:, :, 3:5], v[:, :, 3:5])
    assert cache.lengths.tolist() == cache.host_lengths == [5, 3]
    assert torch.equal(k_all[0], k[0]) and torch.equal(v_all[0], v[0])
    expected = torch.cat([k[1, :, :1], k[1, :, 3:5]], 1)
    assert torch.equal(k_all[1, :, :3], expected)


def test_a_ragged_cache_overflows_by_its_longest_sequence():
    cache = new_cache()
    cache.row(0).append(*tokens(8, batch_size=1))
    with pytest.raises(ValueError, match="1 more tokens after 8 make 9"):
        cache.append(*tokens(1))
    assert cache.host_lengths == [8, 0]


@pytest.mark.parametrize(
    ("k", "v", "message"),
    [
        (torch.zeros(2, 9, 1, 4), torch.zeros(2, 9, 1, 4), r"k has shape \[2, 9, 1, 4\]; this cache takes \[batch 2, n_kv_heads 3"),
        (torch.zeros(2, 3, 1, 4), torch.zeros(2, 3, 2, 4), "k has 1 new tokens and v has 2"),
        (torch.zeros(2, 3, 1, 4).double(), torch.zeros(2, 3, 1, 4).double(), "k is torch.float64 on cpu; this cache is torch.float32"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(k, v, message, shapes_unchecked):
    with pytest.raises(ValueError, match=message):
        new_cache().append(k, v)


def test_a_cache_without_slots_is_refused():
    with pytest.raises(ValueError, match="max_seq_len must be a whole number of at least 1, got 0"):
        new_cache(max_seq_len=0)


def test_a_rewound_ragged_batch_is_even_again_on_host_and_device():
    cache, (k, v) = new_cache(), tokens(5)
    for b, n in ((0, 5), (1, 3)):
        cache.row(b).append(k[b : b + 1, :, :n], v[b : b + 1, :, :n])
    cache.rewind(2)
    assert cache.lengths.tolist() == cache.host_lengths == [2, 2]
    k_all, v_all = cache.append(k[:, :, 2:3], v[:, :, 2:3])
    assert torch.equal(k_all, k[:, :, :3]) and torch.equal(v_all, v[:, :, :3])


def test_v_of_another_dtype_is_refused_too(shapes_unchecked):
    with pytest.raises(ValueError, match="v is torch.float64 on cpu; this cache is torch.float32"):
        new_cache().append(torch.zeros(2, 3, 1, 4), torch.zeros(2, 3, 1, 4).double())


def test_a_cache_keeps_no_history_of_how_its_tokens_were_computed():
    cache, (k, v) = new_cache(), tokens(3)
    k_all, v_all = cache.append(k.requires_grad_(), v.requires_grad_())
    assert not (k_all.requires_grad or v_all.requires_grad or cache.k.requires_grad)


# ---- a window: the buffer is a ring -----------------------------------------------------------------------


def ring(window=4, max_seq_len=100):
    return KVCache(2, 3, max_seq_len, 4, dtype=torch.float32, device="cpu", window=window)


def test_a_ring_holds_as_many_bytes_as_its_window_and_no_more_than_its_sequence():
    assert ring().nbytes == 2 * (2 * 3 * 4 * 4) * 4
    assert ring(max_seq_len=3).nbytes == 2 * (2 * 3 * 3 * 4) * 4
    cache = ring()
    cache.append(*tokens(9))
    assert cache.nbytes_used == cache.nbytes and cache.host_lengths == [9, 9]


def test_one_token_into_a_full_ring_replaces_the_oldest_and_returns_views():
    cache, (k, v) = ring(), tokens(6)
    before = cache.k.data_ptr(), cache.v.data_ptr()
    for t in range(6):
        k_all, v_all = cache.append(k[:, :, t : t + 1], v[:, :, t : t + 1])
        assert (k_all.data_ptr(), v_all.data_ptr()) == before
    order = [4, 5, 2, 3]  # token n stands in slot n % 4
    assert torch.equal(k_all, k[:, :, order]) and torch.equal(v_all, v[:, :, order])


def test_several_tokens_past_the_end_come_back_behind_the_window_in_order():
    cache, (k, v) = ring(), tokens(9)
    cache.append(k[:, :, :6], v[:, :, :6])
    k_all, v_all = cache.append(k[:, :, 6:9], v[:, :, 6:9])
    assert torch.equal(k_all, k[:, :, 3:9]) and torch.equal(v_all, v[:, :, 3:9])
    assert torch.equal(cache.k, k[:, :, [8, 5, 6, 7]])


def test_a_prompt_longer_than_the_window_is_attended_as_it_came_and_its_end_is_kept():
    cache, (k, v) = ring(), tokens(9)
    k_all, v_all = cache.append(k, v)
    assert torch.equal(k_all, k) and torch.equal(v_all, v) and k_all.data_ptr() == k.data_ptr()
    assert torch.equal(cache.v, v[:, :, [8, 5, 6, 7]])


def test_rows_of_a_ring_need_lengths_only_until_all_are_full():
    cache, (k, v) = ring(), tokens(9)
    for b, n in ((0, 9), (1, 2)):
        cache.row(b).append(k[b : b + 1, :, :n], v[b : b + 1, :, :n])
    cache.append(k[:, :, :1], v[:, :, :1])
    assert cache.kv_lengths(1).tolist() == [4, 3]
    cache.append(k[:, :, 1:2], v[:, :, 1:2])
    assert cache.kv_lengths(1) is None and cache.host_lengths == [11, 4]


@pytest.mark.parametrize(
    ("n", "length", "fits"), [(4, 2, True), (5, 5, True), (5, 0, True), (5, 4, False), (5, 1, False)]
)
def test_a_ring_rewinds_until_it_has_replaced_a_token(n, length, fits):
    cache = ring()
    cache.append(*tokens(n))
    if fits:
        cache.rewind(length)
        assert cache.lengths.tolist() == cache.host_lengths == [length, length]
    else:
        with pytest.raises(ValueError, match=f"cannot rewind to {length}: after 5 tokens a window of 4 has replaced"):
            cache.rewind(length)
        assert cache.host_lengths == [n, n]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ring(window=0), "window must be a whole number of at least 1, got 0"),
        (lambda: ring(window=2.5), "window must be a whole number of at least 1, got 2.5"),
        (lambda: KVCache(1, 1, 2, 2, dtype=torch.int32, device="cpu"), "dtype must be a floating-point type such as torch.float32, got torch.int32"),
        (lambda: KVCache(1, 1, 2, 2, dtype="float32", device="cpu"), "dtype must be a floating-point type such as torch.float32, got 'float32'"),
        (lambda: KVCache(True, 1, 2, 2, dtype=torch.float32, device="cpu"), "batch_size must be a whole number"),
        (lambda: ring().row(2), "row 2 does not exist; this cache holds sequences 0 to 1"),
        (lambda: ring().row(-1), "row -1 does not exist"),
        (lambda: ring().rewind(1.0), "cannot rewind to 1.0"),
        (lambda: ring().append([1], [1]), "k is a list; append takes torch tensors"),
        (lambda: ring().append(*torch.zeros(2, 2, 3, 0, 4)), "k has no new tokens; append takes at least one"),
    ],
)  # fmt: skip
def test_a_request_that_no_cache_can_meet_is_refused(call, message, shapes_unchecked):
    with pytest.raises(ValueError, match=message):
        call()
