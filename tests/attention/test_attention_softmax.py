"""Three softmax algorithms and softmax with its entropy: against float64 and torch, at every size, scale and mask."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from normkit.attention import kernels, long_row, softmax
from normkit.attention.softmax import entropy, softmax_entropy
from normkit.rng import stream

ALGORITHMS = [softmax.softmax_three_pass, softmax.softmax_online, softmax.softmax_two_pass]
BOTH = {"kernel": softmax_entropy, "readable": softmax_entropy.reference}


def exact(x):
    """(softmax, entropy) of the rounded logits by their definitions, in longdouble."""
    x = np.asarray(x, np.longdouble)
    e = np.exp(x - x.max(-1, keepdims=True))
    p = e / e.sum(-1, keepdims=True)
    return p, -np.sum(np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0), -1)


def draw(shape, scale=1.0, dtype=np.float32, masked=0.0, seed=0):
    rng = stream(seed, "logits", *shape)
    x = (scale * rng.standard_normal(shape)).astype(dtype)
    x[rng.random(shape) < masked] = -np.inf
    x[..., -1] = np.where(np.isinf(x).all(-1), 0, x[..., -1])
    return x


def bound(dtype, scale):
    """Largest error of p and H: sums of up to 1024 terms, and logits of up to 5 scales rounded when they are subtracted."""
    return np.finfo(dtype).eps * (20 + 10 * min(scale, 100))


# ---- algorithms -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("f", ALGORITHMS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("scale", "offset"), [(1, 0), (5, 80), (5, -300), (30, 1e4), (300, 0), (1e-6, -1e4)])
def test_algorithms(f, dtype, scale, offset):
    x = (draw((4, 7, 600), scale, np.float64) + offset).astype(dtype)
    x[1, 2, 100:] = -np.inf
    x[0, 0, :300] = -np.inf  # the first block has nothing to offer
    got, want = f(x), exact(x)[0]
    assert got.dtype == dtype
    assert np.abs(got - want).max() < bound(dtype, scale + abs(offset) / 100)
    assert (got[np.isinf(x)] == 0).all()
    as_torch = f(torch.from_numpy(x))
    assert as_torch.dtype == torch.from_numpy(x).dtype
    np.testing.assert_allclose(as_torch.numpy(), got, rtol=0, atol=bound(dtype, scale))


@pytest.mark.parametrize("f", [softmax.softmax_three_pass, softmax.softmax_online])
def test_differences_alone_matter_up_to_the_largest_numbers(f):
    x = np.array([[3e38, 1e38, -3e38, -np.inf], [1e30, 1e30, 0, -1e30]], np.float32)
    with np.errstate(over="ignore"):
        np.testing.assert_allclose(f(x), [[1, 0, 0, 0], [0.5, 0.5, 0, 0]], rtol=1e-7)


@given(st.lists(st.floats(-4e6, 4e6, width=32), min_size=1, max_size=20))
@settings(max_examples=300, deadline=None)
def test_pairs(values):
    x = np.array(values, np.float32)
    m, n = softmax.exp_pair(x)
    assert m.dtype == n.dtype == np.float32
    assert (n == np.rint(n)).all()
    # the reduction is good to the rounding of n ln 2, half a unit in the last place of x
    slack = 1 + np.abs(x) * 1.3e-7
    assert (m >= math.sqrt(0.5) / slack).all() and (m <= math.sqrt(2) * slack).all()
    back = np.log(m.astype(np.float64)) + n.astype(np.float64) * math.log(2)
    np.testing.assert_allclose(back, x, rtol=1.3e-7, atol=3e-7)


def test_pairs_of_known_numbers():
    m, n = softmax.exp_pair(np.array([1000.0, 0.0, -np.inf]))
    assert n.tolist() == [1443, 0, -np.inf] and m[1:].tolist() == [1, 0]
    assert math.log(m[0]) + 1443 * math.log(2) == pytest.approx(1000, rel=1e-15)
    shifted, moved = softmax.exp_pair(np.array([1000.0 + 10 * math.log(2)]))
    assert moved == 1453 and shifted[0] == pytest.approx(m[0], rel=1e-12)  # only the exponent notices 10 ln 2


@given(st.lists(st.tuples(st.floats(0.7, 1.4), st.integers(-3000, 3000)), min_size=3, max_size=3))
@settings(max_examples=100, deadline=None)
def test_merging_pairs_is_associative_and_commutative(pairs):
    a, b, c = ((np.float64(m), np.float64(n)) for m, n in pairs)
    left = softmax.pair_merge(softmax.pair_merge(a, b), c)
    right = softmax.pair_merge(a, softmax.pair_merge(c, b))
    assert left[1] == right[1] == max(n for _, n in pairs)
    assert left[0] == pytest.approx(right[0], rel=1e-14)
    nothing = np.float64(0), np.float64(-np.inf)
    assert softmax.pair_merge(a, nothing) == a == softmax.pair_merge(nothing, a)
    assert softmax.pair_merge(nothing, nothing) == nothing


def test_merging_maxima_and_sums_is_associative():
    x = draw((9,), 20.0, np.float64)
    parts = [(p.max(), np.exp(p - p.max()).sum()) for p in (x[:2], x[2:3], x[3:])]
    left = softmax.online_merge(softmax.online_merge(parts[0], parts[1]), parts[2])
    right = softmax.online_merge(parts[0], softmax.online_merge(parts[2], parts[1]))
    want = x.max() + math.log(np.exp(x - x.max()).sum())
    for top, total in (left, right):
        assert top + math.log(total) == pytest.approx(want, rel=1e-14)
    nothing = np.float64(-np.inf), np.float64(0)
    assert softmax.online_merge(nothing, parts[0]) == parts[0]
    assert softmax.online_merge(nothing, nothing) == nothing


def test_two_passes_say_where_they_end():
    for bad in (1e8, -1e8):
        with pytest.raises(ValueError, match="subtract"):
            softmax.softmax_two_pass(np.full((2, 3), bad, np.float32))
    p = softmax.softmax_two_pass(np.array([[0.0, 1.0, -1e9, -3e38]], np.float32))  # as many mask
    np.testing.assert_allclose(p, [[1 / (1 + math.e), math.e / (1 + math.e), 0, 0]], rtol=1e-6)


# ---- softmax with entropy -------------------------------------------------------------------------------------------


@pytest.fixture(params=["serial", "parallel", "streamed"])
def path(request, monkeypatch):
    """Small arrays through each of the kernel's three paths."""
    monkeypatch.setattr(kernels, "PARALLEL", 1 << 60 if request.param == "serial" else 1)
    monkeypatch.setattr(kernels, "BEYOND_CACHE", 1 if request.param == "streamed" else 1 << 60)
    return request.param


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("columns", [1, 2, 7, 16, 63, 1000, 1024, 1025, 3001])
def test_every_path_at_every_row_length(path, dtype, columns):
    x = draw((67, columns), 3.0, dtype, masked=0.2)
    (p, h), (p_exact, h_exact) = softmax_entropy(x), exact(x)
    assert p.dtype == h.dtype == dtype and h.shape == (67,)
    assert np.abs(p - p_exact).max() < bound(dtype, 3) and np.abs(h - h_exact).max() < bound(dtype, 3)
    assert (p[np.isinf(x)] == 0).all()
    np.testing.assert_array_equal(entropy(x), h)


