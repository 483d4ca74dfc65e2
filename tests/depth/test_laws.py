"""The laws against the papers' closed forms, quadrature, and simulations that share no code with the package."""

import math

import numpy as np
import pytest

from normkit.depth import PLACEMENTS, laws

L = 64
HARMONIC = np.cumsum(1 / np.arange(1, L + 1))

CLOSED = {
    "none": lambda g: (1 + g) ** np.arange(L + 1.0),
    "pre": lambda g: 1 + g * np.arange(L + 1),
    "post": lambda g: np.ones(L + 1),
    "peri": lambda g: 1.0 + np.arange(L + 1),
    "mix": lambda g: 1 + g * np.maximum(np.arange(L + 1) - L // 4, 0),
    "layernorm_scaling": lambda g: 1 + g * np.append(0, HARMONIC),
    "deepnorm": lambda g: np.ones(L + 1),
    "scaled_sqrt_l": lambda g: (1 + g / L) ** np.arange(L + 1),
    "scaled_l": lambda g: (1 + g / L**2) ** np.arange(L + 1),
    "skipinit": lambda g: np.ones(L + 1),
    "fixup": lambda g: np.ones(L + 1),
}
EPS = np.finfo(np.float64).eps


def test_there_is_a_closed_form_for_every_placement():
    assert tuple(CLOSED) == PLACEMENTS


@pytest.mark.parametrize("gain", [1.0, 0.3])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_variance_is_the_closed_form(placement, gain):
    got = laws.variance(placement, L, gain=gain)
    assert got.shape == (L + 1,)
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, CLOSED[placement](gain), rtol=4 * L * EPS)  # a few roundings a layer


def test_the_numbers_of_the_papers():
    assert laws.variance("pre", 64)[-1] == pytest.approx(65)
    assert laws.variance("layernorm_scaling", 64)[-1] == pytest.approx(5.7439, abs=1e-4)  # 1 + H_64: logarithmic
    assert laws.variance("scaled_sqrt_l", 4096)[-1] == pytest.approx(math.e, rel=1 / 4096)  # (1+1/L)^L = e (1 - 1/2L)
    assert laws.variance("mix", 64, mix=0.5)[-1] == pytest.approx(33)
    assert laws.variance("mix", 64, mix=1.0)[-1] == 1.0
    np.testing.assert_array_equal(laws.variance("mix", 64, mix=0.0), laws.variance("pre", 64))


@pytest.mark.parametrize("gain", [1.0, 0.3])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_gradient_is_the_ratio_of_variances(placement, gain):
    """For a homogeneous branch with equal gains both ways; derived by another route than the recursion in the code."""
    variance = CLOSED[placement](gain)
    np.testing.assert_allclose(laws.gradient(placement, L, gain=gain), variance[-1] / variance, rtol=8 * L * EPS)


def test_skip_path():
    assert laws.skip_path_weight("post", 32)[-1] == pytest.approx(2**-16)
    assert laws.skip_path_weight("mix", 32)[-1] == pytest.approx(2**-4)
    for placement in ("none", "pre", "peri", "layernorm_scaling", "scaled_l", "skipinit", "fixup"):
        np.testing.assert_array_equal(laws.skip_path_weight(placement, 8), np.ones(9))
    # alpha/sqrt(alpha^2 + beta^4), alpha^2 = sqrt(2L), beta^4 = 1/8L: (1 + 1/(8L sqrt(2L)))^(-L/2)
    assert laws.skip_path_weight("deepnorm", 12, matrices=2)[-1] == pytest.approx((1 + 1 / (96 * math.sqrt(24))) ** -6)


def test_deepnorm_constants():
    assert laws.deepnorm_constants(12) == pytest.approx((2.213, 0.3195), abs=5e-4)
    assert laws.deepnorm_constants(32) == pytest.approx((2.8284271, 0.25))


def test_the_curse_of_depth_as_an_equality_is_quadratic():
    v = laws.paper_recursion(256)
    assert v[64] == pytest.approx(1032.6, abs=0.1)
    assert v[256] == pytest.approx(16330, rel=1e-4)
    # v + sqrt(v) = (sqrt(v) + 1/2)^2 - 1/4: sqrt(v) gains just under 1/2 a layer
    steps = np.diff(np.sqrt(v))
    assert (steps < 0.5).all()
    assert steps[-1] > 0.49
    np.testing.assert_allclose(laws.paper_recursion(256, scaled=True), np.arange(1, 258), rtol=256 * EPS)


