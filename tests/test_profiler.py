"""A profile under a clock of our own: every number is known before it is measured."""

import functools
import json
import weakref
from types import SimpleNamespace

import pytest
import torch

from gqa_lab.attention import expanded_attention, grouped_attention, sdpa_attention
from gqa_lab.cache import KVCache
from gqa_lab.config import ModelConfig
from gqa_lab.costs import SHAPES, kv_cache_bytes, n_parameters
from gqa_lab.generate import decode_step
from gqa_lab.model import Transformer
from gqa_lab.profiler import Ceilings, DecodeProfile, limits, measure_ceilings, profile_decode
from gqa_lab.profiler.fit import Fit
from gqa_lab.profiler.limits import allocatable_bytes, cache_budget, what_fits, what_if
from gqa_lab.profiler.meter import CacheMeter
from gqa_lab.profiler.passes import WARM_UP, by_region
from gqa_lab.profiler.regions import Event, Place, Probe
from gqa_lab.recorded import recorded
from gqa_lab.steps import fixed_shapes

CPU = torch.device("cpu")
SIZES = dict(n_layers=2, d_model=24, n_heads=6, n_kv_heads=3, head_dim=4, d_ff=40, vocab_size=50, max_seq_len=256)
CEILINGS = Ceilings(read_bytes_per_s=1e9, flops_per_s=1e12)
TICK = 2.0**-10  # seconds: sums of them are exact


class Clock:
    """Tells the time that a test has set, and counts how often it was asked."""

    def __init__(self):
        self.now, self.n_readings = 100.0, 0

    def __call__(self) -> float:
        self.n_readings += 1
        return self.now


def make_model(dtype=torch.float32, **changes) -> Transformer:
    torch.manual_seed(1)
    return Transformer(ModelConfig(**(SIZES | changes), rope_theta=1e4, norm_eps=1e-5)).to(dtype).requires_grad_(False)


def profile(model, **asked) -> DecodeProfile:
    """A profile of next to nothing; without a clock of the test's own every step takes a second."""
    quick = dict(kv_len=20, new_tokens=1, prefills=0, sweep=[], ceilings=CEILINGS, memory=10**9)
    if "clock" not in asked:
        clock = Clock()
        step = asked.get("step") or decode_step
        quick["clock"] = clock
        asked["step"] = functools.wraps(step)(lasting(clock, 1.0, step))
    return profile_decode(model, **(quick | asked))


@pytest.fixture(autouse=True)
def _here(monkeypatch):
    """What a machine says of itself takes longer to ask than all the rest."""
    said = dict(device="a machine", versions="torch 2", commit="abc", date="2026-01-02")
    monkeypatch.setattr("gqa_lab.profiler.measure.environment", lambda: said)


def lasting(clock: Clock, seconds, function):
    """The function, which now takes so many seconds of that clock: a number, or a list for one call after the other."""
    told = iter(seconds) if isinstance(seconds, list) else None

    def slow(*args, **kwargs):
        result = function(*args, **kwargs)
        clock.now += seconds if told is None else next(told)
        return result

    return slow


# ---- bytes ----------------------------------------------------------------------------------------------


def test_the_bytes_of_a_ragged_batch_are_those_counted_by_hand():
    found = profile(make_model(), kv_len=[100, 20, 5], max_seq_len=200)
    per_token = 2 * 3 * 4 * 4  # K and V, G, D, bytes
    for row in found.layers:
        assert row.predicted_bytes == row.allocated_bytes == 3 * 200 * per_token
        assert row.used_bytes == row.read_bytes == (100 + 20 + 5) * per_token
    assert len(found.layers) == 2
    assert found.allocated_bytes == found.predicted_bytes == 2 * 57_600
    assert found.used_bytes == found.read_bytes == 2 * 12_000
    assert [(q.n_tokens, q.n_slots) for q in found.sequences] == [(100, 200), (20, 200), (5, 200)]
    assert [q.used_bytes for q in found.sequences] == [2 * n * per_token for n in (100, 20, 5)]
    assert [q.wasted_bytes for q in found.sequences] == [2 * (200 - n) * per_token for n in (100, 20, 5)]
    assert found.occupancy == 125 / 600
    assert found.copies == [] and found.flags == ["Only 20.8% of the cache is in use."]


@pytest.mark.parametrize(
    ("n_heads", "n_kv_heads", "dtype"),
    [(6, 6, torch.float32), (6, 3, torch.float16), (6, 1, torch.float64), (8, 2, torch.bfloat16)],
)
def test_predicted_bytes_equal_allocated_bytes_exactly(n_heads, n_kv_heads, dtype):
    model = make_model(dtype, n_heads=n_heads, n_kv_heads=n_kv_heads, n_layers=3)
    found = profile(model, batch_size=2, max_seq_len=37)
    by_costs = kv_cache_bytes(model.config, batch_size=2, kv_len=37, bytes_per_element=dtype.itemsize)
    held = sum(cache.nbytes for cache in model.new_caches(2, 37))
    assert found.predicted_bytes == found.allocated_bytes == by_costs == held
    assert found.used_bytes == found.read_bytes == by_costs * 20 // 37
    assert found.weights_predicted_bytes == found.weights_held_bytes == n_parameters(model.config) * dtype.itemsize


