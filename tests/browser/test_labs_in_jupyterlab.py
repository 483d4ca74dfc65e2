"""What a learner does with a lab in JupyterLab, and what must be on the screen then."""

import json
import re

import numpy as np
import pytest
from jupyter_page import assert_drawn
from playwright.sync_api import expect

import normkit

pytestmark = pytest.mark.browser
SHOW = ["import normkit", "lab = normkit.DepthLab(model='none')\nlab"]
TOY = ["from toy_lab import ToyLab, ToyStream", "lab = ToyLab()\nlab"]


@pytest.fixture
def depth(notebook):
    page = notebook(SHOW)
    page.run_all()
    page.at_rest()
    return page


def test_keys_move_the_slider_and_the_drawn_numbers_are_the_labs(depth):
    assert_drawn(depth.at_rest(), normkit.DepthLab(model="none"))
    slider = depth.page.get_by_role("slider", name="Depth", exact=True)
    slider.focus()
    for key, layers in (("ArrowRight", 33), ("ArrowLeft", 32), ("PageUp", 45), ("End", 128), ("Home", 1)):
        depth.page.keyboard.press(key)
        expect(slider).to_have_attribute("aria-valuetext", f"{layers} layers")
        assert_drawn(depth.at_rest(layers=layers), normkit.DepthLab(layers=layers, model="none"))


def test_the_mouse_drags_coarse_pictures_and_leaves_an_exact_one(depth):
    page = depth.page
    page.evaluate(
        "addEventListener('nk-drawn', e => (globalThis.seen ??= []).push([e.detail, e.target.dataset.quality]), true)"
    )
    box = page.get_by_role("slider", name="Depth", exact=True).bounding_box()
    y = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + 15, y)
    page.mouse.down()
    for i in range(1, 30):
        page.mouse.move(box["x"] + 15 + 5 * i, y)
        page.wait_for_timeout(15)
    page.mouse.up()
    shown = depth.at_rest()
    layers = int(page.get_by_role("slider", name="Depth", exact=True).get_attribute("aria-valuetext").split()[0])
    assert_drawn(depth.at_rest(layers=layers), normkit.DepthLab(layers=layers, model="none"))
    seen = page.evaluate("seen")
    assert [s for s, _ in seen] == sorted(s for s, _ in seen)  # never an older picture after a newer one
    assert sum(q == "coarse" for _, q in seen) >= 5  # the drag did not starve
    assert seen[-1][1] == "exact" and shown["quality"] == "exact"


def test_choices_change_the_figure_and_its_legend(depth):
    depth.page.get_by_label("Placement", exact=True).select_option(label="post")
    depth.page.get_by_label("Compare with").select_option(label="peri")
    assert_drawn(
        depth.at_rest(placement="post", against="peri"),
        normkit.DepthLab(placement="post", against="peri", model="none"),
    )
    expect(depth.lab().get_by_role("listitem")).to_have_text(
        ["post (simulation)", "post (theory)", "peri (simulation)", "peri (theory)"], use_inner_text=True
    )


def test_set_in_a_cell_moves_the_slider_on_the_screen(notebook):
    page = notebook([*SHOW, "lab.set(layers=77);"])
    page.run_all()
    assert_drawn(page.at_rest(layers=77), normkit.DepthLab(layers=77, model="none"))
    expect(page.page.get_by_role("slider", name="Depth", exact=True)).to_have_attribute("aria-valuetext", "77 layers")


def test_a_lab_shown_twice_moves_in_both_places(notebook):
    page = notebook([*SHOW, "lab"])
    page.run_all()
    page.at_rest(1)
    page.lab(1).get_by_role("slider", name="Depth", exact=True).focus()
    page.page.keyboard.press("End")
    for place in (1, 0):
        assert_drawn(page.at_rest(place, layers=128), normkit.DepthLab(layers=128, model="none"))
    expect(page.lab(0).get_by_role("slider", name="Depth", exact=True)).to_have_attribute(
        "aria-valuetext", "128 layers"
    )


def test_keys_on_a_control_never_edit_the_notebook(depth):
    cells = depth.page.locator(".jp-Notebook .jp-Cell")
    before = cells.count()
    depth.page.get_by_role("slider", name="Depth", exact=True).focus()
    for key in ("b", "a", "d", "d", "x", "ArrowUp", "m"):
        depth.page.keyboard.press(key)
    depth.page.wait_for_timeout(300)
    assert cells.count() == before
    depth.at_rest(layers=33)  # ArrowUp is the slider's


def test_every_control_has_a_name_a_help_and_a_unit(depth):
    lab = depth.lab()
    for control in normkit.DepthLab.declared().values():
        field = lab.get_by_label(control.label, exact=True)
        expect(field).to_have_count(1)
        assert control.help and control.help in field.get_attribute("title")
        if control.slides:
            assert field.get_attribute("aria-valuetext").endswith(control.unit)
    expect(lab.locator("canvas[role=img]")).to_have_attribute("aria-label", re.compile("Forward: pre"))


