"""numba kernels of the rates theme: projections onto a sphere and walks on it. Readable twins: projection.py, experiment.py."""

import math

import numpy as np

from normkit.arrays import compute_lock
from normkit.compiling import load_numba
from normkit.layers.kernels import BEYOND_CACHE, PARALLEL, _fence, _stream_lines

numba = load_numba()

_BLOCK = 1024  # entries; partial sums in the array's own dtype are folded into float64 this often
_CHUNK = 256  # entries scaled and stored in turn when streaming
_TASK = 1 << 16  # entries a task: fixed, so that rounding does not depend on the number of threads
WALK_PARALLEL = (
    1 << 21
)  # entries times steps (about 4 ms): below, a busy machine's second thread costs more than it gains
_SUMS = {"reassoc", "contract", "nsz", "arcp", "afn"}  # SIMD sums; NaN and infinity keep their meaning

# ---- projection -----------------------------------------------------------------------------------------------------


@numba.njit
def _trusted(power, n):
    """A sum of n squares, or NaN where float32 could have lost some of them."""
    return power if 1e-24 * n < power < 1e36 else math.nan


@numba.njit(_nrt=False, fastmath=_SUMS)
def _power(x):
    """Sum of squares, float64 over partial sums in x's dtype, NaN where it cannot be trusted."""
    total = 0.0
    for start in range(0, x.shape[0], _BLOCK):
        block = x[start : start + _BLOCK]
        part = x.dtype.type(0)
        for j in range(block.shape[0]):
            part += block[j] * block[j]
        total += part
    return _trusted(total, x.shape[0])


@numba.njit(_nrt=False, fastmath=_SUMS)
def _scaled(x, scale, y):
    for j in range(x.shape[0]):
        y[j] = x[j] * scale


@numba.njit(_nrt=False, fastmath=_SUMS)
def _scaled_past_cache(x, scale, y, buffer, held, stored, following):
    """Append x scale to what `buffer` holds, store its whole cache lines to y[stored:] around the cache.

    Returns the new held and stored, and the power of `following`, as long as x: memory reads it while it writes.
    """
    total = 0.0
    for start in range(0, x.shape[0], _CHUNK):
        now, ahead = x[start : start + _CHUNK], following[start : start + _CHUNK]
        out = buffer[held : held + now.shape[0]]
        part = x.dtype.type(0)
        for j in range(now.shape[0]):
            out[j] = now[j] * scale
            part += ahead[j] * ahead[j]
        total += part
        held += now.shape[0]
        whole = _stream_lines(buffer[:held], y[stored:], ahead.ctypes.data + 12 * _CHUNK * x.itemsize)
        stored, held = stored + whole, held - whole
        for j in range(held):
            buffer[j] = buffer[whole + j]
    return held, stored, _trusted(total, x.shape[0])


@numba.njit(_nrt=False)
def _some_rows(x, radius, y, buffer, stream):
    """Rows of one task; False, and the row copied as it is, where the readable body must look. radius: (rows,) or (1,)."""
    good, held, stored, flat, power = True, 0, 0, y.reshape(-1), _power(x[0])
    for i in range(x.shape[0]):
        scale = radius[i % radius.shape[0]] / math.sqrt(power)
        fits = 1e-30 < scale < 1e30
        good &= fits
        factor, following = x.dtype.type(scale if fits else 1.0), x[min(i + 1, x.shape[0] - 1)]
        if stream:
            held, stored, power = _scaled_past_cache(x[i], factor, flat, buffer, held, stored, following)
        else:
            _scaled(x[i], factor, y[i])
            power = _power(following)
    for j in range(held):
        flat[stored + j] = buffer[j]
    if stream:
        _fence()
    return good


@numba.njit(cache=True, nogil=True)
def _rows_serial(x, radius, y):
    return _some_rows(x, radius, y, x[0], False)


