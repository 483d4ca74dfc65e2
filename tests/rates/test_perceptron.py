"""Large steps against loops, the paper's worst case in closed form and its table, and the theorems on random data."""

import math

import numpy as np
import pytest

from normkit.rates.perceptron import bounds, lr_gd, margin, normalized_lr_gd, perceptron, worst_case
from normkit.rng import stream

METHODS = (lr_gd, normalized_lr_gd)


def separable(seed, n=40, d=10):
    draws = stream(seed, "separable")
    z, direction = draws.normal(size=(n, d)), draws.normal(size=d)
    return z * np.sign(z @ direction)[:, None]


def by_loops(z, step, updates, normalized):
    """The update in plain Python, exponentials as they stand."""
    theta = [0.0] * len(z[0])
    for _ in range(updates):
        p = [1 / (1 + math.exp(sum(a * b for a, b in zip(row, theta, strict=True)))) for row in z]
        scale = step / (sum(p) if normalized else len(z))
        theta = [t + scale * sum(q * row[k] for q, row in zip(p, z, strict=True)) for k, t in enumerate(theta)]
    return theta


@pytest.mark.parametrize("method", METHODS)
def test_the_update(method):
    z = separable(0)
    found = method(z, 0.01, iterations=5)
    expected = by_loops(z.tolist(), 0.01, 5, method is normalized_lr_gd)
    np.testing.assert_allclose(found.theta, expected, rtol=1e-12)
    assert found.loss[-1] == pytest.approx(np.log1p(np.exp(-z @ found.theta)).mean(), rel=1e-12)
    assert found.loss[0] == pytest.approx(math.log(2)) and len(found.loss) == (found.separated or 5) + 1


def test_the_update_is_gradient_descent():
    torch = pytest.importorskip("torch")
    z = torch.from_numpy(separable(1))
    theta = torch.zeros(10, dtype=torch.float64, requires_grad=True)
    for _ in range(3):
        loss = torch.nn.functional.softplus(-z @ theta).mean()
        (g,) = torch.autograd.grad(loss, theta)
        theta = (theta - 0.02 * g).detach().requires_grad_()
    np.testing.assert_allclose(lr_gd(z.numpy(), 0.02, 3).theta, theta.detach(), rtol=1e-12)


# the paper's Table 1, first block: its data set has 1000 samples
@pytest.mark.parametrize(
    ("method", "step", "updates"),
    [
        (normalized_lr_gd, 100, 2),
        (normalized_lr_gd, 10, 2),
        (normalized_lr_gd, 1, 16),
        (normalized_lr_gd, 0.1, 157),
        (lr_gd, 100, 308),
    ],
)
def test_the_papers_table(method, step, updates):
    assert method(worst_case(1000), step).separated == updates


