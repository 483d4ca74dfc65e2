"""Effective learning rates of scale-invariant weights, and the identities by which their norms grow."""

import math

import numpy as np

from normkit.arrays import finite, namespace
from normkit.rates.laws import buffers, rule


def effective_lr(lr, w, *, optimizer="sgd", axis=None):
    """Learning rate at which the direction w/||w|| moves: lr / ||w||^2 for the SGD family, lr / ||w|| for Adam's.

    A gradient of a scale-invariant loss shrinks as 1/||w||, and the same step turns a longer weight less; Adam undoes
    the first (Lyle et al. 2407.01800, section 3). w: NumPy or torch array of any shape, taken as one weight (returns a
    float), or with axis=-1 every row for itself (an array without that axis). optimizer: a name from `laws.OPTIMIZERS`;
    lr is the optimizer's own, momentum is not counted.
    Raises ValueError for an lr that is negative or not finite, a zero or non-finite weight, an unknown optimizer.
    """
    if isinstance(lr, bool) or not isinstance(lr, int | float | np.number) or not 0 <= lr < math.inf:
        raise ValueError(f"lr must be a finite number >= 0, got {lr!r}")
    kind, xp = rule(optimizer), namespace(w)
    w = xp.astype(finite("w", _detached(w)), xp.float64, copy=False)
    largest = xp.max(xp.abs(w))
    largest = largest if largest > 0 else 1.0  # squares of it neither overflow nor vanish
    norm = xp.sqrt(xp.sum((w / largest) ** 2, axis=axis))
    if bool(xp.any(norm == 0)):
        raise ValueError("w has norm 0: a zero weight has no direction and no effective learning rate")
    rate = lr / largest / norm if kind.adaptive else lr / largest / norm / largest / norm
    return float(rate) if rate.ndim == 0 else rate


def growth(w, update):
    """(measured, predicted) square norm of w - update: ||w||^2 + ||update||^2, right if and only if the two are orthogonal.

    With update = lr g it is the growth identity of SGD on a scale-invariant weight, ||w||^2 + lr^2 ||g||^2; it also holds
    for AdamP's projected step, and breaks under momentum (`heavy_ball_growth`). Arrays of one shape; floats.
    Raises ValueError for different shapes, a zero w, non-finite input.
    """
    w, update = _vector("w", w), _vector("update", update)
    if w.shape != update.shape:
        raise ValueError(f"w and update must have one shape, got {w.size} and {update.size} entries")
    _nonzero(w)
    after = w - update
    return float(after @ after), float(w @ w + update @ update)


def heavy_ball_growth(w, steps, lr, momentum):
    """(measured, predicted) square norms of a heavy ball's weight, (T+1,) each.

    w: the first weight; steps: (T, ...) its buffers p_0, ..., p_{T-1}, p_t = momentum p_{t-1} + g_t, each of w's shape,
    w_{t+1} = w_t - lr p_t. If every g_t was tangent at w_t,

        ||w_{t+1}||^2 = ||w_t||^2 + lr^2 ||p_t||^2 + 2 lr^2 sum_{k<t} momentum^(t-k) ||p_k||^2

    exactly, because the buffer leans outward: <w_t, p_t> = -lr sum_{k<t} momentum^(t-k) ||p_k||^2.
    Raises ValueError for shapes that do not fit, a zero w, non-finite numbers, momentum outside [0, 1).
    """
    momentum = buffers("momentum", momentum)[0]
    w, count = _vector("w", w), len(steps)
    p = _vector("steps", steps)
    if p.size != count * w.size:
        raise ValueError(f"steps must be (T, ...) with {w.size} entries each, as w has, got shape {np.shape(steps)}")
    if not (isinstance(lr, int | float | np.number) and math.isfinite(lr)):
        raise ValueError(f"lr must be a finite number, got {lr!r}")
    _nonzero(w)
    path = np.vstack([w, w - lr * np.cumsum(p.reshape(count, w.size), axis=0)])
    predicted, memory = [float(w @ w)], 0.0
    for power in np.vecdot(p.reshape(count, w.size), p.reshape(count, w.size)):
        predicted.append(predicted[-1] + lr * lr * (power + 2 * memory))
        memory = momentum * (memory + power)
    return np.vecdot(path, path), np.array(predicted)


def _vector(name, x):
    """`x` (NumPy or torch) as one float64 vector."""
    namespace(x)
    return np.asarray(finite(name, _detached(x)), dtype=np.float64).reshape(-1)


def _detached(x):
    return x.detach() if hasattr(x, "detach") else x


def _nonzero(w):
    if not w.any():
        raise ValueError("w is zero: a scale-invariant weight must not be")
