"""numba kernels of the simulation: the advantages of one batch, for every method of methods.py by its number.

A batch has n trajectories of R roles; unit = trajectory * R + role is what the estimators call a row. A cell is one
decision, in the order of trajectories and turns. Readable twins, with the formulas' sources: estimation.py and the
estimators' own files. Plain loops throughout, as in group_kernels.py.
"""

import math
from typing import NamedTuple

import numpy as np

from normkit.advantage.group_kernels import (
    CENTER,
    INSIDE,
    OUTSIDE,
    degenerate,
    extent,
    members,
    pairs,
    standardize,
    zero,
)
from normkit.advantage.methods import METHODS
from normkit.compiling import load_numba

numba = load_numba()

# positions of the options in the vector `o` of the kernels; those that stand for names are numbers, too
OPTIONS = (
    "alpha", "beta", "mu", "kappa", "eps", "ddof", "gamma", "scale", "singleton", "baseline", "limit", "quantile",
    "sign", "interval", "rollouts", "branch", "rho", "prioritized",
)  # fmt: skip
ALPHA, BETA, MU, KAPPA, EPS, DDOF, GAMMA, SCALE, SINGLETON, BASELINE, LIMIT, QUANTILE, SIGN = range(13)
INTERVAL, ROLLOUTS, BRANCH, RHO, PRIORITIZED = range(13, len(OPTIONS))
(
    REINFORCE, VALUE, WHITEN, GRPO, DR_GRPO, RLOO, REINFORCE_PP, REINFORCE_PP_BASELINE, DAPO, SAN, CANON, MAPO, MARS,
    SPO, BNPO, HAPO, SEGMENT_CHAIN, SEGMENT_TREE,
) = range(len(METHODS))  # fmt: skip

_leaf = numba.njit(error_model="numpy", _nrt=False)  # without reference counts


class Rows(NamedTuple):
    """Of units (N,): outcome, tokens (as float64), group, stratum, baseline. Of cells: the rest."""

    outcome: np.ndarray
    tokens: np.ndarray
    group: np.ndarray
    stratum: np.ndarray
    baseline: np.ndarray
    unit: np.ndarray
    turn: np.ndarray
    role: np.ndarray
    reward: np.ndarray
    entropy: np.ndarray


# ---- estimators by unit ---------------------------------------------------------------------------------------------


@_leaf
def _rloo(rows, groups, raw, room, out):
    order, first = room.integers[0, : out.shape[0]], room.integers[1, : groups + 2]
    members(rows.group, order, first)
    for k in range(groups):
        n = first[k + 1] - first[k]
        for i in order[first[k] : first[k + 1]]:
            out[i] = out[i] * n / (n - 1) if n > 1 else (rows.outcome[i] if raw else 0.0)


@_leaf
def _canon(rows, groups, o, room, out):
    order, first = room.integers[0, : out.shape[0]], room.integers[1, : groups + 2]
    still, mu, r, metric = room.classes[0, :groups], o[MU], rows.outcome, rows.stratum
    members(rows.group, order, first)
    degenerate(r, rows.group, room.classes[1, :groups], still)
    for g in range(groups):
        begin, end = first[g], first[g + 1]
        for i in range(begin + 1, end):  # insertion sort by the metric, which leaves ties in their order
            row, j = order[i], i
            while j > begin and metric[order[j - 1]] > metric[row]:
                order[j] = order[j - 1]
                j -= 1
            order[j] = row
        cut = begin + (end - begin) // 2
        below = above = 0.0
        for i in range(begin, end):
            if i < cut:
                below += r[order[i]] / (cut - begin)
            else:
                above += r[order[i]] / (end - cut)
        for i in range(begin, end):
            x = r[order[i]]
            if still[g] > 0:
                out[order[i]] = 0.0
            elif i < cut:
                out[order[i]] = mu * (x - o[ALPHA] * above - o[BETA]) + (1 - mu) * (x - below)
            else:
                out[order[i]] = mu * (o[ALPHA] * x - below + o[BETA]) + (1 - mu) * (x - above)


