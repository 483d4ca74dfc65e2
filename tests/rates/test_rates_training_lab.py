"""RatesTrainingLab: every control, what training reports against what is drawn, its laws, and a run that diverges."""

import inspect
import json

import numpy as np
import pytest
import torch

from normkit import Lab, RatesTrainingLab
from normkit.figures import COLORS
from normkit.rates import laws, training
from normkit.rates.lab import STYLES
from normkit.rates.training_lab import DIM, MATRIX

OPTIMIZERS = tuple(laws.OPTIMIZERS)
SHORT = {"steps": 100}


def by_name(lab, result):
    return {(c.label, c.axes): c for c in lab.curves(result)}


def reports(lab):
    """What `train` reports at the lab's settings, asked for in the words of its own signature."""
    options = {
        "norm": lab.norm, "optimizer": lab.optimizer, "lr": lab.lr, "weight_decay": lab.weight_decay,
        "schedule": lab.schedule, "label_noise": lab.noise, "steps": lab.steps, "seed": lab.seed,
    }  # fmt: skip
    return list(training.train(**options, project=lab.project == "on", every=lab.steps // 50))


@pytest.mark.parametrize(
    "settings", list(RatesTrainingLab.grid()), ids=lambda s: "-".join(map(str, s.values())) or "default"
)
def test_every_control_over_its_range_before_the_first_step(settings):
    lab = RatesTrainingLab().set(**settings)
    result = lab.run("coarse")
    assert result["step"].tolist() == [0]
    assert result["loss"] == pytest.approx(np.log(10), abs=1.2)  # chance, and what random logits of size 1 cost
    # 4096 entries of variance 2/64: the norm spreads by 1/sqrt(2 4096) of it, 1.1 %; four of these
    assert result["norm"] == pytest.approx(128**0.5, rel=0.045)
    picture = lab.picture(result)
    assert all(np.isfinite(t["y"]).all() for t in picture["data"])
    assert all(f"{panel}: " in lab.describe(result) for panel in ("Loss", "Radius", "Steps"))


def test_the_matrix_that_is_shown_is_the_second_of_the_net():
    matrices = training.Net().matrices()
    assert list(matrices)[1] == MATRIX and len(matrices) == 2
    assert matrices[MATRIX].numel() == DIM
    assert RatesTrainingLab.declared()["optimizer"].values == OPTIMIZERS == tuple(training.OPTIMIZERS)
    assert set(RatesTrainingLab.declared()["norm"].values) == set(training.NORMS)


def test_the_law_assumes_the_momentum_and_the_betas_of_the_real_optimizers():
    defaults = {k: p.default for k, p in inspect.signature(laws.trajectory).parameters.items()}
    w = [torch.nn.Parameter(torch.ones(2))]
    for name, make in training.OPTIMIZERS.items():
        options = make(w, lr=1.0).defaults
        if laws.rule(name).adaptive:
            assert tuple(options["betas"]) == defaults["betas"]
        else:
            assert options["momentum"] == (0 if name == "sgd" else defaults["momentum"])


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"optimizer": "sgd", "norm": "batchnorm", "weight_decay": 0.1},
        {"optimizer": "sgdp", "schedule": "linear", "noise": 0.8},
        {"optimizer": "adam", "norm": "none", "lr": 0.0125, "seed": 3},
        {"optimizer": "adamp", "project": "on", "lr": 0.05, "steps": 150},
    ],
    ids=lambda s: s.get("optimizer", "default"),
)
def test_what_is_drawn_is_what_training_reports(settings):
    lab = RatesTrainingLab(**SHORT).set(**settings)
    fractions, results = zip(*lab.stream(), strict=True)
    want = reports(lab)
    assert fractions[0] == 0 and fractions[-1] == 1 and (np.diff(fractions) > 0).all()
    assert len(results) == len(want) == 51 and [len(r["step"]) for r in results] == list(range(1, 52))
    result, curves = lab.run(), by_name(lab, results[-1])
    for key in ("step", "loss", "accuracy"):
        np.testing.assert_array_equal(result[key], [r[key] for r in want])
    for key, reported in (("norm", "norms"), ("elr", "elr"), ("gradient", "gradient")):
        np.testing.assert_array_equal(result[key], [r[reported]["hidden.1.weight"] for r in want])
    for axes, key in enumerate(("loss", "norm", "elr")):
        shown = curves[f"{lab.optimizer} (real model)", axes]
        np.testing.assert_array_equal(shown.x, result["step"])
        np.testing.assert_array_equal(shown.y, result[key])
        assert shown.style == STYLES[lab.optimizer]
    assert lab.describe(result) and np.isfinite(lab.picture(result)["data"][-1]["y"]).all()


