import os
import sys
from pathlib import Path

import pytest
from jupyter_page import Page, chromium_browser, jupyterlab, write_notebook

sys.path.append(str(Path(__file__).parents[1]))  # toy_lab.py, whose labs both sides of the browser import


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lab")
    with jupyterlab(folder) as url:
        yield url, folder


@pytest.fixture(scope="session")
def browser():
    with chromium_browser() as b:
        yield b


@pytest.fixture
def notebook(server, browser, request):
    """`notebook([cell, ...])` opens a notebook of these cells, `notebook(path="notebooks/...")` one of the kit's."""
    url, folder = server
    contexts = []

    def open_(cells=None, path=None, **options):
        contexts.append(browser.new_context(viewport={"width": 1280, "height": 1000}, **options))
        return Page(contexts[-1].new_page(), url, path or write_notebook(folder, cells))

    yield open_
    for number, context in enumerate(contexts):
        if os.environ.get("NORMKIT_SCREENSHOTS"):  # a folder: what the page looked like when the test ended
            name = f"{request.node.name}_{number}.png".replace("/", "_")
            context.pages[0].screenshot(path=Path(os.environ["NORMKIT_SCREENSHOTS"]) / name)
        context.close()
