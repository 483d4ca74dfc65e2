"""Large batches: distance from the start against log t, Ghost Batch Normalization, and training by updates, not epochs.

Hoffer, Hubara, Soudry, "Train longer, generalize better: closing the generalization gap in large batch training of
neural networks", arXiv 1705.08741.
"""

import math
from dataclasses import dataclass
from functools import cache

import numpy as np

try:
    import torch
except ImportError as error:
    raise ImportError("normkit.rates.longer needs torch; pip install 'normkit[torch]'") from error
from torch import nn

from normkit.arrays import finite
from normkit.checks import count, positive
from normkit.rates.training import data, generator
from normkit.rng import stream


class _Ghost:
    """Mixed into a BatchNorm: in training the batch is normalized in ghosts of `ghost_size` samples, each on its own."""

    def __init__(self, num_features, ghost_size, **options):
        super().__init__(num_features, **options)
        self.ghost_size = count("ghost_size", ghost_size, 2)

    def forward(self, x):
        self._check_input_dim(x)
        if not (self.training or self.running_mean is None):
            return super().forward(x)
        rest = len(x) % self.ghost_size
        if rest and rest * x[0, 0].numel() == 1:
            raise ValueError(
                f"a batch of {len(x)} leaves a ghost of 1 value a channel after ghosts of {self.ghost_size}, which has "
                "no variance; use a batch size that ghost_size divides, or drop the last batch (drop_last=True)"
            )
        return torch.cat([super(_Ghost, self).forward(ghost) for ghost in x.split(self.ghost_size)])

    def extra_repr(self):
        return f"{super().extra_repr()}, ghost_size={self.ghost_size}"


class GhostBatchNorm1d(_Ghost, nn.BatchNorm1d):
    """nn.BatchNorm1d whose training statistics are those of ghosts, `x.split(ghost_size)`, each normalized alone.

    Input (batch, channels) or (batch, channels, length). The running statistics take one step of `momentum` for each
    ghost, in order (as in the authors' code, which runs plain BatchNorm over the ghosts), and num_batches_tracked
    counts ghosts; evaluation is nn.BatchNorm1d's. The last ghost has the rest of the batch. Parameters, buffers and
    options are nn.BatchNorm1d's: state dicts load either way.
    Raises ValueError for ghost_size below 2 and a last ghost with one value a channel.
    """


class GhostBatchNorm2d(_Ghost, nn.BatchNorm2d):
    """nn.BatchNorm2d in ghosts; see `GhostBatchNorm1d`. Input (batch, channels, height, width)."""


@dataclass(frozen=True)
class TimeFit:
    """Two laws with two numbers each, by least squares on the distance; misfit = RMS error over the distance's spread."""

    slope: float  # distance = start + slope log t
    start: float
    misfit: float
    exponent: float  # distance = scale t^exponent
    scale: float
    power_misfit: float


def log_time_fit(t, distance) -> TimeFit:
    """Fit start + slope log t, ultra-slow diffusion, and scale t^exponent, 0 <= exponent <= 2 (diffusion has 1/2).

    t, distance: (n,) positive times and finite distances, n >= 4. A misfit of 0 is an exact law, 1 is no better than a
    constant. Raises ValueError for other shapes and values, and for a distance that does not change.
    """
    t, distance = finite("t", np.asarray(t, dtype=float)), finite("distance", np.asarray(distance, dtype=float))
    if t.ndim != 1 or t.shape != distance.shape or len(t) < 4 or t.min() <= 0:
        raise ValueError(f"t and distance must be (n,), n >= 4 and t > 0, got shapes {t.shape} and {distance.shape}")
    spread = distance.std()
    if spread == 0 or np.ptp(t) == 0:
        raise ValueError("t and distance must vary: a constant follows any law")
    x = np.log(t)
    slope = (x - x.mean()) @ distance / ((x - x.mean()) ** 2).sum()
    start = distance.mean() - slope * x.mean()

    def power(exponent):
        """(misfit, scale) of the best scale t^exponent."""
        basis = np.exp(exponent * (x - x.max()))
        scale = basis @ distance / (basis @ basis)
        return _rms(distance - scale * basis) / spread, scale * math.exp(-exponent * x.max())

    low, high = 0.0, 2.0
    for _ in range(6):  # a grid that closes in, tenfold each time: the misfit can have no narrower valley than that
        grid = np.linspace(low, high, 41)
        best = grid[np.argmin([power(p)[0] for p in grid])]
        low, high = max(best - grid[1] + grid[0], 0.0), min(best + grid[1] - grid[0], 2.0)
    misfit, scale = power(best)
    return TimeFit(
        float(slope),
        float(start),
        float(_rms(distance - start - slope * x) / spread),
        float(best),
        float(scale),
        float(misfit),
    )


