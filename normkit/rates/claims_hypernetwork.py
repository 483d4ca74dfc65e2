"""Claims about hypernetworks: how large the predicted weights are, and how fast they learn, on the toy of waves.

Thresholds: 0, no difference, where the sentence has no number; 10 % around an equality.
"""

from functools import cache

import numpy as np

from normkit.ledger import claim

MIP = {"paper": "Magnitude Invariant Parametrizations", "arxiv": "2304.07645"}

WHEN = {"at initialization": 0, "after 400 steps": 400}


@cache
def toy_run(encoded, residual, lr, seed):
    from normkit.rates.hypernetwork import train_toy

    return train_toy(encode=encoded, residual=residual, lr=lr, seed=seed)


def magnitude_exponent(model):
    """p of std(predicted weights) ~ z^p for z from 0.1 to 1: 1 if proportional, 0 if independent of the input."""
    import torch

    z = np.geomspace(0.1, 1, 9)
    with torch.no_grad():
        weights = model.predict(torch.from_numpy(z[:, None]).float())
    deviation = torch.cat([w.flatten(1) for w in weights.values()], 1).std(1).numpy()
    return np.polyfit(np.log(z), np.log(deviation), 1)[0]


def exponents(mip, seed):
    from normkit.rates.hypernetwork import Hypernetwork, toy_target

    fresh = Hypernetwork(toy_target(seed), encode=mip, residual=mip, seed=seed)
    return [magnitude_exponent(fresh), magnitude_exponent(toy_run(mip, mip, 1e-3, seed).model)]


@claim(
    **MIP,
    id="hypernetwork-proportional-to-input",
    statement="The weights that a plain hypernetwork predicts are proportional to the magnitude of its input",
    regimes=tuple(WHEN),
    statistic="exponent of the predicted weights' standard deviation in the input, from 0.1 to 1",
    direction="within",
    threshold=(0.9, 1.1),
    seeds=8,
    budget_s=10,
)
def plain_proportional(seed):
    return exponents(False, seed)


@claim(
    **MIP,
    id="mip-removes-proportionality",
    statement="With MIP the magnitude of the predicted weights does not depend on the input's",
    regimes=tuple(WHEN),
    statistic="exponent of the predicted weights' standard deviation in the input, from 0.1 to 1",
    direction="within",
    threshold=(-0.1, 0.1),
    seeds=8,
    budget_s=10,
)
def mip_invariant(seed):
    return exponents(True, seed)


@claim(
    **MIP,
    id="mip-trains-faster",
    statement="A hypernetwork with MIP trains faster than a plain one",
    regimes=("lr 0.001", "lr 0.01"),
    statistic="log ratio of the training loss averaged over 400 steps, MIP over plain",
    direction="<",
    threshold=0.0,
    seeds=8,
    budget_s=15,
)
def mip_faster(seed):
    runs = [[toy_run(mip, mip, lr, seed) for mip in (True, False)] for lr in (1e-3, 1e-2)]
    return [np.log(np.mean(mip.losses) / np.mean(plain.losses)) for mip, plain in runs]


@claim(
    **MIP,
    id="each-half-of-mip-helps",
    statement="The encoding alone and the base weights alone already end at a lower loss than a plain hypernetwork",
    regimes=tuple(f"{half}, lr {lr:g}" for lr in (1e-3, 1e-2) for half in ("encoding", "base weights")),
    statistic="log ratio of the loss after 400 steps, one half of MIP over plain",
    direction="<",
    threshold=0.0,
    seeds=8,
    budget_s=15,
)
def halves_help(seed):
    halves = ((True, False), (False, True))
    return [
        np.log(toy_run(*half, lr, seed).loss / toy_run(False, False, lr, seed).loss)
        for lr in (1e-3, 1e-2)
        for half in halves
    ]
