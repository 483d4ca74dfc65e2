"""How the ledger decides: t intervals over seeds, one a regime, and the verdict they give.

Each regime gets a Student t interval of its mean over seeds, at level 1 - alpha / regimes (Bonferroni), so that all of
a claim's intervals cover at once with probability 1 - alpha. Then

    holds                   the interval lies on the claimed side in every regime
    holds in regime         ... in at least one regime, but not in all
    contradicted            the interval lies on the other side in every regime
    not shown at toy scale  anything else: the seeds do not tell

A quantity that sits exactly on the threshold therefore gets one of the first three with probability at most alpha if it
is normal over seeds or has heavier symmetric tails. On 5 seeds, bounded (uniform) data reach about twice alpha = 0.01,
and skewed data more: the ledger's statistics are logarithms of ratios where they would be skewed.
"""

import math

import numpy as np

VERDICTS = ("holds", "holds in regime", "contradicted", "not shown at toy scale")
SIDES = ("claimed", "other", "open")


def t_quantile(probability: float, df: int) -> float:
    """Quantile of Student's t with integer df >= 1, exact to rounding.

    The distribution function is a finite sum for integer df (Abramowitz & Stegun 26.7.3-4); bisection inverts it in
    the angle theta = atan(t / sqrt(df)). Raises ValueError outside 0.5 <= probability < 1.
    """
    if not 0.5 <= probability < 1 or df < 1:
        raise ValueError(f"needs 0.5 <= probability < 1 and df >= 1, got {probability} and {df}")

    def central(theta):  # P(|T| < t)
        c2, term, total = math.cos(theta) ** 2, 1.0, 0.0
        for k in range(df // 2):
            total += term
            term *= c2 * ((2 * k + 2) / (2 * k + 3) if df % 2 else (2 * k + 1) / (2 * k + 2))
        if df % 2 == 0:
            return math.sin(theta) * total
        return 2 / math.pi * (theta + math.sin(theta) * math.cos(theta) * total)

    low, high = 0.0, math.pi / 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if central(middle) < 2 * probability - 1 else (low, middle)
    return math.sqrt(df) * math.tan((low + high) / 2)


def interval(samples: np.ndarray, alpha: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean over seeds and the simultaneous t interval: samples (..., seeds, regimes) -> three (..., regimes) arrays."""
    n, regimes = samples.shape[-2:]
    mean = samples.mean(-2)
    half = t_quantile(1 - alpha / (2 * regimes), n - 1) * samples.std(-2, ddof=1) / math.sqrt(n)
    return mean, mean - half, mean + half


def sides(low: np.ndarray, high: np.ndarray, region: tuple[float, float]) -> np.ndarray:
    """0 where [low, high] lies in the open claimed region, 1 where it lies outside it, 2 where it straddles an end."""
    inside = (low > region[0]) & (high < region[1])
    outside = (high < region[0]) | (low > region[1])
    return np.where(inside, 0, np.where(outside, 1, 2))


def decide(codes: np.ndarray) -> np.ndarray:
    """Index into VERDICTS from the codes of `sides`, over the last axis: the rule above."""
    claimed, other = codes == 0, codes == 1
    return np.where(claimed.all(-1), 0, np.where(claimed.any(-1), 1, np.where(other.all(-1), 2, 3)))