def test_long_rows_are_not_streamed_but_right(path, monkeypatch):
    monkeypatch.setattr(kernels, "LONGEST_STREAMED", 100)
    x = draw((5, 333), 2.0)
    assert np.abs(softmax_entropy(x)[0] - exact(x)[0]).max() < bound(np.float32, 2)


@pytest.mark.parametrize("f", BOTH.values(), ids=BOTH)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@given(
    rows=st.integers(1, 5),
    columns=st.integers(1, 40),
    power=st.floats(-30, 30),
    masked=st.floats(0, 0.9),
    seed=st.integers(0, 99),
)
@settings(max_examples=100, deadline=None)
def test_any_shape_scale_and_mask(f, dtype, rows, columns, power, masked, seed):
    x = draw((rows, columns), 10.0**power, dtype, masked, seed)
    (p, h), (p_exact, h_exact) = f(x), exact(x)
    tolerance = bound(dtype, 10.0**power)
    assert np.abs(p - p_exact).max() < tolerance and np.abs(h - h_exact).max() < 5 * tolerance
    assert (h <= math.log(columns) + tolerance).all() and (h >= -tolerance).all()


@pytest.mark.parametrize("f", BOTH.values(), ids=BOTH)
def test_the_largest_numbers_there_are(f):
    x = np.array([[3e38, -3e38, -np.inf, 3e38], [-3e38, -np.inf, -np.inf, -3.1e38]], np.float32)
    p, h = f(x)
    assert p.tolist() == [[0.5, 0, 0, 0.5], [1, 0, 0, 0]]
    np.testing.assert_allclose(h, [math.log(2), 0], rtol=1e-7)


