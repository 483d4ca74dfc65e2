"""Learning rate schedules from the theory of the last iterate: linear decay, and its refinement by gradient norms.

Defazio, Cutkosky, Mehta, Mishchenko, "When, Why and How Much? Adaptive Learning Rate Scheduling by Refinement",
arXiv 2310.07831. A schedule is a shape with peak 1: multiply it by the peak learning rate that you tune.
"""

from dataclasses import dataclass

import numpy as np

from normkit.arrays import finite
from normkit.checks import count, pick, positive
from normkit.rng import stream

WEIGHT_POWER = {"l2": -2, "l1": -1}  # SGD: one over the squared L2 norm; Adam: one over the L1 norm


def linear_decay(steps: int) -> np.ndarray:
    """(steps,) float64: from 1 straight down to 0, t = 0 ... steps-1; the paper's 1 - (t+1)/steps rescaled to peak 1.

    The 0 is at the last iterate, which takes no step; for n real updates use `linear_decay(n + 1)[:-1]`.
    Raises ValueError for fewer than 2 steps.
    """
    return np.linspace(1.0, 0.0, count("steps", steps, 2))


def refined(gradient_norms, *, smoothing: float = 0.1, norm: str = "l2") -> np.ndarray:
    """(steps,) float64: the schedule of the next run from the gradient norms (steps,) of the last one, peak 1, end 0.

    eta_t ~ w_t sum_{p>t} w_p with w = 1/G^2 for norm="l2" (SGD) and 1/G for norm="l1" (Adam, whose norm is the L1
    norm). The norms are first smoothed by `median_filter` over the fraction `smoothing` of the run; 0 leaves them.
    Constant norms give `linear_decay`. Raises ValueError for norms that are not positive and finite, among them the
    zeros of a run that fits its data exactly: there the formula puts all weight on the last steps and fails.
    """
    power = WEIGHT_POWER[pick("norm", norm, WEIGHT_POWER)]
    norms = median_filter(_norms(gradient_norms), smoothing)
    weights = (norms / norms.min()) ** power  # the schedule does not depend on the scale of G; this one cannot overflow
    tail = np.cumsum(weights[::-1])[::-1]  # tail[t] = sum_{p>=t} w_p
    eta = weights * np.append(tail[1:], 0.0)
    return eta / eta.max()


def median_filter(values, fraction: float) -> np.ndarray:
    """(n,) running median of odd width 2 floor(fraction n / 2) + 1: the first value continued to the left, the end reflected.

    Raises ValueError for a fraction outside [0, 1] and fewer than 2 values.
    """
    values = np.asarray(values, dtype=float)
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(f"values must be one axis of at least 2 numbers, got shape {values.shape}")
    if positive("the smoothing fraction", fraction, zero=True) > 1:
        raise ValueError(f"the smoothing fraction must lie in [0, 1], got {fraction}")
    half = int(fraction * len(values)) // 2
    padded = np.pad(np.pad(values, (0, half), "reflect"), (half, 0), "edge")
    return np.median(np.lib.stride_tricks.sliding_window_view(padded, 2 * half + 1), axis=-1)


def _norms(gradient_norms):
    norms = np.asarray(gradient_norms, dtype=float)
    if norms.ndim != 1 or len(norms) < 2:
        raise ValueError(f"gradient_norms must be one axis of at least 2 numbers, got shape {norms.shape}")
    finite("gradient_norms", norms)
    if norms.min() <= 0:
        raise ValueError(
            f"gradient_norms must be positive, but gradient_norms[{norms.argmin()}] is {norms.min()}; "
            "a run that reaches gradient 0 has no refined schedule"
        )
    return norms


SHAPES = {
    "constant": lambda n: np.ones(n),
    "inverse sqrt": lambda n: 1 / np.sqrt(np.arange(1, n + 1)),
    "cosine": lambda n: (1 + np.cos(np.pi * np.linspace(0, 1, n + 1)[:-1])) / 2,
    "linear": lambda n: linear_decay(n + 1)[:-1],
}
"""{name: f(n)}: the learning rates of n updates, peak 1; what the paper compares."""


@dataclass(frozen=True)
class LastIterate:
    """What `logistic_sgd` measured: for each run the logistic loss on all samples after the last update, and ||g_t||."""

    loss: np.ndarray  # (runs,)
    norms: np.ndarray  # (runs, updates)


def logistic_sgd(
    schedule, lr: float, *, runs=1, seed=0, samples=200, features=50, batch=4, flips=0.1, name="logistic"
) -> LastIterate:
    """Logistic regression by SGD from 0, all runs at once, with learning rates lr times `schedule`.

    schedule: (updates,), or (runs, updates) for one of its own for each run. Each run has its own data (inputs N(0,1),
    labels of a random direction, a fraction `flips` of them turned over) and its own batches, drawn with replacement
    from `stream(seed, name, run)`: run k does not depend on the number of runs or on the schedule.
    Raises ValueError for a schedule that is not finite and non-negative, sizes below 1, flips outside [0, 0.5].
    """
    for what, size in (("runs", runs), ("samples", samples), ("features", features), ("batch", batch)):
        count(what, size)
    schedule = finite("schedule", np.atleast_2d(np.asarray(schedule, dtype=float)))
    if schedule.ndim != 2 or len(schedule) not in (1, runs) or schedule.size == 0 or schedule.min() < 0:
        raise ValueError(f"schedule must be (updates,) or ({runs}, updates) and non-negative, got {schedule.shape}")
    positive("lr", lr)
    if not 0 <= flips <= 0.5:
        raise ValueError(f"flips must lie in [0, 0.5], got {flips}")
    updates = schedule.shape[1]
    tasks = [_task(stream(seed, name, k), samples, features, flips, updates, batch) for k in range(runs)]
    z, picks = map(np.stack, zip(*tasks, strict=True))
    rows = np.arange(runs)[:, None]
    theta = np.zeros((runs, features))
    norms = np.empty((runs, updates))
    for t in range(updates):
        chosen = z[rows, picks[:, t]]  # (runs, batch, features)
        g = -np.einsum("rb,rbf->rf", _sigmoid(-np.einsum("rbf,rf->rb", chosen, theta)), chosen) / batch
        norms[:, t] = np.linalg.norm(g, axis=1)
        theta -= lr * schedule[:, t, None] * g
    return LastIterate(np.logaddexp(0, -np.einsum("rnf,rf->rn", z, theta)).mean(1), norms)


def _task(draws, samples, features, flips, updates, batch):
    """Inputs times labels (samples, features), and the samples of each batch (updates, batch)."""
    x, direction = draws.normal(size=(samples, features)), draws.normal(size=features)
    y = np.sign(x @ direction) * np.where(draws.random(samples) < flips, -1, 1)
    return x * y[:, None], draws.integers(samples, size=(updates, batch))


def _sigmoid(x):
    return np.exp(-np.logaddexp(0, -x))  # accurate in both tails: a fitted sample's gradient is small, never 0
