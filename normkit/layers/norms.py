"""Layer normalization and root-mean-square normalization over the last axis, as the papers write them.

Readable bodies against the array API standard (NumPy, torch with autograd); NumPy float32 and float64 run the kernels.
Both take `out`, an array like x to write to: for large arrays the page faults of fresh memory cost more than the
arithmetic. Both raise TypeError for an array that is not of real floating dtype or not of one library, and ValueError
for an empty or missing last axis, for a weight, bias or out that does not fit x, and for an eps that is not a
non-negative number. NaN or infinity in a row stays visible in that row and touches no other.
"""

import math

from normkit.arrays import accelerated, floating, namespace, shaped


@accelerated("normkit.layers.kernels:layer_norm")
def layer_norm(x, weight=None, bias=None, *, eps=1e-5, out=None):
    """y = (x - E x) / sqrt(Var x + eps) * weight + bias, row by row (Ba, Kiros, Hinton 2016, arXiv 1607.06450, eq. 3).

    x: (..., n). weight, bias: (n,) or None. Var divides by n, not by n - 1. The row's first entry is subtracted first:
    it changes no result, and keeps float32 exact for rows far from zero. Half precision is computed in float32. A
    float32 row beyond 1e18 overflows its variance in this body (and gives 0, as in torch); the kernel gets it right.
    """
    xp, x, dtype, weight, bias = _prepared(x, weight, bias, eps, out)
    x = x - x[..., :1]
    centered = x - xp.mean(x, axis=-1, keepdims=True)
    variance = xp.mean(centered**2, axis=-1, keepdims=True)
    y = centered / xp.sqrt(variance + eps)
    return _finished(xp, y, weight, bias, dtype, out)


@accelerated("normkit.layers.kernels:rms_norm")
def rms_norm(x, weight=None, *, eps=1e-6, out=None):
    """y = x / sqrt(mean(x^2) + eps) * weight, row by row (Zhang, Sennrich 2019, arXiv 1910.07467, eq. 4).

    x: (..., n). weight: (n,) or None. eps stands inside the root, as in torch, and is a number (torch's default, the
    dtype's machine epsilon, would make the result depend on the dtype). Precision and overflow: see `layer_norm`.
    """
    xp, x, dtype, weight, _ = _prepared(x, weight, None, eps, out)
    y = x / xp.sqrt(xp.mean(x**2, axis=-1, keepdims=True) + eps)
    return _finished(xp, y, weight, None, dtype, out)


def _prepared(x, weight, bias, eps, out):
    xp = namespace(x, weight, bias, out)
    floating("x", x)
    weight = shaped("weight", weight, x.shape[-1:], f"the last axis of x with shape {tuple(x.shape)}")
    bias = shaped("bias", bias, x.shape[-1:], f"the last axis of x with shape {tuple(x.shape)}")
    shaped("out", out, x.shape)
    if isinstance(eps, bool) or not (0 <= eps < math.inf):
        raise ValueError(f"eps must be a finite number >= 0, got {eps!r}; the papers use about 1e-5")
    dtype = x.dtype
    if xp.finfo(dtype).bits < 32:
        x, weight, bias = (None if a is None else xp.astype(a, xp.float32) for a in (x, weight, bias))
    return xp, x, dtype, weight, bias


def _finished(xp, y, weight, bias, dtype, out):
    y = y if weight is None else y * weight
    y = y if bias is None else y + bias
    y = xp.astype(y, dtype, copy=False)
    if out is None:
        return y
    out[...] = y
    return out
