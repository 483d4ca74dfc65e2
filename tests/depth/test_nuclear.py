"""The metric against a plain transcription of its definition, its bounds, and the matrix that shows what it misses."""

import math

import numpy as np
import pytest

from normkit.depth import nuclear

EPS = np.finfo(np.float64).eps
rng = np.random.default_rng(7)
SHAPES = [(64, 64), (40, 12), (12, 40)]


def plain(x, top=None):
    """The paper's steps in loops, float64."""
    x = np.array(x, dtype=np.float64)
    x = x - sum(x) / len(x)
    rows = [row / math.sqrt(math.fsum(row * row)) for row in x]
    columns = sorted((math.sqrt(math.fsum(c * c)) for c in np.array(rows).T), reverse=True)
    return math.fsum(columns[: min(x.shape)]) / len(x)


@pytest.mark.parametrize("shape", SHAPES)
def test_mnn_is_the_papers_recipe(shape):
    x = rng.normal(1.0, 2.0, shape)
    assert float(nuclear.mnn(x)) == pytest.approx(plain(x), rel=64 * EPS)  # sums of up to 64 rounded squares
    assert float(nuclear.mnn(x, per_token=False)) == pytest.approx(shape[0] * plain(x), rel=64 * EPS)


def test_flags():
    x = rng.normal(1.0, 2.0, (6, 4))
    columns = np.sqrt((x**2).sum(0)).sum()
    assert float(nuclear.mnn(x, center=False, unit_rows=False, per_token=False)) == pytest.approx(columns)
    np.testing.assert_allclose(nuclear.prepare(x, unit_rows=False), x - x.mean(0), atol=16 * EPS)
    np.testing.assert_allclose(np.linalg.norm(nuclear.prepare(x, center=False), axis=1), 1)
    y = nuclear.prepare(x)
    np.testing.assert_allclose(y * np.linalg.norm(x - x.mean(0), axis=1)[:, None], x - x.mean(0), atol=32 * EPS)


@pytest.mark.parametrize("shape", SHAPES)
def test_bounds_hold(shape):
    slack = 1 + 100 * EPS
    for scale in (0.0, 1.0, 3.0):  # from isotropic to a few dominant columns
        x = rng.normal(size=shape) * np.exp(scale * rng.normal(size=shape[1]))
        got = nuclear.compare(x)
        assert got.nuclear_bounds[0] <= got.nuclear * slack
        assert got.nuclear <= got.nuclear_bounds[1] * slack
        assert got.mnn_bounds[0] <= got.mnn * slack
        assert got.mnn <= got.mnn_bounds[1] * slack
        assert got.nuclear_bounds[0] == pytest.approx(math.sqrt(shape[0]))  # unit rows
        assert 1 <= got.effective_rank <= min(shape)
        if shape[1] <= shape[0]:
            assert got.nuclear <= got.mnn * slack


def test_with_more_columns_than_tokens_it_can_be_below_the_nuclear_norm():
    x = np.ones((1, 9))
    assert float(nuclear.mnn(x, center=False)) == pytest.approx(1 / 3)  # one of nine equal columns
    assert float(nuclear.nuclear_norm(nuclear.prepare(x, center=False))) == pytest.approx(1)


def test_in_the_right_singular_basis_it_is_the_nuclear_norm():
    x = nuclear.prepare(rng.normal(size=(20, 20)))
    turned = x @ np.linalg.svd(x)[2].T  # rows keep their length and mean
    exact = float(nuclear.nuclear_norm(x))
    assert float(nuclear.mnn(turned, center=False, per_token=False)) == pytest.approx(exact, rel=1e3 * EPS)
    assert (
        float(nuclear.mnn(x, center=False, per_token=False)) > 1.05 * exact
    )  # in a generic basis 3 pi / 8 = 1.18 times
    assert exact == pytest.approx(np.linalg.norm(x, "nuc"), rel=1e3 * EPS)


