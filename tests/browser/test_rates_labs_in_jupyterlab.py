"""The labs of the theme "rates" as a learner uses them: moved by keys, mouse and lists, trained, stopped, trained again."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from jupyter_page import assert_drawn
from playwright.sync_api import expect

import normkit

pytestmark = pytest.mark.browser


@pytest.fixture
def shown(notebook):
    """`shown("RatesLab()")` opens a notebook with this lab, runs it, and hears what the page complains of."""
    complaints = []

    def open_(lab):
        page = notebook(["import normkit", f"lab = normkit.{lab}\nlab"])
        page.page.on("pageerror", lambda error: complaints.append(str(error)))
        page.page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
        page.run_all()
        page.at_rest()
        return page

    yield open_
    assert complaints == []


def slider(page, name):
    return page.lab().get_by_role("slider", name=name, exact=True)


def pick(page, label, option):
    page.lab().get_by_label(label, exact=True).select_option(label=option)


def traces(shown, name, panel):
    return [t for t in shown["data"] if t["name"] == name and t["xaxis"] == panel]


# ---- RatesLab


def test_the_walk_changes_with_optimizer_picture_and_keys(shown):
    page = shown("RatesLab()")
    want = normkit.RatesLab()
    assert_drawn(page.at_rest(), want)
    pick(page, "Optimizer", "adam")
    assert_drawn(page.at_rest(optimizer="adam"), want.set(optimizer="adam"))
    pick(page, "Compare with", "sgdp")
    assert_drawn(page.at_rest(against="sgdp"), want.set(against="sgdp"))
    slider(page, "Learning rate").focus()
    for key, lr in (("ArrowRight", 0.32), ("Home", 0.01), ("ArrowRight", 0.02)):
        page.page.keyboard.press(key)
        assert_drawn(page.at_rest(lr=lr), want.set(lr=lr))
    pick(page, "Right", "angle")
    pick(page, "Axes", "linear")
    assert_drawn(page.at_rest(right="angle", scale="linear"), want.set(right="angle", scale="linear"))
    expect(page.lab().locator(".nk-text")).to_contain_text("adam (real model)")


def test_the_sphere_becomes_a_circle_and_both_are_round(shown):
    page = shown("RatesLab(lr=0.08)")
    for view, outlines, title in (("sphere", 4, "across"), ("circle", 1, "w₁"), ("sphere", 4, "across")):
        pick(page, "Picture", view)
        data = page.at_rest(view=view)
        assert_drawn(data, normkit.RatesLab(lr=0.08, view=view))
        rings = traces(data, "start (theory)", "x")
        assert len(rings) == outlines
        assert max(np.hypot(r["x"], r["y"]).max() for r in rings) == pytest.approx(1)
        axes = page.lab().locator(".js-plotly-plot").evaluate(
            """p => ['xaxis', 'yaxis'].map(k => {const a = p._fullLayout[k];
                return {unit: a._length / (a.range[1] - a.range[0]), title: a.title.text}})"""
        )  # fmt: skip
        assert axes[0]["unit"] == pytest.approx(axes[1]["unit"], rel=1e-3)  # lengths are whole pixels
        assert axes[0]["title"] == title
    before = traces(data, "sgd (simulation)", "x")[0]
    slider(page, "Turn").focus()
    page.page.keyboard.press("End")
    after = traces(page.at_rest(turn=360), "sgd (simulation)", "x")[0]
    page.page.keyboard.press("Home")
    home = traces(page.at_rest(turn=0), "sgd (simulation)", "x")[0]
    np.testing.assert_allclose(after["x"], home["x"], atol=1e-9)  # once around
    assert not np.allclose(before["x"], home["x"], atol=1e-2)


def test_the_mouse_drags_the_learning_rate_and_leaves_an_exact_picture(shown):
    page = shown("RatesLab(steps=4000, against='adamp')")  # the slowest: the drag must not starve
    mouse = page.page
    mouse.evaluate("addEventListener('nk-drawn', e => (globalThis.seen ??= []).push(e.target.dataset.quality), true)")
    box = slider(page, "Learning rate").bounding_box()
    y = box["y"] + box["height"] / 2
    mouse.mouse.move(box["x"] + box["width"] - 12, y)
    mouse.mouse.down()
    for i in range(1, 30):
        mouse.mouse.move(box["x"] + box["width"] - 12 - 0.03 * i * box["width"], y)
        mouse.wait_for_timeout(40)
    mouse.mouse.up()
    mouse.wait_for_timeout(300)
    lr = page.at_rest()["controls"]["lr"]
    assert lr < 0.16
    assert_drawn(page.at_rest(lr=lr), normkit.RatesLab(steps=4000, against="adamp", lr=lr))
    seen = mouse.evaluate("seen")
    assert seen.count("coarse") >= 2 and seen[-1] == "exact"


# ---- EquilibriumLab


def test_the_map_its_cross_and_its_cut_move_together(shown):
    page = shown("EquilibriumLab()")
    want = normkit.EquilibriumLab()
    assert_drawn(page.at_rest(), want)
    slider(page, "Weight decay").focus()
    page.page.keyboard.press("End")
    data = page.at_rest(weight_decay=0.8)
    assert_drawn(data, want.set(weight_decay=0.8))
    heat = next(t for t in data["data"] if t["z"] and len(t["x"]) == 7)
    np.testing.assert_allclose(np.log10(traces(data, "sgd (simulation)", "x2")[-1]["y"]), heat["z"][6], rtol=1e-9)
    assert traces(data, "here (simulation)", "x")[-1]["y"] == [0.8]
    for control, label, option in (
        ("cut", "Cut along", "weight decay"),
        ("show", "Show", "norm"),
        ("optimizer", "Optimizer", "momentum"),
        ("coupling", "Decay is", "decoupled"),
    ):
        pick(page, label, option)
        assert_drawn(page.at_rest(**{control: option}), want.set(**{control: option}))
    expect(page.lab().get_by_role("listitem")).to_have_text(
        ["here (simulation)", "momentum (simulation)", "momentum (theory)"], use_inner_text=True
    )


# ---- the labs that train

TRAINED = {
    "RatesTrainingLab": ({"steps": 1000}, {"steps": 100, "optimizer": "sgd"}),
    "PlasticityLab": ({"tasks": 30, "steps": 300}, {"tasks": 3, "steps": 50}),
}


@pytest.mark.parametrize("name", TRAINED)
def test_a_net_is_trained_stopped_and_trained_to_its_end(shown, name):
    long, short = TRAINED[name]
    page = shown(f"{name}(**{long})")
    lab, kind = page.lab(), getattr(normkit, name)
    tag, bar = lab.locator(".nk-tag"), lab.get_by_role("progressbar", name="Progress")
    train, stop = (lab.get_by_role("button", name=text) for text in ("Train", "Stop"))
    expect(tag).to_have_text("ready")
    train.click()
    expect(tag).to_contain_text("running", timeout=20_000)
    page.page.wait_for_function("p => p.value > 0", arg=bar.element_handle())
    stop.click()
    expect(tag).to_have_text("stopped")
    assert 0 < bar.evaluate("p => p.value") < 1
    expect(lab.locator(".nk-text")).to_contain_text("(real model)")
    for control, value in short.items():
        label = kind.declared()[control].label
        if isinstance(value, str):
            pick(page, label, value)
        else:
            slider(page, label).focus()
            page.page.keyboard.press("Home")
            for _ in range(value - kind.declared()[control].values[0] if control == "tasks" else 0):
                page.page.keyboard.press("ArrowRight")
        page.at_rest(**{control: value})
    expect(tag).to_have_text("ready")
    train.click()
    expect(tag).to_have_text("exact", timeout=30_000)
    expect(bar).to_have_js_property("value", 1)
    # float32 sums may round otherwise in another process, and training makes more of it
    assert_drawn(page.at_rest(**short), kind(**short), rtol=0.01)
    expect(lab.locator(".nk-error")).to_be_empty()


def test_a_run_that_diverges_says_what_to_do_and_the_lab_goes_on(shown):
    page = shown("RatesTrainingLab(norm='none', lr=1.6, weight_decay=0.1, steps=100)")
    train = page.lab().get_by_role("button", name="Train")
    train.click()
    error = page.lab().locator(".nk-error")
    expect(error).to_contain_text("FloatingPointError: the loss stopped being a number at step", timeout=20_000)
    expect(error).to_contain_text("lower the learning rate, or use a norm")
    pick(page, "Norm", "batchnorm")
    expect(error).to_be_empty()
    train.click()
    expect(page.lab().locator(".nk-tag")).to_have_text("exact", timeout=20_000)
    expect(error).to_be_empty()


# ---- WeightsLab


def test_the_matrices_of_each_real_model_are_drawn(shown):
    page = shown("WeightsLab()")
    want = normkit.WeightsLab()
    assert_drawn(page.at_rest(), want)
    pick(page, "Right", "effective lr")
    for model in ("pre", "MiniLM", "peri"):
        pick(page, "Real model", model)
        data = page.at_rest(model=model, right="effective lr")
        assert_drawn(data, want.set(model=model, right="effective lr"))
    expect(page.lab().get_by_role("listitem")).to_have_count(5)


# ---- how they look


@pytest.mark.parametrize("theme", ["JupyterLab Light", "JupyterLab Dark"])
def test_every_lab_is_drawn_within_its_panel_on_light_and_dark(server, notebook, theme):
    settings = server[1] / ".settings" / "@jupyterlab" / "apputils-extension" / "themes.jupyterlab-settings"
    settings.parent.mkdir(parents=True, exist_ok=True)
    settings.write_text(json.dumps({"theme": theme}))
    labs = ("RatesLab(against='adam')", "EquilibriumLab()", "RatesTrainingLab()", "PlasticityLab()", "WeightsLab()")
    page = notebook(["import normkit", *(f"normkit.{lab}" for lab in labs)])
    settings.unlink()
    page.run_all()
    for i, name in enumerate(labs):
        page.at_rest(i)
        lab = page.lab(i)
        if folder := os.environ.get("NORMKIT_SCREENSHOTS"):
            lab.screenshot(path=Path(folder) / f"{theme}_{name.split('(')[0]}.png".replace(" ", "_"))
        overlaps = lab.locator(".js-plotly-plot").evaluate(
            """p => {const all = [...p.querySelectorAll('.xtitle, .ytitle, .xtick text, .ytick text, .annotation-text')]
                .map(e => [e.textContent, e.getBoundingClientRect()]).filter(([t, b]) => t && b.width);
               const outer = p.getBoundingClientRect(), found = [];
               all.forEach(([t, b], i) => {
                 if (b.left < outer.left - 1 || b.right > outer.right + 1) found.push(t + ' leaves the figure');
                 all.slice(i + 1).forEach(([u, c]) => {if (Math.min(b.right, c.right) - Math.max(b.left, c.left) > 2
                   && Math.min(b.bottom, c.bottom) - Math.max(b.top, c.top) > 4) found.push(t + ' lies on ' + u)})});
               return found}"""
        )
        assert overlaps == [], name
        assert lab.evaluate("lab => lab.scrollWidth <= lab.clientWidth + 1"), name
