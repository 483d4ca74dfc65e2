"""The claims about entropy collapse: their statistics on runs whose answer is known, and that they are measured."""

import re

import numpy as np
import pytest

from normkit.attention import claims_training as C
from normkit.ledger import Claim

CLAIMS = {c.id: c for c in vars(C).values() if isinstance(c, Claim)}
STEPS = np.arange(0, 151, 5.0)
FLAT = np.ones(len(STEPS))
FALLING = np.linspace(1, 0, len(STEPS))


def reports(loss=1.0, learned=1.0, entropy=3.0, spectral=10.0, slack=0.1):
    """A run with these values, numbers or one a report."""
    values = {"loss": loss, "learned": learned, "entropy": entropy, "spectral": spectral, "slack": slack}
    return {"step": STEPS} | {name: value * FLAT for name, value in values.items()}


@pytest.fixture
def runs(monkeypatch):
    """Sets the run of each (cure, placement, lr, task) by a function."""
    return lambda answer: monkeypatch.setattr(
        C, "run", lambda cure, setting, seed, task="majority": answer(cure, *setting, task)
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
        assert c.arxiv in ("2303.06296", "2302.05442")
        assert c.seeds == 5
        assert np.isfinite(c.threshold).all()
    settings = (*C.HIGH, C.BARE, C.COPY)
    assert {lr for _, lr in settings} <= set(C.RATES)
    assert len(C.REPARAM_CASES) == len(set(C.REPARAM_NAMES)) == 6


def test_late_is_the_last_fifth(runs):
    runs(lambda *which: reports(learned=FALLING))
    assert C.late("learned", "plain", C.POST, 0) == pytest.approx(np.mean(FALLING[-6:]))  # 125, 130, .., 150


def test_collapse_is_a_ratio_to_the_lowest_rate(runs):
    runs(lambda cure, placement, lr, task: reports(entropy=3 - 20 * lr))
    low = 3 - 20 * 0.003
    wanted = [np.log((3 - 20 * lr) / low) for _, lr in C.HIGH]
    assert values("high-rate-collapses-entropy") == pytest.approx(wanted)
    assert all(inside("high-rate-collapses-entropy"))
    runs(lambda cure, placement, lr, task: reports(entropy=1 + lr))
    assert not any(inside("high-rate-collapses-entropy"))


def test_correlation_over_rates(runs):
    """Post-LN: entropy and learned fall along one line; Pre-LN: against each other."""
    sign = {"post": 1, "pre": -1}
    runs(lambda cure, placement, lr, task: reports(entropy=3 - 20 * lr, learned=0.5 - sign[placement] * lr))
    assert values("entropy-collapse-goes-with-failure") == pytest.approx([1, -1])
    assert inside("entropy-collapse-goes-with-failure") == [True, False]


def test_correlation_within_a_run(runs):
    runs(lambda cure, placement, lr, task: reports(entropy=FALLING, loss=-FALLING if task == "majority" else FALLING))
    assert values("low-entropy-means-failure") == pytest.approx([-1, 1])
    assert inside("low-entropy-means-failure") == [True, False]


def test_floor_takes_the_worst_head_of_all_reports(runs):
    runs(lambda cure, placement, lr, task: reports(slack=FALLING - (1e-6 if placement == "post" else 0)))
    # plain post, plain pre, copy pre, sigmaReparam post
    below = int((FALLING - 1e-6 < -1e-9).sum())
    assert below > 0
    assert values("entropy-above-floor").tolist() == [below, 0, 0, below]
    assert inside("entropy-above-floor") == [False, True, True, False]


@pytest.mark.parametrize(
    ("id", "cure", "what"),
    [
        ("sigma-reparam-prevents-collapse", "sigma_reparam", "entropy"),
        ("sigma-reparam-trains-at-high-rate", "sigma_reparam", "learned"),
        ("warmup-prevents-collapse", "warmup", "entropy"),
        ("warmup-trains-at-high-rate", "warmup", "learned"),
        ("qk-norm-prevents-collapse", "qk_norm", "entropy"),
        ("qk-norm-rescues-loss", "qk_norm", "learned"),
    ],
)
def test_gains_have_the_sign_they_say(runs, id, cure, what):
    runs(lambda c, *setting: reports(**{what: 0.9 if c == cure else 0.4}))
    gains = values(id)
    assert all(np.isclose(gains, 0.5) | np.isclose(gains, 0))
    if "sigma" in id:  # the first three regimes are gamma 1, the others the same start, here as bad as plain
        assert inside(id) == [True] * 3 + [False] * 3
    else:
        assert all(inside(id))
    runs(lambda c, *setting: reports(**{what: 0.4 if c == cure else 0.9}))
    assert not any(inside(id))


def test_regimes_are_those_that_are_named(runs):
    """Each setting's number is its own rate: the order of the sample is the order of the names."""
    runs(lambda cure, placement, lr, task: reports(learned=0.0 if cure == "plain" else lr))
    for id in ("sigma-reparam-trains-at-high-rate", "warmup-trains-at-high-rate", "qk-norm-rescues-loss"):
        named = [float(re.search(r"lr ([0-9.]+)", regime).group(1)) for regime in CLAIMS[id].regimes]
        assert values(id) == pytest.approx(named)


def test_spectral_norms(runs):
    runs(lambda cure, *setting: reports(spectral=100.0 if cure == "plain" else 10.0))
    assert values("sigma-reparam-bounds-logits") == pytest.approx(np.full(6, -np.log(10)))
    assert all(inside("sigma-reparam-bounds-logits"))
    runs(lambda *which: reports(spectral=np.exp(STEPS / 150)))
    assert values("logits-grow-at-high-rate") == pytest.approx(np.full(2, np.log(np.exp(STEPS[-6:] / 150).mean())))
    assert all(inside("logits-grow-at-high-rate"))
    runs(lambda *which: reports(spectral=np.exp(-STEPS / 150)))
    assert not any(inside("logits-grow-at-high-rate"))


@pytest.mark.parametrize(("ours", "matched"), [(0.85, True), (0.95, False), (0.4, False), (0.0, False)])
def test_matching_is_against_the_best_rate(runs, ours, matched):
    """Plain learns 0.8 at one of its rates and less at the others; nothing learned is not an infinite logarithm."""
    runs(lambda cure, placement, lr, task: reports(learned=ours if cure != "plain" else 0.8 if lr == 0.01 else 0.1))
    assert values("sigma-reparam-matches-tuned-plain") == pytest.approx(np.full(4, np.log(max(ours, 1e-3) / 0.8)))
    assert inside("sigma-reparam-matches-tuned-plain") == [matched] * 4


@pytest.mark.parametrize(("ours", "kept"), [(0.85, True), (0.95, True), (0.6, False)])
def test_entropy_is_enough_only_if_the_loss_is_kept(runs, ours, kept):
    runs(lambda cure, *setting: reports(learned=ours if cure == "qk_norm" else 0.9))
    assert values("keeping-entropy-keeps-loss") == pytest.approx(np.full(2, ours - 0.9))
    assert inside("keeping-entropy-keeps-loss") == [kept] * 2


def test_runs_are_what_training_reports(monkeypatch):
    pytest.importorskip("torch")
    from normkit.attention.training import train

    monkeypatch.setattr(C, "STEPS", 10)
    for task, classes in (("majority", 8), ("copy", 16)):
        found = C.run.__wrapped__("qk_norm", C.COPY, 5, task)
        wanted = list(train(cure="qk_norm", placement="pre", lr=0.01, task=task, steps=10, seed=5))
        assert found["step"].tolist() == [0, 5, 10]
        learned = [max(0, 1 - r["loss"] / np.log(classes)) for r in wanted]
        assert found["loss"].tolist() == [r["loss"] for r in wanted]
        assert found["learned"] == pytest.approx(learned)
        assert found["entropy"] == pytest.approx([min(r["entropy"].mean(axis=1)) for r in wanted])
        assert found["slack"] == pytest.approx([np.min(r["entropy"] - r["floor"]) for r in wanted])
        assert found["spectral"] == pytest.approx([np.max(r["spectral"]) for r in wanted])


def test_a_run_that_diverges_has_learned_nothing(monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setattr(C, "STEPS", 20)
    found = C.run.__wrapped__("plain", ("none", 1e30), 3)
    assert found["step"][-1] == 20
    assert found["learned"][found["step"] > 0.8 * 20].max() == 0
    assert np.isfinite(np.array(list(found.values()))).all()
