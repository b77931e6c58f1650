"""Tensor-parallel decode: who holds what, the same logits and tokens as one process, and an end when one is lost."""

import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from collections import Counter
from pathlib import Path

import pytest
import torch

from gqa_lab import costs, parallel
from gqa_lab.checkpoint import load_pretrained, smollm2_path
from gqa_lab.config import ModelConfig, divisors
from gqa_lab.costs import GPUS, SHAPES
from gqa_lab.generate import decode_step, generate, prefill
from gqa_lab.model import Transformer
from gqa_lab.parallel import allowed_processes, kv_heads_of, shard, shard_config, tiny_model

ROOT = Path(__file__).resolve().parents[1]
LLAMA_2_70B = ModelConfig(
    n_layers=80, d_model=8192, n_heads=64, n_kv_heads=8, head_dim=128, d_ff=28672, vocab_size=32000, max_seq_len=4096, rope_theta=1e4, norm_eps=1e-5
)  # fmt: skip


# ---- who holds what --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "n_heads, n_kv_heads, allowed",
    [
        (9, 3, [1, 3, 9]),
        (64, 8, [1, 2, 4, 8, 16, 32, 64]),
        (40, 8, [1, 2, 4, 8, 40]),
        (71, 1, [1, 71]),
        (6, 3, [1, 3, 6]),
    ],
)
def test_the_numbers_of_processes_that_can_share_the_heads(n_heads, n_kv_heads, allowed):
    assert allowed_processes(n_heads, n_kv_heads) == allowed


