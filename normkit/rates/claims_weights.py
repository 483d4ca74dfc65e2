"""Claims about optimizers and weights that know of scale invariance, on digits; step counts fixed beforehand.

Papers: AdamP, Weight Standardization, Weight Compander. Thresholds are the paper's
numbers; 0, no difference, where the sentence has none; 10 % around an equality.
"""

from functools import cache
from types import SimpleNamespace

import numpy as np

from normkit.ledger import claim
from normkit.rng import stream

ADAMP = {"paper": "AdamP", "arxiv": "2006.08217"}
WS = {"paper": "Weight Standardization", "arxiv": "1903.10520"}
WC = {"paper": "Weight Compander", "arxiv": "2306.16993"}

BETA = 0.9  # momentum, and Adam's beta1
HIDDEN = ("hidden.0", "hidden.1")


def fit(net, optimizer, seed, steps, batch=64, labels=None):
    """Train in place; loss: mean training cross-entropy over all steps, test: at the end on held-out digits (nats).

    growth: what the steps added to the squared norm of the hidden matrices; moved: the sum of their squared lengths.
    labels: those of the first training images, which are then the only ones.
    """
    import torch
    from torch.nn.functional import cross_entropy

    from normkit.rates.training import data

    x, y, test_x, test_y = data()
    y = y if labels is None else labels
    hidden = [p for name, p in net.named_parameters() if name.startswith(HIDDEN) and p.ndim > 1]
    losses, moved = [], 0.0
    start = sum(p.detach().square().sum().item() for p in hidden)
    net.train()
    for picks in stream(seed, "weights batches", steps).integers(len(y), size=(steps, batch)):
        loss = cross_entropy(net(x[picks]), y[picks])
        optimizer.zero_grad()
        loss.backward()
        before = [p.detach().clone() for p in hidden]
        optimizer.step()
        moved += sum((p.detach() - b).square().sum().item() for p, b in zip(hidden, before, strict=True))
        losses.append(loss.item())
    net.eval()
    with torch.no_grad():
        test = cross_entropy(net(test_x), test_y).item()
    growth = sum(p.detach().square().sum().item() for p in hidden) - start
    return SimpleNamespace(loss=np.mean(losses), test=test, growth=growth, moved=moved)


# ---- AdamP and SGDP ---------------------------------------------------------------------------------------------------


@cache
def layernorm_run(optimizer, lr, seed):
    """300 steps of an MLP of width 64 whose two hidden matrices each feed a LayerNorm, at a constant rate."""
    from normkit.rates.training import OPTIMIZERS, Net

    net = Net("layernorm", seed=seed)
    return fit(net, OPTIMIZERS[optimizer](net.parameters(), lr=lr, weight_decay=0.0), seed, 300)


@claim(
    **ADAMP,
    id="momentum-lengthens-weights",
    statement="With momentum 0.9 scale-invariant weights grow faster than with plain SGD at the same learning rate",
    regimes=("lr 0.01", "lr 0.1", "lr 0.5"),
    statistic="log ratio of the growth of the squared norm over 300 steps, momentum over SGD",
    direction=">",
    threshold=0.0,
    seeds=8,
    budget_s=15,
)
def momentum_lengthens(seed):
    runs = [[layernorm_run(name, lr, seed) for name in ("momentum", "sgd")] for lr in (0.01, 0.1, 0.5)]
    return [np.log(momentum.growth / sgd.growth) for momentum, sgd in runs]


@claim(
    **ADAMP,
    id="momentum-growth-factor-19",
    statement="For steps of equal length momentum 0.9 lets the squared norm grow 1 + 2 beta / (1 - beta) = 19 times faster",
    regimes=("lr 0.01", "lr 0.1", "lr 0.5"),
    statistic="growth of the squared norm over the sum of squared step lengths (SGD: 1), 300 steps",
    direction="within",
    threshold=(17.1, 20.9),
    seeds=8,
    budget_s=10,
)
def momentum_factor(seed):
    runs = [layernorm_run("momentum", lr, seed) for lr in (0.01, 0.1, 0.5)]
    return [run.growth / run.moved for run in runs]


PAIRS = (("sgdp", "momentum", 0.03), ("sgdp", "momentum", 0.3), ("adamp", "adam", 1e-3), ("adamp", "adam", 1e-2))
PAIR_NAMES = ("SGDP, lr 0.03", "SGDP, lr 0.3", "AdamP, lr 0.001", "AdamP, lr 0.01")


