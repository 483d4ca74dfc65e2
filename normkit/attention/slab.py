"""SLAB (Guo et al. 2024, arXiv 2405.11582): a transformer whose norms cost nothing at inference.

LayerNorm has to look at each token before it can scale it. BatchNorm's scale is fixed after training, and so a part of
the next matrix; but a transformer trains badly with it. PRepBN starts as LayerNorm and ends as a BatchNorm with a skip:
    gamma LN(x) + (1 - gamma) RepBN(x),  RepBN(x) = BN(x) + eta x,  gamma = 1 - step/steps, then 0.
The attention is relu's linear attention, with a depthwise convolution of the values for what is near.
"""

import math
from dataclasses import dataclass

try:
    import torch
except ImportError as error:
    raise ImportError("normkit.attention.slab needs torch; pip install 'normkit[torch]'") from error
from torch import nn
from torch.nn import functional as F

from normkit.attention.linear_modules import LinearAttention
from normkit.checks import count, pick, positive
from normkit.files import standardized_digits
from normkit.rng import generator, stream

__all__ = [
    "DigitsModel",
    "ProgressiveRepBatchNorm",
    "RepBatchNorm",
    "SimplifiedLinearAttention",
    "fuse",
    "train_digits",
]

NORMS = ("layernorm", "batchnorm", "prepbn")
ATTENTIONS = ("softmax", "simplified")
GRID, BATCH, TRAINING = (4, 4), 64, 1200  # patches of 2 x 2 pixels


class RepBatchNorm(nn.Module):
    """BN(x) + eta x over the last axis, statistics over all others (2405.11582, eq. 6); eta is learned, 1 at the start."""

    def __init__(self, width, *, eps=1e-5, momentum=0.1):
        super().__init__()
        self.eta = nn.Parameter(torch.ones(()))
        self.bn = nn.BatchNorm1d(width, eps=eps, momentum=momentum)

    def forward(self, x):
        if x.ndim < 2 or x.shape[-1] != self.bn.num_features:
            raise ValueError(f"x must have shape (..., {self.bn.num_features}), got {tuple(x.shape)}")
        return self.bn(x.reshape(-1, x.shape[-1])).reshape(x.shape) + self.eta * x


class ProgressiveRepBatchNorm(nn.Module):
    """PRepBN over the last axis: gamma LN(x) + (1 - gamma) RepBN(x); every forward in training mode is one step.

    gamma is 1 for `warmup` steps (BN's statistics are gathered meanwhile), falls linearly to 0 in `steps` more and stays
    there. Evaluation uses the gamma of the moment, so that it measures the function that is being trained (the released
    code evaluates RepBN alone at any time). The step is a buffer: it is saved and loaded. With gamma = 0 `fuse` applies.
    Raises ValueError for counts out of range and for an input of another width.
    """

    def __init__(self, width, steps, *, warmup=0, eps=1e-5):
        super().__init__()
        self.steps, self.warmup = count("steps", steps), count("warmup", warmup, least=0)
        self.ln, self.repbn = nn.LayerNorm(width, eps=eps), RepBatchNorm(width, eps=eps)
        self.register_buffer("step", torch.zeros((), dtype=torch.long))

    @property
    def gamma(self) -> float:
        """LayerNorm's share, 1 to 0."""
        return 1 - min(max(int(self.step) - self.warmup, 0), self.steps) / self.steps

    def forward(self, x):
        gamma = self.gamma
        if self.training:
            self.step += 1
        y = self.repbn(x)
        return y if gamma == 0 else torch.lerp(y, self.ln(x), gamma)

    def extra_repr(self):
        return f"steps={self.steps}, warmup={self.warmup}, gamma={self.gamma:g}"


