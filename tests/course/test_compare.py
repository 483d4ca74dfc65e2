from collections import OrderedDict, deque
from decimal import Decimal
from fractions import Fraction
from types import MappingProxyType

import numpy as np
import pytest

from normkit.course.compare import judge, resembles
from normkit.course.probes import Raised, encode


def said(want, have, rtol=1e-6, atol=0.0):
    reference = {"question": "q", "values": encode(want), "rtol": rtol, "atol": atol}
    return judge(reference, {"question": "q", "values": encode(have), "rtol": 9.0, "atol": 9.0})


ROWS = np.array([[1.0, 2.0], [3.0, 4.0]])


class Mine(np.ndarray):
    """An array of one's own that is equal to everything."""

    __eq__ = lambda self, other: True  # noqa: E731


class Holds:
    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return self.array


@pytest.mark.parametrize(
    ("want", "have"),
    [
        (2.0, 2),
        (1, True),
        (False, 0),
        (True, np.True_),
        (2.0, np.float32(2.0)),
        (2.0, np.array(2)),
        (0.5, Fraction(1, 2)),
        (0.5, Decimal("0.5")),
        (0.0, -0.0),
        (1.7e308, 1.7e308),
        (ROWS, ROWS.view(np.matrix)),
        (ROWS, ROWS.view(Mine)),
        (ROWS, Holds(ROWS)),
        (ROWS, ROWS[::-1][::-1]),
        (np.arange(3), range(3)),
        (np.arange(3), deque([0, 1, 2])),
        (np.arange(3), {"a": 0, "b": 1, "c": 2}.values()),
        (np.zeros(0), []),
        ([], ()),
        ([[1, 2], [3]], ((1, 2), (3,))),
        ({3, 1, 2}, frozenset([2, 3, 1])),
        ({"b", "a"}, {"a", "b"}),
        ({1: "a", (0, 1): 2}, {np.int64(1): "a", (np.int64(0), 1.0): 2}),
        ({"a": 1}, MappingProxyType({"a": 1})),
        ({"a": 1, "b": 2}, OrderedDict(b=2, a=1)),
        (ROWS, ROWS.tolist()),
        (ROWS, [ROWS[0], (3, 4)]),
        (ROWS, ROWS.astype(np.float32)),
        (ROWS, ROWS * (1 + 5e-7)),
        (np.array([np.nan, np.inf]), [float("nan"), float("inf")]),
        ([ROWS, 1.0], (ROWS, 1)),
        ({"a": 1, "b": [2]}, {"b": np.array([2]), "a": 1.0}),
        ("pre", "pre"),
        ("RMSNorm", " rmsnorm\n"),
        (None, None),
        ([Raised("ValueError")], [Raised("ValueError")]),
        (np.zeros((0, 3)), np.zeros((0, 3))),
    ],
)
def test_a_right_answer_in_any_style_passes(want, have):
    assert said(want, have) is None


@pytest.mark.parametrize(
    ("want", "have", "text"),
    [
        (2.0, 2.00001, "yours is 2.00001"),
        (2.0, "2.0", "a number is expected, yours is '2.0'"),
        (2.0, [2.0], "a number is expected, no array, yours is (1,)"),
        (np.array([2.0]), 2.0, "the shape should be (1,), yours is ()"),
        (2.0, ..., "yours is ellipsis"),
        (2.0, None, "yours is None"),
        (2.0, 2 + 0j, "yours is complex"),
        (2.0, b"2", "yours is bytes"),
        (2.0, {"a": 2.0}, "yours is a dict"),
        (2.0, (x for x in [2.0]), "yours is generator"),
        (2.0, float("nan"), "yours is nan"),
        (ROWS, ROWS.T, "at index (0, 1)"),
        (ROWS, ROWS[0], "the shape should be (2, 2), yours is (2,)"),
        (ROWS, [[1, 2], [3]], "an array of shape (2, 2) is expected, yours is a list of unlike things"),
        (ROWS, ROWS.astype(object), "yours is array of object"),
        (ROWS, ROWS + 0j, "yours is array of complex128"),
        (ROWS, np.full((2, 2), np.nan), "yours is nan at index (0, 0)"),
        (ROWS, np.full((2, 2), np.inf), "yours is inf at index (0, 0)"),
        (ROWS, np.zeros(10**6), "yours is array of float64, shape (1000000,)"),
        (np.zeros((0, 3)), [], "the shape should be (0, 3), yours is (0,)"),
        (True, 0, "yours is 0"),
        ({1, 2}, {1, 3}, "case 2 of 2: yours is 3"),
        ([1, "a"], [1], "another length or kind"),
        ([1, 2, 3], [1, 2, 4], "case 3 of 3: yours is 4"),
        ({"a": 1}, {"a": 2}, "at 'a': yours is 2"),
        ({"a": 1}, {"b": 1}, "keys a"),
        ("pre", "post", "yours is 'post'"),
        (None, 0, "yours is 0.0"),
        (None, False, "yours is False"),
        ("pre", None, "yours is None"),
        ("1", 1, "yours is 1.0"),
        ("pre", ["pre"], "a list"),
        ([1.0], [Raised("KeyError")], "your code raised KeyError"),
        ([Raised("ValueError")], [1.0], "should raise ValueError"),
        ([Raised("ValueError")], [{"raised": "ValueError"}], "should raise ValueError"),
    ],
)
def test_a_wrong_answer_is_told_where(want, have, text):
    assert text in said(want, have)