def test_a_window_is_a_ring_and_its_bytes_end_where_it_is_full():
    found = profile(make_model(sliding_window=8), kv_len=[20, 5])
    assert [(q.n_tokens, q.n_slots) for q in found.sequences] == [(8, 8), (5, 8)]
    assert found.predicted_bytes == found.allocated_bytes == 2 * 2 * 8 * 96
    assert found.used_bytes == found.read_bytes == 2 * (8 + 5) * 96
    assert found.cache_read_bytes == 2 * (8 + 8) * 96  # at 23 and at 8 tokens, after the warm-up


@pytest.mark.parametrize("kv_len", [20, [20, 20], [9, 20, 3]], ids=str)
@pytest.mark.parametrize(("n_kv_heads", "dtype"), [(3, torch.float32), (1, torch.bfloat16), (6, torch.float16)])
@pytest.mark.parametrize("attend", [grouped_attention, sdpa_attention])
def test_an_attention_that_reads_keys_where_they_lie_copies_nothing(attend, n_kv_heads, dtype, kv_len):
    model = make_model(dtype, n_kv_heads=n_kv_heads, n_layers=1)
    found = profile(model, kv_len=kv_len, max_seq_len=40, attend=attend)
    assert found.copies == [] and found.read_bytes == found.used_bytes


@pytest.mark.parametrize(("n_kv_heads", "group_size"), [(3, 2), (2, 3), (1, 6)])
def test_expanded_keys_are_found_and_read_once_and_then_once_per_query_head(n_kv_heads, group_size):
    found = profile(make_model(n_kv_heads=n_kv_heads), batch_size=2, attend=expanded_attention)
    assert found.read_bytes == (1 + group_size) * found.used_bytes
    assert {(copy.kind, copy.layer) for copy in found.copies} == {("expanded", 0), ("expanded", 1)}
    assert sum(copy.written_bytes for copy in found.copies) == group_size * found.used_bytes
    mega = f"{group_size * found.used_bytes / 1e6:.3g} MB in every step, in 2 layers."
    assert found.flags == [f"Keys and values are expanded: the operation clone writes {mega}"]


def concatenating(q, k, v, **rest):
    """One token longer and shorter again, as a cache without room has it."""
    k, v = (torch.cat([x[:, :, :-1], x[:, :, -1:]], dim=2) for x in (k, v))
    return grouped_attention(q, k, v, **rest)


def contiguous(q, k, v, **rest):
    return grouped_attention(q, k.contiguous(), v.contiguous(), **rest)


def in_double(q, k, v, **rest):
    return grouped_attention(q.double(), k.double(), v.double(), **rest).to(q.dtype)


def in_half(q, k, v, **rest):
    return grouped_attention(q.half(), k.half(), v.half(), **rest).to(q.dtype)


def scaled_keys(q, k, v, **rest):
    return grouped_attention(q, k * 1.0, v, **rest)


@pytest.mark.parametrize(
    ("attend", "kind", "operation", "reads"),
    [
        (concatenating, "concatenated", "cat", 2),
        (contiguous, "copied", "clone", 2),
        (in_double, "expanded", "_to_copy", 3),  # twice the bytes are written, and read
        (in_half, "copied", "_to_copy", 1.5),
        (scaled_keys, "copied", "mul", 1.5),  # the keys alone
    ],
)
def test_every_copy_of_the_keys_is_found_and_counted_where_it_is_read(attend, kind, operation, reads):
    found = profile(make_model(), batch_size=2, attend=attend, max_seq_len=30)
    assert {(copy.kind, copy.operation) for copy in found.copies} == {(kind, operation)}
    assert found.read_bytes == reads * found.used_bytes
    assert found.flags[0].startswith(f"Keys and values are {kind}: the operation {operation} writes")


def test_a_product_that_writes_more_than_the_keys_it_read_is_no_copy():
    keys, q = torch.ones(1, 1, 5, 2), torch.ones(1, 1, 12, 2)  # R = 12 scores for each key of 2 numbers
    with CacheMeter([(keys, keys.clone())]) as meter:
        q @ keys.mT
    assert meter.cache_bytes_read == [40] and meter.copies == []


def test_of_keys_that_are_picked_out_only_those_are_read():
    keys = torch.ones(1, 1, 64, 8)
    with CacheMeter([(keys, keys.clone())]) as meter:
        keys.index_select(2, torch.tensor([3, 5]))
    assert meter.cache_bytes_read == [meter.bytes_read] == [2 * 8 * 4 + 2 * 8]  # and the two indices
    assert [(copy.kind, copy.written_bytes) for copy in meter.copies] == [("copied", 64)]


