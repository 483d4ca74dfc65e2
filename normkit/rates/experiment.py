"""A scale-invariant weight under random gradients: norms, angles per step, effective learning rates, equilibria.

The model of laws.py, simulated: the same rules, real vectors. Random numbers come in blocks of steps, from one stream
per (seed, run, block), and are kept: a slider that moves lr, decay or momentum draws none again.
"""

import functools
import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from normkit.arrays import accelerated
from normkit.checks import count, positive
from normkit.rates import laws
from normkit.rng import stream

BLOCK = 1 << 16  # random numbers in a block of one run; 256 KiB, of which at most 512 are kept


@dataclass(frozen=True)
class Walk:
    """norm, elr, cosine: (seeds, steps+1), at every weight; angle: (seeds, steps), radians between two in a row.

    cosine is that with the target, the first axis. path: (steps+1, dim), the first seed's weights, or None.
    """

    optimizer: str
    norm: np.ndarray
    angle: np.ndarray
    elr: np.ndarray
    cosine: np.ndarray
    path: np.ndarray | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Grid:
    """Simulated and predicted equilibria, all (len(lr), len(weight_decay)). angle: root mean square, radians per step.

    relaxed: whether the walk had the time to forget its start before it was measured.
    """

    lr: np.ndarray
    weight_decay: np.ndarray
    norm: np.ndarray
    angle: np.ndarray
    law_norm: np.ndarray
    law_angle: np.ndarray
    relaxed: np.ndarray


class Model(NamedTuple):
    """What one step needs beside its state; radius > 0 projects the weight back to it."""

    adaptive: bool
    tangent: bool
    beta: float
    fresh: float
    beta2: float
    eps: float
    grad_norm: float
    signal: float
    radius: float


def spherical_walk(
    optimizer="sgd",
    *,
    lr,
    weight_decay=0.0,
    decoupled=False,
    momentum=0.9,
    betas=(0.9, 0.999),
    eps=1e-8,
    project=False,
    dim=64,
    steps=1000,
    seeds=8,
    seed=0,
    grad_norm=1.0,
    radius=1.0,
    signal=0.0,
    keep_path=False,
) -> Walk:
    """`seeds` weights of `dim` entries, norm `radius` and random direction, over `steps` steps of an optimizer.

    The gradient at w is tangent to the sphere: isotropic noise with E||g||^2 = grad_norm^2/||w||^2, fresh at every
    step, plus that of signal (1 - cos(w, target)), target = first axis. optimizer: "sgd", "momentum" (torch.optim.SGD;
    decoupled=True multiplies w by 1 - lr weight_decay instead of adding weight_decay w to the gradient), "adam" (AdamW),
    "sgdp", "adamp" (as released: their test on cos(g, w) always fires for a tangent gradient, so that the step is
    projected and the decay multiplied by 0.1; nesterov off). project=True rescales to `radius` after each step
    (Normalize-and-Project, 2407.01800).
    A run depends neither on how many others there are nor on steps beyond its own.
    Raises ValueError for unknown names, lr <= 0, negative or non-finite numbers, dim < 2, steps or seeds < 1, and for a
    norm that leaves 1e-100 .. 1e100, with its step.
    """
    count("dim", dim, 2), count("steps", steps), count("seeds", seeds)
    positive("lr", lr), positive("radius", radius)
    model = _model(optimizer, momentum, betas, eps, grad_norm, signal, radius if project else 0.0)
    positive("weight_decay", weight_decay, zero=True)
    pull, shrink = laws.decay(optimizer, lr, weight_decay, momentum=momentum, decoupled=decoupled)
    start = _start(seed, seeds, dim, radius)
    norm, cosine = np.empty((2, seeds, steps + 1))
    angle, path = np.empty((seeds, steps)), np.empty((steps + 1 if keep_path else 0, dim))
    norm[:, 0], cosine[:, 0], path[:1] = radius, start[:, 0] / radius, start[:1]
    for at, block in _blocks(start, seed, seeds, steps, np.full(seeds, lr), pull, shrink, model, keep_path):
        end = at + block[1].shape[1]
        norm[:, at + 1 : end + 1], angle[:, at:end], cosine[:, at + 1 : end + 1] = block[:3]
        path[at + 1 : end + 1] = block[3]
    return Walk(optimizer, norm, angle, lr / norm ** (1 if model.adaptive else 2), cosine, path if keep_path else None)


