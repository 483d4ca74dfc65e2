"""Simulated softmax rows against the laws; which random numbers they use, and which they do not."""

import subprocess
import sys

import numpy as np
import pytest

from normkit.attention import experiment, laws
from normkit.attention.experiment import phase_grid, random_rows, unit_logits
from normkit.rng import stream


def test_rows_are_the_softmax_of_their_logits():
    found = random_rows(3.0, 200, rows=5, temperature=1.5, seed=1)
    z = unit_logits(5, 200, seed=1).astype(np.float64) * 2
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    np.testing.assert_allclose(found.entropy, -(p * np.log(p)).sum(1), rtol=2e-5)
    np.testing.assert_allclose(found.largest, p.max(1), rtol=2e-5)
    np.testing.assert_allclose(found.first, p[0], rtol=2e-5)
    assert (found.scale, found.tokens) == (3.0, 200)


@pytest.mark.parametrize("scale", [0.5, 2.0, 5.0])
def test_rows_follow_the_exact_mean(scale):
    h = random_rows(scale, 300, rows=2000).entropy
    assert abs(h.mean() - laws.mean_entropy(scale, 300)) < 4 * h.std() / np.sqrt(2000)  # one in 16 000 by chance
    assert random_rows(0.0, 300).entropy == pytest.approx(np.log(300), rel=1e-6)


@pytest.mark.parametrize("width", [2, 64])
def test_logits_of_queries_and_keys_have_unit_variance_and_heavier_tails(width):
    z = unit_logits(1024, 1024, width).astype(np.float64)
    # the mean square over queries and keys: relative variance 2/width (1/1024 + 1/1024) and less
    assert (z**2).mean() == pytest.approx(1, abs=5 * np.sqrt(4 / width / 1024))
    # of a product of two Gaussian vectors: 3 + 6/width; its own error is far larger than the mean square's
    assert (z**4).mean() / (z**2).mean() ** 2 == pytest.approx(3 + 6 / width, rel=0.3 if width == 2 else 0.03)
    assert np.linalg.matrix_rank(z[:100, :100], tol=1e-3) == min(100, width)