def test_what_was_freed_does_not_make_its_neighbour_a_copy():
    keys = torch.ones(1, 1, 64, 64)
    with CacheMeter([(keys, keys.clone())]) as meter:
        for _ in range(5):
            del keys
            keys = torch.ones(1, 1, 64, 64)  # where the first ones lay, most likely
            keys + 1
    assert meter.cache_bytes_read == [0]


def test_what_a_step_reads_and_writes_is_what_the_meter_says_region_by_region():
    found = profile(make_model(), kv_len=20)
    linear = {"projections": 24 * 24 * 2 + 24 * 12 * 2, "mlp": 3 * 24 * 40, "head": 24 * 50}
    passed = {"projections": 4 * 24, "mlp": 24 + 24 + 3 * 40, "head": 24}  # what each product reads beside its weights
    silu = 40
    assert found.region_read_bytes["projections"] == 2 * 4 * (linear["projections"] + passed["projections"])
    assert found.region_read_bytes["mlp"] == 2 * 4 * (linear["mlp"] + passed["mlp"] + silu)
    assert found.region_read_bytes["head"] == 4 * (linear["head"] + passed["head"])
    assert found.region_read_bytes["attention"] >= found.read_bytes
    assert sum(found.region_read_bytes.values()) == found.step_read_bytes


def test_a_step_that_the_meter_cannot_see_has_no_bytes_and_says_why():
    after = torch.compile(lambda x: x + 1, backend="eager")

    def step(model, ids, caches, *, attend):
        return after(decode_step(model, ids, caches, attend=attend))

    found = profile(make_model(), step=step, kv_len=[20, 9])
    assert found.read_bytes is found.step_read_bytes is None and found.region_read_bytes == {} and found.copies == []
    assert found.used_bytes == 2 * 29 * 96
    assert any("No bytes were counted: TrafficMeter cannot see what compiled code" in note for note in found.notes)
    assert DecodeProfile.from_json(found.to_json()) == found


def test_an_error_of_the_step_itself_is_not_hidden():
    def step(model, ids, caches, *, attend):
        raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError, match="out of luck"):
        profile(make_model(), step=step)


# ---- seconds --------------------------------------------------------------------------------------------


def test_totals_are_the_differences_of_two_readings_and_leave_out_the_warm_up():
    clock, readings, seen = Clock(), [], []
    steps = iter([77, 99, 3, 1, 2, 5, 4])  # two of warm-up, then what counts

    def step(model, ids, caches, *, attend):
        readings.append(clock.n_readings)
        seen.append(caches[0].host_lengths)
        clock.now += next(steps, 1) * TICK
        return decode_step(model, ids, caches, attend=attend)

    found = profile(make_model(), kv_len=[20, 9], new_tokens=5, step=step, clock=clock)
    assert found.token_s == [3 * TICK, 1 * TICK, 2 * TICK, 5 * TICK, 4 * TICK]
    assert found.step_s == 3 * TICK and found.tokens_per_s == 2 / (3 * TICK)
    assert [b - a for a, b in zip(readings[:6], readings[1:7], strict=True)] == [2] * 6
    assert seen[:7] == [[20 + i, 9 + i] for i in range(7)]
    assert found.device_token_s is None and found.clock_s == 0
    assert found.first_token_s == [] and "The first token was not timed" in found.table()


def test_the_first_token_is_timed_over_the_whole_prompts_as_often_as_asked():
    clock, model = Clock(), make_model()
    prompts = []

    def hidden(token_ids, caches, *, attend):
        prompts.append(list(token_ids.shape))
        clock.now += token_ids.shape[1] * TICK
        return Transformer.hidden(model, token_ids, caches, attend=attend)

    model.hidden = hidden  # of decode steps too: a tick each
    found = profile(model, kv_len=[20, 9], prefills=2, clock=clock)
    assert found.first_token_s == [29 * TICK, 29 * TICK]  # one prompt after the other
    assert prompts[:5] == [[2, 8], [1, 20], [1, 9], [1, 20], [1, 9]]  # a warm-up first
    together = profile(model, kv_len=20, batch_size=2, prefills=1, clock=clock)
    assert together.first_token_s == [20 * TICK]
    assert "first token after 20 tokens" in together.table()


def slow_model(clock: Clock, **changes) -> Transformer:
    """Each part takes its own time: an MLP 5 ticks in layer 0 and 7 in layer 1, every projection 2, the head 11."""
    model = make_model(**changes)
    for i, layer in enumerate(model.layers):
        layer.mlp.forward = lasting(clock, (5 + 2 * i) * TICK, layer.mlp.forward)
        own = layer.attention
        for linear in (own.q_proj, own.k_proj, own.v_proj, own.o_proj):
            linear.forward = lasting(clock, 2 * TICK, linear.forward)
        layer.mlp_norm.forward = lasting(clock, 13 * TICK, layer.mlp_norm.forward)  # nobody's
    model.logits = lasting(clock, 11 * TICK, model.logits)
    return model