def test_every_control_reaches_training():
    base = RatesTrainingLab(**SHORT).run()
    for change in (
        {"optimizer": "sgd"},
        {"norm": "batchnorm"},
        {"project": "on"},
        {"schedule": "linear"},
        {"lr": 0.2},
        {"weight_decay": 0.01},
        {"noise": 0.5},
        {"seed": 1},
    ):
        assert not np.array_equal(RatesTrainingLab(**SHORT).set(**change).run()["loss"], base["loss"]), change
    np.testing.assert_array_equal(RatesTrainingLab(**SHORT).run()["loss"], base["loss"])


@pytest.mark.parametrize("steps", [101, 149, 199])
def test_steps_between_the_marks_of_the_slider(steps):
    lab = RatesTrainingLab(optimizer="sgd").set(steps=steps)
    fractions, results = zip(*lab.stream(), strict=True)
    assert results[-1]["step"][-1] == steps and fractions[-1] == 1
    assert len(lab.law(results[-1])[0]) == steps + 1


def test_a_net_with_a_norm_learns_and_its_weights_anneal_it():
    result = RatesTrainingLab(noise=0.0).run()
    assert result["accuracy"][0] < 0.3 < 0.85 < result["accuracy"][-1]
    assert (np.diff(result["norm"])[1:] > -1e-3).all()  # a heavy ball leans outward
    np.testing.assert_allclose(result["elr"], 0.4 / result["norm"] ** 2, rtol=1e-6)  # float32 norms


def test_the_chance_line_is_that_of_ten_classes_over_the_whole_run():
    lab = RatesTrainingLab(**SHORT)
    for quality in ("coarse", "exact"):
        line = by_name(lab, lab.run(quality))["chance (theory)", 0]
        assert line.x.tolist() == [0, 100] and line.style.color == COLORS["grey"]
        np.testing.assert_allclose(line.y, 2.302585, rtol=1e-6)


# ---- the law


def measured(steps, gradient, norm):
    """A result whose gradients were `gradient` at `steps`."""
    return {"step": np.array(steps), "gradient": np.array(gradient), "norm": np.array(norm)}


def test_sgds_law_is_the_growth_of_tangent_steps():
    """||w'||^2 = (1 - lr wd)^2 ||w||^2 + (lr g / ||w||)^2, g between two looks on the straight line."""
    lab, decay = RatesTrainingLab(optimizer="sgd", lr=0.4, weight_decay=0.1), 0.4 * 0.1
    norm, elr = lab.law(measured([0, 4, 10], [2.0, 10.0, 4.0], [3.0, 9.0, 9.0]))
    want = [3.0]
    for g in (2, 4, 6, 8, 10, 9, 8, 7, 6, 5):
        want.append(np.sqrt(((1 - decay) * want[-1]) ** 2 + (0.4 * g / want[-1]) ** 2))
    np.testing.assert_allclose(norm[:11], want, rtol=1e-12)
    np.testing.assert_allclose(elr[:11], 0.4 / np.square(want), rtol=1e-12)
    after = np.sqrt(((1 - decay) * want[-1]) ** 2 + (0.4 * 4 / want[-1]) ** 2)  # foretold with the last look's gradient
    assert norm[11] == pytest.approx(after) and len(norm) == len(elr) == 301


def test_adams_law_grows_by_its_number_of_entries():
    lab = RatesTrainingLab(optimizer="adam", lr=0.0125, steps=1000)
    step = np.arange(1001)
    want = np.sqrt(11.0**2 + 0.0125**2 * 64**2 * step)
    norm, elr = lab.law(measured(step, want, want))  # as large as the weight: its gradient never changes its size
    # the first ten steps go the same way, as if there were ten more; the divisor's noise adds a share of 1 - beta2 a step
    np.testing.assert_allclose(norm**2, want**2, atol=20 * 0.0125**2 * 64**2)
    np.testing.assert_allclose(elr, 0.0125 / norm)


