"""numba kernels of group normalization, for ids of any size in any order. Readable twins: estimators.py, strata.py.

Sorted ids (trainers repeat each prompt) are runs, done in one walk through memory. Others are first brought together:
rows are dealt into buckets by a hash of their id, whose groups then fit the cache; each bucket finds its groups in a small
hash table of its own; and the results are dealt back. Tasks are cut by the number of rows, and a group's rows are added up
in their order, so that no result depends on the number of threads.
"""

import math

import numpy as np

from normkit.arrays import compute_lock
from normkit.compiling import load_numba

numba = load_numba()

PARALLEL = 1 << 17  # rows (about 0.4 ms of work): below, waking the second thread costs more than it gains
_TASK = 1 << 15  # rows a task
_DEAL = 1 << 18  # rows a task of dealing, which keeps a counter for every bucket
_BUCKET = 1 << 13  # rows a bucket, about, where that is not too many buckets: all of it stays in a core's own cache
_MOST_BITS = 8  # 256 buckets; from 1024 on a core runs out of address translations: dealing takes three times as long
CENTER, STANDARDIZE, LEAVE_ONE_OUT, LEAVE_ONE_OUT_RAW = range(4)  # what is done with the differences from the mean
_LARGE, _SMALL = 1e75, 1e-285  # squares that the readable body looks at: float32 or their roots might not hold them
_DONE, _UNSORTED, _IRREGULAR = range(3)

_inner = numba.njit(_nrt=False)


@_inner
def _factor(count, square, how, eps, ddof):
    """What differences from the mean are multiplied by."""
    if how == STANDARDIZE:
        scale = math.sqrt(square / max(count - ddof, 1)) + eps
        return 1 / scale if scale > 0 else 1.0
    return 1.0 if how == CENTER or count < 2 else count / (count - 1.0)


@_inner
def _ordinary(square, how, eps):
    """Whether a sum of squares of unequal rewards is in the middle of what its dtype holds."""
    return square < _LARGE and (how != STANDARDIZE or square > _SMALL or eps > 1e-140)


@_inner
def _runs(x, ids, y, first, last, how, eps, ddof):
    """Normalize the runs of equal ids that start in first..last-1; ids must ascend."""
    n, begin = x.shape[0], first
    while 0 < begin < last and ids[begin] == ids[begin - 1]:
        begin += 1
    while begin < last:
        own, anchor, total, differs = ids[begin], np.float64(x[begin]), 0.0, False
        end = begin + 1
        while end < n and ids[end] == own:
            distance = x[end] - anchor
            total += distance
            differs |= distance != 0
            end += 1
        if end < n and ids[end] < own:
            return _UNSORTED
        if differs:
            offset, square = total / (end - begin), 0.0
            for i in range(begin, end):
                centered = (x[i] - anchor) - offset
                square += centered * centered
            if not _ordinary(square, how, eps):
                return _IRREGULAR
            factor = _factor(end - begin, square, how, eps, ddof)
            for i in range(begin, end):
                y[i] = ((x[i] - anchor) - offset) * factor
        elif not math.isfinite(anchor):
            return _IRREGULAR
        else:
            y[begin:end] = 0
            if how == LEAVE_ONE_OUT_RAW and end - begin == 1:
                y[begin] = anchor
        begin = end
    return _DONE


