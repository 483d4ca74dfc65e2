"""The kernels where they could go wrong: odd sizes, offsets, scales, non-finite rows, threads, streamed output."""

import subprocess
import sys

import numpy as np
import pytest

from normkit.layers import kernels, layer_norm, rms_norm
from normkit.rng import stream

NORMS = {"layer_norm": layer_norm, "rms_norm": rms_norm}


def exact(name, x, eps):
    x = np.asarray(x, np.longdouble)
    if name == "layer_norm":
        x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps)


def error(name, x, eps=1e-5):
    want = exact(name, x, eps)
    return float(np.abs(NORMS[name](x, eps=eps) - want).max() / np.abs(want).max())


@pytest.fixture(params=["serial", "parallel", "streamed"])
def path(request, monkeypatch):
    """Small arrays through each of the three paths."""
    monkeypatch.setattr(kernels, "PARALLEL", 1 << 60 if request.param == "serial" else 1)
    monkeypatch.setattr(kernels, "BEYOND_CACHE", 1 if request.param == "streamed" else 1 << 60)
    return request.param


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("columns", [2, 3, 7, 8, 63, 1000, 1024, 1025, 3001])
def test_every_path_at_every_row_length(path, name, dtype, columns):
    x = stream(0, "rows", columns).standard_normal((67, columns)).astype(dtype)
    assert error(name, x) < 20 * np.finfo(dtype).eps  # sums of up to 1024 terms in SIMD lanes, then float64


def test_one_column(path):
    x = np.array([[3.0], [-2e5]], np.float32)
    assert (layer_norm(x) == 0).all()
    np.testing.assert_allclose(rms_norm(x), [[1], [-1]], rtol=1e-6)


@pytest.mark.parametrize("offset", [1e2, 1e4, 1e6, -1e6])
def test_rows_far_from_zero(path, offset):
    # The input is rounded before either sees it; what is left is the kernel's own error, whatever the offset.
    x = (stream(1, "offset").standard_normal((40, 512)) + offset).astype(np.float32)
    assert error("layer_norm", x) < 1e-6


def test_a_first_entry_far_from_the_rest(path):
    x = stream(2, "outlier").standard_normal((9, 300)).astype(np.float32)
    x[:, 0] = 1e6
    assert error("layer_norm", x) < 1e-6
    x[:, 0] = 30  # the shift is far from the mean, but the variance is not its own
    assert error("layer_norm", x) < 2e-6


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("scale", [1e18, 1e30, 1e38, 1e-30, 1e-44])
@pytest.mark.parametrize("eps", [1e-5, 0.0])
def test_squares_that_leave_float32(path, name, scale, eps):
    x = (stream(3, "scale").uniform(-1, 1, (5, 65)) * scale).astype(np.float32)
    want = exact(name, x, eps)
    # Relative to the largest entry; subnormal means come in steps of 1.4e-45, which are divided by sqrt(eps).
    step = 1.5e-45 / np.sqrt(eps) if eps else 0
    assert np.abs(NORMS[name](x, eps=eps) - want).max() < 1e-6 * np.abs(want).max() + step


@pytest.mark.parametrize("name", NORMS)
def test_squares_that_leave_float64(path, name):
    x = stream(4, "scale").uniform(-1, 1, (5, 65))
    np.testing.assert_allclose(NORMS[name](x * 1e300), exact(name, x, 0).astype(float), rtol=1e-12, atol=1e-14)


def test_a_constant_row_gives_exactly_zero(path):
    for value in 0.0, 0.1, 10000.3, -1e30:
        assert (layer_norm(np.full((3, 77), value, np.float32)) == 0).all()


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("column", [0, 5, 64])
def test_non_finite_rows_are_those_of_the_reference_and_infect_no_other(path, name, bad, column):
    x = stream(5, "bad").standard_normal((6, 65)).astype(np.float32)
    clean = NORMS[name](x)
    x[2, column] = bad
    got = NORMS[name](x)
    with np.errstate(invalid="ignore"):
        want = NORMS[name].reference(x)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    np.testing.assert_array_equal(got[2][~np.isnan(got[2])], want[2][~np.isnan(want[2])])
    assert np.isnan(got[2]).any()
    np.testing.assert_array_equal(np.delete(got, 2, 0), np.delete(clean, 2, 0))


@pytest.mark.parametrize("name", NORMS)
def test_an_all_zero_row_without_eps_is_nan_not_a_number_made_up(name):
    assert np.isnan(NORMS[name](np.zeros((1, 9), np.float32), eps=0.0)).all()


@pytest.mark.parametrize("name", NORMS)
def test_views_outputs_and_unaligned_memory(path, name):
    f, x = NORMS[name], stream(6, "views").standard_normal((12, 90)).astype(np.float32)
    w = np.linspace(1, 2, 90, dtype=np.float32)
    want = f(x, w)
    strided = np.empty((12, 180), np.float32)[:, ::2]
    strided[:] = x
    np.testing.assert_array_equal(f(strided, w), want)
    for shift in range(4):
        out = np.full(12 * 90 + 8, 7, np.float32)
        target = out[shift : shift + 12 * 90].reshape(12, 90)
        assert f(x, w, out=target) is target
        np.testing.assert_array_equal(target, want)
        assert (out[:shift] == 7).all()
        assert (out[shift + 12 * 90 :] == 7).all()  # nothing beyond the row's end
    strided_out = np.zeros((12, 180), np.float32)[:, ::2]
    np.testing.assert_allclose(f(x, w, out=strided_out), want, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(f(x, out=x.copy()), f(x))


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("shift", [0, 1, 1500, -7])
def test_in_place(path, name, shift):
    memory = stream(7, "in place").standard_normal(132 * 1500).astype(np.float32)
    memory[3000:4500] *= 1e30  # a row for the careful pass
    x, out = (memory[1500 + k :][: 130 * 1500].reshape(130, 1500) for k in (0, shift))
    want = NORMS[name](x.copy())
    got = NORMS[name](x, out=out)
    np.testing.assert_allclose(got, want, rtol=0, atol=20 * np.finfo(np.float32).eps * np.abs(want).max())


THREADS = """
import sys, zlib
import numba
numba.set_num_threads(int(sys.argv[1]))
from normkit.layers import kernels, layer_norm, rms_norm
from normkit.rng import stream
x = stream(8, "threads").standard_normal((1500, 333), dtype="f4") + 5
for kernels.BEYOND_CACHE in 1, 1 << 60:
    for f in layer_norm, rms_norm:
        print(zlib.crc32(f(x).tobytes()))
"""


def test_the_result_does_not_depend_on_the_number_of_threads():
    def run(threads):
        environment = {"NUMBA_NUM_THREADS": "2", "PYTHONPATH": ":".join(p for p in sys.path if p)}
        command = [sys.executable, "-c", THREADS, str(threads)]
        return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.split()

    one, two = run(1), run(2)
    assert one == two
    assert len(one) == 4
    assert one[0] != one[1]
