"""PlasticityLab: every control, what the stream of tasks reports against what is drawn, its laws, and divergence."""

import json

import numpy as np
import pytest

from normkit import Lab, PlasticityLab
from normkit.rates import laws, plasticity, training
from normkit.rates.plasticity_lab import ARMS, DIM, MATRIX, RIGHT, START, STYLES

SHORT = {"tasks": 3, "steps": 50}
HELD = ("nap", "projection_only", "nap_copied")


def by_name(lab, result):
    return {(c.label, c.axes): c for c in lab.curves(result)}


def reports(arm, lab):
    options = {"tasks": lab.tasks, "steps": lab.steps, "lr": lab.lr, "optimizer": lab.optimizer, "seed": lab.seed}
    return list(plasticity.stream_of_tasks(arm, **options))


def shortened():
    """The lab's grid at 50 steps a task, and the ends of `steps` once: what is drawn then does not depend on them."""
    for settings in PlasticityLab.grid():
        if "steps" not in settings or len(settings) == 1:
            yield {"steps": 50, **settings}


@pytest.mark.parametrize("settings", list(shortened()), ids=lambda s: "-".join(map(str, s.values())))
def test_every_control_over_its_range_after_one_task(settings):
    lab = PlasticityLab().set(**settings)
    result = lab.run("coarse")
    assert set(result) == {f"{lab.arm}.{key}" for key in ("online", "norm", "elr", "dead")}
    assert {v.shape for v in result.values()} == {(1,)}
    assert all(np.isfinite(t["y"]).all() for t in lab.picture(result)["data"])
    text = lab.describe(result)
    assert all(f"{panel}: " in text for panel in ("Plasticity", "Radius", lab.right.capitalize()))
    assert "chance (theory) stays" in text and f"at task {lab.tasks}" in text


def test_the_arms_and_the_matrix_are_those_of_the_stream():
    assert tuple(plasticity.ARMS) == ARMS and set(STYLES) == set(ARMS)
    assert len(set(STYLES.values())) == len(ARMS)
    assert PlasticityLab.declared()["optimizer"].values == tuple(plasticity.OPTIMIZERS)
    matrices = training.Net().matrices()
    assert list(matrices)[1] == MATRIX and matrices[MATRIX].numel() == DIM
    squares = [training.Net(seed=s).matrices()[MATRIX].detach().double().square().sum().item() for s in range(20)]
    # 4096 squares of variance 2/64 spread by sqrt(2 / 4096) = 2.2 % a seed: 2 % are four standard errors of 20
    assert np.mean(squares) == pytest.approx(START**2, rel=0.02)


@pytest.mark.parametrize("arm", ARMS)
def test_what_is_drawn_is_what_the_stream_of_tasks_reports(arm):
    lab = PlasticityLab(arm=arm, against="nothing", **SHORT)
    fractions, results = zip(*lab.stream(), strict=True)
    assert fractions == pytest.approx((1 / 3, 2 / 3, 1))
    want = reports(arm, lab)
    for key, reported in (("online", "online"), ("dead", "dead")):
        np.testing.assert_array_equal(results[-1][f"{arm}.{key}"], [r[reported] for r in want])
    for key, reported in (("norm", "norms"), ("elr", "elr")):
        np.testing.assert_array_equal(results[-1][f"{arm}.{key}"], [r[reported]["hidden.1.weight"] for r in want])
    for right, key in zip(RIGHT, ("elr", "dead"), strict=True):
        curves = by_name(lab.set(right=right), results[-1])
        for axes, shown in enumerate(("online", "norm", key)):
            curve = curves[f"{arm} (real model)", axes]
            assert curve.x.tolist() == [1, 2, 3] and curve.style == STYLES[arm]
            np.testing.assert_array_equal(curve.y, results[-1][f"{arm}.{shown}"])
    for key, values in lab.run("coarse").items():  # the first of three tasks is the first of one
        np.testing.assert_array_equal(values, results[0][key])


def test_two_nets_are_trained_one_after_the_other():
    lab = PlasticityLab(arm="adamp", against="nap", tasks=2, steps=50, optimizer="momentum", lr=0.04)
    fractions, results = zip(*lab.stream(), strict=True)
    assert fractions == (0.25, 0.5, 0.75, 1)
    assert [len(r["adamp.norm"]) for r in results] == [1, 2, 2, 2]
    assert [len(r.get("nap.norm", ())) for r in results] == [0, 0, 1, 2]
    alone = PlasticityLab(arm="nap", against="nothing", tasks=2, steps=50, optimizer="momentum", lr=0.04).run()
    for key, values in alone.items():
        np.testing.assert_array_equal(results[-1][key], values)
    lab.set(against="adamp")
    assert lab.arms() == ["adamp"] and len({c.name for c in lab.curves(lab.run("coarse"))}) == 2


def test_every_control_reaches_the_stream():
    short = {"against": "nothing", "tasks": 2, "steps": 50}
    base = PlasticityLab(**short).run()["layernorm.norm"]
    for change in ({"optimizer": "momentum"}, {"lr": 0.02}, {"steps": 100}, {"seed": 1}, {"arm": "weight_decay"}):
        lab = PlasticityLab(**short).set(**change)
        assert not np.array_equal(lab.run()[f"{lab.arm}.norm"], base), change
    np.testing.assert_array_equal(PlasticityLab(**short, right="dead units").run()["layernorm.norm"], base)
    np.testing.assert_array_equal(PlasticityLab(**short).set(tasks=3).run()["layernorm.norm"][:2], base)


# ---- the laws


