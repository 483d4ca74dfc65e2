"""numba kernels of the attention theme: softmax with its entropy, over rows. Readable twins: softmax.py.

What buys the speed: an exponential of our own that LLVM vectorizes, a maximum over the bits as integers (it does not
vectorize a maximum of floats), both sums beside it, and stores around the cache where the output does not fit it.
"""

import math

import numpy as np

from normkit.arrays import compute_lock
from normkit.compiling import load_numba
from normkit.layers.kernels import BEYOND_CACHE, _fence, _stream_lines

numba = load_numba()
from llvmlite import ir  # noqa: E402  (after numba is set up)
from numba.core import types  # noqa: E402
from numba.extending import intrinsic, overload  # noqa: E402

PARALLEL = 1 << 17  # elements (about 0.06 ms of work): below, waking the second thread costs more than it gains
LONGEST_STREAMED = 1 << 16  # entries of a row; longer ones do not stay in the core's own cache between their passes
_BLOCK = 1024  # entries; partial sums in the logits' dtype are folded into float64 this often
_TASK = 1 << 15  # entries a task: fixed, so that nothing depends on the number of threads
_SUMS = {"reassoc", "contract", "nsz"}  # SIMD sums; NaN and infinity keep their meaning


_row = numba.njit(_nrt=False)  # without reference counts, whose locked instructions keep memory from running ahead
_bits = numba.njit(_nrt=False, fastmath={"contract"})  # in the order written: adding and subtracting rounds
_row_sums = numba.njit(_nrt=False, fastmath=_SUMS)


# Coefficients of exp on [-ln 2 / 2, ln 2 / 2]; the first term left out is 5e-9 and 4e-18.
_POLY32, _POLY64 = (tuple(1 / math.factorial(k) for k in range(terms)) for terms in (8, 14))
_LOG2E = math.log2(math.e)
_LN2_32 = 0.693359375, math.log(2) - 0.693359375
_LN2_64 = 0.693145751953125, 1.42860682030941723212e-6
_LEAST32, _LEAST64 = -87.0, -708.0  # exp of less counts as 0: it would be subnormal


@intrinsic
def _as_int(context, x):
    """The bits of a float as an integer of its size."""
    to = types.int32 if x == types.float32 else types.int64
    return to(x), lambda c, builder, s, a: builder.bitcast(a[0], ir.IntType(to.bitwidth))


@intrinsic
def _as_float(context, i):
    to = types.float32 if i == types.int32 else types.float64
    return to(i), lambda c, builder, s, a: builder.bitcast(a[0], c.get_value_type(to))


@_bits
def _pair32(x):
    """(m, bits of n + magic, n) of exp(x) = m 2^n: adding 1.5 2^23 rounds to a whole number in the low bits."""
    f = np.float32
    magic = f(12582912.0)
    shifted = x * f(_LOG2E) + magic
    n = shifted - magic
    r = (x - n * f(_LN2_32[0])) - n * f(_LN2_32[1])
    c = _POLY32
    m = f(c[7]) * r + f(c[6])
    m = m * r + f(c[5])
    m = m * r + f(c[4])
    m = m * r + f(c[3])
    m = m * r + f(c[2])
    m = m * r + f(c[1])
    return m * r + f(c[0]), _as_int(shifted), n


@_bits
def _pair64(x):
    magic = 6755399441055744.0
    shifted = x * _LOG2E + magic
    n = shifted - magic
    r = (x - n * _LN2_64[0]) - n * _LN2_64[1]
    c = _POLY64
    m = c[13] * r + c[12]
    m = m * r + c[11]
    m = m * r + c[10]
    m = m * r + c[9]
    m = m * r + c[8]
    m = m * r + c[7]
    m = m * r + c[6]
    m = m * r + c[5]
    m = m * r + c[4]
    m = m * r + c[3]
    m = m * r + c[2]
    m = m * r + c[1]
    return m * r + c[0], _as_int(shifted), n


@_bits
def _exp32(d):
    """exp(d) and d itself, d <= 0; below the limit 0 and the limit. NaN stays in the second."""
    least = np.float32(_LEAST32)
    near = least if d < least else d
    m, bits, _ = _pair32(near)
    e = _as_float(np.int32(_as_int(m) + (bits << np.int32(23))))
    return np.float32(0) if d < least else e, near


@_bits
def _exp64(d):
    near = _LEAST64 if d < _LEAST64 else d
    m, bits, _ = _pair64(near)
    e = _as_float(_as_int(m) + (bits << np.int64(52)))
    return 0.0 if d < _LEAST64 else e, near


@_row
def _top32(x):
    """Maximum by the bits: those of positive floats are ordered as integers, those of negative ones backwards."""
    bits, high, low = x.view(np.int32), np.int32(-(2**31)), np.int32(2**31 - 1)
    for j in range(bits.shape[0]):
        high = max(high, bits[j])
        low = min(low, bits[j])
    return _as_float(np.int32(high if high >= 0 else low))


@_row
def _top64(x):
    bits, high, low = x.view(np.int64), np.int64(-(2**63)), np.int64(2**63 - 1)
    for j in range(bits.shape[0]):
        high = max(high, bits[j])
        low = min(low, bits[j])
    return _as_float(high if high >= 0 else low)


def _exp(d):
    """_exp32 or _exp64, by the type of d."""


def _top(x):
    """_top32 or _top64, by the dtype of x."""


@overload(_exp, inline="always")
def _(d):
    return (lambda d: _exp32(d)) if d == types.float32 else (lambda d: _exp64(d))


@overload(_top, inline="always")
def _(x):
    return (lambda x: _top32(x)) if x.dtype == types.float32 else (lambda x: _top64(x))


