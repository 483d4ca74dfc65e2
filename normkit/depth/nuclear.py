"""Matrix Nuclear-Norm (Li et al. 2410.10672): a cheap stand-in for the nuclear norm, and where it stops standing in.

Tokens are rows, X is (tokens, width), D = min(tokens, width). The metric is the sum of the D largest column norms. It
depends on the basis, the singular values do not: `rank_one` turns one and the same rank-1 matrix from the metric's
floor to its ceiling. Arrays of NumPy, torch, ...; results are 0-d arrays of the same library (torch: differentiable).
"""

import math
from dataclasses import dataclass

import numpy as np

from normkit.arrays import finite, floating, namespace
from normkit.checks import count

__all__ = ["Comparison", "compare", "effective_rank", "mnn", "nuclear_norm", "prepare", "rank_one"]


def prepare(x, *, center=True, unit_rows=True):
    """The matrix that the paper measures, (tokens, width): minus the mean token, then every row to length 1.

    Raises TypeError for what is not a real floating array, and ValueError for an array that is not 2-D, a non-finite
    entry, or a token that cannot be brought to length 1: zero, or (center) equal to the mean up to rounding.
    """
    xp = namespace(_matrix(x))
    floor = 0.0
    if center:
        if x.shape[0] < 2:
            raise ValueError("centering one token leaves nothing: give two tokens or more, or center=False")
        floor = 4 * float(xp.finfo(x.dtype).eps) * xp.max(xp.abs(x)).item()  # of an entry: x - mean rounds that much
        x = finite("x minus its first token", x - x[:1, :])  # equal tokens become exact zeros
        x = x - xp.mean(x, axis=0, keepdims=True)
    if not unit_rows:
        return x
    peak = xp.max(xp.abs(x), axis=1, keepdims=True)
    zero = [i for i, p in enumerate(peak[:, 0].tolist()) if p <= floor]
    if zero:
        why = "equals the mean token" if center else "is zero"
        raise ValueError(
            f"row {zero[0]} of x {why} ({len(zero)} such of {x.shape[0]}): it has no direction; "
            "drop such tokens or use unit_rows=False"
        )
    x = x / peak  # so that no square over- or underflows
    return x / xp.linalg.vector_norm(x, axis=1, keepdims=True)


def mnn(x, *, center=True, unit_rows=True, per_token=True):
    """Matrix Nuclear-Norm: the sum of the D largest column norms of the prepared x, over the number of tokens.

    x: (tokens, width), D = min(tokens, width). With width <= tokens it is never below the nuclear norm (triangle
    inequality over the columns) and equal to it if and only if the columns are orthogonal; with more columns than
    tokens it can be below. The flags default to the paper's definition; per_token=False leaves the sum undivided,
    to be held against `nuclear_norm(prepare(x))`. Raises what `prepare` raises.
    """
    x = prepare(x, center=center, unit_rows=unit_rows)
    xp = namespace(x)
    columns = xp.sort(xp.linalg.vector_norm(x, axis=0))
    total = xp.sum(columns[-min(x.shape) :])
    return finite("the sum of the column norms", total / x.shape[0] if per_token else total)


def nuclear_norm(x):
    """Sum of the singular values of x (tokens, width), as it is given. Raises as `prepare` does; costs an SVD."""
    xp = namespace(_matrix(x))
    return finite("the nuclear norm", xp.sum(xp.linalg.svdvals(x)))


def effective_rank(x):
    """exp(H(p)), p = sigma / sum sigma, of x (tokens, width) as it is given: 1 for rank one, D for equal sigmas.

    Roy and Vetterli, EUSIPCO 2007. Raises as `prepare` does, and ValueError for a zero matrix.
    """
    xp = namespace(_matrix(x))
    sigma = xp.linalg.svdvals(x)
    if not sigma[0].item() > 0:
        raise ValueError("the effective rank of a zero matrix is undefined; give a matrix with a non-zero entry")
    p = finite("the singular values", sigma / sigma[0])
    p = p / xp.sum(p)
    return xp.exp(-xp.sum(p * xp.log(xp.where(p > 0, p, xp.ones_like(p)))))


@dataclass(frozen=True)
class Comparison:
    """The proxy beside what it stands for, on one prepared matrix; sums, not divided by the number of tokens."""

    mnn: float
    nuclear: float
    effective_rank: float
    nuclear_bounds: tuple[float, float]  # F and sqrt(D) F, F the Frobenius norm
    mnn_bounds: tuple[float, float]  # sqrt(D / width) F and sqrt(D) F


def compare(x, *, center=True, unit_rows=True) -> Comparison:
    """MNN, nuclear norm and effective rank of the prepared x (tokens, width), with their bounds.

    By Cauchy-Schwarz neither sum exceeds sqrt(D) ||X||_F; unit rows make ||X||_F = sqrt(tokens). Raises as `prepare`
    does, and ValueError for a matrix that is zero after preparation.
    """
    x = prepare(x, center=center, unit_rows=unit_rows)
    frobenius, rank = namespace(x).linalg.vector_norm(x).item(), min(x.shape)
    ceiling = math.sqrt(rank) * frobenius
    return Comparison(
        mnn(x, center=False, unit_rows=False, per_token=False).item(),
        nuclear_norm(x).item(),
        effective_rank(x).item(),
        (frobenius, ceiling),
        (math.sqrt(rank / x.shape[1]) * frobenius, ceiling),
    )


def rank_one(tokens=64, width=64, *, turn=1.0):
    """The counterexample, (tokens, width) float64 of rank 1: token i is (-1)^i d, d a unit vector.

    turn=0 puts d on the first axis: MNN = nuclear norm = sqrt(tokens). turn=1 gives all of d's entries one size, the
    columns are +-1/sqrt(width), and MNN = sqrt(tokens width), at its ceiling if width <= tokens, like an orthogonal
    matrix. Between them d turns by turn arccos(1/sqrt(width)), and nothing that does not depend on the basis changes:
    the nuclear norm stays sqrt(tokens), the effective rank 1.
    Raises ValueError for an odd number of tokens (the mean token would not be 0), width < 1, turn outside 0..1.
    """
    count("tokens", tokens, 2)
    count("width", width)
    if tokens % 2:
        raise ValueError(f"tokens must be even, so that the mean token is 0, got {tokens}")
    if not 0 <= turn <= 1:
        raise ValueError(f"turn must be in 0..1, got {turn}")
    angle = turn * math.acos(width**-0.5)
    direction = np.full(width, math.sin(angle) / math.sqrt(max(width - 1, 1)))
    direction[0] = math.cos(angle)
    return np.outer((-1.0) ** np.arange(tokens), direction)


def _matrix(x):
    finite("x", floating("x", x))
    if x.ndim != 2:
        raise ValueError(f"x must be 2-D, (tokens, width), got shape {tuple(x.shape)}; one sequence at a time")
    if x.shape[0] == 0:
        raise ValueError(f"x has no tokens (shape {tuple(x.shape)})")
    return x
