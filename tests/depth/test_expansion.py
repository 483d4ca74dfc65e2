"""The expansion against enumeration of paths, torch's Jacobians, and the moments it claims."""

import itertools
import math
from functools import reduce

import numpy as np
import pytest

from normkit.depth import expansion, laws
from normkit.depth.expansion import (
    SHARING,
    expand,
    measured_paths,
    measured_sharing,
    path_counts,
    path_share,
    paths,
    residual_net,
    sharing_variance,
    truncation_error,
)


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def enumerate_paths(matrices, scale):
    """Every one of the 2^L subsets of layers, later matrices to the left."""
    d = matrices.shape[1]
    terms = np.zeros((len(matrices) + 1, d, d))
    for k in range(len(matrices) + 1):
        for chosen in itertools.combinations(range(len(matrices)), k):
            terms[k] += scale**k * reduce(lambda product, i: matrices[i] @ product, chosen, np.eye(d))
    return terms


@pytest.mark.parametrize(("layers", "d", "scale"), [(1, 3, 1.0), (2, 1, -0.7), (6, 4, 0.5), (9, 5, 1.3)])
def test_paths_are_the_enumerated_subsets_and_sum_to_the_net(layers, d, scale):
    w = draw(layers, d, d)
    got, want = paths(w, scale), enumerate_paths(w, scale)
    assert got.shape == (layers + 1, d, d)
    size = np.abs(enumerate_paths(np.abs(w), abs(scale)))  # bounds the roundings where paths cancel
    assert (np.abs(got - want) <= 1e-14 * layers * d * size).all()
    whole = reduce(lambda product, m: (np.eye(d) + scale * m) @ product, w, np.eye(d))
    np.testing.assert_allclose(got.sum(0), whole, rtol=0, atol=1e-12 * size.sum(0).max())


def test_order_of_the_factors_and_scale_zero():
    up, down = np.array([[0.0, 1], [0, 0]]), np.array([[0.0, 0], [1, 0]])
    np.testing.assert_array_equal(paths([up, down])[2], down @ up)  # first layer rightmost
    terms = paths(draw(5, 3, 3), 0.0)
    np.testing.assert_array_equal(terms[0], np.eye(3))
    assert not terms[1:].any()


def test_counts_are_exact_at_any_depth():
    assert path_counts(4) == (1, 4, 6, 4, 1)
    assert sum(path_counts(200)) == 2**200  # far beyond int64 and the integers of float64
    identities = paths(np.broadcast_to(np.eye(2), (12, 2, 2)))
    np.testing.assert_array_equal(identities[:, 0, 0], path_counts(12))


@pytest.mark.parametrize(("layers", "scale", "gain"), [(1, 1.0, 1.0), (12, 0.3, 2.0), (64, 1.0, 0.5), (900, 2.0, 1.0)])
def test_share_is_binomial(layers, scale, gain):
    from fractions import Fraction

    ratio = Fraction(gain) * Fraction(scale) ** 2
    want = [math.comb(layers, k) * ratio**k / (1 + ratio) ** layers for k in range(layers + 1)]
    got = path_share(layers, scale, gain)
    np.testing.assert_allclose(got, [float(w) for w in want], rtol=4 * layers * 2.3e-16, atol=1e-300)
    # two products and a sum a layer, all positive
    assert got.sum() == pytest.approx(1, abs=1e-12)


def test_share_extremes():
    np.testing.assert_array_equal(path_share(3, 0.0), [1, 0, 0, 0])
    np.testing.assert_array_equal(path_share(3, 1e200), [0, 0, 0, 1])
    lengths = np.arange(65)
    assert path_share(64) @ lengths == pytest.approx(32, abs=1e-12)
    assert path_share(64, 1 / 8) @ lengths == pytest.approx(64 / 65, abs=1e-12)


