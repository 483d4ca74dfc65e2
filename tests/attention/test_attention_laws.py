"""The laws against brute force: search for lower entropies, sums over vertices, simulated rows, other formulas."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from normkit.attention import laws
from normkit.rng import stream

TOKENS = st.integers(2, 500)


def entropy(z):
    """Entropy of softmax(z) by its definition, in longdouble."""
    z = np.asarray(z, np.longdouble)
    p = np.exp(z - z.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    return -np.sum(np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0), -1).astype(float)


# ---- floors ---------------------------------------------------------------------------------------------------------


@given(st.floats(0, 600, allow_subnormal=False), TOKENS)
@settings(max_examples=200, deadline=None)
def test_the_floor_is_the_entropy_of_its_logits(sigma, tokens):
    z = laws.floor_logits(sigma, tokens)
    assert z.shape == (tokens,)
    assert np.linalg.norm(z) == pytest.approx(sigma, rel=1e-13)
    assert abs(z.sum()) <= 1e-13 * sigma
    # float64 logits are rounded by 1e-16 of the largest, which changes an entropy by as much of its own size
    assert laws.entropy_floor(sigma, tokens) == pytest.approx(entropy(z), rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("tokens", [2, 3, 8, 33])
@pytest.mark.parametrize("sigma", [0.1, 1.0, 3.0, 6.0, 12.0])
def test_no_row_of_that_norm_has_less_entropy(sigma, tokens):
    floor = laws.entropy_floor(sigma, tokens)
    rng = stream(0, "search", tokens)
    z = rng.standard_normal((3000, tokens)) ** rng.integers(1, 6, (3000, 1))  # from even to one large entry
    z *= sigma / np.linalg.norm(z, axis=1, keepdims=True)
    assert entropy(z).min() >= floor - 1e-12
    for _ in range(400):  # descend on the sphere from all of them: dH/dz_i = -p_i (log p_i + H)
        p = np.exp(z - z.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        log_p = z - z.max(1, keepdims=True) - np.log(np.exp(z - z.max(1, keepdims=True)).sum(1, keepdims=True))
        h = -(p * log_p).sum(1, keepdims=True)
        gradient = -p * (log_p + h)
        z -= 0.2 * sigma * gradient / np.maximum(np.linalg.norm(gradient, axis=1, keepdims=True), 1e-300)
        z *= sigma / np.linalg.norm(z, axis=1, keepdims=True)
    found = entropy(z)
    assert found.min() >= floor - 1e-12
    assert found.min() <= floor * 1.2 + 1e-3  # and the search comes near it


def test_known_floors():
    table = {8: 1.568302, 16: 2.418708, 64: 4.041087, 256: 5.513292, 1024: 6.923336}  # sigma = 2, worked out separately
    np.testing.assert_allclose(laws.entropy_floor(2.0, np.array(list(table))), list(table.values()), atol=5e-7)
    assert laws.entropy_floor(0, 7) == pytest.approx(math.log(7), rel=1e-15)
    assert laws.entropy_floor(np.array([0.0, 5.0]), 1).tolist() == [0, 0]
    # far out: T sigma exp(-sigma), up to factors that approach 1 as T grows
    assert laws.entropy_floor(60.0, 10**6) == pytest.approx(1e6 * 61 * math.exp(-60), rel=1e-4)


@pytest.mark.filterwarnings("error")
def test_floors_fall_from_log_t_to_0_without_overflow():
    sigma = np.concatenate([[0], np.geomspace(1e-30, 1e30, 400)])
    for tokens in (2, 100, 10**9):
        floor = laws.entropy_floor(sigma, tokens)
        assert np.isfinite(floor).all() and (np.diff(floor) <= 1e-14 * math.log(tokens)).all()
        assert floor[0] == pytest.approx(math.log(tokens)) and floor[-1] == 0
    assert laws.entropy_floor(sigma[:, None], np.array([3, 4])).shape == (401, 2)
    np.testing.assert_allclose(np.linalg.norm(laws.floor_logits(sigma, 5), axis=-1), sigma, rtol=1e-14)
    assert laws.floor_logits(0.0, 1).tolist() == [0]


@pytest.mark.parametrize("tokens", [2, 3, 5, 12, 60])
@pytest.mark.parametrize("bound", [1e-9, 1e-3, 0.05, 0.4, 1.0, 2.0, 5.0, 300.0])
def test_the_bounded_floor_is_the_least_of_all_vertices(bound, tokens):
    vertices = np.where(np.arange(tokens) < np.arange(1, tokens)[:, None], bound, -bound)
    assert laws.bounded_floor(bound, tokens) == pytest.approx(entropy(vertices).min(), abs=1e-13)
    inside = stream(1, "inside").uniform(-bound, bound, (5000, tokens))
    assert entropy(inside).min() >= laws.bounded_floor(bound, tokens) - 1e-13


def test_one_favorite_is_not_the_floor_of_tightly_bounded_logits():
    one = entropy(np.where(np.arange(100) < 1, 0.5, -0.5))
    assert laws.bounded_floor(0.5, 100) < one - 0.05
    assert laws.bounded_floor(20.0, 100) == pytest.approx(entropy(np.where(np.arange(100) < 1, 20.0, -20.0)), rel=1e-9)
    assert laws.bounded_floor(1e30, 100) == 0 and laws.bounded_floor(3.0, 1) == 0


def test_largest_probability_of_bounded_logits():
    # QK-norm, T = 32: .98971 for heads of 16, .99962 for 32
    np.testing.assert_allclose(laws.largest_probability(np.sqrt([16, 32]), 32), [0.98971, 0.99962], atol=5e-6)
    z = stream(2, "bounded").uniform(-1.5, 1.5, (2000, 6))
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    assert p.max() < laws.largest_probability(1.5, 6)
    best = np.exp([1.5, *[-1.5] * 5])
    assert laws.largest_probability(1.5, 6) == pytest.approx(best[0] / best.sum(), rel=1e-14)
    assert laws.largest_probability(1e30, 6) == 1 and laws.largest_probability(0, 8) == 1 / 8


def test_causal_entropy_is_the_mean_of_log_t():
    for tokens in (1, 2, 16, 1000):
        assert laws.causal_entropy(tokens) == pytest.approx(np.log(np.arange(1, tokens + 1)).mean(), rel=1e-12, abs=0)
    assert laws.causal_entropy(np.array([[1, 16]])).shape == (1, 2)


# ---- random logits --------------------------------------------------------------------------------------------------


def test_the_leading_law():
    assert laws.random_entropy(0.0, 50) == pytest.approx(math.log(50))
    assert laws.random_entropy(1.0, 50) == pytest.approx(math.log(50) - 0.5)
    frozen = laws.freezing_scale(50)
    assert laws.random_entropy(frozen, 50) == pytest.approx(0, abs=1e-14)
    assert laws.random_entropy(np.array([frozen * 1.1, 1e30, 1e300]), 50).tolist() == [0, 0, 0]
    assert laws.freezing_scale(1) == 0


@pytest.mark.parametrize("tokens", [1, 2, 5, 40, 700])
@pytest.mark.parametrize("scale", [0.2, 0.999, 1.001, 2.5, 5.9, 6.1, 14.0, 400.0])
def test_the_exact_mean_of_simulated_rows(scale, tokens):
    rows = 200_000 // tokens + 500
    h = entropy((scale * stream(3, "rows", tokens).standard_normal((rows, tokens))).astype(np.float64))
    # 4.5 standard errors: 40 cases miss by chance once in 4000
    assert abs(h.mean() - laws.mean_entropy(scale, tokens)) <= 4.5 * h.std() / math.sqrt(rows) + 1e-11


def test_two_tokens_by_an_integral_of_their_gap():
    gap = np.linspace(-60, 60, 200_001)
    for scale in (0.3, 1.0, 1.5, 4.0):
        density = np.exp(-(gap**2) / (4 * scale**2)) / math.sqrt(4 * math.pi) / scale
        h = entropy(np.stack([gap, 0 * gap], -1))
        assert laws.mean_entropy(scale, 2) == pytest.approx(np.trapezoid(h * density, gap), abs=2e-11)


def test_the_exact_mean_is_smooth_where_its_quadrature_changes():
    for tokens in (2, 100, 10**9):
        for scale in (1.0, 6.0, 600.0):
            around = laws.mean_entropy(scale * (1 + 1e-9 * np.array([-1, 0, 1])), tokens)
            np.testing.assert_allclose(around, around[0], rtol=1e-8, atol=1e-11)


def test_limits_of_the_exact_mean():
    scale = np.array([0.0, 1e-6, 0.5])
    # T -> infinity: log T - s^2/2; the next term, (exp(s^2) - 1) (1 - ...) / 2T, is below 1e-9 here
    np.testing.assert_allclose(laws.mean_entropy(scale, 10**9), laws.random_entropy(scale, 10**9), atol=2e-9)
    # far in the frozen phase two levels share the weight: H ~ 1/scale, with (pi^2/6) T(T-1) int phi^2 Phi^(T-2); T = 2
    assert laws.mean_entropy(1e3, 2) == pytest.approx(math.pi**2 / 6 * 2 / (2 * math.sqrt(math.pi)) / 1e3, rel=1e-4)
    assert laws.mean_entropy(1e30, 50) == pytest.approx(0, abs=1e-11)
    share = [laws.mean_entropy(0.5 * laws.freezing_scale(t), t) / math.log(t) for t in (10**2, 10**4, 10**8, 10**15)]
    assert np.all(np.diff(np.abs(np.array(share) - 0.75)) < 0)  # the leading law is the limit


def test_the_exact_mean_broadcasts():
    grid = laws.mean_entropy(np.array([0.0, 0.5, 3.0])[:, None], np.array([2, 30]))
    assert grid.shape == (3, 2)
    for i, s in enumerate((0.0, 0.5, 3.0)):
        for j, t in enumerate((2, 30)):
            assert grid[i, j] == pytest.approx(laws.mean_entropy(s, t), rel=1e-10)
    assert isinstance(laws.mean_entropy(1, 2), float)


# ---- errors ---------------------------------------------------------------------------------------------------------

OF_SCALE = [laws.entropy_floor, laws.bounded_floor, laws.largest_probability, laws.random_entropy, laws.mean_entropy]


@pytest.mark.parametrize("law", [*OF_SCALE, laws.floor_logits])
@pytest.mark.parametrize("bad", [-1e-9, math.nan, math.inf, [1.0, -2.0]])
def test_no_plausible_number_for_an_impossible_scale(law, bad):
    with pytest.raises(ValueError, match="finite and >= 0"):
        law(bad, 8)


@pytest.mark.parametrize("law", [*OF_SCALE, laws.floor_logits, lambda s, t: laws.causal_entropy(t)])
@pytest.mark.parametrize("bad", [0, -3, 2.5, True, "8", None])
def test_no_plausible_number_for_impossible_tokens(law, bad):
    with pytest.raises(ValueError if type(bad) is int else TypeError, match="tokens"):
        law(1.0, bad)


def test_one_logit_of_mean_0_has_no_norm():
    with pytest.raises(ValueError, match="tokens >= 2"):
        laws.floor_logits(1.0, 1)
    with pytest.raises(TypeError, match="an integer"):
        laws.floor_logits(1.0, np.array([2, 3]))
