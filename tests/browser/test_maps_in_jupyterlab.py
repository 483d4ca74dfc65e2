"""Heat maps, equal-aspect panels and joined paths on the screen: the canvas and plotly must show the same."""

import io
import json

import numpy as np
import pytest
from jupyter_page import Page, write_notebook
from PIL import Image
from playwright.sync_api import expect
from toy_lab import ToyMap

from normkit.figures import HEAT

pytestmark = pytest.mark.browser
CELLS = ["from toy_lab import ToyMap", "lab = ToyMap()\nlab"]
AXES = """s => {const l = s.querySelector('.js-plotly-plot')._fullLayout;
    return Object.fromEntries(Object.keys(l).filter(k => /^[xy]axis/.test(k)).map(k =>
        [k, {range: [...l[k].range], length: l[k]._length, offset: l[k]._offset, ticks: l[k]._vals.map(v => v.text)}]))}"""


@pytest.fixture(scope="module")
def book(server, browser):
    """One open notebook for all tests: each chooses its view first."""
    url, folder = server
    context = browser.new_context(viewport={"width": 1280, "height": 1000})
    page = Page(context.new_page(), url, write_notebook(folder, CELLS))
    page.run_all()
    page.at_rest()
    yield page
    context.close()


def choose(book, view):
    book.page.get_by_label("View", exact=True).select_option(label=view)
    shown = book.at_rest(view=view)
    lab = ToyMap(**shown["controls"])
    want = lab.picture(lab.run())["data"]
    assert [t["name"] for t in shown["data"]] == [t["name"] for t in want]
    for have, trace in zip(shown["data"], want, strict=True):
        for key in {"x", "y", "z"} & set(trace):
            np.testing.assert_allclose(have[key], trace[key], rtol=1e-9)


def painted(book):
    """The stage as plotly shows it and as the canvas shows it, (height, width, 3)."""
    stage = book.lab().locator(".nk-stage")
    book.page.mouse.move(2, 2)
    pictures = []
    for resting in ("true", "false"):
        stage.evaluate("(s, r) => (s.dataset.resting = r)", resting)
        pictures.append(np.asarray(Image.open(io.BytesIO(stage.screenshot())).convert("RGB")).astype(int))
    stage.evaluate("s => (s.dataset.resting = 'true')")
    return pictures


def assert_same_picture(book):
    """What is colored, all but the grey text, lies in the same place in both pictures, to a pixel."""
    pictures = painted(book)
    colored = [np.ptp(p, axis=-1) > 50 for p in pictures]
    for mine, other in (colored, colored[::-1]):
        near = np.any([np.roll(other, (i, j), (0, 1)) for i in (-1, 0, 1) for j in (-1, 0, 1)], axis=0)
        assert mine.sum() > 1000
        assert (mine & ~near).sum() < 0.01 * mine.sum()
    return pictures


def assert_equal_aspect(book, number=""):
    axes = book.lab().locator(".nk-stage").evaluate(AXES)
    x, y = axes["xaxis" + number], axes["yaxis" + number]
    units = [a["length"] / (a["range"][1] - a["range"][0]) for a in (x, y)]
    assert units[0] == pytest.approx(units[1], rel=1e-3)  # lengths are whole pixels
    assert x["range"][0] <= -1 and x["range"][1] >= 1 and y["range"][0] <= -1 and y["range"][1] >= 1
    assert len(x["ticks"]) >= 3 and len(y["ticks"]) >= 3


def test_the_view_changes_the_number_of_panels_and_back(book):
    for view, axes in (("path", 1), ("both", 3), ("map", 2), ("both", 3), ("path", 1)):  # a color bar is an axis too
        choose(book, view)
        stage = book.lab().locator(".nk-stage")
        assert len([k for k in stage.evaluate(AXES) if k[0] == "x"]) == axes
        expect(stage.locator(".js-plotly-plot .hm")).to_have_count(0 if view == "path" else 2)
        assert_same_picture(book)
    assert book.page.locator(".nk-error").inner_text() == ""


