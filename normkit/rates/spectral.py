"""Spectral norms of weights and updates: the condition for feature learning, and the iteration that Muon needs.

Yang, Simon, Bernstein, "A Spectral Condition for Feature Learning", arXiv 2310.17813. A weight w (..., n_out, n_in), in
torch's layout, learns features at every width if ||w||_2 and ||dw||_2 both stay of order sqrt(n_out/n_in). The functions
take NumPy arrays, torch tensors and others of the array API.
"""

import math
from typing import NamedTuple

import numpy as np

from normkit.arrays import finite, floating, namespace
from normkit.checks import count, positive

MUON = (3.4445, -4.7750, 2.0315)  # steepest at 0, does not converge: singular values end between 0.68 and 1.2
CUBIC = (1.5, -0.5, 0.0)  # converges to the polar factor, slowly for small singular values


class Condition(NamedTuple):
    """Spectral norms over sqrt(n_out/n_in); the condition asks both to be of order 1, the same at all widths."""

    weight: float
    update: float


def mup_scale(n_out: int, n_in: int) -> float:
    """sqrt(n_out/n_in): the spectral norm that muP gives a weight and, times the learning rate, its updates."""
    return math.sqrt(count("n_out", n_out) / count("n_in", n_in))


def spectral_norm(w):
    """(...) largest singular values of the matrices w (..., n_out, n_in), exact, by SVD.

    Raises ValueError for fewer than two axes and non-finite entries, TypeError for what is no floating array.
    """
    xp = namespace(finite("w", _matrix(w)))
    return xp.linalg.matrix_norm(xp.astype(w, xp.float32) if w.dtype.itemsize < 4 else w, ord=2)  # no SVD in half


def spectral_condition(w, dw) -> Condition:
    """Condition 1 of 2310.17813 for one weight w (n_out, n_in) and one update dw of the same shape."""
    _matrix(w), _matrix(dw)
    if tuple(dw.shape) != tuple(w.shape) or w.ndim != 2:
        raise ValueError(f"w and dw must be two matrices of one shape, got {tuple(w.shape)} and {tuple(dw.shape)}")
    scale = mup_scale(*w.shape)
    return Condition(float(spectral_norm(w)) / scale, float(spectral_norm(dw)) / scale)


def to_mup_norm(w):
    """w (..., n_out, n_in) rescaled so that its spectral norm is sqrt(n_out/n_in): the start that the condition asks for.

    Raises ValueError for a zero matrix, and as `spectral_norm`.
    """
    xp, norm = namespace(w), spectral_norm(w)
    if bool(xp.any(norm == 0)):
        raise ValueError("a zero matrix has no direction to rescale; draw w first")
    return w * (mup_scale(*w.shape[-2:]) / norm)[..., None, None]


def newton_schulz(g, steps: int = 5, coefficients=MUON, eps: float = 1e-7):
    """The matrices g (..., m, n) with all singular values moved toward 1: the step that Muon takes in place of g.

    g / (||g||_F + eps), then `steps` times x <- (a + b xx' + c (xx')^2) x with (a, b, c) = coefficients: every singular
    value s becomes as + bs^3 + cs^5, the singular vectors stay. A zero matrix stays zero. Computed in g's own dtype.
    Raises ValueError for fewer than two axes, other than three finite coefficients, steps < 0.
    """
    xp = namespace(_matrix(g))
    count("steps", steps, 0)
    if len(coefficients) != 3 or not all(map(math.isfinite, coefficients)):
        raise ValueError(f"coefficients must be three finite numbers (a, b, c), got {coefficients}")
    a, b, c = coefficients
    x = g / (xp.linalg.matrix_norm(g, keepdims=True) + eps)
    tall = x.shape[-2] > x.shape[-1]
    if tall:  # the products are then of the short side
        x = xp.linalg.matrix_transpose(x)
    for _ in range(steps):
        square = x @ xp.linalg.matrix_transpose(x)
        x = a * x + (b * square + c * (square @ square)) @ x
    return xp.linalg.matrix_transpose(x) if tall else x


def singular_value_map(s, steps: int = 5, coefficients=MUON):
    """What `newton_schulz` makes of singular values s in [0, 1] (those after the division by ||g||_F); ValueError for others."""
    a, b, c = coefficients
    sizes = np.asarray(s)
    if sizes.dtype.kind not in "fiu" or not (np.isfinite(sizes) & (sizes >= 0)).all():
        raise ValueError(f"singular values are finite numbers >= 0, got {s!r}")
    for _ in range(count("steps", steps, 0)):
        s = a * s + b * s**3 + c * s**5
    return s


def spectral_bound(
    start: float, lr: float, weight_decay: float, steps: int, scale: float, update_norm: float = 1.2024
) -> float:
    """The largest ||w||_2 after `steps` steps w <- (1 - lr weight_decay) w - lr scale o with ||o||_2 <= update_norm.

    start = ||w_0||_2. (1-lr wd)^T start + scale update_norm/wd (1 - (1-lr wd)^T), by the triangle inequality; without
    decay start + T lr scale update_norm. With start and scale sqrt(n_out/n_in), the bound is that times a number that
    knows no width: control of the updates alone keeps the spectral condition. The default for update_norm is the
    maximum of Muon's quintic, which five steps cannot exceed. Raises ValueError unless 0 <= lr weight_decay <= 1.
    """
    for name, value in (("start", start), ("lr", lr), ("weight_decay", weight_decay), ("scale", scale)):
        positive(name, value, zero=True)
    positive("update_norm", update_norm)
    rate = lr * weight_decay
    if rate > 1:
        raise ValueError(f"lr * weight_decay must be at most 1, got {rate}: the decay would overshoot")
    shrink = (1 - rate) ** count("steps", steps, 0)
    grown = steps * lr if weight_decay == 0 else (1 - shrink) / weight_decay
    return shrink * start + grown * scale * update_norm


def _matrix(w):
    if len(floating("a weight", w).shape) < 2:
        raise ValueError(f"a matrix needs two axes, got shape {tuple(w.shape)}")
    return w
