"""Lesson 05 as a reader meets it: JupyterLab in headless Chromium, the working copy, all cells, the slider."""

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from test_course import course

pytestmark = pytest.mark.browser
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
CHROMIUM = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
LESSON = "05_grouped_query.ipynb"
PICTURE = ".widget-html img"
MINUTE = 60_000  # milliseconds, as playwright counts

OPEN = """() => { const app = window.jupyterapp, page = app && app.shell.currentWidget;
    return Boolean(page && page.content && page.content.model) }"""
READY = """async () => { const page = jupyterapp.shell.currentWidget; await page.context.ready;
    await page.sessionContext.ready; await page.sessionContext.session.kernel.info }"""
RUN_ALL = "() => jupyterapp.commands.execute('notebook:run-all-cells')"
CELLS = """() => Array.from(jupyterapp.shell.currentWidget.content.model.cells).map(cell => cell.toJSON())
    .filter(cell => cell.cell_type === 'code')"""
BYTES = "async image => Array.from(new Uint8Array(await (await fetch(image.src)).arrayBuffer())).join()"


@pytest.fixture
def lab(tmp_path):
    """The address of a JupyterLab of its own, with the working copy of the lesson in its folder."""
    notebook = json.loads((course.ROOT / "notebooks" / LESSON).read_text(encoding="utf-8"))
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / LESSON).write_text(json.dumps(course.working_copy(notebook)), encoding="utf-8")
    news = tmp_path / "settings" / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    news.parent.mkdir(parents=True)
    news.write_text('{"fetchNews": "false", "checkForUpdates": false}', encoding="utf-8")
    folders = {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data", "JUPYTER_RUNTIME_DIR": "runtime",
               "JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
               "IPYTHONDIR": "ipython"}  # fmt: skip
    environ = os.environ | {name: str(tmp_path / folder) for name, folder in folders.items()}
    environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(course.ROOT), os.environ.get("PYTHONPATH")]))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--expose-app-in-browser",
               "--ip=127.0.0.1", f"--port={port}", "--ServerApp.port_retries=0", "--IdentityProvider.token=",
               "--ServerApp.disable_check_xsrf=True", f"--ServerApp.root_dir={tmp_path / 'work'}"]  # fmt: skip
    log = tmp_path / "server.log"
    with log.open("w") as out:
        server = subprocess.Popen(command, cwd=tmp_path, env=environ, stdout=out, stderr=subprocess.STDOUT)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{address}/api/status", timeout=1)
                break
            except OSError:
                assert server.poll() is None, log.read_text()[-3000:]
                time.sleep(0.25)
        yield address
    finally:
        server.terminate()
        server.wait(20)


@pytest.fixture
def page(lab):
    """The lesson, open in a browser with a running kernel."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=CHROMIUM, headless=True, args=QUIET)
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        page.complaints = []
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.goto(f"{lab}/lab/tree/{LESSON}?reset", wait_until="domcontentloaded", timeout=2 * MINUTE)
        page.wait_for_function(OPEN, timeout=2 * MINUTE)
        page.evaluate(READY)
        yield page
        browser.close()


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (set CHROMIUM to the path of one)")
def test_lesson_05_runs_in_jupyterlab_and_its_slider_moves_by_mouse_and_by_keyboard(page, tmp_path):
    assert page.evaluate(RUN_ALL)
    cells = page.evaluate(CELLS)
    errors = [out["evalue"] for cell in cells for out in cell["outputs"] if out["output_type"] == "error"]
    assert errors == [] and [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))

    picture = page.locator(PICTURE).first
    picture.wait_for(timeout=MINUTE)
    picture.scroll_into_view_if_needed()

    def figure() -> str:
        return hashlib.sha256(page.locator(PICTURE).first.evaluate(BYTES).encode()).hexdigest()

    def changed_from(before: str) -> str:
        for _ in range(200):
            if (now := figure()) != before:
                return now
            page.wait_for_timeout(50)
        pytest.fail("the figure did not change within 10 seconds")

    def says(text: str) -> None:
        page.locator(f'{PICTURE}[alt*="{text}"]').first.wait_for(timeout=MINUTE)

    seen = [figure()]
    says("8 query heads on 2 KV heads (GQA)")
    handle = page.locator(".widget-slider .noUi-handle, .jupyter-widgets .noUi-handle").first
    box, track = handle.bounding_box(), page.locator(".noUi-base").first.bounding_box()
    height = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] / 2, height)
    page.mouse.down()
    page.mouse.move(track["x"] + track["width"], height, steps=10)
    page.mouse.up()
    says("8 query heads on 8 KV heads (MHA)")
    seen.append(changed_from(seen[-1]))

    handle.focus()
    page.keyboard.press("ArrowLeft")
    says("8 query heads on 4 KV heads (GQA)")
    seen.append(changed_from(seen[-1]))

    field = page.locator(".widget-text input").first
    field.fill("12")
    field.press("Enter")
    says("12 query heads on 4 KV heads (GQA)")
    seen.append(changed_from(seen[-1]))

    page.screenshot(path=tmp_path / "lesson.png")
    assert len(set(seen)) == 4 and page.complaints == []
