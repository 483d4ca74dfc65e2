"""Attention with the entropy of every query from the same pass over the keys; no (queries x keys) array is kept.

Online softmax over blocks of keys (1805.02867; with values, 2112.05682 and 2205.14135) with one more sum, of d e^d, d the
distance of a logit from the maximum so far. The gradient, entropy's included, computes the blocks again.
"""

import math

import torch
from torch.autograd.function import once_differentiable

_FAR = -1e4  # exp of it is 0; finite, because 0 * -inf would be NaN


def attention(q, k, v, *, mask=None, causal=False, scale=None, chunk=128):
    """(out, H): softmax(scale q k^T + mask) v, and the entropy in nats of each query's weights.

    q (..., T, d), k (..., S, d), v (..., S, e), of one dtype, device and leading shape; out (..., T, e) in their dtype,
    H (..., T) in float32 or wider, as all sums. mask: broadcastable to (..., T, S), boolean (True: attend) or added to
    the logits; a floating mask gets a gradient. causal: query t sees keys 0..t, together with the mask. scale:
    1/sqrt(d) unless given. chunk: keys at a time; the largest temporary is (..., T, chunk). Differentiable once.
    As torch.nn.functional.scaled_dot_product_attention, except that a query which may attend to no key is a ValueError
    (there: NaN or zeros), as are NaN and infinity in the logits. Raises TypeError for dtypes that do not fit.
    """
    scale = _checked(q, k, v, mask, scale, chunk)
    return _Attention.apply(q, k, v, mask, causal, scale, chunk)


class _Attention(torch.autograd.Function):
    """The state of a query: m, the largest logit so far; s = sum e^d; t = sum d e^d; o = sum e^d v, d = logit - m."""

    @staticmethod
    def forward(ctx, q, k, v, mask, causal, scale, chunk):
        wide = torch.promote_types(q.dtype, torch.float32)
        state = [q.new_full(q.shape[:-1], x, dtype=wide) for x in (-torch.inf, 0.0, 0.0)]
        m, s, t = state
        o = q.new_zeros((*q.shape[:-1], v.shape[-1]), dtype=wide)
        for keys, rows, z in _blocks(q, k, mask, causal, scale, chunk):
            old_m, old_s, old_t = (x[..., rows] for x in (m, s, t))
            new_m = torch.maximum(old_m, z.amax(-1))
            base = new_m.masked_fill(new_m == -torch.inf, 0.0)  # no key seen yet
            d = z.sub_(base[..., None]).clamp_(min=_FAR)
            shift = (old_m - base).clamp(min=_FAR)
            e, factor = d.exp(), shift.exp()
            t[..., rows] = factor * (old_t + old_s * shift) + (e * d).sum(-1)
            s[..., rows] = factor * old_s + e.sum(-1)
            o[..., rows, :] = factor[..., None] * o[..., rows, :] + e @ v[..., keys, :].to(wide)
            m[..., rows] = new_m
        entropy = s.log() - t / s
        _refuse(entropy, m)
        out = o.div_(s[..., None]).to(q.dtype)
        ctx.options = causal, scale, chunk
        ctx.save_for_backward(q, k, v, mask, m, s, t / s, out)
        return out, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out, grad_entropy):
        """dz = p (g v^T - g out) - p (log p + H) dH, g the gradient of out, with log p + H = logit - its mean."""
        q, k, v, mask, m, s, mean, out = ctx.saved_tensors
        causal, scale, chunk = ctx.options
        wide = m.dtype
        grad_out, grad_entropy = grad_out.to(wide), grad_entropy.to(wide)
        inner = (grad_out * out.to(wide)).sum(-1)
        dq, dk, dv = (torch.zeros_like(x, dtype=wide) for x in (q, k, v))
        dmask = torch.zeros_like(mask, dtype=wide) if ctx.needs_input_grad[3] else None
        for keys, rows, z in _blocks(q, k, mask, causal, scale, chunk):
            d = z.sub_(m[..., rows, None]).clamp_(min=_FAR)
            p = d.exp() / s[..., rows, None]
            g = grad_out[..., rows, :]
            dv[..., keys, :] += p.transpose(-1, -2) @ g
            dz = g @ v[..., keys, :].to(wide).transpose(-1, -2) - inner[..., rows, None]
            dz = p * (dz - (d - mean[..., rows, None]) * grad_entropy[..., rows, None])
            dq[..., rows, :] += scale * dz @ k[..., keys, :].to(wide)
            dk[..., keys, :] += scale * dz.transpose(-1, -2) @ q[..., rows, :].to(wide)
            if dmask is not None:
                part = _part(dmask, rows, keys, q.shape[-2], k.shape[-2])
                part += dz.sum_to_size(part.shape)
        grads = (x.to(like.dtype) for x, like in ((dq, q), (dk, k), (dv, v)))
        return *grads, None if dmask is None else dmask.to(mask.dtype), None, None, None


