"""A residual stack as a sum over paths: the Residual Expansion (2510.03470), exact for small linear nets.

x_{l+1} = x_l + lam f_l(x_l) gives F(x) = x + lam sum_i f_i(x) + lam^2 sum_{i<j} f_j'(x) f_i(x) + O(lam^3). The term of
order k sums the C(L, k) paths that pass through k of the L branches and skip the others. There are 2^L paths, but those
of independent branches are uncorrelated, so that variances add and lam = 1/sqrt(L) is enough; paths through *one*
shared branch add coherently, and then lam = 1/L is the scale that neither explodes nor vanishes.
"""

import math

import numpy as np

from normkit.arrays import finite
from normkit.checks import count, pick
from normkit.rng import stream

SHARING = ("independent", "identity", "symmetric", "gaussian")


def path_counts(layers: int) -> tuple[int, ...]:
    """C(layers, k) paths of length k = 0..layers, exact integers; 2^layers in all. Raises ValueError for layers < 1."""
    layers = count("layers", layers)
    return tuple(math.comb(layers, k) for k in range(layers + 1))


def paths(matrices, scale: float = 1.0):
    """Terms of prod_l (I + scale W_l) by path length: matrices (layers, d, d), x_{l+1} = x_l + scale W_l x_l.

    Returns (layers+1, d, d) float64; term k is scale^k times the sum of W_{i_k} ... W_{i_1} over i_1 < ... < i_k, by
    the recursion of the elementary symmetric polynomials (layers^2/2 products, not 2^layers), kept in order.
    Raises ValueError for another shape or non-finite entries.
    """
    matrices = _stack("matrices", matrices)
    return _terms(matrices, np.eye(matrices.shape[1]), _scale(scale))


def path_share(layers: int, scale: float = 1.0, gain: float = 1.0):
    """Share of the output variance that paths of each length carry, (layers+1,), for independent zero-mean branches.

    C(L, k) gain^k scale^(2k) / (1 + gain scale^2)^L, with `gain` = E|W h|^2 / |h|^2: the number of branches a path
    takes is Binomial(L, p), p = gain scale^2 / (1 + gain scale^2). At scale 1 and gain 1 the typical path takes half of
    all branches; at scale 1/sqrt(L) about one. Raises ValueError for layers < 1, a negative gain, non-finite numbers.
    """
    layers, ratio = count("layers", layers), _gain(gain) * _scale(scale) * scale
    p = ratio / (1 + ratio) if ratio < 1 else 1 / (1 + 1 / ratio)
    share = np.zeros(layers + 1)
    share[0] = 1.0
    for _ in range(layers):  # sums of positive numbers: no cancellation at any depth
        share[1:] = (1 - p) * share[1:] + p * share[:-1]
        share[0] *= 1 - p
    return share


def measured_paths(layers: int, scale: float = 1.0, *, width=64, gain=1.0, runs=16, seed=0):
    """Mean square of the sum over paths of each length, (runs, layers+1), in random linear nets with unit input.

    Weights N(0, gain/width), one input of mean square 1 a run. Its mean over runs tends to C(L, k) gain^k scale^(2k) at
    any width (different paths are uncorrelated, as some matrix occurs in one of them only); `path_share` is the law of
    mean / mean.sum(). Raises ValueError for counts < 1, a negative gain, a non-finite scale, overflow.
    """
    layers, width, runs = count("layers", layers), count("width", width), count("runs", runs)
    scale, spread = _scale(scale), math.sqrt(_gain(gain) / width)
    squares = np.empty((runs, layers + 1))
    for run in range(runs):
        weights = _draw((layers, width, width), spread, seed, "paths", run)
        start = stream(seed, "expansion", "paths-input", run).standard_normal((width, 1))
        terms = _terms(weights, start * math.sqrt(width) / np.linalg.norm(start), scale)
        squares[run] = (terms * terms).mean((1, 2))
    return finite("mean squares of the paths", squares)


# ---- nonlinear branches f_l(x) = tanh(W_l x) ------------------------------------------------------------------------


def residual_net(x, weights, scale: float):
    """x (..., d) through x <- x + scale tanh(W_l x), weights (layers, d, d). Raises ValueError for shapes, NaN, inf."""
    x, weights = _inputs(x, weights)
    scale = _scale(scale)
    for w in weights:
        x = x + scale * np.tanh(x @ w.T)
    return x


def expand(x, weights, scale: float, order: int):
    """The expansion of `residual_net` up to scale^order, order 0, 1 or 2, with exact Jacobian-vector products.

    Order 2 needs one product a layer, not one a pair: sum_j f_j'(x) [sum_{i<j} f_i(x)]. Raises ValueError as
    `residual_net` does and for another order.
    """
    x, weights = _inputs(x, weights)
    scale = _scale(scale)
    if order not in (0, 1, 2):
        raise ValueError(f"order must be 0, 1 or 2, got {order!r}; for every order of a linear net see paths()")
    first, second = np.zeros_like(x), np.zeros_like(x)
    for w in weights:
        f = np.tanh(x @ w.T)
        second += (1 - f * f) * (first @ w.T)  # f_j'(x) v = (1 - tanh^2) W_j v, v the branches before j
        first += f
    return x + scale * first * (order >= 1) + scale**2 * second * (order == 2)