def test_measured_variance_of_paths_follows_the_law():
    layers, scale, gain = 6, 0.6, 1.5
    squares = measured_paths(layers, scale, width=32, gain=gain, runs=400)
    assert squares.shape == (400, 7)
    np.testing.assert_allclose(squares[:, 0], 1, rtol=1e-12)  # the skip path is the input
    want = np.array(path_counts(layers)) * (gain * scale**2) ** np.arange(layers + 1)
    error = squares.std(0, ddof=1) / math.sqrt(400)
    assert (np.abs(squares.mean(0) - want)[1:] < 4.5 * error[1:]).all()  # six two-sided tests, p = 4e-5 together
    assert (error[1:4] < 0.03 * want[1:4]).all()  # so that the line above can fail
    share = squares.mean(0) / squares.mean(0).sum()
    np.testing.assert_allclose(share, path_share(layers, scale, gain), atol=0.02)  # 4 errors of the largest terms
    np.testing.assert_allclose(want.sum(), (1 + gain * scale**2) ** layers, rtol=1e-14)


def test_run_is_the_same_whoever_else_runs():
    np.testing.assert_array_equal(measured_paths(5, runs=7)[:3], measured_paths(5, runs=3))
    assert (measured_paths(5, runs=3) != measured_paths(5, runs=3, seed=1))[:, 1:].all()


@pytest.mark.parametrize("order", [0, 1, 2])
def test_halving_the_scale_divides_the_error(order):
    errors = [truncation_error(s, order, layers=8) for s in (0.02, 0.01, 0.005)]
    # The next term is of relative size ~ L scale / 2 < 0.1 at 0.02 and moves the ratio by half of that, at most 5 %.
    np.testing.assert_allclose(np.array(errors[:-1]) / errors[1:], 2.0 ** (order + 1), rtol=0.05)
    assert min(errors) > 1e-9  # not roundoff