@pytest.mark.parametrize(("tokens", "width"), [(64, 64), (8, 5), (4, 16)])
def test_a_rank_one_matrix_reaches_floor_and_ceiling(tokens, width):
    for turn in (0.0, 0.3, 1.0):
        x = nuclear.rank_one(tokens, width, turn=turn)
        got = nuclear.compare(x)  # with the paper's centering and row norms: they change nothing here
        entries = np.abs(x[0])
        expected = math.sqrt(tokens) * np.sort(entries)[-min(tokens, width) :].sum()
        assert got.mnn == pytest.approx(expected, rel=1e3 * EPS)
        assert got.nuclear == pytest.approx(math.sqrt(tokens), rel=1e3 * EPS)
        assert got.effective_rank == pytest.approx(1, abs=1e-9)  # sigma_2 ~ EPS: p log p ~ 1e-14 each
        assert np.linalg.matrix_rank(x) == 1
    np.testing.assert_allclose(np.abs(x), width**-0.5)
    assert got.mnn == pytest.approx(min(1, tokens / width) * math.sqrt(tokens * width))


def test_it_calls_rank_one_as_diverse_as_a_gaussian():
    """The proxy ranks the two wrongly, the effective rank does not."""
    flat, full = nuclear.compare(nuclear.rank_one()), nuclear.compare(rng.normal(size=(64, 64)))
    assert flat.mnn == pytest.approx(64)
    assert flat.mnn > full.mnn  # 64 is the ceiling, which a random matrix does not reach
    assert full.nuclear > 6 * flat.nuclear  # quarter circle law: 8/(3 pi) of the ceiling 64 = 54, against 8
    assert full.effective_rank > 30


def test_effective_rank_of_known_spectra():
    assert float(nuclear.effective_rank(3 * np.eye(5, 9))) == pytest.approx(5)
    assert float(nuclear.effective_rank(np.diag([1.0, 0.0]))) == 1.0
    p = np.array([3, 1]) / 4
    assert float(nuclear.effective_rank(np.diag([3.0, 1.0]))) == pytest.approx(np.exp(-(p * np.log(p)).sum()))


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_scale_does_not_matter(scale):
    x = rng.normal(size=(8, 6)).astype(np.float32)
    got = nuclear.mnn(x * np.float32(scale))  # squares would leave float32
    assert got.dtype == np.float32
    assert float(got) == pytest.approx(plain(x), rel=1e-5)


def test_torch_agrees_and_is_differentiable():
    torch = pytest.importorskip("torch")
    x = rng.normal(size=(10, 6))
    t = torch.tensor(x, requires_grad=True)
    for f in (nuclear.mnn, nuclear.nuclear_norm, nuclear.effective_rank):
        assert f(t).item() == pytest.approx(float(f(x)), rel=1e3 * EPS)
    assert nuclear.compare(t).mnn == pytest.approx(nuclear.compare(x).mnn)
    step = 1e-6 * rng.normal(size=x.shape)
    nuclear.mnn(t).backward()
    slope = float(nuclear.mnn(x + step) - nuclear.mnn(x - step)) / 2
    assert float((t.grad.numpy() * step).sum()) == pytest.approx(slope, rel=1e-5)


def test_bad_input_is_an_error():
    good = np.eye(3)
    for bad, message in [
        (np.ones(3), "2-D"),
        (np.ones((2, 3, 4)), "2-D"),
        (np.ones((0, 3)), "no tokens"),
        (np.ones((3, 0)), "empty last axis"),
        (np.array([[1.0, np.nan], [0, 1]]), r"x\[0, 1\] is nan"),
    ]:
        for f in (nuclear.mnn, nuclear.nuclear_norm, nuclear.effective_rank):
            with pytest.raises(ValueError, match=message):
                f(bad)
    with pytest.raises(TypeError, match="floating"):
        nuclear.mnn(np.eye(3, dtype=int))
    with pytest.raises(ValueError, match="row 0 of x equals the mean"):
        nuclear.mnn(np.full((7, 3), 0.1) + np.array([1e8, 0, 0]))
    with pytest.raises(ValueError, match="row 2 of x equals the mean"):
        nuclear.mnn(np.array([[1.0, 0.1], [-1, 0.3], [0, 0.2]]))
    with pytest.raises(ValueError, match="row 1 of x is zero"):
        nuclear.mnn(good * [1, 0, 1], center=False)
    with pytest.raises(ValueError, match="one token"):
        nuclear.mnn(good[:1])
    with pytest.raises(ValueError, match="zero matrix"):
        nuclear.effective_rank(0 * good)
    with pytest.raises(ValueError, match="must be finite"):
        nuclear.nuclear_norm(np.full((2, 2), 1.7e308))
    for arguments in [{"tokens": 3}, {"tokens": 0}, {"width": 0}, {"turn": 1.1}, {"turn": math.nan}]:
        with pytest.raises(ValueError, match=next(iter(arguments))):
            nuclear.rank_one(**arguments)