def test_plotly_at_rest_hovers_and_never_uploads(depth):
    page = depth.page
    plot = depth.lab().locator(".js-plotly-plot")
    box = plot.bounding_box()
    page.mouse.move(box["x"] + 0.3 * box["width"], box["y"] + 0.5 * box["height"])
    buttons = plot.locator(".modebar-btn").evaluate_all(
        "bs => bs.map(b => b.dataset.title ?? b.getAttribute('aria-label'))"
    )
    assert "Download picture (SVG)" in buttons
    assert not [b for b in buttons if re.search("share|cloud|edit", b, re.IGNORECASE)]
    point = plot.locator(".scatterlayer .trace.scatter .point").nth(10).bounding_box()
    page.mouse.move(
        point["x"] + 1, point["y"] + point["height"] / 2
    )  # beside the middle, where the law's point may lie
    expect(plot.locator(".hoverlayer")).to_contain_text("simulation")
    with page.expect_download() as download:
        plot.locator(".modebar-btn[data-title^='Download picture']").click()
    svg = download.value.path().read_text()
    assert svg.startswith("<svg") and "theory" in svg


def test_plotly_travels_once_a_page_whatever_the_number_of_labs(notebook):
    page = notebook(
        [*SHOW, "normkit.DepthLab(placement='post', model='none')", "normkit.DepthLab(placement='peri', model='none')"]
    )
    frames = []
    page.page.on("websocket", lambda ws: ws.on("framereceived", lambda data: frames.append(len(data))))
    page.page.reload()
    page.page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status='idle']", timeout=60_000)
    page.run_all()
    for i in range(3):
        page.at_rest(i)
    assert 1e6 < sum(frames) < 2.5e6  # one compressed bundle and little else


def test_a_crash_in_a_callback_is_shown_and_the_lab_lives_on(notebook):
    page = notebook(TOY)
    page.run_all()
    page.at_rest()
    law = page.page.get_by_label("Law", exact=True)
    law.select_option(label="crash")
    expect(page.lab().locator(".nk-error")).to_have_text("ZeroDivisionError: this law has no values; choose line")
    law.select_option(label="line")
    expect(page.lab().locator(".nk-error")).to_be_empty()
    page.at_rest(law="line")


def test_callbacks_run_in_the_cells_thread(notebook):
    page = notebook(["from toy_lab import ThreadLab", "lab = ThreadLab()\nlab"])
    page.run_all()
    page.at_rest()
    page.page.get_by_role("slider", name="Depth").focus()
    for layers in range(9, 15):
        page.page.keyboard.press("ArrowRight")
        shown = page.at_rest(layers=layers)
        assert {t["name"] for t in shown["data"]} == {"MainThread (theory)"}


def test_a_reopened_notebook_shows_its_pictures(notebook):
    page = notebook(TOY)
    page.run_all()
    page.at_rest()
    page.page.keyboard.press("Escape")
    page.menu("File", "Save Notebook")
    page.page.wait_for_timeout(1500)
    page.menu("Kernel", "Shut Down Kernel")
    page.page.wait_for_timeout(500)
    page.page.reload()
    stage = page.lab().locator(".nk-stage")
    page.page.wait_for_function("s => Number(s.dataset.seq) >= 0", arg=stage.element_handle(), timeout=30_000)
    expect(page.page.get_by_text("model not found")).to_have_count(0)
    painted = stage.locator("canvas").evaluate(
        "c => c.getContext('2d').getImageData(0, 0, c.width, c.height).data.filter((v, i) => i % 4 === 3 && v > 0).length"
    )
    assert painted > 2000  # axes, dots and a band, not an empty canvas
    page.page.get_by_role("slider", name="Depth").focus()
    page.page.keyboard.press("ArrowRight")
    expect(page.lab().locator(".nk-error")).to_contain_text("Run All brings to life")
    page.run_all()  # the dead picture must not keep the live one from getting plotly
    page.at_rest()


def test_a_stream_trains_stops_and_ends(notebook):
    page = notebook(["from toy_lab import ToyStream", "lab = ToyStream()\nlab"])
    page.run_all()
    page.at_rest()
    page.page.get_by_role("button", name="Train").click()
    expect(page.lab().locator(".nk-tag")).to_have_text("exact")
    shown = page.at_rest()
    assert shown["data"][-2]["y"] == [1, 2, 3, 4, 5]
    expect(page.page.get_by_role("progressbar", name="Progress")).to_have_js_property("value", 1)


@pytest.mark.parametrize("theme", ["JupyterLab Light", "JupyterLab Dark"])
def test_labels_are_legible_on_light_and_dark(server, notebook, theme):
    settings = server[1] / ".settings" / "@jupyterlab" / "apputils-extension" / "themes.jupyterlab-settings"
    settings.parent.mkdir(parents=True, exist_ok=True)
    settings.write_text(json.dumps({"theme": theme}))
    page = notebook(SHOW)
    settings.unlink()
    page.run_all()
    page.at_rest()
    assert page.page.evaluate("document.body.dataset.jpThemeLight") == str(theme.endswith("Light")).lower()
    shades = page.lab().evaluate(
        """lab => {const rgb = c => c.match(/[\\d.]+/g).slice(0, 3).map(Number);
           const back = rgb(getComputedStyle(document.querySelector('.jp-Notebook')).backgroundColor);
           return [...lab.querySelectorAll('strong, label, output, li, .nk-text, select')].map(e => [rgb(getComputedStyle(e).color), back]);}"""
    )

    def luminance(rgb):
        c = np.array(rgb) / 255
        return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]

    for ink, back in shades:
        hi, lo = sorted((luminance(ink), luminance(back)), reverse=True)
        assert (hi + 0.05) / (lo + 0.05) >= 4.5, (ink, back)  # WCAG 1.4.3, text