@_leaf
def _bnpo(rows, groups, limit, room, out):
    """out: the centered rewards, which come as they are if all lie in [0, 1]."""
    low, high = extent(rows.outcome)
    if low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    p, count, span = room.classes[0, :groups], room.classes[1, :groups], high - low if high > low else 1.0
    zero(p)
    zero(count)
    for i in range(out.shape[0]):
        count[rows.group[i]] += 1
        p[rows.group[i]] += (rows.outcome[i] - low) / span
    for g in range(groups):
        p[g] /= count[g]
    alpha, beta = _beta_parameters(p)
    whole = math.lgamma(alpha) + math.lgamma(beta) - math.lgamma(alpha + beta)
    for i in range(out.shape[0]):
        x = p[rows.group[i]]
        if out[i] != 0:  # then 0 < x < 1
            log = whole - (alpha - 1) * math.log(x) - (beta - 1) * math.log1p(-x)
            out[i] *= math.exp(min(log, math.log(limit))) / span


@_leaf
def _beta_parameters(p):
    mean = square = 0.0
    for g in range(p.shape[0]):
        mean += p[g] / p.shape[0]
    for g in range(p.shape[0]):
        square += (p[g] - mean) ** 2
    if not square > 1e-12 * (p.shape[0] - 1):
        return 1.0, 1.0
    k = max(mean * (1 - mean) / (square / (p.shape[0] - 1)) - 1, 0.0)
    return 1 + k * mean / 3, 1 + k * (1 - mean) / 3


@_leaf
def _of_units(method, rows, groups, o, room, out):
    """The methods that give a unit one advantage, on `out` (N,), zeros before. Of room.numbers the first row is free."""
    r, n, one, work = rows.outcome, out.shape[0], np.int64(1), room.classes
    ones, whole, x, pair = room.ones[:n], room.zeros[:n], room.numbers[0, :n], room.integers[0, :n]
    if method <= VALUE:
        for i in range(n):
            out[i] = r[i] - (rows.baseline[i] if method == VALUE else o[BASELINE])
    elif method == WHITEN:
        standardize(r, whole, ones, one, INSIDE, o[EPS], o[DDOF], 1.0, work, out)
    elif method in (GRPO, DAPO):
        standardize(r, rows.group, ones, groups, OUTSIDE, o[EPS], o[DDOF], 1.0, work, out)
    elif method == CANON:
        _canon(rows, groups, o, room, out)
    elif method == SPO:
        for i in range(n):
            x[i] = r[i] - rows.baseline[i]
        standardize(x, whole, ones, one, OUTSIDE, o[EPS], o[DDOF], 1.0, work, out)
    elif method == SAN:
        strata, named = pairs(rows.group, rows.stratum, room.table, pair), math.isnan(o[KAPPA])
        kind, share = (OUTSIDE, o[ALPHA]) if named else (CENTER, 1 - o[KAPPA])
        standardize(r, pair, ones, strata, kind, o[EPS], o[DDOF], share, work, out)
        standardize(r, rows.group, ones, groups, kind, o[EPS], o[DDOF], 1 - share, work, out)
    else:
        standardize(r, rows.group, ones, groups, CENTER, 0.0, 0.0, 1.0, work, out)
        if method == RLOO:
            _rloo(rows, groups, o[SINGLETON] > 0, room, out)
        elif method == BNPO:
            _bnpo(rows, groups, o[LIMIT], room, out)
        elif method == REINFORCE_PP_BASELINE:
            for i in range(n):
                x[i], out[i] = out[i], 0.0
            standardize(x, whole, rows.tokens, one, INSIDE, o[EPS], o[DDOF], 1.0, work, out)


# ---- estimators by cell ---------------------------------------------------------------------------------------------


@_leaf
def _to_go(rows, gamma, outcomes, after, value):
    """value[c] = reward + gamma times the value of the unit's next cell; after (N,): zeros.

    outcomes: the reward of a unit's last cell is its outcome, that of the others 0.
    """
    for c in range(value.shape[0] - 1, -1, -1):
        i = rows.unit[c]
        if not outcomes:
            value[c] = rows.reward[c] + gamma * after[i]
        else:
            value[c] = gamma * after[i] if rows.baseline[i] > 0 else rows.outcome[i]
            rows.baseline[i] = 1.0
        after[i] = value[c]


