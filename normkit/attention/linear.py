"""Linear attention and the two ways to normalize it, as readable functions for NumPy, torch, ...

Softmax attention without the softmax is phi(q) (phi(K)^T V): the T x T matrix is never needed, and the past fits into a
state of fixed size. What is left to choose is how the weights of a query are made to sum to 1.

Division (relu, elu, division, nala): w_j = phi(q).phi(k_j) / sum_i phi(q).phi(k_i). Never negative; but a feature map
that is homogeneous (relu) cancels the query's length, so that no query can be sharper than another one. NaLaFormer
(arXiv 2506.21137) puts the length back, as a power of the query's direction.
Subtraction (InLine attention): w_j = (1 + s phi(q).(phi(k_j) - mean_i phi(k_i))) / N, s = d^-1/2. Depends on the length,
and goes negative for it. LINA (arXiv 2601.22630) compares the two, and adds the KV gate.
"""

import math

from normkit.arrays import floating, namespace, shaped
from normkit.checks import pick

__all__ = ["FORMS", "KINDS", "features", "linear_attention", "norm_power", "weights"]

KINDS = ("relu", "elu", "division", "subtraction", "nala")
FORMS = ("linear", "quadratic")
OFFSET = 1e-6  # LINA's: every feature is a little above 0, so that no query is without a key


def linear_attention(q, k, v, *, kind="relu", causal=False, mask=None, gate=None, form="linear"):
    """Outputs (..., T, m) of queries q (..., T, d) over keys k (..., S, d) and values v (..., S, m).

    kind: one of KINDS. causal: token t sees keys 0..t (then S = T). mask: booleans (..., S), True where a key may be
    seen, or None. form "linear" carries the state phi(K)^T V, O(S d m): one product, or with `causal` the recurrence
    over tokens; "quadratic" builds `weights`, O(T S (d + m)). They agree to rounding.
    gate: None or LINA's KV gate (key_gate, value_gate), two arrays that broadcast to (..., S), such as (heads, S), or
    None: they multiply phi(k) and v, one number a token, whatever the data. 1 is no gate; division ignores a factor common to all
    key gates. A negative gate makes negative weights.

    A query that no key matches (all products 0, such as relu of a negative query, or nala at |q| = 0) sees all its keys
    alike; the released codes divide by 1e-6 there, and return 0. Division is computed for q and k scaled to largest
    entry 1, which cancels: any finite scale is safe, except that a key 1e38 times (float32) shorter than the longest of
    its sequence counts as 0. Half precision is computed in float32.
    Raises ValueError for shapes that do not fit, an unknown kind or form, and a query that may see no key; TypeError for
    what is not real floating or not of one library.
    """
    pick("form", form, FORMS)
    xp, q, k, v, seen, dtype = _prepared(q, k, v, kind, causal, mask)
    key_gate, value_gate = (None, None) if gate is None else gate
    v = _gated(xp, "value_gate", v, value_gate)
    if form == "quadratic":
        out = _weights(xp, q, k, kind, causal, seen, key_gate) @ v
    else:
        phi_q, phi_k = features(q, kind, "query"), _gated(xp, "key_gate", features(k, kind, "key"), key_gate)
        read = _recurrent if causal else _all_at_once
        out = read(xp, phi_q, phi_k * seen[..., None], v * seen[..., None], seen, kind, q.shape[-1])
    return xp.astype(out, dtype, copy=False)


def weights(q, k, kind="relu", *, causal=False, mask=None, key_gate=None):
    """The weights (..., T, S) that `linear_attention` never builds: rows sum to 1. Arguments and errors as there.

    kind "softmax" is softmax(q k^T / sqrt(d)), for comparison; it takes no gate (ValueError).
    """
    xp, q, k, _, seen, dtype = _prepared(q, k, k, kind, causal, mask, (*KINDS, "softmax"))
    return xp.astype(_weights(xp, q, k, kind, causal, seen, key_gate), dtype, copy=False)


