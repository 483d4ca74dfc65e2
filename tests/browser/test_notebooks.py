"""The lessons as a learner meets them: opened, run, dragged, predicted, trained."""

import re

import numpy as np
import pytest
from jupyter_page import ROOT
from playwright.sync_api import expect

import normkit

pytestmark = pytest.mark.browser
LESSONS = sorted(p.name for p in (ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("name", LESSONS)
def test_a_lesson_opens_with_its_pictures_and_runs_without_an_error(notebook, name):
    page = notebook(path=f"notebooks/{name}")
    stage = page.lab().locator(".nk-stage")
    page.page.wait_for_function("s => s.dataset.seq !== undefined", arg=stage.element_handle(), timeout=30_000)
    page.run_all(timeout=180_000)
    expect(page.page.locator("[data-mime-type='application/vnd.jupyter.error']")).to_have_count(0)
    expect(page.page.get_by_text(re.compile("model not found|Error displaying widget"))).to_have_count(0)
    for i in range(page.page.locator(".nk-lab:has(.nk-stage)").count()):
        lab = page.page.locator(".nk-lab:has(.nk-stage)").nth(i)
        lab.scroll_into_view_if_needed()
        expect(lab.locator(".nk-stage")).to_have_attribute("data-resting", "true", timeout=30_000)
        expect(lab.locator(".nk-error")).to_be_empty()


@pytest.fixture
def lesson(notebook):
    page = notebook(path="notebooks/01_variance_growth.ipynb")
    page.run_all(timeout=180_000)
    return page


def test_the_first_lab_of_the_lesson_follows_depth_and_placement(lesson):
    lesson.at_rest(0)
    lab = lesson.lab(0)
    lab.get_by_role("slider", name="Depth", exact=True).focus()
    lesson.page.keyboard.press("PageUp")
    lab.get_by_label("Placement", exact=True).select_option(label="post")
    shown = lesson.at_rest(0, layers=45, placement="post")
    want = normkit.DepthLab(layers=45, placement="post")
    names = [t["name"] for t in shown["data"]]
    assert names == [t["name"] for t in want.picture(want.run())["data"]]
    assert {"post (theory)", "post (simulation)", "trained post (real model)"} <= set(names)
    law = shown["data"][names.index("post (theory)")]
    np.testing.assert_array_equal(law["y"], np.ones(46))


def test_a_prediction_is_kept_and_then_answered(lesson):
    question = lesson.page.locator(".nk-ask").first
    question.scroll_into_view_if_needed()
    expect(question.get_by_role("button", name="Commit")).to_be_disabled()
    question.get_by_label("32", exact=True).check()
    question.get_by_role("button", name="Commit").click()
    expect(question.get_by_role("status")).to_contain_text("Not quite: you said 32. Computed: 5.74.")
    expect(question.get_by_label("6", exact=True)).to_be_disabled()


def test_training_is_seen_stopped_and_begun_again(lesson):
    lab = lesson.page.locator(".nk-lab", has=lesson.page.get_by_role("button", name="Train"))
    lab.scroll_into_view_if_needed()
    tag, train, stop = (
        lab.locator(".nk-tag"),
        lab.get_by_role("button", name="Train"),
        lab.get_by_role("button", name="Stop"),
    )
    train.click()
    expect(tag).to_contain_text("running", timeout=20_000)
    stop.click()
    expect(tag).to_have_text("stopped")
    assert 0 < lab.get_by_role("progressbar").evaluate("p => p.value") < 1
    expect(lab.locator(".nk-text")).to_contain_text("pre, now (real model)")
    lab.get_by_label("Placement", exact=True).select_option(label="peri")
    expect(tag).to_have_text("ready")
    train.click()
    expect(tag).to_contain_text("running", timeout=20_000)
    stop.click()
    expect(tag).to_have_text("stopped")
    expect(lab.locator(".nk-legend")).to_contain_text("peri, now")
