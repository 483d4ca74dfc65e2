"""Activations and their slopes against torch, and plain deep networks against the moment maps."""

import math

import numpy as np
import pytest

from normkit.depth import laws
from normkit.depth.activations import ACTIVATIONS, activation_profile, alpha_dropout_constants, second_moment, selu


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_and_slope_against_torch(name):
    import torch

    oracle = {
        "relu": torch.relu,
        "elu": torch.nn.functional.elu,
        "selu": torch.nn.functional.selu,
        "gelu": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
        "identity": lambda x: x * 1.0,
    }[name]
    values = np.append(np.random.default_rng(0).standard_normal(1000) * 4, [-800.0, -1e-9, 1e-9, 800.0])
    x = torch.from_numpy(values).requires_grad_()
    want = oracle(x)
    (slope,) = torch.autograd.grad(want.sum(), x)
    phi, derivative = ACTIVATIONS[name]
    # float64 roundings; near 0 and in the tails terms of order 1 cancel, hence the absolute part
    np.testing.assert_allclose(phi(values), want.detach().numpy(), rtol=1e-13, atol=1e-14)
    np.testing.assert_allclose(derivative(values), slope.numpy(), rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(phi(x.detach()), want.detach(), rtol=1e-13, atol=1e-14)
    assert phi(values.astype(np.float32)).dtype == np.float32


def test_second_moments():
    assert second_moment("relu") == pytest.approx(0.5, rel=1e-9)
    assert second_moment("selu") == pytest.approx(1.0, rel=1e-9)
    mean, variance = laws.elu_moments()
    assert second_moment("elu") == pytest.approx(variance + mean**2, rel=1e-9)
    z = np.random.default_rng(3).standard_normal(1_000_000)
    square = ACTIVATIONS["gelu"][0](z) ** 2
    assert second_moment("gelu") == pytest.approx(square.mean(), abs=4 * square.std() / 1000)  # 4 standard errors


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5])
def test_alpha_dropout_keeps_mean_and_variance(rate):
    value, a, b = alpha_dropout_constants(rate)
    assert value == pytest.approx(-1.7580993408473766)
    assert value == pytest.approx(float(selu(np.array(-60.0))))
    # exact moments of a (x or value) + b for x of mean 0 and variance 1, dropped with probability rate
    mean = a * rate * value + b
    square = (1 - rate) * (a**2 + b**2) + rate * (a * value + b) ** 2
    assert mean == pytest.approx(0.0, abs=1e-15)
    assert square == pytest.approx(1.0)


MAPS = {
    ("selu", "lecun"): laws.selu_map,
    ("elu", "lecun"): lambda m, v: laws.elu_moments(1.0, 0.0, v + m * m),
    ("relu", "he"): lambda m, v: laws.relu_moments(0.0, 2 * (v + m * m)),
}


@pytest.mark.parametrize(("activation", "init"), MAPS)
def test_deep_plain_network_follows_its_map(activation, init):
    """Given its input, a pre-activation has mean 0 and variance tau = E x^2 over random weights: the map in E x^2.

    SELU's own map keeps mean and variance apart (it is a statement for sum w = 0), the same thing near mean 0.
    """
    layers, width, seeds = 6, 400, 8
    got = activation_profile(activation, layers=layers, width=width, samples=64, init=init, seeds=seeds)
    assert got.mean.shape == got.variance.shape == (seeds, layers + 1)
    m, v = 0.0, 1.0
    for layer in range(1, layers + 1):
        m, v = MAPS[activation, init](m, v)
        for values, want in ((got.mean[:, layer], m), (got.variance[:, layer], v)):
            # 5.4 is the two-sided 99.9 % point of Student's t with 7 degrees of freedom; the bias of finite width is of
            # order layer/width of the second moment
            assert abs(values.mean() - want) < 5.4 * values.std(ddof=1) / math.sqrt(seeds) + layer / width


def test_selu_forgets_its_start_and_elu_does_not():
    rng = np.random.default_rng(5)
    inputs = rng.standard_normal((200, 30)) * 4  # variance 16
    selu_net = activation_profile("selu", inputs=inputs, layers=24, width=256, seeds=4)
    np.testing.assert_allclose(selu_net.variance[:, 0], inputs.var())
    # 30 inputs x 4 nets of 256 units: the mean of tau over units scatters by 2 %, the variance with it
    assert selu_net.variance.mean(0)[1] == pytest.approx(laws.selu_map(0.0, 16.0)[1], rel=0.15)
    assert 0.8 < selu_net.variance.mean(0)[-1] < 1.3
    assert activation_profile("elu", inputs=inputs, layers=24, width=256, seeds=4).variance.mean(0)[-1] < 0.1
    assert activation_profile("selu", layers=24, init="he", seeds=2).variance.mean(0)[-1] > 2  # SNNs need LeCun's


def test_runs_and_layers_are_streams_of_their_own():
    few, many = (activation_profile("selu", layers=k, width=16, seeds=s) for k, s in ((3, 2), (6, 5)))
    np.testing.assert_array_equal(few.variance, many.variance[:2, :4])
    assert not np.array_equal(few.variance, activation_profile("selu", layers=3, width=16, seeds=2, seed=1).variance)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: activation_profile("sellu"), "did you mean 'selu'"),
        (lambda: activation_profile("selu", init="xavier"), "unknown init"),
        (lambda: activation_profile("selu", layers=0), "layers must be at least 1"),
        (lambda: activation_profile("selu", inputs=[[1.0, math.nan]]), "inputs must be finite"),
        (lambda: activation_profile("selu", inputs=[1.0, 2.0]), r"\(samples, features\)"),
        (lambda: alpha_dropout_constants(1.0), "share of units dropped"),
    ],
)
def test_impossible_input_is_an_error(call, message):
    with pytest.raises(ValueError, match=message):
        call()
