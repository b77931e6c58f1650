"""One attention for each cause, two that have several, and right ones that have none; clocks are handed in."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from gqa_lab.attention import expanded_attention, grouped_attention, sdpa_attention
from gqa_lab.cache import KVCache
from gqa_lab.config import ModelConfig
from gqa_lab.contract import visible
from gqa_lab.costs import kv_cache_bytes, weight_bytes_read
from gqa_lab.diagnosis import diagnose, why_not_faster
from gqa_lab.evidence import Evidence, of_attention
from gqa_lab.generate import decode_step, prefill
from gqa_lab.model import Transformer
from gqa_lab.steps import fixed_shapes

SIZES = dict(batch_size=2, n_heads=12, n_kv_heads=3, kv_len=70, head_dim=16, device="cpu")
KV = 2 * 2 * 3 * 70 * 16 * 4  # bytes of K and V of these sizes
TORCH = tuple(int(n) for n in torch.__version__.split(".")[:2])


def causes(attend, **changes) -> list[str]:
    return why_not_faster(attend, **SIZES | changes).causes


def softmax_of(q, k, scores, v):
    return (scores * q.shape[-1] ** -0.5).softmax(-1) @ v


def as_mha(q, k, v):
    return softmax_of(q, k, q @ k.mT, v)


# ---- attentions that waste something ---------------------------------------------------------------


def repeated(q, k, v):
    return as_mha(q, *(x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v)))


def broadcast(q, k, v):
    rows = q.unflatten(1, (k.shape[1], -1))
    return as_mha(rows, k[:, :, None], v[:, :, None]).flatten(1, 2)


def chosen(q, k, v):
    heads = torch.arange(q.shape[1]) // (q.shape[1] // k.shape[1])
    return as_mha(q, k[:, heads], v[:, heads])


def stacked(q, k, v):
    return as_mha(q, *(torch.stack([x] * (q.shape[1] // x.shape[1]), dim=2).flatten(1, 2) for x in (k, v)))


def catted_copies(q, k, v):
    return as_mha(q, *(torch.cat([x] * (q.shape[1] // x.shape[1]), dim=1) for x in (k, v)))


def keys_only(q, k, v):
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    weights = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)
    return (weights.unflatten(1, (v.shape[1], -1)).squeeze(3) @ v).flatten(1, 2)[:, :, None]


def multiplied(q, k, v):
    rows = q.unflatten(1, (k.shape[1], -1))
    weights = ((rows * k[:, :, None]).sum(-1) * q.shape[-1] ** -0.5).softmax(-1)  # B G R S
    return (weights @ v).flatten(1, 2)[:, :, None]


def with_a_sink(q, k, v):
    k, v = (torch.cat([torch.zeros_like(x[:, :, :1]), x], dim=2) for x in (k, v))
    return sdpa_attention(q, k, v)


def contiguous(q, k, v):
    return grouped_attention(q, k.contiguous(), v.contiguous())


def in_double(q, k, v):
    return grouped_attention(q.double(), k.double(), v.double()).float()


def scaled_keys(q, k, v):
    return grouped_attention(q * q.shape[-1] ** 0.5, k * q.shape[-1] ** -0.5, v + 0)


def head_by_head(q, k, v):
    r = q.shape[1] // k.shape[1]
    return torch.stack([as_mha(q[:, h], k[:, h // r], v[:, h // r]) for h in range(q.shape[1])], dim=1)


def enable_gqa(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)


def masked(q, k, v, *, lengths=None, window=None):
    seen = visible(q.shape[2], k.shape[2], lengths=lengths, window=window)
    rows = q.unflatten(1, (k.shape[1], -1)).squeeze(3)
    weights = (rows @ k.mT * q.shape[-1] ** -0.5).masked_fill(~seen, -torch.inf).softmax(-1)
    return (weights @ v).flatten(1, 2)[:, :, None]


def math(q, k, v):
    with sdpa_kernel(SDPBackend.MATH):
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)


def silent_math(q, k, v):
    return F.scaled_dot_product_attention(q, k, v)  # one KV head broadcasts without a flag


ONE_CAUSE = [
    ("prefill", grouped_attention, {"q_len": 7}),
    ("prefill", sdpa_attention, {"q_len": 70}),
    ("expanded", repeated, {}),
    ("expanded", repeated, {"n_kv_heads": 6}),
    ("expanded", repeated, {"n_kv_heads": 1, "dtype": torch.bfloat16}),
    ("expanded", expanded_attention, {}),
    ("expanded", broadcast, {}),
    ("expanded", chosen, {}),
    ("expanded", stacked, {}),
    ("expanded", catted_copies, {}),
    ("expanded", keys_only, {}),
    ("expanded", multiplied, {}),
    ("concatenated", with_a_sink, {}),
    ("copied", contiguous, {}),
    ("copied", in_double, {}),
    ("copied", scaled_keys, {}),
    ("read again", head_by_head, {}),
    ("read again", enable_gqa, {}),
    ("empty slots read", masked, {"n_slots": 256}),
    ("empty slots read", masked, {"window": 9}),
]


@pytest.mark.parametrize("cause, attend, changes", ONE_CAUSE, ids=lambda x: getattr(x, "__name__", None) or str(x))
def test_each_cause_is_named_alone(cause, attend, changes):
    assert causes(attend, **changes) == [cause]


@pytest.mark.parametrize("attend", [grouped_attention, sdpa_attention])
@pytest.mark.parametrize(
    "changes",
    [{}, {"n_kv_heads": 12}, {"n_kv_heads": 1}, {"n_slots": 256}, {"window": 9}, {"n_slots": 256, "window": 9},
     {"dtype": torch.bfloat16}, {"batch_size": 1, "kv_len": 4000}],
    ids=str,
)  # fmt: skip
def test_the_packages_own_waste_nothing_in_decoding(attend, changes):
    assert causes(attend, **changes) == ["nothing wasted"]


def test_attention_that_is_multi_head_has_nothing_to_expand():
    assert causes(as_mha, n_kv_heads=12) == ["nothing wasted"]
    assert causes(repeated, n_kv_heads=12) in (["nothing wasted"], ["copied"])  # a repeat of one may copy


def test_several_causes_come_in_the_order_in_which_to_mend_them():
    assert causes(math) == ["MATH fallback", "expanded", "copied"]
    if TORCH < (2, 14):
        assert causes(silent_math, n_kv_heads=1) == ["MATH fallback", "expanded", "copied"]
        assert causes(silent_math, n_kv_heads=1, batch_size=1) == ["MATH fallback", "copied"]
    else:  # no copies any more, but each query head reads the one KV head
        assert causes(silent_math, n_kv_heads=1) == causes(silent_math, n_kv_heads=1, batch_size=1) == ["read again"]
    assert causes(lambda q, k, v: repeated(q, k.contiguous(), v.contiguous())) == ["expanded", "copied"]
    assert causes(repeated, q_len=7)[:2] == ["prefill", "expanded"]


def test_the_evidence_is_exact():
    seen = why_not_faster(repeated, **SIZES).evidence
    assert (seen.kv_bytes, seen.kv_bytes_read, seen.kv_bytes_touched) == (KV, KV, KV)
    assert (seen.expanded_bytes, seen.copied_bytes, seen.appended_bytes) == (4 * KV, 0, 0)
    seen = why_not_faster(head_by_head, **SIZES).evidence
    assert (seen.kv_bytes_read, seen.kv_bytes_touched) == (4 * KV, KV)
    seen = why_not_faster(masked, **SIZES, n_slots=256).evidence
    assert (seen.kv_bytes, seen.kv_bytes_touched) == (KV, KV * 256 // 70)
    seen = why_not_faster(masked, **SIZES, window=9).evidence
    assert (seen.kv_bytes, seen.kv_bytes_touched) == (KV * 9 // 70, KV)


def test_ragged_lengths_count_each_sequence_by_its_own():
    q, k = torch.randn(2, 6, 1, 8), torch.randn(2, 3, 20, 8)
    lengths = torch.tensor([20, 5], dtype=torch.int32)
    seen = of_attention(masked, q, k, k.clone(), lengths=lengths)
    assert (seen.kv_bytes, seen.kv_bytes_touched) == (2 * 25 * 3 * 8 * 4, 2 * 40 * 3 * 8 * 4)


def test_the_same_call_gives_the_same_text():
    assert repr(why_not_faster(repeated, **SIZES)) == repr(why_not_faster(repeated, **SIZES))


def test_the_text_says_cause_evidence_and_remedy():
    text = repr(why_not_faster(repeated, **SIZES))
    assert text.splitlines()[0] == "expanded"
    assert "because  copies 4 times as large as K and V were written, and read again" in text
    assert "so       leave the keys as they are and group the queries" in text
    assert f"counted: K and V {KV:,} bytes; read " in text


def test_what_cannot_be_counted_is_said_and_not_guessed():
    @torch.compile(backend="eager")
    def compiled(q, k, v):
        return as_mha(q, k, v)

    verdict = why_not_faster(compiled, **SIZES | {"n_kv_heads": 12})
    assert verdict.cause == "not counted" and "compiled code" in repr(verdict)
    assert verdict.evidence.bytes_read is None
    model = make_model()
    caches, sharper = filled(model, model.new_caches(1, 500)), torch.compile(lambda x: 2 * x, backend="eager")

    def step(model, ids, caches, *, attend):
        return sharper(decode_step(model, ids, caches, attend=attend))

    assert why_not_faster(model, caches, step=step).causes == ["not counted"]


def test_an_error_in_the_students_code_is_the_students():
    with pytest.raises(RuntimeError, match="must match"):
        why_not_faster(lambda q, k, v: q @ k.mT, **SIZES)


# ---- time ------------------------------------------------------------------------------------------


def clock(seconds):
    return lambda call: (call(), seconds)[1]


@pytest.mark.parametrize(
    "share, cause", [(1.0, "at the roofline"), (0.71, "at the roofline"), (0.69, "nothing wasted")]
)
def test_time_is_held_against_the_bytes_that_have_to_be_read(share, cause):
    verdict = why_not_faster(grouped_attention, **SIZES, read_bytes_per_s=1e6, wall_s=clock(KV / 1e6 / share))
    assert verdict.causes == [cause]
    assert f"{share:.0%} of the read bandwidth" in repr(verdict)


def test_the_fastest_of_five_calls_counts_after_one_that_warms_up():
    times, calls = iter([5.0, 3.0, 4.0, 9.0, 3.5]), []
    verdict = why_not_faster(
        lambda q, k, v: calls.append(1) or q, **SIZES, wall_s=lambda call: (call(), next(times))[1]
    )
    assert verdict.evidence.wall_s == 3.0 and len(calls) == 1 + 1 + 5  # counted, warm, timed


@pytest.mark.parametrize("busy, bound", [(0.049, True), (0.051, False)])
def test_a_gpu_that_waits_most_of_the_time_is_launch_bound(busy, bound):
    verdict = why_not_faster(grouped_attention, **SIZES, wall_s=clock(0.1), device_s=clock(busy))
    assert ("launch-bound" in verdict.causes) == bound
    assert not bound or "works 49 ms of 100 ms" in repr(verdict)


def test_on_a_cpu_nothing_is_timed_unless_asked_and_nothing_said_about_launches():
    seen = why_not_faster(grouped_attention, **SIZES).evidence
    assert seen.wall_s is seen.device_s is None


# ---- models ----------------------------------------------------------------------------------------


def make_model(vocab_size=50) -> Transformer:
    torch.manual_seed(1)
    sizes = dict(n_layers=2, d_model=24, n_heads=6, n_kv_heads=3, head_dim=8, d_ff=40, max_seq_len=2048)
    return Transformer(ModelConfig(**sizes, vocab_size=vocab_size, rope_theta=1e4, norm_eps=1e-5))


class Concatenating(KVCache):
    """What many a tutorial keeps: a tensor that grows by `cat`, here with `copies` of each KV head."""

    copies = 1

    def append(self, k, v):
        n = self.host_lengths[0]
        k, v = (x.repeat_interleave(self.copies, dim=1) for x in (k, v))
        self.k, self.v = (torch.cat([x[:, :, :n], new], dim=2) for x, new in ((self.k, k), (self.v, v)))
        self.count_on_host(k.shape[2])
        return self.k, self.v


class Expanding(Concatenating):
    copies = 2


def grown(kind, n=400):
    model = make_model()
    caches = [kind(1, 3 * kind.copies, 1, 8, dtype=model.dtype, device="cpu") for _ in model.layers]
    return model, filled(model, caches, n)


def filled(model, caches, n=400):
    prefill(model, torch.randint(0, 50, (1, n)), caches)
    return caches


def test_a_step_of_a_small_model_with_a_long_past_wastes_nothing():
    model = make_model()
    verdict = why_not_faster(model, filled(model, model.new_caches(1, 500)))
    assert verdict.causes == ["nothing wasted"]
    config = model.config
    assert verdict.evidence.weight_bytes == weight_bytes_read(config, bytes_per_element=4)
    assert verdict.evidence.kv_bytes == kv_cache_bytes(config, batch_size=1, kv_len=402, bytes_per_element=4)


def test_weights_that_outweigh_the_cache_are_told_with_their_share():
    model = make_model()
    verdict = why_not_faster(model, filled(model, model.new_caches(1, 50), n=20))
    assert verdict.causes == ["weights outweigh the cache"]
    kv, weights = verdict.evidence.kv_bytes, verdict.evidence.weight_bytes
    assert f"{kv / (kv + weights):.1%} of what a step has to read is cache" in repr(verdict)


def test_a_table_that_is_looked_up_in_is_no_weight_that_is_read():
    model = make_model(vocab_size=5000)
    [table] = [p.nbytes for name, p in model.named_parameters() if name.startswith("embed")]
    total = sum(p.nbytes for p in model.parameters())
    verdict = why_not_faster(model, filled(model, model.new_caches(1, 50), n=20))
    assert verdict.evidence.weight_bytes == total - table


def test_a_cache_that_concatenates_is_named_and_what_else_holds():
    model, caches = grown(Concatenating)
    verdict = why_not_faster(model, caches)
    assert verdict.causes == ["concatenated"]
    assert verdict.evidence.appended_bytes == verdict.evidence.kv_bytes
    assert why_not_faster(model, caches, attend=expanded_attention).causes == ["expanded", "concatenated"]
    model, few = grown(Concatenating, n=20)
    assert why_not_faster(model, few, attend=expanded_attention).causes == [
        "expanded", "concatenated", "weights outweigh the cache"]  # fmt: skip


def test_a_cache_that_keeps_expanded_keys_is_named():
    verdict = why_not_faster(*grown(Expanding))
    assert verdict.causes == ["expanded", "concatenated"]
    assert "the cache holds 2 copies of each KV head" in repr(verdict)


def test_a_bucket_of_fixed_shape_is_read_whole_by_a_mask():
    model = make_model()
    caches = filled(model, model.new_caches(1, 2000), n=520)
    verdict = why_not_faster(model, caches, attend=masked, step=fixed_shapes(smallest=1024))
    assert verdict.causes == ["empty slots read"]
    assert verdict.evidence.kv_bytes_touched == 1024 * 2 * 2 * 3 * 8 * 4
    assert caches[0].host_lengths == [522]  # two steps
    assert why_not_faster(model, caches, step=fixed_shapes(smallest=1024)).causes == ["nothing wasted"]


def test_a_model_is_timed_with_its_weights():
    model = make_model()
    caches = filled(model, model.new_caches(1, 500))
    verdict = why_not_faster(model, caches, read_bytes_per_s=1e9, wall_s=clock(1e-3))
    seen = verdict.evidence
    share = (seen.kv_bytes + seen.weight_bytes) / 1e-3 / 1e9
    assert f"{share:.0%} of the read bandwidth" in repr(verdict)


def test_a_model_without_caches_is_refused():
    with pytest.raises(ValueError, match="caches must be those of the model, filled"):
        why_not_faster(make_model())


# ---- the decision alone ----------------------------------------------------------------------------

CLEAN = Evidence(q_len=1, kv_bytes=1000, kv_bytes_touched=1000, kv_bytes_read=1000)


@pytest.mark.parametrize(
    "changes, cause",
    [
        ({}, "nothing wasted"),
        ({"q_len": 2}, "prefill"),
        ({"backends": ("FLASH_ATTENTION", "MATH")}, "MATH fallback"),
        ({"expanded_bytes": 500}, "expanded"),
        ({"copies_held": 2}, "expanded"),
        ({"appended_bytes": 500}, "concatenated"),
        ({"copied_bytes": 500}, "copied"),
        ({"kv_bytes_read": 1500}, "read again"),
        ({"rereads": True}, "read again"),
        ({"kv_bytes_touched": 1100}, "empty slots read"),
        ({"wall_s": 1.0, "device_s": 0.49}, "launch-bound"),
        ({"weight_bytes": 1001}, "weights outweigh the cache"),
        ({"unseen": "TrafficMeter cannot see"}, "not counted"),
        ({"expanded_bytes": 499, "appended_bytes": 499, "copied_bytes": 499}, "nothing wasted"),
        ({"kv_bytes_read": 1499, "kv_bytes_touched": 1099, "weight_bytes": 1000}, "nothing wasted"),
    ],
)
def test_each_sign_leads_to_its_cause(changes, cause):
    assert diagnose(replace(CLEAN, **changes)).causes == [cause]


def test_every_cause_has_numbers_and_a_remedy():
    worst = Evidence(
        q_len=2, kv_bytes=10, kv_bytes_touched=20, kv_bytes_read=90, expanded_bytes=40, appended_bytes=10, copied_bytes=9,
        backends=("MATH",), wall_s=1.0, device_s=0.1, weight_bytes=99,
    )  # fmt: skip
    verdict = diagnose(worst)
    assert verdict.causes == [
        "prefill", "MATH fallback", "expanded", "concatenated", "copied", "read again", "empty slots read",
        "launch-bound", "weights outweigh the cache"]  # fmt: skip
    assert all(any(c.isdigit() for c in f.because) and len(f.remedy) > 20 for f in verdict.findings)