def read_by(rank, n_processes, n_heads, n_kv_heads):
    """Each KV head that the query heads of a process read, and how many of them do: the definition, by counting."""
    own = range(rank * n_heads // n_processes, (rank + 1) * n_heads // n_processes)
    return Counter(i // (n_heads // n_kv_heads) for i in own)


@pytest.mark.parametrize("n_heads", range(1, 33))
def test_a_process_holds_the_kv_heads_its_query_heads_read_and_p_is_allowed_if_all_are_alike(n_heads):
    for n_kv_heads in divisors(n_heads):
        for n_processes in divisors(n_heads):
            read = [read_by(rank, n_processes, n_heads, n_kv_heads) for rank in range(n_processes)]
            is_small_gqa = (
                len({(len(one), *set(one.values())) for one in read}) == 1 and len(set(read[0].values())) == 1
            )
            assert is_small_gqa == (n_processes in allowed_processes(n_heads, n_kv_heads))
            if is_small_gqa:
                held = [list(kv_heads_of(rank, n_processes, n_heads, n_kv_heads)) for rank in range(n_processes)]
                assert held == [sorted(one) for one in read]


@pytest.mark.parametrize(
    "arguments, said",
    [
        ((0, 2, 9, 3), r"n_processes \(2\) cannot share 9 query heads over 3 KV heads; try one of 1, 3, 9"),
        ((0, 0, 9, 3), "try one of 1, 3, 9"),
        ((0, 3.0, 9, 3), r"n_processes \(3.0\)"),
        ((0, True, 9, 3), r"n_processes \(True\)"),
        ((3, 3, 9, 3), r"rank \(3\) must be one of 0 to 2"),
        ((-1, 3, 9, 3), r"rank \(-1\)"),
        ((0, 1, 9, 2), r"n_heads \(9\) must be a multiple of n_kv_heads \(2\)"),
    ],
)
def test_what_cannot_be_shared_is_refused_with_what_can(arguments, said, shapes_unchecked):
    with pytest.raises(ValueError, match=said):
        kv_heads_of(*arguments)


@pytest.mark.parametrize("n_kv_heads", [64, 8, 1])
@pytest.mark.parametrize("n_processes", [1, 2, 4, 8, 16, 32, 64])
def test_the_cache_of_a_process_is_the_share_that_a_plan_counts(n_kv_heads, n_processes):
    model = costs.with_kv_heads(LLAMA_2_70B, n_kv_heads)
    plan = costs.plan(model, GPUS["h100-sxm"], kv_len=4096, batch_size=3, n_gpus=n_processes)
    sizes = dict(batch_size=3, kv_len=4096, bytes_per_element=2)
    for rank in (0, n_processes - 1):
        held = costs.kv_cache_bytes(shard_config(model, rank, n_processes), **sizes)
        assert held == plan.cache_bytes * plan.copies(n_processes) / n_processes
    assert costs.kv_cache_bytes(model, **sizes) == costs.kv_cache_bytes(
        costs.with_kv_heads(SHAPES["llama-2-70b"], n_kv_heads), **sizes
    )


def test_the_columns_of_the_mlp_are_shared_as_evenly_as_whole_ones_go():
    config = tiny_model(1).config
    shares = [shard_config(config, rank, 8).d_ff for rank in range(8)]
    assert sum(shares) == config.d_ff == 44 and set(shares) == {5, 6}
    narrow = ModelConfig(n_layers=1, d_model=8, n_heads=8, n_kv_heads=1, head_dim=2, d_ff=3, vocab_size=9, max_seq_len=4, rope_theta=1e4, norm_eps=1e-5)  # fmt: skip
    with pytest.raises(ValueError, match=r"n_processes \(4\) must be at most d_ff \(3\)"):
        for rank in range(4):
            shard_config(narrow, rank, 4)


# ---- the same as one process: shares in threads ------------------------------------------------------------


class Threads:
    """Stands in for `torch.distributed`: each share runs in a thread, and sums wait for all of them."""

    def __init__(self, n_processes):
        self.n, self.parts = n_processes, [None] * n_processes
        self.barrier = threading.Barrier(n_processes, timeout=60)
        self.own = threading.local()
        self.n_sums = 0

    def all_reduce(self, x, group=None):
        self.parts[self.own.rank] = x
        self.barrier.wait()
        total = sum(self.parts[1:], self.parts[0].clone())
        self.barrier.wait()
        x.copy_(total)
        self.n_sums += self.own.rank == 0
        self.barrier.wait()

    def broadcast(self, x, group=None, group_src=0):
        self.parts[self.own.rank] = x
        self.barrier.wait()
        x.copy_(self.parts[group_src].clone())
        self.barrier.wait()

    def run(self, work):
        """Returns what `work(rank)` returned in each thread."""
        results = [None] * self.n

        def one(rank):
            self.own.rank = rank
            try:
                results[rank] = work(rank)
            except BaseException as error:
                results[rank] = error
                self.barrier.abort()

        threads = [threading.Thread(target=one, args=(rank,)) for rank in range(self.n)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        if errors := [result for result in results if isinstance(result, BaseException)]:
            raise next((e for e in errors if not isinstance(e, threading.BrokenBarrierError)), errors[0])
        return results


@pytest.fixture
def threads(monkeypatch):
    def start(n_processes):
        stand_in = Threads(n_processes)
        monkeypatch.setattr(parallel.dist, "all_reduce", stand_in.all_reduce)
        monkeypatch.setattr(parallel.dist, "broadcast", stand_in.broadcast)
        return stand_in

    return start


def logits_of(model, prompt_ids, n_steps, ids=None):
    """The logits of a prompt and of some steps after it, and the bytes of the caches."""
    caches = model.new_caches(prompt_ids.shape[0], prompt_ids.shape[1] + n_steps)
    found = [prefill(model, prompt_ids, caches)]
    for step in range(n_steps):
        found.append(decode_step(model, ids[:, step : step + 1], caches))
    return torch.stack(found, 1), sum(cache.nbytes for cache in caches)


def assert_as_one(model, n_processes, stand_in, prompt_ids, n_steps=3):
    """The shares' logits are those of the whole model, in every share, and their caches what is predicted."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(model.config.vocab_size, (prompt_ids.shape[0], n_steps), generator=generator)
    whole, _ = logits_of(model, prompt_ids, n_steps, ids)

    def work(rank):
        return logits_of(shard(model, rank, n_processes), prompt_ids, n_steps, ids)

    sizes = dict(batch_size=prompt_ids.shape[0], kv_len=prompt_ids.shape[1] + n_steps)
    for rank, (logits, held) in enumerate(stand_in.run(work)):
        tolerance = 1e-5 if model.dtype == torch.float32 else 1e-12
        assert (logits - whole).abs().max() <= tolerance * whole.abs().max()
        share = shard_config(model.config, rank, n_processes)
        assert held == costs.kv_cache_bytes(share, **sizes, bytes_per_element=model.dtype.itemsize)
    assert stand_in.n_sums == 2 * model.config.n_layers * (1 + n_steps)  # per token: two a layer


PROMPTS = torch.tensor([[5, 7, 11, 2], [1, 1, 58, 30]])


@pytest.mark.parametrize(
    "n_processes, dtype", [(1, torch.float64), (2, torch.float64), (4, torch.float64), (4, torch.float32), (8, torch.float64)]
)  # fmt: skip
@pytest.mark.parametrize("n_kv_heads", [8, 4, 2, 1])
def test_shares_add_up_to_the_logits_of_the_whole_model(n_kv_heads, n_processes, dtype, threads):
    model = tiny_model(n_kv_heads).to(dtype)
    assert_as_one(model, n_processes, threads(n_processes), PROMPTS)


@pytest.mark.parametrize(
    "extra",
    [
        dict(attention_bias=True),
        dict(qk_norm=True),
        dict(tie_embeddings=True),
        dict(sliding_window=3),
        dict(rope_scaling=(1.0, 4.0)),
    ],
    ids=lambda extra: next(iter(extra)),
)
def test_whatever_a_model_has_is_shared_or_held_whole(extra, threads):
    config = ModelConfig(**vars(tiny_model(2).config) | extra)
    torch.manual_seed(3)
    model = Transformer(config).double().eval().requires_grad_(False)
    for layer in model.layers:
        for name in ("q_proj", "k_proj", "v_proj"):
            if extra.get("attention_bias"):
                torch.nn.init.normal_(getattr(layer.attention, name).bias)
        if extra.get("qk_norm"):
            torch.nn.init.normal_(layer.attention.q_norm.weight)
            torch.nn.init.normal_(layer.attention.k_norm.weight)
    assert_as_one(model, 4, threads(4), PROMPTS)


@pytest.mark.parametrize("n_processes", [3, pytest.param(9, marks=pytest.mark.slow)])
def test_the_real_model_is_the_same_in_shares(n_processes, threads):
    model, tokenizer = load_pretrained(smollm2_path(), device="cpu")
    ids = tokenizer.encode("The old lighthouse stood at the edge of the cliff")
    assert_as_one(model, n_processes, threads(n_processes), torch.tensor([ids]), n_steps=1)


def test_the_whole_model_is_left_alone_and_shares_only_what_is_held_whole(threads):
    model = tiny_model(4)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    own = shard(model, 1, 2)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    whole = {weight.data_ptr() for weight in model.parameters()}
    for name, weight in own.named_parameters():
        assert (weight.data_ptr() in whole) == ("proj" not in name), name
        assert not weight.requires_grad


def test_all_processes_take_the_choice_of_the_first(threads):
    model = tiny_model(2)
    stand_in = threads(4)
    own_taste = [lambda logits, n=n: logits.topk(n + 1).indices[:, n] for n in range(4)]  # the n-th likeliest

    def work(rank):
        own = shard(model, rank, 4)
        steps = generate(own, [[1, 2, 3]], max_new_tokens=8, sampler=parallel.agreed(own_taste[rank]))
        return [token for [token] in steps]

    alone = [token for [token] in generate(model, [[1, 2, 3]], max_new_tokens=8)]
    assert stand_in.run(work) == 4 * [alone]


# ---- real processes ----------------------------------------------------------------------------------------

GRID = """
    import torch, torch.distributed as dist
    from gqa_lab.generate import decode_step, generate, prefill
    from gqa_lab.parallel import agreed, joined, shard, tiny_model

    def logits_of(model):
        caches = model.new_caches(1, 4)
        return torch.stack([prefill(model, torch.tensor([[5, 7, 11]]), caches), decode_step(model, torch.tensor([[9]]), caches)])

    with joined(60) as (rank, n_processes, device):
        groups = {n: dist.new_group(range(n)) for n in (1, 2, 4) if n <= n_processes}
        for n_kv_heads in (8, 4, 2, 1):
            model = tiny_model(n_kv_heads)
            for n, group in groups.items():
                if rank >= n:
                    continue
                steps = generate(shard(model, rank, n, group), [[1, 2, 3]], max_new_tokens=20, sampler=agreed(group=group))
                same = list(steps) == list(generate(model, [[1, 2, 3]], max_new_tokens=20))
                whole = logits_of(model.float())
                error = (logits_of(shard(model, rank, n, group)) - whole).abs().max() / whole.abs().max()
                model.double()
                print(f"G {n_kv_heads}, process {rank} of {n}:", "same" if same and error < 1e-5 else f"{same} {error}")
        dist.barrier()
"""


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def start(rank, n_processes, port, code):
    """A process as torchrun would start it, but alone, so that a test can lose it."""
    ranks = dict(RANK=rank, WORLD_SIZE=n_processes, LOCAL_RANK=rank, LOCAL_WORLD_SIZE=n_processes)
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environ = os.environ | {key: str(value) for key, value in ranks.items()}
    environ |= dict(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), PYTHONPATH=path, CUDA_VISIBLE_DEVICES="")
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environ)


@pytest.mark.parametrize("n_processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_tiny_models_on_1_2_and_4_processes_speak_as_one(n_processes):
    port = free_port()
    running = [start(rank, n_processes, port, GRID) for rank in range(n_processes)]
    said = [one.communicate(timeout=600) for one in running]
    assert [one.returncode for one in running] == [0] * n_processes, said
    lines = "".join(out for out, _ in said).splitlines()
    assert len(lines) == 4 * {2: 1 + 2, 4: 1 + 2 + 4}[n_processes], lines  # four numbers of KV heads
    assert all(line.endswith(": same") for line in lines), lines


ENDLESS = """
    import os, sys
    import torch
    from gqa_lab.parallel import LostProcess, joined, shard, tiny_model

    try:
        with joined({timeout_s}) as (rank, n_processes, device):
            own = shard(tiny_model(2), rank, n_processes)
            own(torch.tensor([[1]]))
            print("ready", flush=True)
            while True:
                own(torch.tensor([[1]]))
    except LostProcess as error:
        print(error, file=sys.stderr, flush=True)
        os._exit(1)  # as the command does
"""


@pytest.mark.parametrize(
    "lose, timeout_s",
    [
        pytest.param("SIGKILL", 600, id="killed"),  # noticed at once, long before the time is up
        pytest.param("SIGSTOP", 20, id="stopped", marks=pytest.mark.slow),
    ],
)
@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="no such signals here")
def test_when_one_process_is_lost_the_other_ends_with_a_sentence(lose, timeout_s):
    port = free_port()
    one, other = (start(rank, 2, port, ENDLESS.format(timeout_s=timeout_s)) for rank in (0, 1))
    try:
        assert [running.stdout.readline() for running in (one, other)] == ["ready\n", "ready\n"]
        other.send_signal(getattr(signal, lose))
        said = one.communicate(timeout=120)[1]
        assert "another process has failed or does not answer, so this one ends: " in said
        assert one.returncode == 1
    finally:
        for running in (one, other):
            running.kill()
            running.communicate()


def test_a_process_that_was_never_started_is_not_waited_for():
    one = start(0, 2, free_port(), ENDLESS.format(timeout_s=1))
    said = one.communicate(timeout=120)[1]
    assert one.returncode == 1 and "the others did not come (are all 2 started?), so this one ends: " in said


def test_a_process_that_torchrun_did_not_start_is_told_how(monkeypatch, capsys):
    monkeypatch.delenv("RANK", raising=False)
    assert parallel.main([]) == 2
    assert "RANK is not set: start this with torchrun --standalone --nproc-per-node 2" in capsys.readouterr().err


def torchrun(n_processes, *arguments):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    command += ["--nproc-per-node", str(n_processes), "-m", "gqa_lab.parallel", *arguments]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environ = os.environ | dict(PYTHONPATH=path, CUDA_VISIBLE_DEVICES="")
    return subprocess.run(command, capture_output=True, text=True, timeout=900, env=environ)


@pytest.mark.slow
@pytest.mark.parametrize("n_processes", [1, 3])
def test_the_real_model_under_torchrun_says_what_it_says_alone(n_processes):
    done = torchrun(n_processes, "--dtype", "float64", "--compare", "--max-new-tokens", "12", "--timeout-s", "120")
    assert done.returncode == 0 and "one process alone: the same tokens" in done.stdout, done
    assert f"process {n_processes - 1} of {n_processes}" in done.stdout
    held = re.findall(r"cache ([\d,]+) bytes \(predicted ([\d,]+)\)", done.stdout)
    assert len(held) == n_processes and len({size for pair in held for size in pair}) == 1


@pytest.mark.slow
def test_a_number_of_processes_that_does_not_fit_ends_the_run():
    done = torchrun(3, "--tiny", "2")
    assert done.returncode == 1 and "cannot share 8 query heads over 2 KV heads; try one of 1, 2, 4, 8" in done.stderr
