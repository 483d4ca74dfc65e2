"""Claims of the Two-Pass paper: their measures on made-up cases, the signs, one cheap sample each."""

import subprocess
import sys

import numpy as np
import pytest

from normkit.attention import claims_softmax as claims
from normkit.ledger import Claim

CLAIMS = [c for c in vars(claims).values() if isinstance(c, Claim)]


def test_the_paper():
    assert {c.arxiv for c in CLAIMS} == {"2001.04438"}
    assert len({c.id for c in CLAIMS}) == len(CLAIMS) == 4


def test_the_list_needs_neither_torch_nor_numba():
    code = "import sys, normkit.attention.claims_softmax; print('torch' in sys.modules, 'numba' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_sound_rows():
    assert claims.sound(np.full((4, 10), 0.1, np.float32)) == 1
    bad = np.array([[0.5, 0.5], [np.nan, 0.5], [0, 0], [np.inf, 0.0]])
    assert claims.sound(bad) == 0.25


def test_deviation_is_relative_and_skips_what_float32_cannot_resolve():
    truth = np.array([0.5, 0.25, 1e-35])
    assert claims.deviation(np.array([0.5, 0.25, 0.0]), truth) == 0
    assert claims.deviation(np.array([0.55, 0.25, 0.0]), truth) == pytest.approx(0.1 / np.sqrt(2))


def test_the_definition_overflows_and_underflows():
    with np.errstate(all="raise"):  # it does so quietly
        assert np.isnan(claims.naive(np.array([[200.0, 0.0]], np.float32))[0, 0])
        assert np.isnan(claims.naive(np.array([[-200.0, -200.0]], np.float32))).all()
    np.testing.assert_allclose(claims.naive(np.zeros((1, 4), np.float32)), 0.25)


def test_overflow_sample():
    assert claims.avoids_overflow.sample(0) == [0, 1, 1, 1]


def test_a_wrong_algorithm_is_seen(monkeypatch):
    monkeypatch.setattr(claims, "softmax_two_pass", claims.naive)
    assert claims.avoids_overflow.sample(0) == [0, 0, 0, 0]
    three = claims.softmax_three_pass
    monkeypatch.setattr(claims, "softmax_two_pass", lambda x: three(x) * np.float32(1.001))
    assert min(claims.accurate.sample(0)) > np.log(50)  # 1e-3 beside float32's 1e-5 and less
    monkeypatch.setattr(claims, "softmax_two_pass", three)
    assert claims.accurate.sample(0) == [0, 0, 0, 0]


def test_accuracy_sample_is_of_the_order_of_one():
    assert np.abs(claims.accurate.sample(0)).max() < np.log(100)


def test_best_takes_turns_and_the_minimum(monkeypatch):
    now, order = [0.0], []

    def work(name, seconds):
        def run():
            order.append(name)
            now[0] += seconds * (3 if len(order) < 5 else 1)  # a machine that is busy at first

        return run

    monkeypatch.setattr(claims.time, "perf_counter", lambda: now[0])
    found = claims.best([work("a", 1.0), work("b", 2.0)], 2)
    assert found == pytest.approx([1, 2])
    assert order == ["a", "a", "b", "b"] * claims.REPETITIONS


def test_signs_of_the_times(monkeypatch):
    seconds = {2: [1.0, 2.0, 4.0], 5: [1.0, 2.0, 6.0, 1.0, 3.0]}
    monkeypatch.setattr(claims, "timed", lambda seed, n, *functions: seconds[5 if len(functions) == 5 else 2])
    assert claims.faster.sample(0) == pytest.approx([-np.log(2), -np.log(4)] * 2)
    assert claims.memory_bound.sample(0) == pytest.approx([0, np.log(2), np.log(2)])


def test_time_samples_run_on_small_rows(monkeypatch):
    monkeypatch.setattr(claims, "OUT_OF_CACHE", 4096)
    monkeypatch.setattr(claims, "IN_CACHE", 512)
    assert np.isfinite(claims.faster.sample(0)).all() and len(claims.faster.sample(0)) == 4
    assert np.isfinite(claims.memory_bound.sample(0)).all() and len(claims.memory_bound.sample(0)) == 3


def test_the_row_is_the_papers():
    x, y = claims.long_row(0, 10_000)
    assert x.dtype == y.dtype == np.float32 and x.shape == y.shape
    assert -1000 <= x.min() < -990 and 990 < x.max() <= 1000
