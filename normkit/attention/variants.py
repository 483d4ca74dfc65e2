"""Softmax attention and what has been done to it: normalized queries and keys, affine weights, sinks, output gates.

Readable bodies against the array API standard (NumPy, torch with autograd); `normkit.attention.heads` has the torch
layers. Queries are (..., queries, d), keys (..., keys, d), logits and weights (..., queries, keys). A mask is boolean
and broadcasts to the logits; True means that the query sees the key. Half precision is computed in float32, and logits
stay float32. All raise TypeError for arrays that are not real floating or not of one library, and ValueError for shapes
that do not fit, for input that is not finite, and for a query that sees no key.
"""

import math

from normkit.arrays import finite, floating, namespace
from normkit.checks import count, pick, positive

__all__ = [
    "ATTENTIONS",
    "affine_scaled",
    "attention_logits",
    "gated",
    "linear_clip",
    "qk_norm",
    "root_mean_square",
    "sink_softmax",
    "unit_gain",
    "weight_entropy",
]

ATTENTIONS = ("plain", "qk_norm", "qk_unit", "affine", "sink", "gate", "l2")
NORMS = ("rms", "unit")
ENTROPIES = ("bucket", "renormalized", "absolute")


def __getattr__(name):
    if name == "MultiHeadAttention":  # the layer with these names; here, so that this module does not import torch
        from normkit.attention.heads import MultiHeadAttention

        return MultiHeadAttention
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")


def attention_logits(q, k, mask=None, *, scale=None):
    """q k^T * scale, (..., queries, keys); scale is 1/sqrt(d) unless given. Masked logits are -inf."""
    xp, q, k = pair(q, k)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    return masked(q @ xp.matrix_transpose(k) * scale, mask)


def qk_norm(q, k, gain=1.0, mask=None, *, kind="rms", eps=1e-6):
    """Logits of normalized queries and keys, (..., queries, keys): their lengths no longer count.

    "rms": (gain * RMSNorm(q)) . RMSNorm(k) / sqrt(d) for each head, as in ViT-22B (Dehghani et al. 2023, 2302.05442,
    eq. 2, whose layer norm neither centers nor shifts). gain (d,) is the product of the two norms' learned weights: a
    logit sees nothing else of them. With gain 1 no logit exceeds sqrt(d).
    "unit": gain * cos(q, k) with one learned number (Henry et al. 2020, 2010.04245, eq. 3), see `unit_gain`. "rms" is
    "unit" with gain sqrt(d), but for eps, which stands beside the mean square in "rms" and is not used in "unit".
    gain: a number or an array that broadcasts to q. Raises ValueError for a zero vector in "unit": it has no direction.
    """
    xp, q, k = pair(q, k)
    pick("kind", kind, NORMS)
    return masked(normalized_logits(xp, q, k, gain, kind, positive("eps", eps, zero=True)), mask)


def unit_gain(tokens):
    """Where the gain of unit-length queries and keys starts: log2(T^2 - T) for sequences of T >= 2 tokens (2010.04245)."""
    tokens = count("tokens", tokens, least=2, why="with one key there is nothing to choose from")
    return math.log2(tokens**2 - tokens)


def sink_softmax(logits, sink=0.0):
    """exp(z_i) / (exp(sink) + sum_j exp(z_j)) over the last axis: what is missing to 1 goes to a sink without a value.

    It is the softmax over one more logit, so the ratios of the weights do not change. sink = 0 is off-by-one softmax
    (Miller 2023), a learned number per head the sink of gpt-oss, -inf plain softmax. logits: (..., keys), -inf marks
    a masked key. sink: a number, or an array that broadcasts to (..., 1). A row without any key gives zeros, all its
    mass being in the sink; ValueError if the sink is -inf, too.
    """
    xp, z, dtype = _logits(logits)
    sink = _like(xp, sink, z)
    if bool(xp.any(xp.isnan(sink) | (sink == math.inf))):
        raise ValueError(f"sink must be a number below infinity, got {sink}; -inf means no sink")
    top = xp.maximum(xp.max(z, axis=-1, keepdims=True), sink)
    if bool(xp.any(top == -math.inf)):
        raise ValueError("a row of logits is -inf everywhere: its query sees no key; unmask one, or give a finite sink")
    e = xp.exp(z - top)
    return xp.astype(e / (xp.sum(e, axis=-1, keepdims=True) + xp.exp(sink - top)), dtype, copy=False)


