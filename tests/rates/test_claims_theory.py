"""Claims about schedules and large steps: their tools on known cases, their signs on made-up losses, one cheap sample."""

import subprocess
import sys

import numpy as np
import pytest

from normkit.ledger import Claim
from normkit.rates import claims_theory, schedules
from normkit.rates.perceptron import lr_gd, margin, normalized_lr_gd, perceptron

CLAIMS = [c for c in vars(claims_theory).values() if isinstance(c, Claim)]


def test_the_papers():
    assert {c.arxiv for c in CLAIMS} == {"2310.07831", "2412.08424"}
    assert len({c.id for c in CLAIMS}) == len(CLAIMS) == 9


def test_the_lists_and_the_numpy_side_need_no_torch():
    modules = ", ".join(f"normkit.rates.{name}" for name in ("claims_theory", "claims_scale", "spectral"))
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


def test_exponent_of_a_power():
    over = np.array([100.0, 200.0, 800.0])
    assert claims_theory.exponent(5 * over**0.3, over) == pytest.approx(0.3)


# ---- schedules ------------------------------------------------------------------------------------------------------


def test_signs_of_the_schedule_claims(monkeypatch):
    losses = {"linear": 1.0, "constant": 4.0, "inverse sqrt": 0.5, "cosine": 1.0, "refined": 0.25}
    monkeypatch.setattr(claims_theory, "last_loss", lambda name, flips, seed: losses[name] * (1 + flips))
    assert claims_theory.linear_best.sample(0) == pytest.approx([-np.log(4), np.log(2), 0] * 3)
    assert claims_theory.refined_better.sample(0) == pytest.approx([-np.log(4)] * 3)


def test_tuning_takes_the_best_rate_on_runs_of_its_own(monkeypatch):
    used = []

    def sgd(schedule, lr, *, name, **options):
        used.append((name, lr, options["runs"]))
        return schedules.LastIterate(np.full(3, (np.log(lr) - np.log(0.5)) ** 2), np.ones((3, 4)))

    claims_theory.tuned.cache_clear()
    monkeypatch.setattr(schedules, "logistic_sgd", sgd)
    assert claims_theory.tuned("constant", 0.1) == 0.5
    assert used == [("tuning", lr, claims_theory.TUNING) for lr in claims_theory.RATES]
    claims_theory.tuned.cache_clear()


def test_the_schedule_of_a_run_is_refined_from_its_own_norms(monkeypatch):
    monkeypatch.setattr(claims_theory, "tuned", lambda name, flips: 0.5)
    claims_theory.refined_from.cache_clear()
    found = claims_theory.refined_from("logistic", 0.25, runs=2, seed=1)
    linear = schedules.linear_decay(401)[:-1]
    norms = schedules.logistic_sgd(linear, 0.5, runs=2, seed=1, flips=0.25).norms
    np.testing.assert_array_equal(found[1], schedules.refined([*norms[1], norms[1, -1]])[:-1])
    assert found.shape == (2, 400) and found.max(1).tolist() == [1, 1]
    claims_theory.refined_from.cache_clear()


@pytest.mark.parametrize(("early", "sign"), [(5.0, -1), (0.2, 1)])
def test_warm_up_has_the_sign_of_large_norms_at_the_start(monkeypatch, early, sign):
    norms = np.where(np.arange(401) < 20, early, 1.0)
    monkeypatch.setattr(claims_theory, "refined_from", lambda *a, **k: schedules.refined(norms, smoothing=0)[None, :-1])
    assert (np.sign(claims_theory.refined_warm_up.sample(0)) == sign).all()


# ---- large steps ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*claims_theory.KINDS, "imbalanced digits"])
@pytest.mark.parametrize("seed", [0, 1])
def test_all_samples_can_be_separated(kind, seed):
    z = claims_theory.samples(kind, seed)
    assert margin(z, tolerance=0.5) > 0
    if "digits" in kind:
        sides = [(z[:, -1] == side).sum() for side in (1, -1)]
        assert sides == ([150, 10] if kind == "imbalanced digits" else [100, 100]) and len(z) == sum(sides)
    else:
        assert len(z) == 200
    assert not np.array_equal(z, claims_theory.samples(kind, seed + 10))


def test_separation_counts_updates_and_caps_them():
    z = claims_theory.samples("gaussian", 0)
    for method, function in (("lr", lr_gd), ("normalized", normalized_lr_gd)):
        run = function(z, 100.0, claims_theory.PATIENCE)
        assert claims_theory.separation(method, "gaussian", 100.0, 0) == (run.separated, run.loss.max())
    assert claims_theory.separation("lr", "worst case", 1e-3, 0)[0] == claims_theory.PATIENCE


def test_signs_of_the_claims_about_steps(monkeypatch):
    def fake(method, kind, step, seed, n=200):
        return (n if method == "lr" else 7) * (1 + 1 / step), 3 * step

    monkeypatch.setattr(claims_theory, "separation", fake)
    assert (np.array(claims_theory.large_steps_faster.sample(0)) < 0).all()
    assert claims_theory.large_steps_higher.sample(0) == pytest.approx([np.log(1e4)] * 3)
    assert (np.array(claims_theory.normalized_faster.sample(0)) < 0).all()
    assert claims_theory.lr_gd_pays.sample(0) == pytest.approx([1, 1])
    assert claims_theory.normalized_does_not_pay.sample(0) == pytest.approx([0, 0], abs=1e-12)


def test_the_perceptron_is_its_own_limit(monkeypatch):
    def fake(method, kind, step, seed, n=200):
        return perceptron(claims_theory.samples(kind, seed)).separated, 1.0

    monkeypatch.setattr(claims_theory, "separation", fake)
    assert claims_theory.large_steps.sample(0) == pytest.approx([0] * 6)


@pytest.mark.parametrize("claim", [c for c in CLAIMS if c.arxiv == "2412.08424"], ids=lambda c: c.id)
def test_samples_repeat_and_are_finite(claim):
    found = np.array(claim.sample(0))
    assert found.shape == (len(claim.regimes),) and np.isfinite(found).all()
    assert np.array_equal(found, claim.sample(0))
