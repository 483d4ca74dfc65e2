"""Claims about nets: widths and weight decay, spectral norms, large batches.

Thresholds are the paper's or the law's; 0, no difference, where the sentence has no number; 10 % around an equality.
The samples import torch when they run: a list of claims is made without it.
"""

from functools import cache

import numpy as np

from normkit.ledger import claim
from normkit.rates.claims_theory import BAND, exponent
from normkit.rng import stream

WIDTH = {"paper": "Layerwise weight decay", "arxiv": "2510.15262"}
SPECTRAL = {"paper": "Spectral condition", "arxiv": "2310.17813"}
MUONPP = {"paper": "Muon++", "arxiv": "2601.01306"}
LONGER = {"paper": "Train longer", "arxiv": "1705.08741"}

# ---- widths ---------------------------------------------------------------------------------------------------------

WIDTHS = (24, 48, 96)
NOISES = (0.2, 0.8)  # shares of labels that are drawn anew for every batch
BY_NOISE = tuple(f"{noise:.0%} noisy labels" for noise in NOISES)


@cache
def settled(width, seed, noise, lr=0.02, decay=0.5, rule="sqrt", base=WIDTHS[0]):
    """A net trained by AdamW until its matrices have forgotten their start; lr and decay are those at width `base`."""
    from normkit.rates.width import steady_state

    return steady_state(width, lr=lr, weight_decay=decay, rule=rule, base_width=base, noise=noise, seed=seed)


def by_width(values):
    """Least-squares p of values ~ width^p over WIDTHS."""
    return exponent(values, WIDTHS)


@claim(
    **WIDTH,
    id="spectrum-follows-lr-over-decay",
    statement="Under AdamW the top singular value of a matrix scales as the square root of lr over weight decay",
    regimes=tuple(f"{what} varied, {noise}" for noise in BY_NOISE for what in ("decay", "lr")),
    statistic="exponent of the top singular value in lr/decay, over a factor 4, at width 48",
    direction="within",
    threshold=(0.45, 0.55),
    seeds=5,
    budget_s=40,
)
def spectrum_ratio(seed):
    settings = {"decay": ((0.02, 0.25), (0.02, 0.5), (0.02, 1.0)), "lr": ((0.01, 0.5), (0.02, 0.5), (0.04, 0.5))}
    return [
        exponent([settled(48, seed, noise, *s, base=48).top for s in grid], [lr / decay for lr, decay in grid])
        for noise in NOISES
        for grid in settings.values()
    ]


@claim(
    **WIDTH,
    id="top-singular-value-width-exponent",
    statement="At a given lr over weight decay the top singular value scales with the width to the power 0.75",
    regimes=BY_NOISE,
    statistic="exponent of top singular value / sqrt(lr/decay) over widths 24 to 96",
    direction="within",
    threshold=(0.675, 0.825),
    seeds=5,
    budget_s=30,
)
def top_exponent(seed):
    unit = [d**-0.75 for d in WIDTHS]  # sqrt(lr/decay) at lr ~ 1/d and decay ~ sqrt(d), up to a factor
    return [by_width([settled(d, seed, noise).top / u for d, u in zip(WIDTHS, unit, strict=True)]) for noise in NOISES]


@claim(
    **WIDTH,
    id="sqrt-decay-keeps-gain",
    statement="With lr ~ 1/width, a weight decay ~ sqrt(width) keeps the gain of a sublayer the same at all widths",
    regimes=BY_NOISE,
    statistic="exponent of the sublayer's gain over widths 24 to 96",
    direction="within",
    threshold=(-0.1, 0.1),
    seeds=5,
    budget_s=30,
)
def sqrt_keeps_gain(seed):
    return [by_width([settled(d, seed, noise).gain for d in WIDTHS]) for noise in NOISES]


@claim(
    **WIDTH,
    id="sqrt-decay-flatter-than-constant",
    statement="A weight decay ~ sqrt(width) holds the gain of a sublayer better than one that ignores the width",
    regimes=BY_NOISE,
    statistic="size of the gain's exponent over widths, decay ~ sqrt(width) minus constant decay",
    direction="<",
    threshold=0.0,
    seeds=5,
    budget_s=60,
)
def sqrt_flatter(seed):
    return [
        abs(by_width([settled(d, seed, noise).gain for d in WIDTHS]))
        - abs(by_width([settled(d, seed, noise, rule="constant").gain for d in WIDTHS]))
        for noise in NOISES
    ]