def pairs(seed, value):
    """log of value(projected run) over value(its parent's run), for PAIRS."""
    return [np.log(value(layernorm_run(p, lr, seed)) / value(layernorm_run(q, lr, seed))) for p, q, lr in PAIRS]


@claim(
    **ADAMP,
    id="projection-slows-norm-growth",
    statement="SGDP and AdamP let scale-invariant weights grow more slowly than momentum SGD and Adam",
    regimes=PAIR_NAMES,
    statistic="log ratio of the growth of the squared norm over 300 steps, with over without projection",
    direction="<",
    threshold=0.0,
    seeds=8,
    budget_s=15,
)
def projection_slows(seed):
    return pairs(seed, lambda run: run.growth)


@claim(
    **ADAMP,
    id="projection-lowers-test-loss",
    statement="SGDP and AdamP end at a lower test loss than momentum SGD and Adam (here: one task, constant rate)",
    regimes=PAIR_NAMES,
    statistic="log ratio of the test loss after 300 steps, with over without projection",
    direction="<",
    threshold=0.0,
    seeds=8,
    budget_s=15,
)
def projection_helps(seed):
    return pairs(seed, lambda run: run.test)


# ---- Weight Standardization -------------------------------------------------------------------------------------------


def group_net(seed, standardized):
    """The MLP with GroupNorm (8 groups of 8), with or without Weight Standardization of its hidden matrices."""
    from torch import nn

    from normkit.rates.training import Net
    from normkit.rates.weights import standardize_weights

    net = Net("layernorm", seed=seed)
    net.norms = nn.ModuleList(nn.GroupNorm(8, 64) for _ in HIDDEN)
    if standardized:
        standardize_weights(net, HIDDEN)
    return net


def make_net(kind, seed):
    """The MLP with "bn", "gn" or "ws+gn"."""
    from torch import nn

    from normkit.rates.training import Net

    if kind != "bn":
        return group_net(seed, kind == "ws+gn")
    net = Net("batchnorm", seed=seed)
    net.norms = nn.ModuleList(nn.BatchNorm1d(64) for _ in HIDDEN)  # with torch's eps: a variance of 2 images can be 0
    return net


@cache
def micro_batch_run(kind, lr, batch, seed):
    """600 steps of momentum SGD; 600 images of batch 1, say, are half an epoch."""
    import torch

    net = make_net(kind, seed)
    return fit(net, torch.optim.SGD(net.parameters(), lr=lr, momentum=BETA), seed, 600, batch)


RATES, RATE_NAMES = (0.003, 0.03), ("lr 0.003", "lr 0.03")


@claim(
    **WS,
    id="bn-fails-in-micro-batches",
    statement="With two images a batch BatchNorm trains to a higher test loss than GroupNorm",
    regimes=RATE_NAMES,
    statistic="log ratio of the test loss after 600 steps of batch 2, BatchNorm over GroupNorm",
    direction=">",
    threshold=0.0,
    seeds=8,
    budget_s=15,
)
def bn_fails(seed):
    return [np.log(micro_batch_run("bn", r, 2, seed).test / micro_batch_run("gn", r, 2, seed).test) for r in RATES]


@claim(
    **WS,
    id="ws-helps-groupnorm",
    statement="In micro-batch training Weight Standardization lowers the test loss of a net with GroupNorm",
    regimes=tuple(f"batch {b}, {name}" for b in (1, 2) for name in RATE_NAMES),
    statistic="log ratio of the test loss after 600 steps, with over without Weight Standardization",
    direction="<",
    threshold=0.0,
    seeds=8,
    budget_s=20,
)
def ws_helps(seed):
    return [
        np.log(micro_batch_run("ws+gn", r, b, seed).test / micro_batch_run("gn", r, b, seed).test)
        for b in (1, 2)
        for r in RATES
    ]


def roughness(net):
    """|w| |grad| of the loss on all training digits, and |w|^2 |change of grad| / |d|, d = -0.1 |w| grad / |grad|.

    w: the hidden matrices together, as they learn. Relative to |w|, since only their directions count.
    """
    import torch
    from torch.nn.functional import cross_entropy

    from normkit.rates.training import data

    x, y, _, _ = data()
    hidden = [p for name, p in net.named_parameters() if name.startswith(HIDDEN) and p.ndim > 1]

    def gradient():
        return torch.cat([g.flatten() for g in torch.autograd.grad(cross_entropy(net(x), y), hidden)])

    size = torch.cat([p.detach().flatten() for p in hidden]).norm()
    g = gradient()
    step = -0.1 * size * g / g.norm()
    with torch.no_grad():
        for p, d in zip(hidden, step.split([p.numel() for p in hidden]), strict=True):
            p += d.reshape(p.shape)
    return (size * g.norm()).item(), (size**2 * (gradient() - g).norm() / step.norm()).item()


