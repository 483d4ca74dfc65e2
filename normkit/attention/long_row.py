"""numba kernels for one long softmax row by the algorithms that the Two-Pass paper compares (2001.04438).

float32, one thread, plain stores, and the same exponential in all of them: what differs is the visits to memory. x and y are
(n,).
"""

import math

import numpy as np

from normkit.attention.kernels import _BLOCK, _as_float, _bits, _exp32, _pair32, _row_sums, _top32, numba

_SMALLEST = -126  # exponent below which a float32 is subnormal; it counts as 0
_MAGIC_BITS = int(np.float32(12582912.0).view(np.int32))


@_row_sums
def _sum_exps(x, m):
    s = 0.0
    for start in range(0, x.shape[0], _BLOCK):
        block = x[start : start + _BLOCK]
        a = np.float32(0)
        for j in range(block.shape[0]):
            a += _exp32(block[j] - m)[0]
        s += a
    return s


@_row_sums
def _store_exps(x, m, y):
    s = 0.0
    for start in range(0, x.shape[0], _BLOCK):
        block, out = x[start : start + _BLOCK], y[start : start + _BLOCK]
        a = np.float32(0)
        for j in range(block.shape[0]):
            e = _exp32(block[j] - m)[0]
            out[j] = e
            a += e
        s += a
    return s


@_row_sums
def _sum_pairs(x, mantissas, exponents):
    """(M, E), the sum of exp(x) as M 2^E: block by block, and the blocks' pairs merged. The arrays are scratch."""
    total, exponent = 0.0, np.int32(-(2**30))
    for start in range(0, x.shape[0], _BLOCK):
        block = x[start : start + _BLOCK]
        high = np.int32(-(2**30))
        for j in range(block.shape[0]):
            m, bits, _ = _pair32(block[j])
            n = np.int32(bits - np.int32(_MAGIC_BITS))
            mantissas[j], exponents[j] = m, n
            high = max(high, n)
        a = np.float32(0)
        for j in range(block.shape[0]):
            a += mantissas[j] * _power(np.int32(exponents[j] - high))
        top = max(exponent, high)
        total = math.ldexp(total, max(-2000, exponent - top)) + math.ldexp(float(a), max(-2000, high - top))
        exponent = top
    return total, exponent


@_bits
def _power(n):
    """2^n for n <= 0 as a float32, 0 below its normal range."""
    near = max(n, np.int32(_SMALLEST))
    return np.float32(0) if n < np.int32(_SMALLEST) else _as_float(np.int32((near + np.int32(127)) << np.int32(23)))


@numba.njit(cache=True, nogil=True)
def three_pass(x, y, reload):
    """softmax of x to y: maximum, sum, and a third pass that computes the exponentials again or, reload, scales them."""
    m = _top32(x)
    s = _store_exps(x, m, y) if reload else _sum_exps(x, m)
    r = np.float32(1 / s)
    for j in range(x.shape[0]):
        y[j] = (y[j] if reload else _exp32(x[j] - m)[0]) * r


@numba.njit(cache=True, nogil=True)
def two_pass(x, y):
    """softmax of x, finite and within +-2^22, to y by pairs of mantissa and exponent: sum, and division."""
    total, exponent = _sum_pairs(x, np.empty(_BLOCK, np.float32), np.empty(_BLOCK, np.int32))
    r = np.float32(1 / total)
    for j in range(x.shape[0]):
        m, bits, _ = _pair32(x[j])
        y[j] = m * r * _power(np.int32(bits - np.int32(_MAGIC_BITS) - exponent))


@numba.njit(cache=True, nogil=True)
def passes(x, y, which):
    """One pass alone, for timing; its last number. 0: maximum, 1: sum, 2: exponentials to y, 3: plain reading, 4: copy."""
    if which == 0:
        return _top32(x)
    if which == 1:
        return np.float32(_sum_exps(x, np.float32(0)))
    if which == 3:
        return np.float32(_read(x))
    if which == 4:
        for j in range(x.shape[0]):
            y[j] = x[j]
    else:
        for j in range(x.shape[0]):
            y[j] = _exp32(x[j])[0] * np.float32(0.5)
    return y[0]


@_row_sums
def _read(x):
    """The sum of x: the least that can be done with what is read."""
    s = np.float32(0)
    for j in range(x.shape[0]):
        s += x[j]
    return s
