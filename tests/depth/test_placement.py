"""Every placement against its paper's formula, in NumPy and torch, and what its initialization promises."""

import math

import numpy as np
import pytest

from normkit.depth import PLACEMENTS
from normkit.depth.placement import check, residual_step, rule, weight_scales

LAYERS = 8


def norm(x):
    return x / ((x * x).mean(-1)[..., None] ** 0.5)


def branch(h):
    return h * h + 0.5 * h  # not homogeneous: scaling its input is not scaling its output


FORMULA = {
    "none": lambda x, k: x + branch(x),
    "pre": lambda x, k: x + branch(norm(x)),
    "post": lambda x, k: norm(x + branch(x)),
    "peri": lambda x, k: x + norm(branch(norm(x))),
    "mix": lambda x, k: norm(x + branch(x)) if k <= 2 else x + branch(norm(x)),  # a = 1/4 of 8
    "layernorm_scaling": lambda x, k: x + branch(norm(x) / math.sqrt(k)),
    "deepnorm": lambda x, k: norm(2.0 * x + branch(x)),  # (2 8)^(1/4) = 2
    "scaled_sqrt_l": lambda x, k: x + branch(x) / math.sqrt(8),
    "scaled_l": lambda x, k: x + branch(x) / 8,
    "skipinit": lambda x, k: x,
    "fixup": lambda x, k: x + branch(x),  # zero only through its weights
}


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_step_is_the_formula_in_numpy_and_torch(placement):
    import torch

    x = np.random.default_rng(0).standard_normal((3, 5, 16))
    for layer in range(LAYERS):
        want = FORMULA[placement](x, layer + 1)
        got = residual_step(x, branch, placement, layer, LAYERS, norm)
        np.testing.assert_allclose(got, want, rtol=1e-13, atol=1e-13)  # a few float64 roundings of numbers near 1
        twin = residual_step(torch.from_numpy(x), branch, placement, layer, LAYERS, norm)
        np.testing.assert_allclose(twin.numpy(), want, rtol=1e-13, atol=1e-13)


def test_mix_boundaries_are_pre_and_post_to_the_bit():
    x = np.random.default_rng(1).standard_normal((4, 16))
    for layer in range(LAYERS):
        for mix, same in ((0.0, "pre"), (1.0, "post")):
            got = residual_step(x, branch, "mix", layer, LAYERS, norm, mix=mix)
            np.testing.assert_array_equal(got, residual_step(x, branch, same, layer, LAYERS, norm))
    assert [rule("mix", layer, 6).norm_sum for layer in range(6)] == [True] + [False] * 5  # floor(6/4) = 1


def test_trained_scale_and_second_norm():
    x = np.random.default_rng(2).standard_normal((4, 16))
    got = residual_step(x, branch, "skipinit", 0, LAYERS, norm, scale=np.float64(0.3))
    np.testing.assert_allclose(got, x + 0.3 * branch(x), rtol=1e-15)
    # a float would do, but a trained scalar is a tensor: one that holds 1 must still carry its gradient
    import torch

    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    residual_step(torch.from_numpy(x), branch, "fixup", 0, LAYERS, norm, scale=scale).sum().backward()
    assert float(scale.grad) == pytest.approx(branch(x).sum())
    peri = residual_step(x, branch, "peri", 0, LAYERS, norm, output_norm=lambda y: 3 * norm(y))
    np.testing.assert_allclose(peri, x + 3 * norm(branch(norm(x))), rtol=1e-14)


def test_weights_at_initialization():
    assert weight_scales("deepnorm", 32, 2) == pytest.approx((0.25, 0.25))  # (8 32)^(-1/4)
    assert weight_scales("fixup", 16, 2) == (0.25, 0.0)  # n^(-1/2)
    assert weight_scales("fixup", 16, 3) == (0.5, 0.5, 0.0)  # n^(-1/4)
    assert weight_scales("fixup", 16, 1) == (0.0,)
    for placement in set(PLACEMENTS) - {"deepnorm", "fixup"}:
        assert weight_scales(placement, 16, 2) == (1.0, 1.0)


def test_names_are_forgiving_but_not_guessed():
    assert check("LayerNorm-Scaling", 4) == "layernorm_scaling"  # upper case once sent this mode to no branch at all
    assert check("LNS") == "layernorm_scaling"
    assert check(" Pre ") == "pre"
    with pytest.raises(ValueError, match="unknown placement 'perri': did you mean 'peri'"):
        check("perri", 4)
    with pytest.raises(ValueError, match="choose from none, pre, post"):
        check("xyzzy", 4)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: check("pre", 0), ValueError, "layers must be at least 1, got 0"),
        (lambda: check("pre", 2.5), TypeError, "layers must be an integer, got 2.5"),
        (lambda: check("pre", True), TypeError, "layers must be an integer"),
        (lambda: rule("pre", 4, 4), ValueError, "layer must be in 0..3"),
        (lambda: rule("pre", -1, 4), ValueError, "layer must be in 0..3"),
        (lambda: rule("mix", 0, 4, mix=-0.1), ValueError, "share of post-norm blocks"),
        (lambda: weight_scales("fixup", 4, 0), ValueError, "matrices must be at least 1"),
    ],
)
def test_impossible_input_is_an_error(call, error, message):
    with pytest.raises(error, match=message):
        call()
