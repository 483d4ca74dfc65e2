"""The badge's button in real JupyterLab: it reruns, shows what was raised, and its keys do not edit the notebook."""

from playwright.sync_api import expect

CLAIM = """
from normkit import ledger
from normkit.badge import Badge
claim = ledger.Claim(id="made-up", arxiv="", paper="Nobody", statement="1 < 2", regimes=("only",), statistic="two",
                     direction=">", threshold=1.0, seeds=3, budget_s=1, sample=lambda seed: 2.0)
badge = Badge(claim)
"""


def test_the_button_reruns_and_shows_errors_and_keeps_its_keys(notebook):
    page = notebook([CLAIM, "badge", "badge.rerun = lambda progress: 1 / 0"])
    page.run_all()
    badge = page.page.locator(".nk-lab")
    verdict, button = badge.get_by_role("status"), badge.get_by_role("button", name="Rerun")
    expect(verdict).to_have_text("made-up: not run yet")
    expect(badge).to_contain_text("1 < 2")
    cells = page.page.locator(".jp-Notebook .jp-Cell")
    before = cells.count()
    button.click()
    expect(badge.get_by_role("alert")).to_have_text("ZeroDivisionError: division by zero")
    expect(verdict).to_have_text("made-up: not run yet")
    expect(button).to_be_focused()
    for key in ("b", "a", "d", "d"):
        page.page.keyboard.press(key)
    cells.nth(2).locator(".cm-content").click()
    page.page.keyboard.press("Control+a")
    page.page.keyboard.type("del badge.rerun")
    page.page.keyboard.press("Control+Enter")
    button.focus()
    page.page.keyboard.press("Enter")
    expect(verdict).to_have_text("made-up: holds (last run, 3 seeds)")
    expect(badge.get_by_role("alert")).to_be_empty()
    expect(badge).to_contain_text("only: 2 [2, 2], as claimed")
    expect(button).to_be_focused()
    assert cells.count() == before