# ---- softmax with entropy -------------------------------------------------------------------------------------------


@_row_sums
def _sums(x, m):
    """Sums of e^d and d e^d over a row, d = x - m."""
    s = t = 0.0
    for start in range(0, x.shape[0], _BLOCK):
        block = x[start : start + _BLOCK]
        a = b = x.dtype.type(0)
        for j in range(block.shape[0]):
            e, d = _exp(block[j] - m)
            a += e
            b += e * d
        s += a
        t += b
    return s, t


@_row_sums
def _exps(x, m, y):
    """The same, and e^d to y."""
    s = t = 0.0
    for start in range(0, x.shape[0], _BLOCK):
        block, out = x[start : start + _BLOCK], y[start : start + _BLOCK]
        a = b = x.dtype.type(0)
        for j in range(block.shape[0]):
            e, d = _exp(block[j] - m)
            out[j] = e
            a += e
            b += e * d
        s += a
        t += b
    return s, t


@_row
def _softmax_row(x, y):
    """softmax to y; returns the entropy."""
    s, t = _exps(x, _top(x), y)
    r = x.dtype.type(1 / s)
    for j in range(x.shape[0]):
        y[j] *= r
    return math.log(s) - t / s


@_row
def _some_entropies(x, h, first, last):
    for i in range(first, last):
        s, t = _sums(x[i], _top(x[i]))
        h[i] = math.log(s) - t / s


@_row
def _finite(h):
    good = True
    for i in range(h.shape[0]):
        good &= math.isfinite(h[i])
    return good


@_row
def _cached_rows(x, p, h, first, last):
    for i in range(first, last):
        h[i] = _softmax_row(x[i], p[i])


@_row
def _streamed_rows(x, p, h, first, last, buffer):
    """Rows pass through `buffer` as one stream; what is left over of a cache line goes with the next row."""
    out, stored, held, n = p[first:last].reshape(-1), 0, 0, x.shape[1]
    for i in range(first, last):
        h[i] = _softmax_row(x[i], buffer[held : held + n])
        held += n
        whole = _stream_lines(buffer[:held], out[stored:], x[min(i + 2, last - 1)].ctypes.data)
        stored, held = stored + whole, held - whole
        for j in range(held):
            buffer[j] = buffer[whole + j]
    for j in range(held):
        out[stored + j] = buffer[j]
    _fence()


@numba.njit(cache=True, nogil=True)
def _entropy_serial(x, h):
    _some_entropies(x, h, 0, x.shape[0])
    return _finite(h)


@numba.njit(cache=True, nogil=True)
def _softmax_serial(x, p, h):
    _cached_rows(x, p, h, 0, x.shape[0])
    return _finite(h)


@numba.njit(cache=True, nogil=True, parallel=True)
def _entropy_parallel(x, h, rows):
    for task in numba.prange(-(-x.shape[0] // rows)):
        _some_entropies(x, h, task * rows, min(task * rows + rows, x.shape[0]))
    return _finite(h)


@numba.njit(cache=True, nogil=True, parallel=True)
def _softmax_parallel(x, p, h, rows, stream):
    for task in numba.prange(-(-x.shape[0] // rows)):
        first, last = task * rows, min(task * rows + rows, x.shape[0])
        if stream:
            _streamed_rows(x, p, h, first, last, np.empty(x.shape[1] + 16, x.dtype))
        else:
            _cached_rows(x, p, h, first, last)
    return _finite(h)


def entropy(logits, axis=-1):
    """softmax.entropy for NumPy arrays, float32 or float64; NotImplemented for a row without a softmax."""
    x = _rows(logits, axis)
    if x is None:
        return NotImplemented
    h = np.empty(x.shape[:-1], x.dtype)
    rows, flat = x.reshape(-1, x.shape[-1]), h.reshape(-1)
    if x.size < PARALLEL:
        good = _entropy_serial(rows, flat)
    else:
        with compute_lock:
            good = _entropy_parallel(rows, flat, max(1, _TASK // x.shape[-1]))
    return h[()] if good else NotImplemented


def softmax_entropy(logits, axis=-1, *, out=None):
    """softmax.softmax_entropy for NumPy arrays, float32 or float64; NotImplemented for a row without a softmax."""
    x = _rows(logits, axis)
    if x is None or not (out is None or _fits(out, x, logits)):
        return NotImplemented
    h, p = np.empty(x.shape[:-1], x.dtype), np.empty(x.shape, x.dtype) if out is None else out
    rows, y, flat = x.reshape(-1, x.shape[-1]), p.reshape(-1, x.shape[-1]), h.reshape(-1)
    if x.size < PARALLEL:
        good = _softmax_serial(rows, y, flat)
    else:
        with compute_lock:
            streamed = 2 * x.nbytes >= BEYOND_CACHE and x.shape[-1] <= LONGEST_STREAMED
            good = _softmax_parallel(rows, y, flat, max(1, _TASK // x.shape[-1]), streamed)
    if not good:
        return NotImplemented
    return p if axis == -1 or out is not None else np.moveaxis(p, -1, axis), h[()]


def _rows(logits, axis):
    """The logits, contiguous, with `axis` moved to the end; None for what is not regular."""
    if logits.size == 0 or type(axis) is not int or not -logits.ndim <= axis < logits.ndim:
        return None
    return np.ascontiguousarray(logits if axis == -1 else np.moveaxis(logits, axis, -1))


def _fits(out, x, logits):
    """Whether `out` can be written to as rows while x is read."""
    same = type(out) is np.ndarray and out.dtype == x.dtype and out.shape == x.shape == logits.shape
    return same and x is logits and out.flags.c_contiguous and not np.may_share_memory(x, out)
