import json

import numpy as np
import pytest

import normkit
from normkit import DepthLab, Profile
from normkit.depth import PLACEMENTS, laws
from normkit.depth.lab import STYLES
from normkit.depth.training_lab import DepthTrainingLab
from normkit.real_lab import stored


def by_name(lab, result=None):
    curves = lab.curves(lab.run() if result is None else result)
    return {(c.label, c.axes): c for c in curves}


@pytest.mark.parametrize("settings", list(DepthLab.grid()), ids=lambda s: "-".join(map(str, s.values())) or "default")
def test_every_control_over_its_range(settings):
    """Every setting gives finite curves in both qualities, or an error that names an overflow and what to do."""
    lab = DepthLab().set(**settings)
    for quality in ("coarse", "exact"):
        figure = lab.picture(lab.run(quality))
        assert all(np.isfinite(t["y"]).all() and len(t["y"]) for t in figure["data"])
    assert lab.describe().count("\n") == 1
    assert len(lab.table().splitlines()) > 4


def test_a_stream_that_overflows_is_an_error_that_says_what_to_do():
    lab = DepthLab(placement="none", sublayer="attention", layers=128)
    with pytest.raises(ValueError, match=r"overflow.*fewer layers"):
        lab.run()
    assert lab.set(layers=8).run()["none.variance"].shape == (3, 9)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_theory_is_the_law_and_the_dots_lie_on_it(placement):
    lab = DepthLab(placement=placement, layers=16, model="none")
    result = lab.run()
    np.testing.assert_allclose(result[f"{placement}.variance.theory"], laws.variance(placement, 16))
    mean, lo, hi = result[f"{placement}.variance"]
    # none multiplies 16 factors of variance about (2+4)/128: the mean of 1000 heavy-tailed products, hence 15 %
    np.testing.assert_allclose(mean, laws.variance(placement, 16), rtol=0.15)
    np.testing.assert_array_equal(result["variance"], mean)
    np.testing.assert_array_equal(result["gradient"], result[f"{placement}.gradient"][0])
    assert (lo <= hi).all()
    assert (lo[0], hi[0]) == pytest.approx((1 - 0.2, 1 + 0.21), abs=0.05)  # 5 and 95 % of chi2_128 / 128


def test_coarse_and_exact_agree_within_their_noise():
    lab = DepthLab(layers=32, model="none")
    coarse, exact = lab.run("coarse"), lab.run("exact")
    # 100 seeds, relative spread of a variance sqrt(2/128) = 0.125 at the input, so 5 standard errors are 6 %
    np.testing.assert_allclose(coarse["pre.variance"][0], exact["pre.variance"][0], rtol=0.08)


def test_comparing_draws_both_in_their_own_style():
    curves = by_name(DepthLab(placement="pre", against="post", model="none", layers=8))
    assert {label for label, _ in curves} == {f"{p} ({k})" for p in ("pre", "post") for k in ("theory", "simulation")}
    assert curves["pre (theory)", 0].style == STYLES["pre"] != curves["post (theory)", 0].style == STYLES["post"]
    assert len(set(STYLES.values())) == len(PLACEMENTS)


def test_real_models_are_the_stored_measurements():
    curves = by_name(DepthLab(placement="post", model="MiniLM"))
    profile = stored()["MiniLM"]
    np.testing.assert_allclose(curves["MiniLM (real model)", 0].y, profile.variance.mean(0))
    assert curves["MiniLM (real model)", 0].x.tolist() == [0, 2, 4, 6, 8, 10, 12]  # six blocks of two additions
    for placement in PLACEMENTS:
        assert (f"trained {placement} (real model)", 0) in by_name(DepthLab(placement=placement, layers=4))


def test_a_profile_of_your_own_is_drawn_in_both_panels():
    own = Profile("mine", np.array([[1.0, 2.0, 4.0]]), np.array([[4.0, 2.0, 1.0]]))
    curves = by_name(DepthLab(real=own))
    assert curves["mine (real model)", 0].y.tolist() == [1, 2, 4]
    assert curves["mine (real model)", 1].y.tolist() == [4, 2, 1]


