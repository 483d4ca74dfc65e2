"""The stream of random labelings: what the arms share, what each one does to norms and rates, and chance."""

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from normkit.rates import plasticity  # noqa: E402
from normkit.rates.plasticity import ARMS, stream_of_tasks  # noqa: E402
from normkit.rates.training import generator  # noqa: E402

NAMES = ("hidden.0.weight", "hidden.1.weight")
SMALL = {"tasks": 2, "steps": 8, "width": 16}


def run(arm, **options):
    return list(stream_of_tasks(arm, **{**SMALL, **options}))


def column(reports, key, name=None):
    return np.array([r[key] if name is None else r[key][name] for r in reports])


def numbers(reports):
    return [(r["task"], r["step"], r["online"], r["accuracy"], str(r["norms"]), str(r["elr"])) for r in reports]


@pytest.mark.parametrize("inputs", plasticity.INPUTS)
@pytest.mark.parametrize("arm", ["plain", "layernorm"])
def test_random_labels_cannot_be_known_before_training(arm, inputs):
    reports = run(arm, tasks=40, steps=1, lr=1e-12, inputs=inputs)
    # 40 labelings of 256 inputs, right with probability 1/10: standard deviation 0.003; for batches of 64 0.006
    assert column(reports, "accuracy").mean() == pytest.approx(0.1, abs=0.015)
    assert column(reports, "online").mean() == pytest.approx(0.1, abs=0.03)


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_learns_its_first_labeling(arm):
    """A net that did nothing would stay at chance, 0.1 +- 0.02."""
    (report,) = stream_of_tasks(arm, tasks=1, steps=60)
    assert report["accuracy"] > 0.6
    assert 0.2 < report["online"] < report["accuracy"]


def test_all_arms_meet_the_same_tasks():
    """With a rate too small to matter, arms with the same net score the same on every task."""
    scores = {arm: column(run(arm, lr=1e-12), "online").tolist() for arm in ARMS}
    assert scores["plain"] == scores["projection_only"]
    assert scores["layernorm"] == scores["nap"] == scores["weight_decay"] == scores["adamp"] == scores["nap_copied"]


def test_same_seed_same_stream_and_neither_looks_nor_later_tasks_matter():
    torch.manual_seed(1)
    first = run("nap", seed=3)
    torch.manual_seed(2)
    assert numbers(run("nap", seed=3)) == numbers(first)
    assert numbers(run("nap", seed=3, tasks=3))[:2] == numbers(first)
    often = run("nap", seed=3, every=3)
    assert [(r["task"], r["step"]) for r in often] == [(t, s) for t in range(2) for s in (3, 6, 8)]
    assert numbers(often[2::3]) == numbers(first)
    assert numbers(run("nap", seed=4)) != numbers(first)


def test_online_accuracy_counts_the_batches_so_far():
    often = run("layernorm", every=1)
    for task in range(2):
        right = np.array([r["online"] * r["step"] * plasticity.BATCH for r in often if r["task"] == task])
        steps = np.diff(right, prepend=0)
        assert np.abs(right - right.round()).max() < 1e-9
        assert steps.min() >= 0
        assert steps.max() <= plasticity.BATCH


@pytest.mark.parametrize("arm", ["plain", "nap"])
def test_accuracy_and_dead_units_of_the_last_model(arm):
    *_, last = run(arm, lr=0.3)  # a rate at which units die
    x = plasticity._points("gaussian", 0)
    labels = torch.randint(10, (256,), generator=generator(0, "labels", 1))
    outputs = []
    hooks = [n.register_forward_hook(lambda _, x, y: outputs.append(y.detach().numpy())) for n in last["model"].norms]
    logits = last["model"](x).detach()
    for hook in hooks:
        hook.remove()
    assert last["accuracy"] == pytest.approx((logits.argmax(1) == labels).double().mean().item())
    assert last["dead"] == pytest.approx(np.mean([(y.max(0) <= 0).mean() for y in outputs]))
    assert arm == "nap" or last["dead"] > 0


