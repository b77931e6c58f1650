"""The measured ceiling, under a clock of our own."""

import itertools
from types import SimpleNamespace

import pytest
import torch

from gqa_lab import bandwidth
from gqa_lab.bandwidth import default_bytes, last_level_cache_bytes, read_bandwidth, seconds_on_cpu, ways_to_read
from gqa_lab.traffic import TrafficMeter

CPU = torch.device("cpu")


def stopwatch(*times):
    """A stopwatch that runs each call and tells the given times in turn, then the last one for ever."""
    told = itertools.chain(times, itertools.repeat(times[-1]))
    return lambda call: (call(), next(told))[1]


def test_the_fastest_reading_of_all_ways_and_rounds_counts():
    first_round_warms_up = (0.001, 0.001, 0.001)
    clock = stopwatch(*first_round_warms_up, 0.5, 0.4, 0.6, 0.5, 0.25, 0.9)
    assert read_bandwidth("cpu", n_bytes=8000, repeats=2, seconds=clock) == 8000 / 0.25


def test_every_way_is_run_the_same_number_of_times():
    calls = []
    read_bandwidth("cpu", n_bytes=800, repeats=3, seconds=lambda call: calls.append(call) or 1.0)
    assert [calls.count(way) for way in set(calls)] == [4, 4, 4]


def test_only_whole_pairs_of_numbers_are_read_and_counted():
    assert read_bandwidth("cpu", n_bytes=8007, repeats=1, seconds=stopwatch(1.0)) == 8000


@pytest.mark.parametrize("way", range(3))
def test_each_way_reads_every_byte_once_and_writes_one_number(way):
    read = ways_to_read(torch.ones(1000))[way]
    with TrafficMeter() as meter:
        read()
    assert (meter.bytes_read, meter.bytes_written) == (4000, 4)


def test_each_way_looks_at_both_ends():
    for place in (0, -1):
        x = torch.ones(1000)
        x[place] = 9.0
        assert [float(way()) for way in ways_to_read(x)] == [1008, 9, 508]


def test_a_call_lasts_from_before_it_to_after_it():
    ticks = iter([10.0, 10.25])
    order = []
    assert seconds_on_cpu(lambda: order.append("ran"), lambda: (order.append("tick"), next(ticks))[1]) == 0.25
    assert order == ["tick", "ran", "tick"]


@pytest.mark.parametrize(
    ("cache", "free", "n_bytes"),
    [
        (2**20, 2**40, 2**28),  # never small
        (2**26, 2**40, 2**29),  # eight times the cache
        (2**30, 2**40, 2**30),  # never huge
        (2**26, 2**30, 2**28),  # a quarter of what is free
        (2**26, 0, 2**28),  # a system that does not say
    ],
)
def test_the_buffer_is_larger_than_the_cache_and_smaller_than_the_memory(monkeypatch, cache, free, n_bytes):
    monkeypatch.setattr(bandwidth, "last_level_cache_bytes", lambda: cache)
    monkeypatch.setattr(bandwidth, "_free_bytes", lambda: free)
    assert default_bytes(CPU) == n_bytes


def test_on_a_gpu_its_own_cache_and_memory_decide(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda d: SimpleNamespace(L2_cache_size=50 * 2**20))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda d: (70 * 2**30, 80 * 2**30))
    assert default_bytes(torch.device("cuda")) == 2**31


def test_a_cache_in_several_parts_counts_whole(monkeypatch, tmp_path):
    for cpu, shared, size in [(0, "0-1", "32768K"), (1, "0-1", "32768K"), (2, "2-3", "32768K")]:
        folder = tmp_path / f"cpu{cpu}" / "cache" / "index3"
        folder.mkdir(parents=True)
        (folder / "size").write_text(size + "\n")
        (folder / "shared_cpu_list").write_text(shared + "\n")
    monkeypatch.setattr(bandwidth, "Path", lambda _: tmp_path)
    assert last_level_cache_bytes() == 2 * 2**25
    monkeypatch.setattr(bandwidth, "Path", lambda _: tmp_path / "nowhere")
    assert last_level_cache_bytes() == bandwidth.UNKNOWN_CACHE


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"n_bytes": 7}, "n_bytes must be at least 8, got 7"), ({"repeats": 0}, "repeats must be at least 1, got 0")],
)
def test_impossible_requests_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        read_bandwidth("cpu", **arguments)
