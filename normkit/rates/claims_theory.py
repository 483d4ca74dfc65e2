"""Claims about schedules and large steps, on convex problems.

Thresholds are the paper's or the law's; 0, no difference, where the sentence has no number; 10 % around an equality.
"""

from functools import cache

import numpy as np

from normkit.files import digits
from normkit.ledger import claim
from normkit.rates import schedules
from normkit.rates.perceptron import lr_gd, normalized_lr_gd, perceptron, worst_case
from normkit.rng import stream

REFINED = {"paper": "Refined schedules", "arxiv": "2310.07831"}
TYURIN = {"paper": "From LR to the perceptron", "arxiv": "2412.08424"}
BAND = (np.log(0.9), np.log(1.1))


def exponent(values, over):
    """Least-squares p of values ~ over^p."""
    x, y = np.log(over), np.log(values)
    return (x - x.mean()) @ y / ((x - x.mean()) ** 2).sum()


# ---- schedules ------------------------------------------------------------------------------------------------------

UPDATES = 400
FLIPS = (0.0, 0.1, 0.25)
BY_FLIPS = ("clean labels", "10% wrong", "25% wrong")
RATES = 2.0 ** np.arange(-5, 6)
TUNING = 16  # runs of their own on which each schedule's learning rate is chosen


@cache
def tuned(name, flips):
    """The best of RATES for that schedule, by the mean loss of the tuning runs."""
    options = {"runs": TUNING, "flips": flips, "name": "tuning"}
    shape = refined_from("tuning", flips, TUNING) if name == "refined" else schedules.SHAPES[name](UPDATES)
    return min(RATES, key=lambda lr: schedules.logistic_sgd(shape, lr, **options).loss.mean())


@cache
def refined_from(name, flips, runs=1, seed=0):
    """(runs, UPDATES): each run's refined schedule, from its gradient norms under linear decay at the tuned rate."""
    first = schedules.logistic_sgd(
        schedules.SHAPES["linear"](UPDATES), tuned("linear", flips), runs=runs, seed=seed, flips=flips, name=name
    )
    # the schedule's last value, 0, is for the last iterate, whose norm is not measured: take the step's before
    return np.stack([schedules.refined(np.append(g, g[-1]))[:-1] for g in first.norms])


@cache
def last_loss(name, flips, seed):
    """The loss of the last iterate with that schedule at its tuned rate."""
    shape = refined_from("logistic", flips, seed=seed) if name == "refined" else schedules.SHAPES[name](UPDATES)
    return schedules.logistic_sgd(shape, tuned(name, flips), seed=seed, flips=flips).loss[0]


@claim(
    **REFINED,
    id="linear-decay-best-last-iterate",
    statement="For the last iterate linear decay is better than constant, inverse square root and cosine schedules",
    regimes=tuple(f"vs {other}, {noise}" for noise in BY_FLIPS for other in ("constant", "inverse sqrt", "cosine")),
    statistic="log ratio of the last loss of logistic regression, linear decay over the other, each at its best rate",
    direction="<",
    threshold=0.0,
    seeds=40,
    budget_s=15,
)
def linear_best(seed):
    others = ("constant", "inverse sqrt", "cosine")
    return [np.log(last_loss("linear", f, seed) / last_loss(other, f, seed)) for f in FLIPS for other in others]


@claim(
    **REFINED,
    id="refined-improves-on-linear",
    statement="A schedule refined by the gradient norms of a first run improves on linear decay",
    regimes=BY_FLIPS,
    statistic="log ratio of the last loss of logistic regression, refined over linear decay, each at its best rate",
    direction="<",
    threshold=0.0,
    seeds=40,
    budget_s=15,
)
def refined_better(seed):
    return [np.log(last_loss("refined", f, seed) / last_loss("linear", f, seed)) for f in FLIPS]


@claim(
    **REFINED,
    id="refined-schedules-warm-up",
    statement="Refinement by gradient norms brings a warm-up: the refined schedule first rises",
    regimes=BY_FLIPS,
    statistic="log ratio of the refined schedule's means, first 5% of the updates over the next 5%",
    direction="<",
    threshold=0.0,
    seeds=40,
    budget_s=5,
)
def refined_warm_up(seed):
    n = UPDATES // 20
    found = [refined_from("logistic", f, seed=seed)[0] for f in FLIPS]
    return [np.log(eta[:n].mean() / eta[n : 2 * n].mean()) for eta in found]


# ---- large steps ----------------------------------------------------------------------------------------------------

PATIENCE = 3000  # updates after which a run that has not separated counts as done


