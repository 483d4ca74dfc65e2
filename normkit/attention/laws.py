"""Laws of a softmax row's entropy: floors under a norm or a bound on the logits, and what random logits give. In nats.

Floors are attained, so no better ones exist; for a causal row at position t, tokens = t. The laws of random logits are
those of the random-energy model: i.i.d. N(0, scale^2) logits over `tokens` keys. Every argument but floor_logits' tokens
may be an array; they broadcast. All raise ValueError for negative or non-finite numbers and tokens < 1, TypeError for
tokens that are not integers.
"""

import functools
import math

import numpy as np

EULER = 0.57721566490153286061  # mean of the standard Gumbel distribution

# ---- floors ---------------------------------------------------------------------------------------------------------


def entropy_floor(sigma, tokens):
    """The least entropy of a softmax over `tokens` logits whose vector has norm sigma (Zhai et al. 2303.06296, theorem 3.1).

    log(1 + (T-1) beta) + sigma sqrt(T(T-1)) beta / (1 + (T-1) beta) with beta = exp(-sigma sqrt(T/(T-1))): log T at 0,
    falling, about T sigma exp(-sigma) far out. Any upper bound of the row's norm will do, such as the spectral norm of the
    matrix of logits; the theorem's own ||W_K W_Q^T|| ||X X^T|| knows no 1/sqrt(d), divide by it where the logits are.
    """
    sigma, tokens = _numbers(sigma=sigma, tokens=tokens)
    others = tokens - 1
    gap = sigma * np.sqrt(tokens / np.maximum(others, 1))
    rest = others * np.exp(-gap)
    return _plain(np.log1p(rest) + gap * rest / (1 + rest))


def floor_logits(sigma, tokens):
    """Logits of norm sigma and mean 0 with the entropy `entropy_floor(sigma, tokens)`: (..., tokens) for sigma (...).

    The first is sigma sqrt((T-1)/T), the others are equal. Raises ValueError for one token and sigma > 0: a single logit
    of mean 0 is 0.
    """
    (sigma,) = _numbers(sigma=sigma)
    tokens = int(_tokens(tokens, scalar=True))
    if tokens == 1 and np.any(sigma > 0):
        raise ValueError("one logit of mean 0 is 0, its norm cannot be positive: take tokens >= 2 or sigma = 0")
    top = sigma * math.sqrt((tokens - 1) / tokens)
    logits = np.repeat(-top[..., None] / max(1, tokens - 1), tokens, axis=-1)
    logits[..., 0] = top
    return logits


def largest_probability(bound, tokens):
    """The largest probability that logits within [-bound, bound] allow: 1 / (1 + (T-1) exp(-2 bound)).

    QK-norm bounds them: |logit| <= sqrt(d_head) with unit gain and the usual 1/sqrt(d_head) (2010.04245, 2302.05442).
    """
    bound, tokens = _numbers(bound=bound, tokens=tokens)
    return _plain(1 / (1 + (tokens - 1) * np.exp(-2 * bound)))


def bounded_floor(bound, tokens):
    """The least entropy of a softmax over logits within [-bound, bound].

    Moving one logit away from the mean of the others lowers the entropy, hence k logits at +bound and the others at
    -bound; with c = 2 bound the best k lies beside T (c/(1 - e^-c) - 1) / (e^c - 1): T/2 for a small bound, 1 for a
    large one. That one favorite is not the floor below that: a tight bound leaves more entropy to be lost by a crowd.
    """
    bound, tokens = _numbers(bound=bound, tokens=tokens)
    gap = 2 * bound
    small = gap < 1e-3
    safe = np.where(small, 1.0, gap)
    share = np.exp(-safe) / -np.expm1(-safe)  # 1 / (e^c - 1)
    share *= safe / -np.expm1(-safe) - 1
    best = np.floor(tokens * np.where(small, 0.5 - gap / 12, share))
    candidates = [_crowd(np.clip(best + more, 1, np.maximum(tokens - 1, 1)), gap, tokens) for more in (-1, 0, 1, 2)]
    return _plain(np.where(tokens > 1, np.minimum.reduce(candidates), 0.0))


def _crowd(k, gap, tokens):
    rest = (tokens - k) / k * np.exp(-gap)  # of the others, relative to the k
    return np.log(k) + np.log1p(rest) + gap * rest / (1 + rest)


def causal_entropy(tokens):
    """Mean entropy over the rows 1, ..., T of uniform causal attention: the mean of log t, log(T!) / T."""
    (tokens,) = _numbers(tokens=tokens)
    return _plain(np.vectorize(math.lgamma, otypes=[np.float64])(tokens + 1) / tokens)


# ---- random logits --------------------------------------------------------------------------------------------------


def freezing_scale(tokens):
    """The scale sqrt(2 log T) of i.i.d. Gaussian logits at which the random-energy model freezes (Derrida 1981)."""
    (tokens,) = _numbers(tokens=tokens)
    return _plain(np.sqrt(2 * np.log(tokens)))


