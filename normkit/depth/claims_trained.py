"""Claims about trained networks. Every run of the small transformer is shared by the claims that look at it.

The samples import torch when they run: a list of claims is made without it.
"""

from functools import cache

import numpy as np

from normkit.depth.claims_init import CURSE, LAYERS, MIX, PERI, exponential_over_power, growth_exponent, profile, thirds
from normkit.ledger import claim

LOW, MIDDLE, HIGH = 1e-3, 4e-3, 1.6e-2  # learning rates of Adam
BLOCKS, STEPS = 8, 200
SEEDS = 5


@cache
def trained(placement, lr, seed):
    """(mean loss over the last tenth of training, stream variance (layers+1,) after it): copy task, 8 blocks.

    A run that diverges counts as chance, log 16; then there is no variance, and a claim about it is an error.
    """
    from normkit.depth.training import train

    reports = list(train(placement, lr=lr, layers=BLOCKS, steps=STEPS, seed=seed, every=5))
    if reports[-1]["diverged"]:
        return np.log(16), np.full(BLOCKS + 1, np.nan)
    return np.mean([r["loss"] for r in reports if r["step"] > 0.9 * STEPS]), reports[-1]["variance"]


def log_ratio(placement, other, lr, seed):
    """log of the last block's variance, `placement` over `other`, after training from the same seed."""
    return np.log(trained(placement, lr, seed)[1][-1] / trained(other, lr, seed)[1][-1])


@claim(
    **PERI,
    id="peri-ln-lower-variance",
    statement="Peri-LN keeps the variance of the stream below that of Pre-LN",
    regimes=("at initialization", f"trained, lr {LOW:g}", f"trained, lr {HIGH:g}"),
    statistic="log variance ratio at the last layer, Peri-LN over Pre-LN",
    direction="<",
    threshold=0.0,
    seeds=SEEDS,
    budget_s=120,
)
def peri_below_pre(seed):
    start = np.log(profile("peri", "mlp", seed)[0][LAYERS] / profile("pre", "mlp", seed)[0][LAYERS])
    return [start, *(log_ratio("peri", "pre", lr, seed) for lr in (LOW, HIGH))]


@claim(
    **PERI,
    id="peri-ln-linear-variance-trained",
    statement="With Peri-LN the stream's variance grows linearly with depth (here: after training)",
    regimes=(f"lr {LOW:g}", f"lr {HIGH:g}"),
    statistic="exponent of variance growth over the deep half of 8 blocks",
    direction="within",
    threshold=(0.9, 1.1),
    seeds=SEEDS,
    budget_s=60,
)
def peri_linear_trained(seed):
    return [growth_exponent(trained("peri", lr, seed)[1]) for lr in (LOW, HIGH)]


@claim(
    **CURSE,
    id="pre-ln-exponential-variance-trained",
    statement="With Pre-LN the stream's variance grows exponentially with depth (here: after training)",
    regimes=(f"lr {LOW:g}", f"lr {MIDDLE:g}", f"lr {HIGH:g}"),
    statistic="log misfit ratio, power law over exponential, blocks 1 to 8",
    direction=">",
    threshold=0.0,
    seeds=SEEDS,
    budget_s=90,
)
def pre_exponential_trained(seed):
    return [exponential_over_power(trained("pre", lr, seed)[1]) for lr in (LOW, MIDDLE, HIGH)]


@claim(
    **CURSE,
    id="lns-mitigates-variance-trained",
    statement="LayerNorm Scaling holds the output variance below that of Pre-LN (here: after training)",
    regimes=(f"lr {LOW:g}", f"lr {MIDDLE:g}"),
    statistic="log variance ratio at the last block, LayerNorm Scaling over Pre-LN",
    direction="<",
    threshold=0.0,
    seeds=SEEDS,
    budget_s=90,
)
def lns_below_pre_trained(seed):
    return [log_ratio("layernorm_scaling", "pre", lr, seed) for lr in (LOW, MIDDLE)]


@claim(
    **CURSE,
    id="lns-deep-blocks-contribute-trained",
    statement="With LayerNorm Scaling deep blocks change the stream more than with Pre-LN (here: after training)",
    regimes=(f"lr {LOW:g}", f"lr {MIDDLE:g}"),
    statistic="growth of log variance over the last 3 of 8 blocks, LayerNorm Scaling minus Pre-LN",
    direction=">",
    threshold=0.0,
    seeds=SEEDS,
    budget_s=90,
)
def lns_deep_contribute_trained(seed):
    growth = [[thirds(trained(p, lr, seed)[1])[2] for p in ("layernorm_scaling", "pre")] for lr in (LOW, MIDDLE)]
    return [scaled - plain for scaled, plain in growth]


@claim(
    **CURSE,
    id="lns-lower-loss",
    statement="LayerNorm Scaling trains to a lower loss than Pre-LN",
    regimes=(f"lr {LOW:g}", f"lr {MIDDLE:g}"),
    statistic="log loss ratio after 200 steps on the copy task, LayerNorm Scaling over Pre-LN",
    direction="<",
    threshold=0.0,
    seeds=SEEDS,
    budget_s=90,
)
def lns_lower_loss(seed):
    return [np.log(trained("layernorm_scaling", lr, seed)[0] / trained("pre", lr, seed)[0]) for lr in (LOW, MIDDLE)]


@claim(
    **MIX,
    id="mix-ln-lower-loss",
    statement="Mix-LN trains to a lower loss than Pre-LN and than Post-LN",
    regimes=tuple(f"vs {other}, lr {lr:g}" for lr in (LOW, MIDDLE) for other in ("pre", "post")),
    statistic="log loss ratio after 200 steps on the copy task, Mix-LN over the other",
    direction="<",
    threshold=0.0,
    seeds=SEEDS,
    budget_s=150,
)
def mix_lower_loss(seed):
    pairs = [(lr, other) for lr in (LOW, MIDDLE) for other in ("pre", "post")]
    return [np.log(trained("mix", lr, seed)[0] / trained(other, lr, seed)[0]) for lr, other in pairs]
