"""Figures: theory is a line, a toy simulation dots with a band, a real model large open dots; one style a method.
A number over a plane is a heat map with a color bar, and curves may lie over it.

A figure is described once, as a dict in plotly's own JSON form. Three readers take it: the canvas that redraws while a
slider moves, plotly.js when it rests, and plotly.py for a saved or static figure.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

# Okabe and Ito's hues, moved to a lightness that keeps a contrast of 3 with both a white and a #111111 page.
COLORS = {
    "blue": "#1f7fc4",
    "orange": "#b87a00",
    "green": "#009e73",
    "vermilion": "#d55e00",
    "purple": "#b8679a",
    "grey": "#808080",
}
DASHES = ("solid", "dash", "dot", "dashdot")
MARKERS = ("circle", "square", "triangle-up", "diamond", "cross", "x", "triangle-down", "pentagon", "star")
INK, GRID = "#808080", "rgba(128,128,128,0.25)"
HEIGHT, MARGIN, GAP = 380, {"l": 62, "r": 14, "t": 30, "b": 46}, 0.11
# A heat map's colors: a straight line in Oklab from a deep blue to a light yellow. Its lightness grows evenly, also in grey
# print, and it keeps to the blue-yellow axis, which people without red or green cones see as others do.
HEAT = ("#102962", "#29426a", "#445970", "#617175", "#7f8878", "#9ea079", "#bdb878", "#ded173", "#ffea6c")
BAR, LABEL, THICK = 62, 19, 11  # pixels above a heat map: its color bar in all, the label's row, the bar itself
THIN = 1.2  # a line that joins
CASING = "rgba(255,255,255,0.85)"  # around a curve that lies over a heat map
KINDS = {"theory": "theory", "toy": "simulation", "real": "real model"}


class Style(NamedTuple):
    color: str
    dash: str
    marker: str


def style(index: int) -> Style:
    """The index-th style of a theme: color and marker change together, and the dash once the colors are used up."""
    colors = [c for c in COLORS.values() if c != COLORS["grey"]]
    return Style(colors[index % len(colors)], DASHES[index // len(colors) % len(DASHES)], MARKERS[index % len(MARKERS)])


@dataclass(frozen=True)
class Axes:
    """One panel of a figure. `x` and `y` are titles with their unit; a log axis shows no value <= 0.

    `equal=True` draws one unit of x as long as one of y, by widening a range; ValueError with a log axis.
    """

    title: str
    x: str
    y: str
    log_y: bool = False
    log_x: bool = False
    equal: bool = False

    def __post_init__(self):
        if self.equal and (self.log_x or self.log_y):
            raise ValueError(f"panel {self.title!r}: equal=True needs two linear axes; drop it or the log axis")


@dataclass(frozen=True)
class Curve:
    """One curve: y over x, both (n,), in panel `axes`; kind "theory", "toy" or "real"; band from lo to hi, both (n,).

    `join=True` draws a thin line through the points in their order: between a trajectory's dots, or as the outline of a
    theory's circle or sphere. Curves of one name and kind share a legend entry. Raises ValueError for another kind, lengths that differ, or numbers that are not finite.
    """

    name: str
    kind: str
    x: np.ndarray
    y: np.ndarray
    style: Style
    lo: np.ndarray | None = None
    hi: np.ndarray | None = None
    axes: int = 0
    join: bool = False

    def __post_init__(self):
        keys = [key for key in ("x", "y", "lo", "hi") if key in "xy" or getattr(self, key) is not None]
        _check(self, {key: np.shape(self.x)[:1] for key in keys})

    @property
    def label(self) -> str:
        return f"{self.name} ({KINDS[self.kind]})"

    @property
    def is_path(self) -> bool:
        """Whether the points are read in their order, as a trajectory or an outline is, and not as y over x."""
        ways = set(np.sign(np.diff(self.x))) - {0}
        return self.join or (len(self.x) > 1 and len(ways) != 1)


@dataclass(frozen=True)
class Heat:
    """A heat map: z (ny, nx) over x (nx,) and y (ny,), both growing, in panel `axes`; kind as of a Curve; `title` says what z
    is, with its unit, at the color bar. Cells meet halfway between neighbours, on a log axis halfway in the logarithm.

    `log_z=True` gives equal ratios equal steps of color. Raises ValueError for another kind, shapes that do not fit, fewer
    than 2 places along x or y, numbers that are not finite, or z <= 0 with log_z.
    """

    name: str
    kind: str
    x: np.ndarray
    y: np.ndarray
    z: np.ndarray
    title: str
    axes: int = 0
    log_z: bool = False

    def __post_init__(self):
        nx, ny = np.size(self.x), np.size(self.y)
        _check(self, {"x": (nx,), "y": (ny,), "z": (ny, nx)})
        for key in ("x", "y"):
            value = getattr(self, key)
            if len(value) < 2 or (np.diff(value) <= 0).any():
                raise ValueError(f"heat {self.name!r}: {key} must be 2 or more growing numbers, got {value}")
        if self.log_z and (self.z <= 0).any():
            raise ValueError(f"heat {self.name!r}: with log_z every z must be > 0, got {self.z.min()}")

    label = Curve.label


def _check(shown, shapes):
    """Make the fields float64 arrays of these shapes, finite, in place."""
    what = f"{type(shown).__name__.lower()} {shown.name!r}"
    if shown.kind not in KINDS:
        raise ValueError(f"{what}: kind must be theory, toy or real, got {shown.kind!r}")
    for key, shape in shapes.items():
        value = np.asarray(getattr(shown, key), dtype=np.float64)
        if value.shape != shape:
            raise ValueError(f"{what}: {key} must have the shape {shape}, got {value.shape}")
        if not np.isfinite(value).all():
            raise ValueError(f"{what}: {key} holds {value[~np.isfinite(value)][0]}; only finite numbers can be shown")
        object.__setattr__(shown, key, value)


def describe_figure(curves: Sequence[Curve | Heat], axes: Sequence[Axes]) -> dict:
    """The figure as plotly's dict {data, layout}; arrays stay NumPy float64. Ranges and ticks are set, not left to plotly,
    so that every painter puts them in the same place. Raises ValueError for a figure without curves, a curve in a panel
    that does not exist, two heat maps in one panel, or a heat map at x or y <= 0 of a log axis."""
    if not curves:
        raise ValueError("a figure needs at least one curve, got none")
    for c in curves:
        if not 0 <= c.axes < len(axes):
            raise ValueError(f"{c.label} is in panel {c.axes}, but the figure has panels 0 to {len(axes) - 1}")
    heats = {c.axes: c for c in curves if isinstance(c, Heat)}
    if len(heats) < sum(isinstance(c, Heat) for c in curves):
        raise ValueError("a panel can show one heat map; give each its own panel")
    layout = {
        "height": HEIGHT + BAR * bool(heats),
        "margin": MARGIN,
        "showlegend": False,
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": INK},
        "hovermode": "closest",
        "annotations": [],
    }
    pixel = 1 / (layout["height"] - MARGIN["t"] - MARGIN["b"])
    width = (1 - GAP * (len(axes) - 1)) / len(axes)
    data = []
    for i, a in enumerate(axes):
        lines, heat = [c for c in curves if c.axes == i and c is not heats.get(i)], heats.get(i)
        left = i * (width + GAP)
        domain, suffix = [left, left + width], _suffix(i)
        xs, ys = [c.x for c in lines], [v for c in lines for v in (c.y, c.lo, c.hi) if v is not None]
        if heat:
            xs, ys = [*xs, _edges(heat, "x", a.log_x)], [*ys, _edges(heat, "y", a.log_y)]
        top = 1 - BAR * pixel * bool(heat)
        layout["xaxis" + suffix] = _axis(a.x, a.log_x, xs, "y" + suffix, domain, pad=0 if heat else 0.02)
        layout["yaxis" + suffix] = _axis(a.y, a.log_y, ys, "x" + suffix, [0, top], pad=0 if heat else 0.06)
        if a.equal:
            _equalize(layout["xaxis" + suffix], layout["yaxis" + suffix])
        layout["annotations"].append(_note(f"<b>{a.title}</b>", left, shift=6))
        if heat:
            layout["annotations"].append(_note(f"{heat.label}: {heat.title}", left, shift=3 - LABEL))
            thick = [1 - (LABEL + THICK) * pixel, 1 - LABEL * pixel]
            bar, traces = _heat_map(heat, a, _suffix(len(axes) + i), domain, thick)
            layout |= bar
            data += traces
    named = set()
    for c in curves:
        for trace in _traces(c, axes[c.axes], c.axes in heats) if isinstance(c, Curve) else ():
            shows = trace.get("hoverinfo") != "skip" and c.label not in named
            named |= {c.label} if shows else set()
            data.append({**trace, "showlegend": shows})
    return {"data": data, "layout": layout}


def _suffix(index):
    return "" if index == 0 else str(index + 1)


def _note(text, x, shift):
    """A line of text at the figure's upper edge, `shift` pixels above it."""
    place = {"x": x, "y": 1, "xref": "paper", "yref": "paper", "xanchor": "left", "yanchor": "bottom"}
    return {"text": text, **place, "yshift": shift, "showarrow": False, "borderpad": 0, "borderwidth": 0}