@pytest.mark.parametrize("tokens", [2, 5, 64])
@pytest.mark.parametrize("variance", [0.04, 1.0, 9.0])
def test_attention_overlap_against_simulation(tokens, variance):
    z = np.random.default_rng(1).standard_normal((200_000 // tokens * 4, tokens)) * math.sqrt(variance)
    a = np.exp(z - z.max(-1, keepdims=True))
    square = ((a / a.sum(-1, keepdims=True)) ** 2).sum(-1)
    # 4 standard errors: a false alarm in 6e-5 of such tests; the quadrature's own error is below 1e-5
    assert laws.attention_overlap(variance, tokens) == pytest.approx(
        square.mean(), abs=4 * square.std() / math.sqrt(len(square)) + 1e-5
    )


def test_attention_overlap_limits():
    assert laws.attention_overlap(0.0, 7) == pytest.approx(1 / 7)
    assert laws.attention_overlap(3.0, 1) == 1.0
    # exp(s2)/T (1 + O(1/T)): by the delta method the next term is 1 + (3 - 4 e^s2 + ...)/T, below 10/T here
    assert laws.attention_overlap(0.25, 4096) == pytest.approx(math.exp(0.25) / 4096, rel=10 / 4096)
    # two keys, gap d ~ N(0, 2 s2): E[1 - 2 p (1-p)] by quadrature of the logistic function
    d = np.linspace(-12, 12, 20001) * math.sqrt(2 * 4.0)
    density = np.exp(-(d**2) / 16)
    p = 1 / (1 + np.exp(-d))
    want = ((1 - 2 * p * (1 - p)) * density).sum() / density.sum()
    assert laws.attention_overlap(4.0, 2) == pytest.approx(want, abs=1e-5)
    wide = [laws.attention_overlap(s**2, 16) for s in (10, 14.5, 15.5, 100, 1000)]
    assert np.all(np.diff(wide) > 0)
    assert wide[-1] < 1
    assert 1 - wide[-1] == pytest.approx((1 - wide[1]) * 14.5 / 1000, rel=0.02)  # ties become rare as 1/s


def _attention_nets(placement, layers, tokens, width, nets, rng):
    """Mean variance and token covariance of plain attention nets; an independent few lines, float64."""
    norm = lambda x: x / np.sqrt((x**2).mean(-1, keepdims=True))  # noqa: E731
    out = np.empty((nets, 2, layers + 1))
    for net in range(nets):
        x = rng.standard_normal((tokens, width))
        for layer in range(layers + 1):
            gram = x @ x.T / width
            off = (gram.sum() - np.trace(gram)) / (tokens * (tokens - 1))
            out[net, :, layer] = np.trace(gram) / tokens, off
            if layer == layers:
                break
            q, k, v, o = rng.standard_normal((4, width, width)) / math.sqrt(width)
            h = norm(x) if placement in ("pre", "layernorm_scaling") else x
            h = h / math.sqrt(layer + 1) if placement == "layernorm_scaling" else h
            s = (h @ q) @ (h @ k).T / math.sqrt(width)
            a = np.exp(s - s.max(-1, keepdims=True))
            x = x + a / a.sum(-1, keepdims=True) @ h @ v @ o
            x = norm(x) if placement == "post" else x
    return out.mean(0), out.std(0, ddof=1) / math.sqrt(nets)


@pytest.mark.parametrize("tokens", [2, 8, 32])
@pytest.mark.parametrize(("placement", "layers"), [("none", 4), ("pre", 10), ("post", 10), ("layernorm_scaling", 10)])
def test_attention_law_against_nets(placement, layers, tokens):
    width, nets = 96, 24
    mean, error = _attention_nets(placement, layers, tokens, width, nets, np.random.default_rng([tokens, layers]))
    theory = np.array(laws.attention_variance(placement, layers, tokens))
    # 4 standard errors, and the law's finite-width bias: of order s2^2/width a layer, within 8 % here
    np.testing.assert_array_less(np.abs(mean - theory), 4 * error + 0.08 * theory[:1] + 1e-12)


def test_attention_law_limits():
    # one token attends to itself: a linear branch
    np.testing.assert_allclose(laws.attention_variance("pre", 16, 1)[0], laws.variance("pre", 16))
    # tokens become alike: the covariance catches up with the variance, never beyond
    v, p = laws.attention_variance("pre", 64, 16)
    assert np.all(np.diff(p / v) > 0)
    assert 0.8 < p[-1] / v[-1] < 1
    assert np.isfinite(laws.attention_variance("none", 64, 16)[0]).all()
    np.testing.assert_array_equal(laws.attention_variance("fixup", 8, 16)[0], np.ones(9))


def _moments(f, mean, variance):
    """By quadrature, each side of the kink at 0 on its own (Gauss-Legendre, 400 nodes: exact to rounding)."""
    s = math.sqrt(variance)
    node, weight = np.polynomial.legendre.leggauss(400)
    total = np.zeros(2)
    for low, high in ((mean - 12 * s, min(0, mean + 12 * s)), (max(0, mean - 12 * s), mean + 12 * s)):
        if high > low:
            z = (high + low) / 2 + (high - low) / 2 * node
            w = weight * (high - low) / 2 * np.exp(-0.5 * ((z - mean) / s) ** 2) / (s * math.sqrt(2 * math.pi))
            total += (w * f(z)).sum(), (w * f(z) ** 2).sum()
    return total[0], total[1] - total[0] ** 2


def _elu(z, alpha=1.0):
    return np.where(z > 0, z, alpha * np.expm1(np.minimum(z, 0)))


@pytest.mark.parametrize("mean", [-2.0, -0.1, 0.0, 0.7, 3.0])
@pytest.mark.parametrize("variance", [0.01, 1.0, 4.0, 100.0])
def test_activation_moments_against_quadrature(mean, variance):
    selu = lambda z: 1.0507009873554805 * _elu(z, 1.6732632423543772)  # noqa: E731
    tolerance = {"rtol": 1e-10, "atol": 1e-12}  # E f^2 - (E f)^2 cancels up to 4 digits here
    np.testing.assert_allclose(
        laws.selu_map(mean, variance, weight_mean=1.0), _moments(selu, mean, variance), **tolerance
    )
    np.testing.assert_allclose(laws.elu_moments(1.0, mean, variance), _moments(_elu, mean, variance), **tolerance)
    relu = lambda z: np.maximum(z, 0)  # noqa: E731
    np.testing.assert_allclose(laws.relu_moments(mean, variance), _moments(relu, mean, variance), **tolerance)


def test_selu_fixed_point_and_constants():
    assert pytest.approx(1.6732632423543772, rel=1e-15) == laws.SELU_ALPHA
    assert pytest.approx(1.0507009873554805, rel=1e-15) == laws.SELU_LAMBDA
    mean, variance = laws.selu_map(0.0, 1.0)
    assert abs(mean) < 1e-15
    assert abs(variance - 1) < 1e-15


def test_selu_jacobian():
    jacobian = laws.selu_jacobian()
    np.testing.assert_allclose(jacobian, [[0, 0.08883], [0, 0.78265]], atol=5e-6)
    assert np.linalg.norm(jacobian, 2) == pytest.approx(0.78767, abs=1e-4)
    at, h = (0.3, 1.4, 0.5, 1.1), 1e-5
    for column in range(2):
        step = np.eye(4)[column] * h
        slope = (np.array(laws.selu_map(*(at + step))) - laws.selu_map(*(at - step))) / (2 * h)
        np.testing.assert_allclose(laws.selu_jacobian(*at)[:, column], slope, rtol=1e-8)  # h^2 and eps/h errors


def test_selu_boxes():
    """The paper's three theorems: a box maps into itself, high variance falls, low variance rises."""
    image = laws.selu_box((-0.1, 0.1), (0.8, 1.5), (-0.1, 0.1), (0.95, 1.1))
    assert image["mean"] == pytest.approx((-0.031, 0.068), abs=5e-4)
    assert image["variance"] == pytest.approx((0.8037, 1.4816), abs=5e-5)
    assert laws.selu_box((-1, 1), (3, 16), (-0.1, 0.1), (0.8, 1.25))["change"][1] < -0.11
    assert laws.selu_box((-0.1, 0.1), (0.02, 0.16), (-0.1, 0.1), (0.8, 1.25))["change"][0] > 0.007
    for v, want in ((0.1, {1: 0.150, 2: 0.213, 5: 0.449, 20: 0.979}), (16.0, {1: 9.02, 5: 2.26, 10: 1.26, 20: 1.02})):
        m = 0.0
        for layer in range(1, 21):
            m, v = laws.selu_map(m, v)
            if layer in want:
                assert v == pytest.approx(want[layer], abs=6e-3)


def test_moments_in_the_limits():
    assert laws.elu_moments()[0] == pytest.approx(0.16052, abs=1e-5)
    assert laws.relu_moments() == pytest.approx((1 / math.sqrt(2 * math.pi), 0.5 - 1 / (2 * math.pi)))
    # a constant stays one; exp(2 v) of a wide Gaussian must not overflow: there ELU is ReLU minus alpha/2
    assert laws.elu_moments(1.0, -1.0, 0.0) == pytest.approx((math.expm1(-1.0), 0.0), abs=1e-12)
    assert laws.elu_moments(1.0, 0.0, 1e8)[0] == pytest.approx(laws.relu_moments(0.0, 1e8)[0] - 0.5, abs=1e-3)
    assert laws.selu_map(np.zeros(3), np.ones(3))[1].shape == (3,)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: laws.variance("pre", 0), "layers must be at least 1, got 0"),
        (lambda: laws.variance("pree", 4), "did you mean 'pre'"),
        (lambda: laws.variance("pre", 4, gain=-1.0), "gain must be a finite number of at least 0"),
        (lambda: laws.variance("pre", 4, gain=math.nan), "gain must be a finite number"),
        (lambda: laws.variance("mix", 4, mix=1.5), "mix is the share"),
        (lambda: laws.variance("none", 3000), "overflows"),
        (lambda: laws.attention_variance("pre", 4, 0), "tokens must be at least 1"),
        (lambda: laws.attention_overlap(-1.0, 4), "logit_variance"),
        (lambda: laws.selu_map(0.0, -1.0), "cannot be negative"),
        (lambda: laws.selu_map(math.inf, 1.0), "finite"),
        (lambda: laws.selu_jacobian(0.0, 0.0), "positive variance"),
        (lambda: laws.selu_box((1, 0), (1, 2)), "low <= high"),
        (lambda: laws.paper_recursion(0), "layers"),
    ],
)
def test_impossible_input_is_an_error(call, message):
    with pytest.raises(ValueError, match=message):
        call()
