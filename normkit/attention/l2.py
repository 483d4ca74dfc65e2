"""PPGT's two changes to a transformer (Ma et al. 2025, 2504.12588): attend to what is near, and keep lengths in a norm.

Readable bodies against the array API standard, with the conventions and errors of `variants`.
"""

import math

from normkit.arrays import finite, floating, namespace, shaped
from normkit.attention.variants import float32, floats, masked, pair, root_mean_square
from normkit.checks import pick, positive

__all__ = ["FORMS", "ada_rms_norm", "l2_logits", "pair_gate", "squared_distance_logits"]

FORMS = ("paper", "released")


def l2_logits(q, k, bias=None, mask=None, *, form="paper"):
    """Simplified L2 attention: logits (q . k - ||k||^2 / 2) / sqrt(d) [+ bias], (..., queries, keys).

    Softmax does not see what is constant in a row, so these stand for -||q - k||^2 / (2 sqrt(d)), the squared distance,
    at the price of a dot product. bias: of the pair, broadcasts to the logits. The paper's formula is the above (its
    bias is -k.k / (2 sqrt(d)) beside the scaled dot product; read in a review of version 3, and derived). form="released"
    is what the authors' code computes: it divides the bias by sqrt(d) but not q . k, so it is the distance only for
    queries that are sqrt(d) times smaller.
    """
    xp, q, k = pair(q, k)
    pick("form", form, FORMS)
    logits = nearness_logits(xp, q * math.sqrt(q.shape[-1]) if form == "released" else q, k)
    if bias is not None:
        namespace(q, bias)
        logits = logits + finite("bias", float32(bias))
    return masked(logits, mask)


def squared_distance_logits(q, k, mask=None):
    """-||q - k||^2 / (2 sqrt(d)), computed as it is written: it holds an array (..., queries, keys, d)."""
    xp, q, k = pair(q, k)
    difference = q[..., :, None, :] - k[..., None, :, :]
    return masked(-xp.sum(difference**2, axis=-1) / (2 * math.sqrt(q.shape[-1])), mask)


def pair_gate(p, gate):
    """p (1 + gate): PPGT's multiplicative gate on each pair, after the softmax; rows need no longer sum to 1.

    p, gate: (..., queries, keys). gate = 0 changes nothing.
    """
    xp, p, dtype = floats("p", p)
    gate = finite("gate", float32(shaped("gate", gate, p.shape, "p")))
    return xp.astype(p * (1 + gate), dtype, copy=False)


def ada_rms_norm(x, alpha=None, beta=None, *, eps=1e-6):
    """AdaRMSN: RMSNorm(x) * RMS(alpha * x + beta), row by row over the last axis; RMS(y)^2 = mean y^2 + eps.

    x: (..., n); alpha, beta: (n,), by default 0 and 1, which is RMSNorm (times sqrt(1 + eps)). alpha = 1 with beta = 0
    is the identity: the length that RMSNorm removes comes back. In between the output's length is learned from x's.
    (The eps in both roots is that of the released code.) The torch layer is `heads.AdaRMSNorm`.
    """
    namespace(floating("x", x), alpha, beta)
    positive("eps", eps, zero=True)
    wide = []
    for name, value in ("x", x), ("alpha", alpha), ("beta", beta):
        if value is not x:
            shaped(name, value, x.shape[-1:], f"the last axis of x with shape {tuple(x.shape)}")
        wide.append(None if value is None else finite(name, float32(value)))
    return namespace(x).astype(rescaled(*wide, eps), x.dtype, copy=False)


# ---- shared with the layers: bodies without checks ------------------------------------------------------------------


def nearness_logits(xp, q, k):
    """The body of `l2_logits`: (q . k - ||k||^2 / 2) / sqrt(d)."""
    length = xp.sum(k**2, axis=-1)[..., None, :]
    return (q @ xp.matrix_transpose(k) - length / 2) / math.sqrt(q.shape[-1])


def rescaled(x, alpha, beta, eps):
    """The body of `ada_rms_norm`."""
    xp = namespace(x)
    c = xp.zeros_like(x) if alpha is None else x * alpha
    return x / root_mean_square(x, eps) * root_mean_square(c + (1.0 if beta is None else beta), eps)
