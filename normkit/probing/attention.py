"""Attention entropy of any softmax attention, eager or fused, without ever holding the attention maps of all queries.

A fused kernel never writes its probabilities to memory, so they cannot be read off: the queries and keys are caught on
their way into `scaled_dot_product_attention`, and H = log-sum-exp(z) - E_p[z] is computed for a few queries at a time.
"""

import contextlib
import math
import re
from unittest import mock

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)
SOFTMAX = (F.softmax, torch.softmax, torch.Tensor.softmax, torch.special.softmax)


def logits_entropy(logits):
    """Entropy in nats of softmax(logits) over the last axis: (..., keys) -> (...). A logit of -inf is a masked key.

    With z' = z - max z the identity reads H = log s - t/s, s = sum e^z', t = sum e^z' z' (the entropy of Zhai
    et al., arXiv 2303.06296, section 3); centered at the maximum nothing cancels. A row with no key at all gives nan.
    """
    # Clamped, because 0 * -1e4 is 0 where 0 * -inf is nan.
    centered = (logits - logits.amax(-1, keepdim=True)).clamp_min(-1e4)
    weight = centered.exp()
    total = weight.sum(-1)
    return total.log() - (weight * centered).sum(-1) / total


def attention_entropy(query, key, *, mask=None, causal=False, scale=None, chunk=128):
    """Entropy of each query's attention: query (..., heads, T, d), key (..., key_heads, S, d) -> (..., heads, T), nats.

    mask: broadcastable to (..., heads, T, S); boolean (True: attend) or added to the logits. causal: query t sees keys
    0..t. scale: 1/sqrt(d) unless given. Grouped queries: heads is a multiple of key_heads. chunk: queries at a time;
    the largest temporary is (..., heads, chunk, S), in float32 or wider.
    """
    dtype = torch.promote_types(query.dtype, torch.float32)
    query, key = query.detach(), key.detach().to(dtype)
    if query.ndim > 3 and key.shape[-3] != query.shape[-3]:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], dim=-3)
    queries, keys = query.shape[-2], key.shape[-2]
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    out = []
    for rows in torch.arange(queries, device=query.device).split(chunk):
        logits = (query[..., rows, :].to(dtype) @ key.transpose(-1, -2)) * scale
        if causal:
            later = torch.arange(keys, device=query.device) > rows[:, None]
            logits = logits.masked_fill(later, -torch.inf)
        if mask is not None:
            part = mask[..., rows, :] if mask.shape[-2] == queries else mask
            logits = logits.masked_fill(~part, -torch.inf) if part.dtype == torch.bool else logits + part.to(dtype)
        out.append(logits_entropy(logits))
    return torch.cat(out, dim=-1)


