"""Activations as readable functions, their derivatives, and what they do to the moments of a deep plain network."""

import math
from dataclasses import dataclass

import numpy as np

from normkit.arrays import finite, namespace
from normkit.checks import count, pick
from normkit.depth.laws import SELU_ALPHA, SELU_LAMBDA
from normkit.rng import stream


def relu(x):
    """max(x, 0)."""
    xp = namespace(x)
    return xp.maximum(x, xp.zeros_like(x))


def elu(x, alpha=1.0):
    """x above 0, alpha (e^x - 1) below (Clevert et al. 1511.07289)."""
    xp = namespace(x)
    below = xp.expm1(
        xp.minimum(x, xp.zeros_like(x))
    )  # the clamp: e^x of a large x would overflow in the branch not taken
    return xp.where(x > 0, x, alpha * below)


def selu(x):
    """lambda ELU_alpha(x), alpha = 1.6733, lambda = 1.0507 (Klambauer et al. 1706.02515)."""
    return SELU_LAMBDA * elu(x, SELU_ALPHA)


def gelu(x):
    """x Phi(x) in its tanh form (Hendrycks and Gimpel 1606.08415), the one of GPT-2; within 5e-4 of the exact one."""
    return 0.5 * x * (1 + namespace(x).tanh(_gelu_argument(x)))


def identity(x):
    """x."""
    return x


def relu_slope(x):
    """1 above 0, else 0."""
    xp = namespace(x)
    return xp.where(x > 0, xp.ones_like(x), xp.zeros_like(x))


def elu_slope(x, alpha=1.0):
    """1 above 0, alpha e^x below: continuous at 0 only for alpha = 1."""
    xp = namespace(x)
    return xp.where(x > 0, xp.ones_like(x), alpha * xp.exp(xp.minimum(x, xp.zeros_like(x))))


def selu_slope(x):
    """lambda times `elu_slope` at alpha = 1.6733; it jumps at 0."""
    return SELU_LAMBDA * elu_slope(x, SELU_ALPHA)


def gelu_slope(x):
    """Derivative of `gelu`."""
    t = namespace(x).tanh(_gelu_argument(x))
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
    "identity": (identity, lambda x: namespace(x).ones_like(x)),
}


INITS = {"lecun": 1.0, "he": 2.0}  # variance of a weight times fan_in


def second_moment(activation):
    """E phi(z)^2 for z ~ N(0, 1): 1/2 for relu, 1 for selu. Raises ValueError for an unknown activation."""
    pick("activation", activation, ACTIVATIONS)
    z = np.linspace(-12, 12, 4801)  # the kinks are at 0, a node, and phi(0) = 0: the trapezoid rule's error is < 1e-8
    density = np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    return float((ACTIVATIONS[activation][0](z) ** 2 * density).sum() * (z[1] - z[0]))


def alpha_dropout_constants(rate):
    """(dropped value, a, b): alpha dropout sends x to a (x or the dropped value) + b and keeps mean 0 and variance 1.

    The dropped value is SELU's limit -lambda alpha = -1.7581; with q = 1 - rate kept, a = (q + v^2 q (1-q))^(-1/2) and
    b = -a (1-q) v (1706.02515). Raises ValueError for a rate outside [0, 1).
    """
    if not 0 <= rate < 1:
        raise ValueError(f"rate is the share of units dropped and must be in [0, 1), got {rate}")
    value, keep = -SELU_LAMBDA * SELU_ALPHA, 1 - rate
    a = (keep + value**2 * keep * rate) ** -0.5
    return value, a, -a * rate * value


@dataclass(frozen=True)
class Moments:
    """Mean and variance of a plain network's activations over units and samples, both (seeds, layers+1)."""

    activation: str
    init: str
    mean: np.ndarray
    variance: np.ndarray


def activation_profile(
    activation, *, layers=24, width=64, samples=256, init="lecun", seeds=8, seed=0, inputs=None
) -> Moments:
    """Moments of x_0 and of x_{l+1} = phi(W x_l) in random plain networks, without norms or biases.

    init: "lecun", weights N(0, 1/fan_in), which SELU needs, or "he", N(0, 2/fan_in). x_0 is N(0, 1), (samples, width),
    or `inputs`, (samples, features), the same for every seed; standardize it to compare with theory.
    Theory: iterate laws.selu_map or laws.elu_moments. Layer k's weights do not depend on `layers`, nor runs on `seeds`.
    Raises ValueError for unknown names, counts below 1, inputs that are not finite or not (samples, features).
    """
    pick("activation", activation, ACTIVATIONS)
    pick("init", init, INITS)
    for name, value in (("layers", layers), ("width", width), ("samples", samples), ("seeds", seeds)):
        count(name, value)
    if inputs is not None:
        inputs = finite("inputs", np.asarray(inputs, dtype=np.float64))
        if inputs.ndim != 2 or 0 in inputs.shape:
            raise ValueError(f"inputs must be (samples, features) and not empty, got shape {inputs.shape}")
    phi = ACTIVATIONS[activation][0]
    moments = np.empty((2, seeds, layers + 1))
    for run in range(seeds):
        x = stream(seed, "plain", run, "input").standard_normal((samples, width)) if inputs is None else inputs
        moments[:, run, 0] = x.mean(), x.var()
        for layer in range(layers):
            w = stream(seed, "plain", run, "weights", layer).standard_normal((x.shape[1], width))
            x = phi(x @ w * math.sqrt(INITS[init] / x.shape[1]))
            moments[:, run, layer + 1] = x.mean(), x.var()
    return Moments(activation, init, *finite("moments", moments))
