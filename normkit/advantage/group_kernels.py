"""numba kernels of the simulation: statistics of small groups, for the estimators of estimate_kernels.py.

Plain loops: NumPy's functions would take numba several times as long to compile. Nothing is allocated: counting the
references to arrays would take a fifth of the simulation's time. For millions of rewards: kernels.py.
"""

import math
from typing import NamedTuple

import numpy as np

from normkit.advantage.episode_kernels import absorb
from normkit.compiling import load_numba

numba = load_numba()

CENTER, OUTSIDE, INSIDE = 0.0, 1.0, 2.0  # x - m; (x - m) / (s + eps); (x - m) / sqrt(s^2 + eps)

_leaf = numba.njit(error_model="numpy", _nrt=False)  # without reference counts


class Room(NamedTuple):
    """Room to work for N units and no more than N cells: all ones (N,), all zeros (N,) as integers, and what is written to.

    numbers (4, N); integers (2, N + 2); classes (6, N): no more than N groups, roles, and pairs of a group and a stratum or
    turn. table (M,): integers, M a power of 2 above N.
    """

    ones: np.ndarray
    zeros: np.ndarray
    numbers: np.ndarray
    integers: np.ndarray
    classes: np.ndarray
    table: np.ndarray


def room(n):
    """A Room, for N = n."""
    integers, table = np.empty((2, n + 2), np.int64), np.empty(2 << n.bit_length(), np.int64)
    return Room(np.ones(n), np.zeros(n, np.int64), np.empty((4, n)), integers, np.empty((6, n)), table)


@_leaf
def zero(x):
    """Fill x (N,) with zeros."""
    for i in range(x.shape[0]):
        x[i] = 0


@_leaf
def standardize(x, ids, weight, classes, kind, eps, ddof, factor, work, out):
    """out += factor times x centered, and scaled as `kind` says, within each class; degenerate classes add nothing.

    weight: how often an entry counts, as float64. ids: integers below `classes`. Differences are from one member of the
    class, so that equal rewards differ by exactly 0. work (5 or more, C): room, with C >= classes.
    """
    count, anchor, mean, square, differs = work[0], work[1], work[2], work[3], work[4]
    for k in range(classes):
        count[k] = anchor[k] = mean[k] = square[k] = differs[k] = 0.0
    n, i = x.shape[0], 0
    while i < n:  # by runs of one class: sums in memory make every entry wait for the one before
        k, entries, total, different = ids[i], 0.0, 0.0, 0.0
        zero = x[i] if count[k] == 0 else anchor[k]
        while i < n and ids[i] == k:
            different = 1.0 if x[i] != zero else different
            entries += weight[i]
            total += weight[i] * (x[i] - zero)
            i += 1
        anchor[k], differs[k] = zero, max(differs[k], different)
        count[k] += entries
        mean[k] += total
    for k in range(classes):
        mean[k] /= count[k]
    i = 0
    while i < n:
        k, total = ids[i], 0.0
        middle = mean[k]
        while i < n and ids[i] == k:
            total += weight[i] * (x[i] - anchor[k] - middle) ** 2
            i += 1
        square[k] += total
    for k in range(classes):
        scale = differs[k]
        if scale > 0 and kind == OUTSIDE:
            scale = 1 / (math.sqrt(square[k] / (count[k] - ddof)) + eps)
        elif scale > 0 and kind == INSIDE:
            scale = 1 / math.sqrt(square[k] / (count[k] - ddof) + eps)
        square[k] = factor * scale
    for i in range(x.shape[0]):
        k = ids[i]
        out[i] += square[k] * (x[i] - anchor[k] - mean[k])


@_leaf
def degenerate(outcome, group, first, equal):
    """Fill equal (G,): 1 where no two members of a group differ, else 0. first (G,): room."""
    n, i = outcome.shape[0], 0
    for k in range(equal.shape[0]):
        equal[k], first[k] = 1.0, math.nan
    while i < n:  # by runs, without a choice that the processor would have to guess
        k, different = group[i], False
        x = outcome[i] if math.isnan(first[k]) else first[k]
        while i < n and group[i] == k:
            different |= outcome[i] != x
            i += 1
        first[k] = x
        equal[k] = 0.0 if different else equal[k]


@_leaf
def members(group, order, first):
    """Fill order (N,), first (G + 2,): the rows of group k are order[first[k] : first[k + 1]], in the order they came in."""
    zero(first)
    for i in range(group.shape[0]):
        first[group[i] + 2] += 1
    for k in range(first.shape[0] - 2):
        first[k + 2] += first[k + 1]
    for i in range(group.shape[0]):
        order[first[group[i] + 1]] = i
        first[group[i] + 1] += 1


@_leaf
def extent(x):
    """The least and the greatest of x (N,)."""
    low = high = x[0]
    for i in range(1, x.shape[0]):
        low, high = min(low, x[i]), max(high, x[i])
    return low, high


@_leaf
def pairs(first, second, table, pair):
    """Fill pair (N,) with one number for each two, from 0 up; how many there are. table (M,): room, M a power of 2 > N."""
    classes, last = 0, table.shape[0] - 1
    zero(table)
    for i in range(pair.shape[0]):
        k = np.int64(absorb(absorb(np.uint64(0), first[i]), second[i])) & last
        j = table[k] - 1  # the first row of a pair, or -1: free
        while j >= 0 and (first[j] != first[i] or second[j] != second[i]):
            k = (k + 1) & last
            j = table[k] - 1
        if j < 0:
            table[k] = i + 1
            pair[i] = classes
            classes += 1
        else:
            pair[i] = pair[j]
    return classes