# ---- spectral norms -------------------------------------------------------------------------------------------------

LONG = 300  # updates


@cache
def walked(kind, width, seed, decay=0.0, steps=LONG):
    """(||w||_2 / sqrt(n_out/n_in) after half of the updates and after all, RMS change of the branch's output).

    One sublayer whose matrices start at muP's norm and learn digits, embedding and head fixed; "muon" is MuonPP at
    0.02, "adam" is AdamW at 0.005, the same at every width. Norms: geometric mean of the two matrices.
    """
    import torch

    from normkit.rates.muon import MuonPP
    from normkit.rates.spectral import spectral_norm, to_mup_norm
    from normkit.rates.training import data
    from normkit.rates.width import Sublayer

    model, (x, y, *_) = Sublayer(width, seed), data()
    matrices = [model.w1.weight, model.w2.weight]
    with torch.no_grad():
        for w in matrices:
            w.copy_(to_mup_norm(w))
        before = model.branch(model.embed(x))
    make = {
        "muon": lambda: MuonPP(matrices, lr=0.02, weight_decay=decay),
        "adam": lambda: torch.optim.AdamW(matrices, lr=0.005, weight_decay=decay),
    }
    optimizer, norms = make[kind](), []
    for step, picks in enumerate(stream(seed, "walked").integers(len(x), size=(steps, 64))):
        loss = torch.nn.functional.cross_entropy(model(x[picks]), y[picks])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step + 1 in (max(steps // 2, 1), steps):
            norms.append(np.mean([np.log(spectral_norm(w.detach()).item()) for w in matrices]))
    with torch.no_grad():
        return (
            np.exp(norms[0]),
            np.exp(norms[-1]),
            (model.branch(model.embed(x)) - before).square().mean().sqrt().item(),
        )


@claim(
    **SPECTRAL,
    id="spectral-condition-width-free-features",
    statement="With weights and updates of spectral norm ~ sqrt(n_out/n_in), features move by an amount that knows no width",
    regimes=("1 update", "10 updates"),
    statistic="exponent of the RMS change of a sublayer's output over widths 24 to 96, MuonPP",
    direction="within",
    threshold=(-0.1, 0.1),
    seeds=8,
    budget_s=10,
)
def width_free_features(seed):
    return [by_width([walked("muon", d, seed, steps=n)[2] for d in WIDTHS]) for n in (1, 10)]


@claim(
    **SPECTRAL,
    id="adam-features-grow-with-width",
    statement="With Adam at one lr for all widths, updates violate the condition and features move more in wider nets",
    regimes=("1 update", "10 updates"),
    statistic="exponent of the RMS change of a sublayer's output over widths 24 to 96, Adam",
    direction=">",
    threshold=0.0,
    seeds=8,
    budget_s=10,
)
def adam_features(seed):
    return [by_width([walked("adam", d, seed, steps=n)[2] for d in WIDTHS]) for n in (1, 10)]


@claim(
    **MUONPP,
    id="update-control-keeps-weight-norms",
    statement="Control of the updates' spectral norms alone keeps the weights' at sqrt(n_out/n_in) at every width",
    regimes=("no decay", "decay 1"),
    statistic=f"exponent of the weights' spectral norm over widths 24 to 96 after {LONG} updates",
    direction="within",
    threshold=(-0.1, 0.1),
    seeds=5,
    budget_s=60,
)
def update_control(seed):
    return [by_width([walked("muon", d, seed, decay)[1] for d in WIDTHS]) for decay in (0.0, 1.0)]


@claim(
    **MUONPP,
    id="weight-norms-stay-bounded",
    statement="Under control of the updates alone the weights' spectral norms stay bounded through a long training",
    regimes=("no decay", "decay 1"),
    statistic=f"log of the growth of the spectral norm from {LONG // 2} to {LONG} updates, width 48",
    direction="<",
    threshold=BAND[1],
    seeds=5,
    budget_s=30,
)
def norms_bounded(seed):
    found = [walked("muon", 48, seed, decay) for decay in (0.0, 1.0)]
    return [np.log(end / middle) for middle, end, _ in found]


# ---- large batches --------------------------------------------------------------------------------------------------

SMALL, LARGE, EPOCHS = 50, 600, 40  # of 1200 images: 24 and 2 updates an epoch
RATE = 0.02  # of the small batch
WRONG = (0.0, 0.2)  # shares of training labels that are drawn anew, once
BY_WRONG = ("clean labels", "20% noisy labels")
ARMS = {  # batch, updates, learning rate, ghosts
    "small": (SMALL, 24 * EPOCHS, RATE, None),
    "large": (LARGE, 2 * EPOCHS, RATE, None),
    "large, sqrt lr": (LARGE, 2 * EPOCHS, RATE * (LARGE / SMALL) ** 0.5, None),
    "large, sqrt lr, ghosts": (LARGE, 2 * EPOCHS, RATE * (LARGE / SMALL) ** 0.5, SMALL),
    "large, sqrt lr, ghosts, all updates": (LARGE, 24 * EPOCHS, RATE * (LARGE / SMALL) ** 0.5, SMALL),
}
ALL = "large, sqrt lr, ghosts, all updates"


@cache
def fitted(arm, noise, seed):
    """One training of an arm; the learning rate is cut tenfold after 60 % and 80 % of its updates."""
    from normkit.rates.longer import train

    batch, updates, lr, ghost = ARMS[arm]
    return train(batch, updates=updates, lr=lr, ghost=ghost, noise=noise, seed=seed)


def error_gap(arm, other, noise, seed):
    """Test error of an arm minus that of the other, in percent of the test images."""
    return 100 * (fitted(arm, noise, seed).test_error - fitted(other, noise, seed).test_error)


def walk(arm, noise, seed):
    """(updates, distance from the start) while the learning rate is high."""
    run = fitted(arm, noise, seed)
    high = run.t <= run.drop
    return run.t[high], run.distance[high]


@claim(
    **LONGER,
    id="large-batches-generalize-worse",
    statement="Trained for the same epochs at the same learning rate, a large batch generalizes worse than a small one",
    regimes=BY_WRONG,
    statistic="test error in percent, batch 600 minus batch 50",
    direction=">",
    threshold=0.0,
    seeds=6,
    budget_s=30,
)
def large_batch_gap(seed):
    return [error_gap("large", "small", noise, seed) for noise in WRONG]


@claim(
    **LONGER,
    id="distance-grows-as-log-time",
    statement="While the learning rate is high, the distance from the start grows as the logarithm of the updates",
    regimes=tuple(f"{arm} batch, {noise}" for noise in BY_WRONG for arm in ("small", "large")),
    statistic="log misfit ratio, logarithm over power law, both with two free numbers, as many updates in either arm",
    direction="<",
    threshold=0.0,
    seeds=6,
    budget_s=60,
)
def log_time(seed):
    from normkit.rates.longer import log_time_fit

    fits = [log_time_fit(*walk(arm, noise, seed)) for noise in WRONG for arm in ("small", ALL)]
    return [np.log(fit.misfit / fit.power_misfit) for fit in fits]


@claim(
    **LONGER,
    id="sqrt-lr-matches-diffusion",
    statement="A learning rate ~ sqrt(batch) makes the weights of a large batch wander as far as those of a small one",
    regimes=BY_WRONG,
    statistic="log ratio of the distances from the start at the first cut of the learning rate, batch 600 over 50",
    direction="within",
    threshold=BAND,
    seeds=6,
    budget_s=60,
)
def sqrt_lr_matches(seed):
    return [np.log(walk(ALL, noise, seed)[1][-1] / walk("small", noise, seed)[1][-1]) for noise in WRONG]


@claim(
    **LONGER,
    id="ghost-batch-norm-helps-large-batches",
    statement="Ghost Batch Normalization lowers the test error of a large batch",
    regimes=BY_WRONG,
    statistic="test error in percent at batch 600, ghosts of 50 minus none",
    direction="<",
    threshold=0.0,
    seeds=6,
    budget_s=30,
)
def ghosts_help(seed):
    return [error_gap("large, sqrt lr, ghosts", "large, sqrt lr", noise, seed) for noise in WRONG]


@claim(
    **LONGER,
    id="as-many-updates-close-the-gap",
    statement="With as many updates as the small batch (and its ghosts, and sqrt-scaled lr) a large batch does as well",
    regimes=BY_WRONG,
    statistic="log ratio of the test errors, batch 600 over batch 50, one error added to both",
    direction="<",
    threshold=BAND[1],
    seeds=6,
    budget_s=60,
)
def updates_close_gap(seed):
    one = 1 / 597  # an arm may have none
    return [
        np.log((fitted(ALL, f, seed).test_error + one) / (fitted("small", f, seed).test_error + one)) for f in WRONG
    ]
