"""Film the depth lab for the README: `python tests/browser/film.py` drags, compares, and writes data/lab.gif."""

import io
import tempfile
from pathlib import Path

from jupyter_page import ROOT, Page, chromium_browser, jupyterlab, write_notebook
from PIL import Image

CELLS = ["import normkit", "lab = normkit.DepthLab(layers=8, against='post')\nlab"]


def frames(page, book):
    """Pictures of the lab while the depth grows, and then with other placements."""
    lab = book.lab()
    lab.scroll_into_view_if_needed()

    def shot():
        return Image.open(io.BytesIO(lab.screenshot())).convert("RGB")

    book.at_rest()
    yield shot(), 1200
    slider = lab.get_by_role("slider", name="Depth", exact=True)
    box = slider.bounding_box()
    y = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + 0.06 * box["width"], y)
    page.mouse.down()
    for i in range(12):
        page.mouse.move(box["x"] + (0.06 + 0.04 * i) * box["width"], y)
        page.wait_for_timeout(80)
        yield shot(), 160
    page.mouse.up()
    book.at_rest()
    yield shot(), 1600
    for against in ("none", "peri", "layernorm_scaling"):
        lab.get_by_label("Compare with").select_option(label=against)
        book.at_rest(against=against)
        yield shot(), 1600


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder, jupyterlab(Path(folder)) as url, chromium_browser() as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        book = Page(page, url, write_notebook(Path(folder), CELLS))
        book.run_all()
        pictures, times = zip(*frames(page, book), strict=True)
    palette = pictures[-1].quantize(64)
    small = [
        p.resize((p.width * 4 // 5, p.height * 4 // 5), Image.LANCZOS).quantize(64, palette=palette, dither=0)
        for p in pictures
    ]
    small[0].save(
        ROOT / "data" / "lab.gif", save_all=True, append_images=small[1:], duration=times, loop=0, optimize=True
    )
