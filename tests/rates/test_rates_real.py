"""The recorded runs: complete, true to the identities of their optimizers, and what a new measurement finds."""

import json

import numpy as np
import pytest

from normkit.rates import real
from normkit.rates.laws import OPTIMIZERS

GRID = [(o, lr, wd, p) for o in OPTIMIZERS for lr in real.LR for wd in real.WEIGHT_DECAY for p in (False, True)]
DENSE = 9  # the first looks are at every step: 0, 1, ..., 8
ROUNDING = 1e-4  # of a ratio of two numbers with 5 digits: 2 * 5e-5


def test_the_grid_is_complete_and_in_range():
    for key in GRID:
        run = real.load_real(*key)
        assert set(run) == {"step", "norm", "angle", "elr"}
        assert {len(v) for v in run.values()} == {len(real.LOOKS)}
        assert run["step"].tolist() == list(real.LOOKS)
        assert (run["norm"][0], run["step"][0], run["step"][-1]) == (1, 0, real.STEPS)
        assert run["norm"].min() > 0
        assert 0 < run["angle"].min() <= run["angle"].max() < np.pi
        assert run["elr"] == pytest.approx(key[1] / run["norm"] ** (1 if key[0].startswith("adam") else 2))
    assert real.LOOKS[:DENSE] == tuple(range(DENSE))


@pytest.mark.parametrize("lr", real.LR)
@pytest.mark.parametrize("weight_decay", real.WEIGHT_DECAY)
def test_sgd_obeys_the_growth_identity(lr, weight_decay):
    """The step is tangent: what decay left of the weight is the cathetus, cos(angle) |w'| = (1 - lr wd) |w|."""
    run = real.load_real("sgd", lr, weight_decay)
    norm, angle = run["norm"][:DENSE], run["angle"][: DENSE - 1]
    assert norm[1:] * np.cos(angle) / norm[:-1] == pytest.approx(
        np.full(DENSE - 1, 1 - lr * weight_decay), abs=ROUNDING
    )


@pytest.mark.parametrize("optimizer", ["sgdp", "adamp"])
def test_projected_steps_are_tangent(optimizer):
    for lr in real.LR:
        run = real.load_real(optimizer, lr)
        norm, angle = run["norm"][:DENSE], run["angle"][: DENSE - 1]
        assert np.cos(angle) == pytest.approx(norm[:-1] / norm[1:], abs=ROUNDING)
        assert (np.diff(run["norm"]) >= 0).all()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_projected_runs_stay_on_the_sphere(optimizer):
    for lr in real.LR:
        for weight_decay in real.WEIGHT_DECAY:
            assert (real.load_real(optimizer, lr, weight_decay, True)["norm"] == 1).all()


def test_the_first_step_is_that_of_the_walk():
    """SGD's turn is lr times one gradient over the root mean square of eight: within a fifth. Adam's first step has
    entries +-lr: norm lr sqrt(64) in units of the walk. Random signs of 4096 entries have a radial share of 1/64."""
    for lr in real.LR:
        for optimizer in OPTIMIZERS:
            first = np.tan(real.load_real(optimizer, lr)["angle"][0])
            if optimizer.startswith("adam"):
                assert first == pytest.approx(8 * lr, rel=0.01 + 3 * 8 * lr / 64)
            else:
                assert first == pytest.approx(lr, rel=0.2)


def test_momentum_grows_faster_than_sgd_and_projection_holds_it_back():
    for lr in real.LR:
        last = {o: real.load_real(o, lr)["norm"][-1] for o in OPTIMIZERS}
        assert last["momentum"] > last["sgdp"] > 1
        assert last["momentum"] > last["sgd"]
        assert last["adam"] > last["adamp"] > 1


def test_nothing_is_made_up_between_the_recorded_points():
    assert real.load_real("sgd", 0.03) is None
    assert real.load_real("sgd", 0.02, 0.05) is None
    with pytest.raises(ValueError, match="sgd, momentum, sgdp, adam, adamp"):
        real.load_real("rmsprop", 0.02)


def test_a_caller_cannot_change_the_record():
    run = real.load_real("adam", 0.02)
    for values in run.values():
        values[:] = 0
    assert real.load_real("adam", 0.02)["norm"][0] == 1
    assert real.load_real("adam", 0.02)["step"][-1] == real.STEPS


@pytest.mark.parametrize("key", [("sgd", 0.16, 0.1, False), ("adam", 0.02, 0.01, False), ("adamp", 0.08, 0.0, True)])
def test_measuring_again_finds_the_record(key):
    """Float64 on any machine: rounding of 1e-16 does not grow to the fifth digit in 60 steps."""
    pytest.importorskip("torch")
    norm, angle = real.measure(*key, steps=59)
    run = real.load_real(*key)
    assert len(norm) == real.LOOKS.index(59) + 1
    assert norm == pytest.approx(run["norm"][: len(norm)], rel=1e-4)
    assert angle == pytest.approx(run["angle"][: len(norm)], rel=1e-3)


def test_written_file_is_read_back(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setattr(real, "LR", (0.04,))
    monkeypatch.setattr(real, "WEIGHT_DECAY", (0.01,))
    monkeypatch.setattr(real, "STEPS", 3)
    monkeypatch.setattr(real, "LOOKS", (0, 1, 3))
    monkeypatch.setattr(real.measure, "__kwdefaults__", {"steps": 3, "seed": 0})
    calls = []
    path = real.write_real(tmp_path / "rates.json", lambda *progress: calls.append(progress))
    assert calls == [(done, 10) for done in range(1, 11)]
    for optimizer in OPTIMIZERS:
        run = real.load_real(optimizer, 0.04, 0.01, path=path)
        norm, angle = real.measure(optimizer, 0.04, 0.01, False)
        assert run["step"].tolist() == [0, 1, 3]
        assert run["norm"] == pytest.approx(norm, rel=5e-5)
        assert run["angle"] == pytest.approx(angle, rel=5e-5)
    state = json.loads(path.read_text())
    path.with_name("other.json").write_text(json.dumps({**state, "schema": 0}))
    with pytest.raises(ValueError, match="schema 0"):
        real.load_real("sgd", 0.04, path=path.with_name("other.json"))