@pytest.mark.parametrize("axis", [-1, 0, 1, 2, -3])
def test_axes(axis):
    x = draw((4, 5, 6), 2.0)
    p, h = softmax_entropy(x, axis)
    p_exact, h_exact = exact(np.moveaxis(x, axis, -1))
    assert p.shape == x.shape and h.shape == h_exact.shape
    np.testing.assert_allclose(np.moveaxis(p, axis, -1), p_exact.astype(float), rtol=2e-6)
    np.testing.assert_allclose(h, h_exact.astype(float), rtol=2e-6)
    np.testing.assert_array_equal(entropy(x, axis=axis), h)
    t_p, t_h = softmax_entropy(torch.from_numpy(x), axis)
    np.testing.assert_allclose(t_p.numpy(), p, rtol=2e-6)
    np.testing.assert_allclose(t_h.numpy(), h, rtol=2e-6)


def test_one_row_and_no_rows():
    p, h = softmax_entropy(np.array([0.0, 0.0, -np.inf]))
    assert p.tolist() == [0.5, 0.5, 0] and h == pytest.approx(math.log(2)) and h.shape == ()
    p, h = softmax_entropy(np.empty((0, 3), np.float32))
    assert p.shape == (0, 3) and h.shape == (0,)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_computed_in_float32(dtype):
    x = torch.from_numpy(draw((6, 300), 4.0)).to(getattr(torch, dtype))
    p, h = softmax_entropy(x)
    p_exact, h_exact = exact(x.float().numpy())
    assert p.dtype == x.dtype and h.dtype == torch.float32
    assert np.abs(h.numpy() - h_exact).max() < bound(np.float32, 4)
    np.testing.assert_allclose(p.float().numpy(), p_exact.astype(float), rtol=2 * torch.finfo(p.dtype).eps, atol=1e-7)
    for f in ALGORITHMS:
        assert f(x).dtype == x.dtype
    if dtype == "float16":
        assert softmax_entropy(x.numpy())[0].dtype == np.float16 and entropy(x.numpy()).dtype == np.float32


def test_outputs_views_and_unaligned_memory(path):
    x = draw((12, 90), 2.0)
    p, h = softmax_entropy(x)
    strided = np.empty((12, 180), np.float32)[:, ::2]
    strided[:] = x
    np.testing.assert_array_equal(softmax_entropy(strided)[0], p)
    for shift in range(4):
        memory = np.full(12 * 90 + 8, 7, np.float32)
        out = memory[shift : shift + 12 * 90].reshape(12, 90)
        got, got_h = softmax_entropy(x, out=out)
        assert got is out and (got_h == h).all()
        np.testing.assert_array_equal(out, p)
        assert (memory[:shift] == 7).all() and (memory[shift + 12 * 90 :] == 7).all()
    in_place = x.copy()
    assert softmax_entropy(in_place, out=in_place)[0] is in_place
    np.testing.assert_allclose(in_place, p, rtol=1e-6, atol=1e-9)
    with pytest.raises(ValueError, match="out must be"):
        softmax_entropy(x, out=np.empty((12, 91), np.float32))


THREADS = """
import sys, zlib
import numba
numba.set_num_threads(int(sys.argv[1]))
from normkit.attention import kernels
from normkit.attention.softmax import softmax_entropy
from normkit.rng import stream
x = 3 * stream(8, "threads").standard_normal((1500, 333), dtype="f4")
for kernels.BEYOND_CACHE in 1, 1 << 60:
    p, h = softmax_entropy(x)
    print(zlib.crc32(p.tobytes()), zlib.crc32(h.tobytes()))
"""


def test_bits_do_not_depend_on_the_number_of_threads():
    outputs = {
        subprocess.run([sys.executable, "-c", THREADS, n], capture_output=True, text=True, check=True).stdout
        for n in ("1", "2")
    }
    assert len(outputs) == 1
    assert len(set(outputs.pop().split("\n")[:2])) == 1  # nor on where it is stored


# ---- errors ---------------------------------------------------------------------------------------------------------

EVERY = [*ALGORITHMS, softmax_entropy, softmax_entropy.reference, entropy, entropy.reference]


