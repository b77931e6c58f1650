"""`python -m gqa_lab.profiler`, with a model of next to nothing and a clock of our own."""

import io
import json

import pytest
import torch

from gqa_lab.config import ModelConfig
from gqa_lab.costs import SHAPES, ModelShape
from gqa_lab.generate import decode_step
from gqa_lab.model import Transformer
from gqa_lab.profiler import Ceilings, DecodeProfile, __main__, profile_decode

SIZES = dict(n_layers=4, d_model=24, n_heads=6, n_kv_heads=3, head_dim=4, d_ff=40, vocab_size=50, max_seq_len=2000)
TINY = ModelShape(name="Tiny", **SIZES, mlp_matrices=3, tie_embeddings=True, source="made up")


@pytest.fixture(autouse=True)
def asked(monkeypatch):
    """Profiles in no time; returns what was asked of each profile."""
    calls, now = [], [0.0]

    def step(model, ids, caches, *, attend):
        now[0] += 0.5
        return decode_step(model, ids, caches, attend=attend)

    def quick(model, **how):
        calls.append(how | {"model": model})
        return profile_decode(model, **how, step=step, sweep=[8], clock=lambda: now[0], ceilings=Ceilings(1e9, 1e12))

    monkeypatch.setattr(__main__, "profile_decode", quick)
    monkeypatch.setitem(SHAPES, "tiny", TINY)
    return calls


def run(capsys, *words: str) -> tuple[int, str, str]:
    status = __main__.main([str(word) for word in words])
    said = capsys.readouterr()
    return status, said.out, said.err


def test_a_shape_with_random_weights_is_profiled_and_written(asked, capsys, tmp_path):
    profile, trace = tmp_path / "profile.json", tmp_path / "trace.json"
    words = ("--model", "tiny", "--kv-len", "30,20", "--new-tokens", 2, "--prefills", 0, "--layers", 2, "--kv-heads", 1)
    status, out, err = run(capsys, *words, "--dtype", "bf16", "--json", profile, "--trace", trace)
    assert status == 0 and out.startswith("Tiny with random weights, bfloat16 on cpu")
    config = asked[0]["model"].config
    assert (config.n_layers, config.n_kv_heads, config.max_seq_len, config.tie_embeddings) == (2, 1, 2000, True)
    assert asked[0]["model"].dtype == torch.bfloat16 and torch.get_default_dtype() == torch.float32
    assert not any(p.requires_grad for p in asked[0]["model"].parameters())
    found = DecodeProfile.from_json(profile.read_text(encoding="utf-8"))
    assert found.kv_lens == [30, 20] and len(found.token_s) == 2 and found.table() + "\n" == out
    assert json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    lines = err.splitlines()
    assert lines[0].startswith("[....") and lines[-1] == f"[{'#' * 30}] 100% done" and "\r" not in err


def test_a_batch_is_asked_for_by_its_size(asked, capsys):
    assert run(capsys, "--model", "tiny", "--kv-len", "10", "--batch-size", 3, "--prefills", 0)[0] == 0
    assert (asked[0]["kv_len"], asked[0]["batch_size"], asked[0]["new_tokens"]) == (10, 3, 16)


def real_model() -> Transformer:
    return Transformer(ModelConfig(**SIZES, rope_theta=1e4, norm_eps=1e-5)).requires_grad_(False)


