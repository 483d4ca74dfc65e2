"""Softmax by three algorithms that differ in how often they visit memory, and softmax with its entropy in one go.

Readable bodies against the array API standard (NumPy, torch with autograd). N is the number of bytes of the logits; a
pass reads or writes them once, and costs what memory costs where they do not fit the cache. -inf is a masked entry: its
probability is 0 and it gets no gradient. Half precision is computed in float32. All raise TypeError for an array that is
not of real floating dtype, and ValueError for NaN, +inf, and for a row that is masked everywhere: it has no softmax.
(Under torch.compile, which cannot raise for values, `softmax_entropy` and `entropy` give NaN for such a row instead.)
"""

import contextlib
import math
import sys

import numpy as np

from normkit.arrays import accelerated, floating, namespace

_BLOCK = 256  # columns that the readable streaming bodies visit at a time
_FAR = -1e4  # exp of it is 0 in float64 and float32; finite, because 0 * -inf would be NaN

# ---- three algorithms -----------------------------------------------------------------------------------------------


def softmax_three_pass(logits):
    """softmax over the last axis, (..., n): the maximum, the sum, the division. Traffic 4N: 3 readings, 1 writing.

    This is the recomputing variant of Dukhan & Ablavatski (2001.04438, algorithm 1); the reloading one writes the
    exponentials in the second pass and scales them in the third, 5N (algorithm 2): more traffic, fewer exponentials.
    """
    xp, x, dtype = _valid(logits)
    top = xp.max(x, axis=-1, keepdims=True)  # pass 1: read
    total = xp.sum(xp.exp(x - top), axis=-1, keepdims=True)  # pass 2: read
    return xp.astype(xp.exp(x - top) / total, dtype, copy=False)  # pass 3: read and write


def softmax_online(logits):
    """softmax over the last axis, (..., n), maximum and sum together. Traffic 3N: 2 readings, 1 writing.

    Milakov & Gimelshein (1805.02867, algorithm 3): when a new maximum comes, the sum so far is multiplied by
    exp(old - new). `online_merge` is associative: the order of the blocks, or a tree of them, does not matter.
    """
    xp, x, dtype = _valid(logits)
    top, total = xp.full_like(x[..., :1], -math.inf), xp.zeros_like(x[..., :1])
    for part in _columns(x):  # pass 1: read
        peak = xp.max(part, axis=-1, keepdims=True)
        inside = xp.exp(part - xp.where(peak == -math.inf, 0.0, peak))
        top, total = online_merge((top, total), (peak, xp.sum(inside, axis=-1, keepdims=True)))
    return xp.astype(xp.exp(x - top) / total, dtype, copy=False)  # pass 2: read and write


def online_merge(a, b):
    """(maximum, sum of exp(x - maximum)) of two sets of logits together, from theirs; (-inf, 0) is the empty set."""
    xp = namespace(a[0])
    top = xp.maximum(a[0], b[0])
    finite = xp.where(top == -math.inf, 0.0, top)  # two empty sets: -inf - -inf has no value
    return top, a[1] * xp.exp(a[0] - finite) + b[1] * xp.exp(b[0] - finite)


def softmax_two_pass(logits):
    """softmax over the last axis, (..., n), without a maximum. Traffic 3N: 2 readings, 1 writing.

    Dukhan & Ablavatski (2001.04438, algorithm 3): exp(x) is kept as a pair m 2^n, which neither overflows nor
    underflows, and the sum as a pair, too. The first pass adds the pairs up, the second computes each again and divides.
    Raises ValueError where all of a row's logits are so large (2^22 in float32, 2^51 in float64) that 1 is no longer
    resolved in n; the other algorithms only see differences.
    """
    xp, x, dtype = _valid(logits)
    mantissa, exponent = xp.zeros_like(x[..., :1]), xp.full_like(x[..., :1], -math.inf)
    for part in _columns(x):  # pass 1: read
        mantissa, exponent = pair_merge((mantissa, exponent), _pair_sum(xp, *exp_pair(part)))
    limit = 2.0 ** (22 if xp.finfo(x.dtype).bits == 32 else 51)
    if not bool(xp.all(xp.abs(exponent) <= limit)):
        raise ValueError(
            f"the exponents of {x.dtype} pairs must stay within +-{limit:g}, where a step of 1 is exact; subtract the "
            "row's maximum first, or take softmax_three_pass or softmax_online"
        )
    m, n = exp_pair(x)  # pass 2: read and write
    return xp.astype(m / mantissa * xp.exp2(n - exponent), dtype, copy=False)


def exp_pair(x):
    """(m, n) with exp(x) = m 2^n, n a whole number in x's dtype, m within [sqrt(1/2), sqrt 2]: no x overflows.

    n = rint(x log2 e); m = exp(x - n ln 2), with ln 2 in two parts of which the first times n is exact (Cody & Waite).
    exp(-inf) is the pair (0, -inf).
    """
    xp = namespace(x)
    high, low = _LN2_32 if xp.finfo(x.dtype).bits == 32 else _LN2_64
    with _quiet(xp):
        n = xp.round(x * math.log2(math.e))
    masked = n == -math.inf
    finite, whole = xp.where(masked, 0.0, x), xp.where(masked, 0.0, n)
    reduced = (finite - whole * high) - whole * low
    m = xp.exp(xp.clip(reduced, -1.0, 1.0))  # beyond 1 only where n has lost its last digits: see softmax_two_pass
    return xp.where(masked, 0.0, m), n


