"""Linear attention as a torch module: projections, heads and LINA's KV gate around `linear_attention`."""

try:
    import torch
except ImportError as error:
    raise ImportError("normkit.attention.LinearAttention needs torch; pip install 'normkit[torch]'") from error
from torch import nn

from normkit.attention.linear import KINDS, linear_attention
from normkit.checks import count, pick

__all__ = ["LinearAttention"]


class LinearAttention(nn.Module):
    """Multi-head linear self-attention, (batch, tokens, width) -> the same.

    kind: see `linear_attention`. gate_tokens: the number of tokens of every input, for a KV gate (LINA): one learnable
    number a head and token for the keys and one for the values, 1 at the start; None is no gate. Causal attention
    is computed in its quadratic form, which for short inputs is faster here than a loop over tokens.
    Raises ValueError for a width that heads do not divide, an unknown kind, an input of another shape.
    """

    def __init__(self, width, heads, kind="relu", *, causal=False, gate_tokens=None, bias=True):
        super().__init__()
        self.width, self.heads = count("width", width), count("heads", heads)
        self.kind, self.causal, self.gate_tokens = pick("kind", kind, KINDS), causal, gate_tokens
        if width % heads:
            raise ValueError(f"heads must divide width, got {heads} heads for width {width}")
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=bias), nn.Linear(width, width, bias=bias)
        if gate_tokens is not None:
            self.key_gate = nn.Parameter(torch.ones(heads, count("gate_tokens", gate_tokens)))
            self.value_gate = nn.Parameter(torch.ones(heads, gate_tokens))

    def project(self, x):
        """q, k, v, each (batch, heads, tokens, width / heads)."""
        if x.ndim != 3 or x.shape[-1] != self.width or self.gate_tokens not in (None, x.shape[1]):
            raise ValueError(
                f"x must have shape (batch, {self.gate_tokens or 'tokens'}, {self.width}), got {tuple(x.shape)}"
            )
        return self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)

    def attend(self, q, k, v, mask=None):
        gate = None if self.gate_tokens is None else (self.key_gate, self.value_gate)
        seen = None if mask is None else mask[:, None].expand(k.shape[:-1])
        form = "quadratic" if self.causal else "linear"
        return linear_attention(q, k, v, kind=self.kind, causal=self.causal, mask=seen, gate=gate, form=form)

    def merge(self, y):
        return self.out(y.transpose(1, 2).flatten(-2))

    def forward(self, x, mask=None):
        """mask: booleans (batch, tokens), True where a token may be seen."""
        return self.merge(self.attend(*self.project(x), mask))

    def extra_repr(self):
        return f"{self.width}, heads={self.heads}, kind={self.kind!r}, causal={self.causal}, gate_tokens={self.gate_tokens}"
