"""Claims about Ghosts of Softmax: losses after steps of r radii, and training through a learning rate spike.

"Fails" is the released experiments' own mark: a loss twice that before the step. Fixed beforehand: 600 digits, 30 steps of
training, 16 random directions; spikes of one step at step 50 of 150.
"""

from functools import cache

import numpy as np

from normkit.ledger import claim

GHOSTS = {"paper": "Ghosts of Softmax", "arxiv": "2603.13552"}
STEPS = tuple((model, along) for along in ("random", "gradient") for model in ("linear", "mlp"))
STEP_NAMES = tuple(f"{model}, {along} direction" for model, along in STEPS)
RATIOS = (0.9, 4.0)
SPIKES = ((1e-3, 1e3), (1e-3, 1e4), (1e-2, 1e3), (1e-2, 1e4))
SPIKE_NAMES = tuple(f"lr {lr:g}, spike x{factor:g}" for lr, factor in SPIKES)
GRID, TEMPERATURES = np.geomspace(0.05, 500, 41), (0.25, 1.0, 4.0)


@cache
def after_steps(model, along, seed):
    """log of loss ratios (directions, ratios) after steps of RATIOS."""
    from normkit.attention.ghost_steps import step_losses, toy

    found = step_losses(*toy(model, seed=seed), RATIOS, along=along, seed=seed)
    return np.log(found.loss_ratio.double().numpy())


@cache
def onset(model, steps, temperature, seed):
    """(r, tau) at which the median loss over 8 random directions first reaches twice its start; interpolated in the logs."""
    from normkit.attention.ghost_steps import step_losses, toy

    found = step_losses(*toy(model, seed=seed, steps=steps, temperature=temperature), GRID, directions=8, seed=seed)
    excess = np.log(found.loss_ratio.double().numpy()) - np.log(2)
    r = np.exp(np.median([crossing(row) for row in excess]))
    tau = np.exp(
        np.median([crossing(row) + np.log(rho) for row, rho in zip(excess, found.radius.numpy(), strict=True)])
    )
    return r, tau


def crossing(excess):
    """log r where `excess`, on GRID, first rises through 0."""
    above = np.flatnonzero(excess > 0)
    if len(above) == 0 or above[0] == 0:
        raise ValueError("the loss does not double within the grid of steps")
    i = above[0]
    share = -excess[i - 1] / (excess[i] - excess[i - 1])
    return np.log(GRID[i - 1]) + share * np.log(GRID[i] / GRID[i - 1])


@cache
def accuracies(arm, lr, factor, seed):
    """Held-out accuracy before the spike, the lowest in the 10 steps after it, and at the end."""
    from normkit.attention.ghost_steps import spike

    reports = list(spike(arm, seed=seed, lr=lr, factor=factor, start=50))
    before = next(r["accuracy"] for r in reports if r["step"] == 50)
    return before, min(r["accuracy"] for r in reports if 50 < r["step"] <= 60), reports[-1]["accuracy"]


@claim(
    **GHOSTS,
    id="steps-within-the-radius-are-safe",
    statement="No step shorter than the radius of convergence makes a model fail",
    regimes=STEP_NAMES,
    statistic="log loss ratio after a step of r = 0.9, the worst direction",
    direction="<",
    threshold=float(np.log(2)),
    seeds=12,
    budget_s=15,
)
def safe(seed):
    return [after_steps(*setting, seed)[:, 0].max() for setting in STEPS]


@claim(
    **GHOSTS,
    id="steps-beyond-the-radius-fail",
    statement="Beyond the radius of convergence steps fail: the loss more than doubles",
    regimes=STEP_NAMES,
    statistic="log loss ratio after a step of r = 4, median over the directions",
    direction=">",
    threshold=float(np.log(2)),
    seeds=12,
    budget_s=15,
)
def fails(seed):
    return [np.median(after_steps(*setting, seed)[:, 1]) for setting in STEPS]


@claim(
    **GHOSTS,
    id="radius-aligns-onsets",
    statement="In units of the radius, losses double at more equal steps than in units of the weights",
    regimes=("linear, temperatures 1/4 to 4", "mlp, temperatures 1/4 to 4", "both models, before and after training"),
    statistic="log ratio of the standard deviations of the log onset, r over step length",
    direction="<",
    threshold=0.0,
    seeds=8,
    budget_s=20,
)
def aligned(seed):
    groups = [[(model, 30, t) for t in TEMPERATURES] for model in ("linear", "mlp")]
    groups.append([(model, steps, 1.0) for model in ("linear", "mlp") for steps in (0, 30)])
    found = [np.log([onset(*member, seed) for member in group]).std(0) for group in groups]
    return [float(np.log(r / tau)) for r, tau in found]


@claim(
    **GHOSTS,
    id="controller-survives-spikes",
    statement="A controller that keeps steps within the radius survives learning rate spikes of up to 10,000 times",
    regimes=SPIKE_NAMES,
    statistic="log accuracy ratio, lowest within 10 steps after the spike over before it",
    direction=">",
    threshold=float(np.log(0.9)),
    seeds=8,
    budget_s=15,
)
def survives(seed):
    runs = [accuracies("radius", *setting, seed) for setting in SPIKES]
    return [float(np.log(low / before)) for before, low, _ in runs]


@claim(
    **GHOSTS,
    id="clipping-does-not-survive-spikes",
    statement="With gradient clipping the same spikes still collapse the model: it loses half of its accuracy",
    regimes=SPIKE_NAMES,
    statistic="log accuracy ratio, lowest within 10 steps after the spike over before it",
    direction="<",
    threshold=float(np.log(0.5)),
    seeds=8,
    budget_s=15,
)
def clipped(seed):
    runs = [accuracies("clip", *setting, seed) for setting in SPIKES]
    return [float(np.log(low / before)) for before, low, _ in runs]


@claim(
    **GHOSTS,
    id="controller-ends-above-clipping",
    statement="After a learning rate spike, training under the controller ends above training under clipping",
    regimes=SPIKE_NAMES,
    statistic="held-out accuracy at the end, controller minus clipping",
    direction=">",
    threshold=0.0,
    seeds=8,
    budget_s=15,
)
def above_clipping(seed):
    return [accuracies("radius", *s, seed)[2] - accuracies("clip", *s, seed)[2] for s in SPIKES]
