"""Claims about widths, spectral norms and large batches: signs on made-up nets, and the short trainings behind them."""

from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("torch")

from normkit.ledger import Claim
from normkit.rates import claims_scale
from normkit.rates.spectral import spectral_bound

CLAIMS = [c for c in vars(claims_scale).values() if isinstance(c, Claim)]
WIDTHS = np.array(claims_scale.WIDTHS, dtype=float)


def test_the_papers():
    assert {c.arxiv for c in CLAIMS} == {"2510.15262", "2310.17813", "2601.01306", "1705.08741"}
    assert len({c.id for c in CLAIMS}) == len(CLAIMS) == 13


# ---- widths ---------------------------------------------------------------------------------------------------------


def law(alpha, powers=None):
    """Nets whose top singular value is sqrt(lr/decay) width^alpha, lr ~ 1/width; the gain is its square."""
    powers = powers or {"constant": 0.0, "sqrt": 0.5}

    def settled(width, seed, noise, lr=0.02, decay=0.5, rule="sqrt", base=24):
        top = (lr / decay * (base / width) ** (1 + powers[rule])) ** 0.5 * width**alpha
        return SimpleNamespace(top=top, gain=top**2)

    return settled


def test_the_papers_law_fulfills_the_papers_claims(monkeypatch):
    monkeypatch.setattr(claims_scale, "settled", law(0.75))
    assert claims_scale.spectrum_ratio.sample(0) == pytest.approx([0.5] * 4)
    assert claims_scale.top_exponent.sample(0) == pytest.approx([0.75] * 2)
    assert claims_scale.sqrt_keeps_gain.sample(0) == pytest.approx([0] * 2, abs=1e-12)
    assert claims_scale.sqrt_flatter.sample(0) == pytest.approx([-0.5] * 2)


def test_another_law_does_not(monkeypatch):
    monkeypatch.setattr(claims_scale, "settled", law(0.5))
    assert claims_scale.top_exponent.sample(0) == pytest.approx([0.5] * 2)
    assert claims_scale.sqrt_keeps_gain.sample(0) == pytest.approx([-0.5] * 2)
    assert claims_scale.sqrt_flatter.sample(0) == pytest.approx([0.5] * 2)


# ---- spectral norms -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decay", [0.0, 1.0])
def test_trained_weights_stay_below_the_bound(decay):
    middle, end, change = claims_scale.walked("muon", 8, 0, decay, steps=20)
    assert middle <= spectral_bound(1.0, 0.02, decay, 10, 1.0) and end <= spectral_bound(1.0, 0.02, decay, 20, 1.0)
    assert end != middle and change > 0
    assert (middle, end, change) == claims_scale.walked.__wrapped__("muon", 8, 0, decay, steps=20)


def test_both_optimizers_start_at_the_mup_norm():
    # one update of spectral norm at most 0.02 * 1.2024 * sqrt(8/8), or of entries 0.005 in an 8 x 8 matrix
    for kind, step in (("muon", 0.02 * 1.2024), ("adam", 0.005 * 8)):
        assert abs(claims_scale.walked(kind, 8, 0, steps=1)[1] - 1) <= step * 1.001


def test_signs_of_the_spectral_claims(monkeypatch):
    def fake(kind, width, seed, decay=0.0, steps=300):
        if kind == "adam":
            return 1.0, 1.0, width**0.9
        return 1.0, 2.0 if decay == 0 else 1.0, 0.3

    monkeypatch.setattr(claims_scale, "walked", fake)
    assert claims_scale.width_free_features.sample(0) == pytest.approx([0, 0], abs=1e-12)
    assert claims_scale.adam_features.sample(0) == pytest.approx([0.9, 0.9])
    assert claims_scale.update_control.sample(0) == pytest.approx([0, 0], abs=1e-12)
    assert claims_scale.norms_bounded.sample(0) == pytest.approx([np.log(2), 0])


# ---- large batches --------------------------------------------------------------------------------------------------


def test_arms_differ_in_what_they_say():
    small, large, lr, ghosts, updates = claims_scale.ARMS.values()
    assert small[0] * small[1] == large[0] * large[1] == 1200 * claims_scale.EPOCHS  # the same images
    assert small[2] == large[2] and lr[2] == pytest.approx(small[2] * np.sqrt(12))
    assert lr[:3] == ghosts[:3] and (lr[3], ghosts[3]) == (None, 50)
    assert updates[1] == small[1] and updates[2:] == ghosts[2:]


def made_up(distance, errors):
    t = np.unique(np.geomspace(1, 960, 60).round())

    def fitted(arm, noise, seed):
        moved = distance(t) * (1.0 if arm == "small" else 2.0)
        return SimpleNamespace(t=t, distance=moved, drop=576, test_error=errors[arm])

    return fitted


def test_signs_of_the_claims_about_batches(monkeypatch):
    errors = dict(zip(claims_scale.ARMS, (0.02, 0.05, 0.04, 0.03, 0.02), strict=True))
    monkeypatch.setattr(claims_scale, "fitted", made_up(lambda t: 1 + np.log(t) + 0.01 * np.sin(t), errors))
    assert claims_scale.large_batch_gap.sample(0) == pytest.approx([3, 3])
    assert claims_scale.ghosts_help.sample(0) == pytest.approx([-1, -1])
    assert claims_scale.updates_close_gap.sample(0) == pytest.approx([0, 0])
    assert claims_scale.sqrt_lr_matches.sample(0) == pytest.approx([np.log(2)] * 2)
    assert (np.array(claims_scale.log_time.sample(0)) < -1).all()
    monkeypatch.setattr(claims_scale, "fitted", made_up(lambda t: t**0.5 + 0.01 * np.sin(t), errors))
    assert (np.array(claims_scale.log_time.sample(0)) > 1).all()


def test_the_walk_ends_with_the_high_learning_rate(monkeypatch):
    monkeypatch.setattr(claims_scale, "fitted", made_up(np.log1p, dict.fromkeys(claims_scale.ARMS, 0.1)))
    t, distance = claims_scale.walk("small", 0.0, 0)
    assert t.max() <= 576 and len(t) == len(distance) > 40


def test_fitted_trains_its_arm():
    run = claims_scale.fitted("large", 0.0, 0)
    assert run.t[-1] == 80 and run.drop == 48 and run.test_error < 0.2