@pytest.mark.parametrize("n", [10, 101, 1000])
def test_the_worst_case_in_closed_form(n):
    # theta_k = (0.25 (1 + (2k-2)/n), (n-2k)/(2n)) until the odd sample is right: 1.25 k > 0.375 n + 0.25
    k = math.floor((0.375 * n + 0.25) / 1.25) + 1
    found = perceptron(worst_case(n), iterations=n)
    assert found.separated == k
    np.testing.assert_allclose(found.theta, [0.25 * (1 + (2 * k - 2) / n), (n - 2 * k) / (2 * n)], rtol=1e-9)
    assert perceptron(worst_case(n), normalized=True).separated == 2
    assert np.linalg.norm(worst_case(n), axis=1).max() == pytest.approx(math.sqrt(5) / 2)
    assert margin(worst_case(n)) == pytest.approx(0.5, rel=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_large_steps_are_the_batch_perceptron(seed):
    z = separable(seed)
    limit, large = perceptron(z), lr_gd(z, 1e8)
    assert large.separated == limit.separated
    # an error of order exp(-step |z theta|) away from ties: none is left in float64
    np.testing.assert_allclose(large.theta / 1e8, limit.theta, rtol=1e-9)
    assert normalized_lr_gd(z, 1e8).separated == perceptron(z, normalized=True).separated


def test_the_theorems_two_samples():
    z = np.array([[1.0, -1.0], [1.0, 4.0]])  # Theorem 4.1
    step = 1e3
    found = lr_gd(z, step)
    assert found.separated == 2
    np.testing.assert_allclose(found.theta / step, [1, 0.25], rtol=1e-9)
    assert found.loss[1] == pytest.approx(step / 8, rel=1e-9)  # log(1 + exp(step/4)) / 2
    assert found.loss[2] < 1e-9


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("step", [0.1, 1.0, 1e6])
def test_iteration_bounds_hold(seed, step):
    z = separable(seed, n=20 + seed)
    batch, normalized = bounds(len(z), np.linalg.norm(z, axis=1).max(), margin(z), step)
    assert perceptron(z, iterations=int(batch) + 1).separated <= batch
    assert perceptron(z, normalized=True, iterations=10_000).separated <= normalized
    assert normalized_lr_gd(z, step, iterations=10_000).separated <= normalized


def test_bounds_in_numbers():
    assert bounds(10, 2.0, 0.5) == (160.0, 16.0)
    assert bounds(10, 2.0, 0.5, step=4.0)[1] == pytest.approx(16 + 2 * math.log(19))


@pytest.mark.parametrize("seed", range(5))
def test_margin_against_the_dual_and_a_search(seed):
    z = separable(seed, n=30, d=2)
    angles = np.linspace(0, 2 * np.pi, 200_001)
    search = (z @ np.stack([np.cos(angles), np.sin(angles)])).min(0).max()
    # the grid is off by at most its half step times the largest sample
    half = np.pi / 200_000 * np.linalg.norm(z, axis=1).max()
    assert search - 1e-9 <= margin(z, 1e-12) * (1 + 1e-9) and margin(z, 1e-12) <= search + half


def test_margin_against_nnls():
    optimize = pytest.importorskip("scipy.optimize")
    z = separable(7, n=40, d=10)
    # the nearest point of the hull: min ||z' w|| with sum w = 1, the constraint as a heavy row
    heavy = 1e4
    w, _ = optimize.nnls(np.vstack([z.T, heavy * np.ones(40)]), np.append(np.zeros(10), heavy))
    assert margin(z) == pytest.approx(np.linalg.norm(w / w.sum() @ z), rel=1e-5)


def test_no_margin():
    with pytest.raises(ValueError, match="may not be separable"):
        margin([[1.0, 0.0], [-1.0, 0.1], [0.0, -1.0]], iterations=200)


def test_data_that_cannot_be_separated_end_without_an_answer():
    found = lr_gd([[1.0], [-1.0]], 1.0, iterations=7)
    assert found.separated is None and len(found.loss) == 8


def test_noise_is_drawn_from_the_generator():
    noisy = worst_case(500, stream(0, "noise"), 0.05)
    assert (noisy - worst_case(500)).std() == pytest.approx(0.05, rel=5 / math.sqrt(2 * 1000))
    np.testing.assert_array_equal(noisy, worst_case(500, stream(0, "noise"), 0.05))


@pytest.mark.parametrize("method", METHODS)
def test_huge_steps_do_not_overflow(method):
    assert np.isfinite(method(separable(2), 1e300).loss).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: lr_gd(np.ones(3), 1.0), "matrix"),
        (lambda: lr_gd([[np.nan, 1.0]], 1.0), "finite"),
        (lambda: lr_gd([[1.0]], 0.0), "step must be"),
        (lambda: normalized_lr_gd([[1.0]], -1.0), "step must be"),
        (lambda: perceptron([[1.0]], iterations=0), "iterations"),
        (lambda: bounds(5, 1.0, 2.0), "no margin exceeds"),
        (lambda: bounds(5, 1.0, 0.0), "margin must be"),
        (lambda: bounds(5, 1.0, 0.5, step=0.0), "step must be"),
        (lambda: worst_case(9), "at least 10"),
        (lambda: worst_case(10, noise=0.1), "needs draws"),
    ],
)
def test_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_bounds_name_what_is_no_number():
    for arguments, name in (((3, "1", 0.1), "radius"), ((3, 1.0, None), "margin"), ((3, 1.0, 0.1, "1"), "step")):
        with pytest.raises(TypeError, match=f"{name} must be a number"):
            bounds(*arguments)