def _edges(heat, key, log):
    """The outer edges of a heat map's cells along one axis: half a cell beyond the first and the last place."""
    v = getattr(heat, key)
    if log and v[0] <= 0:
        raise ValueError(f"{heat.label}: {key} must be > 0 on a log axis, got {v[0]}")
    v = np.log10(v) if log else v
    ends = np.array([1.5 * v[0] - 0.5 * v[1], 1.5 * v[-1] - 0.5 * v[-2]])
    return 10.0**ends if log else ends


def _heat_map(heat, a, bar, across, thick):
    """The axes of the color bar and the traces of map and bar. The bar is a slim heat map on axes of its own, so that no
    painter needs to know of bars."""
    values = _axis("", heat.log_z, [heat.z.ravel()], "y" + bar, across, pad=0)
    blank = _axis("", False, [], "x" + bar, thick, pad=0) | {"tickvals": [], "ticktext": []}
    lo, hi = values["range"]
    base = {
        "type": "heatmap",
        "name": heat.label,
        "zmin": lo,
        "zmax": hi,
        "colorscale": [[i / (len(HEAT) - 1), color] for i, color in enumerate(HEAT)],
        "showscale": False,
    }
    steps = lo + (hi - lo) * (np.arange(96) + 0.5) / 96
    n, z = _suffix(heat.axes), np.log10(heat.z) if heat.log_z else heat.z
    words = f"{a.x} %{{x:.4~g}}<br>{a.y} %{{y:.4~g}}<br>{heat.title} %{{customdata:.4~g}}"
    return {"xaxis" + bar: values, "yaxis" + bar: blank}, [
        {**base, "xaxis": "x" + n, "yaxis": "y" + n, "x": heat.x, "y": heat.y, "z": z, "customdata": heat.z,
         "hovertemplate": f"{heat.label}<br>{words}<extra></extra>"},
        {**base, "xaxis": "x" + bar, "yaxis": "y" + bar, "x": 10.0**steps if heat.log_z else steps,
         "y": np.array([0.25, 0.75]), "z": np.tile(steps, (2, 1)), "hoverinfo": "skip"},
    ]  # fmt: skip


