"""WideNet (Xue et al. 2107.11817): one block of weights at every depth, with a LayerNorm of its own for each depth.

The block is a Pre-LN MLP, x + W2 relu(W1 LN(x) + b1) + b2. Whatever is shared is stored once, with a leading axis of 1,
and expanded over depth; autograd then adds up what every depth contributes.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from normkit.arrays import finite
from normkit.checks import count, pick
from normkit.depth.placement import residual_step
from normkit.depth.transformer import generator
from normkit.layers import layer_norm
from normkit.rng import stream

__all__ = ["ARMS", "Sharing", "Stack", "gradient_by_depth", "parameter_count", "train_sharing"]

ARMS = ("independent", "shared", "shared_individual_norms")
CLASSES, TEACHER_LAYERS, BATCH, RATE, TESTS = 8, 4, 128, 3e-3, 4096
EPS = 1e-6  # of the LayerNorms, as in the paper's code


def parameter_count(arm, *, layers=8, width=32, hidden=64) -> int:
    """Numbers to learn in a `Stack`: (4-tensor blocks) 2 width hidden + hidden + width, (LayerNorms) 2 width each.

    independent: both times layers; shared: both once; shared_individual_norms: one block, `layers` LayerNorms.
    Raises ValueError for an unknown arm or sizes below 1.
    """
    blocks, norms = _copies(arm, layers, width, hidden)
    return blocks * (2 * width * hidden + hidden + width) + norms * 2 * width


class Stack(nn.Module):
    """`layers` Pre-LN MLP blocks, (..., width) -> (..., width), that share what `arm` says; no norm after the last.

    Parameters w1 (n, hidden, width), b1 (n, hidden), w2 (n, width, hidden), b2 (n, width), n = 1 or layers; gain and
    bias (m, width), m = 1 or layers. Weights N(0, 1/fan_in), one stream a block: the shared block is the independent
    stack's first, and "shared" and "shared_individual_norms" start as the same function, to the bit.
    Raises ValueError for an unknown arm or sizes below 1.
    """

    def __init__(self, arm, *, layers=8, width=32, hidden=64, seed=0):
        super().__init__()
        blocks, norms = _copies(arm, layers, width, hidden)
        self.arm, self.layers, self.width = arm, layers, width
        drawn = [_block(generator(seed, "sharing", "block", k), width, hidden) for k in range(blocks)]
        self.w1, self.w2 = (nn.Parameter(torch.stack(w)) for w in zip(*drawn, strict=True))
        self.b1, self.b2 = nn.Parameter(torch.zeros(blocks, hidden)), nn.Parameter(torch.zeros(blocks, width))
        self.gain, self.bias = nn.Parameter(torch.ones(norms, width)), nn.Parameter(torch.zeros(norms, width))

    def by_depth(self):
        """{name: (layers, ...)}: the parameters that each depth uses, as views of those that are stored."""
        return {name: p.expand(self.layers, *p.shape[1:]) for name, p in self.named_parameters()}

    def forward(self, x, used=None):
        if x.shape[-1:] != (self.width,):
            raise ValueError(f"x must have shape (..., {self.width}), got {tuple(x.shape)}")
        used = self.by_depth() if used is None else used
        for layer in range(self.layers):
            p = {name: value[layer] for name, value in used.items()}
            x = residual_step(
                x,
                lambda h, p=p: F.linear(F.relu(F.linear(h, p["w1"], p["b1"])), p["w2"], p["b2"]),
                "pre",
                layer,
                self.layers,
                lambda h, p=p: layer_norm(h, p["gain"], p["bias"], eps=EPS),
            )
        return x


def gradient_by_depth(stack, x, cotangent):
    """{name: (layers, ...)}: what each depth adds to the gradient of <stack(x), cotangent>; see `Stack` for the names.

    x, cotangent: (..., width) tensors. The gradient of a shared parameter is the sum over the first axis.
    Raises ValueError for shapes that do not fit and non-finite entries.
    """
    finite("x", x)
    finite("cotangent", cotangent)
    used = stack.by_depth()
    y = stack(x, used)
    if cotangent.shape != y.shape:
        raise ValueError(f"cotangent must have the shape of x, {tuple(y.shape)}, got {tuple(cotangent.shape)}")
    return dict(zip(used, torch.autograd.grad((y * cotangent).sum(), list(used.values())), strict=True))


@dataclass(frozen=True)
class Sharing:
    """One trained arm. Losses are cross-entropies in nats on new inputs; guessing costs about log(8) = 2.08."""

    arm: str
    loss: float
    start: float  # loss before training
    parameters: int  # of the stack, the head left out: it is the same in every arm
    norm_spread: float  # standard deviation over depth of the LayerNorm gains, root mean square over features


def train_sharing(arm, *, seed=0, steps=500, layers=8, width=32, hidden=64) -> Sharing:
    """Train a stack of `arm` to agree with a fixed random teacher of 4 independent blocks and 8 classes.

    Inputs N(0,1), fresh batches of 128, Adam at 3e-3; a LayerNorm without parameters and a matrix follow the stack.
    With one seed all arms have the same teacher, inputs, head and first block.
    Raises ValueError for an unknown arm or counts below 1, FloatingPointError if the training diverges.
    """
    count("steps", steps)
    stack = Stack(arm, layers=layers, width=width, hidden=hidden, seed=seed)
    # A name of its own for the teacher's seed, else the independent stack would start as the teacher.
    teacher_seed = int(stream(seed, "sharing", "teacher").integers(2**63))
    teacher = Stack("independent", layers=TEACHER_LAYERS, width=width, hidden=hidden, seed=teacher_seed)
    answer, head = (_matrix(generator(seed, "sharing", name), CLASSES, width) for name in ("answer", "head"))
    head.requires_grad_()

    def batch(draws, size):
        x = torch.randn(size, width, generator=draws)
        with torch.no_grad():
            return x, (layer_norm(teacher(x)) @ answer.T).argmax(-1)

    def loss(x, y):
        return F.cross_entropy(layer_norm(stack(x)) @ head.T, y)

    tests = batch(generator(seed, "sharing", "test"), TESTS)
    with torch.no_grad():
        start = loss(*tests).item()
    adam = torch.optim.Adam([*stack.parameters(), head], lr=RATE)
    draws = generator(seed, "sharing", "inputs")
    for _ in range(steps):
        step = loss(*batch(draws, BATCH))
        adam.zero_grad()
        step.backward()
        adam.step()
    with torch.no_grad():
        end = loss(*tests).item()
        spread = stack.gain.var(0, correction=0).mean().sqrt().item()
    if not math.isfinite(end):
        raise FloatingPointError(f"the training of {arm!r} diverged (loss {end}); use fewer layers or another seed")
    return Sharing(arm, end, start, sum(p.numel() for p in stack.parameters()), spread)


def _copies(arm, layers, width, hidden):
    """How many blocks and how many LayerNorms the arm stores."""
    pick("arm", arm, ARMS)
    for name, value in (("layers", layers), ("width", width), ("hidden", hidden)):
        count(name, value)
    return layers if arm == "independent" else 1, 1 if arm == "shared" else layers


def _matrix(draws, rows, columns):
    return torch.randn(rows, columns, generator=draws) * columns**-0.5


def _block(draws, width, hidden):
    return _matrix(draws, hidden, width), _matrix(draws, width, hidden)