@cache
def group_roughness(standardized, steps, seed):
    import torch

    net = group_net(seed, standardized)
    if steps:
        fit(net, torch.optim.SGD(net.parameters(), lr=0.03, momentum=BETA), seed, steps)
    return roughness(net)


@claim(
    **WS,
    id="ws-smooths-the-loss",
    statement="Weight Standardization lowers the Lipschitz constants of the loss and of its gradient",
    regimes=tuple(
        f"{what}, {when}" for when in ("at initialization", "after 100 steps") for what in ("loss", "gradient")
    ),
    statistic="log ratio of the slope, relative to |w|, along a tenth of |w| down the gradient, with over without",
    direction="<",
    threshold=0.0,
    seeds=8,
    budget_s=10,
)
def ws_smooths(seed):
    return np.log([group_roughness(True, n, seed) for n in (0, 100)]).ravel() - (
        np.log([group_roughness(False, n, seed) for n in (0, 100)]).ravel()
    )


# ---- Weight Compander -------------------------------------------------------------------------------------------------

FEW, WRONG = 200, 40  # training images, and how many of them have a random label
COMPANDED = ((1e-3, 0.0), (1e-2, 0.0), (1e-2, 0.1))
COMPANDED_NAMES = ("lr 0.001", "lr 0.01", "lr 0.01, weight decay 0.1")


@cache
def overfitted_run(companded, lr, weight_decay, seed):
    """300 steps of AdamW on 200 digits with wrong labels, an MLP without norms; test loss, and the hidden weights."""
    import torch

    from normkit.rates.training import Net, data
    from normkit.rates.weights import compand_weights

    labels = data()[1][:FEW].clone()
    labels[:WRONG] = torch.from_numpy(stream(seed, "compander labels").integers(10, size=WRONG))
    net = Net("none", seed=seed)
    if companded:
        compand_weights(net)
    matrices, others = ([p for p in net.parameters() if (p.ndim > 1) == wanted] for wanted in (True, False))
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    test = fit(net, torch.optim.AdamW(groups, lr=lr), seed, 300, labels=labels).test
    return test, torch.cat([layer.weight.detach().flatten() for layer in net.hidden]).double().abs().numpy()


def off_zero(weights):
    """Share of |w| below a tenth of the root mean square: 0.08 for normal numbers, 0 for two opposite ones."""
    return np.mean(weights < 0.1 * np.sqrt(np.mean(weights**2)))


def companded(seed):
    """((test loss, |w|) without, (test loss, |w|) with the compander), for COMPANDED."""
    return [(overfitted_run(False, *options, seed), overfitted_run(True, *options, seed)) for options in COMPANDED]


@claim(
    **WC,
    id="compander-restricts-weights",
    statement="A compander (our function of the paper's kind) keeps the largest hidden weights of a trained net smaller",
    regimes=COMPANDED_NAMES,
    statistic="log ratio of the largest weight after 300 steps, with over without compander",
    direction="<",
    threshold=0.0,
    seeds=8,
    budget_s=20,
)
def compander_restricts(seed):
    return [np.log(new.max() / old.max()) for (_, old), (_, new) in companded(seed)]


@claim(
    **WC,
    id="compander-leaves-zero",
    statement="A compander (our function of the paper's kind) forces weights away from zero",
    regimes=COMPANDED_NAMES,
    statistic="share of weights below a tenth of their root mean square after 300 steps, with minus without compander",
    direction="<",
    threshold=0.0,
    seeds=8,
    budget_s=20,
)
def compander_leaves_zero(seed):
    return [off_zero(new) - off_zero(old) for (_, old), (_, new) in companded(seed)]


@claim(
    **WC,
    id="compander-overfits-less",
    statement="A compander (our function of the paper's kind) reduces overfitting, also on top of weight decay",
    regimes=COMPANDED_NAMES,
    statistic="log ratio of the test loss after 300 steps on 200 images, 20 % relabeled, with over without compander",
    direction="<",
    threshold=0.0,
    seeds=8,
    budget_s=20,
)
def compander_overfits_less(seed):
    return [np.log(new / old) for (old, _), (new, _) in companded(seed)]