def linear_clip(x):
    """clip(0.1 x + 0.5, 0, 1): from W_a x to the scale alpha of Affine-Scaled attention (2602.23057, eq. 11)."""
    xp = namespace(floating("x", x))
    return xp.clip(0.1 * finite("x", x) + 0.5, 0.0, 1.0)


def affine_scaled(p, alpha, average, mask=None, *, keys="all"):
    """Affine-Scaled attention's weights alpha p + (average - alpha) / N (Bae et al. 2026, 2602.23057, eq. 6 and 8).

    p: (..., queries, keys), rows of a softmax. alpha: (..., queries). average: the moving average of alpha, a number
    or an array that broadcasts to alpha. The bias goes to the keys that the query sees. N is the number of keys ("all",
    the paper's words) or of those that the query sees ("visible"). Where the two agree a row's sum is `average`,
    whatever the query; behind a causal mask with "all" query t's sum is alpha + t (average - alpha) / N. Weights are
    negative where p < (1 - average/alpha) / N.
    """
    xp, p, dtype = floats("p", p)
    pick("keys", keys, ("all", "visible"))
    alpha = finite("alpha", float32(alpha))
    if tuple(alpha.shape) != tuple(p.shape[:-1]):
        raise ValueError(
            f"alpha must have shape {tuple(p.shape[:-1])}, one a row of p {tuple(p.shape)}, got {tuple(alpha.shape)}"
        )
    bias = (finite("average", _like(xp, average, alpha)) - alpha)[..., None]
    if mask is None:
        return xp.astype(alpha[..., None] * p + bias / p.shape[-1], dtype, copy=False)
    seen = xp.astype(seeing(xp, mask, p), p.dtype)
    total = xp.sum(seen, axis=-1, keepdims=True) if keys == "visible" else p.shape[-1]
    return xp.astype(alpha[..., None] * p + seen * bias / total, dtype, copy=False)


def gated(output, z):
    """output * sigmoid(z), elementwise: the gate on attention's output (Qiu et al. 2025, 2505.06708). z: as output."""
    xp, output, dtype = floats("output", output)
    z = finite("z", float32(z))
    if tuple(z.shape) != tuple(output.shape):
        raise ValueError(f"z must have the output's shape {tuple(output.shape)}, got {tuple(z.shape)}")
    return xp.astype(output * (1 + xp.tanh(z / 2)) / 2, dtype, copy=False)  # tanh does not overflow


def weight_entropy(weights, *, how):
    """Entropy in nats of attention weights over the last axis, (..., keys) -> (...), when they do not sum to 1.

    how: "bucket" counts what is missing to 1 as one more outcome (a sink); "renormalized" divides by the sum;
    "absolute" takes |w| / sum |w|, for signed weights, which have no entropy. There is no default, because the three
    differ. Raises ValueError for negative weights in the first two, a sum above 1 in the first, a zero row in the rest.
    """
    pick("entropy", how, ENTROPIES)
    xp, w, dtype = floats("weights", weights)
    w = xp.abs(w) if how == "absolute" else w
    if bool(xp.any(w < 0)):
        raise ValueError(
            f"weights must not be negative for how={how!r}, the smallest is {float(xp.min(w)):g}; use 'absolute'"
        )
    total = xp.sum(w, axis=-1, keepdims=True)
    if how == "bucket":
        if bool(xp.any(total > 1 + 1e-3)):
            raise ValueError(f"weights must not sum to more than 1 for how='bucket', got {float(xp.max(total)):g}")
        missing = xp.clip(1 - total, 0.0, 1.0)
        w = xp.concat([w, missing], axis=-1)
    elif bool(xp.any(total == 0)):
        raise ValueError(f"a row of weights is all zero: it has no distribution for how={how!r}; use 'bucket'")
    else:
        w = w / total
    # log 1 = 0 where w is 0: x log x -> 0, and its gradient stays finite.
    return xp.astype(-xp.sum(w * xp.log(xp.where(w > 0, w, xp.ones_like(w))), axis=-1), dtype, copy=False)


