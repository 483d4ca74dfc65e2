"""Claims of the Two-Pass softmax paper: no overflow, accuracy, speed in and out of cache, what limits three passes.

Times are the best of some interleaved repetitions on one thread, of kernels built from the same parts with the same
exponential. The paper's processors were others; which regime a size belongs to depends on the cache of this one.
"""

import time

import numpy as np

from normkit.attention.softmax import softmax_three_pass, softmax_two_pass
from normkit.ledger import claim
from normkit.rng import stream

DUKHAN = {"paper": "Two-Pass softmax", "arxiv": "2001.04438"}
BAND = (np.log(0.9), np.log(1.1))
IN_CACHE, OUT_OF_CACHE = 1 << 13, 1 << 24  # entries: 32 KiB and 64 MiB
REPETITIONS = 7
RANGES = {"near 0": (0.0, 10.0), "far above": (200.0, 10.0), "far below": (-200.0, 10.0), "wide": (0.0, 400.0)}


def logits(seed, center, spread, shape=(32, 500)):
    """Gaussian float32 logits."""
    return (center + spread * stream(seed, "softmax").standard_normal(shape)).astype(np.float32)


def naive(x):
    """exp(x) / sum exp(x), as the definition has it."""
    with np.errstate(all="ignore"):
        e = np.exp(x)
        return e / e.sum(-1, keepdims=True)


def exact(x):
    """The softmax of the rounded logits, in float64."""
    return softmax_three_pass(x.astype(np.float64))


def sound(p):
    """Share of the rows that are a distribution: finite, and 1 in total to 1e-4."""
    with np.errstate(invalid="ignore"):
        return float(np.mean(np.abs(p.sum(-1, dtype=np.float64) - 1) < 1e-4))


def deviation(p, truth):
    """Root mean square relative error of the probabilities above 1e-30: float32 has no relative precision far below."""
    large = truth > 1e-30
    return float(np.sqrt(np.mean((p[large] / truth[large] - 1) ** 2)))


@claim(
    **DUKHAN,
    id="pairs-avoid-overflow",
    statement="Pairs of mantissa and exponent avoid overflow (and a sum of 0) without subtracting the maximum",
    regimes=tuple(RANGES),
    statistic="share of rows whose float32 softmax is a distribution, two-pass minus the plain definition",
    direction=">",
    threshold=0.0,
    seeds=20,
    budget_s=2,
)
def avoids_overflow(seed):
    rows = [logits(seed, *where) for where in RANGES.values()]
    return [sound(softmax_two_pass(x)) - sound(naive(x)) for x in rows]


@claim(
    **DUKHAN,
    id="pairs-are-accurate",
    statement="Without subtracting the maximum the two-pass algorithm is no less accurate than the three-pass one",
    regimes=tuple(RANGES),
    statistic="log ratio of the root mean square relative errors in float32, two-pass over three-pass",
    direction="<",
    threshold=BAND[1],
    seeds=20,
    budget_s=2,
)
def accurate(seed):
    rows = [logits(seed, *where) for where in RANGES.values()]
    return [np.log(deviation(softmax_two_pass(x), exact(x)) / deviation(softmax_three_pass(x), exact(x))) for x in rows]


def long_row(seed, n):
    """The logits (uniform within +-1000 as in the paper's benchmark) and room for their softmax."""
    x = stream(seed, "long row", n).uniform(-1000, 1000, n).astype(np.float32)
    return x, np.ones_like(x)


def best(functions, calls):
    """Seconds a call of each function: the best of REPETITIONS rounds, in which they take turns."""
    seconds = np.full((REPETITIONS, len(functions)), np.inf)
    for row in seconds:
        for i, function in enumerate(functions):
            start = time.perf_counter()
            for _ in range(calls):
                function()
            row[i] = (time.perf_counter() - start) / calls
    return seconds.min(0)


def timed(seed, n, *functions):
    """`best` of functions of (x, y), compiled before, on a row of n entries."""
    x, y = long_row(seed, n)
    for function in functions:
        function(x[:64], y[:64])
    return best([lambda f=f: f(x, y) for f in functions], max(1, (1 << 18) // n))


@claim(
    **DUKHAN,
    id="two-passes-are-faster",
    statement="On inputs out of cache the two-pass algorithm is faster than the three-pass one",
    regimes=tuple(
        f"{where}, vs {how}" for where in ("out of cache", "in cache") for how in ("recomputing", "reloading")
    ),
    statistic="log ratio of the best times of a softmax row, two-pass over three-pass (out of cache: 2^24 entries)",
    direction="<",
    threshold=0.0,
    seeds=10,
    budget_s=20,
)
def faster(seed):
    from normkit.attention.long_row import three_pass, two_pass

    ratios = []
    for n in (OUT_OF_CACHE, IN_CACHE):
        two, *three = timed(
            seed, n, two_pass, lambda x, y: three_pass(x, y, False), lambda x, y: three_pass(x, y, True)
        )
        ratios += [np.log(two / t) for t in three]
    return ratios


@claim(
    **DUKHAN,
    id="three-passes-wait-for-memory",
    statement="Out of cache all three passes of the three-pass algorithm are limited by memory bandwidth",
    regimes=("maximum", "sum", "exponentials written"),
    statistic="log ratio of the best times of a pass and of reading (third: copying) the same 64 MiB without arithmetic",
    direction="within",
    threshold=BAND,
    seeds=10,
    budget_s=10,
)
def memory_bound(seed):
    from normkit.attention.long_row import passes

    which = (0, 1, 2, 3, 4)
    top, total, written, read, copied = timed(seed, OUT_OF_CACHE, *(lambda x, y, w=w: passes(x, y, w) for w in which))
    return [np.log(top / read), np.log(total / read), np.log(written / copied)]
