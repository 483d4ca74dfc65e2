"""numba kernels for `layer_norm` and `rms_norm` over the last axis. Readable twins: norms.py.

One file on purpose: numba's cache does not notice an edited callee in another file. What buys the speed, by size:
small inputs one serial call; larger ones threads over fixed blocks of rows (so the result does not depend on the
thread count); outputs that do not fit the last-level cache go around it (non-temporal stores through a row buffer).
"""

import functools
import math

import numpy as np

from normkit.arrays import compute_lock, load_numba

numba = load_numba()
from llvmlite import ir  # noqa: E402  (after numba is set up)
from numba.core import types  # noqa: E402
from numba.extending import intrinsic  # noqa: E402

PARALLEL = 1 << 18  # elements (about 0.1 ms of work): below, waking the second thread costs more than it gains
BEYOND_CACHE = 1 << 25  # bytes of x and out together from which on the output is streamed past the cache
_BLOCK = 1024  # elements; float32 partial sums are folded into float64 this often
_ROWS = 64  # blocks a task: fixed, so that rounding does not depend on the number of threads

# Enough for SIMD sums, but NaN and infinity keep their meaning ("nnan", "ninf" are absent).
_SUMS = {"reassoc", "contract", "nsz", "arcp", "afn"}


@numba.njit(fastmath={"contract"}, inline="never")
def _center(x, k, m):
    """(x - k) - m, kept in this order: with "reassoc" LLVM makes it x - (k + m), which loses m's low bits."""
    return (x - k) - m


@intrinsic
def _stream(context, to, source, count):
    """Store `count` 64-byte lines from address `source` at the 64-byte-aligned address `to`, bypassing the cache."""

    def build(context, builder, signature, arguments):
        to, source, count = arguments
        line = ir.VectorType(ir.FloatType(), 16)
        index = builder.alloca(ir.IntType(64))
        builder.store(ir.Constant(ir.IntType(64), 0), index)
        head, body, end = (builder.append_basic_block(n) for n in ("stream.head", "stream.body", "stream.end"))
        builder.branch(head)
        builder.position_at_end(head)
        i = builder.load(index)
        builder.cbranch(builder.icmp_signed("<", i, count), body, end)
        builder.position_at_end(body)
        offset = builder.mul(i, ir.Constant(ir.IntType(64), 64))
        value = builder.load(builder.inttoptr(builder.add(source, offset), line.as_pointer()))
        value.align = 4
        store = builder.store(value, builder.inttoptr(builder.add(to, offset), line.as_pointer()))
        store.align = 64
        store.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)]))
        builder.store(builder.add(i, ir.Constant(ir.IntType(64), 1)), index)
        builder.branch(head)
        builder.position_at_end(end)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp), build


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


