"""Key press to changed picture in real JupyterLab, beside an empty round trip of the same run: `python tests/browser/latency.py`.

Prints JSON, milliseconds. `floor` is an ipywidgets slider whose empty observer echoes to a Label; `lab` is the depth lab
from the keydown's own time stamp to the redrawn canvas; `compute` is the lab's coarse work, measured in the kernel;
`release` is from the pointer's release to the final value on screen; `drag` counts pictures while the pointer moves.
"""

import json
import statistics
import sys
import tempfile
from pathlib import Path

from jupyter_page import Page, chromium_browser, jupyterlab, write_notebook

CELLS = [
    "import ipywidgets, normkit",
    "slider, label = ipywidgets.IntSlider(50, 0, 1000), ipywidgets.Label('echo 50')\n"
    "slider.observe(lambda change: setattr(label, 'value', f'echo {change.new}'), 'value')\n"
    "ipywidgets.VBox([slider, label.add_class('echo')])",
    "lab = normkit.DepthLab(layers=64, model='none')\nlab",
    "import time\nfrom normkit.panel import _packed\nspent = []\n"
    "for _ in range(60):\n    t = time.perf_counter()\n"
    "    _packed(lab.picture(lab.run('coarse')))\n    spent.append(1e3 * (time.perf_counter() - t))\n"
    "print('compute', sorted(spent)[len(spent) // 2])",
]
WATCH = """([selector, drawn]) => {
  globalThis.nkTimes = []; let pressed = 0;
  const target = document.querySelector(selector);
  document.addEventListener('keydown', e => { pressed = e.timeStamp; }, true);
  const done = () => { if (pressed) { globalThis.nkTimes.push(performance.now() - pressed); pressed = 0; } };
  if (drawn) target.addEventListener('nk-drawn', done);
  else new MutationObserver(done).observe(target, {childList: true, characterData: true, subtree: true});
}"""


def key_presses(page, slider, selector, drawn, count):
    """Milliseconds from keydown to change, for `count` presses after ten to warm up, the hand at rest between two."""
    page.evaluate(WATCH, [selector, drawn])
    slider.focus()
    for i in range(count + 10):
        before = page.evaluate("nkTimes.length")
        page.keyboard.press("ArrowRight" if i % 2 == 0 else "ArrowLeft")
        page.wait_for_function("n => nkTimes.length > n", arg=before, timeout=10_000)
        page.wait_for_timeout(60)
    return page.evaluate("nkTimes")[10:]


def drag(page, lab, rounds):
    """Release to final value on screen (ms), and pictures drawn per second, over several drags of the depth slider."""
    slider = lab.get_by_role("slider", name="Depth")
    page.evaluate(
        """() => {globalThis.nkFrames = 0; globalThis.nkUp = 0; globalThis.nkFinal = null;
        const lab = document.querySelector('.nk-lab'), input = lab.querySelector('input[type=range]');
        const values = () => input.getAttribute('aria-valuetext').split(' ')[0];
        lab.addEventListener('nk-drawn', e => {globalThis.nkFrames++;
          const c = JSON.parse(e.target.dataset.controls);
          if (nkUp && nkFinal === null && String(c.layers) === values()) nkFinal = Math.max(0, performance.now() - nkUp); });
        addEventListener('pointerup', e => {nkUp = e.timeStamp;
          const c = JSON.parse(lab.querySelector('.nk-stage').dataset.controls);
          if (String(c.layers) === values()) nkFinal = 0;}, true);}"""
    )
    tails, rates = [], []
    for _ in range(rounds):
        box = slider.bounding_box()
        y = box["y"] + box["height"] / 2
        page.mouse.move(box["x"] + 12, y)
        page.evaluate("nkFrames = 0, nkUp = 0, nkFinal = null")
        page.mouse.down()
        started = page.evaluate("performance.now()")
        for i in range(60):
            page.mouse.move(box["x"] + 12 + i * (box["width"] - 24) / 60, y)
            page.wait_for_timeout(12)
        page.mouse.up()
        page.wait_for_function("nkFinal !== null", timeout=10_000)
        seconds = (page.evaluate("nkUp") - started) / 1e3
        tails.append(page.evaluate("nkFinal"))
        rates.append(page.evaluate("nkFrames") / seconds)
        page.wait_for_timeout(900)
    return tails, rates


def measure(count=60, rounds=5) -> dict:
    with tempfile.TemporaryDirectory() as folder, jupyterlab(Path(folder)) as url, chromium_browser() as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        book = Page(page, url, write_notebook(Path(folder), CELLS))
        book.run_all()
        book.at_rest()
        compute = float(page.locator(".jp-OutputArea-output", has_text="compute").last.inner_text().split()[-1])
        echo = page.locator(".widget-slider .noUi-handle, .widget-slider [role=slider]").first
        floor, lab = [], []
        for _ in range(2):  # in turn, so that a drift of the machine's speed touches both
            floor += key_presses(page, echo, ".echo", False, count // 2)
            lab += key_presses(page, book.lab().get_by_role("slider", name="Depth"), ".nk-stage", True, count // 2)
        book.at_rest()
        tails, rates = drag(page, book.lab(), rounds)
    median = statistics.median
    return {
        "floor_ms": median(floor),
        "lab_ms": median(lab),
        "compute_ms": compute,
        "aim_ms": 2 * median(floor) + compute,
        "ratio": (median(lab) - compute) / median(floor),
        "release_ms": median(tails),
        "release_worst_ms": max(tails),
        "drag_pictures_per_second": median(rates),
    }


if __name__ == "__main__":
    json.dump(measure(), sys.stdout, indent=1)
    print()
