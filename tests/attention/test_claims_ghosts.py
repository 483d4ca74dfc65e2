"""The claims about Ghosts of Softmax: signs on losses and accuracies that are known, and that they are measured."""

import re

import numpy as np
import pytest

from normkit.attention import claims_ghosts as C
from normkit.ledger import Claim

CLAIMS = {c.id: c for c in vars(C).values() if isinstance(c, Claim)}


def values(id, seed=0):
    sample = np.atleast_1d(CLAIMS[id].sample(seed))
    assert sample.shape == (len(CLAIMS[id].regimes),)
    return sample


def inside(id):
    low, high = CLAIMS[id].region
    return ((low < values(id)) & (values(id) < high)).tolist()


def test_definitions_are_complete():
    assert len(CLAIMS) == 6
    for c in CLAIMS.values():
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", c.id)
        assert c.arxiv == "2603.13552"
        assert c.budget_s <= 20
    assert C.RATIOS[0] < 1 < C.RATIOS[1]
    assert len(set(C.STEP_NAMES)) == len(set(C.SPIKE_NAMES)) == 4


def test_steps_take_the_worst_and_the_median_direction(monkeypatch):
    table = {
        ("linear", "random"): [[0.1, 1.0], [0.8, 0.6], [0.2, 3.0]],
        ("mlp", "random"): [[0.1, 1.0], [0.3, 0.6], [0.2, 0.5]],
        ("linear", "gradient"): [[-1.0, -2.0]],
        ("mlp", "gradient"): [[0.5, 0.9]],
    }
    monkeypatch.setattr(C, "after_steps", lambda model, along, seed: np.array(table[model, along]))
    assert values("steps-within-the-radius-are-safe").tolist() == [0.8, 0.3, -1.0, 0.5]
    assert inside("steps-within-the-radius-are-safe") == [False, True, True, True]  # log 2 = 0.69
    assert values("steps-beyond-the-radius-fail").tolist() == [1.0, 0.6, -2.0, 0.9]
    assert inside("steps-beyond-the-radius-fail") == [True, False, False, True]


def test_crossing_is_interpolated_in_the_logs():
    for wanted in (0.07, 1.0, 123.0):
        excess = 2 * (np.log(C.GRID) - np.log(wanted))
        assert C.crossing(excess) == pytest.approx(np.log(wanted))
        dips = np.where(3 * wanted < C.GRID, -1.0, excess)
        if wanted < 100:
            assert C.crossing(dips) == pytest.approx(np.log(wanted))  # the first one counts
    for never in (np.full(len(C.GRID), -1.0), np.full(len(C.GRID), 1.0)):
        with pytest.raises(ValueError, match="does not double"):
            C.crossing(never)


def test_alignment_compares_spreads_in_both_units(monkeypatch):
    def onset(model, steps, temperature, seed):
        r = 2.0 * temperature**0.1 * (1.1 if steps == 0 else 1)
        return r, r * temperature * (10 if steps == 0 else 1)

    monkeypatch.setattr(C, "onset", onset)
    linear, mlp, both = values("radius-aligns-onsets")
    assert linear == mlp == pytest.approx(np.log(0.1 / 1.1))
    assert both == pytest.approx(np.log(np.log(1.1) / np.log(11)))  # two groups, log r and log tau that far apart
    monkeypatch.setattr(C, "onset", lambda *a: onset(*a)[::-1])
    assert values("radius-aligns-onsets")[0] == pytest.approx(np.log(1.1 / 0.1))


def test_spikes(monkeypatch):
    table = {"radius": (0.8, 0.76, 0.95), "clip": (0.8, 0.2, 0.5)}
    monkeypatch.setattr(C, "accuracies", lambda arm, lr, factor, seed: table[arm])
    np.testing.assert_allclose(values("controller-survives-spikes"), [np.log(0.95)] * 4)
    assert all(inside("controller-survives-spikes"))
    np.testing.assert_allclose(values("clipping-does-not-survive-spikes"), [np.log(0.25)] * 4)
    assert all(inside("clipping-does-not-survive-spikes"))
    np.testing.assert_allclose(values("controller-ends-above-clipping"), [0.45] * 4)
    table["clip"] = (0.8, 0.5, 0.96)
    assert not any(inside("clipping-does-not-survive-spikes"))
    assert not any(inside("controller-ends-above-clipping"))


def test_accuracies_are_read_around_the_spike(monkeypatch):
    steps = pytest.importorskip("normkit.attention.ghost_steps")
    asked = []

    def reports(arm, **options):
        asked.append(options)
        for step in (0, 45, 50, 51, 55, 60, 65, 150):
            yield {"step": step, "accuracy": {0: 0.1, 50: 0.8, 55: 0.3, 65: 0.05, 150: 0.9}.get(step, 0.5)}

    monkeypatch.setattr(steps, "spike", reports)
    assert C.accuracies("clip", 1e-3, 1e3, 991) == (0.8, 0.3, 0.9)
    assert asked == [{"seed": 991, "lr": 1e-3, "factor": 1e3, "start": 50}]
    C.accuracies.cache_clear()


def test_samples_are_measured():
    pytest.importorskip("torch")
    found = C.after_steps("mlp", "random", 1)
    assert found.shape == (16, 2)
    assert (found[:, 1] > found[:, 0]).all()
    r, tau = C.onset("mlp", 30, 1.0, 1)
    assert 1 < r < 5
    cold = C.onset("mlp", 30, 0.25, 1)
    assert cold[1] < tau  # colder logits move faster
    before, low, end = C.accuracies("radius", 1e-2, 1e4, 1)
    assert before > 0.85 and end > 0.9
    assert C.accuracies("clip", 1e-2, 1e4, 1)[1] < 0.5 * low
    assert C.accuracies("clip", 1e-2, 1e4, 1) is C.accuracies("clip", 1e-2, 1e4, 1)