@pytest.mark.parametrize("convert", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
@pytest.mark.parametrize("f", EVERY)
@pytest.mark.parametrize(
    ("bad", "why"), [(math.nan, "NaN"), (-math.nan, "NaN"), (math.inf, r"\+inf"), (None, "-inf everywhere")]
)
def test_rows_without_a_softmax_are_named(convert, f, bad, why):
    x = draw((2, 3, 20))
    x[1, 2, :] = -np.inf if bad is None else x[1, 2, :]
    x[1, 2, 7] = -np.inf if bad is None else bad
    with pytest.raises(ValueError, match=rf"row \(1, 2\).*{why}"):
        f(convert(x))


@pytest.mark.parametrize("f", EVERY)
def test_what_is_no_row(f):
    with pytest.raises(TypeError, match="floating"):
        f(np.arange(4))
    with pytest.raises(ValueError, match="axis"):
        f(np.float64(3))
    with pytest.raises(ValueError, match="empty"):
        f(np.empty((3, 0)))
    with pytest.raises(TypeError, match="arrays wanted"):
        f([1.0, 2.0])


@pytest.mark.parametrize("f", [softmax_entropy, entropy])
@pytest.mark.parametrize("axis", [2, -3, 1.0, None, True])
def test_axes_that_are_not_there(f, axis):
    with pytest.raises(ValueError, match="axis"):
        f(np.zeros((2, 3)), axis)


# ---- gradients ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [-1, 0])
def test_gradients_by_finite_differences(axis):
    x = torch.from_numpy(draw((3, 5), 2.0, np.float64)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: softmax_entropy(x, axis), x)
    assert torch.autograd.gradcheck(lambda x: entropy(x, axis), x)
    assert torch.autograd.gradgradcheck(lambda x: entropy(x, axis), x)
    for f in ALGORITHMS[:2]:
        assert torch.autograd.gradcheck(f, x)


@pytest.mark.parametrize("scale", [1.0, 1e3, 1e30])
def test_masked_entries_get_no_gradient_and_no_nan(scale):
    x = torch.from_numpy(draw((6, 40), scale, np.float32, masked=0.5)).requires_grad_()
    p, h = softmax_entropy(x)
    h.sum().backward()
    log_p = torch.where(p > 0, p, 1).double().log()
    want = -p.double() * (log_p + h.double()[:, None])  # dH / dlogit
    np.testing.assert_allclose(x.grad.numpy(), want.detach().numpy(), atol=2e-6)
    assert (x.grad[torch.isinf(x)] == 0).all()


@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a .functools.lru_cache")  # in array-api-compat
def test_the_compiler_gets_a_body_without_checks():
    compiled = torch.compile(softmax_entropy.reference, dynamic=False, backend="eager", fullgraph=True)
    x = torch.from_numpy(draw((6, 40), 3.0, masked=0.3))
    for got, want in zip(compiled(x), softmax_entropy(x), strict=True):
        torch.testing.assert_close(got, want)
    x[2] = -math.inf
    assert torch.isnan(compiled(x)[1]).tolist() == [i == 2 for i in range(6)]


# ---- one long row ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 15, 1024, 1025, 70_000])
@pytest.mark.parametrize("how", ["recomputing", "reloading", "two passes"])
@pytest.mark.parametrize("center", [0.0, 500.0, -500.0])
def test_long_row_kernels(n, how, center):
    x = (center + 8 * stream(9, "long", n).standard_normal(n)).astype(np.float32)
    y = np.full(n, np.nan, np.float32)
    if how == "two passes":
        long_row.two_pass(x, y)
    else:
        long_row.three_pass(x, y, how == "reloading")
    want = exact(x)[0]
    # relative errors: x is rounded before, but x - max (up to 80) and n ln 2 (500 2^-24) are rounded here
    np.testing.assert_allclose(y, want.astype(float), rtol=6e-5, atol=1e-37)
    assert abs(y.sum(dtype=np.float64) - 1) < 1e-5


def test_single_passes():
    x, y = np.array([-3.0, -1.0, -2.0, -8.0], np.float32), np.zeros(4, np.float32)
    assert long_row.passes(x, y, 0) == -1
    assert long_row.passes(x, y, 1) == pytest.approx(np.exp(x).sum(), rel=1e-6)
    assert long_row.passes(x, y, 3) == -14
    long_row.passes(x, y, 2)
    np.testing.assert_allclose(y, np.exp(x) / 2, rtol=1e-6)
    long_row.passes(x, y, 4)
    np.testing.assert_array_equal(y, x)