def test_norms_are_held_or_grow():
    for arm in ARMS:
        reports = run(arm, every=1)
        for name in NAMES:
            norms = column(reports, "norms", name)
            if arm in ("nap", "projection_only", "nap_copied"):
                assert norms == pytest.approx(norms[0], rel=1e-6)  # float32
            else:
                assert np.abs(np.diff(norms)).min() > 1e-6 * norms[0]
    grown = {arm: run(arm, tasks=4)[-1]["norms"][NAMES[1]] for arm in ("layernorm", "adamp", "weight_decay")}
    assert grown["adamp"] < grown["layernorm"]
    assert grown["weight_decay"] < grown["layernorm"]


@pytest.mark.parametrize(("optimizer", "power"), [("adam", 1), ("momentum", 2)])
def test_copied_rates_are_those_of_layernorm(optimizer, power):
    """A report comes after its step: LayerNorm's has the rate of the next step, the copy's that of the step taken."""
    plain, copied = (run(arm, optimizer=optimizer, lr=0.02, every=1) for arm in ("layernorm", "nap_copied"))
    for name in NAMES:
        wanted, held = column(plain, "elr", name), column(copied, "elr", name)
        assert held[1:] == pytest.approx(wanted[:-1], rel=1e-5)  # float32
        assert wanted == pytest.approx(0.02 / column(plain, "norms", name) ** power, rel=1e-6)
        assert np.ptp(wanted) > 1e-3 * wanted[0]


def test_linear_schedule_starts_anew_with_each_task():
    reports = run("nap", schedule="linear", every=1)
    factor = column(reports, "elr", NAMES[0]) * column(reports, "norms", NAMES[0]) / 1e-2
    assert factor == pytest.approx(np.tile(1 - np.arange(8) / 8, 2), rel=1e-6)


def test_decay_of_the_arm_can_be_replaced():
    by_name, by_hand = run("weight_decay"), run("layernorm", weight_decay=0.1)
    assert numbers(by_name) == numbers(by_hand)
    assert numbers(run("weight_decay", weight_decay=0.0)) == numbers(run("layernorm")) != numbers(by_name)


def test_projecting_optimizer_of_each_kind():
    assert numbers(run("adamp")) != numbers(run("layernorm"))
    assert numbers(run("adamp", optimizer="momentum", lr=0.1)) != numbers(
        run("layernorm", optimizer="momentum", lr=0.1)
    )


def test_divergence_ends_the_stream():
    *_, last = run("plain", lr=1e30, every=1)
    assert last["diverged"]
    assert last["done"]
    assert last["task"] == 0
    assert math.isnan(last["accuracy"])
    assert math.isnan(last["dead"])
    assert last["norms"] is last["elr"] is None
    with pytest.raises(ValueError, match=r"the run to copy diverged in task 0: lower lr, which is 1e\+38"):
        run("nap_copied", lr=1e38)


@pytest.mark.parametrize(
    ("options", "error", "rule"),
    [
        ({"arm": "batchnorm"}, ValueError, "plain, layernorm, nap"),
        ({"optimizer": "sgd"}, ValueError, "adam, momentum"),
        ({"inputs": "noise"}, ValueError, "gaussian, digits"),
        ({"schedule": "copied"}, ValueError, "constant, linear"),
        ({"lr": -1.0}, ValueError, "lr must be a finite positive number"),
        ({"weight_decay": math.inf}, ValueError, "weight_decay must be a finite non-negative number"),
        ({"tasks": 0}, ValueError, "tasks must be at least 1"),
        ({"steps": 1.5}, TypeError, "steps must be an integer"),
        ({"every": 0}, ValueError, "every must be at least 1"),
        ({"width": 0}, ValueError, "width must be at least 1"),
    ],
)
def test_impossible_arguments_are_refused_at_the_call(options, error, rule):
    with pytest.raises(error, match=rule):
        stream_of_tasks(**{"arm": "nap", **options})