def batch_lr(lr: float, batch: int, base_batch: int) -> float:
    """lr sqrt(batch/base_batch): keeps the covariance of the updates, and so the speed of diffusion (section 4)."""
    return positive("lr", lr) * math.sqrt(count("batch", batch) / count("base_batch", base_batch))


@dataclass(frozen=True)
class Training:
    """One training on the digits: `distance` is ||w_t - w_0|| over all parameters at the updates `t` (from 1 on)."""

    t: np.ndarray
    distance: np.ndarray
    loss: float  # mean cross-entropy on the training set, nats, in evaluation mode
    test_loss: float
    test_error: float  # share of the 597 test images
    drop: int  # the update after which the learning rate was cut, if it was


def train(
    batch: int,
    *,
    updates: int,
    lr: float = 0.1,
    ghost: int | None = None,
    noise: float = 0.0,
    momentum: float = 0.9,
    drops: tuple[float, ...] = (0.6, 0.8),
    width: int = 64,
    seed: int = 0,
) -> Training:
    """Train 64-width-width-10 with BatchNorm (or, with `ghost`, GhostBatchNorm of that size) on 1200 digits, SGD.

    Batches are drawn without replacement, epoch by epoch, the rest of an epoch is dropped. The gradient's norm is
    clipped at 5, as in the authors' code, and lr cut tenfold at the fractions `drops` of `updates`. noise: share of
    training labels that are drawn anew. A seed has the same weights and labels, and a batch size the same batches.
    Raises ValueError for a batch outside 2 ... 1200 and other numbers out of range, FloatingPointError for divergence.
    """
    count("batch", batch, 2)
    count("updates", updates)
    positive("lr", lr)
    (x, _, test_x, test_y), y = data(), _labels(seed, float(noise))
    if batch > len(x):
        raise ValueError(f"batch must be at most the {len(x)} training images, got {batch}")
    model = _net(width, ghost, seed)
    start = [p.detach().clone() for p in model.parameters()]
    sgd = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum)
    cuts = {math.ceil(f * updates) for f in drops}
    wanted = set(np.unique(np.geomspace(1, updates, 60).round().astype(int)).tolist())
    times, distances = [], []
    for t, picks in zip(range(1, updates + 1), _batches(seed, len(x), batch), strict=False):
        loss = nn.functional.cross_entropy(model(x[picks]), y[picks])
        sgd.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        sgd.step()
        if t in cuts:
            for group in sgd.param_groups:
                group["lr"] /= 10
        if t in wanted:
            times.append(t)
            moved = [((p - s) ** 2).sum() for p, s in zip(model.parameters(), start, strict=True)]
            distances.append(math.sqrt(sum(m.item() for m in moved)))
    model.eval()
    with torch.no_grad():
        loss, scores = nn.functional.cross_entropy(model(x), y).item(), model(test_x)
        test_loss = nn.functional.cross_entropy(scores, test_y).item()
    if not math.isfinite(loss + test_loss):
        raise FloatingPointError(f"the training diverged (loss {loss}); use a smaller lr than {lr}")
    error = (scores.argmax(1) != test_y).float().mean().item()
    return Training(np.array(times), np.array(distances), loss, test_loss, error, min(cuts, default=updates))


@cache
def _labels(seed, noise):
    """The training labels (1200,), a share `noise` of them drawn anew."""
    if not 0 <= noise <= 1:
        raise ValueError(f"noise is a share of labels, 0 to 1, got {noise}")
    y, draws = data()[1], stream(seed, "longer", "labels")
    wrong, other = draws.random(len(y)) < noise, draws.integers(10, size=len(y))
    return torch.where(torch.from_numpy(wrong), torch.from_numpy(other), y)


def _batches(seed, samples, batch):
    for epoch in range(2**31):
        order = stream(seed, "longer", "batches", batch, epoch).permutation(samples)
        for first in range(0, samples - batch + 1, batch):
            yield torch.from_numpy(order[first : first + batch])


def _net(width, ghost, seed):
    draws = generator(seed, "longer", "weights")

    def linear(n_in, n_out, bias=False):
        layer = nn.utils.skip_init(nn.Linear, n_in, n_out, bias=bias)
        with torch.no_grad():
            layer.weight.copy_(torch.randn(n_out, n_in, generator=draws) * math.sqrt(2 / n_in))
            if bias:
                layer.bias.zero_()
        return layer

    def norm():
        return nn.BatchNorm1d(width) if ghost is None else GhostBatchNorm1d(width, ghost)

    return nn.Sequential(
        linear(64, width), norm(), nn.ReLU(), linear(width, width), norm(), nn.ReLU(), linear(width, 10, bias=True)
    )


def _rms(x):
    return math.sqrt(np.mean(x * x))