def test_a_row_depends_neither_on_other_rows_nor_on_later_keys():
    for width in (None, 8):
        z = unit_logits(6, 40, width, seed=2)
        np.testing.assert_allclose(unit_logits(100, 1500, width, seed=2)[:6, :40], z, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(unit_logits(100, 1500, seed=2)[:6, :40], unit_logits(6, 40, seed=2))
    assert (unit_logits(6, 40, seed=3) != unit_logits(6, 40, seed=2)).all()
    assert len(np.unique(unit_logits(6, 40))) == 240


def test_a_slider_draws_nothing(monkeypatch):
    random_rows(1.0, 500, width=16, seed=5)
    phase_grid([8, 500], [0.5, 1.0], seed=5)

    def no_more(*path):
        raise AssertionError(f"drew {path}")

    monkeypatch.setattr(experiment, "stream", no_more)
    random_rows(2.5, 300, rows=60, width=16, temperature=0.3, seed=5)
    phase_grid([16, 40, 512], np.linspace(0, 9, 5), rows=30, temperature=2.0, seed=5)
    with pytest.raises(AssertionError, match="drew"):
        random_rows(1.0, 500, width=17, seed=5)


def test_what_is_kept_cannot_be_changed():
    with pytest.raises(ValueError, match="read-only"):
        unit_logits(3, 4)[0, 0] = 1.0


def test_the_grid_lies_on_its_exact_mean():
    tokens, scales = np.array([4, 32, 256, 1000]), np.array([0.0, 0.7, 2.0, 4.0, 9.0])
    grid = phase_grid(tokens, scales, rows=256, exact=True, seed=3)
    assert all(a.shape == (4, 5) for a in (grid.entropy, grid.error, grid.law, grid.mean))
    np.testing.assert_allclose(grid.entropy[:, 0], 1, rtol=1e-6)
    # the same draws serve all pairs, so that errors go together; 4.5 standard errors and float32's rounding
    assert (np.abs(grid.entropy - grid.mean) <= 4.5 * grid.error + 1e-6).all()
    np.testing.assert_allclose(grid.mean, laws.mean_entropy(scales, tokens[:, None]) / np.log(tokens)[:, None])
    np.testing.assert_allclose(grid.law, laws.random_entropy(scales, tokens[:, None]) / np.log(tokens)[:, None])
    np.testing.assert_allclose(grid.freezing, np.sqrt(2 * np.log(tokens)))
    assert (grid.law[:, -1] == 0).all()
    assert phase_grid(tokens, scales).mean is None


def test_the_standard_error_is_that_of_the_mean():
    few = [phase_grid([64], [2.0], rows=16, seed=s) for s in range(60)]
    spread = np.std([g.entropy[0, 0] for g in few], ddof=1)
    told = np.sqrt(np.mean([g.error[0, 0] ** 2 for g in few]))
    assert told == pytest.approx(spread, rel=4 / np.sqrt(2 * 59))


def test_temperature_divides_the_scale():
    plain, warm = phase_grid([50], [1.0, 2.0]), phase_grid([50], [3.0, 6.0], temperature=3.0)
    np.testing.assert_allclose(warm.entropy, plain.entropy, rtol=1e-6)
    np.testing.assert_allclose(warm.law, plain.law)
    np.testing.assert_allclose(warm.freezing, 3 * plain.freezing)  # in units of the scales given


@pytest.mark.parametrize("width", [2, 128])
def test_heads_are_rows_of_independent_logits_with_a_scale_of_their_own(width):
    # Given q the logits are independent, of scale |q| / sqrt(width): average the exact mean over chi(width).
    lengths = np.sqrt(stream(6, "chi").chisquare(width, 4000) / width)
    law = laws.mean_entropy(2.0 * np.quantile(lengths, (np.arange(200) + 0.5) / 200), 256).mean() / np.log(256)
    found = np.array([phase_grid([256], [2.0], rows=64, width=width, seed=s).entropy[0, 0] for s in range(20)])
    # 20 seeds, each with keys and queries of its own; 1 % for the 4000 lengths of the law
    assert abs(found.mean() - law) < 4 * found.std(ddof=1) / np.sqrt(20) + 0.01
    assert (law > laws.mean_entropy(2.0, 256) / np.log(256) + 0.03) == (width == 2)  # short queries stay uniform


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"scale": -1.0}, ValueError),
        ({"scale": np.nan}, ValueError),
        ({"tokens": 0}, ValueError),
        ({"tokens": 2.5}, TypeError),
        ({"rows": 0}, ValueError),
        ({"width": 0}, ValueError),
        ({"temperature": 0.0}, ValueError),
        ({"temperature": np.inf}, ValueError),
        ({"seed": -1}, ValueError),
    ],
)
def test_impossible_rows(change, error):
    with pytest.raises(error):
        random_rows(**{"scale": 1.0, "tokens": 10} | change)


@pytest.mark.parametrize(
    ("change", "error", "why"),
    [
        ({"tokens": [1, 8]}, ValueError, "log T"),
        ({"tokens": []}, ValueError, "two lists"),
        ({"tokens": [8.5]}, TypeError, "integer"),
        ({"scales": [[1.0]]}, ValueError, "two lists"),
        ({"scales": [1.0, -1.0]}, ValueError, "scale"),
        ({"rows": 1}, ValueError, "standard error"),
        ({"temperature": -1.0}, ValueError, "temperature"),
        ({"exact": True, "width": 4}, ValueError, "width=None"),
    ],
)
def test_impossible_grids(change, error, why):
    with pytest.raises(error, match=why):
        phase_grid(**{"tokens": [8], "scales": [1.0]} | change)


def test_no_torch_is_needed():
    code = "import sys; from normkit.attention import experiment as e; e.phase_grid([8], [1.0]); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
