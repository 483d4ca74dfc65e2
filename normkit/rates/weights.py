"""Weights that are functions of other weights: weight normalization, Weight Standardization, a compander.

The functions take an array whose first axis counts the output units, a weight of torch's Linear or Conv layers, as
(n, ...), and see it as n rows; NumPy arrays and torch tensors alike. The modules are parametrizations for
`torch.nn.utils.parametrize`, whose `remove_parametrizations(layer, "weight")` leaves the same function behind;
torch.nn.utils.parametrizations.weight_norm is the one for weight normalization.
"""

import math
import numbers

try:
    import torch
except ImportError as error:
    raise ImportError("normkit.rates.weights needs torch; pip install 'normkit[torch]'") from error
from torch import nn
from torch.nn.utils import parametrize

from normkit.arrays import finite, floating, namespace, shaped

__all__ = [
    "WeightCompander",
    "WeightStandardization",
    "compand_weights",
    "compander",
    "compander_inverse",
    "standardize_weights",
    "weight_norm",
    "weight_norm_gradients",
    "weight_standardization",
]

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


# ---- weight normalization (Salimans, Kingma 2016, arXiv 1602.07868) --------------------------------------------------


def weight_norm(v, g):
    """w = g v / |v|, row by row (eq. 2): v (n, ...) has the directions, g (n,) the lengths; (n, ...).

    Raises ValueError for fewer than two axes, a g of another shape, non-finite entries, and rows of zeros, which have
    no direction; TypeError for what is not an array of real floating dtype.
    """
    xp, rows, norm, g = _direction(v, g)
    return xp.reshape(g * rows / norm, v.shape)


def weight_norm_gradients(v, g, grad_w):
    """(grad_v, grad_g) of a loss whose gradient is grad_w at w = g v / |v| (eq. 3): shapes (n, ...) and (n,).

    grad_g = <grad_w, v> / |v|; grad_v = g / |v| (grad_w - grad_g v / |v|), orthogonal to v in every row.
    Raises like `weight_norm`, also for a grad_w that has not v's shape or is not finite.
    """
    xp, rows, norm, g = _direction(v, g)
    shaped("grad_w", finite("grad_w", grad_w), v.shape, "v")
    grad_rows, unit = _rows(xp, grad_w), rows / norm
    grad_g = xp.sum(grad_rows * unit, axis=1, keepdims=True)
    grad_v = g / norm * (grad_rows - grad_g * unit)
    return xp.reshape(grad_v, v.shape), grad_g[:, 0]


def _direction(v, g):
    xp = namespace(v, g)
    rows = _checked_rows("v", v)
    shaped("g", finite("g", g), v.shape[:1], "the rows of v")
    norm = xp.sqrt(xp.sum(rows**2, axis=1, keepdims=True))
    if bool(xp.any(norm == 0)):
        bad = norm[:, 0].tolist().index(0)
        raise ValueError(f"row {bad} of v is zero and has no direction; draw it from a continuous distribution")
    return xp, rows, norm, g[:, None]


# ---- Weight Standardization (Qiao et al. 2019, arXiv 1903.10520) -----------------------------------------------------


def weight_standardization(w, eps=1e-5):
    """(w - mean) / (std + eps), row by row: w (n, ...) -> (n, ...), rows of mean 0 and standard deviation 1.

    As in the released code the deviation divides by m - 1, m = fan-in, and eps stands outside the root.
    Raises ValueError for fewer than two axes, a fan-in of 1, rows of equal numbers, non-finite entries, eps < 0.
    """
    _not_negative("eps", eps)
    xp = namespace(w)
    rows = _checked_rows("w", w)
    if rows.shape[1] < 2:
        raise ValueError(f"a standard deviation needs a fan-in of at least 2, got w of shape {tuple(w.shape)}")
    equal = xp.max(rows, axis=1) == xp.min(rows, axis=1)
    if bool(xp.any(equal)):
        raise ValueError(
            f"row {equal.tolist().index(True)} of w has equal numbers only; there is nothing to standardize"
        )
    return xp.reshape(_standardized(xp, rows, eps), w.shape)