def test_both_painters_give_every_cell_the_palettes_color(book):
    choose(book, "map")
    lab = ToyMap(turn=book.at_rest()["controls"]["turn"])
    cells = next(t for t in lab.picture(lab.run())["data"] if t["type"] == "heatmap")
    axes = book.lab().locator(".nk-stage").evaluate(AXES)
    palette = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in HEAT])
    share = (cells["z"] - cells["zmin"]) / (cells["zmax"] - cells["zmin"]) * (len(HEAT) - 1)
    want = np.stack([np.interp(share, range(len(HEAT)), palette[:, c]) for c in range(3)], -1)

    def pixels(axis, values):
        lo, hi = axis["range"]
        return axis["offset"] + (np.log10(values) - lo) / (hi - lo) * axis["length"]

    px = pixels(axes["xaxis"], cells["x"]).round().astype(int)
    y = axes["yaxis"]
    py = (2 * y["offset"] + y["length"] - pixels(y, cells["y"])).round().astype(int)
    for picture in painted(book):
        error = np.abs(picture[py[:, None], px[None]] - want).max(-1)
        assert (error <= 3).mean() > 0.8, error  # rounding; the other cells lie under a curve, its casing or a marker


def test_a_unit_is_as_long_along_x_as_along_y_at_any_width(book):
    wide = book.lab().locator(".nk-stage").bounding_box()["width"]
    for view, number in (("path", ""), ("both", "2")):
        choose(book, view)
        for width in (820, 1280):
            book.page.set_viewport_size({"width": width, "height": 1000})
            book.page.wait_for_timeout(700)
            book.at_rest(view=view)
            assert (book.lab().locator(".nk-stage").bounding_box()["width"] < wide) == (width == 820)
            assert_equal_aspect(book, number)
            assert_same_picture(book)


def test_the_legend_shows_each_name_once_and_no_heat_map(book):
    choose(book, "both")
    items = book.lab().get_by_role("listitem")
    expect(items).to_have_text(
        ["stable edge (theory)", "sweep (simulation)", "here (real model)", "sphere (theory)", "weight (simulation)"],
        use_inner_text=True,
    )
    # painted pixels by column of each sample: a line spans it, a dot only its middle, a joined dot is a line with a hump
    columns = items.locator("canvas").evaluate_all(
        """cs => cs.map(c => {const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data, n = Array(c.width).fill(0);
           for (let i = 0; i < d.length / 4; i++) if (d[4 * i + 3] > 60) n[i % c.width]++; return n;})"""
    )
    edge, sweep, here, sphere, weight = ((c[6], c[28]) for c in columns)
    assert edge[0] == edge[1] > sphere[0] == sphere[1] > 0
    assert sweep[1] > sweep[0] > 0 and weight[1] > weight[0] > 0
    assert here[0] == 0 and here[1] > 0


def test_hovering_a_cell_tells_its_number_and_not_its_logarithm(book):
    choose(book, "map")
    stage = book.lab().locator(".nk-stage")
    axes, box = stage.evaluate(AXES), stage.bounding_box()
    x, y = axes["xaxis"], axes["yaxis"]
    book.page.mouse.move(box["x"] + x["offset"] + x["length"] - 6, box["y"] + y["offset"] + 6)
    # the last cell: rate 10, batch 64, loss 1e-3 + 10 * 64^2
    expect(stage.locator(".hoverlayer")).to_contain_text("loss (nats) 4.096e+4")
    expect(stage.locator(".hoverlayer")).to_contain_text("batch size (examples) 64")


def test_a_moved_slider_repaints_map_and_path(book):
    choose(book, "both")
    slider = book.page.get_by_role("slider", name="Turn", exact=True)
    slider.focus()
    book.page.keyboard.press("End")
    shown = book.at_rest(turn=1.0)
    *_, weight = shown["data"]
    assert weight["mode"] == "lines+markers"
    np.testing.assert_allclose(weight["x"][1], 0.95 * np.cos(1.0))
    assert_same_picture(book)


@pytest.mark.parametrize("theme", ["JupyterLab Light", "JupyterLab Dark"])
def test_maps_and_paths_look_the_same_on_light_and_dark(server, notebook, theme):
    settings = server[1] / ".settings" / "@jupyterlab" / "apputils-extension" / "themes.jupyterlab-settings"
    settings.parent.mkdir(parents=True, exist_ok=True)
    settings.write_text(json.dumps({"theme": theme}))
    page = notebook(CELLS)
    settings.unlink()
    page.run_all()
    page.at_rest()
    choose(page, "both")
    plotly, _ = assert_same_picture(page)
    assert (plotly[2, 2].mean() > 128) == theme.endswith("Light")
