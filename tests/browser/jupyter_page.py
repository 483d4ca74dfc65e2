"""Real JupyterLab in real Chromium, for the browser tests and for latency.py."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import nbformat
import numpy as np

ROOT = Path(__file__).parents[2]
CALM = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


def chromium() -> str:
    names = ("chromium", "chromium-browser", "google-chrome")
    found = os.environ.get("NORMKIT_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    assert found, (
        "the browser tests need Chromium: install it (Debian: apt-get install chromium) or set NORMKIT_CHROMIUM"
    )
    return found


@contextmanager
def jupyterlab(folder: Path):
    """Serve a folder that holds a copy of the kit's notebooks on a free port; yields the address."""
    shutil.copytree(ROOT / "notebooks", folder / "notebooks", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    options = [
        "--no-browser",
        f"--port={port}",
        "--IdentityProvider.token=",
        "--allow-root",
        f"--ServerApp.root_dir={folder}",
    ]
    settings = folder / ".settings" / "@jupyterlab" / "notebook-extension"
    settings.mkdir(parents=True)  # every cell in the page, also those out of sight, so that a test can wait for them
    (settings / "tracker.jupyterlab-settings").write_text('{"windowingMode": "none"}')
    env = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "JUPYTERLAB_SETTINGS_DIR": str(folder / ".settings"),
        "PYTHONPATH": str(ROOT / "tests"),
        "JUPYTER_DATA_DIR": str(folder / ".jupyter"),
    }
    lessons = sorted(map(str, (folder / "notebooks").glob("*.ipynb")))
    subprocess.run([sys.executable, "-m", "jupyter", "trust", *lessons], env=env, check=True, stdout=subprocess.DEVNULL)
    env.pop("NORMKIT_STATIC", None)
    with open(folder / "server.log", "w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *options], stdout=log, stderr=log, cwd=folder, env=env
        )
        try:
            url = f"http://127.0.0.1:{port}"
            for _ in range(400):
                try:
                    urllib.request.urlopen(f"{url}/api", timeout=1).close()
                    break
                except OSError:
                    assert process.poll() is None, (folder / "server.log").read_text()
                    time.sleep(0.25)
            yield url
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def chromium_browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium(), args=CALM)
        yield browser
        browser.close()


def write_notebook(folder: Path, cells: list[str]) -> str:
    """A notebook of these code cells, for Page to open; returns its name."""
    name = f"made_{time.time_ns()}.ipynb"
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    nb.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(nb, folder / name)
    return name


class Page:
    """A notebook open in JupyterLab, its kernel ready."""

    def __init__(self, page, url, path):
        self.page = page
        page.set_default_timeout(15_000)
        page.goto(f"{url}/lab/workspaces/w{time.time_ns()}/tree/{path}?reset")
        page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=90_000)
        page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status='idle']", timeout=90_000)

    def menu(self, *names):
        for name in names:
            self.page.get_by_role("menuitem", name=re.compile(rf"^{name}( Ctrl.*)?$")).click()

    def run_all(self, timeout=90_000):
        """Run every cell, and wait until the last has its number."""
        from playwright.sync_api import TimeoutError as NotYet

        prompts = """() => [...document.querySelectorAll('.jp-Notebook .jp-CodeCell')]
            .filter(c => c.querySelector('.cm-content')?.textContent.trim() !== '')
            .map(c => c.querySelector('.jp-InputPrompt')?.textContent ?? '')"""
        self.menu("Edit", "Clear Outputs of All Cells")  # or the numbers of an earlier run would look like this one's
        for _ in range(3):  # JupyterLab drops the order when the kernel's session is not connected yet
            self.menu("Run", "Run All Cells")
            try:
                self.page.wait_for_function(f"() => ({prompts})().some(t => /\\[[*\\d]+\\]/.test(t))", timeout=5_000)
                break
            except NotYet:
                self.page.keyboard.press("Escape")
        self.page.wait_for_function(f"() => ({prompts})().every(t => /\\[\\d+\\]/.test(t))", timeout=timeout)

    def lab(self, index=0):
        lab = self.page.locator(".nk-lab:has(.nk-stage)").nth(index)
        lab.wait_for(timeout=60_000)
        lab.scroll_into_view_if_needed()
        return lab

    def at_rest(self, index=0, timeout=30_000, **controls):
        """Wait until plotly shows the picture of these controls; returns its data, its quality and all controls."""
        stage = self.lab(index).locator(".nk-stage")
        self.page.wait_for_function(
            """([s, want]) => {if (s.dataset.resting !== 'true' || s.dataset.quality === 'coarse') return false;
               const have = JSON.parse(s.dataset.controls); return Object.entries(want).every(([k, v]) => have[k] === v);}""",
            arg=[stage.element_handle(), controls],
            timeout=timeout,
        )
        return stage.evaluate(
            """s => ({controls: JSON.parse(s.dataset.controls), quality: s.dataset.quality,
                data: s.querySelector('.js-plotly-plot').data.map(t => ({name: t.name, mode: t.mode, fill: t.fill ?? null,
                    xaxis: t.xaxis, x: [...t.x], y: [...t.y], z: t.z ? t.z.map(row => [...row]) : null}))})"""
        )


def assert_drawn(shown, lab, rtol=1e-9):
    """Every curve on the screen is the curve of lab.run(), number for number."""
    want = lab.picture(lab.run())["data"]
    assert shown["controls"] == lab.controls()
    assert shown["quality"] == "exact"
    assert [t["name"] for t in shown["data"]] == [t["name"] for t in want]
    for have, trace in zip(shown["data"], want, strict=True):
        # the law is sampled in another process: BLAS, libm and a fresh compilation may round otherwise there
        for key in {"x", "y", "z"} & trace.keys():
            np.testing.assert_allclose(
                have[key], trace[key], rtol=rtol, atol=rtol * np.max(np.abs(trace[key]), initial=0)
            )