def _blocks(q, k, mask, causal, scale, chunk):
    """(keys, queries, their logits), block by block; a causal block leaves out the queries before its first key."""
    wide = torch.promote_types(q.dtype, torch.float32)
    queries, count = q.shape[-2], k.shape[-2]
    for start in range(0, min(count, queries) if causal else count, chunk):
        keys, rows = slice(start, min(start + chunk, count)), slice(start if causal else 0, queries)
        z = (q[..., rows, :].to(wide) * scale) @ k[..., keys, :].to(wide).transpose(-1, -2)
        if causal:
            position = torch.arange(queries, device=q.device)[rows, None]
            z.masked_fill_(torch.arange(count, device=q.device)[keys] > position, -torch.inf)
        if mask is not None:
            part = _part(mask, rows, keys, queries, count)
            z = z.masked_fill_(~part, -torch.inf) if part.dtype == torch.bool else z.add_(part.to(wide))
        yield keys, rows, z


def _part(mask, rows, keys, queries, count):
    """The block of a mask that may have 1 or no entry along either axis."""
    if mask.ndim > 1 and mask.shape[-2] == queries:
        mask = mask[..., rows, :]
    return mask[..., keys] if mask.ndim and mask.shape[-1] == count else mask


def _checked(q, k, v, mask, scale, chunk):
    if not all(isinstance(x, torch.Tensor) for x in (q, k, v, *(() if mask is None else (mask,)))):
        raise TypeError("q, k, v and mask must be torch tensors; convert them with torch.as_tensor")
    if not all(x.is_floating_point() and x.dtype == q.dtype for x in (q, k, v)):
        raise TypeError(f"q, k and v must be of one floating dtype, got {q.dtype}, {k.dtype}, {v.dtype}")
    shapes = tuple(tuple(x.shape) for x in (q, k, v))
    fits = all(x.ndim >= 2 and x.shape[:-2] == q.shape[:-2] for x in (q, k, v))
    if not fits or k.shape[-1] != q.shape[-1] or v.shape[-2] != k.shape[-2] or 0 in (*q.shape[-2:], k.shape[-2]):
        raise ValueError(f"wanted q (..., T, d), k (..., S, d), v (..., S, e) with T, d, S >= 1, got shapes {shapes}")
    if isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1:
        raise ValueError(f"chunk must be an integer >= 1, got {chunk!r}")
    if mask is not None:
        target = (*q.shape[:-1], k.shape[-2])
        if mask.dtype != torch.bool and not mask.is_floating_point():
            raise TypeError(f"mask must be boolean (True: attend) or floating (added), got {mask.dtype}")
        pairs = zip(reversed(mask.shape), reversed(target), strict=False)
        if mask.ndim > len(target) or any(a not in (1, b) for a, b in pairs):
            raise ValueError(f"mask must be broadcastable to {target}, got shape {tuple(mask.shape)}")
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else float(scale)
    if not math.isfinite(scale):
        raise ValueError(f"scale must be finite, got {scale}")
    return scale


def _refuse(entropy, m):
    """ValueError where a query has no softmax: its state is then not finite."""
    good = torch.isfinite(entropy)
    if bool(good.all()):
        return
    row = tuple((~good).nonzero()[0].tolist())
    if m[row] == -torch.inf:
        raise ValueError(f"query {row} may attend to no key: allow it one in the mask, or leave it out")
    raise ValueError(f"query {row} has a logit that is NaN or infinite; look at q, k, scale and the mask")