def test_the_tolerances_are_those_of_the_reference():
    assert said(1.0, 1.5) is not None  # the emission itself claimed 9.0
    assert said(1.0, 1.5, atol=0.6) is None and said(1.0, 1.5, rtol=0.6) is None


@pytest.mark.parametrize(
    "emitted",
    [
        None,
        [],
        {"question": "q"},
        {"question": "q", "values": 1, "rtol": 1, "atol": -1},
        {"question": "q", "values": {"array": [1], "shape": "no"}, "rtol": 1, "atol": 1},
        {"question": "q", "values": {"number": "1e999"}, "rtol": 1, "atol": 1},
        {"question": "p", "values": 1, "rtol": 1, "atol": 1},
        {"question": "q", "values": {"array": [1.0], "shape": [3]}, "rtol": 1, "atol": 1},
        {"question": "q", "values": 10**400, "rtol": 1, "atol": 1},
        {"question": "q", "values": {"dict": {}}, "rtol": 1, "atol": 1},
        {"question": "q", "values": {"dict": 3}, "rtol": 1, "atol": 1},
        {"question": "q", "values": {"array": [], "shape": [0, 10**30]}, "rtol": 1, "atol": 1},
        {"question": "q", "values": {"array": [1], "shape": [1] * 33}, "rtol": 1, "atol": 1},
        {"question": "q", "values": {"array": [None], "shape": []}, "rtol": 1, "atol": 1},
        {"question": "q", "values": {"raised": 1}, "rtol": 1, "atol": 1},
    ],
)
def test_a_forged_emission_is_refused_in_words(emitted):
    assert isinstance(judge({"question": "q", "values": 1.0, "rtol": 0, "atol": 0}, emitted), str)


def test_frames_series_and_tensors_are_arrays():
    pandas, torch = pytest.importorskip("pandas"), pytest.importorskip("torch")
    column = pandas.Series([1.0, 2.0], index=["a", "b"])
    assert said([1.0, 2.0], column) is None and said(ROWS, pandas.DataFrame(ROWS)) is None
    leaf = torch.tensor(ROWS, requires_grad=True)
    assert said(ROWS, leaf * 1) is None and said(ROWS, [leaf[0], leaf[1]]) is None
    assert said(10.0, leaf.sum()) is None and said(True, torch.tensor(True)) is None
    assert "complex128" in said(ROWS, leaf + 0j)


def test_float32_passes_where_nothing_cancels_and_float64_everywhere():
    """What `difference` says of rtol=1e-6; the probe's inputs are float64, so an answer that keeps them has it."""
    torch = pytest.importorskip("torch")

    def rms_norm(x):
        return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-6)

    x = np.random.default_rng(0).normal(size=(50, 8))
    want = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6)
    assert said(want, rms_norm(torch.tensor(x))) is None
    assert said(want, rms_norm(torch.tensor(x, dtype=torch.float32))) is None
    far = 1e4 + x
    assert said(far - far.mean(), torch.tensor(far) - torch.tensor(far).mean(), atol=1e-9) is None
    near = torch.tensor(far, dtype=torch.float32)
    assert "yours is" in said(far - far.mean(), near - near.mean(), atol=1e-9)


@pytest.mark.parametrize(
    ("right", "wrong", "other", "same"),
    [
        ([1e-20, 2.0], [0.0, 2.0], [1e-16, 2.0], False),  # two cases, and the size of the first alone counts for it
        ([[1.0, 2.0]], [[1e-17, 1.0]], [[-3e-17, 1.0]], True),
        ([[1.0, 2.0]], [[1e-17, 1.0]], [[-3e-12, 1.0]], False),
        ([[1e-20, 2e-20]], [[1e-37, 1e-20]], [[1e-30, 1e-20]], False),
        ([{"array": [3.0, 4.0], "shape": [2]}], [{"array": [0.0, 1.0], "shape": [2]}], [[1e-15, 1.0]], True),
        ({"dict": {"a": 5.0}}, {"dict": {"a": 1e-18}}, {"dict": {"a": 0.0}}, True),
        ([1.0], [{"raised": "ValueError"}], [{"raised": "ValueError"}], True),
        ([1.0, 1.0], [2.0], [2.0], True),
        ("word", "other", "other", True),
        ([{"number": "inf"}], [1.0], [1.0 + 1e-9], False),
    ],
)
def test_a_known_mistake_is_known_again_whatever_its_rounding(right, wrong, other, same):
    right = {"question": "q", "values": right, "rtol": 1e-12, "atol": 0.0}
    assert resembles(right, wrong, right | {"values": other}) == same
