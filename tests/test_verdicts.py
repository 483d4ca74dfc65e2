"""The decision rule: t quantiles against SciPy, the four verdicts, and the rate of false verdicts on true nulls."""

import math

import numpy as np
import pytest

from normkit.rng import stream
from normkit.verdicts import VERDICTS, decide, interval, sides, t_quantile

INF = math.inf


@pytest.mark.parametrize("df", [1, 2, 3, 4, 5, 9, 19, 40, 200])
@pytest.mark.parametrize("probability", [0.5, 0.9, 0.975, 0.9983, 0.99999])
def test_t_quantile_is_scipys(df, probability):
    stats = pytest.importorskip("scipy.stats")
    # 80 bisections end at one ulp of the angle; df=1 at p=.99999 has dt/dtheta = 1e9 and so keeps about 9 digits.
    assert t_quantile(probability, df) == pytest.approx(stats.t.ppf(probability, df), rel=1e-8, abs=1e-12)


def test_t_quantile_closed_forms():
    assert t_quantile(0.975, 1) == pytest.approx(math.tan(math.pi * 0.475), rel=1e-12)  # Cauchy
    a = 2 * 0.975 - 1
    assert t_quantile(0.975, 2) == pytest.approx(a * math.sqrt(2 / (1 - a * a)), rel=1e-12)


@pytest.mark.parametrize(("probability", "df"), [(0.4, 5), (1.0, 5), (0.9, 0), (math.nan, 5)])
def test_t_quantile_refuses(probability, df):
    with pytest.raises(ValueError, match="needs"):
        t_quantile(probability, df)


def test_interval_is_the_textbook_one():
    x = np.array([[1.0], [2.0], [3.0], [4.0], [10.0]])
    mean, low, high = interval(x, 0.05)
    half = 2.7764451051977987 * math.sqrt(12.5 / 5)  # t(.975, 4) and the sample variance 12.5
    assert mean == pytest.approx([4.0])
    assert [low[0], high[0]] == pytest.approx([4 - half, 4 + half], rel=1e-12)


def test_more_regimes_widen_each_interval_as_bonferroni_says():
    x = stream(0, "interval").normal(size=(6, 1))
    alone = interval(x, 0.01)
    together = interval(np.repeat(x, 5, axis=1), 0.05)
    np.testing.assert_allclose([a[0] for a in alone], [t[3] for t in together], rtol=1e-12)


@pytest.mark.parametrize(
    ("low", "high", "region", "code"),
    [
        (0.1, 1.0, (0.0, INF), 0),
        (-1.0, -0.1, (0.0, INF), 1),
        (-0.1, 1.0, (0.0, INF), 2),
        (-1.0, -0.1, (-INF, 0.0), 0),
        (0.1, 0.2, (-INF, 0.0), 1),
        (0.92, 1.05, (0.9, 1.1), 0),
        (1.2, 1.3, (0.9, 1.1), 1),
        (0.1, 0.2, (0.9, 1.1), 1),
        (0.1, 2.0, (0.9, 1.1), 2),
        (1.0, 1.2, (0.9, 1.1), 2),
        (0.0, 0.0, (0.0, INF), 2),  # no spread, exactly on the threshold: neither side
    ],
)
def test_sides(low, high, region, code):
    assert sides(np.array(low), np.array(high), region) == code


@pytest.mark.parametrize(
    ("codes", "verdict"),
    [
        ([0], "holds"),
        ([1], "contradicted"),
        ([2], "not shown at toy scale"),
        ([0, 0, 0], "holds"),
        ([0, 0, 2], "holds in regime"),
        ([0, 1, 1], "holds in regime"),
        ([1, 1, 1], "contradicted"),
        ([1, 1, 2], "not shown at toy scale"),
        ([2, 2, 2], "not shown at toy scale"),
    ],
)
def test_the_four_verdicts(codes, verdict):
    assert VERDICTS[decide(np.array(codes))] == verdict


def false_verdicts(samples, alpha, region=(0.0, INF)):
    """Share of data sets, samples (sets, seeds, regimes), that get any verdict but "not shown"."""
    _, low, high = interval(samples, alpha)
    return np.mean(decide(sides(low, high, region)) != VERDICTS.index("not shown at toy scale"))


SETS = 20_000


def ceiling(rate):
    return rate + 4 * math.sqrt(rate / SETS)  # 4 standard errors of a binomial share


@pytest.mark.parametrize("regimes", [1, 3])
@pytest.mark.parametrize("seeds", [5, 20])
@pytest.mark.parametrize("law", ["normal", "laplace"])
@pytest.mark.parametrize("alpha", [0.01, 0.05])
def test_a_null_claim_gets_a_verdict_with_probability_alpha_at_most(regimes, seeds, law, alpha):
    x = getattr(stream(1, "null", law, seeds, regimes), law)(size=(SETS, seeds, regimes))
    assert false_verdicts(x, alpha) <= ceiling(alpha)


@pytest.mark.parametrize(("seeds", "factor"), [(5, 2.0), (20, 1.2)])
def test_bounded_data_on_few_seeds_is_where_t_intervals_are_short(seeds, factor):
    x = stream(1, "null", "uniform", seeds).uniform(-1, 1, (SETS, seeds, 1))
    assert false_verdicts(x, 0.01) <= ceiling(0.01 * factor)  # the limit that normkit.verdicts states


def test_the_rate_on_one_normal_regime_is_alpha_not_less():
    x = stream(2, "null").normal(size=(SETS, 8, 1))
    assert false_verdicts(x, 0.05) == pytest.approx(0.05, abs=ceiling(0.05) - 0.05)


def test_regimes_that_move_together_are_covered_too():
    x = np.repeat(stream(3, "null").normal(size=(SETS, 8, 1)), 3, axis=2)
    assert false_verdicts(x, 0.05) <= 0.05


def test_without_the_correction_three_regimes_would_break_the_promise():
    x = stream(4, "null").normal(size=(SETS, 8, 3))
    assert false_verdicts(x, 3 * 0.05) > ceiling(0.05)  # 3 alpha / 3 regimes: alpha for each


def test_a_null_at_the_end_of_a_band_is_covered_too():
    x = 1.1 + 0.02 * stream(5, "null").normal(size=(SETS, 8, 1))
    assert false_verdicts(x, 0.05, (0.9, 1.1)) <= ceiling(0.05)


def test_a_true_claim_is_found():
    x = 2.0 + stream(6, "effect").normal(size=(2000, 8, 3))
    _, low, high = interval(x, 0.05)
    assert np.mean(decide(sides(low, high, (0.0, INF))) == 0) > 0.85
    assert np.mean(decide(sides(low, high, (-INF, 0.0))) == 2) > 0.85