@torch.no_grad()
def fuse(norm, linear):
    """The nn.Linear that computes linear(norm(x)) by itself, norm as in evaluation.

    norm: RepBatchNorm, BatchNorm1d or ProgressiveRepBatchNorm with gamma 0. Computed in float64, and rounded once.
    W diag(a) x + W b + c, with a = w / sqrt(var + eps) + eta and b = bias - mean w / sqrt(var + eps).
    Raises ValueError while LayerNorm has a share, which is no linear map, and for widths that do not fit; TypeError for
    other modules.
    """
    if isinstance(norm, ProgressiveRepBatchNorm):
        if norm.gamma > 0:
            raise ValueError(f"LayerNorm still has a share gamma = {norm.gamma:g}: train the norm to gamma = 0 first")
        norm = norm.repbn
    bn, eta = (norm.bn, norm.eta.double()) if isinstance(norm, RepBatchNorm) else (norm, 0.0)
    if not isinstance(bn, nn.BatchNorm1d) or not isinstance(linear, nn.Linear):
        raise TypeError(f"fuse takes a batch norm and an nn.Linear, got {type(norm).__name__}, {type(linear).__name__}")
    if bn.running_var is None:
        raise ValueError("a batch norm without running statistics depends on the batch and cannot be fused")
    if bn.num_features != linear.in_features:
        raise ValueError(f"the norm has width {bn.num_features}, the linear layer takes {linear.in_features}")
    scale = (bn.running_var.double() + bn.eps).rsqrt()
    scale, bias = (scale, 0.0) if bn.weight is None else (scale * bn.weight.double(), bn.bias.double())
    bias = bias - bn.running_mean.double() * scale
    weight = linear.weight.double()
    like = {"device": linear.weight.device, "dtype": linear.weight.dtype}
    fused = nn.utils.skip_init(nn.Linear, linear.in_features, linear.out_features, **like)
    fused.weight.copy_(weight * (scale + eta))
    fused.bias.copy_(weight @ bias + (0 if linear.bias is None else linear.bias.double()))
    return fused.train(linear.training)


