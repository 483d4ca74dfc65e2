"""Figures: theory is a line, a toy simulation dots with a band, a real model large open dots; one style a method.

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
    """One panel of a figure. `x` and `y` are titles with their unit; a log axis shows no value <= 0."""

    title: str
    x: str
    y: str
    log_y: bool = False
    log_x: bool = False


@dataclass(frozen=True)
class Curve:
    """One curve: y over x, both (n,), in panel `axes`; kind "theory", "toy" or "real"; band from lo to hi, both (n,).

    Raises ValueError for another kind, lengths that differ, or numbers that are not finite.
    """

    name: str
    kind: str
    x: np.ndarray
    y: np.ndarray
    style: Style
    lo: np.ndarray | None = None
    hi: np.ndarray | None = None
    axes: int = 0

    def __post_init__(self):
        if self.kind not in ("theory", "toy", "real"):
            raise ValueError(f"curve {self.name!r}: kind must be theory, toy or real, got {self.kind!r}")
        for key in ("x", "y", "lo", "hi"):
            value = getattr(self, key)
            if value is None and key in ("lo", "hi"):
                continue
            value = np.asarray(value, dtype=np.float64)
            if value.shape != np.shape(self.x) or value.ndim != 1:
                raise ValueError(
                    f"curve {self.name!r}: {key} must have the shape of x {np.shape(self.x)}, got {value.shape}"
                )
            if not np.isfinite(value).all():
                raise ValueError(
                    f"curve {self.name!r}: {key} holds {value[~np.isfinite(value)][0]}; a curve shows finite numbers"
                )
            object.__setattr__(self, key, value)

    @property
    def label(self) -> str:
        return f"{self.name} ({ {'theory': 'theory', 'toy': 'simulation', 'real': 'real model'}[self.kind] })"


def describe_figure(curves: Sequence[Curve], axes: Sequence[Axes]) -> dict:
    """The figure as plotly's dict {data, layout}; arrays stay NumPy float64. Ranges and ticks are set, not left to plotly,
    so that every painter puts them in the same place. Raises ValueError for a figure without curves."""
    if not curves:
        raise ValueError("a figure needs at least one curve, got none")
    layout = {
        "height": HEIGHT,
        "margin": MARGIN,
        "showlegend": False,
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": INK},
        "hovermode": "closest",
        "annotations": [],
    }
    width = (1 - GAP * (len(axes) - 1)) / len(axes)
    for i, a in enumerate(axes):
        mine = [c for c in curves if c.axes == i]
        left = i * (width + GAP)
        suffix = "" if i == 0 else str(i + 1)
        layout["xaxis" + suffix] = _axis(
            a.x, a.log_x, [c.x for c in mine], "y" + suffix, [left, left + width], pad=0.02
        )
        ys = [v for c in mine for v in (c.y, c.lo, c.hi) if v is not None]
        layout["yaxis" + suffix] = _axis(a.y, a.log_y, ys, "x" + suffix, [0, 1], pad=0.06)
        layout["annotations"].append(
            {"text": f"<b>{a.title}</b>", "x": left, "y": 1, "xref": "paper", "yref": "paper", "xanchor": "left",
             "yanchor": "bottom", "yshift": 6, "showarrow": False}
        )  # fmt: skip
    data = [trace for c in curves for trace in _traces(c, axes[c.axes])]
    return {"data": data, "layout": layout}


def _traces(c: Curve, a: Axes):
    keep = np.ones(c.x.shape, bool)
    if a.log_y:
        keep &= c.y > 0
    if a.log_x:
        keep &= c.x > 0
    x, y = c.x[keep].astype(np.float64), c.y[keep].astype(np.float64)
    suffix = "" if c.axes == 0 else str(c.axes + 1)
    base = {
        "type": "scatter",
        "xaxis": "x" + suffix,
        "yaxis": "y" + suffix,
        "name": c.label,
        "legendgroup": c.label,
        "cliponaxis": False,
    }
    if c.lo is not None:
        floor = y.min(initial=1) * 1e-3 if a.log_y else -np.inf  # a band that reaches 0 has no place on a log axis
        lo = np.maximum(c.lo[keep], floor).astype(np.float64)
        hi = c.hi[keep].astype(np.float64)
        band = {
            **base,
            "mode": "lines",
            "line": {"width": 0, "color": c.style.color},
            "hoverinfo": "skip",
            "showlegend": False,
        }
        yield {**band, "x": x, "y": lo}
        yield {**band, "x": x, "y": hi, "fill": "tonexty", "fillcolor": _alpha(c.style.color, 0.22)}
    hover = {"hovertemplate": f"{c.label}<br>{a.x} %{{x:.4~g}}<br>{a.y} %{{y:.4~g}}<extra></extra>"}
    if c.kind == "theory":
        yield {
            **base,
            **hover,
            "x": x,
            "y": y,
            "mode": "lines",
            "line": {"color": c.style.color, "width": 2.5, "dash": c.style.dash},
        }
    elif c.kind == "toy":
        yield {
            **base,
            **hover,
            "x": x,
            "y": y,
            "mode": "markers",
            "marker": {"color": c.style.color, "size": 6, "symbol": c.style.marker},
        }
    else:
        marker = {
            "color": c.style.color,
            "size": 11,
            "symbol": c.style.marker + "-open",
            "line": {"width": 2, "color": c.style.color},
        }
        yield {**base, **hover, "x": x, "y": y, "mode": "markers", "marker": marker}


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
        "height": HEIGHT + 90,
    }
    layout["margin"] = {**MARGIN, "b": 110}
    return go.Figure({"data": description["data"], "layout": layout})


# "Share chart" in plotly's mode bar uploads the chart to another company's server; the kit's figures stay here.
CONFIG = {"showSendToCloud": False, "displaylogo": False, "responsive": True}
