"""Projections where they could go wrong: odd sizes, scales, zero rows, threads, streamed and in-place output, drift."""

import subprocess
import sys

import numpy as np
import pytest

from normkit.rates import kernels
from normkit.rates.projection import project, project_rows, tangent
from normkit.rng import stream


@pytest.fixture(params=["serial", "parallel", "streamed"])
def path(request, monkeypatch):
    """Small arrays through each of the three paths."""
    monkeypatch.setattr(kernels, "PARALLEL", 1 << 60 if request.param == "serial" else 1)
    monkeypatch.setattr(kernels, "BEYOND_CACHE", 1 if request.param == "streamed" else 1 << 60)
    monkeypatch.setattr(kernels, "_TASK", 1 << 16)
    return request.param


def exact(x, radius, axis):
    x = np.asarray(x, np.longdouble)
    return x * (np.longdouble(radius) / np.sqrt((x**2).sum(axis, keepdims=True)))


def off(got, want):
    return float(np.abs(got - want).max() / np.abs(want).max())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(1, 1), (67, 3), (67, 64), (67, 1025), (3, 30001), (2, 5, 7), (12,)])
def test_every_path_at_every_size(path, dtype, shape):
    x, eps = stream(0, "rows", *shape).standard_normal(shape).astype(dtype), np.finfo(dtype).eps
    for f, axis in ((project_rows, -1), (project, None)):
        y = f(x, 2.5)
        assert y.dtype == dtype and y.shape == shape
        assert off(y, exact(x, 2.5, axis)) < 6 * eps  # of the root, the division, the factor, the product, the SIMD sum
        assert off(y, f.reference(x, 2.5)) < 12 * eps
        norms = np.sqrt((y.astype(np.longdouble) ** 2).sum(axis))
        assert np.abs(norms / 2.5 - 1).max() < 4 * eps
        once = f(x.copy(), 2.5)
        assert off(f(once, 2.5), once) < 4 * eps  # idempotent


def test_a_radius_for_every_row(path):
    x = stream(1, "radii").standard_normal((3, 50, 40)).astype(np.float32)
    radius = stream(2, "radii").uniform(0.1, 9, (3, 50)).astype(np.float32)
    y = project_rows(x, radius)
    np.testing.assert_allclose(np.linalg.norm(y, axis=-1), radius, rtol=1e-6)
    np.testing.assert_allclose(y, project_rows.reference(x, radius), rtol=1e-5)
    np.testing.assert_allclose(project_rows(x.astype(float), radius.astype(float)), y, rtol=1e-5)


@pytest.mark.parametrize("f", [project, project_rows])
@pytest.mark.parametrize("shift", [0, 1, 333, -7])
def test_in_place_and_into_overlapping_memory(path, f, shift):
    memory = stream(3, "in place").standard_normal(1000 + 120 * 333).astype(np.float32)
    x, out = (memory[500 + k :][: 120 * 333].reshape(120, 333) for k in (0, shift))
    rest = memory.copy()
    want = f(x.copy(), 3.0)
    assert f(x, 3.0, out=out) is out
    np.testing.assert_allclose(out, want, rtol=3e-7)
    start = 500 + shift
    np.testing.assert_array_equal(memory[:start], rest[:start])  # nothing beyond its ends
    np.testing.assert_array_equal(memory[start + out.size :], rest[start + out.size :])


@pytest.mark.parametrize("f", [project, project_rows])
def test_views_and_strided_outputs(path, f):
    x = stream(4, "views").standard_normal((12, 90)).astype(np.float32)
    want = f(x, 1.0)
    wide = np.zeros((12, 180), np.float32)
    wide[:, ::2] = x
    np.testing.assert_array_equal(f(wide[:, ::2], 1.0), want)
    np.testing.assert_allclose(f(x, 1.0, out=wide[:, 1::2]), want, rtol=1e-6)
    np.testing.assert_allclose(wide[:, 1::2], want, rtol=1e-6)
    np.testing.assert_array_equal(wide[:, ::2], x)
    np.testing.assert_allclose(f(x.T, 1.0), exact(x.T, 1.0, -1 if f is project_rows else None).astype("f4"), rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-44, 1e-30, 1e-18, 1e18, 1e30, 1e38])
def test_squares_that_leave_float32(path, scale):
    x = (stream(5, "scale").uniform(0.1, 1, (5, 65)) * scale).astype(np.float32)
    x[:2] = 1.0  # ordinary rows among them
    for f, axis, some in ((project_rows, -1, x), (project, None, x[2:])):
        want = exact(some, 2.0, axis)
        assert off(f(some, 2.0), want) < 1e-6
        assert off(f(some.copy(), 2.0, out=some.copy()), want) < 1e-6
        place = some.copy()
        assert off(f(place, 2.0, out=place), want) < 1e-6


@pytest.mark.parametrize("scale", [1e-310, 1e-200, 1e200, 1e308])
def test_squares_that_leave_float64(path, scale):
    x = stream(6, "scale").uniform(0.1, 1, (5, 65)) * scale
    np.testing.assert_allclose(np.linalg.norm(project_rows(x, 3.0), axis=1), 3.0, rtol=1e-13)
    np.testing.assert_allclose(np.linalg.norm(project(x, 3.0)), 3.0, rtol=1e-13)