def truncation_error(scale: float, order: int, *, layers=8, width=32, tokens=64, seed=0) -> float:
    """Root mean square of `residual_net` - `expand` for x ~ N(0, 1), weights N(0, 1/width).

    As scale -> 0 it falls like scale^(order+1): halving divides it by 2, 4, 8 for order 0, 1, 2.
    """
    layers, width, tokens = count("layers", layers), count("width", width), count("tokens", tokens)
    weights = _draw((layers, width, width), width**-0.5, seed, "tanh")
    x = stream(seed, "expansion", "tanh-input").standard_normal((tokens, width))
    error = residual_net(x, weights, scale) - expand(x, weights, scale, order)
    return float(np.sqrt((error * error).mean()))


# ---- one branch shared by all layers --------------------------------------------------------------------------------


def sharing_variance(sharing: str, layers: int, scale: float) -> float:
    """Variance of x_L for a unit x_0 and linear branches that preserve variance; exact as width -> infinity.

    independent: (1 + s^2)^L, a Gaussian W of its own for every layer. The others use one W in all layers: identity
    (1 + s)^(2L); symmetric (Wigner, so E over the semicircle of (1 + s mu)^(2L)) sum_k C(2L, 2k) s^(2k) Catalan_k;
    gaussian (its powers are uncorrelated) sum_k C(L, k)^2 s^(2k). At s = 1/L the independent one tends to 1 and the
    tied ones to e^2, I_1(4)/2, I_0(2); at s = 1/sqrt(L) to e, and without bound. Raises ValueError for unknown names
    (SHARING lists them), layers < 1, a non-finite scale, overflow.
    """
    pick("sharing", sharing, SHARING)
    layers, scale = count("layers", layers), np.float64(_scale(scale))  # np: inf where ** of floats raises
    k = np.arange(layers, dtype=np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        match sharing:
            case "independent":
                value = (1 + scale**2) ** layers
            case "identity":
                value = (1 + scale) ** (2 * layers)
            case "symmetric":
                value = _series(scale**2 * (2 * layers - 2 * k) * (2 * layers - 2 * k - 1) / ((k + 1) * (k + 2)))
            case "gaussian":
                value = _series((scale * (layers - k) / (k + 1)) ** 2)
    if not np.isfinite(value):
        raise ValueError(f"the variance of {layers} {sharing} layers at scale {scale} overflows; use a smaller scale")
    return float(value)


def measured_sharing(sharing: str, layers: int, scale: float, *, width=128, runs=8, seed=0):
    """Mean square of x_L, (runs,), in nets as in `sharing_variance`: it averages over x_0 ~ N(0, I) exactly.

    Raises ValueError as `sharing_variance` does, for width < 2 and runs < 1.
    """
    pick("sharing", sharing, SHARING)
    layers, width, runs = count("layers", layers), count("width", width, 2), count("runs", runs)
    scale, squares = _scale(scale), np.empty(runs)
    for run in range(runs):
        whole = np.eye(width)
        with np.errstate(over="ignore", invalid="ignore"):
            for layer in range(layers):
                if layer == 0 or sharing == "independent":
                    w = np.eye(width) if sharing == "identity" else _draw((width,) * 2, width**-0.5, seed, run, layer)
                    w = (w + w.T) / math.sqrt(2) if sharing == "symmetric" else w
                whole = whole + scale * (w @ whole)
            squares[run] = (whole * whole).sum() / width
    return finite("mean squares of x_L", squares)


# ---- pieces ---------------------------------------------------------------------------------------------------------


def _terms(weights, start, scale):
    """(layers+1, d, columns): by path length, what prod_l (I + scale W_l) makes of `start`."""
    terms = np.zeros((len(weights) + 1, *start.shape))
    terms[0] = start
    with np.errstate(over="ignore", invalid="ignore"):
        for layer, w in enumerate(weights):  # the right side is computed whole before it is added
            terms[1 : layer + 2] += scale * (w @ terms[: layer + 1])
    return finite("terms", terms)


def _series(ratios):
    return 1 + np.cumprod(ratios).sum()


def _draw(shape, spread, seed, *path):
    return stream(seed, "expansion", *path).standard_normal(shape) * spread


def _stack(name, matrices):
    matrices = np.asarray(matrices, dtype=np.float64)
    if matrices.ndim != 3 or matrices.shape[1] != matrices.shape[2] or 0 in matrices.shape:
        raise ValueError(f"{name} must be (layers, d, d) with at least one layer, got shape {matrices.shape}")
    return finite(name, matrices)


def _inputs(x, weights):
    x, weights = np.asarray(x, dtype=np.float64), _stack("weights", weights)
    if x.ndim == 0 or x.shape[-1] != weights.shape[-1]:
        raise ValueError(f"x must end in the weights' width {weights.shape[-1]}, got shape {x.shape}")
    return finite("x", x), weights


def _scale(scale):
    if not math.isfinite(scale):
        raise ValueError(f"scale must be a finite number, got {scale!r}")
    return float(scale)


def _gain(gain):
    if not 0 <= gain < math.inf:
        raise ValueError(f"gain is a ratio of variances and must be finite and not negative, got {gain!r}")
    return float(gain)