def _traces(c, a, cased):
    keep = np.ones(c.x.shape, bool)
    if a.log_y:
        keep &= c.y > 0
    if a.log_x:
        keep &= c.x > 0
    x, y = c.x[keep], c.y[keep]
    n, color = _suffix(c.axes), c.style.color
    base = {"type": "scatter", "xaxis": "x" + n, "yaxis": "y" + n, "name": c.label, "legendgroup": c.label,
            "cliponaxis": False}  # fmt: skip
    if c.lo is not None:
        floor = y.min(initial=1) * 1e-3 if a.log_y else -np.inf  # a band that reaches 0 has no place on a log axis
        band = {**base, "mode": "lines", "line": {"width": 0, "color": color}, "hoverinfo": "skip", "x": x}
        yield {**band, "y": np.maximum(c.lo[keep], floor)}
        yield {**band, "y": c.hi[keep], "fill": "tonexty", "fillcolor": _alpha(color, 0.22)}
    base |= {"x": x, "y": y}
    if c.kind == "theory":
        look = {"mode": "lines", "line": {"color": color, "width": THIN if c.join else 2.5, "dash": c.style.dash}}
        around = {"line": {"color": CASING, "width": 5.5, "dash": "solid"}}
    else:
        size, line = (6, 0) if c.kind == "toy" else (11, 2)
        symbol = c.style.marker + ("-open" if c.kind == "real" else "")
        look = {
            "mode": "lines+markers" if c.join else "markers",
            "marker": {"color": color, "size": size, "symbol": symbol, "line": {"width": line, "color": color}},
        }
        around = {
            "marker": {"color": CASING, "size": size, "symbol": symbol, "line": {"width": line + 3, "color": CASING}}
        }
        if c.join:
            look["line"] = {"color": color, "width": THIN, "dash": "solid"}
            around["line"] = {"color": CASING, "width": 3.5, "dash": "solid"}
    if cased:
        yield {**base, **look, **around, "hoverinfo": "skip"}
    hover = f"{c.label}<br>{a.x} %{{x:.4~g}}<br>{a.y} %{{y:.4~g}}<extra></extra>"
    yield {**base, **look, "hovertemplate": hover}


