import numpy as np
import pytest
from toy_lab import ToyMap

from normkit.figures import Axes, Curve, Heat, style
from normkit.twins import sentence, table

X = np.arange(4.0)
PLANE = Axes("Plane", "rate", "batch", equal=True)


def heat(nx=4, ny=3):
    x, y = np.arange(float(nx)), 10 * np.arange(float(ny))
    return Heat("net", "real", x, y, (x - 1) ** 2 + y[:, None], "loss (nats)")


def test_a_heat_map_is_told_by_its_ends_and_where_they_lie():
    text = sentence(PLANE, [heat()])
    assert text == (
        "Plane: loss (nats) of net (real model) runs from 0 at (rate = 1, batch = 0) to 24 at (rate = 3, batch = 20)."
    )


def test_a_heat_map_is_a_grid_with_y_growing_upward():
    title, head, *rows = table(PLANE, [heat()], 9).splitlines()
    assert title == "Plane: net (real model): loss (nats)"
    assert head.split() == ["batch", "\\", "rate", "0", "1", "2", "3"]
    assert [row.split() for row in rows] == [
        ["20", "21", "20", "21", "24"],
        ["10", "11", "10", "11", "14"],
        ["0", "1", "0", "1", "4"],
    ]


def test_a_large_heat_map_is_thinned_to_a_table_that_fits_a_page():
    lines = table(PLANE, [heat(200, 100)], 9).splitlines()
    assert len(lines) == 2 + 9 and max(map(len, lines)) < 100
    assert lines[2].split()[0] == "990" and lines[-1].split()[0] == "0"  # the ends stay
    assert lines[1].split()[-1] == "199"


@pytest.mark.parametrize("kind", ["toy", "real"])
def test_a_path_is_told_by_its_ends_and_tabled_point_by_point(kind):
    x, y = np.array([0.0, 2, 1, 1]), np.array([5.0, 6, 7, 8])
    path = Curve("w", kind, x, y, style(0), join=True)
    assert f"{path.label} goes from (rate = 0, batch = 5) to (rate = 1, batch = 8) in 4 points" in sentence(
        PLANE, [path]
    )
    rows = [line.split() for line in table(PLANE, [path], 9).splitlines()[1:]]
    assert rows == [["point", "rate", "batch"], ["0", "0", "5"], ["1", "2", "6"], ["2", "1", "7"], ["3", "1", "8"]]


def test_outlines_of_one_name_are_told_once_by_their_extent():
    a = np.linspace(0, 2 * np.pi, 61)
    parts = [Curve("sphere", "theory", k * np.cos(a), np.sin(a), style(0)) for k in (1, 0.5)]
    text = sentence(PLANE, parts)
    assert text.count("sphere") == 1
    assert "lies within (rate = -1, batch = -1) to (rate = 1, batch = 1)" in text
    assert len(table(PLANE, parts, 9).splitlines()) == 2 + 9


def test_curves_beside_a_heat_map_keep_their_own_table_and_sentence():
    law = Curve("law", "theory", X + 0.5, 2 * X + 1, style(0))
    here = Curve("here", "real", X[:1], X[:1] + 3, style(1))
    text, numbers = sentence(PLANE, [heat(), law, here]), table(PLANE, [heat(), law, here], 9)
    assert "law (theory) rises from 1 to 7 at rate 3.5" in text
    assert "here (real model) is 3 at rate 0" in text  # one point neither rises nor stays
    rows = [line.split() for line in numbers.split("\n\n")[1].splitlines()]
    assert ["3.5", "7", "-"] in rows and ["0", "-", "3"] in rows


@pytest.mark.parametrize(("view", "panels"), [("map", 1), ("path", 1), ("both", 2)])
def test_a_lab_tells_as_many_panels_as_its_setting_has(view, panels):
    lab = ToyMap(view=view)
    assert len(lab.describe().splitlines()) == len(lab.axes()) == panels
    assert ("loss (nats)" in lab.table()) == (view != "path")
    assert ("sphere (theory)" in lab.table()) == (view != "map")
