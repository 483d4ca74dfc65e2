"""numba kernels for `layer_norm` and `rms_norm` over the last axis. Readable twins: norms.py.

What buys the speed, by size: small inputs one serial call; larger ones threads over fixed blocks of rows (so the result
does not depend on the thread count); outputs that do not fit the last-level cache go around it (non-temporal stores
through a row buffer).
"""

import functools
import math

import numpy as np

from normkit.arrays import compute_lock
from normkit.compiling import load_numba

numba = load_numba()
from llvmlite import ir  # noqa: E402  (after numba is set up)
from numba.core import types  # noqa: E402
from numba.extending import intrinsic  # noqa: E402

PARALLEL = 1 << 18  # elements (about 0.1 ms of work): below, waking the second thread costs more than it gains
BEYOND_CACHE = 1 << 25  # bytes of x and out together from which on the output is streamed past the cache
_BLOCK = 1024  # elements; float32 partial sums are folded into float64 this often
_CHUNK = 256  # elements written and stored in turn when streaming: memory works while the next chunk is computed
_TASK = 1 << 16  # elements a task: fixed, so that rounding does not depend on the number of threads

# Enough for SIMD sums, but NaN and infinity keep their meaning ("nnan", "ninf" are absent).
_SUMS = {"reassoc", "contract", "nsz", "arcp", "afn"}


# Without reference counts: their locked instructions, a few a row, keep memory from running ahead.
_row = numba.njit(_nrt=False)
_row_sums = numba.njit(_nrt=False, fastmath=_SUMS)


@numba.njit(fastmath={"contract"})
def _center(x, k, m):
    """(x - k) - m, kept in this order: with "reassoc" LLVM makes it x - (k + m), which loses m's low bits."""
    return (x - k) - m


@intrinsic
def _stream(context, to, source):
    """Store the 64 bytes at address `source` at the 64-byte-aligned address `to`, around the cache."""

    def build(context, builder, signature, arguments):
        line = ir.VectorType(ir.FloatType(), 16).as_pointer()
        to, source = (builder.inttoptr(a, line) for a in arguments)
        store = builder.store(builder.load(source, align=4), to, align=64)
        store.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)]))
        return context.get_dummy_value()

    return types.void(types.intp, types.intp), build


@intrinsic
def _fence(context):
    """Order the streamed stores before whatever follows: they are not ordered by themselves."""

    def build(context, builder, signature, arguments):
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), build


@intrinsic
def _prefetch(context, address):
    """Ask for the cache line at `address`; a hint only, never a fault."""

    def build(context, builder, signature, arguments):
        i32 = ir.IntType(32)
        pointer = builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [ir.IntType(8).as_pointer(), i32, i32, i32])
        function = builder.module.declare_intrinsic("llvm.prefetch", [pointer.type], kind)
        builder.call(function, [pointer, i32(0), i32(3), i32(1)])
        return context.get_dummy_value()

    return types.void(types.intp), build


