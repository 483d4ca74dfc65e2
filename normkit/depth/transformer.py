"""Small residual networks in torch, with any placement of the norm: a transformer and a classifier of digits.

The transformer is the smallest one that still shows what the depth papers are about: blocks of attention and a GELU
MLP, no biases (but Fixup's scalars), weights ~ N(0, 1/fan_in), token and position embeddings of variance 1/2 each, so that the stream enters
with variance 1. With a standard deviation of 0.02 at this width each block would add a thousandth and depth would show
nothing. Every addition to the stream goes through `placement.residual_step`.
"""

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import skip_init

from normkit.checks import count, pick
from normkit.depth import placement as place
from normkit.rng import generator

NORMS = {"rmsnorm": lambda width: nn.RMSNorm(width, eps=1e-6), "layernorm": lambda width: nn.LayerNorm(width, eps=1e-5)}


class ScalarBias(nn.Module):
    """x + b with one learnable number b, 0 at the start: Fixup has it before each matrix and each activation."""

    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return x + self.bias


class Attention(nn.Module):
    """Multi-head attention W_o concat_h softmax(q k^T / sqrt(d/h)) v, (batch, tokens, width) -> the same, fused."""

    def __init__(self, width, heads, causal=True, bias=nn.Identity):
        super().__init__()
        self.before_in, self.before_out = bias(), bias()
        self.heads, self.causal = heads, causal
        self.query, self.key, self.value, self.out = (_matrix(width, width) for _ in range(4))
        self.scaled = ("value", "out")  # DeepNorm leaves queries and keys alone (2203.00555)

    def forward(self, x):
        x = self.before_in(x)
        q, k, v = (w(x).unflatten(-1, (self.heads, -1)).transpose(-3, -2) for w in (self.query, self.key, self.value))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out(self.before_out(mixed.transpose(-3, -2).flatten(-2)))


class MLP(nn.Module):
    """W_2 GELU(W_1 x), hidden width twice the width."""

    def __init__(self, width, bias=nn.Identity):
        super().__init__()
        self.before_up, self.before_gelu, self.before_down = bias(), bias(), bias()
        self.up, self.down = _matrix(width, 2 * width), _matrix(2 * width, width)
        self.scaled = ("up", "down")

    def forward(self, x):
        return self.down(self.before_down(F.gelu(self.before_gelu(self.up(self.before_up(x))))))


class Sublayer(nn.Module):
    """One addition to the stream: a branch with the norms and the scalar that its placement asks for.

    It is addition `layer` of `layers`, as its placement counts them.
    """

    def __init__(self, branch, placement, layer, layers, norm, width):
        super().__init__()
        self.placement, self.branch, self.place = placement, branch, (layer, layers)
        here = place.rule(placement, *self.place)
        normed = here.norm_input or here.norm_sum
        self.norm = NORMS[norm](width) if normed else nn.Identity()
        self.output_norm = NORMS[norm](width) if here.norm_output else None
        self.scale = nn.Parameter(torch.tensor(here.branch_scale)) if placement in ("skipinit", "fixup") else None

    def forward(self, x):
        return place.residual_step(
            x, self.branch, self.placement, *self.place, self.norm, output_norm=self.output_norm, scale=self.scale
        )


class Block(nn.Module):
    """Attention, then MLP, each added to the stream: (batch, tokens, width) -> the same.

    The papers count blocks for DeepNorm's constants, Mix-LN's share and LayerNorm Scaling's index, and additions (two a
    block) for 1/sqrt(L), 1/L, SkipInit and Fixup; so does this.
    """

    def __init__(self, width, heads, placement, block, blocks, norm, causal):
        super().__init__()
        bias = _bias(placement)
        branches = (Attention(width, heads, causal, bias), MLP(width, bias))
        additions = placement in ("scaled_sqrt_l", "scaled_l", "skipinit", "fixup")
        places = [(2 * block + i, 2 * blocks) if additions else (block, blocks) for i in range(2)]
        self.parts = nn.Sequential(
            *(Sublayer(b, placement, *at, norm, width) for b, at in zip(branches, places, strict=True))
        )

    def forward(self, x):
        return self.parts(x)


