"""Spectral norms and Newton-Schulz against the SVD, in NumPy and torch; the bound against recursions that reach it."""

import math

import numpy as np
import pytest

from normkit.rates.spectral import (
    CUBIC,
    MUON,
    mup_scale,
    newton_schulz,
    singular_value_map,
    spectral_bound,
    spectral_condition,
    spectral_norm,
    to_mup_norm,
)
from normkit.rng import stream

SHAPES = [(5, 5), (12, 3), (3, 12), (1, 6), (2, 4, 7)]


def normal(*shape, seed=0):
    return stream(seed, "matrix", *shape).normal(size=shape)


def polar(g):
    u, _, vt = np.linalg.svd(g, full_matrices=False)
    return u @ vt


@pytest.mark.parametrize("shape", SHAPES)
def test_spectral_norm_is_the_largest_singular_value(shape):
    w = normal(*shape)
    gram = w @ np.swapaxes(w, -1, -2)
    np.testing.assert_allclose(spectral_norm(w), np.sqrt(np.linalg.eigvalsh(gram)[..., -1]), rtol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_torch_gives_the_same(shape):
    torch = pytest.importorskip("torch")
    w = normal(*shape)
    t = torch.from_numpy(w)
    np.testing.assert_allclose(spectral_norm(t), spectral_norm(w), rtol=1e-12)
    np.testing.assert_allclose(newton_schulz(t), newton_schulz(w), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(to_mup_norm(t), to_mup_norm(w), rtol=1e-12)
    assert newton_schulz(t.float()).dtype == torch.float32


def test_half_precision():
    torch = pytest.importorskip("torch")
    w = normal(6, 4).astype(np.float16)
    assert float(spectral_norm(w)) == pytest.approx(float(spectral_norm(w.astype(float))), rel=1e-6)
    t = torch.from_numpy(w).bfloat16()
    assert float(spectral_norm(t)) == pytest.approx(float(spectral_norm(t.double())), rel=1e-6)
    # eight bits a number, fifteen products
    np.testing.assert_allclose(newton_schulz(t).double(), newton_schulz(t.double()), atol=0.1)


def test_the_condition_of_known_matrices():
    w, dw = 2 * np.eye(4, 9), np.zeros((4, 9))
    dw[1, 2] = -0.3
    found = spectral_condition(w, dw)
    assert found.weight == pytest.approx(2 * 1.5) and found.update == pytest.approx(0.3 * 1.5)
    assert mup_scale(4, 9) == pytest.approx(2 / 3)


@pytest.mark.parametrize("shape", SHAPES)
def test_to_mup_norm(shape):
    scaled = to_mup_norm(normal(*shape))
    np.testing.assert_allclose(spectral_norm(scaled), mup_scale(*shape[-2:]), rtol=1e-12)
    ratio = scaled / normal(*shape)
    np.testing.assert_allclose(ratio, np.broadcast_to(ratio[..., :1, :1], shape), rtol=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("coefficients", [MUON, CUBIC])
def test_newton_schulz_maps_singular_values_and_keeps_vectors(shape, coefficients):
    g = normal(*shape)
    u, s, vt = np.linalg.svd(g, full_matrices=False)
    s = s / (np.linalg.norm(s, axis=-1, keepdims=True) + 1e-7)
    expected = (u * singular_value_map(s, 5, coefficients)[..., None, :]) @ vt
    np.testing.assert_allclose(newton_schulz(g, 5, coefficients), expected, rtol=1e-9, atol=1e-11)


def test_the_map_written_out():
    a, b, c = MUON
    assert singular_value_map(0.3, 1) == pytest.approx(a * 0.3 + b * 0.027 + c * 0.00243)
    assert singular_value_map(0.3, 2) == pytest.approx(singular_value_map(singular_value_map(0.3, 1), 1))
    assert singular_value_map(0.3, 0) == 0.3
    assert singular_value_map(1e-9) / 1e-9 == pytest.approx(a**5, rel=1e-6)  # the slope at 0, 484.9
    assert singular_value_map(1.0, 1) == pytest.approx(0.701)


def test_the_cubic_converges_to_the_polar_factor_and_the_quintic_does_not():
    g = normal(12, 8)
    np.testing.assert_allclose(newton_schulz(g, 40, CUBIC), polar(g), atol=1e-12)
    near, far = (np.abs(np.linalg.svd(newton_schulz(g, n), compute_uv=False) - 1).max() for n in (5, 50))
    assert 0.01 < near < 0.35 and far > 0.1


def test_five_steps_end_in_a_band():
    s = np.geomspace(1e-2, 1, 10_001)
    mapped = singular_value_map(s)
    assert mapped.min() > 0.68 and mapped.max() < 1.14
    # on all of [0, 1] no number of steps from 1 on leaves the quintic's maximum on [0, 1.2024], 1.2024
    s = np.linspace(0, 1, 100_001)
    assert all(singular_value_map(s, n).max() <= 1.2024 for n in range(1, 12))
    assert singular_value_map(s, 1).max() == pytest.approx(1.2024, abs=1e-4)


def test_rotations_pass_through_and_scale_does_not_matter():
    g, (q, _) = normal(6, 9), np.linalg.qr(normal(6, 6, seed=1))
    np.testing.assert_allclose(newton_schulz(q @ g), q @ newton_schulz(g), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(newton_schulz(1e6 * g), newton_schulz(g), atol=1e-5)  # eps is 1e-7 beside ||g||
    np.testing.assert_allclose(newton_schulz(g.T), newton_schulz(g).T, rtol=1e-9, atol=1e-12)


def test_zero_stays_zero():
    assert not newton_schulz(np.zeros((3, 4))).any()


@pytest.mark.parametrize("decay", [0.0, 0.1, 2.0])
def test_the_bound_is_reached_by_aligned_updates(decay):
    w = start = 0.7
    for _ in range(50):
        w = (1 - 0.02 * decay) * w + 0.02 * 1.5 * 1.2
    assert spectral_bound(start, 0.02, decay, 50, 1.5, 1.2) == pytest.approx(w, rel=1e-12)


@pytest.mark.parametrize("shape", [(16, 16), (32, 8), (8, 32)])
@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_random_updates_stay_below_the_bound(shape, decay):
    w, lr, scale = to_mup_norm(normal(*shape)), 0.05, mup_scale(*shape)
    for t in range(1, 101):
        w = (1 - lr * decay) * w - lr * scale * newton_schulz(normal(*shape, seed=t))
        assert spectral_norm(w) <= spectral_bound(scale, lr, decay, t, scale)
    assert spectral_bound(scale, lr, decay, 100, scale) / scale == pytest.approx(
        spectral_bound(1.0, lr, decay, 100, 1.0), rel=1e-12
    )


def test_the_bound_tends_to_scale_over_decay():
    assert spectral_bound(9.0, 0.1, 0.5, 10_000, 1.0, 1.0) == pytest.approx(2.0)
    assert spectral_bound(9.0, 0.1, 0.5, 0, 1.0) == 9.0
    assert math.isclose(spectral_bound(0.0, 0.1, 1e-12, 30, 1.0), spectral_bound(0.0, 0.1, 0.0, 30, 1.0), rel_tol=1e-3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: spectral_norm(np.ones(3)), "two axes"),
        (lambda: spectral_norm(np.array([[1.0, np.nan]])), r"w\[0, 1\] is nan"),
        (lambda: newton_schulz(np.ones(3)), "two axes"),
        (lambda: newton_schulz(np.ones((2, 2)), coefficients=(1.5, -0.5)), "three finite"),
        (lambda: newton_schulz(np.ones((2, 2)), steps=-1), "steps"),
        (lambda: to_mup_norm(np.zeros((2, 2))), "zero matrix"),
        (lambda: spectral_condition(np.ones((2, 2)), np.ones((2, 3))), "one shape"),
        (lambda: mup_scale(0, 3), "n_out"),
        (lambda: spectral_bound(1.0, 1.0, 2.0, 5, 1.0), "overshoot"),
        (lambda: spectral_bound(1.0, -1.0, 0.0, 5, 1.0), "lr must be"),
    ],
)
def test_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_integers_are_no_weights():
    with pytest.raises(TypeError, match="floating"):
        spectral_norm(np.ones((2, 2), dtype=int))


@pytest.mark.parametrize("s", [-0.1, np.nan, np.inf, "1", None])
def test_impossible_singular_values_are_refused(s):
    with pytest.raises(ValueError, match="singular values are finite numbers >= 0"):
        singular_value_map(s)


def test_a_condition_wants_two_arrays():
    with pytest.raises(TypeError, match="arrays wanted"):
        spectral_condition(np.ones((2, 3)), 0)