class SimplifiedLinearAttention(LinearAttention):
    """relu(q) (relu(k + position)^T v) / (relu(q) . sum relu(k + position)) + DWConv(v), then the output matrix.

    grid: (height, width) of an image's patches in rows, or (tokens,) for a sequence; the depthwise convolution runs over
    it, with `kernel` taps an axis (odd) shared by the heads. position, (tokens, width), is learned, 0 at the start.
    Raises ValueError as LinearAttention does, and for an even kernel or an input of another number of tokens.
    """

    def __init__(self, width, heads, grid, *, kernel=5, bias=True):
        super().__init__(width, heads, "relu", bias=bias)
        if len(grid) not in (1, 2) or kernel % 2 == 0:
            raise ValueError(f"grid has 1 or 2 axes and kernel is odd, got grid {grid} and kernel {kernel}")
        self.grid = tuple(count("grid", n) for n in grid)
        size = width // heads
        conv = nn.Conv1d if len(grid) == 1 else nn.Conv2d
        self.near = conv(size, size, kernel, padding=kernel // 2, groups=size)
        self.position = nn.Parameter(torch.zeros(math.prod(self.grid), width))

    def forward(self, x, mask=None):
        q, k, v = self.project(x)
        if k.shape[-2] != len(self.position):
            raise ValueError(f"x must have {len(self.position)} tokens, a grid of {self.grid}, got {tuple(x.shape)}")
        k = k + self.position.unflatten(-1, (self.heads, -1)).transpose(0, 1)
        image = v.flatten(0, 1).transpose(-1, -2).unflatten(-1, self.grid)
        near = self.near(image).flatten(2).transpose(-1, -2).unflatten(0, v.shape[:2])
        return self.merge(self.attend(q, k, v, mask) + near)


class _Softmax(LinearAttention):
    """The same projections around softmax attention."""

    def attend(self, q, k, v, mask=None):
        return F.scaled_dot_product_attention(q, k, v)


class DigitsModel(nn.Module):
    """Pre-norm transformer on 8 x 8 digits as 16 patches: two blocks of attention and a GELU MLP, mean over tokens, head.

    norm: one of NORMS, attention: one of ATTENTIONS; steps: PRepBN's.
    """

    def __init__(self, norm="prepbn", attention="simplified", *, width=32, heads=2, blocks=2, steps=100):
        super().__init__()
        make = {
            "layernorm": nn.LayerNorm,
            "batchnorm": lambda width: _Tokens(nn.BatchNorm1d(width)),
            "prepbn": lambda width: ProgressiveRepBatchNorm(width, steps),
        }[pick("norm", norm, NORMS)]
        pick("attention", attention, ATTENTIONS)
        self.embed = nn.Linear(4, width)
        self.position = nn.Parameter(torch.zeros(math.prod(GRID), width))
        self.blocks = nn.ModuleList()
        for _ in range(count("blocks", blocks)):
            mixer = (
                _Softmax(width, heads)
                if attention == "softmax"
                else SimplifiedLinearAttention(width, heads, GRID, kernel=3)
            )
            mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
            self.blocks.append(nn.ModuleList([make(width), mixer, make(width), mlp]))
        self.norm, self.head = make(width), nn.Linear(width, 10)

    def forward(self, images):
        """images (batch, 64), rows of pixels -> logits (batch, 10)."""
        patches = images.unflatten(-1, (4, 2, 4, 2)).transpose(-3, -2).flatten(-2).flatten(-3, -2)
        x = self.embed(patches) + self.position
        for norm1, mixer, norm2, mlp in self.blocks:
            x = x + mixer(norm1(x))
            x = x + mlp(norm2(x))
        return self.head(self.norm(x).mean(1))

    def fused(self):
        """A copy in evaluation mode without its norms: each one is part of the matrix that reads it (see `fuse`)."""
        import copy

        model = copy.deepcopy(self).eval()
        for block in model.blocks:
            norm1, mixer, norm2, mlp = block
            mixer.qkv, mlp[0] = fuse(_bare(norm1), mixer.qkv), fuse(_bare(norm2), mlp[0])
            block[0] = block[2] = nn.Identity()
        model.head, model.norm = fuse(_bare(model.norm), model.head), nn.Identity()
        return model


class _Tokens(nn.Module):
    """A BatchNorm1d over the last axis of (batch, tokens, width)."""

    def __init__(self, bn):
        super().__init__()
        self.bn = bn

    def forward(self, x):
        return self.bn(x.flatten(0, -2)).reshape(x.shape)


def _bare(norm):
    return norm.bn if isinstance(norm, _Tokens) else norm


@dataclass(frozen=True)
class Trained:
    """A trained DigitsModel, in evaluation mode, and its loss (nats) and accuracy on 597 held-out digits."""

    model: DigitsModel
    loss: float
    accuracy: float


def train_digits(norm="prepbn", *, attention="simplified", lr=3e-3, steps=200, seed=0, **sizes) -> Trained:
    """Train a DigitsModel on 1200 digits: Adam, constant lr, batches of 64. PRepBN's gamma is 0 from 3/4 of the steps on.

    Same seed, same weights and batches, whatever the norm. Raises ValueError for unknown names, counts below 1, an lr
    that is not positive, and a loss that is not finite.
    """
    positive("lr", lr)
    model = DigitsModel(norm, attention, steps=max(1, 3 * count("steps", steps) // 4), **sizes)
    draws = generator(seed, "slab weights")
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim > 1 and "position" not in name:
                p.normal_(0, p[0].numel() ** -0.5, generator=draws)
            elif name.endswith("bias"):
                p.zero_()
    images, labels = standardized_digits("digits split")
    x, y = torch.tensor(images).float(), torch.tensor(labels)
    adam = torch.optim.Adam(model.parameters(), lr=lr)
    for picks in stream(seed, "slab batches").integers(TRAINING, size=(steps, BATCH)):
        loss = F.cross_entropy(model(x[picks]), y[picks])
        adam.zero_grad()
        loss.backward()
        adam.step()
    model.eval()
    with torch.no_grad():
        logits, answers = model(x[TRAINING:]), y[TRAINING:]
        loss = F.cross_entropy(logits, answers).item()
    if not math.isfinite(loss):
        raise ValueError(f"{norm} with {attention} attention diverged (lr {lr:g}, seed {seed}): lower lr")
    return Trained(model, loss, (logits.argmax(-1) == answers).float().mean().item())
