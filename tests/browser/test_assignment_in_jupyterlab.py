"""An assignment as a student meets it: handed out, opened, answered wrongly and then rightly, each time checked."""

import tempfile
from pathlib import Path

import pytest
from jupyter_page import ROOT
from playwright.sync_api import expect

from normkit.course import release, runner, source

pytestmark = pytest.mark.browser
MASTER = ROOT / "notebooks" / "assignments" / "01_variance_growth.ipynb"


@pytest.fixture
def assignment():
    return source.read(MASTER)


@pytest.fixture
def page(notebook, server):
    folder = Path(tempfile.mkdtemp(prefix="handed out ", dir=server[1]))  # nothing else lies in it
    file = release.release(MASTER, folder, student="ada")
    page = notebook(path=file.relative_to(server[1]).as_posix())
    page.run_all()
    return page


def cell(page, text):
    return page.page.locator(".jp-CodeCell", has=page.page.locator(".cm-content", has_text=text)).first


def answer(page, stub, code, question):
    """Type `code` over the answer cell that has the text `stub`, run it and the check below it."""
    cell(page, stub).locator(".cm-content").click()
    page.page.keyboard.press("Control+a")
    page.page.keyboard.insert_text(code)
    page.page.keyboard.press("Shift+Enter")
    cell(page, f'course.check("{question}"').locator(".cm-content").click()
    page.page.keyboard.press("Shift+Enter")


def test_a_check_says_what_is_missing_then_which_mistake_it_is_then_what_was_shown(page, assignment):
    question = assignment.questions[0]
    right = runner.solution(assignment).answers[question.answers[0]]
    head = right.splitlines()[0]
    check = cell(page, f'course.check("{question.id}"')
    said = check.locator(".jp-OutputArea-output")
    expect(check.locator(".cm-content")).to_have_attribute("aria-readonly", "true")
    expect(said).to_have_text(f"{question.id}: not answered yet.")
    for wrong in question.wrong[:2]:
        answer(page, head, wrong.code, question.id)
        expect(said).to_have_text(f"{question.id}: not yet. {wrong.message[0].upper()}{wrong.message[1:]}.")
    answer(page, head, right, question.id)
    expect(said).to_have_text(f"{question.id}: right. {question.shown}")
    hints = page.page.locator("details")
    hints.first.locator("summary").click()
    expect(hints.first).to_have_attribute("open", "")
    assert hints.nth(1).get_attribute("open") is None, "one hint at a time"
    expect(page.page.locator("[data-mime-type='application/vnd.jupyter.error'], mjx-merror")).to_have_count(0)