def features(x, kind, side):
    """phi(x), never negative, of queries or keys x (..., tokens, d): (..., tokens, d), or 2 d features for nala.

    relu: max(x, 0), of x / scale; elu: elu(x) + 1; division: relu + 1e-6; subtraction: max(x, 0).
    nala, queries: (max(+-x, 0)/|x|)^p side by side, p = `norm_power`(|x|); keys: max(+-x^3, 0) of x / scale.
    scale: each query's largest |entry|, or that of all keys of a sequence, where the normalization cancels it.
    side is "query" or "key". Raises ValueError for other names.
    """
    xp = namespace(floating("x", x))
    pick("kind", kind, KINDS)
    pick("side", side, ("query", "key"))
    if kind == "elu":
        phi = xp.where(x > 0, x + 1, xp.exp(xp.where(x > 0, xp.zeros_like(x), x)))
        return phi / _largest(xp, phi, side)
    if kind == "subtraction":
        return _relu(xp, x)
    scale = _largest(xp, x, side)
    if kind == "relu":
        return _relu(xp, x / scale)
    if kind == "division":
        phi = _relu(xp, x) + OFFSET
        return phi / _largest(xp, phi, side)
    x = x / scale
    if side == "key":
        return xp.concat([_relu(xp, x) ** 3, _relu(xp, -x) ** 3], axis=-1)
    square = xp.sum(x * x, axis=-1, keepdims=True)
    norm = xp.sqrt(xp.where(square > 0, square, xp.ones_like(square)))  # |q| = 0 has no direction: its features are 0
    power = norm_power(scale * norm)
    return xp.concat([_relu(xp, x / norm) ** power, _relu(xp, -x / norm) ** power], axis=-1)


def norm_power(norm):
    """NaLaFormer's power 3 (1/2 + tanh |q|), between 1.5 and 4.5: all but at its end for |q| = 3."""
    xp = namespace(norm)
    return 3 * (0.5 + xp.tanh(norm))


def _relu(xp, x):
    return xp.where(x <= 0, xp.zeros_like(x), x)  # nan stays nan


def _largest(xp, x, side):
    """The largest |entry| of each query, or of all keys of a sequence; 1 where all are 0."""
    top = xp.max(xp.abs(x), axis=-1 if side == "query" else (-2, -1), keepdims=True)
    return xp.where(top == 0, xp.ones_like(top), top)


def _prepared(q, k, v, kind, causal, mask, kinds=KINDS):
    """Checked arrays in a dtype to compute in, the visible keys as numbers (S,) or (..., S), and the dtype to return."""
    pick("kind", kind, kinds)
    xp = namespace(q, k, v, mask)
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.ndim < 2 or x.shape[-2] == 0:
            raise ValueError(f"{name} must have shape (..., tokens, size), tokens at least 1, got {tuple(x.shape)}")
        floating(name, x)
    shaped("k", k, (*q.shape[:-2], k.shape[-2], q.shape[-1]), "q, up to the number of tokens")
    shaped("v", v, (*k.shape[:-1], v.shape[-1]), "k, up to the last axis")
    if causal and q.shape[-2] != k.shape[-2]:
        raise ValueError(f"causal attention needs one key a query, got {q.shape[-2]} queries and {k.shape[-2]} keys")
    dtype = q.dtype
    if not k.dtype == v.dtype == dtype:
        raise TypeError(f"q, k and v must have one dtype, got {q.dtype}, {k.dtype} and {v.dtype}; convert them first")
    if xp.finfo(dtype).bits < 32:
        q, k, v = (xp.astype(x, xp.float32) for x in (q, k, v))
    if mask is None:
        return xp, q, k, v, xp.ones_like(k[..., 0]), dtype
    if mask.dtype != xp.bool:
        raise TypeError(f"mask must be boolean, True where a key may be seen, got {mask.dtype}")
    mask = xp.broadcast_to(shaped("mask", mask, k.shape[:-1], "k without its last axis"), k.shape[:-1])
    if not bool(xp.all(mask[..., 0] if causal else xp.any(mask, axis=-1))):
        raise ValueError("the mask leaves some query without a key" + " (causal: the first sees one key)" * causal)
    hide = xp.zeros_like(k[..., :1])
    k, v = (xp.where(mask[..., None], x, hide) for x in (k, v))  # whatever a hidden token holds, even nan
    return xp, q, k, v, xp.astype(mask, k.dtype), dtype