@numba.njit(cache=True, nogil=True, parallel=True)
def _rows_parallel(x, radius, y, rows, stream):
    tasks = -(-x.shape[0] // rows)
    good = np.ones(tasks, np.bool_)
    for task in numba.prange(tasks):
        first, last = task * rows, min(task * rows + rows, x.shape[0])
        buffer = np.empty(_CHUNK + 16 if stream else 1, x.dtype)
        radii = radius[first:last] if radius.shape[0] > 1 else radius
        good[task] = _some_rows(x[first:last], radii, y[first:last], buffer, stream)
    return good.all()


@numba.njit(cache=True, nogil=True)
def _whole_serial(x, radius, y):
    scale = radius / math.sqrt(_power(x))
    if not 1e-30 < scale < 1e30:
        return False
    _scaled(x, x.dtype.type(scale), y)
    return True


@numba.njit(cache=True, nogil=True, parallel=True)
def _whole_parallel(x, radius, y, stream):
    tasks = -(-x.shape[0] // _TASK)
    power = np.empty(tasks)
    for task in numba.prange(tasks):
        power[task] = _power(x[task * _TASK : task * _TASK + _TASK])
    total = 0.0
    for part in power:
        total += part
    scale = radius / math.sqrt(total)
    if not 1e-30 < scale < 1e30:
        return False
    factor = x.dtype.type(scale)
    for backward in numba.prange(tasks):  # what was read last is still in the cache
        task = tasks - 1 - backward
        part, out = x[task * _TASK : task * _TASK + _TASK], y[task * _TASK : task * _TASK + _TASK]
        if stream:
            buffer = np.empty(_CHUNK + 16, x.dtype)
            held, stored, _ = _scaled_past_cache(part, factor, out, buffer, 0, 0, part)
            for j in range(held):
                out[stored + j] = buffer[j]
            _fence()
        else:
            _scaled(part, factor, out)
    return True


def project_rows(w, radius, *, out=None):
    """projection.project_rows for NumPy arrays; NotImplemented for anything irregular, zero or non-finite."""
    if w.ndim == 0 or w.shape[-1] == 0 or w.size == 0:
        return NotImplemented
    if isinstance(radius, np.ndarray) and radius.shape == w.shape[:-1] and radius.dtype == w.dtype:
        radius = radius.reshape(-1).astype(np.float64)
    elif type(radius) in (float, int):
        radius = np.array([float(radius)])
    else:
        return NotImplemented
    return _run(w, radius, out, w.shape[-1])


def project(w, radius, *, out=None):
    """projection.project for NumPy arrays; NotImplemented for anything irregular, zero or non-finite."""
    if w.ndim == 0 or w.size == 0 or type(radius) not in (float, int):
        return NotImplemented
    return _run(w, float(radius), out, None)


def _run(w, radius, out, n):
    y = np.empty(w.shape, w.dtype) if out is None else out
    if type(y) is not np.ndarray or y.dtype != w.dtype or y.shape != w.shape or not y.flags.c_contiguous:
        return NotImplemented
    if np.any(np.logical_not((radius > 0) & (radius < math.inf))):
        return NotImplemented
    x = np.ascontiguousarray(w).reshape((-1,) if n is None else (-1, n))
    target = y.reshape(x.shape)
    shared = np.may_share_memory(x, target)
    if shared and x.ctypes.data != target.ctypes.data:
        x = x.copy()  # overlapping, but shifted: entries would be overwritten before they are read
    stream = 2 * w.nbytes >= BEYOND_CACHE
    if w.size < PARALLEL:
        good = (_whole_serial if n is None else _rows_serial)(x, radius, target)
    else:
        with compute_lock:
            if n is None:
                good = _whole_parallel(x, radius, target, stream)
            else:
                good = _rows_parallel(x, radius, target, max(1, _TASK // n), stream)
    return y if good else NotImplemented


# ---- walks: no fastmath, whose sums would round otherwise in a fresh compilation than in a cached one ----------------


@numba.njit(_nrt=False)
def _dot(x, y):
    total = 0.0
    for j in range(x.shape[0]):
        total += x[j] * y[j]
    return total


@numba.njit(_nrt=False)
def _walk_row(w, p, square, noise, first, lr, pull, shrink, model, norm, angle, cosine, path, d, g):
    adaptive, tangent, beta, fresh, beta2, eps, grad_norm, signal, radius = model
    n = w.shape[0]
    for t in range(noise.shape[0]):
        z = noise[t]
        ww = wz = 0.0
        for j in range(n):
            ww += w[j] * w[j]
            wz += w[j] * z[j]
        length = math.sqrt(ww)
        a = grad_norm / math.sqrt(n - 1.0) / length
        b = (signal * w[0] / length - a * wz) / ww
        for j in range(n):
            g[j] = a * z[j] + b * w[j]
        g[0] -= signal / length
        for j in range(n):
            p[j] = beta * p[j] + fresh * g[j] + pull * w[j]
        if adaptive:
            c, c2 = 1 / (1 - beta ** (first + t)), 1 / (1 - beta2 ** (first + t))
            for j in range(n):
                square[j] = beta2 * square[j] + (1 - beta2) * (g[j] * g[j])
                d[j] = p[j] * c / (math.sqrt(square[j] * c2) + eps)
        else:
            for j in range(n):
                d[j] = p[j]
        if tangent:
            k = _dot(w, d) / ww
            for j in range(n):
                d[j] -= k * w[j]
            if not adaptive:
                for j in range(n):
                    p[j] = d[j]
        power = along = 0.0
        for j in range(n):
            g[j] = shrink * w[j] - lr * d[j]
            power += g[j] * g[j]
            along += g[j] * w[j]
        scale = radius / math.sqrt(power) if radius > 0 else 1.0
        k, across = along / ww, 0.0
        for j in range(n):
            r = g[j] - k * w[j]
            across += r * r
            w[j] = g[j] * scale
        angle[t] = math.atan2(math.sqrt(across), along / length)
        norm[t] = math.sqrt(power) * scale
        cosine[t] = w[0] / norm[t]
        if path.shape[0] > 0:
            for j in range(n):
                path[t, j] = w[j]
        if not 1e-100 < norm[t] < 1e100:
            return


@numba.njit(error_model="numpy")
def _walk_weight(i, w, p, square, noise, first, lr, pull, shrink, model, norm, angle, cosine, path):
    d, g = np.empty(w.shape[1]), np.empty(w.shape[1])
    z, kept = noise[i % noise.shape[0]], path if i == 0 else path[:0]
    _walk_row(
        w[i], p[i], square[i], z, first, lr[i], pull[i], shrink[i], model, norm[i], angle[i], cosine[i], kept, d, g
    )


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _walk_serial(w, p, square, noise, first, lr, pull, shrink, model, norm, angle, cosine, path):
    for i in range(w.shape[0]):
        _walk_weight(i, w, p, square, noise, first, lr, pull, shrink, model, norm, angle, cosine, path)


@numba.njit(cache=True, nogil=True, parallel=True, error_model="numpy")
def _walk_parallel(w, p, square, noise, first, lr, pull, shrink, model, norm, angle, cosine, path):
    for i in numba.prange(w.shape[0]):
        _walk_weight(i, w, p, square, noise, first, lr, pull, shrink, model, norm, angle, cosine, path)


def walk(w, p, square, noise, first, lr, pull, shrink, model, out):
    """experiment.walk for float64 arrays."""
    arguments = (w, p, square, noise, first, lr, pull, shrink, tuple(model), *out)
    if w.size * noise.shape[1] < WALK_PARALLEL:
        _walk_serial(*arguments)
    else:
        with compute_lock:
            _walk_parallel(*arguments)
    return out
