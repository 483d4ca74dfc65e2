import itertools

import numpy as np
import pytest

from normkit.figures import (
    COLORS,
    Axes,
    Curve,
    describe_figure,
    linear_ticks,
    log_ticks,
    plotly_figure,
    style,
)

X = np.arange(5.0)


def curve(kind="toy", y=X + 1, **more):
    return Curve("a", kind, X, y, style(0), **more)


def linear(color):
    """Linear RGB of #rrggbb (IEC 61966-2-1)."""
    c = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def contrast(a, b):
    """WCAG contrast ratio."""
    hi, lo = sorted((linear(a) @ [0.2126, 0.7152, 0.0722], linear(b) @ [0.2126, 0.7152, 0.0722]), reverse=True)
    return (hi + 0.05) / (lo + 0.05)


@pytest.mark.parametrize("page", ["#ffffff", "#111111"])
@pytest.mark.parametrize("name", COLORS)
def test_every_color_is_legible_on_light_and_dark(name, page):
    assert contrast(COLORS[name], page) >= 3  # WCAG 1.4.11, graphics


# Viénot, Brettel and Mollon (1999): what a dichromat sees, as a matrix on linear RGB
DEUTERANOPE = np.array([[0.29275, 0.70725, 0.0], [0.29275, 0.70725, 0.0], [-0.02234, 0.02234, 1.0]])
PROTANOPE = np.array([[0.11238, 0.88762, 0.0], [0.11238, 0.88762, 0.0], [0.00401, -0.00401, 1.0]])


@pytest.mark.parametrize("eye", [np.eye(3), DEUTERANOPE, PROTANOPE], ids=["trichromat", "deuteranope", "protanope"])
def test_colors_stay_apart_or_markers_do(eye):
    def lab(color):
        xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ (
            eye @ linear(color)
        )
        f = np.cbrt(np.clip(xyz, 0, None) / [0.9505, 1, 1.089])
        return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])

    for a, b in itertools.combinations([style(i) for i in range(11)], 2):
        apart = np.linalg.norm(lab(a.color) - lab(b.color)) >= 8  # CIE76; about 2.3 is just noticeable
        assert apart or a.marker != b.marker, (a, b)


def test_no_two_methods_of_a_theme_look_the_same():
    assert len({style(i) for i in range(20)}) == 20


def test_theory_is_a_line_toy_dots_with_a_band_real_open_dots():
    figure = describe_figure([curve("theory"), curve("toy", lo=X, hi=X + 2), curve("real")], [Axes("t", "x", "y")])
    line, floor, top, dots, real = figure["data"]
    assert line["mode"] == "lines" and line["line"]["width"] > 0
    assert floor["y"].tolist() == X.tolist() and top["y"].tolist() == (X + 2).tolist() and top["fill"] == "tonexty"
    assert dots["mode"] == "markers" and not dots["marker"]["symbol"].endswith("open")
    assert real["marker"]["symbol"].endswith("-open") and real["marker"]["size"] > dots["marker"]["size"]


def test_every_number_lies_in_the_stated_range():
    figure = describe_figure([curve(lo=X, hi=X + 9), curve("real", y=-X)], [Axes("t", "x", "y")])
    lo, hi = figure["layout"]["yaxis"]["range"]
    assert lo < -4 and hi > 13
    assert figure["layout"]["xaxis"]["range"][0] < 0 and figure["layout"]["xaxis"]["range"][1] > 4


def test_a_log_axis_leaves_out_what_it_cannot_show():
    figure = describe_figure([curve(y=np.array([0.0, 1, 10, 100, 1000]))], [Axes("t", "x", "y", log_y=True)])
    assert figure["data"][0]["y"].tolist() == [1, 10, 100, 1000]
    lo, hi = figure["layout"]["yaxis"]["range"]
    assert lo < 0 and hi > 3 and figure["layout"]["yaxis"]["tickvals"] == [1, 10, 100, 1000]


def test_a_flat_line_is_drawn_flat():
    lo, hi = describe_figure([curve(y=np.ones(5) + 1e-14 * X)], [Axes("t", "x", "y")])["layout"]["yaxis"]["range"]
    assert hi - lo > 0.9


def test_panels_share_the_width_and_do_not_overlap():
    layout = describe_figure([curve(), curve(axes=1)], [Axes("a", "x", "y"), Axes("b", "x", "y")])["layout"]
    assert layout["xaxis"]["domain"][1] < layout["xaxis2"]["domain"][0] and layout["xaxis2"]["domain"][
        1
    ] == pytest.approx(1)


@pytest.mark.parametrize(("lo", "hi"), [(0, 1), (-3.7, 12.2), (1e-9, 3e-9), (0, 6.4e18), (64, 66)])
def test_linear_ticks_are_round_few_and_inside(lo, hi):
    ticks, labels = linear_ticks(lo, hi)
    assert 2 <= len(ticks) <= 7 and len(set(labels)) == len(labels)
    slack = 1e-12 * (hi - lo)  # a tick is a rounded product
    assert all(lo - slack <= t <= hi + slack for t in ticks)
    step = (ticks[1] - ticks[0]) / 10 ** np.floor(np.log10(ticks[1] - ticks[0]) + 1e-9)
    assert min(abs(step - s) for s in (1, 2, 5, 10)) < 1e-6


@pytest.mark.parametrize(("lo", "hi"), [(0, 2.3), (-1.2, 0.3), (0, 19), (-300, 300), (1.80, 1.82), (0.0, 0.31)])
def test_log_ticks_are_few_and_inside(lo, hi):
    ticks, labels = log_ticks(lo, hi)
    assert 1 <= len(ticks) <= 9 and len(set(labels)) == len(labels)
    assert all(lo - 1e-9 <= np.log10(t) <= hi + 1e-9 for t in ticks)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: curve("guess"), "theory, toy or real"),
        (lambda: curve(y=np.array([1, 2, np.inf, 3, 4])), "holds inf"),
        (lambda: curve(lo=X[:3], hi=X), "shape"),
        (lambda: describe_figure([], [Axes("t", "x", "y")]), "at least one curve"),
    ],
)
def test_a_curve_that_cannot_be_drawn_is_an_error(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_the_description_is_a_valid_plotly_figure():
    figure = plotly_figure(
        describe_figure(
            [curve(lo=X, hi=X + 2), curve("theory"), curve("real", axes=1)],
            [Axes("a", "x", "y"), Axes("b", "x", "y", log_y=True)],
        )
    )
    assert figure.layout.showlegend and len(figure.data) == 5
    assert {t.name for t in figure.data} == {"a (simulation)", "a (theory)", "a (real model)"}