class EntropyRecorder(TorchFunctionMode):
    """While active, hands the entropy of every attention to `sink(entropies)`, entropies (..., T) as it was called.

    Seen: `scaled_dot_product_attention` where `accepts(None)`, and a softmax over the last axis of three or more where
    `accepts(logits)` (a router of experts has a softmax, too). `torch.nn.MultiheadAttention` is included.
    """

    def __init__(self, sink, accepts, chunk=128):
        super().__init__()
        self.sink, self.accepts, self.chunk = sink, accepts, chunk

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            self._fused(*args, **kwargs)
        elif func in SOFTMAX:
            self._eager(*args, **kwargs)
        elif func is F.multi_head_attention_forward:
            # A mode is off inside what it handles, and this function calls both from Python: name them there for once.
            fused, softmax = F.scaled_dot_product_attention, F.softmax
            with (
                mock.patch.object(
                    F, "scaled_dot_product_attention", lambda *a, **k: (self._fused(*a, **k), fused(*a, **k))[1]
                ),
                mock.patch.object(F, "softmax", lambda *a, **k: (self._eager(*a, **k), softmax(*a, **k))[1]),
            ):
                return func(*args, **kwargs)
        return func(*args, **kwargs)

    @torch.no_grad()
    def _fused(self, query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
        if self.accepts(None):
            self.sink(attention_entropy(query, key, mask=attn_mask, causal=is_causal, scale=scale, chunk=self.chunk))

    @torch.no_grad()
    def _eager(self, input, dim=None, *rest, **kwargs):
        logits = input.detach()
        if logits.ndim < 3 or dim not in (-1, logits.ndim - 1) or not self.accepts(logits):
            return
        dtype = torch.promote_types(logits.dtype, torch.float32)
        self.sink(torch.cat([logits_entropy(z.to(dtype)) for z in logits.split(self.chunk, dim=-2)], dim=-1))


class HeadEntropies:
    """Collects the entropies of each block's attentions while a `StreamRecorder` says which block is running."""

    def __init__(self, recorder, modules, chunk):
        self.recorder, self.inside, self.chunk, self.heads, self.notes = recorder, 0, chunk, {}, []
        named = [(name, m) for block in modules for name, m in block.named_modules()]
        hit = [
            m for name, m in named if ATTENTION.search(type(m).__name__) or ATTENTION.search(name.rpartition(".")[2])
        ]
        self.attentions = list(dict.fromkeys(hit))

    @contextlib.contextmanager
    def hooked(self):
        handles = []
        try:
            for module in self.attentions:
                handles.append(module.register_forward_pre_hook(lambda *_: self._enter(1)))
                handles.append(module.register_forward_hook(lambda *_: self._enter(-1)))
            with EntropyRecorder(self._sink, self._accepts, self.chunk):
                yield self
        finally:
            for handle in handles:
                handle.remove()

    def result(self):
        """((runs, layers) mean over heads and queries or None, (layers) lists of heads); raises where one is nan."""
        layers = len(self.recorder.called)
        without = [layer for layer in range(layers) if layer not in self.heads]
        if without and (self.attentions or self.heads):
            self.notes.append(
                f"no softmax and no scaled_dot_product_attention was seen in blocks {without}, though the model has "
                "attention: entropy is None. If its kernel is out of sight, load it with attn_implementation='sdpa'"
            )
        heads = [torch.cat(self.heads[i], 1).cpu() if i in self.heads else None for i in range(layers)]
        for layer, values in enumerate(heads):
            if values is not None and not torch.isfinite(values).all():
                raise ValueError(
                    f"the attention entropy of block {layer} is not finite: a query may attend to no key at all"
                )
        per_head = [None if h is None else h.mean(0).tolist() for h in heads]
        return (
            None if without else torch.stack([h.mean(1) for h in heads], 1).numpy()
        ), per_head if self.heads else None

    def _enter(self, step):
        self.inside += step

    def _accepts(self, logits):
        if not self.recorder.recording or self.recorder.layer is None:
            return False
        if logits is None or self.attentions:
            return logits is None or self.inside > 0
        return logits.ndim == 4 or logits.shape[-1] == logits.shape[-2]

    def _sink(self, entropies):
        rows = self.recorder.rows(self.recorder.streams[-1])
        weights, runs, queries = self.recorder.weights(rows), rows.shape[0], entropies.shape[-1]
        if entropies[..., 0].numel() % runs:
            note = f"attention of shape {tuple(entropies.shape)} left out: it does not divide into {runs} runs"
            return self.notes.append(note)
        values = entropies.reshape(runs, -1, queries).to(weights.dtype)
        if queries != rows.shape[1]:
            if self.recorder.mask is not None and not self.recorder.mask.all():
                self.notes.append(
                    f"padding counts in the entropy: {queries} queries are not the {rows.shape[1]} tokens"
                )
            weights = torch.full((runs, queries), 1 / queries, dtype=weights.dtype, device=weights.device)
        weights = weights[:, None].to(values.device)
        means = torch.where(weights > 0, values * weights, 0).sum(-1)
        self.heads.setdefault(self.recorder.layer, []).append(means)
