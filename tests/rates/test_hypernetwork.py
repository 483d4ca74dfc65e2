"""Hypernetworks: the encoding, homogeneity of the plain one, what MIP does to both, and the toy training."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from normkit.rates.hypernetwork import Hypernetwork, encode, toy_target, train_toy, wave
from normkit.rng import stream

ARMS = [(False, False), (True, False), (False, True), (True, True)]


def uniform(name, *shape):
    return stream(0, "test_hypernetwork", name).uniform(size=shape)


def conv_net():
    return (
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3)).double().eval()
    )


# ---- the encoding -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_encoding_is_a_quarter_turn_of_constant_norm(kind):
    z = uniform("z", 4, 3)
    code = encode(kind(z))
    assert type(code) is type(kind(z))
    code = np.asarray(code)
    np.testing.assert_allclose((code**2).sum(-1), 3, rtol=1e-14)  # |E(z)| = sqrt(k)
    np.testing.assert_allclose(np.arctan2(code[:, 3:], code[:, :3]) * 2 / np.pi, z, rtol=1e-12)
    np.testing.assert_allclose(encode(np.array([0.0, 1.0])), [1, 0, 0, 1], atol=1e-16)


@pytest.mark.parametrize(("z", "match"), [([0.5, 1.01], "[0, 1]"), ([-0.1, 0.5], "-0.1"), ([0.5, math.nan], "finite")])
def test_what_the_encoding_cannot_tell_apart_is_refused(z, match):
    import re

    with pytest.raises(ValueError, match=re.escape(match)):
        encode(np.array(z))
    for arm in ARMS:
        with pytest.raises(ValueError, match=re.escape(match)):
            Hypernetwork(conv_net(), 2, encode=arm[0], residual=arm[1]).predict(torch.tensor(z).double())


def test_integers_are_refused():
    with pytest.raises(TypeError, match="floating"):
        encode(np.array([0, 1]))


# ---- the module -------------------------------------------------------------------------------------------------------


def by_hand(model, z):
    """The flat prediction, layer by layer in NumPy."""
    h = np.concatenate([np.cos(np.pi / 2 * z), np.sin(np.pi / 2 * z)]) if model.encode else z
    linear = [m for m in model.mlp if isinstance(m, nn.Linear)]
    for m in linear[:-1]:
        h = m.weight.detach().numpy() @ h + m.bias.detach().numpy()
        h = np.where(h > 0, h, 0.01 * h)
    return linear[-1].weight.detach().numpy() @ h + linear[-1].bias.detach().numpy()


@pytest.mark.parametrize(("encoded", "residual"), ARMS)
def test_prediction_is_the_mlp_cut_into_the_targets_parameters(encoded, residual):
    target = conv_net()
    model = Hypernetwork(target, 2, (7, 5), encode=encoded, residual=residual)
    z = uniform("z", 2)
    weights = model.predict(torch.from_numpy(z))
    assert {n: w.shape for n, w in weights.items()} == {n: p.shape for n, p in target.named_parameters()}
    flat = torch.cat([w.flatten() for w in weights.values()]).detach().numpy()
    np.testing.assert_allclose(flat, by_hand(model, z), rtol=1e-12, atol=1e-14)
    own = torch.cat([p.flatten() for p in target.parameters()])
    assert torch.equal(model.base, own if residual else torch.zeros_like(own))


def test_forward_is_the_target_with_these_weights_alone_and_in_a_batch():
    target = conv_net()
    model = Hypernetwork(target, 2, (7,))
    z, x = torch.from_numpy(uniform("z", 5, 2)), torch.from_numpy(uniform("x", 5, 3, 1, 4, 4))
    rows = []
    for each, images in zip(z, x, strict=True):
        filled = conv_net()
        filled.load_state_dict(dict(model.predict(each)), strict=False)
        rows.append(filled(images))
        torch.testing.assert_close(model(each, images), rows[-1])
    torch.testing.assert_close(model(z, x), torch.stack(rows))


def test_gradients_reach_the_hypernetwork_and_not_the_target():
    target = conv_net()
    model = Hypernetwork(target, 2)
    model(torch.from_numpy(uniform("z", 2)), torch.from_numpy(uniform("x", 3, 1, 4, 4))).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.mlp.parameters())
    assert all(p.grad is None for p in [*model.target.parameters(), *target.parameters()])
    assert all(p.requires_grad for p in target.parameters())  # a copy was frozen, not the caller's


def test_state_dict_loads_and_one_seed_is_one_network():
    one, two = (Hypernetwork(conv_net(), 2, seed=s) for s in (1, 2))
    z = torch.from_numpy(uniform("z", 2))
    assert not torch.equal(one.predict(z)["4.weight"], two.predict(z)["4.weight"])
    two.load_state_dict(one.state_dict())
    assert torch.equal(one.predict(z)["4.weight"], two.predict(z)["4.weight"])
    target = conv_net()
    assert torch.equal(*(Hypernetwork(target, 2, seed=3).predict(z)["4.weight"] for _ in range(2)))


def test_initial_deviation_is_kaimings_over_fan_out():
    model = Hypernetwork(nn.Linear(30, 30), 1, (200, 300))
    for layer, gain in ((model.mlp[2], math.sqrt(2 / (1 + 0.01**2))), (model.mlp[4], 1.0)):
        n = layer.weight.numel()
        # a sample deviation of n normal numbers is off by 1 / sqrt(2n)
        assert layer.weight.std().item() == pytest.approx(gain / layer.weight.shape[0] ** 0.5, rel=4 / math.sqrt(2 * n))


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: Hypernetwork(nn.Tanh()), "no parameters"),
        (lambda: Hypernetwork(nn.Linear(2, 2), 0), ">= 1"),
        (lambda: Hypernetwork(nn.Linear(2, 2), 1, (4, 0)), ">= 1"),
        (lambda: Hypernetwork(nn.Linear(2, 2), 2).predict(torch.ones(3)), r"\(2,\)"),
        (lambda: Hypernetwork(nn.Linear(2, 2), 2).predict(torch.ones(1, 1, 2)), r"\(batch, 2\)"),
        (lambda: train_toy(steps=0), "steps"),
    ],
)
def test_errors(call, match):
    with pytest.raises(ValueError, match=match):
        call()


# ---- what the paper is about ------------------------------------------------------------------------------------------


def deviations(model, zs):
    with torch.no_grad():
        weights = model.predict(torch.tensor(zs)[:, None])
    return torch.cat([w.flatten(1) for w in weights.values()], 1).std(1).numpy()


@pytest.mark.parametrize("hidden", [(32,), (16, 16, 16)])
def test_plain_prediction_is_proportional_to_the_input(hidden):
    """With zero biases h(c z) = c h(z): LeakyReLU is positively homogeneous."""
    model = Hypernetwork(toy_target(0), 1, hidden, encode=False, residual=False)
    zs = [0.01, 0.1, 0.5, 1.0]
    np.testing.assert_allclose(deviations(model, zs) / zs, deviations(model, [1.0])[0], rtol=1e-5)


def test_magnitude_with_mip_hardly_depends_on_the_input():
    """|E(z)| is constant: what is left is which of the two code entries is large; at 32 units, below a factor of 2."""
    found = deviations(Hypernetwork(toy_target(0), 1, (32,)), [0.01, 0.1, 0.5, 1.0])
    assert found.max() / found.min() < 2


def test_residual_alone_bounds_the_prediction_from_below_by_the_base():
    target = toy_target(0)
    model = Hypernetwork(target, 1, encode=False, residual=True)
    for name, w in model.predict(torch.zeros(1)).items():
        torch.testing.assert_close(w, dict(target.named_parameters())[name].detach())


def test_toy_learns_its_wave_and_repeats():
    torch.testing.assert_close(wave(torch.tensor(1.0), torch.tensor(0.25)), torch.tensor(math.sin(1.5)))
    assert sum(p.numel() for p in toy_target(0).parameters()) == 48
    one, two = (train_toy(lr=1e-2, steps=150, seed=3) for _ in range(2))
    assert one.losses == two.losses and one.loss == two.loss
    assert len(one.losses) == 150
    # the wave's mean square is about 1/2; a net that ignores z can explain only the mean over z
    assert one.loss < 0.02 < 0.2 < one.losses[0]
    assert train_toy(lr=1e-2, steps=3, seed=4).losses[0] != one.losses[0]


def test_divergence_is_an_error():
    with pytest.raises(FloatingPointError, match="lower lr"):
        train_toy(lr=1e30, steps=5)