def _standardized(xp, rows, eps):
    centered = rows - xp.mean(rows, axis=1, keepdims=True)
    variance = xp.sum(centered**2, axis=1, keepdims=True) / (rows.shape[1] - 1)
    return centered / (xp.sqrt(variance) + eps)


class WeightStandardization(nn.Module):
    """Parametrization: the layer computes with `weight_standardization(w)`, while w learns.

    w is scale and shift invariant in every row, so its gradient is orthogonal to it and to constants. It does not
    check its input: NaN stays NaN, and a row of equal numbers becomes zeros, as in the released code.
    """

    def __init__(self, eps=1e-5):
        super().__init__()
        self.eps = _not_negative("eps", eps)

    def forward(self, w):
        return _standardized(torch, w.flatten(1), self.eps).reshape(w.shape)

    def right_inverse(self, w):
        """What is assigned to the weight is what learns; the layer then computes with it standardized."""
        return w

    def extra_repr(self):
        return f"eps={self.eps}"


def standardize_weights(model, layers=None, *, eps=1e-5):
    """Register `WeightStandardization` on the Linear and Conv layers of `model`; returns their names.

    layers: names as in model.named_modules(), or None for all. Meant for layers that a norm follows: it changes what
    the model computes, and a head that nothing follows gets large outputs. Raises ValueError for names that are not
    Linear or Conv layers of the model or are parametrized already, and for weights that cannot be standardized.
    """
    chosen = _chosen(model, layers)
    for layer in chosen.values():
        weight_standardization(layer.weight.detach(), eps)
    for layer in chosen.values():
        parametrize.register_parametrization(layer, "weight", WeightStandardization(eps))
    return list(chosen)


# ---- Weight Compander (Cakaj, Mehnert, Yang 2023, arXiv 2306.16993) ---------------------------------------------------


def compander(v, a, b, c, eps=1e-3):
    """w = a sgn(v) [(|tanh(v/b)| + eps)^(1/c) - eps^(1/c)] / [(1 + eps)^(1/c) - eps^(1/c)], entry by entry.

    A stand-in: the paper asks for a function that bounds the weights and is steep at zero, so that weights leave it,
    with parameters that can learn; we could not read its exact formula, and this is our own of that kind. Odd and
    increasing, |w| < a; b is the width; c >= 1 makes it steep: near 0 as |v/b|^(1/c), up to the slope
    a eps^(1/c - 1) / (b c [...]). c = 1 is a tanh(v/b) for any eps. a, b, c: numbers or arrays of shape ().
    Raises ValueError unless a, b, c > 0 and eps >= 0 are finite.
    """
    xp = namespace(v)
    _positive(a=a, b=b, c=c), _not_negative("eps", eps)
    t = xp.tanh(v / b)
    sign = xp.where(t < 0, -xp.ones_like(t), xp.ones_like(t))  # not sgn: at 0 the gradient must be the slope
    low, high = eps ** (1 / c), (1 + eps) ** (1 / c)
    return a * sign * ((sign * t + eps) ** (1 / c) - low) / (high - low)


def compander_inverse(w, a, b, c, eps=1e-3):
    """v with compander(v, a, b, c, eps) = w. Raises as it, and ValueError for non-finite entries and a |w| >= a."""
    xp = namespace(w)
    _positive(a=a, b=b, c=c), _not_negative("eps", eps)
    finite("w", w)
    largest = float(xp.max(xp.abs(w)))
    if not largest < float(a):
        raise ValueError(f"the compander reaches only |w| < a = {float(a):g}, got |w| up to {largest:g}; enlarge a")
    low, high = eps ** (1 / c), (1 + eps) ** (1 / c)
    t = (xp.abs(w) / a * (high - low) + low) ** c - eps
    return xp.sign(w) * b * xp.atanh(t)


