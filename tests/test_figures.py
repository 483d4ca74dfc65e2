import dataclasses
import itertools

import numpy as np
import pytest

from normkit.figures import (
    COLORS,
    HEAT,
    Axes,
    Curve,
    Heat,
    describe_figure,
    linear_ticks,
    log_ticks,
    plotly_figure,
    style,
)

X = np.arange(5.0)
EQUAL = Axes("b", "x", "y", equal=True)


def curve(kind="toy", y=X + 1, **more):
    return Curve("a", kind, X, y, style(0), **more)


def heat(x=X + 1, y=X[:3] + 1, z=None, **more):
    z = 1.0 + np.arange(len(y) * len(x)).reshape(len(y), len(x)) if z is None else z
    return Heat("h", "toy", x, y, z, "loss (nats)", **more)


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


EYES = pytest.mark.parametrize(
    "eye", [np.eye(3), DEUTERANOPE, PROTANOPE], ids=["trichromat", "deuteranope", "protanope"]
)


def cielab(color, eye):
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ (
        eye @ linear(color)
    )
    f = np.cbrt(np.clip(xyz, 0, None) / [0.9505, 1, 1.089])
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@EYES
def test_colors_stay_apart_or_markers_do(eye):
    for a, b in itertools.combinations([style(i) for i in range(11)], 2):
        apart = np.linalg.norm(cielab(a.color, eye) - cielab(b.color, eye)) >= 8  # CIE76; about 2.3 is just noticeable
        assert apart or a.marker != b.marker, (a, b)


@EYES
def test_a_heat_maps_colors_are_ordered_by_even_steps_for_every_eye(eye):
    seen = np.array([cielab(c, eye) for c in HEAT])
    steps = np.diff(seen, axis=0)
    assert (steps[:, 0] > 6).all()  # lighter at every step, far above the just noticeable 2.3
    length = np.linalg.norm(steps, axis=1)
    assert length.max() / length.min() < 2  # one step looks about as large as another


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
        (
            lambda: describe_figure([curve(axes=1)], [Axes("t", "x", "y")]),
            "in panel 1, but the figure has panels 0 to 0",
        ),
        (lambda: Axes("t", "x", "y", log_y=True, equal=True), "two linear axes"),
        (lambda: heat(z=np.ones((5, 3))), r"z must have the shape \(3, 5\), got \(5, 3\)"),
        (lambda: heat(z=np.full((3, 5), np.nan)), "z holds nan"),
        (lambda: heat(z=np.zeros((3, 5)), log_z=True), "every z must be > 0, got 0"),
        (lambda: heat(x=X[::-1]), "growing"),
        (lambda: heat(y=X[:1]), "2 or more"),
        (lambda: Heat("h", "guess", X, X, np.ones((5, 5)), "z"), "theory, toy or real"),
        (lambda: describe_figure([heat(), heat()], [Axes("t", "x", "y")]), "one heat map"),
        (lambda: describe_figure([heat(x=X)], [Axes("t", "x", "y", log_x=True)]), "x must be > 0 on a log axis, got 0"),
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


# ---- heat maps


def test_a_heat_map_fills_its_panel_with_cells_that_meet_halfway():
    layout = describe_figure([heat(x=np.array([1.0, 2, 4]), z=np.ones((3, 3)))], [Axes("t", "x", "y")])["layout"]
    assert layout["xaxis"]["range"] == [0.5, 5]
    assert layout["yaxis"]["range"] == [0.5, 3.5]
    log = describe_figure([heat(x=np.array([1.0, 10, 100]), z=np.ones((3, 3)))], [Axes("t", "x", "y", log_x=True)])
    assert log["layout"]["xaxis"]["range"] == pytest.approx([-0.5, 2.5])  # log10: half a decade beyond the ends


@pytest.mark.parametrize("log_z", [False, True])
def test_map_and_color_bar_share_numbers_and_colors(log_z):
    z = np.geomspace(1e-3, 10, 15).reshape(3, 5)
    figure = describe_figure([heat(z=z, log_z=log_z), curve("real")], [Axes("t", "x", "y")])
    cells, bar = (t for t in figure["data"] if t["type"] == "heatmap")
    np.testing.assert_allclose(cells["z"], np.log10(z) if log_z else z)
    np.testing.assert_array_equal(cells["customdata"], z)  # what hovering reads
    ends = (-3, 1) if log_z else (1e-3, 10)
    for trace in (cells, bar):
        assert (trace["zmin"], trace["zmax"]) == pytest.approx(ends)
        assert [c for _, c in trace["colorscale"]] == list(HEAT)
    axis = figure["layout"]["xaxis2"]
    assert axis["type"] == ("log" if log_z else "linear") and axis["range"] == pytest.approx(ends)
    np.testing.assert_allclose(bar["z"][0], np.log10(bar["x"]) if log_z else bar["x"])  # a color stands at its value
    assert any(t["text"] == "h (simulation): loss (nats)" for t in figure["layout"]["annotations"])