@_leaf
def _of_cells(method, rows, groups, o, room, out):
    n, one, work = out.shape[0], np.int64(1), room.classes
    ones, whole, group, pair = room.ones[:n], room.zeros[:n], room.integers[0, :n], room.integers[1, :n]
    value, x, after = room.numbers[0, :n], room.numbers[1, :n], room.numbers[2, : rows.outcome.shape[0]]
    zero(after)
    if method == REINFORCE_PP:
        for i in range(after.shape[0]):
            rows.baseline[i] = 0.0  # no baseline here: marks the units whose last cell has been met
    _to_go(rows, o[GAMMA], method == REINFORCE_PP, after, value)
    if method == REINFORCE_PP:
        standardize(value, whole, ones, one, INSIDE, o[EPS], o[DDOF], 1.0, work, out)
    elif method == MAPO:
        for c in range(n):
            group[c] = rows.group[rows.unit[c]]
        turns = pairs(group, rows.turn, room.table, pair)
        standardize(value, pair, ones, turns, OUTSIDE, o[EPS], o[DDOF], o[ALPHA], work, out)
        standardize(rows.reward, group, ones, groups, OUTSIDE, o[EPS], o[DDOF], 1 - o[ALPHA], work, out)
    else:  # MARS; scale: 0 the role's standard deviation, 1 the one of all centered cells, 2 none
        roles, kind = extent(rows.role)[1] + 1, OUTSIDE if o[SCALE] == 0 else CENTER
        standardize(value, rows.role, ones, roles, kind, o[EPS], o[DDOF], 1.0, work, out)
        if o[SCALE] == 1:
            for c in range(n):
                x[c], out[c] = out[c], 0.0
            standardize(x, whole, ones, one, OUTSIDE, o[EPS], o[DDOF], 1.0, work, out)


@_leaf
def _kth(x, k):
    """The k-th smallest of x, which gets partly sorted (Hoare's selection)."""
    low, high = 0, x.shape[0] - 1
    while low < high:
        pivot, i, j = x[(low + high) // 2], low, high
        while i <= j:
            while x[i] < pivot:
                i += 1
            while x[j] > pivot:
                j -= 1
            if i <= j:
                x[i], x[j] = x[j], x[i]
                i += 1
                j -= 1
        if k <= j:
            high = j
        elif k >= i:
            low = i
        else:
            break
    return x[k]


@_leaf
def _nearest(x):
    """x rounded, halves to even."""
    below = math.floor(x)
    up = x - below > 0.5 or (x - below == 0.5 and below % 2 == 1)
    return int(below) + (1 if up else 0)


@_leaf
def _hapo(rows, groups, o, room, out):
    n, units, work, large = out.shape[0], rows.outcome.shape[0], room.classes, room.classes[5, :groups]
    average, plain = room.numbers[0, :units], room.numbers[1, :units]
    level, ranked = room.numbers[2, :n], room.numbers[3, :n]
    for x in (average, plain, large):
        zero(x)
    standardize(rows.outcome, rows.group, rows.tokens, groups, OUTSIDE, o[EPS], o[DDOF], 1.0, work, average)
    standardize(rows.outcome, rows.group, room.ones[:units], groups, OUTSIDE, o[EPS], 1.0, 1.0, work, plain)
    for i in range(units):
        if abs(average[i]) >= 5:
            large[rows.group[i]] = 1
    for c in range(n):
        level[c] = ranked[c] = math.log(max(rows.entropy[c], 1e-8))
    pivot = _kth(ranked, _nearest(o[QUANTILE] * (n - 1)))
    low, high = extent(level)
    for c in range(n):
        i, h = rows.unit[c], level[c] - pivot
        h /= max(high - pivot if h > 0 else pivot - low, 1e-12)
        if o[SIGN] > 0:  # the release divides the negative ones by a negative number
            h = abs(h)
        out[c] = (plain[i] if large[rows.group[i]] > 0 else average[i]) * (1 + o[BETA] * h if h <= 0 else 1.0)


@_leaf
def advantages(method, rows, groups, o, room, out):
    """Fill out, the advantage of every cell. The segment estimators need fresh rollouts or a tree: simulation_kernels."""
    zero(out)
    if method in (REINFORCE_PP, MAPO, MARS):
        _of_cells(method, rows, groups, o, room, out)
    elif method == HAPO:
        _hapo(rows, groups, o, room, out)
    else:
        unit = room.numbers[1, : rows.outcome.shape[0]]
        zero(unit)
        _of_units(method, rows, groups, o, room, unit)
        for c in range(out.shape[0]):
            out[c] = unit[rows.unit[c]]