@cache
def samples(kind, seed, n=200):
    """z (n, d) that can be separated: the paper's worst case with noise 0.05, Gaussian clouds, or two kinds of digits.

    The two digits are the seed's; they come 100 to 100, or as "imbalanced digits" 150 to 10.
    """
    draws = stream(seed, "samples", kind, n)
    if kind == "worst case":
        return worst_case(n, draws, 0.05)
    if kind == "gaussian":
        z = draws.normal(size=(n, 50))
        return z * np.sign(z @ draws.normal(size=50))[:, None]
    x, y = digits()
    first, second = draws.choice(10, size=2, replace=False)
    sizes = (150, 10) if kind == "imbalanced digits" else (n // 2, n // 2)
    a, b = (draws.permutation(np.flatnonzero(y == d))[:k] for d, k in zip((first, second), sizes, strict=True))
    z = np.hstack([x - x.mean(), np.ones((len(x), 1))])
    return np.vstack([z[a], -z[b]])


@cache
def separation(method, kind, step, seed, n=200):
    """(updates until all samples are right, the largest loss on the way)."""
    run = {"lr": lr_gd, "normalized": normalized_lr_gd}[method](samples(kind, seed, n), step, PATIENCE)
    return run.separated or PATIENCE, run.loss.max()


KINDS = ("worst case", "gaussian", "digits")


@claim(
    **TYURIN,
    id="large-steps-are-the-perceptron",
    statement="Logistic regression by gradient descent with a large step is the batch perceptron",
    regimes=tuple(f"{kind}, step {step:g}" for step in (1e2, 1e4) for kind in KINDS),
    statistic="log ratio of the updates until the data are separated, gradient descent over the batch perceptron",
    direction="within",
    threshold=BAND,
    seeds=20,
    budget_s=15,
)
def large_steps(seed):
    limit = {kind: perceptron(samples(kind, seed), iterations=PATIENCE).separated or PATIENCE for kind in KINDS}
    return [np.log(separation("lr", kind, step, seed)[0] / limit[kind]) for step in (1e2, 1e4) for kind in KINDS]


@claim(
    **TYURIN,
    id="large-steps-separate-faster",
    statement="With larger steps gradient descent on the logistic loss separates the data in fewer updates",
    regimes=KINDS,
    statistic="log ratio of the updates until the data are separated, step 10000 over step 1",
    direction="<",
    threshold=0.0,
    seeds=20,
    budget_s=15,
)
def large_steps_faster(seed):
    return [np.log(separation("lr", kind, 1e4, seed)[0] / separation("lr", kind, 1.0, seed)[0]) for kind in KINDS]


@claim(
    **TYURIN,
    id="large-steps-have-larger-losses",
    statement="With larger steps the logistic loss rises higher on the way",
    regimes=KINDS,
    statistic="log ratio of the largest loss until the data are separated, the start included, step 10000 over step 1",
    direction=">",
    threshold=0.0,
    seeds=20,
    budget_s=15,
)
def large_steps_higher(seed):
    return [np.log(separation("lr", kind, 1e4, seed)[1] / separation("lr", kind, 1.0, seed)[1]) for kind in KINDS]


@claim(
    **TYURIN,
    id="normalized-lr-gd-is-faster",
    statement="Normalized LR+GD separates the data in fewer updates than LR+GD",
    regimes=(*KINDS, "imbalanced digits"),
    statistic="log ratio of the updates until the data are separated, normalized over not, both at step 10000",
    direction="<",
    threshold=0.0,
    seeds=20,
    budget_s=10,
)
def normalized_faster(seed):
    kinds = normalized_faster.regimes
    return [np.log(separation("normalized", k, 1e4, seed)[0] / separation("lr", k, 1e4, seed)[0]) for k in kinds]


SAMPLES = (100, 200, 400, 800)


@claim(
    **TYURIN,
    id="lr-gd-pays-for-samples",
    statement="In the worst case the updates that LR+GD with a large step needs grow with the number of samples",
    regimes=("step 100", "step 10000"),
    statistic="exponent of the updates over 100 to 800 samples",
    direction="within",
    threshold=(0.9, 1.1),
    seeds=20,
    budget_s=10,
)
def lr_gd_pays(seed):
    return [exponent([separation("lr", "worst case", s, seed, n)[0] for n in SAMPLES], SAMPLES) for s in (1e2, 1e4)]


@claim(
    **TYURIN,
    id="normalized-lr-gd-does-not-pay-for-samples",
    statement="In the same worst case the updates of Normalized LR+GD do not grow with the number of samples",
    regimes=("step 100", "step 10000"),
    statistic="exponent of the updates over 100 to 800 samples",
    direction="within",
    threshold=(-0.1, 0.1),
    seeds=20,
    budget_s=10,
)
def normalized_does_not_pay(seed):
    steps = (1e2, 1e4)
    return [exponent([separation("normalized", "worst case", s, seed, n)[0] for n in SAMPLES], SAMPLES) for s in steps]
