"""Text twins of a figure's panels: the numbers as a table, and what a panel shows in a sentence a curve."""

from collections.abc import Sequence

import numpy as np

from normkit.figures import Axes, Curve, Heat


def table(a: Axes, mine: Sequence[Curve | Heat], rows: int) -> str:
    """The numbers of one panel at up to `rows` places: along x, along a path, or of each side of a heat map."""
    lines = [c for c in mine if isinstance(c, Curve) and not c.is_path]
    blocks = [_grid(a, c, rows) for c in mine if isinstance(c, Heat)]
    if lines:
        xs = np.unique(np.concatenate([c.x for c in lines]))
        xs = xs[_some(len(xs), rows)]
        body = [[f"{x:g}", *(_cell(c, x) for c in lines)] for x in xs]
        blocks.append([f"{a.title}: {a.y}", *_columns([[a.x, *(c.label for c in lines)], *body])])
    for label, same in _paths(mine).items():
        x, y = (np.concatenate([getattr(c, key) for c in same]) for key in "xy")
        body = [[str(i), f"{x[i]:.4g}", f"{y[i]:.4g}"] for i in _some(len(x), rows)]
        blocks.append([f"{a.title}: {label}", *_columns([["point", a.x, a.y], *body])])
    return "\n\n".join("\n".join(block) for block in blocks)


def sentence(a: Axes, mine: Sequence[Curve | Heat]) -> str:
    """What one panel shows: where each curve goes, where a path ends, where a heat map has its ends."""
    parts = [_range(a, c) for c in mine if isinstance(c, Heat)]
    for c in mine:
        if isinstance(c, Curve) and len(c.x) and not c.is_path:
            if len(c.x) == 1:
                parts.append(f"{c.label} is {c.y[0]:.3g} at {a.x} {c.x[0]:g}")
                continue
            word = "rises" if c.y[-1] > 1.02 * c.y[0] else "falls" if c.y[-1] < 0.98 * c.y[0] else "stays"
            band = f" (band {c.lo[-1]:.3g} to {c.hi[-1]:.3g})" if c.lo is not None else ""
            parts.append(f"{c.label} {word} from {c.y[0]:.3g} to {c.y[-1]:.3g}{band} at {a.x} {c.x[-1]:g}")
    for label, same in _paths(mine).items():
        x, y = (np.concatenate([getattr(c, key) for c in same]) for key in "xy")
        if len(same) == 1 and same[0].kind != "theory":
            parts.append(f"{label} goes from {_at(a, x[0], y[0])} to {_at(a, x[-1], y[-1])} in {len(x)} points")
        else:
            parts.append(f"{label} lies within {_at(a, x.min(), y.min())} to {_at(a, x.max(), y.max())}")
    return f"{a.title}: " + "; ".join(parts) + "."


def _paths(mine):
    """The paths by label: outlines of one name are told as one."""
    found = {}
    for c in mine:
        if isinstance(c, Curve) and c.is_path:
            found.setdefault(c.label, []).append(c)
    return found


def _some(count, most):
    return np.unique(np.linspace(0, count - 1, min(most, count)).round().astype(int))


def _columns(cells):
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)) for row in cells]


def _cell(c, x):
    at = np.flatnonzero(c.x == x)
    if not len(at):
        return "-"
    band = f" [{c.lo[at[0]]:.3g}, {c.hi[at[0]]:.3g}]" if c.lo is not None else ""
    return f"{c.y[at[0]]:.4g}{band}"


def _grid(a, c, rows):
    """A coarse grid of a heat map, y growing upward as in the picture."""
    across = _some(len(c.x), min(rows, 7))
    body = [[f"{c.y[j]:.4g}", *(f"{c.z[j, i]:.4g}" for i in across)] for j in _some(len(c.y), rows)[::-1]]
    head = [f"{a.y} \\ {a.x}", *(f"{c.x[i]:.4g}" for i in across)]
    return [f"{a.title}: {c.label}: {c.title}", *_columns([head, *body])]


def _range(a, c):
    low, high = (np.unravel_index(pick(c.z), c.z.shape) for pick in (np.argmin, np.argmax))
    where = [f"{c.z[j, i]:.3g} at {_at(a, c.x[i], c.y[j])}" for j, i in (low, high)]
    return f"{c.title} of {c.label} runs from {where[0]} to {where[1]}"


def _at(a, x, y):
    return f"({a.x} = {x:.3g}, {a.y} = {y:.3g})"