def random_entropy(scale, tokens):
    """Entropy for i.i.d. N(0, scale^2) logits to leading order: log T - scale^2/2 below `freezing_scale`, 0 above it.

    Exact in the limit T -> infinity at a fixed scale / sqrt(2 log T), as a share of log T: H / log T -> 1 - (scale /
    freezing)^2. At a finite T it is good while exp(scale^2) << T, too low near freezing, where it leaves out terms of
    order 1 (`mean_entropy` has them).
    """
    scale, tokens = _numbers(scale=scale, tokens=tokens)
    with np.errstate(over="ignore"):
        return _plain(np.maximum(np.log(tokens) - scale**2 / 2, 0.0))


def mean_entropy(scale, tokens):
    """Exact mean entropy for i.i.d. N(0, scale^2) logits z over any number of tokens, by quadrature to about 1e-11.

    Add Gumbel noise G to the logits: the largest z + G is token i with its softmax probability, and is log Z + Gumbel. So

        E H = E log Z - E sum_i p_i z_i = E[G at the winner] - Euler's constant
            = T integral dv F(v)^(T-1) E[G f(v - G)] - Euler's constant,

    f and F density and distribution function of one logit N(0, scale^2), F's with its noise. About a millisecond for
    a new scale, less for one seen before.
    """
    scale, tokens = np.broadcast_arrays(*_numbers(scale=scale, tokens=tokens))
    found = np.empty(scale.shape)
    for s in np.unique(scale):
        here = scale == s
        counts = tokens[here]
        if s == 0:
            found[here] = np.log(counts)
            continue
        step, others_below, noise = _winner(float(s), math.ceil(np.log(counts.max())))
        total = step * np.exp((counts[:, None] - 1) * others_below) @ noise
        found[here] = np.clip(counts * total - EULER, 0.0, np.log(counts))
    return _plain(found)


@functools.lru_cache(1024)
def _winner(s, log_tokens):
    """(step, log F(v), E[G f(v - G)]) on a grid of v: the integral is the trapezoid's, spectrally accurate here.

    The average over one logit and its noise runs over the narrower of the two, Gumbel where s > 1.
    """
    if s > 1:  # v in units of s, at most 0.05 apart: the winner's spread is down to 1 / sqrt(2 log T), T's largest
        fine, coarse = math.ceil(6 / s), max(1, math.floor(s / 6))
        grain = 0.3 / (s * fine)  # steps of v and of the noise are multiples of it: few different arguments
        step = grain * coarse
        u = np.arange(-math.ceil(9 / step), (math.sqrt(2 * log_tokens + 75) + (log_tokens + 40) / s) / step)
        y = 0.3 * np.arange(-13, (log_tokens + 42) / 0.3)
        weight = 0.3 * np.exp(-y - np.exp(-y))
        if coarse < 100:
            at = coarse * u.astype(int)[:, None] - fine * np.arange(-13, y.size - 13)
            z = np.arange(at.min(), at.max() + 1) * grain
            above, density = _tail(z)[at - at.min()], np.exp(-z * z / 2)[at - at.min()]
        else:
            z = step * u[:, None] - y / s
            above, density = _tail(z), np.exp(-z * z / 2)
        above, noise = above @ weight, density @ (weight * y) / math.sqrt(2 * math.pi)
    else:
        x = np.arange(-12.0, 12.01, 0.3)
        v = np.arange(-4.0 - 12 * s, log_tokens + 42.0 + 12 * s, 0.2)
        weight = 0.3 * np.exp(-x * x / 2) / math.sqrt(2 * math.pi)
        y = v[:, None] - s * x
        with np.errstate(over="ignore"):
            rate = np.exp(-y)
        above = -np.expm1(-rate) @ weight
        noise = y * np.exp(-y - rate) @ weight
        step = 0.2
    return step, np.log1p(-np.minimum(above, 1 - 1e-16)), noise


def _tail(z):
    """P(standard normal > z); beyond 12 it is 0 or 1."""
    tail = (z < 0).astype(np.float64)
    near = np.abs(z) < 12
    tail[near] = [0.5 * math.erfc(x) for x in (z[near] / math.sqrt(2)).tolist()]
    return tail


# ---- arguments ------------------------------------------------------------------------------------------------------


def _numbers(**named):
    """The arguments as float64 arrays, checked: finite and >= 0, `tokens` whole and >= 1."""
    return [_tokens(v) if name == "tokens" else _nonnegative(name, v) for name, v in named.items()]


def _nonnegative(name, value):
    array = np.asarray(value, dtype=np.float64)
    good = np.isfinite(array) & (array >= 0)
    if not good.all():
        raise ValueError(f"{name} must be finite and >= 0, got {array[~good].flat[0]}")
    return array


def _tokens(value, scalar=False):
    array = np.asarray(value)
    if array.dtype.kind not in "iu" or (scalar and array.ndim):
        kind = "an integer" if scalar else "an integer or an array of integers"
        raise TypeError(f"tokens must be {kind}, got {value!r}")
    if np.any(array < 1):
        raise ValueError(f"tokens must be at least 1, got {array.min()}: a softmax needs a key")
    return array.astype(np.float64)


def _plain(array):
    """A float for scalar arguments, else the array."""
    return array[()] if isinstance(array, np.ndarray) else array