def test_a_real_model_is_loaded_and_its_heads_are_pooled(asked, capsys, monkeypatch, tmp_path):
    loaded = []

    def load(path, *, dtype, device):
        loaded.append((path, dtype))
        return real_model(), None

    monkeypatch.setattr(__main__, "load_pretrained", load)
    monkeypatch.setattr(__main__, "smollm2_path", lambda: tmp_path / "SmolLM2.gguf")
    how = ("--kv-len", 10, "--prefills", 0)
    status, out, _ = run(capsys, "--model", "smollm2", *how, "--kv-heads", 1, "--dtype", "fp16")
    assert status == 0 and out.startswith("SmolLM2 with 1 KV head, float") and asked[0]["model"].config.n_kv_heads == 1
    (tmp_path / "model").mkdir()
    assert run(capsys, "--model", tmp_path / "model", *how)[1].startswith("model, float32")
    assert loaded == [(tmp_path / "SmolLM2.gguf", torch.float16), (tmp_path / "model", torch.float32)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the following arguments are required: --model"),
        (
            ["--model", "smolm2"],
            "'smolm2' is no file or folder here, and no published shape; did you mean smollm2-1.7b or",
        ),
        (["--model", "tiny", "--kv-len", "many"], "'many' is no number of tokens; write 1000, or 1000,200,50"),
        (["--model", "tiny", "--kv-len", "1"], "kv_len must be a whole number of at least 2, got 1"),
        (["--model", "tiny", "--kv-len", "3000"], "this model has 2000 positions; kv_len can be 1982 at most"),
        (["--model", "tiny", "--kv-heads", "4"], "n_heads (6) must be a multiple of n_kv_heads (4); try 1, 2, 3 or 6"),
        (["--model", "tiny", "--layers", "5"], "--layers must be from 1 to 4, the layers of Tiny, got 5"),
        (["--model", "tiny", "--layers", "0"], "--layers must be from 1 to 4, the layers of Tiny, got 0"),
        (
            ["--model", ".", "--layers", "2"],
            "--layers cuts down a shape with random weights; a real model has the layers",
        ),
        (["--model", "."], "cannot load .: the folder is empty"),
        (["--model", "tiny", "--dtype", "int8"], "invalid choice: 'int8'"),
        (
            ["--model", "tiny", "--json", "no/such/x.json"],
            "x.json cannot be written: it is a folder, or in a folder that",
        ),
        (["--model", "tiny", "--trace", "."], ". cannot be written: it is a folder, or in a folder that is not there"),
        (["--model", "mixtral-8x7b-v0.1"], "Mixtral-8x7B-v0.1 has experts, which our model does not compute"),
        (["--model", "deepseek-v3"], "DeepSeek-V3 (671B) has a latent cache (MLA), which our model does not compute"),
        (["--model", "gpt-2"], "GPT-2 (124M) has an MLP without a gate, which our model does not compute"),
        (["--model", "gemma-3-27b"], "Gemma-3-27B has two kinds of layers, which our model does not compute"),
    ],
)
def test_what_cannot_be_profiled_is_refused_with_a_remedy(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, err = run(capsys, *words)
    assert (status, out) == (2, "") and message in err.replace("\n", " ")


def test_weights_that_do_not_fit_are_refused_with_their_size(capsys, monkeypatch):
    monkeypatch.setattr(__main__, "memory_bytes", lambda device: 25 * 10**9)
    status, out, err = run(capsys, "--model", "llama-2-70b", "--dtype", "bf16")
    assert (status, out) == (2, "")
    assert "its weights take 138 GB and 20 GB can be had; --layers 5 or a smaller --dtype cuts that down" in err


def test_an_interrupted_profile_says_so(capsys, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(__main__, "profile_decode", interrupted)
    assert run(capsys, "--model", "tiny") == (130, "", "\ninterrupted\n")


def test_the_bar_moves_where_somebody_looks():
    out = io.StringIO()
    out.isatty = lambda: True
    bar = __main__._Bar(out)
    bar(0.5, "split")
    bar(1.0, "done")
    half, full, rest = out.getvalue().removeprefix("\r").replace("\n", "\r").split("\r")
    assert half.rstrip() == f"[{'#' * 15}{'.' * 15}]  50% split" and full.rstrip() == f"[{'#' * 30}] 100% done"
    assert rest == "" and len(half) == len(full) == 79


def test_every_dense_published_shape_that_is_like_llama_can_be_made():
    taken = refused = 0
    for shape in SHAPES.values():
        try:
            config = __main__.config_of(shape, 1)
        except ValueError:
            refused += 1
            continue
        taken += 1
        assert (config.n_kv_heads, config.head_dim, config.d_ff) == (shape.n_kv_heads, shape.head_dim, shape.d_ff)
    assert taken > 30 and refused > 10