def test_the_split_gives_every_region_its_own_time_and_the_rest_to_nobody(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(KVCache, "append", lasting(clock, 0.5 * TICK, KVCache.append))
    before = KVCache.append
    model = slow_model(clock)
    kept = dict(vars(model.layers[0].mlp)), dict(vars(model))
    found = profile(model, clock=clock, attend=lasting(clock, 3 * TICK, grouped_attention), new_tokens=4)
    ticks = {region: seconds / TICK for region, seconds in found.split_s.items()}
    assert ticks == {"attention": 6, "append": 1, "projections": 16, "mlp": 12, "head": 11, "unattributed": 26}
    assert list(ticks) == ["attention", "append", "projections", "mlp", "head", "unattributed"]
    assert [{r: s / TICK for r, s in layer.items()} for layer in found.split_by_layer_s] == [
        {"attention": 3, "append": 0.5, "projections": 8, "mlp": 5},
        {"attention": 3, "append": 0.5, "projections": 8, "mlp": 7},
    ]
    assert found.split_total_s == 72 * TICK and found.slowdown == 1
    assert KVCache.append is before
    assert (dict(vars(model.layers[0].mlp)), dict(vars(model))) == kept


def test_a_split_pass_that_is_slower_says_by_how_much():
    clock = Clock()

    def reading():  # a clock that takes time itself
        clock.now += TICK
        return clock()

    found = profile(make_model(), clock=reading, new_tokens=3)
    n_regions = 2 * (4 + 1 + 1 + 1) + 1
    assert found.step_s == TICK and found.clock_s == 2 * TICK
    assert found.split_total_s == (2 * n_regions + 1) * TICK == found.slowdown * TICK
    assert "31 x the totals" in found.table()
    assert "Reading the clock takes more than 1% of a step: the times are too long by it." in found.flags


def test_the_middle_half_of_the_steps_counts_and_its_regions_add_up():
    def token(mlp, rest):
        return [Event("mlp", 0, 0.0, mlp, mlp), Event("unattributed", None, 0.0, mlp + rest, rest)]

    events = [e for mlp, rest in [(1, 0), (3, 2), (50, 50), (4, 2)] for e in token(float(mlp), float(rest))]
    seconds, by_layer = by_region(events)
    assert seconds == {"mlp": 3.5, "unattributed": 2.0} and by_layer == [{"mlp": 3.5}]


def test_a_region_inside_another_belongs_to_itself_alone_and_takes_the_layer_around_it():
    clock = Clock()
    inner = SimpleNamespace(run=lambda: setattr(clock, "now", clock.now + 2))
    outer = SimpleNamespace(run=lambda: (setattr(clock, "now", clock.now + 3), inner.run()))
    probe = Probe(clock)
    places = [Place(inner, "run", "append"), Place(outer, "run", "attention", 7)]
    with probe.watching(places):
        outer.run()
    assert [(e.region, e.layer, e.took, e.own) for e in probe.events] == [
        ("append", 7, 2.0, 2.0),
        ("attention", 7, 5.0, 3.0),
    ]
    inner.run()
    assert len(probe.events) == 2


def test_a_region_that_raises_is_counted_and_everything_is_put_back():
    owner, probe = SimpleNamespace(run=lambda: 1 / 0), Probe(Clock())
    before = owner.run
    with pytest.raises(ZeroDivisionError), probe.watching([Place(owner, "run", "mlp", 0)]):
        owner.run()
    assert owner.run is before and len(probe.events) == 1


def test_fixed_shapes_keep_their_own_append_and_the_note_says_so():
    step, longest = fixed_shapes(smallest=8), []

    def spy(model, ids, caches, *, attend):
        logits = step(model, ids, caches, attend=attend)
        longest.append(caches[0].host_lengths)
        return logits

    found = profile(make_model(), step=spy, new_tokens=3, kv_len=[20, 9])
    assert longest[:5] == longest[5:10] == [[20 + i, 9 + i] for i in range(1, 6)]
    assert "append" not in found.split_s and set(found.split_s) >= {"attention", "projections", "mlp", "head"}
    assert found.notes == ["No append of this step can be seen from outside; its time is unattributed."]
    assert found.how == "grouped_attention, spy"
    assert profile(make_model(), step=step).how == "grouped_attention, fixed_shapes"


# ---- ceilings, line, what if ----------------------------------------------------------------------------


def step_of_bytes(clock: Clock, t0_s: float, bytes_per_s: float, per_token: int, weights: int):
    """A step that takes t0 + bytes / bandwidth, of what it then sees."""

    def step(model, ids, caches, *, attend):
        logits = decode_step(model, ids, caches, attend=attend)
        clock.now += t0_s + (weights + sum(caches[0].host_lengths) * per_token) / bytes_per_s
        return logits

    return step


def test_the_sweep_finds_the_line_that_the_steps_follow():
    clock, model = Clock(), make_model()
    weights = 4 * (n_parameters(model.config) - 50 * 24)  # all but the untied embedding table
    step = step_of_bytes(clock, 0.25, 2**20, 192, weights)
    found = profile(model, batch_size=2, clock=clock, step=step, sweep=[8, 100, 254])
    assert [p.kv_len for p in found.sweep] == [8, 100, 254]
    assert [p.read_bytes for p in found.sweep] == [weights + 2 * n * 192 for n in (8, 100, 254)]
    assert [p.seconds for p in found.sweep] == [0.25 + p.read_bytes / 2**20 for p in found.sweep]
    assert found.fit.t0_s == pytest.approx(0.25) and found.fit.bytes_per_s == pytest.approx(2**20)
    assert found.fit.residual_s < 1e-9 and found.fit.flagged == []
    assert found.weights_read_bytes == weights
    own = next(row for row in found.what_if if "as it is" in row.what)
    assert own.seconds == pytest.approx(found.fit.seconds(weights + 2 * 20 * 192))


def test_contexts_above_the_ceiling_are_flagged_and_not_fitted():
    clock, model = Clock(), make_model()
    weights = 4 * (n_parameters(model.config) - 50 * 24)

    def step(model, ids, caches, *, attend):
        logits = decode_step(model, ids, caches, attend=attend)
        n_bytes = weights + caches[0].host_lengths[0] * 192
        small = caches[0].host_lengths[0] < 20
        clock.now += n_bytes / 1e9 / 1.2 if small else 0.001 + n_bytes / 0.5e9
        return logits

    found = profile(model, clock=clock, step=step, kv_len=30, sweep=[10, 100, 200, 250])
    assert [p.flagged for p in found.sweep] == [True, False, False, False]
    assert found.fit.flagged == [0] and found.fit.bytes_per_s == pytest.approx(0.5e9)
    said = "At 10 tokens a step read at 1.2 GB/s, and is not in the line: above 110% of what was measured here"
    assert any(flag.startswith(said) for flag in found.flags)
    assert "flagged" in found.table()


def test_points_that_scatter_more_than_the_line_rises_make_no_line():
    clock = Clock()

    def step(model, ids, caches, *, attend):
        clock.now += 9.0 if 90 < caches[0].host_lengths[0] < 110 else 1.0 + caches[0].host_lengths[0] / 256
        return decode_step(model, ids, caches, attend=attend)

    found = profile(make_model(), clock=clock, step=step, sweep=[8, 100, 200])
    assert found.fit is None and found.what_if == [] and len(found.sweep) == 3
    assert any("No line through the contexts: it would rise by" in note for note in found.notes)


def test_contexts_are_chosen_up_to_the_models_positions_and_the_memory():
    assert [p.kv_len for p in profile(make_model(), sweep=None).sweep] == [31, 63, 127, 190, 254]
    long = make_model(max_seq_len=20_000, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=2)
    held = sum(p.nbytes for p in long.parameters())
    tight = profile(long, sweep=None, memory=int((held + 1_000 * 16) / 0.8))
    assert [p.kv_len for p in tight.sweep] == [64, 128, 256, 384, 512]
    with pytest.raises(
        ValueError, match="a cache of 3.2e-05 GB does not fit: 1.6e-05 GB can be had beside the weights"
    ):
        profile(long, sweep=[2000], memory=int((held + 1_000 * 16) / 0.8))


def test_the_roofline_is_the_longer_of_bytes_and_flops_at_the_measured_ceilings():
    clock, model = Clock(), make_model()
    step = lasting(clock, 1 / 1024, decode_step)
    found = profile(model, clock=clock, step=step, kv_len=[20, 9], new_tokens=3)
    seen = [(20 + WARM_UP + i, 9 + WARM_UP + i) for i in (1, 2, 3)]
    assert found.cache_read_bytes == sum(2 * 96 * (a + b) for a, b in seen) / 3
    matrices = 2 * (2 * 24 * 4 * (6 + 3) + 3 * 24 * 40)
    assert found.step_flops == 2 * 2 * (matrices + 24 * 50) + 2 * 2 * 2 * 6 * 4 * (24 + 13)
    reading = (found.weights_read_bytes + found.cache_read_bytes) / 1e9
    assert found.floor_s == reading and found.roofline_share == reading * 1024
    slow = profile(model, clock=clock, step=step, ceilings=Ceilings(read_bytes_per_s=1e12, flops_per_s=1e6))
    assert slow.floor_s == slow.step_flops / 1e6
    assert slow.flags[0].startswith(f"A step reached {slow.roofline_share:.0%} of the roofline: above 110%")


@pytest.mark.parametrize(("times", "flagged"), [(1.05, False), (1.15, True)])
def test_a_region_and_a_prompt_above_the_ceiling_are_flagged(times, flagged):
    clock, model = Clock(), make_model()
    counted = profile(model).region_read_bytes["mlp"]
    for layer in model.layers:
        layer.mlp.forward = lasting(clock, counted / 2 / 1e9 / times, layer.mlp.forward)
    found = profile(model, clock=clock, prefills=1)
    assert any(flag.startswith("MLP read at") for flag in found.flags) == flagged
    of_mlp = 2 * counted / 2 / 1e9 / times
    exact = Ceilings(read_bytes_per_s=1e9, flops_per_s=found.prefill_flops / of_mlp / times)
    found = profile(model, clock=clock, prefills=1, ceilings=exact)
    assert found.prefill_share == pytest.approx(times)
    assert any(flag.startswith("The first token reached") for flag in found.flags) == flagged


SMOLLM2 = ModelConfig(
    n_layers=30, d_model=576, n_heads=9, n_kv_heads=3, head_dim=64, d_ff=1536, vocab_size=49152, max_seq_len=8192,
    rope_theta=1e5, norm_eps=1e-5, tie_embeddings=True,
)  # fmt: skip


def test_another_cache_changes_its_own_bytes_and_nothing_else():
    line = Fit(t0_s=0.001, bytes_per_s=33.3e9, residual_s=0.0, flagged=[])
    rows = what_if(SMOLLM2, [1000], line, weight_bytes=538_000_000, itemsize=4)
    said = {row.what: (row.cache_bytes, round(1000 * row.seconds, 1)) for row in rows}
    assert said == {
        "9 KV heads (MHA)": (138_240_000, 21.3),
        "3 KV heads (GQA), as it is": (46_080_000, 18.5),
        "1 KV head (MQA)": (15_360_000, 17.6),
        "cache in 16 bits": (23_040_000, 17.8),
        "cache in 8 bits": (11_520_000, 17.5),
    }
    long = what_if(SMOLLM2, [8000, 1000], line, weight_bytes=0, itemsize=2)
    windows = {row.what: row.cache_bytes for row in long if "window" in row.what}
    assert windows == {"window of 4,096": (4096 + 1000) * 23_040, "window of 1,024": (1024 + 1000) * 23_040}
    assert [row.what for row in long if "bits" in row.what] == ["cache in 8 bits"]
    many = what_if(SHAPES["falcon-7b"], [10], line, weight_bytes=0, itemsize=2)
    assert [row.what for row in many][:2] == ["71 KV heads (MHA)", "1 KV head (MQA), as it is"]
    half_windowed = what_if(SHAPES["gemma-3-27b"], [3000], line, weight_bytes=0, itemsize=2)
    assert [row.what for row in half_windowed if "window" in row.what] == []  # its own are 1,024 already


@pytest.mark.parametrize(("many_s", "one_s", "flops_per_s"), [(4.0, 1.0, 2**29), (4.0, 2.0**-10, 2**31)])
def test_the_ceilings_are_the_read_bandwidth_and_the_faster_kind_of_product(monkeypatch, many_s, one_s, flops_per_s):
    clock = Clock()

    def linear(x, weight):
        assert weight.shape == (1024, 1024) and weight.dtype == torch.float16
        clock.now += many_s if x.shape[0] == 1024 else one_s

    monkeypatch.setattr("gqa_lab.profiler.measure.F", SimpleNamespace(linear=linear))
    monkeypatch.setattr("gqa_lab.profiler.measure.read_bandwidth", lambda device, *, seconds: 7e9)
    assert measure_ceilings(CPU, torch.float16, clock) == Ceilings(7e9, flops_per_s)


# ---- what fits ------------------------------------------------------------------------------------------


def test_what_fits_on_a_cpu_is_four_fifths_of_the_memory_without_the_weights():
    fits = what_fits(SMOLLM2, CPU, [1000, 500], 2, 10**9, 269_000_000)
    left = 800_000_000 - 269_000_000
    assert (fits.batch_size, fits.kv_len) == (left // 23_040_000, 8192) and not fits.tried and fits.reserve == 0.2
    longer = what_fits(SMOLLM2, CPU, [1000] * 20, 2, 10**9, 269_000_000)
    assert longer.kv_len == left // (20 * 23_040)
    assert what_fits(SMOLLM2, CPU, [1000], 2, 10**8, 269_000_000).batch_size == 0
    assert cache_budget(None, 5, CPU) == float("inf")


@pytest.mark.parametrize(("limit", "found"), [("5000", 5000), ("max", 8000), ("90000", 8000), (None, 8000)])
def test_the_memory_of_a_cpu_is_the_machines_or_what_a_container_leaves_of_it(monkeypatch, tmp_path, limit, found):
    monkeypatch.setattr(limits.os, "sysconf", {"SC_PHYS_PAGES": 2, "SC_PAGE_SIZE": 4000}.get, raising=False)
    monkeypatch.setattr(limits, "CGROUP", tmp_path / "memory.max")
    if limit:
        (tmp_path / "memory.max").write_text(limit + "\n", encoding="ascii")
    assert limits.memory_bytes(CPU) == found


def test_a_machine_that_does_not_say_its_memory_has_no_limit(monkeypatch, tmp_path):
    monkeypatch.delattr(limits.os, "sysconf", raising=False)
    monkeypatch.setattr(limits, "CGROUP", tmp_path / "memory.max")
    assert limits.memory_bytes(CPU) is None
    found = profile(make_model(), memory=None)
    assert found.fits is None and "WHAT FITS" not in found.table()


def test_what_can_be_allocated_is_tried_and_freed_before_the_next_try():
    alive = weakref.WeakSet()

    def allocate(n_bytes, *, dtype, device):
        if sum(block.nbytes for block in alive) + n_bytes > 1000:
            raise torch.OutOfMemoryError("full")
        block = torch.empty(n_bytes, dtype=dtype, device=device)
        alive.add(block)
        return block

    # 1,500, a twentieth less, 1,425, ... 1,045 do not fit; 992 does, in four blocks of 248
    assert allocatable_bytes(1500, 4, CPU, allocate) == 992
    assert len(alive) == 0
    assert allocatable_bytes(900, 4, CPU, allocate) == 900 and allocatable_bytes(3, 4, CPU, allocate) == 0


def test_what_neither_model_nor_memory_hold_is_refused_before_anything_is_allocated():
    model = make_model()
    held = sum(p.nbytes for p in model.parameters())
    enough = int((held + 2 * 23 * 96 * 2) / 0.8) + 1
    assert profile(model, batch_size=2, memory=enough).allocated_bytes == 2 * 23 * 96 * 2
    with pytest.raises(ValueError, match="does not fit"):
        profile(model, batch_size=2, memory=enough - 10)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (dict(kv_len=1), "kv_len must be a whole number of at least 2, got 1"),
        (dict(kv_len=2.5), "kv_len must be a whole number of at least 2, got 2.5"),
        (dict(kv_len=[20, True]), "kv_len must be a whole number of at least 2, got True"),
        (dict(kv_len=[]), "batch_size must be at least 1, and as many as kv_len has lengths, got None"),
        (dict(kv_len=[5, 6], batch_size=3), "batch_size must be at least 1, and as many as kv_len has lengths, got 3"),
        (dict(batch_size=0), "batch_size must be at least 1, and as many as kv_len has lengths, got 0"),
        (dict(new_tokens=0), "new_tokens must be a whole number of at least 1, got 0"),
        (dict(prefills=-1), "prefills must be a whole number of at least 0, got -1"),
        (dict(kv_len=254), "room for 257 tokens is needed.* this model has 256 positions; kv_len can be 253 at most"),
        (dict(max_seq_len=300), "room for 300 tokens is needed .kv_len, 2 of warm-up, 1 timed, or max_seq_len."),
        (dict(max_seq_len=22), "max_seq_len must be at least 23, kv_len and 3 tokens, got 22"),
        (dict(sweep=[7]), "sweep holds 7; a context must be a whole number from 8 to 254"),
        (dict(sweep=[255]), "sweep holds 255; a context must be a whole number from 8 to 254"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_by_name_value_and_remedy(asked, message, shapes_unchecked):
    with pytest.raises(ValueError, match=message):
        profile(make_model(), **asked)


def test_the_last_position_of_a_model_can_be_used():
    assert profile(make_model(), kv_len=253).layers[0].allocated_bytes == 256 * 96


def test_what_is_no_model_is_refused(shapes_unchecked):
    with pytest.raises(
        ValueError, match="model is a Linear; it must be a Transformer, or a model of transformers that generates"
    ):
        profile_decode(torch.nn.Linear(2, 2))


# ---- what comes out -------------------------------------------------------------------------------------


def full_profile(**asked) -> DecodeProfile:
    clock, model = Clock(), make_model()
    step = step_of_bytes(clock, 0.25, 2**20, 192, 4 * (n_parameters(model.config) - 50 * 24))

    def hidden(token_ids, caches, *, attend):
        clock.now += 0.5 if token_ids.shape[1] > 1 else 0.0
        return Transformer.hidden(model, token_ids, caches, attend=attend)

    model.hidden = hidden
    return profile(model, clock=clock, step=step, sweep=[8, 200], prefills=1, new_tokens=2, kv_len=[20, 9], **asked)


def test_a_profile_is_its_json_and_comes_back_from_it():
    found = full_profile(name="a name")
    text = found.to_json()
    said = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert said["schema"] == "gqa_lab.profile/1" and said["model"] == "a name"
    assert said["environment"] == dict(device="a machine", versions="torch 2", commit="abc", date="2026-01-02")
    assert said["fit"]["t0_s"] == found.fit.t0_s and said["layers"][1]["read_bytes"] == 29 * 96
    again = DecodeProfile.from_json(text)
    assert again == found and again.table() == found.table() and again.to_json() == text
    with pytest.raises(ValueError, match="this profile has no events"):
        again.to_chrome_trace()
    for other in ('{"schema": "gqa_lab.profile/2"}', "[]"):
        with pytest.raises(ValueError, match="this is no profile of the schema gqa_lab.profile/1"):
            DecodeProfile.from_json(other)


def test_the_trace_holds_every_region_inside_its_token_and_the_growing_cache():
    clock = Clock()
    attend = lasting(clock, 3 * TICK, grouped_attention)
    found = profile(slow_model(clock), clock=clock, attend=attend, new_tokens=3, kv_len=[20, 9])
    rows = json.loads(found.to_chrome_trace())["traceEvents"]
    tokens = [row for row in rows if row["ph"] == "X" and row["name"] == "token"]
    regions = [row for row in rows if row["ph"] == "X" and row["name"] != "token"]
    assert len(tokens) == 3 and len(regions) == 3 * 15
    assert min(row["ts"] for row in tokens) == 0
    for token, here in zip(tokens, (regions[i : i + 15] for i in (0, 15, 30)), strict=True):
        assert token["dur"] == pytest.approx(71e6 * TICK)
        assert all(token["ts"] <= r["ts"] and r["ts"] + r["dur"] <= token["ts"] + token["dur"] + 1e-3 for r in here)
        assert sum(r["args"]["own_us"] for r in [token, *here]) == pytest.approx(token["dur"])
        assert sorted((r["name"], r["args"].get("layer", -1)) for r in here) == sorted(
            [(name, i) for i in (0, 1) for name in ("attention", "append", "mlp", *["projections"] * 4)]
            + [("head", -1)]
        )
    counters = [row["args"]["used bytes"] for row in rows if row["ph"] == "C"]
    assert counters == [2 * 96 * (29 + 2 * (WARM_UP + i)) for i in (1, 2, 3)]
    assert all({"ph", "pid", "name"} <= set(row) for row in rows)


def test_the_table_says_what_was_found_in_lines_of_fixed_width():
    table = full_profile(max_seq_len=100, name="tiny").table()
    lines = table.splitlines()
    assert max(map(len, lines)) <= 92
    assert "tiny, float32 on cpu: grouped_attention, " in lines[0]
    assert lines[1] == "2 layers of 6 query heads on 3 KV heads of 4 (GQA)"
    assert lines[2] == "2 sequences of 9 to 20 tokens, 2 steps timed"
    assert "each of layers 0 to 1                       19,200        19,200         2,784         2,784" in lines
    assert "all 2                                           29           200        32,832         14.5%" in lines
    assert any(line.startswith("t = 250 ms + bytes / 0.00105 GB/s") for line in lines)
    assert "- Only 14.5% of the cache is in use." in lines


def test_the_report_says_what_a_line_cannot():
    found = DecodeProfile.from_json(json.dumps(recorded("profile_smollm2")))
    table, (off, residual_s) = (
        found.table(),
        (found.what_if[1].seconds - found.what_if[2].seconds, found.fit.residual_s),
    )
    assert 0 < off < residual_s < found.what_if[0].seconds - found.what_if[1].seconds
    assert "- What if: 1 KV head (MQA), cache in 16 bits, cache in 8 bits differ from what is by less" in table
    assert "every byte at the line's price, which was fitted for 3 query heads per KV head\n" in table
    assert "at most 11.1 (4,064 tokens)\n" in table and "1 of up to 8,192, where the model ends\n" in table


def test_three_chats_in_buffers_of_8192_use_a_twentieth_of_them():
    """The numbers of SmolLM2 in float16, from a model with its cache and next to no weights."""
    shape = dict(n_layers=30, n_heads=9, n_kv_heads=3, head_dim=64, d_model=8, d_ff=8, max_seq_len=8192)
    found = profile(make_model(torch.float16, **shape), kv_len=[1000, 200, 50], max_seq_len=8192, memory=2 * 10**9)
    assert (found.allocated_bytes, found.used_bytes, found.read_bytes) == (566_231_040, 28_800_000, 28_800_000)
    assert sum(q.wasted_bytes for q in found.sequences) == 537_431_040
    assert f"{found.occupancy:.2%}" == "5.09%"
    assert (
        "all layers                             566,231,040   566,231,040    28,800,000    28,800,000" in found.table()
    )


def test_progress_is_told_in_order_from_nothing_to_all():
    told = []
    profile(make_model(), sweep=[8, 9], progress=lambda done, what: told.append((done, what)))
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[0][0] == 0 and told[-1] == (1.0, "done") and (0.65, "a context of 8 tokens") in told


def test_a_profile_leaves_the_model_and_the_random_numbers_as_they_were():
    model = make_model()
    before = [(module, set(vars(module))) for module in model.modules()]
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    profile(model, prefills=1, sweep=[8])
    assert torch.equal(torch.rand(3), expected)
    assert all(set(vars(module)) == names for module, names in before)
