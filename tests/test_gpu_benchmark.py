"""The benchmark of the decode kernel, as far as a machine without a GPU can run it."""

import importlib.util
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="triton has no build for this system")
ROOT = Path(__file__).resolve().parent.parent
spec = importlib.util.spec_from_file_location("gpu_decode", ROOT / "benchmarks" / "gpu_decode.py")
gpu_decode = importlib.util.module_from_spec(spec)
spec.loader.exec_module(gpu_decode)

needs_the_interpreter = pytest.mark.skipif(torch.cuda.is_available(), reason="here the kernels belong to the GPU")


def test_the_rows_cover_every_group_and_fit_a_gpu():
    assert len(gpu_decode.ROWS) == len(set(gpu_decode.ROWS)) == 24
    assert {g for _, g, _ in gpu_decode.ROWS} == {1, 2, 4, 8, 16, 32}
    assert max(gpu_decode.kv_bytes(*row) for row in gpu_decode.ROWS) <= 40e9
    assert gpu_decode.kv_bytes(32, 8, 4096) == 2 * 32 * 8 * 4096 * 128 * 2


@needs_the_interpreter
def test_the_smoke_run_goes_through_all_of_it_and_writes_nothing(monkeypatch, capsys):
    monkeypatch.setattr(gpu_decode, "save_record", lambda *_: pytest.fail("a smoke run wrote a record"))
    record = gpu_decode.main(["--smoke"])
    assert len(record["results"]) == len(gpu_decode.SMOKE_ROWS) and not record["not_measured"]
    for row in record["results"]:
        assert row["relative_error"]["gqa_lab"] < 0.01 and set(row["median_us"]) >= {"gqa_lab", "SDPA flash"}
        assert "SDPA cuDNN" in row["missing"] and row["missing"]["SDPA cuDNN"].startswith("RuntimeError: ")
        assert row["best_peer"] in row["median_us"] and row["misses"]
    said = capsys.readouterr().out
    assert "misses: B=1 G=4 S=130" in said and "did not run somewhere: SDPA cuDNN" in said


@needs_the_interpreter
def test_a_form_that_is_wrong_or_missing_is_named_and_never_the_best(monkeypatch):
    monkeypatch.setitem(gpu_decode.FORMS, "SDPA flash", lambda: lambda q, k, v: q.clone())
    row = gpu_decode.measure((1, 8, 70), ["gqa_lab", "SDPA flash"], 1e-9, 1, torch.device("cpu"))
    assert row["best_peer"] is None and any(m.startswith("SDPA flash is wrong by") for m in row["misses"])
    assert any("more than can be read" in m for m in row["misses"])  # with a bandwidth of next to nothing
    monkeypatch.setitem(gpu_decode.FORMS, "gqa_lab", lambda: 1 / 0)
    with pytest.raises(RuntimeError, match="ours did not run: ZeroDivisionError"):
        gpu_decode.measure((1, 8, 70), ["gqa_lab"], 1.0, 1, torch.device("cpu"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_what_it_needs():
    with pytest.raises(SystemExit, match="compute capability 8.0 or more; --smoke"):
        gpu_decode.main([])