def equilibrium_grid(
    lr,
    weight_decay,
    *,
    optimizer="sgd",
    momentum=0.9,
    betas=(0.9, 0.999),
    decoupled=False,
    dim=32,
    steps=2000,
    seed=0,
    grad_norm=1.0,
) -> Grid:
    """Walks for every pair of lr (a,) and weight_decay (b,), measured over their second half, beside the laws; (a, b).

    Every walk starts at the norm the law predicts, which it leaves if the law is wrong. How far it can be off after
    `steps` is told by `relaxed`: True where half of them are three `laws.relaxation_steps`, which leaves nothing of the
    start; elsewhere the agreement proves little (Adam: choose a beta2 that forgets in time). All pairs share their random numbers: neighbors differ by their
    parameters alone. Corrections to the laws are of order 1/dim.
    Raises ValueError as `spherical_walk` and `laws.equilibrium_norm` do.
    """
    count("dim", dim, 2), count("steps", steps, 2)
    lr, wd = (np.asarray(x, dtype=np.float64) for x in (lr, weight_decay))
    if lr.ndim != 1 or wd.ndim != 1 or not lr.size or not wd.size:
        raise ValueError(f"lr and weight_decay must be two lists of numbers, got shapes {lr.shape} and {wd.shape}")
    shape, (lrs, wds) = (lr.size, wd.size), np.meshgrid(lr, wd, indexing="ij")
    rule = {"optimizer": optimizer, "momentum": momentum, "betas": betas, "decoupled": decoupled}
    law_norm, law_angle = (
        laws.equilibrium_norm(lrs, wds, grad_norm, dim=dim, **rule),
        laws.equilibrium_angle(lrs, wds, **rule),
    )
    relaxed = 3 * laws.relaxation_steps(lrs, wds, **rule) <= steps // 2
    pull, shrink = laws.decay(optimizer, lrs.ravel(), wds.ravel(), momentum=momentum, decoupled=decoupled)
    model = _model(optimizer, momentum, betas, 0.0, grad_norm, 0.0, 0.0)
    w = _start(seed, 1, dim, 1.0) * law_norm.reshape(-1, 1)
    sums, half = np.zeros((2, lrs.size)), steps // 2
    for at, (norm, angle, *_) in _blocks(w, seed, 1, steps, lrs.ravel(), pull, shrink, model, False):
        skip = max(0, half - at)
        sums += norm[:, skip:].sum(1), np.square(angle[:, skip:]).sum(1)
    norm, square = sums.reshape(2, *shape) / (steps - half)
    return Grid(lr, wd, norm, np.sqrt(square), law_norm, law_angle, relaxed)


@accelerated("normkit.rates.kernels:walk")
def walk(w, p, square, noise, first, lr, pull, shrink, model, out):
    """Steps first, first+1, ... of every weight, w (rows, dim), changed in place with its buffers p and square.

    noise: (streams, steps, dim), standard normal; row i takes stream i modulo streams. lr, pull, shrink: (rows,), see
    `laws.decay`. out: norm, angle, cosine (rows, steps) and path (steps or 0, dim, of row 0), filled and returned.
    """
    norm, angle, cosine, path = out
    adaptive, tangent, beta, fresh, beta2, eps, grad_norm, signal, radius = model
    lr, pull, shrink = lr[:, None], pull[:, None], shrink[:, None]
    target = np.eye(1, w.shape[1])
    for t in range(noise.shape[1]):
        z = noise[np.arange(len(w)) % len(noise), t].astype(np.float64)
        length = _length(w)
        unit = w / length
        z = z - unit * _inner(unit, z)
        g = (grad_norm / math.sqrt(w.shape[1] - 1) * z - signal * (target - unit * unit[:, :1])) / length
        p[:] = beta * p + fresh * g + pull * w
        d = p
        if adaptive:
            square[:] = beta2 * square + (1 - beta2) * g**2
            d = p / (1 - beta ** (first + t)) / (np.sqrt(square / (1 - beta2 ** (first + t))) + eps)
        if tangent:
            d = d - unit * _inner(unit, d)
            if not adaptive:
                p[:] = d  # SGDP, as released, projects its buffer in place
        after = shrink * w - lr * d
        along = _inner(unit, after)
        angle[:, t] = np.arctan2(_length(after - along * unit), along)[:, 0]
        if radius > 0:
            after = after * (radius / _length(after))
        w[:] = after
        norm[:, t] = _length(w)[:, 0]
        cosine[:, t] = w[:, 0] / norm[:, t]
        path[t : t + 1] = w[:1]
    return out


def _inner(x, y):
    return np.vecdot(x, y)[:, None]


def _length(x):
    return np.sqrt(_inner(x, x))


def _blocks(w, seed, runs, steps, lr, pull, shrink, model, keep_path):
    """(first step, what `walk` returns) for one block of steps after the other; the error of a norm out of range."""
    rows, dim = w.shape
    p, square = np.zeros((2, rows, dim))
    pull, shrink = (np.ascontiguousarray(np.broadcast_to(np.asarray(a, np.float64), rows)) for a in (pull, shrink))
    size = max(1, BLOCK // dim)
    for at in range(0, steps, size):
        here = min(size, steps - at)
        noise = np.stack([_noise(seed, run, at // size, size, dim)[:here] for run in range(runs)])
        out = (*np.full((3, rows, here), np.nan), np.empty((here if keep_path else 0, dim)))
        with np.errstate(all="ignore"):  # what leaves the range is reported below
            walk(w, p, square, noise, at + 1, lr, pull, shrink, model, out)
        good = (out[0] > 1e-100) & (out[0] < 1e100)
        if not good.all():
            step = int(np.argmin(good.all(0)))
            row = int(np.argmin(good[:, step]))
            raise ValueError(
                f"the norm leaves 1e-100 .. 1e100 at step {at + step + 1} of row {row} (lr {lr[row]:g}): "
                "lower lr or grad_norm, start from a larger radius, or set project=True"
            )
        yield at, out


@functools.lru_cache(512)
def _noise(seed, run, block, size, dim):
    z = stream(seed, "rates", "noise", run, block).standard_normal((size, dim), dtype=np.float32)
    z.flags.writeable = False
    return z


def _start(seed, runs, dim, radius):
    w = np.stack([stream(seed, "rates", "start", run).standard_normal(dim) for run in range(runs)])
    return w * (radius / _length(w))


def _model(optimizer, momentum, betas, eps, grad_norm, signal, radius):
    kind = laws.rule(optimizer)
    for name, value in (("eps", eps), ("grad_norm", grad_norm), ("signal", signal)):
        positive(name, value, zero=True)
    return Model(kind.adaptive, kind.tangent, *laws.buffers(optimizer, momentum, betas), eps, grad_norm, signal, radius)
