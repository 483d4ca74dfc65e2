"""Claims about Normalize-and-Project, measured on nets that train. Runs are shared by the claims that look at them.

The streams are 15 random labelings of 256 inputs, 150 steps of 64 each; the stationary task is 400 steps on digits, a
fifth of the labels random. Both were fixed beforehand. Steps of Adam unless said otherwise.
"""

from functools import cache

import numpy as np

from normkit.ledger import claim

NAP = {"paper": "Normalize-and-Project", "arxiv": "2407.01800"}
ADAM, ADAM_LOW, DIGITS = ("gaussian", "adam", 1e-2), ("gaussian", "adam", 1e-3), ("digits", "adam", 1e-2)
SGDM, SGDM_HIGH = ("gaussian", "momentum", 0.03), ("gaussian", "momentum", 0.1)
NAMES = {
    ADAM: "Gaussian inputs, Adam 0.01",
    ADAM_LOW: "Gaussian inputs, Adam 0.001",
    DIGITS: "digits, Adam 0.01",
    SGDM: "Gaussian inputs, momentum 0.03",
    SGDM_HIGH: "Gaussian inputs, momentum 0.1",
}
TASKS, STEPS = 15, 400
STATIONARY = (("adam", 3e-3), ("adam", 3e-2), ("momentum", 3e-2), ("momentum", 0.3))
DECAYS, TUNING_SEEDS = (0.01, 0.1, 1.0), (0, 1)  # verdicts come from other seeds
SEEDS = 5
BAND = (float(np.log(0.9)), float(np.log(1.1)))  # equal, give or take 10 %


@cache
def stream(arm, setting, seed, weight_decay=None):
    """(online accuracy of each task, (TASKS,); log of the mean effective learning rate after each, (TASKS,))."""
    from normkit.rates.plasticity import stream_of_tasks

    inputs, optimizer, lr = setting
    options = {"inputs": inputs, "optimizer": optimizer, "lr": lr, "weight_decay": weight_decay}
    reports = list(stream_of_tasks(arm, tasks=TASKS, seed=seed, **options))
    if reports[-1]["diverged"]:
        raise ValueError(f"{arm} diverged in task {reports[-1]['task']} of seed {seed}")
    elr = [np.mean(np.log(list(r["elr"].values()))) for r in reports]
    return np.array([r["online"] for r in reports]), np.array(elr)


