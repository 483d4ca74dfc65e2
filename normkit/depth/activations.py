"""Activations as readable functions, their derivatives, and what they do to the moments of a deep plain network."""

import math

from array_api_compat import array_namespace

from normkit.depth.laws import SELU_ALPHA, SELU_LAMBDA


def relu(x):
    """max(x, 0)."""
    xp = array_namespace(x)
    return xp.maximum(x, xp.zeros_like(x))


def elu(x, alpha=1.0):
    """x above 0, alpha (e^x - 1) below (Clevert et al. 1511.07289)."""
    xp = array_namespace(x)
    below = xp.expm1(
        xp.minimum(x, xp.zeros_like(x))
    )  # the clamp: e^x of a large x would overflow in the branch not taken
    return xp.where(x > 0, x, alpha * below)


def selu(x):
    """lambda ELU_alpha(x), alpha = 1.6733, lambda = 1.0507 (Klambauer et al. 1706.02515)."""
    return SELU_LAMBDA * elu(x, SELU_ALPHA)


def gelu(x):
    """x Phi(x) in its tanh form (Hendrycks and Gimpel 1606.08415), the one of GPT-2; within 5e-4 of the exact one."""
    return 0.5 * x * (1 + array_namespace(x).tanh(_gelu_argument(x)))


def identity(x):
    """x."""
    return x


def relu_slope(x):
    """1 above 0, else 0."""
    return array_namespace(x).astype(x > 0, x.dtype)


def elu_slope(x, alpha=1.0):
    """1 above 0, alpha e^x below: continuous at 0 only for alpha = 1."""
    xp = array_namespace(x)
    return xp.where(x > 0, xp.ones_like(x), alpha * xp.exp(xp.minimum(x, xp.zeros_like(x))))


def selu_slope(x):
    """lambda times `elu_slope` at alpha = 1.6733; it jumps at 0."""
    return SELU_LAMBDA * elu_slope(x, SELU_ALPHA)


def gelu_slope(x):
    """Derivative of `gelu`."""
    t = array_namespace(x).tanh(_gelu_argument(x))
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * (_GELU * (1 + 3 * 0.044715 * x * x))


def _gelu_argument(x):
    return _GELU * (x + 0.044715 * x * x * x)


_GELU = math.sqrt(2 / math.pi)

# name: (function, derivative)
ACTIVATIONS = {
    "relu": (relu, relu_slope),
    "elu": (elu, elu_slope),
    "selu": (selu, selu_slope),
    "gelu": (gelu, gelu_slope),
    "identity": (identity, lambda x: array_namespace(x).ones_like(x)),
}
