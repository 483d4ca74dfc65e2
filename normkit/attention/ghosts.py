"""Ghosts of softmax (Sao 2026, arXiv 2603.13552): how far a Taylor series of the loss can be trusted along a step.

Along a direction the logits move as z + a t. Cross-entropy's log F(t), F(t) = sum_k exp(z_k + a_k t), has no singularity
on the real line; but F has zeros in the complex plane, and the nearest one, a ghost, ends the series' convergence:
    two classes: |t| = sqrt(delta^2 + pi^2) / Delta, delta = z_1 - z_2, Delta = |a_1 - a_2|;
    more: |t| >= pi / Delta, Delta = max a - min a (all terms lie in a half plane until then).
A step of length tau has r = tau / radius of the batch. Within r < 1 every order of the series describes it; beyond, none
has to. That is not a promise that the loss falls (or rises).
These formulas take arrays of NumPy, torch, ...; models and optimizers are in ghost_steps.py.
"""

import math

import numpy as np

from normkit.arrays import finite, floating, namespace, shaped
from normkit.checks import count

__all__ = ["convergence_radius", "log_partition_series", "radius_bound", "radius_ratio", "series_radius"]


def _spread(name, x):
    """max - min over the classes, (..., classes) -> (...), finite and with at least two classes."""
    xp = namespace(floating(name, x))
    if x.shape[-1] < 2:
        raise ValueError(
            f"{name} needs at least 2 classes in the last axis, got shape {tuple(x.shape)}; "
            "a single logit is the difference to a second one, which is 0: append it"
        )
    finite(name, x)
    return xp, xp.max(x, axis=-1) - xp.min(x, axis=-1)


def radius_bound(direction_logits):
    """pi / Delta for each sample (...), of the logits' derivatives (..., classes) along a direction; inf where none moves.

    A lower bound on the radius of convergence for logits linear in the step, whatever their values. In units of the
    direction: its own length if it is a unit vector. Raises ValueError for fewer than 2 classes or non-finite numbers.
    """
    xp, spread = _spread("direction_logits", direction_logits)
    moving = spread > 0
    return xp.where(moving, math.pi / xp.where(moving, spread, xp.ones_like(spread)), math.inf * xp.ones_like(spread))


def convergence_radius(logits, direction_logits):
    """The radius for each sample (...): exact for two classes, sqrt(delta^2 + pi^2) / Delta, else `radius_bound`.

    logits and direction_logits (..., classes): values, and derivatives along the direction. A batch's loss has the
    smallest of its samples' radii. Raises ValueError as `radius_bound` does and for different shapes.
    """
    xp = namespace(logits, direction_logits)
    shaped("direction_logits", direction_logits, logits.shape, "logits")
    bound = radius_bound(direction_logits)
    _, gap = _spread("logits", logits)
    if logits.shape[-1] > 2:
        return bound
    return bound * xp.hypot(xp.ones_like(gap), gap / math.pi)


def radius_ratio(direction_logits, step=1.0):
    """r = tau / rho of a batch: step times the largest spread of direction_logits (..., classes), over pi. A float.

    step: the length of the step in units of the direction. r < 1 is within the guarantee for every sample.
    """
    xp, spread = _spread("direction_logits", direction_logits)
    if not (math.isfinite(step) and step >= 0):
        raise ValueError(f"step must be a finite number >= 0, got {step}")
    return float(xp.max(spread)) * step / math.pi


def log_partition_series(logits, direction_logits, terms=160):
    """Taylor coefficients c_0 .. c_(terms-1) of log sum_k exp(z_k + a_k t), t in units of 1/Delta: (..., terms) float64.

    From F = sum_k p_k exp(b_k t), p = softmax(z): n c_n = n F_n - sum_(0<j<n) j c_j F_(n-j). b is a, less its mid-range
    (which changes c_1 only, and is put back), over its spread Delta; where Delta is 0, over 1. Knows nothing of zeros,
    and so checks `convergence_radius` from outside. NumPy. Raises ValueError as `convergence_radius`.
    """
    logits, direction_logits = np.asarray(logits, float), np.asarray(direction_logits, float)
    shaped("direction_logits", direction_logits, logits.shape, "logits")
    _, spread = _spread("direction_logits", direction_logits)
    _spread("logits", logits)
    count("terms", terms, least=2)
    top = logits.max(-1)
    p = np.exp(logits - top[..., None])
    total = p.sum(-1)
    unit = np.where(spread > 0, spread, 1.0)
    middle = (direction_logits.max(-1) + direction_logits.min(-1)) / 2
    b = (direction_logits - middle[..., None]) / unit[..., None]
    power, f = p / total[..., None], np.empty((*top.shape, terms))
    for n in range(terms):
        f[..., n] = power.sum(-1)
        power = power * b / (n + 1)  # p b^n / n!
    weighted = np.zeros_like(f)  # n c_n
    for n in range(1, terms):
        weighted[..., n] = n * f[..., n] - (weighted[..., 1:n] * f[..., n - 1 : 0 : -1]).sum(-1)
    c = weighted / np.maximum(np.arange(terms), 1)
    c[..., 0] = top + np.log(total)
    c[..., 1] += middle / unit
    return c


def series_radius(coefficients, window=40):
    """Radius of convergence (...) read off the last `window` of coefficients (..., terms), in units of their variable.

    Root test for logarithmic branch points: a pair at R e^(+-i theta) gives |c_n| = 2 R^-n |cos(n theta)| / n; the
    largest |n c_n / 2|^(1/n) of a window is 1/R, within about log(1/|cos|)/n. inf for a series that ends. Raises
    ValueError for a window that is not shorter than the series.
    """
    c = np.asarray(coefficients, float)
    terms = c.shape[-1]
    if not 1 <= count("window", window) < terms:
        raise ValueError(f"window must be shorter than the series of {terms} terms, got {window}")
    n = np.arange(terms - window, terms)
    with np.errstate(divide="ignore"):
        roots = np.log(np.abs(n * c[..., -window:]) / 2) / n
        return np.exp(-roots.max(-1))