class WeightCompander(nn.Module):
    """Parametrization: the layer computes with `compander(v)`, while v learns, and log a, log b, log c if `learnable`.

    It starts from v with compander(v) = the layer's weight, so registering it changes nothing yet.
    Raises ValueError unless a, b, eps > 0 and c >= 1 are finite. (Learning may take c below 1; a, b, c stay positive.)
    """

    def __init__(self, a=1.0, b=1.0, c=2.0, *, eps=1e-3, learnable=True):
        super().__init__()
        for name, value, low in (("a", a, 0), ("b", b, 0), ("eps", eps, 0), ("c", c, 1)):
            if not (low <= value < math.inf and value > 0):
                raise ValueError(f"{name} must be a finite number {'>= 1' if low else '> 0'}, got {value!r}")
        self.eps = eps
        self.log_abc = nn.Parameter(torch.tensor([a, b, c]).log(), requires_grad=learnable)

    @property
    def abc(self):
        """a, b and c as tensors of shape ()."""
        return self.log_abc.exp().unbind()

    def forward(self, v):
        return compander(v, *self.abc, self.eps)

    @torch.no_grad()
    def right_inverse(self, w):
        return compander_inverse(w, *self.abc, self.eps)

    def extra_repr(self):
        a, b, c = (f"{x:.3g}" for x in self.log_abc.detach().exp().tolist())
        return f"a={a}, b={b}, c={c}, eps={self.eps}, learnable={self.log_abc.requires_grad}"


def compand_weights(model, layers=None, *, room=2.0, c=2.0, eps=1e-3, learnable=True):
    """Register a `WeightCompander` on each Linear and Conv layer of `model`, a = b = room max|w|; returns their names.

    The model computes the same function until it learns. Raises like `standardize_weights`, for room <= 1 and for
    weights that are all zero.
    """
    if not 1 < room < math.inf:
        raise ValueError(f"room must be a finite number > 1, so that every |w| < a, got {room!r}")
    companders = {}
    for name, layer in _chosen(model, layers).items():
        w = finite(f"the weight of {name!r}", layer.weight.detach())
        a = room * w.abs().max().item()
        if a == 0:
            raise ValueError(f"the weight of {name!r} is zero; its size would be the compander's bound")
        companders[name] = WeightCompander(a, a, c, eps=eps, learnable=learnable).to(w)
    for name, each in companders.items():
        parametrize.register_parametrization(model.get_submodule(name), "weight", each)
    return list(companders)


# ---- shared ----------------------------------------------------------------------------------------------------------


def _rows(xp, x):
    return xp.reshape(x, (x.shape[0], -1))


def _checked_rows(name, x):
    if len(floating(name, x).shape) < 2:
        raise ValueError(f"{name} must have shape (outputs, ...) with at least two axes, got {tuple(x.shape)}")
    return _rows(namespace(x), finite(name, x))


def _not_negative(name, value):
    if not isinstance(value, numbers.Real) or not 0 <= value < math.inf:
        raise ValueError(f"{name} must be a finite number >= 0, got {value!r}")
    return value


def _positive(**values):
    for name, value in values.items():
        scalar = isinstance(value, numbers.Real) or getattr(value, "shape", None) == ()
        if not scalar or not 0 < value < math.inf:
            raise ValueError(f"{name} must be a finite number > 0, got {value!r}")


def _chosen(model, layers):
    """{name: layer}, checked."""
    there = {name: m for name, m in model.named_modules() if isinstance(m, LAYERS)}
    names = list(there) if layers is None else list(layers)
    for name in names:
        if name not in there:
            raise ValueError(f"{name!r} is no Linear or Conv layer of the model; it has {', '.join(there) or 'none'}")
        if parametrize.is_parametrized(there[name], "weight"):
            raise ValueError(f"the weight of {name!r} is parametrized already; remove that first")
    if not names:
        raise ValueError("no layer to register on: the model has no Linear or Conv layer, or layers is empty")
    return {name: there[name] for name in names}
