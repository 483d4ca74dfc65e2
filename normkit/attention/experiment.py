"""Softmax rows over random logits: their entropy and largest probability, and a phase diagram beside the laws.

Two kinds of logits, both with variance scale^2: independent Gaussian ones (the random-energy model, width=None), and
those of one head, q . k / sqrt(width) with Gaussian queries and keys, where all rows share the keys. Random numbers come
from one stream per row (and one for the keys) and are kept: a slider that moves the scale, temperature or length draws
none again; a row depends neither on how many others there are nor on keys beyond its own.
"""

import functools
from dataclasses import dataclass

import numpy as np

from normkit.attention import laws
from normkit.attention.softmax import entropy, softmax_entropy
from normkit.checks import count, positive
from normkit.rng import stream

_PIECE = 1 << 9  # numbers are drawn and kept up to the next power of two from here


@dataclass(frozen=True)
class Rows:
    """entropy (rows,), nats; largest (rows,), each row's largest probability; first (tokens,), the first row's softmax."""

    scale: float
    tokens: int
    entropy: np.ndarray
    largest: np.ndarray
    first: np.ndarray


@dataclass(frozen=True)
class Phases:
    """All (len(tokens), len(scales)), as shares of log T: 1 is uniform attention, 0 one token.

    entropy: simulated, the mean over rows, with its standard error `error`. law: to leading order, `laws.random_entropy`.
    mean: the exact mean, `laws.mean_entropy` (None unless asked for). freezing: (len(tokens),), where the law reaches 0.
    """

    tokens: np.ndarray
    scales: np.ndarray
    entropy: np.ndarray
    error: np.ndarray
    law: np.ndarray
    mean: np.ndarray | None
    freezing: np.ndarray


def random_rows(scale, tokens, *, rows=64, width=None, temperature=1.0, seed=0) -> Rows:
    """`rows` softmax rows over `tokens` logits of standard deviation scale / temperature.

    width: None for independent Gaussian logits, or the width of queries and keys, whose logits have heavier tails and
    a scale of their own in every row, scale |q| / sqrt(width). Raises ValueError for scale < 0, temperature <= 0,
    tokens, rows or width < 1, TypeError where these are not integers.
    """
    positive("scale", scale, zero=True), positive("temperature", temperature)
    z = unit_logits(rows, tokens, width, seed) * np.float32(scale / temperature)
    p, h = softmax_entropy(z)
    return Rows(float(scale), int(tokens), h, p.max(-1), p[0])


def unit_logits(rows, tokens, width=None, seed=0):
    """(rows, tokens) logits of unit variance, float32, not to be written to: a corner of what is kept. Raises as `random_rows` does."""
    count("tokens", tokens), count("rows", rows)
    if width is not None:
        count("width", width)
    many_rows, many_tokens = (1 << max(0, int(n) - 1).bit_length() for n in (rows, max(tokens, _PIECE)))
    return _kept(many_rows, many_tokens, width, seed)[:rows, :tokens]


def phase_grid(tokens, scales, *, rows=32, width=None, temperature=1.0, seed=0, exact=False) -> Phases:
    """Mean entropy over log T for every pair of a sequence length and a scale, simulated, beside the laws.

    tokens: integers >= 2. All pairs share their random numbers: neighbors differ by length and scale alone, and errors
    along a line are correlated. exact=True adds the exact mean, for independent logits. The laws speak of scale /
    temperature. Raises ValueError and TypeError as `random_rows` does, and for exact=True with a width.
    """
    tokens, scales = (np.atleast_1d(np.asarray(x)) for x in (tokens, scales))
    if tokens.ndim != 1 or scales.ndim != 1 or not tokens.size or not scales.size:
        raise ValueError(f"tokens and scales must be two lists of numbers, got shapes {tokens.shape}, {scales.shape}")
    for t in tokens.tolist():
        count("tokens", t, 2, "log T, the unit of the diagram, is 0 for one")
    count("rows", rows, 2, "a standard error needs two")
    positive("temperature", temperature)
    for s in scales.tolist():
        positive("scale", s, zero=True)
    if exact and width is not None:
        raise ValueError("the exact mean is that of independent logits: exact=True needs width=None")
    sharp = scales.astype(np.float64) / temperature
    found = np.empty((tokens.size, scales.size, rows), np.float32)
    unit = unit_logits(rows, int(tokens.max()), width, seed)
    for i, t in enumerate(tokens.tolist()):
        z = np.ascontiguousarray(unit[:, :t])
        scaled = np.empty_like(z)
        for j, s in enumerate(sharp.tolist()):
            found[i, j] = entropy(np.multiply(z, np.float32(s), out=scaled))
    total, where = np.log(tokens)[:, None], (sharp, tokens[:, None])
    return Phases(
        tokens,
        scales,
        found.mean(-1, dtype=np.float64) / total,
        found.std(-1, ddof=1, dtype=np.float64) / np.sqrt(rows) / total,
        laws.random_entropy(*where) / total,
        laws.mean_entropy(*where) / total if exact else None,
        laws.freezing_scale(tokens) * temperature,
    )


@functools.lru_cache(4)
def _kept(rows, tokens, width, seed):
    if width is None:
        z = _gaussian(rows, tokens, seed, "logits")
    else:
        queries = _gaussian(rows, width, seed, "queries", width)
        keys = stream(seed, "attention", "keys", width).standard_normal((tokens, width), dtype=np.float32)
        z = queries @ keys.T / np.float32(np.sqrt(width))
    z.flags.writeable = False
    return z


def _gaussian(rows, n, seed, *name):
    draws = (stream(seed, "attention", *name, row) for row in range(rows))
    return np.stack([rng.standard_normal(n, dtype=np.float32) for rng in draws])