_LN2_32 = 0.693359375, math.log(2) - 0.693359375  # 355/512: nine digits, times n exact in float32 for |n| < 2^15
_LN2_64 = 0.693145751953125, 1.42860682030941723212e-6  # exact for |n| < 2^33; both parts together to 1e-22


def pair_merge(a, b):
    """The sum of two pairs as a pair, at the larger exponent: associative and commutative up to rounding."""
    xp = namespace(a[0])
    exponent = xp.maximum(a[1], b[1])
    finite = xp.where(exponent == -math.inf, 0.0, exponent)
    return a[0] * xp.exp2(a[1] - finite) + b[0] * xp.exp2(b[1] - finite), exponent


def _pair_sum(xp, m, n):
    exponent = xp.max(n, axis=-1, keepdims=True)
    finite = xp.where(exponent == -math.inf, 0.0, exponent)
    return xp.sum(m * xp.exp2(n - finite), axis=-1, keepdims=True), exponent


# ---- with the entropy -----------------------------------------------------------------------------------------------


@accelerated("normkit.attention.kernels:softmax_entropy")
def softmax_entropy(logits, axis=-1, *, out=None):
    """(p, H): softmax over `axis`, in the logits' dtype, and its entropy in nats, without that axis, float32 or wider.

    H = lse - E_p[logit] = log s - t/s with s = sum e^d, t = sum d e^d, d the distance from the maximum: one more
    sum beside softmax's own. (The textbook's -sum p log p needs a logarithm for every entry, and is NaN where p = 0.)
    out: an array like logits for p; NumPy only. Logits may be as large as their dtype allows.
    """
    xp, x, dtype = _prepared(logits, axis)
    with _quiet(xp):
        e, total, entropy = _sums(xp, x)
        p = xp.astype(xp.moveaxis(e / total, -1, axis), dtype, copy=False)
    _check(xp, x, entropy)
    if out is None:
        return p, entropy
    if xp is not np or not isinstance(out, np.ndarray) or out.shape != p.shape or out.dtype != dtype:
        raise ValueError(f"out must be a NumPy array of shape {tuple(p.shape)} and dtype {dtype}, as the logits")
    out[...] = p
    return out, entropy


@accelerated("normkit.attention.kernels:entropy")
def entropy(logits, axis=-1):
    """H: the entropy of softmax(logits) over `axis` in nats, without that axis, float32 or wider: see `softmax_entropy`.

    Between 0 and log n; dH / dlogit_i = -p_i (log p_i + H).
    """
    xp, x, _ = _prepared(logits, axis)
    with _quiet(xp):
        _, _, entropy = _sums(xp, x)
    _check(xp, x, entropy)
    return entropy


def _sums(xp, x):
    d = xp.clip(x - xp.max(x, axis=-1, keepdims=True), _FAR, None)  # masked entries: a constant, hence no gradient
    e = xp.exp(d)
    total = xp.sum(e, axis=-1, keepdims=True)
    return e, total, (xp.log(total) - xp.sum(e * d, axis=-1, keepdims=True) / total)[..., 0]


def _prepared(logits, axis):
    xp = namespace(logits)
    if not isinstance(logits, np.generic) and logits.ndim:
        if isinstance(axis, bool) or not hasattr(axis, "__index__") or not -logits.ndim <= axis < logits.ndim:
            raise ValueError(f"axis must be an integer within the {logits.ndim} axes of the logits, got {axis!r}")
        logits = xp.moveaxis(logits, axis, -1)
    floating("logits", logits)
    wide = xp.float32 if xp.finfo(logits.dtype).bits < 32 else logits.dtype
    return xp, xp.astype(logits, wide, copy=False), logits.dtype


def _valid(logits):
    """(namespace, logits in float32 or wider, their dtype), with the error for a row that has no softmax."""
    xp, x, dtype = _prepared(logits, -1)
    top = xp.max(x, axis=-1)
    if not bool(xp.all(xp.isfinite(top))):  # NaN is carried along by max
        _explain(xp, x, xp.isfinite(top))
    return xp, x, dtype


def _check(xp, x, entropy):
    """ValueError where a row's entropy is not finite, which is where it has no softmax."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.compiler.is_compiling():
        return
    good = xp.isfinite(entropy)
    if not bool(xp.all(good)):
        _explain(xp, x, good)


def _explain(xp, x, good):
    n = x.shape[-1]
    row = int(xp.argmin(xp.astype(xp.reshape(good, (-1,)), xp.int8)))
    values = xp.reshape(x, (-1, n))[row]
    where = f"row {tuple(int(i) for i in np.unravel_index(row, tuple(good.shape)))}" if good.ndim else "the row"
    if bool(xp.all(values == -math.inf)):
        raise ValueError(f"{where} of the logits is -inf everywhere: a softmax needs one entry that is not masked")
    kind = "NaN" if bool(xp.any(xp.isnan(values))) else "+inf"
    raise ValueError(f"{where} of the logits holds {kind}; only -inf, a masked entry, may stand beside finite logits")


def _quiet(xp):
    """NumPy's warnings about inf - inf and overflow off: rows with them are reported by an error, or are exact."""
    return np.errstate(invalid="ignore", over="ignore", under="ignore") if xp is np else contextlib.nullcontext()


def _columns(x):
    return (x[..., start : start + _BLOCK] for start in range(0, x.shape[-1], _BLOCK))