def test_a_profile_without_gradient_shows_its_variance():
    curves = by_name(DepthLab(real=Profile("mine", np.array([[1.0, 2.0]]))))
    assert ("mine (real model)", 0) in curves
    assert ("mine (real model)", 1) not in curves


def test_a_profile_travels_with_the_state():
    own = Profile("mine", np.array([[1.0, 2.0, 4.0]]), meta={"sublayers": 2})
    again = normkit.Lab.load(json.dumps(DepthLab(real=own, layers=5).state()))
    assert again.layers == 5
    assert again.real.name == "mine"
    assert again.real.variance.tolist() == [[1.0, 2.0, 4.0]]
    with pytest.raises(TypeError, match=r"Profile.*normkit\.probe"):
        DepthLab(real=[1.0, 2.0])


# ---- training


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_training_starts_where_the_network_starts(placement):
    lab = DepthTrainingLab(placement=placement, layers=2, steps=50)
    result = lab.run("coarse")
    assert result["step"].tolist() == [0]
    assert result["variance"].shape == result["gradient"].shape == (2, 3)
    np.testing.assert_array_equal(result["variance"][0], result["variance"][1])
    lab.picture(result)


def test_training_learns_and_reports_as_it_goes():
    lab = DepthTrainingLab(placement="deepnorm", layers=2, steps=150)
    fractions, results = zip(*lab.stream(), strict=True)
    assert fractions[0] == 0 and fractions[-1] == 1 and list(fractions) == sorted(fractions)
    assert len(results) == 31  # every fifth step, and the start
    loss = results[-1]["loss"]
    assert loss[0] > 2.7 > 0.5 > loss[-1]  # chance is log 16 = 2.77
    assert not np.allclose(results[-1]["variance"][1], results[-1]["variance"][0])


def test_every_training_control_reaches_training():
    base = DepthTrainingLab(layers=2, steps=50).run()["loss"]
    for change in (
        {"lr": 1.6e-2},
        {"warmup": 50},
        {"seed": 1},
        {"layers": 4},
        {"task": "running_sum"},
        {"placement": "post"},
    ):
        assert not np.array_equal(DepthTrainingLab(**{"layers": 2, "steps": 50, **change}).run()["loss"], base), change
    assert len(DepthTrainingLab(layers=2, steps=100).run()["loss"]) > len(base)
    np.testing.assert_array_equal(DepthTrainingLab(layers=2, steps=50).run()["loss"], base)


def test_a_run_that_diverges_says_so_and_what_to_do(monkeypatch):
    from normkit.depth import training

    def explode(*args, **kwargs):
        yield {"step": 7, "diverged": True, "loss": float("nan"), "variance": None, "gradient": None, "done": True}

    monkeypatch.setattr(training, "train", explode)
    with pytest.raises(FloatingPointError, match="step 7: lower the learning rate"):
        DepthTrainingLab().run()


@pytest.mark.parametrize("placement", ["pre", "none", "layernorm_scaling", "scaled_sqrt_l", "peri", "post"])
def test_the_training_labs_law_is_the_placements_with_the_first_blocks_gain(placement):
    lab = DepthTrainingLab(placement=placement, layers=6)
    start = np.array([2.0, 3.0, *[9.0] * 5])
    block = np.arange(7)
    law = {
        "pre": 2 + 1.0 * block,
        "none": 2 * 1.5**block,
        "layernorm_scaling": 2 + np.array([0, *np.cumsum(1 / np.arange(1, 7))]),
        "scaled_sqrt_l": 2 * 1.5**block,
        "peri": 2 + 2.0 * block,
        "post": np.ones(7),
    }[placement]
    np.testing.assert_allclose(lab.law(start), law)
