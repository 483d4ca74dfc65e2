"""Schedules against the formula written out as a double loop, closed forms, and one run of SGD by hand."""

import numpy as np
import pytest

from normkit.rates import schedules
from normkit.rates.schedules import SHAPES, linear_decay, logistic_sgd, median_filter, refined
from normkit.rng import stream


def norms(n, seed=0):
    return np.exp(0.5 * stream(seed, "norms").normal(size=n)) + np.linspace(0, 2, n)


def by_hand(g, power):
    """Theorem's schedule, one t at a time, without rescaling the weights."""
    w = [float(v) ** power for v in g]
    eta = np.array([w[t] * sum(w[t + 1 :]) / sum(w) for t in range(len(w))])
    return eta / eta.max()


def test_linear_decay_is_the_papers_up_to_the_peak():
    for n in (2, 7, 400):
        t = np.arange(1, n + 1)
        np.testing.assert_allclose(linear_decay(n), (1 - t / n) * n / (n - 1), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(("norm", "power"), [("l2", -2), ("l1", -1)])
@pytest.mark.parametrize("n", [2, 3, 50, 401])
def test_refined_is_the_formula(norm, power, n):
    # sums of n positive float64: relative error below n * 2^-53
    np.testing.assert_allclose(
        refined(norms(n), smoothing=0, norm=norm), by_hand(norms(n), power), rtol=n * 1e-15, atol=1e-16
    )


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_constant_norms_give_linear_decay(norm):
    np.testing.assert_allclose(refined(np.full(101, 7.3), norm=norm), linear_decay(101), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("scale", [1e-200, 3.0, 1e200])
def test_the_scale_of_the_norms_does_not_matter(scale):
    np.testing.assert_allclose(refined(scale * norms(60)), refined(norms(60)), rtol=1e-10, atol=1e-15)


def test_twice_the_norm_is_a_quarter_of_the_rate():
    g = np.ones(1000)
    g[400:410] = 2.0
    eta = refined(g, smoothing=0)
    # neighbors differ by the tail sum only, by less than 1 in 500
    assert eta[399] / eta[400] == pytest.approx(4, rel=0.005)
    assert refined(g, smoothing=0, norm="l1")[399] / refined(g, smoothing=0, norm="l1")[400] == pytest.approx(
        2, rel=0.005
    )


def test_large_norms_at_the_start_are_a_warm_up_and_at_the_end_an_early_stop():
    early = np.where(np.arange(400) < 40, 5.0, 1.0)
    assert refined(early, smoothing=0).argmax() == 40
    assert refined(early, smoothing=0)[0] == pytest.approx(1 / 25 * (360 + 39 / 25) / 359, rel=1e-9)
    late = np.where(np.arange(400) >= 300, 1e9, 1.0)
    assert refined(late, smoothing=0)[300:].max() < 1e-15


@pytest.mark.parametrize("fraction", [0.0, 0.05, 0.1, 0.5, 1.0])
def test_median_filter_is_a_running_median(fraction):
    g = norms(37)
    half = int(fraction * 37) // 2

    def at(i):
        return g[max(i, 0)] if i < 37 else g[2 * 36 - i]

    expected = [np.median([at(i) for i in range(t - half, t + half + 1)]) for t in range(37)]
    np.testing.assert_array_equal(median_filter(g, fraction), expected)


def test_the_median_removes_a_spike_that_the_plain_formula_follows():
    g = np.ones(100)
    g[50] = 100.0
    np.testing.assert_allclose(refined(g, smoothing=0.1), linear_decay(100), rtol=1e-12, atol=1e-15)
    assert refined(g, smoothing=0)[50] < 1e-3


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([1.0], "at least 2"),
        ([[1.0, 2.0]], "one axis"),
        ([1.0, np.nan, 2.0], r"gradient_norms\[1\] is nan"),
        ([1.0, 0.0], r"gradient_norms\[1\] is 0.0"),
        ([1.0, -2.0, 3.0], r"gradient_norms\[1\] is -2.0"),
    ],
)
def test_refused_norms(bad, message):
    with pytest.raises(ValueError, match=message):
        refined(bad)


def test_refused_options():
    with pytest.raises(ValueError, match="choose from l2, l1"):
        refined([1.0, 2.0], norm="l3")
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        refined([1.0, 2.0], smoothing=2)
    with pytest.raises(ValueError, match="at least 2"):
        linear_decay(1)
    with pytest.raises(TypeError, match="integer"):
        linear_decay(10.0)


# ---- the toy --------------------------------------------------------------------------------------------------------


def test_logistic_sgd_is_sgd():
    schedule = np.linspace(1, 0.5, 30)
    found = logistic_sgd(schedule, 0.7, runs=2, seed=3, samples=20, features=5, batch=3, flips=0.2)
    z, picks = schedules._task(stream(3, "logistic", 1), 20, 5, 0.2, 30, 3)
    theta = np.zeros(5)
    for t in range(30):
        g = np.zeros(5)
        for i in picks[t]:
            g -= z[i] / (1 + np.exp(z[i] @ theta)) / 3
        assert found.norms[1, t] == pytest.approx(np.sqrt(g @ g), rel=1e-12)
        theta -= 0.7 * schedule[t] * g
    assert found.loss[1] == pytest.approx(np.log1p(np.exp(-z @ theta)).mean(), rel=1e-12)


def test_a_run_does_not_depend_on_its_neighbors():
    many = logistic_sgd(np.ones(20), 1.0, runs=3)
    np.testing.assert_allclose(logistic_sgd(np.ones(20), 1.0, runs=2).loss, many.loss[:2], rtol=1e-12)
    own = np.stack([np.ones(20), np.zeros(20), np.ones(20)])
    mixed = logistic_sgd(own, 1.0, runs=3).loss
    np.testing.assert_allclose(mixed, [many.loss[0], np.log(2), many.loss[2]], rtol=1e-12)


def test_flips_turn_over_that_share_of_the_labels():
    clean, noisy = (schedules._task(stream(0, "x"), 4000, 3, flips, 1, 1)[0] for flips in (0.0, 0.25))
    changed = (np.sign(clean[:, 0]) != np.sign(noisy[:, 0])).mean()
    assert changed == pytest.approx(0.25, abs=5 * np.sqrt(0.25 * 0.75 / 4000))  # five binomial standard deviations


def test_norms_never_underflow_to_zero():
    assert logistic_sgd(np.ones(400), 10.0, runs=4, flips=0.0).norms.min() > 0


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_are_positive_and_peak_at_one_first(name):
    shape = SHAPES[name](50)
    assert shape.shape == (50,) and shape[0] == shape.max() == 1 and shape.min() > 0
    assert (np.diff(shape) <= 0).all()


def test_shapes_at_the_middle():
    assert [SHAPES[n](100)[50] for n in ("constant", "linear")] == [1, 0.5]
    assert SHAPES["cosine"](100)[50] == pytest.approx(0.5)
    assert SHAPES["inverse sqrt"](100)[99] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"schedule": [1.0, -1.0]}, "non-negative"),
        ({"schedule": []}, "updates"),
        ({"schedule": [[1.0], [1.0]], "runs": 3}, r"\(3, updates\)"),
        ({"schedule": [np.inf]}, "finite"),
        ({"lr": 0.0}, "lr"),
        ({"flips": 0.7}, "flips"),
        ({"batch": 0}, "batch"),
    ],
)
def test_refused_toys(arguments, message):
    with pytest.raises(ValueError, match=message):
        logistic_sgd(**({"schedule": [1.0], "lr": 1.0} | arguments))