@numba.njit
def _flush(block, out):
    """Copy `block` to `out` (1-D, contiguous, same length), whole cache lines around the cache."""
    to, size = out.ctypes.data, out.itemsize
    head = min((-to % 64) // size, block.shape[0])
    lines = (block.shape[0] - head) * size // 64
    for j in range(head):
        out[j] = block[j]
    _stream(to + head * size, block.ctypes.data + head * size, lines)
    for j in range(head + lines * 64 // size, block.shape[0]):
        out[j] = block[j]


@numba.njit
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


def _family(centered):
    """The kernels of layer_norm (centered) or rms_norm (not centered), specialized at compile time."""

    @numba.njit(fastmath=_SUMS)
    def sums(x, k):
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

    @numba.njit
    def settle(x, k, m, q):
        """Shift, mean and variance of a row from its sums about k = x[0]; about the mean if k lies 2 sigma off.

        k is a sample, so (k - mean)^2 <= (n - 1) variance: the shift bounds the cancellation in q - m^2 whatever
        the row's offset; the second pass bounds it by a constant.
        """
        if not centered:
            return k, m, q
        if m * m > 4 * (q - m * m):
            k += x.dtype.type(m)
            m, q = sums(x, k)
        return k, m, q - m * m

    @numba.njit
    def scale(x, variance, eps):
        """1 / sqrt(variance + eps), or 0 where only the careful pass can be trusted."""
        v = variance + eps
        return x.dtype.type(1 / math.sqrt(v) if 1e-30 < v < math.inf else 0.0)

    @numba.njit(fastmath=_SUMS)
    def write(x, w, b, y, k, m, r):
        for j in range(x.shape[0]):
            if centered:
                y[j] = _center(x[j], k, m) * r * w[j] + b[j]
            else:
                y[j] = x[j] * r * w[j]

    @numba.njit(fastmath=_SUMS)
    def write_and_sum(x, w, b, y, k, m, r, following, shift):
        """`write`, and in the same loop the following row's sums: memory is read while arithmetic runs."""
        s = q = x.dtype.type(0)
        for j in range(x.shape[0]):
            d = following[j] - shift
            s += d
            q += d * d
            if centered:
                y[j] = _center(x[j], k, m) * r * w[j] + b[j]
            else:
                y[j] = x[j] * r * w[j]
        return s, q

    @numba.njit
    def start(x):
        return x[0] if centered else x.dtype.type(0)

    @numba.njit
    def cached_rows(x, w, b, y, eps, first, last):
        for i in range(first, last):
            k = start(x[i])
            m, q = sums(x[i], k)
            k, m, variance = settle(x[i], k, m, q)
            r = scale(x, variance, eps)
            if r > 0:
                write(x[i], w, b, y[i], k, x.dtype.type(m), r)
            else:
                _careful(x[i], w, b, y[i], eps, centered)

    @numba.njit
    def streamed_rows(x, w, b, y, eps, first, last):
        n, size = x.shape[1], x.itemsize
        buffer = np.empty(_BLOCK, x.dtype)
        k = start(x[first])
        m, q = sums(x[first], k)
        for i in range(first, last):
            following = x[min(i + 1, last - 1)]
            k, m, variance = settle(x[i], k, m, q)
            r, mean, shift = scale(x, variance, eps), x.dtype.type(m), start(following)
            m = q = 0.0
            for j in range(0, n, _BLOCK):
                e = min(j + _BLOCK, n)
                out = y[i, j:e]
                s2, q2 = write_and_sum(x[i, j:e], w[j:e], b[j:e], buffer[: e - j], k, mean, r, following[j:e], shift)
                m += s2 / n
                q += q2 / n
                ahead = following.ctypes.data + (j + 2 * _BLOCK) * size
                for line in range(0, (e - j) * size, 64):
                    _prefetch(ahead + line)
                _flush(buffer[: e - j], out)
            if not r > 0:
                _careful(x[i], w, b, y[i], eps, centered)
            k = shift
        _fence()

    @numba.njit(cache=True, nogil=True)
    def serial(x, w, b, y, eps):
        cached_rows(x, w, b, y, eps, 0, x.shape[0])

    @numba.njit(cache=True, nogil=True, parallel=True)
    def parallel(x, w, b, y, eps, rows, stream):
        for task in numba.prange(-(-x.shape[0] // rows)):
            first, last = task * rows, min(task * rows + rows, x.shape[0])
            if stream:
                streamed_rows(x, w, b, y, eps, first, last)
            else:
                cached_rows(x, w, b, y, eps, first, last)

    return serial, parallel


_LAYER = _family(True)
_RMS = _family(False)


def layer_norm(x, weight=None, bias=None, *, eps=1e-5, out=None):
    """norms.layer_norm for NumPy arrays of one dtype, float32 or float64; NotImplemented for anything else."""
    return _run(_LAYER, x, weight, bias, eps, out)


def rms_norm(x, weight=None, *, eps=1e-6, out=None):
    """norms.rms_norm for NumPy arrays of one dtype, float32 or float64; NotImplemented for anything else."""
    return _run(_RMS, x, weight, None, eps, out)


def _run(family, x, weight, bias, eps, out):
    if x.size == 0 or x.ndim == 0:
        return NotImplemented
    n, dtype = x.shape[-1], x.dtype
    for a in (weight, bias):
        if a is not None and (type(a) is not np.ndarray or a.dtype != dtype or a.shape != (n,)):
            return NotImplemented
    if not (type(eps) is float and 0 <= eps < math.inf):
        return NotImplemented
    if out is None:
        out = np.empty(x.shape, dtype)
    elif type(out) is not np.ndarray or out.dtype != dtype or out.shape != x.shape or not out.flags.c_contiguous:
        return NotImplemented
    rows, y = np.ascontiguousarray(x).reshape(-1, n), out.reshape(-1, n)
    w = _constant(1, n, dtype) if weight is None else np.ascontiguousarray(weight)
    b = _constant(0, n, dtype) if bias is None else np.ascontiguousarray(bias)
    serial, parallel = family
    if x.size < PARALLEL:
        serial(rows, w, b, y, eps)
    else:
        with compute_lock:
            parallel(rows, w, b, y, eps, max(1, _ROWS * _BLOCK // n), 2 * x.nbytes >= BEYOND_CACHE)
    return out


@functools.lru_cache(16)
def _constant(value, n, dtype):
    return np.full(n, value, dtype)
