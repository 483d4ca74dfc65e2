"""The claims about Normalize-and-Project: their statistics on runs whose answer is known, and that they are measured."""

import re

import numpy as np
import pytest

from normkit.ledger import Claim
from normkit.rates import claims_training as C

CLAIMS = {c.id: c for c in vars(C).values() if isinstance(c, Claim)}
RISING, FALLING, FLAT = np.linspace(0.3, 0.9, 15), np.linspace(0.9, 0.3, 15), np.full(15, 0.6)


@pytest.fixture
def streams(monkeypatch):
    """Sets the online accuracies that arms have, in every setting; rates are e^(-task) unless the arm is nap."""

    def give(**online):
        def stream(arm, setting, seed, weight_decay=None):
            key = arm if weight_decay is None else f"decay_{weight_decay}".replace(".", "_")
            return online[key], np.zeros(15) if arm == "nap" else -np.arange(15.0)

        monkeypatch.setattr(C, "stream", stream)

    return give


@pytest.fixture
def losses(monkeypatch):
    """Sets (training loss, accuracy) as a function of (project, schedule)."""
    return lambda answer: monkeypatch.setattr(
        C, "stationary", lambda o, lr, project, schedule, seed: answer(project, schedule)
    )


def values(id, seed=0):
    sample = np.atleast_1d(CLAIMS[id].sample(seed))
    assert sample.shape == (len(CLAIMS[id].regimes),)
    return sample


def inside(id):
    low, high = CLAIMS[id].region
    return ((low < values(id)) & (values(id) < high)).tolist()


def test_definitions_are_complete():
    assert len(CLAIMS) == 14
    for c in CLAIMS.values():
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", c.id)
        assert c.arxiv == "2407.01800"
        assert c.seeds == 5
    assert pytest.approx((np.log(0.9), np.log(1.1))) == C.BAND


def test_thirds_and_loss_of_plasticity(streams):
    streams(plain=FALLING, layernorm=RISING)
    assert C.thirds(RISING) == pytest.approx((np.mean(RISING[:5]), np.mean(RISING[10:])))
    # tasks 11..15 minus 1..5: ten tasks of 0.6 / 14 each
    assert values("plain-net-loses-plasticity") == pytest.approx(np.full(2, -6 / 14))
    assert all(inside("plain-net-loses-plasticity"))
    assert values("layernorm-loses-plasticity") == pytest.approx(np.full(5, 6 / 14))
    assert not any(inside("layernorm-loses-plasticity"))
    assert all(inside("layernorm-keeps-more-plasticity"))


def test_rates_of_layernorm_fall_by_e_a_task(streams):
    streams(layernorm=FLAT)
    assert values("layernorm-elr-decays").tolist() == [-14] * 5


@pytest.mark.parametrize(("late", "kept"), [(FLAT, True), (FALLING, False), (RISING, False)])
def test_keeping_plasticity_is_an_equality(streams, late, kept):
    streams(nap=late)
    assert inside("nap-keeps-plasticity") == [kept] * 5


@pytest.mark.parametrize(
    ("id", "other"),
    [
        ("nap-more-plastic-than-layernorm", "layernorm"),
        ("projection-needs-normalization", "projection_only"),
        ("elr-decay-costs-plasticity", "nap_copied"),
        ("nap-more-plastic-than-adamp", "adamp"),
    ],
)
def test_late_gains_have_the_sign_they_say(streams, id, other):
    streams(nap=FLAT, **{other: FALLING})
    assert all(inside(id))
    assert np.abs(values(id)) == pytest.approx(FLAT[0] - FALLING[10:].mean())
    streams(nap=FALLING, **{other: FLAT})
    assert not any(inside(id))


def test_decay_is_tuned_on_late_accuracy(streams, monkeypatch):
    C.tuned_decay.cache_clear()
    streams(nap=FLAT, decay_0_01=FALLING, decay_0_1=FLAT, decay_1_0=RISING)
    assert C.tuned_decay() == 1.0
    assert values("nap-more-plastic-than-weight-decay") == pytest.approx([0, 0.6 - RISING[10:].mean()])
    C.tuned_decay.cache_clear()


def test_one_task(losses):
    losses(lambda project, schedule: (1.05 if project else 1.0, 0.9 if project else 0.8))
    assert all(inside("nap-gains-on-one-task"))
    assert values("nap-gains-on-one-task") == pytest.approx(np.full(4, 0.1))
    for schedule in ("constant-rate", "linear-decay"):
        assert values(f"nap-matches-with-{schedule}") == pytest.approx(np.full(4, np.log(1.05)))
        assert all(inside(f"nap-matches-with-{schedule}"))
    losses(lambda project, schedule: (2.0 if project and schedule == "constant" else 1.0, 0.5))
    assert not any(inside("nap-matches-with-constant-rate"))
    assert all(inside("nap-matches-with-linear-decay"))
    assert values("nap-needs-a-schedule") == pytest.approx(np.full(4, -np.log(2)))
    assert not any(inside("nap-gains-on-one-task"))


def test_measured_streams_and_runs(monkeypatch):
    """The real things, short: what the shared runs return is what the generators report."""
    pytest.importorskip("torch")
    from normkit.rates.plasticity import stream_of_tasks
    from normkit.rates.training import train

    monkeypatch.setattr(C, "TASKS", 2)
    monkeypatch.setattr(C, "STEPS", 20)
    online, elr = C.stream.__wrapped__("nap", C.SGDM, 5)
    reports = list(stream_of_tasks("nap", tasks=2, optimizer="momentum", lr=0.03, seed=5))
    assert online.tolist() == [r["online"] for r in reports]
    assert elr == pytest.approx([np.mean(np.log(list(r["elr"].values()))) for r in reports])
    loss, accuracy = C.stationary.__wrapped__("adam", 3e-3, True, "linear", 5)
    options = {"optimizer": "adam", "lr": 3e-3, "project": True, "schedule": "linear", "label_noise": 0.2}
    last = list(train(steps=20, seed=5, every=20, **options))[-1]
    assert (loss, accuracy) == (last["loss"], last["accuracy"])  # of steps 0, 4, .., 20 only 20 is past 18


def test_runs_that_diverge_are_errors():
    pytest.importorskip("torch")
    with pytest.raises(ValueError, match=r"plain diverged in task 0 of seed 3"):
        C.stream.__wrapped__("plain", ("gaussian", "momentum", 1e30), 3)
    with pytest.raises(ValueError, match=r"sgd with lr 1e\+38 diverged at step \d+ of seed 3"):
        C.stationary.__wrapped__("sgd", 1e38, False, "constant", 3)