def _gated(xp, name, x, gate):
    """x (..., S, n) times one number a token."""
    if gate is None:
        return x
    namespace(x, gate)
    fits = gate.ndim < x.ndim and all(a in (1, b) for a, b in zip(gate.shape[::-1], x.shape[-2::-1], strict=False))
    if not fits:
        raise ValueError(f"{name} must broadcast to {tuple(x.shape[:-1])}, one number a token, got {tuple(gate.shape)}")
    return xp.astype(gate, x.dtype, copy=False)[..., None] * x


def _weights(xp, q, k, kind, causal, seen, key_gate):
    """All weights at once: of the products phi(q).phi(k), those that are seen, divided by their sum or less their mean."""
    visible = seen[..., None, :] * xp.ones_like(q[..., :1])
    if causal:
        visible = xp.tril(visible)
    share = visible / xp.sum(visible, axis=-1, keepdims=True)
    if kind == "softmax":
        if key_gate is not None:
            raise ValueError("softmax attention has no key gate here; choose a linear kind")
        logits = q @ xp.matrix_transpose(k) / math.sqrt(q.shape[-1])
        logits = xp.where(visible > 0, logits, -math.inf * xp.ones_like(logits))
        e = xp.exp(logits - xp.max(logits, axis=-1, keepdims=True))
        return e / xp.sum(e, axis=-1, keepdims=True)
    phi_k = _gated(xp, "key_gate", features(k, kind, "key"), key_gate)
    products = features(q, kind, "query") @ xp.matrix_transpose(phi_k)
    if kind == "subtraction":
        mean = xp.sum(share * products, axis=-1, keepdims=True)
        return share * (1 + (products - mean) / math.sqrt(q.shape[-1]))
    products = visible * products
    total = xp.sum(products, axis=-1, keepdims=True)
    return xp.where(total != 0, products / xp.where(total != 0, total, xp.ones_like(total)), share)


def _read(xp, phi, kv, key, value, kind, width):
    """What queries with features phi (..., T, d) read from a state: means of phi(k) v^T (d, m), phi(k) and v."""
    total = xp.sum(phi * key, axis=-1, keepdims=True)
    if kind == "subtraction":
        s = 1 / math.sqrt(width)
        return s * (phi @ kv) + (1 - s * total) * value
    return xp.where(total != 0, phi @ kv / xp.where(total != 0, total, xp.ones_like(total)), value)


def _all_at_once(xp, phi_q, phi_k, v, seen, kind, width):
    """The state after all keys, read by every query."""
    count = xp.sum(seen, axis=-1)[..., None, None]
    key, value = (xp.sum(x / count, axis=-2, keepdims=True) for x in (phi_k, v))
    return _read(xp, phi_q, xp.matrix_transpose(phi_k) @ (v / count), key, value, kind, width)


def _recurrent(xp, phi_q, phi_k, v, seen, kind, width):
    """Token by token, as a recurrent net with a state of d m + d + m + 1 numbers: three running means and their count."""
    kv = key = value = count = 0.0
    outputs = []
    for t in range(v.shape[-2]):
        now = (..., slice(t, t + 1), slice(None))
        seen_now = seen[..., t, None, None]
        count = count + seen_now
        step = seen_now / count
        kv = kv + step * (xp.matrix_transpose(phi_k[now]) @ v[now] - kv)
        key, value = key + step * (phi_k[now] - key), value + step * (v[now] - value)
        outputs.append(_read(xp, phi_q[now], kv, key, value, kind, width))
    return xp.concat(outputs, axis=-2)