def test_expansion_terms_are_torch_jacobians_over_all_pairs():
    import torch

    x, w, scale = draw(6, seed=1), draw(4, 6, 6, seed=2) / 2, 0.3
    f = [lambda v, m=m: torch.tanh(m @ v) for m in torch.from_numpy(w)]
    at = torch.from_numpy(x)
    first = scale * sum(g(at) for g in f)
    second = torch.zeros(6, dtype=torch.float64)
    for i, j in itertools.combinations(range(4), 2):
        second += scale**2 * torch.autograd.functional.jvp(f[j], at, f[i](at))[1]
    np.testing.assert_allclose(expand(x, w, scale, 0), x, rtol=0, atol=0)
    np.testing.assert_allclose(expand(x, w, scale, 1), (at + first).numpy(), rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(expand(x, w, scale, 2), (at + first + second).numpy(), rtol=1e-13, atol=1e-13)


def test_net_is_a_torch_loop_for_any_leading_shape():
    import torch

    x, w = draw(2, 3, 5, seed=3), draw(7, 5, 5, seed=4)
    want = torch.from_numpy(x)
    for m in w:
        want = want + 0.4 * torch.tanh(torch.nn.functional.linear(want, torch.from_numpy(m)))
    np.testing.assert_allclose(residual_net(x, w, 0.4), want.numpy(), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(residual_net(x, w, 0.4)[1, 2], residual_net(x[1, 2], w, 0.4), rtol=1e-13, atol=1e-13)


def test_one_layer_is_its_first_order_and_linear_nets_their_paths():
    x, w = draw(4, seed=5), draw(3, 4, 4, seed=6)
    np.testing.assert_allclose(expand(x, w[:1], 0.7, 1), residual_net(x, w[:1], 0.7), rtol=1e-15)
    tiny = 1e-6 * x  # tanh is the identity up to 1e-18 here
    linear = paths(w, 0.7)[:3].sum(0) @ tiny
    np.testing.assert_allclose(expand(tiny, w, 0.7, 2), linear, rtol=0, atol=1e-16)


def test_sharing_laws_and_their_limits():
    assert sharing_variance("independent", 64, 1.0) == 2.0**64
    assert sharing_variance("independent", 64, 1 / 8) == pytest.approx(laws.variance("scaled_sqrt_l", 64)[-1])
    assert sharing_variance("independent", 64, 1 / 64) == pytest.approx(laws.variance("scaled_l", 64)[-1])
    from scipy.special import i0, i1

    deep = 10**5  # limits are reached like 1/L
    for sharing, limit in zip(SHARING, (1, math.e**2, i1(4) / 2, i0(2)), strict=True):
        assert sharing_variance(sharing, deep, 1 / deep) == pytest.approx(limit, rel=1e-4)
    assert sharing_variance("independent", deep, deep**-0.5) == pytest.approx(math.e, rel=1e-4)
    for sharing in SHARING[1:]:
        values = [sharing_variance(sharing, layers, layers**-0.5) for layers in (4, 16, 64)]
        assert values[2] > 20 * values[1] > 200 * values[0]


@pytest.mark.parametrize("layers", [1, 2, 5, 20])
def test_sharing_series_are_brute_force_moments(layers):
    scale = 0.3
    # Gauss-Chebyshev of the second kind integrates polynomials against the semicircle exactly.
    n = 2 * layers + 2
    angle = math.pi * np.arange(1, n + 1) / (n + 1)
    semicircle = 2 / (n + 1) * np.sin(angle) ** 2 @ (1 + scale * 2 * np.cos(angle)) ** (2 * layers)
    assert sharing_variance("symmetric", layers, scale) == pytest.approx(semicircle, rel=1e-12)
    squares = sum((c * scale**k) ** 2 for k, c in enumerate(path_counts(layers)))
    assert sharing_variance("gaussian", layers, scale) == pytest.approx(squares, rel=1e-12)
    assert sharing_variance("identity", layers, scale) == pytest.approx(1.3 ** (2 * layers), rel=1e-12)


@pytest.mark.parametrize("sharing", SHARING)
def test_measured_sharing_follows_its_law(sharing):
    layers = 16
    got = measured_sharing(sharing, layers, 1 / layers, width=128, runs=8)
    want = sharing_variance(sharing, layers, 1 / layers)
    # Traces of one random matrix fluctuate like 1/width, and the law's own correction is of the same order.
    np.testing.assert_allclose(got.mean(), want, rtol=0.03)
    assert abs(want - 1) > (0.05 if sharing == "independent" else 0.9)  # so that returning the input fails


def test_independent_layers_are_not_one_layer_repeated():
    tied, own = (measured_sharing(s, 64, 1 / 8, width=64, runs=2).mean() for s in ("symmetric", "independent"))
    assert own == pytest.approx(sharing_variance("independent", 64, 1 / 8), rel=0.2)  # 1/sqrt(L) suits own weights
    assert tied > 1e6  # and explodes shared ones


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: paths(np.eye(3)), r"\(layers, d, d\).*\(3, 3\)"),
        (lambda: paths(np.zeros((0, 3, 3))), "at least one layer"),
        (lambda: paths(np.zeros((2, 3, 4))), r"\(2, 3, 4\)"),
        (lambda: paths(np.full((1, 2, 2), np.nan)), "finite"),
        (lambda: paths(np.eye(2)[None], math.inf), "scale"),
        (lambda: paths(np.full((3, 2, 2), 1e200)), "finite"),
        (lambda: path_counts(0), "layers"),
        (lambda: path_share(4, gain=-1), "gain"),
        (lambda: path_share(4, math.nan), "scale"),
        (lambda: measured_paths(4, runs=0), "runs"),
        (lambda: residual_net(np.zeros(3), np.zeros((2, 4, 4)), 1.0), "width 4"),
        (lambda: residual_net(np.full(4, np.inf), np.zeros((2, 4, 4)), 1.0), "finite"),
        (lambda: expand(np.zeros(4), np.zeros((2, 4, 4)), 1.0, 3), "order"),
        (lambda: sharing_variance("indepedent", 4, 1.0), "independent"),
        (lambda: sharing_variance("symmetric", 2000, 1.0), "overflows"),
        (lambda: sharing_variance("independent", 4, -1e200), "overflows"),
        (lambda: measured_sharing("identity", 4, 1e100), "finite"),
        (lambda: measured_sharing("gaussian", 4, 1.0, width=1), "width"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_lazy_home():
    import normkit.depth

    assert normkit.depth.expansion is expansion
