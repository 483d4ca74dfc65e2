"""Multi-head attention in torch with each variant of `normkit.attention.variants`, open to inspection."""

import math
from typing import NamedTuple

import array_api_compat.torch as xp
import torch
from torch import nn
from torch.nn.utils import skip_init

from normkit.attention.l2 import nearness_logits, rescaled
from normkit.attention.variants import ATTENTIONS, normalized_logits, seeing, unit_gain
from normkit.checks import count, pick, positive

MOMENTUM = 0.9  # of Affine-Scaled attention's moving average (2602.23057, section 5.1)
EPS = 1e-6


class Heads(NamedTuple):
    """What the heads did with one input."""

    logits: torch.Tensor  # (batch, heads, tokens, tokens), -inf where masked
    weights: torch.Tensor  # the same shape: what the values are multiplied by
    entropy: torch.Tensor  # (batch, heads, tokens), nats, of softmax(logits), before a sink or a scale


class MultiHeadAttention(nn.Module):
    """Self-attention W_o concat_h (weights_h v_h) without biases, (batch, tokens, width) -> the same.

    variant: "plain" softmax(q k^T / sqrt(d)); "qk_norm" RMSNorm on each head's queries and keys; "qk_unit" unit length
    and one learned gain, which starts for sequences of `tokens`; "affine" Affine-Scaled attention (the average of alpha
    is a buffer, one a head, that training moves); "sink" one learned sink a head, starting at 0; "gate" an elementwise
    sigmoid gate before W_o; "l2" PPGT's simplified L2 attention.
    `normkit.probe` reads the entropy of the softmax, which for "sink" has the sink among its outcomes.
    Weights ~ N(0, 1/fan_in) from `generator` (None: torch's global one, as in any torch module).
    The submodule `weights` is an identity that only exists to be hooked: it sees what the values are multiplied by,
    (batch, heads, tokens, tokens). Input that is not finite is not an error here; it comes out as nan.
    Raises ValueError for an unknown variant, heads that do not divide width, and x or mask of another shape.
    """

    def __init__(self, width, heads, *, variant="plain", causal=False, tokens=32, generator=None):
        super().__init__()
        self.variant, self.causal = pick("variant", variant, ATTENTIONS), causal
        self.width, self.heads = count("width", width), count("heads", heads)
        if width % heads:
            raise ValueError(f"heads must divide width, got {heads} heads and width {width}")

        def matrix(fan_out):
            made = skip_init(nn.Linear, width, fan_out, bias=False)
            nn.init.normal_(made.weight, std=width**-0.5, generator=generator)
            return made

        self.query, self.key, self.value, self.out = (matrix(width) for _ in range(4))
        self.weights = nn.Identity()
        if variant == "qk_norm":
            self.query_gain, self.key_gain = (nn.Parameter(torch.ones(width // heads)) for _ in range(2))
        elif variant == "qk_unit":
            self.gain = nn.Parameter(torch.full((heads, 1, 1), unit_gain(tokens)))
        elif variant == "affine":
            self.scale = matrix(heads)
            self.register_buffer("average", torch.zeros(heads))
        elif variant == "sink":
            self.sink = nn.Parameter(torch.zeros(heads))
        elif variant == "gate":
            self.gate = matrix(width)

    def forward(self, x, mask=None):
        """mask: boolean, broadcasts to (batch, heads, tokens, tokens), True where the query sees the key."""
        mask = self._mask(self._check(x), mask)
        weights = self.weights(self._weigh(x, self._score(x, mask), mask, self.training))
        mixed = weights @ self._split(self.value(x))
        mixed = mixed.transpose(-3, -2).flatten(-2)
        return self.out(mixed * self.gate(x).sigmoid() if self.variant == "gate" else mixed)

    def logits(self, x, mask=None):
        """(batch, heads, tokens, tokens), -inf where masked; with gradient."""
        return self._score(self._check(x), self._mask(x, mask))

    @torch.no_grad()
    def inspect(self, x, mask=None) -> Heads:
        """Logits, weights and entropies for one input, without gradient; nothing in the layer moves."""
        mask = self._mask(self._check(x), mask)
        logits = self._score(x, mask)
        log_p = logits.log_softmax(-1)
        entropy = -(log_p.exp() * log_p.clamp_min(-1e4)).sum(-1)  # 0 * -inf would be nan
        return Heads(logits, self._weigh(x, logits, mask, False), entropy)

    def _score(self, x, mask):
        q, k = self._split(self.query(x)), self._split(self.key(x))
        if self.variant == "qk_norm":
            logits = normalized_logits(xp, q, k, self.query_gain * self.key_gain, "rms", EPS)
        elif self.variant == "qk_unit":
            logits = normalized_logits(xp, q, k, self.gain, "unit", EPS)
        elif self.variant == "l2":
            logits = nearness_logits(xp, q, k)
        else:
            logits = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        return logits if mask is None else logits.masked_fill(~mask, -torch.inf)

    def _weigh(self, x, logits, mask, training):
        if self.variant == "sink":
            sink = self.sink[:, None, None].expand(*logits.shape[:-1], 1)
            return torch.cat([logits, sink], -1).softmax(-1)[..., :-1]
        p = logits.softmax(-1)
        if self.variant != "affine":
            return p
        alpha = (0.1 * self.scale(x) + 0.5).clamp(0, 1).transpose(-1, -2)[..., None]  # (batch, heads, tokens, 1)
        if training:
            self.average.lerp_(alpha.detach().mean((0, 2, 3)).to(self.average.dtype), 1 - MOMENTUM)
        bias = (self.average.to(alpha.dtype, copy=True)[:, None, None] - alpha) / p.shape[-1]
        return alpha * p + (bias if mask is None else bias * mask)

    def _split(self, x):
        return x.unflatten(-1, (self.heads, -1)).transpose(-3, -2)

    def _check(self, x):
        if x.ndim != 3 or x.shape[-1] != self.width:
            raise ValueError(f"x must be (batch, tokens, {self.width}), got {tuple(x.shape)}")
        return x

    def _mask(self, x, mask):
        batch, tokens = x.shape[:2]
        if mask is None and not self.causal:
            return None
        past = torch.ones(tokens, tokens, dtype=torch.bool, device=x.device).tril() if self.causal else True
        return (
            past if mask is None else seeing(xp, mask & past, x.new_empty(()).expand(batch, self.heads, tokens, tokens))
        )

    def extra_repr(self):
        return f"width={self.width}, heads={self.heads}, variant={self.variant!r}, causal={self.causal}"


class AdaRMSNorm(nn.Module):
    """`l2.ada_rms_norm` over the last axis, (..., width) -> the same; alpha starts at 0 and beta at 1: RMSNorm."""

    def __init__(self, width, eps=EPS):
        super().__init__()
        self.eps = positive("eps", eps, zero=True)
        self.alpha = nn.Parameter(torch.zeros(count("width", width)))
        self.beta = nn.Parameter(torch.ones(width))

    def forward(self, x):
        if x.shape[-1:] != self.alpha.shape:
            raise ValueError(f"the last axis must have size {self.alpha.shape[0]}, got shape {tuple(x.shape)}")
        return rescaled(x, self.alpha, self.beta, self.eps)

    def extra_repr(self):
        return f"{self.alpha.shape[0]}, eps={self.eps}"