@_row
def _stream_lines(source, out, ahead):
    """Copy `source` to `out` (1-D, contiguous) up to the last whole cache line of `out`, around the cache.

    Returns how many entries that were. Prefetches as much from address `ahead`: memory then reads while it writes.
    """
    to, start, size = out.ctypes.data, source.ctypes.data, out.itemsize
    head = min((-to % 64) // size, source.shape[0])
    for j in range(head):
        out[j] = source[j]
    whole = head + (source.shape[0] - head) * size // 64 * 64 // size
    for at in range(head * size, whole * size, 64):
        _stream(to + at, start + at)
        _prefetch(ahead + at)
    return whole


@_row
def _careful(x, w, b, y, eps, centered):
    """One row in float64, scaled by its largest entry: any finite row without overflow or underflow.

    A NaN or an infinity spreads as it does in the readable body.
    """
    n, scale = x.shape[0], 0.0
    for j in range(n):
        scale = max(scale, abs(float(x[j])))
    if not 0.0 < scale < math.inf:
        scale = 1.0
    mean = 0.0
    if centered:
        for j in range(n):
            mean += x[j] / scale / n
    square = 0.0
    for j in range(n):
        square += (x[j] / scale - mean) ** 2 / n
    root = math.sqrt(square + eps / scale / scale)
    for j in range(n):
        d = x[j] / scale - mean
        y[j] = (d / root if root else math.nan) * w[j]
        if centered:
            y[j] += b[j]


@_row_sums
def _sums(x, k):
    """Mean of x - k and of (x - k)^2, float64 over partial sums in x's dtype."""
    s = q = 0.0
    for start in range(0, x.shape[0], _BLOCK):
        block = x[start : start + _BLOCK]
        a = b = x.dtype.type(0)
        for j in range(block.shape[0]):
            d = block[j] - k
            a += d
            b += d * d
        s += a
        q += b
    return s / x.shape[0], q / x.shape[0]


@_row
def _settle(x, k, m, q, centered):
    """Shift, mean and variance of a row from its sums about k = x[0]; about the mean if k lies 2 sigma off.

    k is a sample, so (k - mean)^2 <= (n - 1) variance: the shift bounds the cancellation in q - m^2 whatever
    the row's offset; the second pass bounds it by a constant.
    """
    if not centered:
        return k, m, q
    if m * m > 4 * (q - m * m):
        k += x.dtype.type(m)
        m, q = _sums(x, k)
    return k, m, q - m * m


@_row
def _scale(x, variance, eps):
    """1 / sqrt(variance + eps), or 0 where only the careful pass can be trusted."""
    v = variance + eps
    return x.dtype.type(1 / math.sqrt(v) if 1e-30 < v < math.inf else 0.0)


@_row_sums
def _write(x, w, b, y, k, m, r, centered):
    for j in range(x.shape[0]):
        if centered:
            y[j] = _center(x[j], k, m) * r * w[j] + b[j]
        else:
            y[j] = x[j] * r * w[j]


@_row
def _start(x, centered):
    return x[0] if centered else x.dtype.type(0)


@_row
def _cached_rows(x, w, b, y, eps, first, last, centered):
    for i in range(first, last):
        k = _start(x[i], centered)
        m, q = _sums(x[i], k)
        k, m, variance = _settle(x[i], k, m, q, centered)
        r = _scale(x, variance, eps)
        if r > 0:
            _write(x[i], w, b, y[i], k, x.dtype.type(m), r, centered)
        else:
            _careful(x[i], w, b, y[i], eps, centered)


@_row_sums
def _streamed_rows(x, w, b, y, eps, first, last, buffer, careful, centered):
    """One loop writes a row and sums the following one; another stores it while memory is read further ahead.

    The rows pass through `buffer` as one stream, so that only its two ends share a cache line with other rows.
    """
    n, out = x.shape[1], y[first:last].reshape(-1)
    k = _start(x[first], centered)
    m, q = _sums(x[first], k)
    stored = held = 0
    for i in range(first, last):
        row, following = x[i], x[min(i + 1, last - 1)]
        k, m, variance = _settle(row, k, m, q, centered)
        r, mean, shift = _scale(row, variance, eps), x.dtype.type(m), _start(following, centered)
        careful[i - first] = not r > 0
        m = q = 0.0
        for begin in range(0, n, _CHUNK):
            end = min(begin + _CHUNK, n)
            xs, ws, bs, nexts = row[begin:end], w[begin:end], b[begin:end], following[begin:end]
            ys = buffer[held : held + end - begin]
            s1 = s2 = x.dtype.type(0)
            for j in range(xs.shape[0]):
                d = nexts[j] - shift
                s1 += d
                s2 += d * d
                if centered:
                    ys[j] = _center(xs[j], k, mean) * r * ws[j] + bs[j]
                else:
                    ys[j] = xs[j] * r * ws[j]
            m += s1 / n
            q += s2 / n
            held += end - begin
            whole = _stream_lines(buffer[:held], out[stored:], nexts.ctypes.data + 12 * _CHUNK * x.itemsize)
            stored, held = stored + whole, held - whole
            for j in range(held):
                buffer[j] = buffer[whole + j]
        k = shift
    for j in range(held):
        out[stored + j] = buffer[j]
    _fence()
    for i in range(first, last):
        if careful[i - first]:
            _careful(x[i], w, b, y[i], eps, centered)


@numba.njit(cache=True, nogil=True)
def _serial(x, w, b, y, eps, centered):
    _cached_rows(x, w, b, y, eps, 0, x.shape[0], centered)


@numba.njit(cache=True, nogil=True, parallel=True)
def _parallel(x, w, b, y, eps, centered, rows, stream):
    for task in numba.prange(-(-x.shape[0] // rows)):
        first, last = task * rows, min(task * rows + rows, x.shape[0])
        if stream:
            buffer, careful = np.empty(_CHUNK + 16, x.dtype), np.empty(last - first, np.bool_)
            _streamed_rows(x, w, b, y, eps, first, last, buffer, careful, centered)
        else:
            _cached_rows(x, w, b, y, eps, first, last, centered)


def layer_norm(x, weight=None, bias=None, *, eps=1e-5, out=None):
    """norms.layer_norm for NumPy arrays of one dtype, float32 or float64; NotImplemented for anything else."""
    return _run(True, x, weight, bias, eps, out)


def rms_norm(x, weight=None, *, eps=1e-6, out=None):
    """norms.rms_norm for NumPy arrays of one dtype, float32 or float64; NotImplemented for anything else."""
    return _run(False, x, weight, None, eps, out)


def _run(centered, x, weight, bias, eps, out):
    if x.size == 0 or x.ndim == 0:
        return NotImplemented
    n, dtype = x.shape[-1], x.dtype
    for a in (weight, bias):
        if a is not None and (type(a) is not np.ndarray or a.dtype != dtype or a.shape != (n,)):
            return NotImplemented
    if type(eps) not in (float, int) or not 0 <= eps < math.inf:
        return NotImplemented
    if out is None:
        out = np.empty(x.shape, dtype)
    elif type(out) is not np.ndarray or out.dtype != dtype or out.shape != x.shape or not out.flags.c_contiguous:
        return NotImplemented
    rows, y = np.ascontiguousarray(x).reshape(-1, n), out.reshape(-1, n)
    in_place = np.may_share_memory(rows, y)
    if in_place and rows.ctypes.data != y.ctypes.data:
        rows, in_place = rows.copy(), False  # overlapping, but shifted: a row would be overwritten before it is read
    w = _constant(1, n, dtype) if weight is None else np.ascontiguousarray(weight)
    b = _constant(0, n, dtype) if bias is None else np.ascontiguousarray(bias)
    if x.size < PARALLEL:
        _serial(rows, w, b, y, float(eps), centered)
    else:
        with compute_lock:
            streamed = 2 * x.nbytes >= BEYOND_CACHE and not in_place  # the careful pass reads a row after it is stored
            _parallel(rows, w, b, y, float(eps), centered, max(1, _TASK // n), streamed)
    return out


@functools.lru_cache(16)
def _constant(value, n, dtype):
    return np.full(n, value, dtype)


@numba.njit(cache=True, nogil=True)
def _copy_cached(x, y):
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            y[i, j] = x[i, j]


@numba.njit(cache=True, nogil=True, parallel=True)
def _copy_streamed(x, y, rows):
    for task in numba.prange(-(-x.shape[0] // rows)):
        source, out = x[task * rows : task * rows + rows].reshape(-1), y[task * rows : task * rows + rows].reshape(-1)
        whole = _stream_lines(source, out, source.ctypes.data + 3 * x.shape[1] * x.itemsize)
        out[whole:] = source[whole:]


def copy_rows(x, y):
    """Copy the 2-D array x to y by the same paths and threads as the norms: the benchmark's floor."""
    if 2 * x.nbytes < BEYOND_CACHE:
        _copy_cached(x, y)
    else:
        with compute_lock:
            _copy_streamed(x, y, max(1, _TASK // x.shape[1]))
