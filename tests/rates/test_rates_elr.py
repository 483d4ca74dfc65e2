"""Effective learning rates and the growth identities, on losses that are scale invariant by construction."""

import math

import numpy as np
import pytest

from normkit.rates.elr import effective_lr, growth, heavy_ball_growth
from normkit.rng import stream


def gradient(w, z):
    """Of the scale-invariant loss -<z, w>/||w||, by hand."""
    length = np.linalg.norm(w)
    return -(z - w * (w @ z) / length**2) / length


def test_values_by_hand():
    w = np.array([[3.0, 0.0], [0.0, 4.0]])
    assert effective_lr(0.5, w) == pytest.approx(0.5 / 25, rel=1e-15)
    assert effective_lr(0.5, w, optimizer="momentum") == effective_lr(0.5, w)
    assert effective_lr(0.5, w, optimizer="adam") == pytest.approx(0.1, rel=1e-15)
    np.testing.assert_allclose(effective_lr(0.5, w, axis=-1), [0.5 / 9, 0.5 / 16], rtol=1e-15)
    np.testing.assert_allclose(effective_lr(0.5, w, optimizer="adamp", axis=-1), [0.5 / 3, 0.125], rtol=1e-15)
    assert effective_lr(0.0, w) == 0.0
    assert isinstance(effective_lr(0.1, w.astype(np.float32)), float)
    assert effective_lr(1.0, np.full((2, 2), 1e200), optimizer="adam") == pytest.approx(5e-201)  # no overflow
    assert effective_lr(1e-300, np.full(4, 1e-150)) == pytest.approx(0.25)


def test_torch_tensors_and_parameters():
    torch = pytest.importorskip("torch")
    w = stream(0, "elr").standard_normal((4, 5)).astype(np.float32)
    parameter = torch.nn.Parameter(torch.from_numpy(w))
    assert effective_lr(0.3, parameter) == pytest.approx(effective_lr(0.3, w), rel=1e-12)
    rows = effective_lr(0.3, parameter, axis=-1)
    np.testing.assert_allclose(rows.numpy(), effective_lr(0.3, w, axis=-1), rtol=1e-12)
    assert effective_lr(0.3, torch.ones(4, dtype=torch.bfloat16)) == pytest.approx(0.075)
    update = torch.from_numpy(w) * 0.5
    measured, predicted = growth(parameter, update)
    assert measured == pytest.approx(0.25 * float((w.astype(float) ** 2).sum()))
    assert predicted == pytest.approx(1.25 * float((w.astype(float) ** 2).sum()))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 7.0])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_the_same_effective_rate_turns_any_weight_alike(scale, optimizer):
    # What the name promises: step lr g (sgd), lr g/||g|| (normalized, Adam's kind), from w and from scale w.
    rng = stream(1, "elr")
    w, z = rng.standard_normal(9), rng.standard_normal(9)

    def turned(w, lr):
        g = gradient(w, z)
        new = w - lr * (g if optimizer == "sgd" else g / np.linalg.norm(g))
        return new / np.linalg.norm(new)

    lr = 0.3
    other = lr * effective_lr(lr, w, optimizer=optimizer) / effective_lr(lr, scale * w, optimizer=optimizer)
    np.testing.assert_allclose(turned(scale * w, other), turned(w, lr), rtol=1e-12)
    if scale != 1:
        assert np.abs(turned(scale * w, lr) - turned(w, lr)).max() > 1e-3


def test_growth_holds_for_a_tangent_step_and_tells_one_that_is_not():
    rng = stream(2, "elr")
    w = rng.standard_normal((6, 7))
    update = 0.4 * gradient(w.ravel(), rng.standard_normal(42)).reshape(w.shape)
    measured, predicted = growth(w, update)
    assert measured == pytest.approx(predicted, rel=1e-14)
    assert measured == pytest.approx(np.linalg.norm(w - update) ** 2, rel=1e-14)
    assert measured > np.linalg.norm(w) ** 2
    measured, predicted = growth(w, update - 0.1 * w)  # leans outward by 0.1: twice 0.1 ||w||^2 too much
    assert measured - predicted == pytest.approx(0.2 * (w**2).sum(), rel=1e-12)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.99])
def test_a_heavy_ball_grows_by_its_memory(momentum):
    rng, lr = stream(3, "elr"), 0.2
    w = first = rng.standard_normal(11)
    p, buffers, norms = np.zeros(11), [], [first @ first]
    for _ in range(300):
        p = momentum * p + gradient(w, rng.standard_normal(11))
        w = w - lr * p
        buffers.append(p)
        norms.append(w @ w)
    measured, predicted = heavy_ball_growth(first, np.array(buffers), lr, momentum)
    np.testing.assert_allclose(measured, norms, rtol=1e-12)
    np.testing.assert_allclose(predicted, norms, rtol=1e-12)  # 300 steps of rounding
    plain = norms[0] + lr**2 * sum(b @ b for b in buffers)
    if momentum:
        assert norms[-1] > 1.1 * plain  # without the memory term the identity breaks
    else:
        assert norms[-1] == pytest.approx(plain, rel=1e-12)


def test_a_heavy_ball_with_gradients_that_are_not_tangent_breaks_it():
    steps = stream(4, "elr").standard_normal((20, 2, 3))
    measured, predicted = heavy_ball_growth(np.ones((2, 3)), steps, 0.1, 0.9)
    assert measured.shape == predicted.shape == (21,)
    assert np.abs(measured - predicted).max() > 0.01
    measured, predicted = heavy_ball_growth(np.ones(3), np.empty((0, 3)), 0.1, 0.9)
    assert measured == predicted == [3.0]


def test_impossible_arguments_are_refused():
    w = np.ones(3)
    for lr in (-0.1, math.nan, math.inf, "1", True):
        with pytest.raises(ValueError, match="lr must be"):
            effective_lr(lr, w)
    with pytest.raises(ValueError, match="norm 0"):
        effective_lr(0.1, np.zeros(3))
    with pytest.raises(ValueError, match="norm 0"):
        effective_lr(0.1, np.eye(3) * [1, 0, 1], axis=-1)
    with pytest.raises(ValueError, match=r"w\[1\] is nan"):
        effective_lr(0.1, np.array([1, np.nan]))
    with pytest.raises(ValueError, match="unknown optimizer 'sgdm'"):
        effective_lr(0.1, w, optimizer="sgdm")
    with pytest.raises(TypeError, match="arrays wanted"):
        effective_lr(0.1, [1.0, 2.0])
    with pytest.raises(ValueError, match="one shape"):
        growth(w, np.ones(4))
    with pytest.raises(ValueError, match="w is zero"):
        growth(np.zeros(3), w)
    with pytest.raises(ValueError, match=r"update\[2\] is inf"):
        growth(w, np.array([0, 0, np.inf]))
    with pytest.raises(ValueError, match="3 entries each"):
        heavy_ball_growth(w, np.ones((5, 2)), 0.1, 0.9)
    with pytest.raises(ValueError, match="momentum must lie"):
        heavy_ball_growth(w, np.ones((5, 3)), 0.1, 1.0)
    with pytest.raises(ValueError, match="w is zero"):
        heavy_ball_growth(np.zeros(3), np.ones((5, 3)), 0.1, 0.9)
    with pytest.raises(ValueError, match="lr must be"):
        heavy_ball_growth(w, np.ones((5, 3)), math.nan, 0.9)
