"""Segment statistics and their numba kernels, against plain loops over the rows."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from normkit.advantage import estimators, kernels, segments, strata
from normkit.compiling import load_numba
from normkit.rng import stream

EXTREME = np.array([2**63 - 1, -(2**63), 0, -1, 5], np.int64)  # their range does not fit 64 bits


def rows(n=60, seed=0, dtype=np.float64, groups=EXTREME):
    g = stream(seed, "segments", n)
    return g.normal(size=n).astype(dtype), g.choice(groups, n)


def exact(x, ids):
    """{id: (count, mean, sum of squared differences)} by rational numbers."""
    table = {}
    for i in set(ids.tolist()):
        own = [Fraction(float(v)) for v, j in zip(x, ids.tolist(), strict=True) if j == i]
        mean = sum(own) / len(own)
        table[i] = len(own), float(mean), float(sum((v - mean) ** 2 for v in own))
    return table


@pytest.mark.parametrize("offset", [0.0, 1e6])
@pytest.mark.parametrize("make", [np.asarray, torch.from_numpy])
def test_statistics_are_those_of_rational_numbers(make, offset):
    x, ids = rows(dtype=np.float32)
    x += np.float32(offset)
    dense, k = segments.factorize(make(ids))
    s = segments.statistics(make(x.astype(np.float64)), dense, k)
    order = sorted(set(ids.tolist()))
    assert k == len(order) and [order[i] for i in dense.tolist()] == ids.tolist()
    want = exact(x, ids)
    np.testing.assert_array_equal(s.count, [want[i][0] for i in order])
    np.testing.assert_allclose(s.mean, [want[i][1] for i in order], rtol=1e-15, atol=1e-15)
    np.testing.assert_allclose(s.square, [want[i][2] for i in order], rtol=1e-12)  # float64, whatever the offset
    np.testing.assert_allclose(s.variance(1), [want[i][2] / (want[i][0] - 1) for i in order], rtol=1e-12)
    np.testing.assert_allclose(s.variance(0), [want[i][2] / want[i][0] for i in order], rtol=1e-12)
    np.testing.assert_allclose(
        s.centered, [v - want[i][1] for v, i in zip(x.tolist(), ids.tolist(), strict=True)], atol=1e-9
    )
    assert not s.degenerate.any()


@pytest.mark.parametrize("make", [np.asarray, torch.from_numpy])
def test_equal_rewards_are_exactly_so_whatever_their_mean_rounds_to(make):
    x = np.array([0.1, 0.1, 0.1, 0.7, 1e300, 1e300, np.nextafter(0.1, 1)])  # 0.1 + 0.1 + 0.1 != 0.3
    s = segments.statistics(make(x), make(np.array([0, 0, 0, 2, 3, 3, 4])), 6)
    assert s.degenerate.tolist() == [True] * 6 and s.count.tolist() == [3, 0, 1, 2, 1, 0]
    assert s.centered.tolist() == [0.0] * 7 and s.square.tolist() == [0.0] * 6
    np.testing.assert_array_equal(s.mean, [0.1, 0, 0.7, 1e300, np.nextafter(0.1, 1), 0])
    near = segments.statistics(make(x), make(np.array([0, 0, 0, 2, 1, 1, 0])), 3)
    assert near.degenerate.tolist() == [False, True, True]  # the smallest difference counts


def test_squares_that_overflow_are_an_error():
    with pytest.raises(ValueError, match="overflow"):
        segments.statistics(np.array([1e160, -1e160]), np.zeros(2, np.int64), 1)
    with pytest.raises(ValueError, match="overflow"):
        estimators.grpo(np.array([1e308, -1e308]), np.zeros(2, np.int64))


@pytest.mark.parametrize("make", [np.asarray, torch.from_numpy])
def test_pairs_are_together_when_both_ids_are_the_same(make):
    _, a = rows()
    _, b = rows(seed=1)
    dense, k = segments.factorize_pairs(make(a), make(b))
    pairs = list(zip(a.tolist(), b.tolist(), strict=True))
    order = sorted(set(pairs))
    assert k == len(order) and [order[i] for i in dense.tolist()] == pairs


def test_what_is_not_an_id_or_a_reward_is_refused():
    with pytest.raises(TypeError, match="groups must be integers, got float64"):
        segments.factorize(np.zeros(3))
    with pytest.raises(TypeError, match="integers, got bool"):
        segments.factorize(np.zeros(3, bool))
    with pytest.raises(TypeError, match="integers"):
        segments.factorize(torch.zeros(3))
    with pytest.raises(ValueError, match=r"shape \(N,\), N >= 1, got \(0,\)"):
        segments.factorize(np.zeros(0, int))
    with pytest.raises(ValueError, match=r"must have shape \(4,\)"):
        segments.factorize(np.zeros(3, int), rows=4)
    with pytest.raises(TypeError, match="real numbers, got complex128"):
        segments.real("rewards", np.zeros(3, complex))
    with pytest.raises(ValueError, match=r"rewards\[1\] is nan"):
        segments.real("rewards", np.array([0, np.nan]))
    with pytest.raises(ValueError, match=r"\(N,\) and not be empty, got \(2, 2\)"):
        segments.real("rewards", np.zeros((2, 2)))
    for ddof in (True, 2, -1, 0.5):
        with pytest.raises(ValueError, match="ddof must be 0"):
            segments.degrees(ddof)
    for mask, message in (([[1, 2]], "0 and 1 only"), ([[1, np.nan]], "0 and 1 only"), ([[0, 0]], "row 0 of the mask")):
        with pytest.raises(ValueError, match=message):
            segments.valid_cells(np.array(mask), (1, 2), np.zeros(1))


def calls(x, ids, extra):
    return {
        "grpo": (estimators.grpo, kernels.grpo, (x, ids), {"eps": 1e-4, "ddof": 0}),
        "dr_grpo": (estimators.dr_grpo, kernels.dr_grpo, (x, ids), {}),
        "rloo": (estimators.rloo, kernels.rloo, (x, ids), {}),
        "rloo, raw": (estimators.rloo, kernels.rloo, (x, ids), {"singleton": "raw"}),
        "san": (strata.san, kernels.san, (x, ids, extra), {"alpha": 0.3}),
        "san, pure": (strata.san, kernels.san, (x, ids, extra), {"alpha": 1.0, "ddof": 0, "eps": 0.0}),
    }


def orders(n, seed):
    """Ids sorted into groups of 8, mixed, huge, few, one for each row, one for all."""
    g = stream(seed, "orders", n)
    eights = np.arange(n) // 8
    mixed = g.permutation(eights)
    yield from (eights, mixed, (mixed.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)).view(np.int64))
    yield from (g.choice(EXTREME, n), mixed.astype(np.int32) - 7, g.permutation(n), np.zeros(n, np.uint8))


def compare(n, dtype, seed=0):
    g = stream(seed, "twins", n)
    x = np.where(g.random(n) < 0.5, g.integers(0, 3, n) / 2, g.normal(size=n)).astype(dtype)
    for ids in orders(n, seed):
        extra = g.integers(-2, 2, n)
        for name, (function, kernel, arguments, options) in calls(x, ids, extra).items():
            got, want = kernel(*arguments, **options), function.reference(*arguments, **options)
            if got is NotImplemented:
                assert name.startswith("san") and int(ids.max()) - int(ids.min()) > 2**60
                continue
            assert got.dtype == dtype and want.dtype == dtype, name
            # one rounding to float32, of numbers up to 3 for each of the two terms that san adds; in float64 the sums'
            # order counts, by n eps times a few standard deviations
            single, both = dtype == np.float32, name == "san"
            atol = 4e-7 if single and both else 1e-12
            np.testing.assert_allclose(got, want, rtol=3e-7 if single else 1e-12, atol=atol, err_msg=name)
            np.testing.assert_array_equal(got == 0, want == 0, name)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [1, 2, 7, 500])
def test_kernels_give_what_the_readable_bodies_give(n, dtype):
    compare(n, dtype)


def test_kernels_give_it_in_parallel_too(monkeypatch):
    monkeypatch.setattr(kernels, "PARALLEL", 1)
    compare(300_000, np.float32)  # more than one task of either kind, and ids that spread over many buckets


def test_parallel_kernels_do_not_depend_on_the_number_of_threads(monkeypatch):
    numba = load_numba()
    n, g = 600_000, stream(0, "threads")
    x = g.normal(size=n).astype(np.float32)
    before = numba.get_num_threads()
    for ids in (np.arange(n) // 8, g.integers(0, n // 8, n)):
        results = []
        for threads in {1, before}:
            numba.set_num_threads(threads)
            results.append(kernels.grpo(x, ids))
        numba.set_num_threads(before)
        assert all(np.array_equal(r, results[0]) for r in results)
        np.testing.assert_allclose(results[0], estimators.grpo.reference(x, ids), rtol=3e-7, atol=1e-12)


@pytest.mark.parametrize("n", [9, 300_000])
def test_kernels_leave_what_is_irregular_to_the_readable_body(n):
    x = np.arange(n, dtype=np.float64)
    for ids in (np.arange(n) // 3, np.arange(n)[::-1] // 3):
        for bad in (math.nan, math.inf, -math.inf, 1e200):
            y = x.copy()
            y[n // 2] = bad
            assert kernels.grpo(y, ids) is NotImplemented
        y = np.full(n, np.nan)
        assert kernels.rloo(y, ids) is NotImplemented and kernels.dr_grpo(y, ids) is NotImplemented
    for groups in (ids.astype(float), ids[:-1], ids.tolist(), ids > 0, ids[:, None]):
        assert kernels.grpo(x, groups) is NotImplemented
    assert kernels.grpo(x[:0], ids[:0]) is NotImplemented and kernels.grpo(x[:, None], ids) is NotImplemented
    assert kernels.grpo(x, ids, eps=-1.0) is NotImplemented and kernels.grpo(x, ids, ddof=2) is NotImplemented
    assert kernels.rloo(x, ids, singleton="none") is NotImplemented
    assert kernels.san(x, ids, ids, alpha=1.5) is NotImplemented
    wide = np.resize(EXTREME, n)
    assert kernels.san(x, wide, wide) is NotImplemented  # the pairs do not fit 64 bits by their range
    np.testing.assert_allclose(strata.san(x, wide, wide), estimators.grpo(x, wide), rtol=1e-12)


def test_strided_and_read_only_rows_are_read_as_they_are():
    x, ids = rows(120, dtype=np.float32)
    want, kept = estimators.grpo(x[::2].copy(), ids[::2].copy()), x.copy()
    np.testing.assert_array_equal(estimators.grpo(x[::2], ids[::2]), want)
    np.testing.assert_array_equal(estimators.grpo(x[::-2][::-1][:1], ids[:1]), [0])
    x.setflags(write=False), ids.setflags(write=False)
    np.testing.assert_array_equal(estimators.grpo(x[::2], ids[::2]), want)
    np.testing.assert_array_equal(x, kept)
    swapped = ids.astype(ids.dtype.newbyteorder())
    np.testing.assert_array_equal(estimators.grpo(x, swapped), estimators.grpo(x, ids))