def test_no_drift_off_the_sphere_in_1e5_float32_steps():
    w = np.ones(64, np.float32) / 8
    steps = 1e-3 * stream(7, "drift").standard_normal((1000, 64), dtype=np.float32)
    worst = 0.0
    for t in range(100_000):
        w += steps[t % 1000]
        project(w, 1.0, out=w)
        if t % 97 == 0:
            worst = max(worst, abs(np.linalg.norm(w.astype(np.float64)) - 1))
    assert worst < 3 * np.finfo(np.float32).eps


@pytest.mark.parametrize("f", [project, project_rows])
def test_what_has_no_direction_is_refused(path, f):
    x = stream(8, "bad").standard_normal((6, 65)).astype(np.float32)
    x[4] = 0
    if f is project_rows:
        with pytest.raises(ValueError, match="row 4 of w is zero"):
            f(x, 1.0)
    else:
        assert np.linalg.norm(f(x, 1.0)) == pytest.approx(1)
    with pytest.raises(ValueError, match="is zero and has no direction"):
        f(x * 0, 1.0)
    for bad in (np.nan, np.inf, -np.inf):
        y = np.ones((6, 65), np.float32)
        y[2, 64] = bad
        with pytest.raises(ValueError, match=r"w\[2, 64\] is"):
            f(y, 1.0)
        with pytest.raises(ValueError, match=r"w\[2, 64\] is"):
            f(y, 1.0, out=y)
    for radius in (0.0, -1.0, np.nan, np.inf, True, "1"):
        with pytest.raises((ValueError, TypeError)):
            f(np.ones((2, 3)), radius)
    with pytest.raises(ValueError, match="shape"):
        f(np.ones((2, 3)), 1.0, out=np.ones((3, 2)))
    with pytest.raises(TypeError, match="floating"):
        f(np.ones((2, 3), int), 1.0)
    with pytest.raises(ValueError, match="empty last axis"):
        f(np.ones((2, 0)), 1.0)


def test_radii_that_do_not_fit():
    x = np.ones((4, 3))
    with pytest.raises(ValueError, match=r"radius must have shape \(4,\)"):
        project_rows(x, np.ones(3))
    with pytest.raises(ValueError, match="every radius"):
        project_rows(x, np.array([1.0, 0, 1, 1]))
    with pytest.raises(ValueError, match="use project_rows"):
        project(x, np.ones(4))


def test_torch_runs_the_readable_body():
    torch = pytest.importorskip("torch")
    x = stream(9, "torch").standard_normal((5, 33)).astype(np.float32)
    w = torch.from_numpy(x.copy())
    for f in (project, project_rows):
        np.testing.assert_allclose(f(w, 2.0).numpy(), f(x, 2.0), rtol=1e-6)
    half = project(w.to(torch.bfloat16), 2.0)
    assert half.dtype == torch.bfloat16
    assert float(half.float().norm()) == pytest.approx(2.0, rel=2**-8)
    assert project_rows(w, torch.arange(1.0, 6.0), out=w) is w
    np.testing.assert_allclose(w.norm(dim=1).numpy(), np.arange(1, 6), rtol=1e-6)
    d = torch.from_numpy(stream(10, "torch").standard_normal((5, 33)))
    assert abs(float((tangent(w.double(), d) * w).sum())) < 1e-13 * float(w.norm() * d.norm())


def test_tangent_is_the_nearest_orthogonal_update():
    rng = stream(11, "tangent")
    w, d = rng.standard_normal((2, 6, 9))
    for axis in (None, -1):
        t = tangent(w, d, axis=axis)
        assert np.abs((w * t).sum(axis)).max() < 1e-14 * np.linalg.norm(w) * np.linalg.norm(d)
        rest = d - t  # what went is a multiple of w: whole, or row by row
        ratio = rest / w
        assert np.ptp(ratio, axis=axis).max() < 1e-12
        np.testing.assert_allclose(tangent(w * 1e3, t, axis=axis), t, atol=1e-14)
        np.testing.assert_allclose(tangent(w, 5 * w, axis=axis), 0 * w, atol=1e-14)
    with pytest.raises(ValueError, match="row 1 of w is zero"):
        tangent(np.array([[1.0, 2], [0, 0]]), np.ones((2, 2)), axis=-1)
    with pytest.raises(ValueError, match="d must have shape"):
        tangent(w, d[0])
    with pytest.raises(ValueError, match=r"d\[0\] is nan"):
        tangent(np.ones(2), np.array([np.nan, 1]))


THREADS = """
import sys, zlib
import numba
import numpy as np
numba.set_num_threads(int(sys.argv[1]))
from normkit.rates import experiment, kernels
from normkit.rates.projection import project, project_rows
from normkit.rng import stream
x = stream(12, "threads").standard_normal((1500, 333), dtype="f4") + 5
for kernels.BEYOND_CACHE in 1, 1 << 60:
    for f in project, project_rows:
        print(zlib.crc32(f(x, 1.5).tobytes()))
kernels.WALK_PARALLEL = 1
walk = experiment.spherical_walk("adam", lr=0.1, weight_decay=0.1, dim=33, steps=300, seeds=5)
print(zlib.crc32(np.hstack([walk.norm, walk.angle, walk.cosine]).tobytes()))
"""


def test_results_do_not_depend_on_the_number_of_threads():
    def run(threads):
        environment = {"NUMBA_NUM_THREADS": "2", "PYTHONPATH": ":".join(p for p in sys.path if p)}
        command = [sys.executable, "-c", THREADS, str(threads)]
        return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.split()

    one, two = run(1), run(2)
    assert one == two
    assert len(one) == 5
    assert one[0] != one[1]