def thirds(online):
    """Mean over the first and over the last third of the tasks."""
    return online[: TASKS // 3].mean(), online[-TASKS // 3 :].mean()


def loss_of_plasticity(arm, settings, seed):
    """Last minus first third, one a setting: below 0 where later tasks are learned more slowly."""
    return [float(np.subtract(*thirds(stream(arm, setting, seed)[0])[::-1])) for setting in settings]


def late_gain(arm, other, settings, seed):
    """Online accuracy over the last third of the tasks, `arm` minus `other`, one a setting."""
    return [float(thirds(stream(arm, s, seed)[0])[1] - thirds(stream(other, s, seed)[0])[1]) for s in settings]


@cache
def tuned_decay():
    """The weight decay of DECAYS with the best late online accuracy of LayerNorm over TUNING_SEEDS."""
    late = [[thirds(stream("layernorm", ADAM, seed, decay)[0])[1] for seed in TUNING_SEEDS] for decay in DECAYS]
    return DECAYS[int(np.argmax(np.mean(late, axis=1)))]


@cache
def stationary(optimizer, lr, project, schedule, seed):
    """(mean training loss, mean held-out accuracy) over the last tenth of training a LayerNorm net."""
    from normkit.rates.training import train

    options = {"optimizer": optimizer, "lr": lr, "project": project, "schedule": schedule}
    reports = list(train(steps=STEPS, label_noise=0.2, seed=seed, every=4, **options))
    if reports[-1]["diverged"]:
        raise ValueError(f"{optimizer} with lr {lr:g} diverged at step {reports[-1]['step']} of seed {seed}")
    late = [r for r in reports if r["step"] > 0.9 * STEPS]
    return np.mean([r["loss"] for r in late]), np.mean([r["accuracy"] for r in late])


def stationary_regimes(*settings):
    return tuple(f"{optimizer} {lr:g}" for optimizer, lr in settings)


# ---- a stream of tasks ----------------------------------------------------------------------------------------------


@claim(
    **NAP,
    id="plain-net-loses-plasticity",
    statement="A ReLU net without normalization learns the later of many tasks more slowly than the first ones",
    regimes=tuple(NAMES[s] for s in (ADAM, DIGITS)),
    statistic="mean online accuracy, last 5 minus first 5 of 15 tasks",
    direction="<",
    threshold=0.0,
    seeds=SEEDS,
    budget_s=30,
)
def plain_loses(seed):
    return loss_of_plasticity("plain", (ADAM, DIGITS), seed)


@claim(
    **NAP,
    id="layernorm-keeps-more-plasticity",
    statement="LayerNorm keeps more plasticity than no normalization",
    regimes=tuple(NAMES[s] for s in (ADAM, DIGITS)),
    statistic="mean online accuracy over the last 5 of 15 tasks, LayerNorm minus plain",
    direction=">",
    threshold=0.0,
    seeds=SEEDS,
    budget_s=15,
)
def layernorm_over_plain(seed):
    return late_gain("layernorm", "plain", (ADAM, DIGITS), seed)


@claim(
    **NAP,
    id="layernorm-loses-plasticity",
    statement="LayerNorm alone does not prevent the loss of plasticity",
    regimes=tuple(NAMES.values()),
    statistic="mean online accuracy, last 5 minus first 5 of 15 tasks",
    direction="<",
    threshold=0.0,
    seeds=SEEDS,
    budget_s=20,
)
def layernorm_loses(seed):
    return loss_of_plasticity("layernorm", NAMES, seed)


@claim(
    **NAP,
    id="layernorm-elr-decays",
    statement="With LayerNorm the weights grow over the tasks, and the effective learning rate falls",
    regimes=tuple(NAMES.values()),
    statistic="log ratio of the effective learning rate, after the last task over after the first",
    direction="<",
    threshold=0.0,
    seeds=SEEDS,
    budget_s=20,
)
def layernorm_elr(seed):
    runs = [stream("layernorm", setting, seed)[1] for setting in NAMES]
    return [float(elr[-1] - elr[0]) for elr in runs]


@claim(
    **NAP,
    id="nap-keeps-plasticity",
    statement="With Normalize-and-Project the last tasks are learned as fast as the first ones",
    regimes=tuple(NAMES.values()),
    statistic="log ratio of mean online accuracy, last 5 over first 5 of 15 tasks",
    direction="within",
    threshold=BAND,
    seeds=SEEDS,
    budget_s=30,
)
def nap_keeps(seed):
    runs = [thirds(stream("nap", setting, seed)[0]) for setting in NAMES]
    return [float(np.log(late / early)) for early, late in runs]


@claim(
    **NAP,
    id="nap-more-plastic-than-layernorm",
    statement="Normalize-and-Project keeps more plasticity than LayerNorm alone",
    regimes=tuple(NAMES.values()),
    statistic="mean online accuracy over the last 5 of 15 tasks, Normalize-and-Project minus LayerNorm",
    direction=">",
    threshold=0.0,
    seeds=SEEDS,
    budget_s=30,
)
def nap_over_layernorm(seed):
    return late_gain("nap", "layernorm", NAMES, seed)


@claim(
    **NAP,
    id="projection-needs-normalization",
    statement="Projection without normalization keeps less plasticity than with it",
    regimes=(NAMES[ADAM],),
    statistic="mean online accuracy over the last 5 of 15 tasks, projection alone minus Normalize-and-Project",
    direction="<",
    threshold=0.0,
    seeds=SEEDS,
    budget_s=15,
)
def projection_alone(seed):
    return late_gain("projection_only", "nap", (ADAM,), seed)


@claim(
    **NAP,
    id="elr-decay-costs-plasticity",
    statement="The decay of LayerNorm's effective learning rate, copied to Normalize-and-Project, costs it plasticity",
    regimes=(NAMES[ADAM],),
    statistic="mean online accuracy over the last 5 of 15 tasks, copied rates minus constant rates",
    direction="<",
    threshold=0.0,
    seeds=SEEDS,
    budget_s=30,
)
def copied_rates(seed):
    return late_gain("nap_copied", "nap", (ADAM,), seed)


@claim(
    **NAP,
    id="nap-more-plastic-than-weight-decay",
    statement="Normalize-and-Project keeps more plasticity than LayerNorm with weight decay",
    regimes=("decay 0.1", "tuned decay"),
    statistic=f"mean online accuracy over the last 5 of 15 tasks, difference; {NAMES[ADAM]}; tuned on two other seeds",
    direction=">",
    threshold=0.0,
    seeds=SEEDS,
    budget_s=30,
)
def nap_over_weight_decay(seed):
    nap = thirds(stream("nap", ADAM, seed)[0])[1]
    return [nap - thirds(stream("layernorm", ADAM, seed, decay)[0])[1] for decay in (0.1, tuned_decay())]


@claim(
    **NAP,
    id="nap-more-plastic-than-adamp",
    statement="Normalize-and-Project keeps more plasticity than LayerNorm with AdamP",
    regimes=(NAMES[ADAM],),
    statistic="mean online accuracy over the last 5 of 15 tasks, difference",
    direction=">",
    threshold=0.0,
    seeds=SEEDS,
    budget_s=30,
)
def nap_over_adamp(seed):
    return late_gain("nap", "adamp", (ADAM,), seed)


# ---- one task -------------------------------------------------------------------------------------------------------


@claim(
    **NAP,
    id="nap-gains-on-one-task",
    statement="On one stationary task too, Normalize-and-Project at the same constant rate generalizes better than LayerNorm",
    regimes=stationary_regimes(*STATIONARY),
    statistic="held-out accuracy over the last tenth of 400 steps, difference",
    direction=">",
    threshold=0.0,
    seeds=SEEDS,
    budget_s=30,
)
def nap_gains(seed):
    runs = [[stationary(*s, project, "constant", seed)[1] for project in (True, False)] for s in STATIONARY]
    return [nap - layernorm for nap, layernorm in runs]


@claim(
    **NAP,
    id="nap-matches-with-constant-rate",
    statement="On a stationary task Normalize-and-Project recovers LayerNorm's training loss, both at one constant rate",
    regimes=stationary_regimes(*STATIONARY),
    statistic="log ratio of training loss over the last tenth of 400 steps",
    direction="within",
    threshold=BAND,
    seeds=SEEDS,
    budget_s=30,
)
def nap_matches_constant(seed):
    runs = [[stationary(*s, project, "constant", seed)[0] for project in (True, False)] for s in STATIONARY]
    return [np.log(nap / layernorm) for nap, layernorm in runs]


@claim(
    **NAP,
    id="nap-matches-with-linear-decay",
    statement="On a stationary task Normalize-and-Project recovers LayerNorm's training loss, both with linear decay",
    regimes=stationary_regimes(*STATIONARY),
    statistic="log ratio of training loss over the last tenth of 400 steps",
    direction="within",
    threshold=BAND,
    seeds=SEEDS,
    budget_s=30,
)
def nap_matches_linear(seed):
    runs = [[stationary(*s, project, "linear", seed)[0] for project in (True, False)] for s in STATIONARY]
    return [np.log(nap / layernorm) for nap, layernorm in runs]


@claim(
    **NAP,
    id="nap-needs-a-schedule",
    statement="On a stationary task Normalize-and-Project trains to a lower loss with linear decay than at a constant rate",
    regimes=stationary_regimes(*STATIONARY),
    statistic="log ratio of training loss over the last tenth of 400 steps, linear decay over constant",
    direction="<",
    threshold=0.0,
    seeds=SEEDS,
    budget_s=30,
)
def nap_needs_schedule(seed):
    runs = [[stationary(*s, True, schedule, seed)[0] for schedule in ("linear", "constant")] for s in STATIONARY]
    return [np.log(linear / constant) for linear, constant in runs]