def test_the_color_bar_lies_above_its_own_panel_and_takes_no_width():
    axes = [Axes("a", "x", "y"), Axes("b", "x", "y")]
    layout = describe_figure([curve(), heat(axes=1)], axes)["layout"]
    plain = describe_figure([curve(), curve(axes=1)], axes)["layout"]
    assert layout["xaxis4"]["domain"] == layout["xaxis2"]["domain"] == plain["xaxis2"]["domain"]
    pixels = layout["height"] - layout["margin"]["t"] - layout["margin"]["b"]
    gap = pixels * (layout["yaxis4"]["domain"][0] - layout["yaxis2"]["domain"][1])
    assert gap >= 5 + 3 + 13 + 5  # tick, its distance, its label, air
    assert pixels * layout["yaxis2"]["domain"][1] == pytest.approx(
        plain["height"] - plain["margin"]["t"] - plain["margin"]["b"]
    )


def test_curves_over_a_heat_map_are_cased_and_lie_above_it():
    figure = describe_figure([curve("theory"), curve("real"), heat()], [Axes("t", "x", "y")])
    kinds = [t["type"] for t in figure["data"]]
    assert kinds == ["heatmap", "heatmap", "scatter", "scatter", "scatter", "scatter"]
    for around, over in (figure["data"][2:4], figure["data"][4:6]):
        assert around["y"].tolist() == over["y"].tolist() and around["hoverinfo"] == "skip"
        for part in {"line", "marker"} & set(over):
            assert contrast(over[part]["color"], "#ffffff") >= 3
            assert around[part]["color"].startswith("rgba(255,255,255")
    assert figure["data"][2]["line"]["width"] > figure["data"][3]["line"]["width"]
    assert len(describe_figure([curve("theory")], [Axes("t", "x", "y")])["data"]) == 1


def test_a_flat_heat_map_still_has_a_scale():
    cells = describe_figure([heat(z=np.full((3, 5), 7.0))], [Axes("t", "x", "y")])["data"][0]
    assert cells["zmin"] < 7 < cells["zmax"]


# ---- equal aspect, paths, legends


def test_an_equal_panel_ties_its_axes_and_has_one_tick_step_wherever_it_widens():
    wide = Curve("a", "toy", 10 * X, X, style(0), join=True)
    layout = describe_figure([curve(), dataclasses.replace(wide, axes=1)], [Axes("a", "x", "y"), EQUAL])["layout"]
    assert layout["yaxis2"]["scaleanchor"] == "x2" and layout["yaxis2"]["scaleratio"] == 1
    assert "scaleanchor" not in layout["yaxis"]
    steps = {round(t[1] - t[0], 9) for t in (layout["xaxis2"]["tickvals"], layout["yaxis2"]["tickvals"])}
    assert len(steps) == 1
    lo, hi = layout["xaxis2"]["range"]
    assert 2 <= sum(lo <= t <= hi for t in layout["xaxis2"]["tickvals"]) <= 7
    for axis in ("xaxis2", "yaxis2"):
        ticks, middle = layout[axis]["tickvals"], sum(layout[axis]["range"]) / 2
        assert ticks[0] < middle - 2.5 * (hi - lo) and ticks[-1] > middle + 2.5 * (hi - lo)


def test_join_draws_a_thin_line_through_the_dots_in_order():
    back = np.array([0.0, 2, 1, 3, 0])
    dots, theory, plain = describe_figure(
        [
            Curve("a", "toy", back, X, style(0), join=True),
            Curve("circle", "theory", back, X, style(1), join=True),
            curve("theory"),
        ],
        [EQUAL],
    )["data"]
    assert dots["mode"] == "lines+markers" and dots["x"].tolist() == back.tolist()
    assert dots["line"]["width"] == theory["line"]["width"] < plain["line"]["width"]
    assert theory["mode"] == "lines"


@pytest.mark.parametrize(
    ("x", "join", "path"),
    [
        (X, False, False),
        (X, True, True),
        (-X, False, False),
        (np.array([0.0, 0, 1, 1, 2]), False, False),  # a step
        (np.cos(X), False, True),
        (np.zeros(5), False, True),
        (np.zeros(1), False, False),
    ],
)
def test_a_path_is_what_turns_back_or_is_joined(x, join, path):
    assert Curve("a", "toy", x, np.arange(float(len(x))), style(0), join=join).is_path is path


def test_a_name_stands_in_the_legend_once():
    parts = [Curve("sphere", "theory", k * X, X, style(0), lo=X, hi=X + 1) for k in (1, 2, 3)]
    data = describe_figure([*parts, curve(axes=1), curve()], [Axes("a", "x", "y"), Axes("b", "x", "y")])["data"]
    assert [t["name"] for t in data if t["showlegend"]] == ["sphere (theory)", "a (simulation)"]
    shown = [t.name for t in plotly_figure(describe_figure(parts, [Axes("a", "x", "y")])).data if t.showlegend]
    assert shown == ["sphere (theory)"]


def test_plotly_takes_heat_maps_and_equal_panels():
    figure = plotly_figure(
        describe_figure([heat(log_z=True), curve(axes=1, join=True)], [Axes("a", "x", "y", log_x=True), EQUAL])
    )
    assert [t.type for t in figure.data] == ["heatmap", "heatmap", "scatter"]
    assert figure.layout.yaxis2.scaleanchor == "x2" and figure.layout.xaxis3.type == "log"
    assert figure.layout.height > plotly_figure(describe_figure([curve()], [EQUAL])).layout.height
