"""Back to the sphere: weights rescaled to a norm, whole or row by row, and updates made tangent to it.

Readable bodies against the array API standard (NumPy, torch); NumPy float32 and float64 run the kernels. A projected
norm equals its radius to a few units of rounding, however often a weight is projected: nothing accumulates.
"""

import math

import numpy as np

from normkit.arrays import accelerated, finite, floating, namespace, shaped


@accelerated("normkit.rates.kernels:project_rows")
def project_rows(w, radius, *, out=None):
    """Every row of w, (..., n), rescaled to norm `radius`: a number, or an array of w's shape without its last axis.

    out: an array like w to write to, w itself to project in place; after an error it holds nothing of use.
    Raises ValueError for a zero row (it has no direction), a non-finite entry, a radius that is not positive and finite
    or does not fit, a scalar or empty w; TypeError for an array that is not of real floating dtype.
    """
    return _project(w, radius, -1, out)


@accelerated("normkit.rates.kernels:project")
def project(w, radius, *, out=None):
    """The whole array w, of any shape, rescaled to Frobenius norm `radius`: Normalize-and-Project's step (2407.01800).

    out and errors are those of `project_rows`.
    """
    return _project(w, radius, None, out)


def tangent(w, d, *, axis=None):
    """The update d without its part along w: d - w <w, d> / <w, w>, for whole arrays or, with axis=-1, row by row.

    The projection of SGDP and AdamP (2006.08217, eq. 12). w, d: arrays of one shape. What is left is orthogonal to w to
    rounding of d's length. Raises ValueError for different shapes, a zero w (or row), non-finite entries.
    """
    xp = namespace(w, d)
    floating("w", w), floating("d", d)
    shaped("d", d, w.shape, "w")
    finite("d", d)
    unit = _unit(xp, w, axis)
    return d - unit * xp.sum(unit * d, axis=axis, keepdims=True)


def _project(w, radius, axis, out):
    xp = namespace(w, out)
    floating("w", w)
    shaped("out", out, w.shape, "w")
    radius = _radii(xp, radius, w, axis)
    dtype = w.dtype
    if xp.finfo(dtype).bits < 32:
        w = xp.astype(w, xp.float32)
    y = xp.astype(_unit(xp, w, axis) * radius, dtype, copy=False)
    if out is None:
        return y
    out[...] = y
    return out


def _unit(xp, w, axis):
    """w over its norm, without overflow: its largest entry is divided out first."""
    largest = xp.max(xp.abs(w), axis=axis, keepdims=True)
    if not bool(xp.all((largest > 0) & (largest < math.inf))):
        finite("w", w)
        row = int(xp.argmin(xp.reshape(largest, (-1,))))
        name = "w" if axis is None else f"row {row} of w"
        raise ValueError(f"{name} is zero and has no direction to project; initialize it, or leave it out")
    w = w / largest
    return w / xp.sqrt(xp.sum(w * w, axis=axis, keepdims=True))


def _radii(xp, radius, w, axis):
    """`radius` as a positive float, or as an array of row radii with a last axis of length 1."""
    if isinstance(radius, int | float | np.number) and not isinstance(radius, bool):
        if not 0 < radius < math.inf:
            raise ValueError(f"radius must be a positive finite number, got {radius!r}")
        return float(radius)
    namespace(w, radius)
    if axis is None:
        raise ValueError("project rescales the whole array to one radius, a number; for one a row use project_rows")
    shaped("radius", radius, w.shape[:-1], f"the rows of w with shape {tuple(w.shape)}")
    if not bool(xp.all((radius > 0) & (radius < math.inf))):
        raise ValueError("every radius must be positive and finite")
    return xp.astype(radius, w.dtype, copy=False)[..., None]