def root_mean_square(x, eps=0.0):
    """sqrt(mean x^2 + eps) over the last axis, (..., n) -> (..., 1), without overflow. eps: a number >= 0."""
    xp = namespace(x)
    top = xp.clip(xp.max(xp.abs(x), axis=-1, keepdims=True), 1.0, None)
    return top * xp.sqrt(xp.mean((x / top) ** 2, axis=-1, keepdims=True) + (math.sqrt(eps) / top) ** 2)


# ---- shared with the layers and with l2.py: bodies without checks ----------------------------------------------------


def normalized_logits(xp, q, k, gain, kind, eps):
    """The body of `qk_norm`, without mask and checks of values."""
    if kind == "rms":
        return (
            (q / root_mean_square(q, eps) * gain)
            @ xp.matrix_transpose(k / root_mean_square(k, eps))
            / math.sqrt(q.shape[-1])
        )
    return (unit(xp, "q", q) * gain) @ xp.matrix_transpose(unit(xp, "k", k))


def unit(xp, name, x):
    """x / ||x|| over the last axis; ValueError for a zero vector."""
    top = xp.max(xp.abs(x), axis=-1, keepdims=True)
    if bool(xp.any(top == 0)):
        raise ValueError(
            f"{name} has a zero vector: it has no direction to normalize; use kind='rms', which has an eps"
        )
    x = x / top
    return x / xp.sqrt(xp.sum(x**2, axis=-1, keepdims=True))


def masked(logits, mask):
    """The logits, -inf where the boolean mask is False."""
    if mask is None:
        return logits
    xp = namespace(logits)
    return xp.where(seeing(xp, mask, logits), logits, xp.full_like(logits, -math.inf))


def seeing(xp, mask, logits):
    """The mask in the logits' shape; errors for another dtype or shape and for a query that sees no key."""
    if mask.dtype != xp.bool:
        raise TypeError(f"mask must be boolean (True: the query sees the key), got {mask.dtype}")
    try:
        mask = xp.broadcast_to(mask, logits.shape)
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"mask {tuple(mask.shape)} must broadcast to the logits {tuple(logits.shape)}") from error
    if not bool(xp.all(xp.any(mask, axis=-1))):
        raise ValueError("the mask hides every key from a query (a row of False): nothing is left to attend to")
    return mask


def pair(q, k):
    """The namespace, and queries and keys that fit, finite and in float32 or wider."""
    xp = namespace(floating("q", q), floating("k", k))
    if q.ndim < 2 or k.ndim < 2 or q.shape[-1] != k.shape[-1] or k.shape[-2] == 0:
        raise ValueError(
            f"q and k must be (..., queries, d) and (..., keys, d) with one d, got {tuple(q.shape)} and {tuple(k.shape)}"
        )
    return xp, finite("q", float32(q)), finite("k", float32(k))


def floats(name, x):
    """The namespace, x in float32 or wider and finite, and the dtype that it came in."""
    xp = namespace(floating(name, x))
    return xp, finite(name, float32(x)), x.dtype


def _logits(logits):
    xp = namespace(floating("logits", logits))
    z = float32(logits)
    finite("logits", xp.where(z == -math.inf, xp.zeros_like(z), z))
    return xp, z, logits.dtype


def float32(x):
    """x, in float32 if it is half precision."""
    xp = namespace(x)
    return xp.astype(x, xp.float32) if xp.finfo(x.dtype).bits < 32 else x


def _like(xp, value, x):
    """A number as an array of x's dtype and device; an array of the same library as it is (autograd goes on)."""
    if isinstance(value, int | float):
        return xp.full((1,) * x.ndim, float(value), dtype=x.dtype, device=x.device)
    namespace(value, x)
    return float32(value)