def test_the_law_is_drawn_over_the_whole_run_and_learns_from_what_is_measured():
    lab, before = RatesTrainingLab(**SHORT, optimizer="sgd"), None
    for _, result in lab.stream():
        law = by_name(lab, result)["sgd (theory)", 1]
        assert law.x.tolist() == list(range(101)) and law.y[0] == result["norm"][0]
        if before is not None:  # what was foretold changes, what was is kept
            known = int(result["step"][-2]) + 1
            np.testing.assert_array_equal(law.y[:known], before[:known])
            assert not np.array_equal(law.y, before) or result["step"][-1] == 100
        before = law.y


@pytest.mark.parametrize("norm", ["layernorm", "batchnorm"])
@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
def test_sgds_real_norm_follows_its_law(norm, weight_decay):
    lab = RatesTrainingLab(optimizer="sgd", norm=norm, weight_decay=weight_decay, lr=0.4, steps=200)
    result = lab.run()
    law = lab.law(result)[0][result["step"].astype(int)]
    # the identity is exact; one batch in four is measured, and squared gradients spread by their own size or less:
    # 50 looks tell the growth (about 4 % of the norm) to a seventh or so
    np.testing.assert_allclose(result["norm"], law, rtol=0.01)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_held_norm_and_its_law_stay(optimizer):
    lab = RatesTrainingLab(optimizer=optimizer, project="on", weight_decay=0.1, lr=0.05, **SHORT)
    result = lab.run()
    np.testing.assert_allclose(result["norm"], result["norm"][0], rtol=1e-5)  # float32
    for values, key in zip(lab.law(result), ("norm", "elr"), strict=True):
        np.testing.assert_allclose(values, result[key][0], rtol=1e-6)


@pytest.mark.parametrize("settings", [{"norm": "none"}, {"norm": "none", "project": "on"}, {"schedule": "linear"}])
def test_no_law_is_drawn_where_there_is_none(settings):
    lab = RatesTrainingLab(lr=0.05, **SHORT).set(**settings)
    result = lab.run()
    assert lab.law(result) is None
    assert {c.label for c in lab.curves(result)} == {"chance (theory)", "momentum (real model)"}
    if lab.project == "on":
        np.testing.assert_allclose(result["norm"], result["norm"][0], rtol=1e-5)
    if lab.schedule == "linear":  # the last of the rates is 0, which has no place on a log axis
        assert result["elr"][-1] == 0
        shown = next(t for t in lab.picture(result)["data"] if t["xaxis"] == "x3")
        assert len(shown["x"]) == 50 and (shown["y"] > 0).all()


# ---- a run that goes wrong


def test_a_run_that_diverges_says_so_and_the_lab_lives_on(monkeypatch):
    lab = RatesTrainingLab(norm="none", lr=1.6, weight_decay=0.1, steps=200)
    with pytest.raises(FloatingPointError, match=r"at step \d+: lower the learning rate, or use a norm"):
        lab.run()
    with monkeypatch.context() as patch:  # with a norm, whether such a run diverges hangs on roundings
        patch.setattr(training, "train", lambda **options: iter([{"step": 7, "diverged": True}]))
        with pytest.raises(FloatingPointError, match="at step 7: lower the learning rate, or the weight decay"):
            lab.set(norm="layernorm").run()
    assert lab.run("coarse")["step"].tolist() == [0]
    assert len(lab.set(lr=0.05, steps=100).run()["step"]) == 51
    assert "momentum (real model)" in lab.describe()


def test_the_step_of_the_divergence_is_the_reported_one(monkeypatch):
    def explode(**options):
        yield {"step": 7, "diverged": True, "loss": float("nan"), "norms": None, "elr": None, "done": True}

    monkeypatch.setattr(training, "train", explode)
    with pytest.raises(FloatingPointError, match="step 7: lower the learning rate"):
        RatesTrainingLab().run()


def test_a_stopped_stream_is_a_picture():
    lab = RatesTrainingLab(optimizer="adam", lr=0.0125)
    stream = lab.stream()
    for _ in range(3):
        done, result = next(stream)
    stream.close()
    assert 0 < done < 0.1 and result["step"].tolist() == [0, 6, 12]
    assert "adam (theory)" in lab.describe(result)


def test_the_state_travels(tmp_path):
    lab = RatesTrainingLab(optimizer="adamp", project="on", lr=0.0125, seed=4, **SHORT)
    again = Lab.load(json.dumps(lab.state()))
    assert type(again) is RatesTrainingLab and again.controls() == lab.controls()
    for name in ("lab.html", "lab.json"):
        assert Lab.load(lab.save(tmp_path / name)).controls() == lab.controls()