def test_the_chance_line_spans_the_tasks():
    lab = PlasticityLab(tasks=2, steps=50)
    line = by_name(lab, lab.run("coarse"))["chance (theory)", 0]
    assert line.x.tolist() == [1, 2] and line.y.tolist() == [0.1, 0.1]
    assert training.CLASSES == 10


@pytest.mark.parametrize("optimizer", ["adam", "momentum"])
@pytest.mark.parametrize("arm", ARMS)
def test_a_law_is_drawn_where_there_is_one(arm, optimizer):
    lab = PlasticityLab(arm=arm, against="nothing", optimizer=optimizer, **SHORT)
    curves = by_name(lab, lab.run("coarse"))
    law = (arm in HELD) or (optimizer == "adam" and arm != "plain")
    assert ((f"{arm} (theory)", 1) in curves) == law
    assert ((f"{arm} (theory)", 2) in curves) == (law and arm != "nap_copied")
    if law:
        line = curves[f"{arm} (theory)", 1]
        assert line.x.tolist() == [1, 2, 3]
        if arm != "nap_copied":
            power = 1 if optimizer == "adam" else 2
            np.testing.assert_allclose(curves[f"{arm} (theory)", 2].y, lab.lr / line.y**power)
    assert (f"{arm} (theory)", 2) not in by_name(lab.set(right="dead units"), lab.run("coarse"))


def test_adams_law_is_its_random_walk():
    """||w||^2 <- (1 - lr wd)^2 ||w||^2 + lr^2 dim f, f = 1, or (1 - beta1) / (1 + beta1) where the radial part goes."""
    for arm, decay, factor in (("layernorm", 0, 1), ("weight_decay", 0.1, 1), ("adamp", 0, 0.1 / 1.9)):
        lab = PlasticityLab(arm=arm, tasks=20)
        squares = [128.0]
        for _ in range(3000):
            squares.append(squares[-1] * (1 - 0.01 * decay) ** 2 + 0.01**2 * 4096 * factor)
        # AdamW's divisor lags by a thousand steps behind gradients that shrink with 1/||w||: the lab's walk is slower,
        # once the long first steps, whose momentum is made of a few gradients, count for little
        ratio = ((lab.law(arm) ** 2 - 128) / (np.array(squares[150::150]) - 128))[4:]
        assert (ratio > 0.6).all() and (ratio < 1.1).all(), (arm, ratio)
        np.testing.assert_allclose(
            lab.law(arm),
            laws.norm_growth(
                "adamp" if arm == "adamp" else "adam", 3000, lr=0.01, weight_decay=decay, radius=START, dim=4096
            )[150::150],
        )


@pytest.mark.parametrize("arm", HELD)
def test_held_norms_stay_where_they_began(arm):
    lab = PlasticityLab(arm=arm, against="nothing", **SHORT)
    norm = lab.run()[f"{arm}.norm"]
    start = training.Net().matrices()[MATRIX].norm().item()
    np.testing.assert_allclose(norm, start, rtol=1e-5)  # float32
    np.testing.assert_allclose(lab.law(arm), norm, rtol=0.045)  # a norm spreads by 1.1 % from net to net


def test_free_norms_grow_and_their_effective_learning_rate_falls():
    result = PlasticityLab(tasks=3, steps=100, seed=2).run()
    assert (np.diff(result["layernorm.norm"]) > 0).all() and (np.diff(result["layernorm.elr"]) < 0).all()
    np.testing.assert_allclose(result["layernorm.elr"] * result["layernorm.norm"], 0.01, rtol=1e-6)
    np.testing.assert_allclose(result["nap.elr"], result["nap.elr"][0], rtol=1e-5)
    for arm in ("layernorm", "nap"):
        assert (result[f"{arm}.online"] > 0.3).all()  # chance is 0.1


# ---- a run that goes wrong


def diverging(arm, **options):
    good = dict(plasticity_report(), task=0)
    yield good
    yield {**good, "task": 1, "diverged": True, "norms": None, "elr": None, "dead": float("nan")}


def plasticity_report():
    return {"online": 0.5, "norms": {MATRIX: 12.0}, "elr": {MATRIX: 1e-3}, "dead": 0.0, "diverged": False}


def test_a_run_that_diverges_says_so_and_the_lab_lives_on(monkeypatch):
    lab = PlasticityLab(**SHORT)
    with monkeypatch.context() as patch:
        patch.setattr(plasticity, "stream_of_tasks", diverging)
        with pytest.raises(FloatingPointError, match=r"the loss of layernorm .* in task 2: lower the learning rate"):
            lab.run()
        assert lab.run("coarse")["layernorm.norm"].tolist() == [12.0]
    assert len(lab.set(against="nothing").run()["layernorm.norm"]) == 3


@pytest.mark.parametrize("arm", ["plain", "projection_only", "nap_copied", "adamp"])
@pytest.mark.parametrize("optimizer", ["adam", "momentum"])
def test_the_largest_learning_rate_is_a_picture(arm, optimizer):
    lab = PlasticityLab(arm=arm, against="nothing", optimizer=optimizer, lr=0.16, tasks=2, steps=50)
    picture = lab.picture(lab.run())
    assert all(np.isfinite(t["y"]).all() and len(t["y"]) for t in picture["data"])


def test_the_state_travels(tmp_path):
    lab = PlasticityLab(arm="plain", against="nothing", right="dead units", tasks=2, steps=50, lr=0.02, seed=4)
    again = Lab.load(json.dumps(lab.state()))
    assert type(again) is PlasticityLab and again.controls() == lab.controls()
    for name in ("lab.html", "lab.json"):
        assert Lab.load(lab.save(tmp_path / name)).controls() == lab.controls()
