"""The labs of the theme "attention" as a learner uses them: moved by keys and lists, trained, stopped, trained again."""

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
    """`shown("AttentionLab()")` opens a notebook with this lab, runs it, and hears what the page complains of."""
    complaints = []

    def open_(*labs):
        page = notebook(["import normkit", *(f"normkit.{lab}" for lab in labs)])
        page.page.on("pageerror", lambda error: complaints.append(str(error)))
        page.page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
        page.run_all()
        for i in range(len(labs)):
            page.at_rest(i)
        return page

    yield open_
    assert complaints == []


def slider(page, name, index=0):
    return page.lab(index).get_by_role("slider", name=name, exact=True)


def pick(page, label, option, index=0):
    page.lab(index).get_by_label(label, exact=True).select_option(label=option)


def within_its_panel(page, name, index=0):
    """No text lies on another or leaves the figure; with NORMKIT_SCREENSHOTS, a folder, the lab is also photographed."""
    page.at_rest(index)
    lab = page.lab(index)
    if folder := os.environ.get("NORMKIT_SCREENSHOTS"):
        lab.screenshot(path=Path(folder) / f"{name}.png")
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


def test_random_attention_by_keys_and_lists(shown):
    page, want = shown("AttentionLab()"), normkit.AttentionLab()

    def same(**controls):
        # float32 matrix products of another process round otherwise
        data = page.at_rest(**controls)
        assert_drawn(data, want.set(**controls), rtol=1e-5)
        # a map and its color bar are two heat maps, on three pairs of axes with the right panel's
        assert sorted(t["xaxis"] for t in data["data"] if t["z"]) == ["x", "x3"]
        assert {t["xaxis"] for t in data["data"]} == {"x", "x2", "x3"}
        return next(t["z"] for t in data["data"] if t["z"])

    before = same()
    within_its_panel(page, "light_AttentionLab")
    slider(page, "Logit scale").focus()
    for key, scale in (("ArrowRight", 2.25), ("End", 14.0), ("Home", 0.0)):
        page.page.keyboard.press(key)
        after = same(scale=scale)
        if scale == 14:
            assert np.mean(np.max(after, 1)) > 0.8 > 0.5 > np.mean(np.max(before, 1))
    slider(page, "Sequence length").focus()
    for key, tokens in (("Home", 8), ("End", 1024)):
        page.page.keyboard.press(key)
        assert np.shape(same(tokens=tokens)) == (min(tokens, 40),) * 2
    for control, label, options in (
        ("left", "Left", ("logits", "phase diagram")),
        ("right", "Right", ("spectral norm", "largest probability", "entropy")),
        ("logits", "Logits", ("queries and keys", "independent")),
        ("real", "Real model", ("majority collapsed",)),
    ):
        for option in options:
            pick(page, label, option)
            z = same(**{control: option})
            assert np.shape(z) == ((25, 9) if want.left == "phase diagram" else (40, 40))
    slider(page, "Logit scale").focus()
    page.page.keyboard.press("End")
    same(scale=14.0)
    expect(page.lab().get_by_role("listitem")).to_have_text(
        [
            "freezing (theory)", "random head (simulation)", "random head (theory)", "leading order (theory)",
            "floor (theory)", "majority collapsed (real model)", "here (simulation)",
        ], use_inner_text=True,
    )  # fmt: skip


def test_a_transformer_is_trained_and_stopped_and_ghosts_get_more_orders(shown):
    page = shown("AttentionTrainingLab(steps=300)", "GhostsLab()")
    lab = page.lab()
    tag, bar = lab.locator(".nk-tag"), lab.get_by_role("progressbar", name="Progress")
    train, stop = (lab.get_by_role("button", name=text) for text in ("Train", "Stop"))
    expect(tag).to_have_text("ready")
    train.click()
    expect(tag).to_contain_text("running", timeout=20_000)
    page.page.wait_for_function("p => p.value > 0", arg=bar.element_handle())
    stop.click()
    expect(tag).to_have_text("stopped")
    assert 0 < bar.evaluate("p => p.value") < 1
    expect(lab.locator(".nk-text")).to_contain_text("layer 3, head 2 (real model)")
    slider(page, "Training").focus()
    page.page.keyboard.press("Home")
    page.at_rest(steps=50)
    pick(page, "Cure", "sigma_reparam")
    page.at_rest(cure="sigma_reparam")
    expect(tag).to_have_text("ready")
    train.click()
    expect(tag).to_have_text("exact", timeout=30_000)
    expect(bar).to_have_js_property("value", 1)
    # float32 sums may round otherwise in another process, and training makes more of it
    assert_drawn(page.at_rest(steps=50), normkit.AttentionTrainingLab(steps=50, cure="sigma_reparam"), rtol=0.01)
    expect(lab.locator(".nk-error")).to_be_empty()
    within_its_panel(page, "light_AttentionTrainingLab")
    within_its_panel(page, "light_GhostsLab", 1)

    want = normkit.GhostsLab()
    assert_drawn(page.at_rest(1), want, rtol=1e-4)  # float32 losses of another process
    slider(page, "Orders", 1).focus()
    for key, order in (("ArrowRight", 5), ("End", 24)):
        page.page.keyboard.press(key)
        assert_drawn(page.at_rest(1, order=order), want.set(order=order), rtol=1e-4)
    pick(page, "Model", "mlp", 1)
    data = page.at_rest(1, model="mlp")
    assert_drawn(data, want.set(model="mlp"), rtol=1e-4)
    assert not any("Taylor" in t["name"] for t in data["data"])


def test_every_lab_is_drawn_on_dark(server, shown):
    settings = server[1] / ".settings" / "@jupyterlab" / "apputils-extension" / "themes.jupyterlab-settings"
    settings.parent.mkdir(parents=True, exist_ok=True)
    settings.write_text(json.dumps({"theme": "JupyterLab Dark"}))
    labs = ("AttentionLab()", "AttentionLab(left='phase diagram')", "AttentionTrainingLab(steps=50)", "GhostsLab()")
    page = shown(*labs)
    settings.unlink()
    page.lab(2).get_by_role("button", name="Train").click()
    expect(page.lab(2).locator(".nk-tag")).to_have_text("exact", timeout=30_000)
    assert page.page.evaluate("document.body.dataset.jpThemeLight") == "false"
    for i, name in enumerate(labs):
        within_its_panel(page, f"dark_{i}_{name.split('(')[0]}", i)