class Transformer(nn.Module):
    """Logits (batch, tokens, vocabulary) from token numbers (batch, tokens); `blocks` is the stack that probe finds.

    A norm follows the last block, but for post and deepnorm, whose stream is normalized already.
    Raises ValueError for an unknown placement or norm, heads that do not divide width, counts below 1, or inputs that
    are longer than `context`.
    """

    def __init__(
        self, placement, *, vocabulary=16, context=32, layers=12, width=32, heads=2, norm="rmsnorm", causal=True, seed=0
    ):
        super().__init__()
        placement = place.check(placement, layers)
        pick("norm", norm, NORMS)
        for name, value in (("vocabulary", vocabulary), ("context", context), ("width", width), ("heads", heads)):
            count(name, value)
        if width % heads:
            raise ValueError(f"heads must divide width, got {heads} heads and width {width}")
        self.placement, self.norm, self.context = placement, norm, context
        self.token, self.position = (skip_init(nn.Embedding, rows, width) for rows in (vocabulary, context))
        self.blocks = nn.ModuleList(Block(width, heads, placement, i, layers, norm, causal) for i in range(layers))
        self.final = nn.Identity() if placement in ("post", "deepnorm") else NORMS[norm](width)
        self.head = _matrix(width, vocabulary)
        self._initialize(seed)

    def embed(self, tokens):
        if tokens.shape[-1] > self.context:
            raise ValueError(f"inputs have {tokens.shape[-1]} tokens, the model's context is {self.context}")
        return self.token(tokens) + self.position.weight[: tokens.shape[-1]]

    def forward(self, tokens):
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(self.final(x))

    @torch.no_grad()
    def _initialize(self, seed):
        for name in ("token", "position"):  # by name: by size, two tables of one size would be the same table
            getattr(self, name).weight.normal_(0, 0.5**0.5, generator=generator(seed, "embedding", name))
        _draw(self.head, generator(seed, "head"))
        for i, block in enumerate(self.blocks):
            _draw_branches(block.parts, generator(seed, "block", i))


class DigitNet(nn.Module):
    """Logits (batch, 10) of 8x8 digits (batch, 64): one matrix in, `layers` residual MLPs of any placement, one out."""

    def __init__(self, placement, *, layers=12, width=32, norm="rmsnorm", seed=0):
        super().__init__()
        placement = place.check(placement, layers)
        pick("norm", norm, NORMS)
        count("width", width)
        self.placement, self.first, self.head = placement, _matrix(64, width), _matrix(width, 10)
        self.blocks = nn.ModuleList(
            Sublayer(MLP(width, _bias(placement)), placement, i, layers, norm, width) for i in range(layers)
        )
        self.final = nn.Identity() if placement in ("post", "deepnorm") else NORMS[norm](width)
        with torch.no_grad():
            _draw(self.first, generator(seed, "first"))
            _draw(self.head, generator(seed, "head"))
            for i, block in enumerate(self.blocks):
                _draw_branches([block], generator(seed, "block", i))

    def forward(self, images):
        x = self.first(images)
        for block in self.blocks:
            x = block(x)
        return self.head(self.final(x))


def _bias(placement):
    return ScalarBias if placement == "fixup" else nn.Identity


def _matrix(fan_in, fan_out):
    return skip_init(nn.Linear, fan_in, fan_out, bias=False)  # torch's own start would draw from its global stream


def _draw(matrix, draws, scale=1.0):
    matrix.weight.normal_(0, matrix.in_features**-0.5, generator=draws).mul_(scale)


def _draw_branches(parts, draws):
    """Fresh weights for a block's branches: its draws do not depend on how many other blocks there are."""
    for part in parts:
        scaled = part.branch.scaled
        scales = dict(zip(scaled, place.weight_scales(part.placement, part.place[1], len(scaled)), strict=True))
        for name, matrix in part.branch.named_children():
            if isinstance(matrix, nn.Linear):
                _draw(matrix, draws, scales.get(name, 1.0))
