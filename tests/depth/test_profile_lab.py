import json

import numpy as np
import pytest
import torch

import normkit
from normkit import Profile, ProfileLab
from normkit.depth import PLACEMENTS, laws, residual_profile
from normkit.profile import QUANTITIES
from normkit.real_lab import stored


def by_name(lab):
    return {(c.label, c.axes): c for c in lab.curves(lab.run())}


# ---- the law of a step


def test_the_steps_of_known_placements():
    update, angle = laws.steps("post", 5)
    np.testing.assert_allclose(update, 2 - 2**0.5)  # x' = (x + f)/sqrt(2): |x' - x|^2 = 2 - 2 cos 45
    np.testing.assert_allclose(angle, 0.25)
    update, angle = laws.steps("pre", 5)
    np.testing.assert_allclose(update, 1)  # a branch of variance 1 is added
    np.testing.assert_allclose(np.tan(np.pi * angle), np.arange(1, 6) ** -0.5)  # across 1, along sqrt(l)
    for still in ("skipinit", "fixup"):
        np.testing.assert_array_equal(np.stack(laws.steps(still, 3)), 0)


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("sublayer", ["linear", "mlp"])
def test_random_nets_follow_the_law_of_a_step(placement, sublayer):
    net = residual_profile(placement, layers=6, width=128, tokens=16, sublayer=sublayer, seeds=16)
    update, angle = laws.steps(placement, 6, matrices=1 if sublayer == "linear" else 2)
    # the tokens of a run share its matrices, whose squared norm spreads by sqrt(2)/128 a layer (ReLU: times 3); an update
    # of none multiplies up to 6 such factors: 10 % are 5 standard errors of 16 runs, and 0.01 pi those of the angle
    np.testing.assert_allclose(net.update.mean(0)[1:], update[1:], rtol=0.1, atol=1e-12)
    # x_0 is not normalized yet: a norm on the sum also evens out its tokens' sizes, which spread by 1/sqrt(2 width)
    np.testing.assert_allclose(net.update.mean(0)[0], update[0], rtol=0.1, atol=1.3 / (2 * 128))
    np.testing.assert_allclose(net.angle.mean(0), angle, atol=0.01)


def test_steps_refuses_what_variance_refuses():
    with pytest.raises(ValueError, match="did you mean 'pre'"):
        laws.steps("prer", 3)
    with pytest.raises(ValueError, match="at least 1"):
        laws.steps("pre", 0)


# ---- what random nets report, against their definitions in torch


def test_update_norm_angle_and_entropy_are_what_they_say():
    """A Post-LN attention net of one layer, rebuilt in torch from the same weights."""
    from normkit.depth.experiment import EPS, _normal, _weights

    profile = residual_profile("post", layers=1, width=16, tokens=5, sublayer="attention", seeds=2, dtype=np.float64)
    for run in range(2):
        x = torch.tensor(_normal((5, 16), 0, run, "input")).double()
        q, k, v, o = (torch.tensor(w).double() for w in _weights(0, run, 0, 16, 4))
        a = torch.softmax((x @ q) @ (x @ k).T / 4, -1)
        y = torch.nn.functional.rms_norm(x + a @ (x @ v) @ o, (16,), eps=EPS)
        cosine = torch.nn.functional.cosine_similarity(x, y, dim=-1)
        want = {
            "norm": torch.stack([x.norm(dim=-1).mean(), y.norm(dim=-1).mean()]),
            "update": (y - x).square().mean()[None],
            "angle": (cosine.acos() / torch.pi).mean()[None],
            "entropy": torch.distributions.Categorical(a).entropy().mean()[None],
        }
        for key, value in want.items():
            np.testing.assert_allclose(getattr(profile, key)[run], value.numpy(), rtol=1e-9, err_msg=key)


def test_a_frozen_attention_has_the_entropy_of_its_map():
    profile = residual_profile("none", layers=12, width=16, tokens=8, sublayer="attention", seeds=4)
    assert (profile.entropy >= 0).all() and (profile.entropy <= np.log(8) + 1e-6).all()
    assert profile.entropy[:, -1].mean() < 0.5 * profile.entropy[:, 0].mean()  # growing logits freeze it


def test_only_attention_has_an_entropy():
    assert residual_profile("pre", layers=1, width=8, sublayer="mlp", seeds=1).entropy is None


# ---- the lab


@pytest.mark.parametrize("settings", list(ProfileLab.grid()), ids=lambda s: "-".join(map(str, s.values())) or "default")
def test_every_control_over_its_range(settings):
    lab = ProfileLab().set(**settings)
    for quality in ("coarse", "exact"):
        assert all(np.isfinite(t["y"]).all() for t in lab.picture(lab.run(quality))["data"])
    assert lab.describe() and lab.table()


@pytest.mark.parametrize("key", QUANTITIES)
def test_the_dots_are_the_measured_profile(key):
    curves = by_name(ProfileLab(left=key))
    values = getattr(stored()["MiniLM"], key)
    curve = curves["MiniLM (real model)", 0]
    np.testing.assert_allclose(curve.y, values.mean(0))
    assert curve.x[-1] == 6 and len(curve.x) == values.shape[1]


def test_toy_theory_and_model_stand_at_the_same_blocks():
    curves = by_name(ProfileLab(left="update", right="variance", placement="peri"))
    for axes, points in ((0, [1, 2, 3, 4, 5, 6]), (1, [0, 1, 2, 3, 4, 5, 6])):
        for label in ("MiniLM (real model)", "peri (simulation)", "peri (theory)"):
            assert curves[label, axes].x.tolist() == points


def test_a_quantity_that_nobody_has_is_an_error_and_the_lab_goes_on():
    lab = ProfileLab(real=Profile("mine", np.array([[1.0, 2.0, 4.0]])), left="entropy")
    with pytest.raises(ValueError, match="no entropy to show: mine has none"):
        lab.describe()
    assert "post (simulation)" in lab.set(sublayer="attention").describe()


def test_the_profile_travels_with_the_state():
    own = Profile("mine", np.array([[1.0, 2.0, 4.0]]))
    again = normkit.Lab.load(json.dumps(ProfileLab(real=own, left="variance").state()))
    assert again.measured().variance.tolist() == [[1.0, 2.0, 4.0]]
    with pytest.raises(TypeError, match=r"normkit\.probe"):
        ProfileLab(real=[1.0])
