"""Magnitude Invariant Parametrizations for hypernetworks (Gonzalez Ortiz, Guttag, Dalca 2023, arXiv 2304.07645).

A hypernetwork predicts the weights of another network from an input z. With zero biases it is homogeneous: the weights
that it predicts, and its gradients, are proportional to |z|. MIP is two changes: an input encoding of constant norm, and
independent base weights to which the prediction is added.
"""

import copy
import math
from dataclasses import dataclass
from itertools import pairwise

try:
    import torch
except ImportError as error:
    raise ImportError("normkit.rates.hypernetwork needs torch; pip install 'normkit[torch]'") from error
from torch import nn

from normkit.arrays import finite, floating, namespace
from normkit.rng import generator, stream

__all__ = ["Hypernetwork", "ToyRun", "encode", "train_toy"]


def encode(z):
    """[cos(pi z / 2), sin(pi z / 2)]: z (..., k) in [0, 1] -> (..., 2k), of norm sqrt(k) for every z.

    Raises ValueError for entries outside [0, 1], where different z would share a code, and non-finite ones.
    """
    _in_unit_interval(z)
    return _encoded(z)


def _in_unit_interval(z):
    xp = namespace(z)
    finite("z", floating("z", z))
    if z.shape[0] and bool(xp.any((z < 0) | (z > 1))):
        raise ValueError(
            f"z must lie in [0, 1], got entries from {float(xp.min(z)):g} to {float(xp.max(z)):g}; rescale it, e.g. "
            "(z - low) / (high - low)"
        )
    return z


def _encoded(z):
    xp = namespace(z)
    return xp.concat([xp.cos(math.pi / 2 * z), xp.sin(math.pi / 2 * z)], axis=-1)


class Hypernetwork(nn.Module):
    """Predicts all parameters of `target`, a torch module, from z with `inputs` entries in [0, 1].

    hidden: widths of the LeakyReLU layers. encode: feed `encode(z)` instead of z. residual: the prediction is added to
    base weights that start as target's own; else they start at zero and are an ordinary output bias. Both: MIP;
    neither: the plain hypernetwork. Weights Kaiming normal over fan-out and biases zero, as in the released code, and
    drawn for `seed`; target is copied, and its parameters do not learn. Raises ValueError for a target without
    parameters and sizes below 1.
    """

    def __init__(self, target, inputs=1, hidden=(32,), *, encode=True, residual=True, seed=0):
        super().__init__()
        if min((inputs, *hidden)) < 1:
            raise ValueError(f"inputs and hidden widths must be >= 1, got {inputs} and {tuple(hidden)}")
        named = {name: p.detach() for name, p in target.named_parameters()}
        if not named:
            raise ValueError("target has no parameters to predict")
        self.inputs, self.encode, self.residual = inputs, encode, residual
        self.shapes = {name: tuple(p.shape) for name, p in named.items()}
        self.target = copy.deepcopy(target).requires_grad_(False)
        flat = torch.cat([p.flatten() for p in named.values()])
        sizes = [2 * inputs if encode else inputs, *hidden, flat.numel()]
        layers = []
        for k, (fan_in, fan_out) in enumerate(pairwise(sizes)):
            last = k == len(hidden)
            each = nn.utils.skip_init(nn.Linear, fan_in, fan_out, dtype=flat.dtype, device=flat.device)
            draws = generator(seed, "hypernetwork", k)
            gain = nn.init.calculate_gain("linear" if last else "leaky_relu")
            with torch.no_grad():
                each.weight.copy_(torch.randn(each.weight.shape, generator=draws) * gain / math.sqrt(fan_out))
                each.bias.copy_(flat if last and residual else torch.zeros_like(each.bias))
            layers += [each] if last else [each, nn.LeakyReLU()]
        self.mlp = nn.Sequential(*layers)

    @property
    def base(self):
        """The independent base weights, one vector: the output layer's bias."""
        return self.mlp[-1].bias

    def predict(self, z):
        """{name: tensor}: the target's parameters for z (inputs,), or with a leading batch axis for z (batch, inputs).

        Raises ValueError for another shape, and for entries outside [0, 1] or not finite.
        """
        if z.ndim not in (1, 2) or z.shape[-1] != self.inputs:
            raise ValueError(f"z must have shape ({self.inputs},) or (batch, {self.inputs}), got {tuple(z.shape)}")
        _in_unit_interval(z)
        flat = self.mlp(_encoded(z) if self.encode else z)
        parts = flat.split([math.prod(shape) for shape in self.shapes.values()], dim=-1)
        return {
            name: part.reshape(*z.shape[:-1], *shape)
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }

    def forward(self, z, x):
        """target(x) with the parameters for z. z (batch, inputs): one network for each entry of x (batch, ...)."""
        weights = self.predict(z)
        if z.ndim == 1:
            return torch.func.functional_call(self.target, weights, (x,))
        return torch.func.vmap(lambda w, each: torch.func.functional_call(self.target, w, (each,)))(weights, x)


# ---- a toy: one tanh net for each frequency ---------------------------------------------------------------------------

UNITS, BATCH, POINTS = 16, 16, 32


@dataclass(frozen=True)
class ToyRun:
    """One training: mean square errors on fresh batches, (steps,), and at the end on a grid of z and x."""

    losses: tuple[float, ...]
    loss: float
    model: Hypernetwork


def toy_target(seed):
    """A net of 1, 16 tanh and 1 units with 48 weights, no last bias; all N(0, 1) / sqrt(fan-in)."""
    net = nn.Sequential(nn.Linear(1, UNITS), nn.Tanh(), nn.Linear(UNITS, 1, bias=False))
    with torch.no_grad():
        for k, p in enumerate(net.parameters()):
            p.copy_(
                torch.from_numpy(stream(seed, "hypernetwork toy", k).normal(size=p.shape)) / math.sqrt(p[0].numel())
            )
    return net


def wave(z, x):
    """What the toy must learn: sin(3 x (0.5 + 1.5 z))."""
    return torch.sin(3 * x * (0.5 + 1.5 * z))


def train_toy(*, encode=True, residual=True, hidden=(32,), lr=1e-3, steps=400, seed=0) -> ToyRun:
    """Train a hypernetwork to predict, for every z in [0, 1], a net that computes `wave(z, x)` on [-1, 1], with Adam.

    With one seed all arms see the same z and x, and start with the same target and, apart from its input, the same MLP.
    Raises ValueError for steps < 1, FloatingPointError if the training diverges.
    """
    if steps < 1:
        raise ValueError(f"steps must be >= 1, got {steps}")
    model = Hypernetwork(toy_target(seed), 1, hidden, encode=encode, residual=residual, seed=seed)
    adam, losses = torch.optim.Adam(model.mlp.parameters(), lr=lr), []
    draws = stream(seed, "hypernetwork toy", "batches")
    for _ in range(steps):
        z = torch.from_numpy(draws.uniform(size=(BATCH, 1))).float()
        x = torch.from_numpy(draws.uniform(-1, 1, size=(BATCH, POINTS, 1))).float()
        loss = (model(z, x) - wave(z[:, None], x)).square().mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(loss.item())
    with torch.no_grad():
        z, x = torch.linspace(0, 1, 21)[:, None], torch.linspace(-1, 1, 41)[None, :, None].expand(21, 41, 1)
        end = (model(z, x) - wave(z[:, None], x)).square().mean().item()
    if not math.isfinite(end):
        raise FloatingPointError(f"the training diverged (loss {end}); lower lr, now {lr:g}")
    return ToyRun(tuple(losses), end, model)