@_inner
def _hash(i):
    """A bijection of 64 bits in which every bit depends on all of them (the finalizer of MurmurHash3)."""
    h = np.uint64(i)
    h = (h ^ (h >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    h = (h ^ (h >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return h ^ (h >> np.uint64(33))


@_inner
def _bucket(x, ids, slots, keys, sums, how, eps, ddof):
    """Normalize x in place; ids become the groups' numbers. slots: a power of two of entries, more than x has.

    keys (rows,), sums (rows, 4): scratch; a group's anchor, sum and then offset, count, whether differing and then factor.
    """
    mask, groups = np.uint64(slots.shape[0] - 1), 0
    slots[:] = -1
    for i in range(x.shape[0]):
        at = _hash(ids[i]) & mask
        while slots[at] >= 0 and keys[slots[at]] != ids[i]:
            at = (at + np.uint64(1)) & mask
        g = slots[at]
        if g < 0:
            g = groups
            slots[at], keys[g] = g, ids[i]
            sums[g, 0], sums[g, 1], sums[g, 2], sums[g, 3] = x[i], 0.0, 0.0, 0.0
            groups += 1
        distance = x[i] - sums[g, 0]
        sums[g, 1] += distance
        sums[g, 2] += 1.0
        if distance != 0:
            sums[g, 3] = 1.0
        ids[i] = g
    differs = keys  # its keys are no longer needed
    for g in range(groups):
        if not math.isfinite(sums[g, 0]):
            return _IRREGULAR
        differs[g] = np.int64(sums[g, 3])
        sums[g, 1] /= sums[g, 2]
        sums[g, 3] = 0.0
    for i in range(x.shape[0]):
        g = ids[i]
        centered = (x[i] - sums[g, 0]) - sums[g, 1]
        sums[g, 3] += centered * centered
    for g in range(groups):
        if differs[g] and not _ordinary(sums[g, 3], how, eps):
            return _IRREGULAR
        sums[g, 3] = _factor(sums[g, 2], sums[g, 3], how, eps, ddof) if differs[g] else 0.0
    for i in range(x.shape[0]):
        g = ids[i]
        if how == LEAVE_ONE_OUT_RAW and sums[g, 2] == 1:
            continue
        x[i] = ((x[i] - sums[g, 0]) - sums[g, 1]) * sums[g, 3]
    return _DONE


@numba.njit(cache=True, nogil=True)
def _serial(x, ids, y, how, eps, ddof):
    state = _runs(x, ids, y, 0, x.shape[0], how, eps, ddof)
    if state == _UNSORTED:
        n, size = x.shape[0], 2
        while size < 2 * n:
            size *= 2
        slots, keys, sums = np.empty(size, np.int32), np.empty(n, np.int64), np.empty((n, 4))
        y[:] = x
        state = _bucket(y, ids.copy(), slots, keys, sums, how, eps, ddof)
    return state


@numba.njit(cache=True, nogil=True, parallel=True)
def _runs_parallel(x, ids, y, how, eps, ddof):
    tasks = -(-x.shape[0] // _TASK)
    states = np.empty(tasks, np.int64)
    for task in numba.prange(tasks):
        last = min(task * _TASK + _TASK, x.shape[0])
        states[task] = _runs(x, ids, y, task * _TASK, last, how, eps, ddof)
    return _UNSORTED if np.any(states == _UNSORTED) else states.max()


@numba.njit(cache=True, nogil=True, parallel=True)
def _buckets_parallel(x, ids, y, bits, how, eps, ddof):
    n, buckets, shift = x.shape[0], 1 << bits, np.uint64(64 - bits)
    tasks = -(-n // _DEAL)
    cursor = np.zeros((tasks, buckets), np.int64)
    for task in numba.prange(tasks):
        for i in range(task * _DEAL, min(task * _DEAL + _DEAL, n)):
            cursor[task, _hash(ids[i]) >> shift] += 1
    begin = np.zeros(buckets + 1, np.int64)
    for b in range(buckets):
        at = begin[b]
        for task in range(tasks):
            rows = cursor[task, b]
            cursor[task, b] = at
            at += rows
        begin[b + 1] = at
    mine, dealt = np.empty(n, np.int64), np.empty(n, x.dtype)
    for task in numba.prange(tasks):
        here = cursor[task].copy()
        for i in range(task * _DEAL, min(task * _DEAL + _DEAL, n)):
            b = _hash(ids[i]) >> shift
            mine[here[b]], dealt[here[b]] = ids[i], x[i]
            here[b] += 1
    states = np.zeros(buckets, np.int64)
    some = max(1, buckets // 32)  # buckets that share their scratch
    for task in numba.prange(buckets // some):
        most = 0
        for b in range(task * some, task * some + some):
            most = max(most, begin[b + 1] - begin[b])
        size = 2
        while size < 2 * most:
            size *= 2
        slots, keys, sums = np.empty(size, np.int32), np.empty(most, np.int64), np.empty((most, 4))
        for b in range(task * some, task * some + some):
            own = slice(begin[b], begin[b + 1])
            states[b] = _bucket(dealt[own], mine[own], slots, keys, sums, how, eps, ddof)
    for task in numba.prange(tasks):
        here = cursor[task].copy()
        for i in range(task * _DEAL, min(task * _DEAL + _DEAL, n)):
            b = _hash(ids[i]) >> shift
            y[i] = dealt[here[b]]
            here[b] += 1
    return states.max()


def grpo(rewards, groups, *, eps=1e-6, ddof=1):
    """estimators.grpo for NumPy float32 and float64; NotImplemented for anything irregular or not finite."""
    if not _regular(rewards, groups) or not _options(eps, ddof):
        return NotImplemented
    return _normalized(rewards, _integers(groups), STANDARDIZE, eps, ddof)


def dr_grpo(rewards, groups):
    """estimators.dr_grpo, as above."""
    if not _regular(rewards, groups):
        return NotImplemented
    return _normalized(rewards, _integers(groups), CENTER, 0.0, 0)


def rloo(rewards, groups, *, singleton="zero"):
    """estimators.rloo, as above."""
    if not _regular(rewards, groups) or singleton not in ("zero", "raw"):
        return NotImplemented
    how = LEAVE_ONE_OUT if singleton == "zero" else LEAVE_ONE_OUT_RAW
    return _normalized(rewards, _integers(groups), how, 0.0, 0)


def san(rewards, groups, strata, *, alpha=1.0, eps=1e-6, ddof=1):
    """strata.san, as above; also where the pairs of ids do not fit 64 bits by their ranges."""
    if not _regular(rewards, groups, strata) or not _options(eps, ddof):
        return NotImplemented
    if type(alpha) not in (float, int) or not 0 <= alpha <= 1:
        return NotImplemented
    outer, inner = _integers(groups), _integers(strata)
    (low, high), (least, most) = ((int(ids.min()), int(ids.max())) for ids in (outer, inner))
    width = most - least + 1
    if (high - low + 1) * width >= 2**63:
        return NotImplemented
    within = _normalized(rewards, (outer - low) * width + (inner - least), STANDARDIZE, eps, ddof)
    if within is NotImplemented or alpha == 1:
        return within
    whole = _normalized(rewards, outer, STANDARDIZE, eps, ddof)
    if whole is not NotImplemented:
        whole *= 1 - alpha
        whole += within.dtype.type(alpha) * within
    return whole


def _regular(rewards, *ids):
    """Whether the rewards are a row of numbers with integer ids (of 64 bits at most) as long."""
    return rewards.ndim == 1 and rewards.size > 0 and all(
        type(i) is np.ndarray and i.dtype.kind in "iu" and i.shape == rewards.shape for i in ids
    )  # fmt: skip


def _options(eps, ddof):
    return type(eps) in (float, int) and 0 <= eps < math.inf and type(ddof) is int and ddof in (0, 1)


def _integers(ids):
    return ids.view(np.int64) if ids.dtype == np.uint64 else ids.astype(np.int64, copy=False)


def _normalized(x, ids, how, eps, ddof):
    x, ids = (a if a.flags.carray else np.array(a, order="C") for a in (x, ids))  # one compilation, for writable rows
    y, n = np.empty_like(x), x.shape[0]
    if n < PARALLEL:
        state = _serial(x, ids, y, how, float(eps), ddof)
    else:
        with compute_lock:
            state = _runs_parallel(x, ids, y, how, float(eps), ddof)
            if state == _UNSORTED:
                bits = min((n // _BUCKET).bit_length(), _MOST_BITS)
                state = _buckets_parallel(x, ids, y, bits, how, float(eps), ddof)
    return y if state == _DONE else NotImplemented