def _equalize(x, y):
    """Tie y's scale to x's. A painter widens the range that is too short for its pixels; the ticks reach as far, in one step."""
    y |= {"scaleanchor": y["anchor"], "scaleratio": 1}
    reach = 3 * max(a["range"][1] - a["range"][0] for a in (x, y))
    for a in (x, y):
        middle = sum(a["range"]) / 2
        a["tickvals"], a["ticktext"] = linear_ticks(middle - reach, middle + reach, most=36)


def _axis(title, log, values, anchor, domain, pad):
    values = np.concatenate(values) if values else np.array([0.0, 1.0])
    if log:
        values = np.log10(values[values > 0]) if (values > 0).any() else np.array([0.0, 1.0])
    lo, hi = float(values.min()), float(values.max())
    if hi - lo < 1e-9 * max(1.0, abs(hi)):
        lo, hi = lo - 0.5, hi + 0.5  # a flat line is drawn in the middle, not as rounding noise
    lo, hi = lo - pad * (hi - lo), hi + pad * (hi - lo)
    ticks, labels = log_ticks(lo, hi) if log else linear_ticks(lo, hi)
    return {
        "title": {"text": title, "standoff": 6, "font": {"size": 13}}, "type": "log" if log else "linear", "range": [lo, hi], "anchor": anchor,
        "domain": domain, "tickmode": "array", "tickvals": ticks, "ticktext": labels, "gridcolor": GRID, "zeroline": False,
        "linecolor": INK, "showline": True, "ticks": "outside", "tickcolor": INK, "automargin": False,
    }  # fmt: skip


def linear_ticks(lo: float, hi: float, most: int = 6) -> tuple[list[float], list[str]]:
    """At most `most` round values (1, 2 or 5 times a power of ten apart) within [lo, hi], and their labels."""
    step = 10 ** math.floor(math.log10((hi - lo) / most))
    step = next(step * m for m in (1, 2, 5, 10, 20) if (hi - lo) / (step * m) < most)
    ticks = [k * step for k in range(math.ceil(lo / step), math.floor(hi / step) + 1)]
    return ticks, [f"{t:.6g}" for t in ticks]


def log_ticks(lo: float, hi: float, most: int = 6) -> tuple[list[float], list[str]]:
    """Ticks for the decades within [lo, hi] (log10 of the values); 1-2-5 when there are fewer than two decades."""
    decades = range(math.ceil(lo), math.floor(hi) + 1)
    if len(decades) >= 3:
        every = math.ceil(len(decades) / most)
        exponents = [d for d in decades if d % every == 0]
        return [10.0**e for e in exponents], [
            f"{10.0**e:g}" if -3 <= e <= 4 else f"10<sup>{e}</sup>" for e in exponents
        ]
    ticks = [m * 10.0**d for d in range(math.floor(lo), math.ceil(hi) + 1) for m in (1, 2, 5)]
    ticks = [t for t in ticks if lo <= math.log10(t) <= hi]
    if len(ticks) < 2:
        ticks, _ = linear_ticks(10**lo, 10**hi, most=4)
        ticks = [t for t in ticks if t > 0]
    return ticks, [f"{t:.6g}" for t in ticks]


def _alpha(color, alpha):
    r, g, b = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({r},{g},{b},{alpha})"


def plotly_figure(description: dict):
    """The description as a plotly.graph_objects.Figure, with a legend, for a static or a saved figure."""
    import plotly.graph_objects as go

    layout = {
        **description["layout"],
        "showlegend": True,
        "legend": {"orientation": "h", "y": -0.18},
        "height": description["layout"]["height"] + 90,
    }
    layout["margin"] = {**MARGIN, "b": 110}
    return go.Figure({"data": description["data"], "layout": layout})


# "Share chart" in plotly's mode bar uploads the chart to another company's server; the kit's figures stay here.
CONFIG = {"showSendToCloud": False, "displaylogo": False, "responsive": True}
