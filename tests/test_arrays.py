import subprocess
import sys

import numpy as np
import pytest
import torch

from normkit.arrays import accelerated, finite, floating, namespace, shaped


def test_namespace_of_numpy_is_numpy_and_none_is_skipped():
    assert namespace(np.ones(2), None, np.float32(1)) is np


def test_namespace_of_torch_follows_the_standard():
    xp = namespace(torch.ones(2), None)
    assert xp.concat([torch.ones(1), torch.zeros(1)]).tolist() == [1, 0]
    assert xp.isdtype(torch.float32, "real floating")


@pytest.mark.parametrize("arrays", [(), (None,), ([1.0],), (1.0,)])
def test_namespace_wants_arrays(arrays):
    with pytest.raises(TypeError, match="arrays wanted"):
        namespace(*arrays)


def test_namespace_refuses_a_mixture_and_names_both():
    with pytest.raises(TypeError, match=r"one library.*numpy.ndarray.*torch"):
        namespace(np.ones(2), torch.ones(2))


@pytest.mark.parametrize("library", [np.asarray, torch.tensor])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_finite_names_the_first_bad_index(library, bad):
    x = np.zeros((3, 4))
    assert finite("x", library(x)).shape == (3, 4)
    x[1, 2] = x[2, 0] = bad
    with pytest.raises(ValueError, match=r"x\[1, 2\] is .*2 bad of 12"):
        finite("x", library(x))


def test_floating_and_shaped_say_which_rule_was_broken():
    with pytest.raises(TypeError, match=r"loss must be of a real floating dtype, got int64"):
        floating("loss", np.arange(3))
    with pytest.raises(TypeError, match="complex128"):
        floating("x", np.ones(2, complex))
    with pytest.raises(TypeError, match="int64"):
        floating("x", torch.arange(3))
    with pytest.raises(ValueError, match="at least one axis"):
        floating("x", np.float64(1))
    with pytest.raises(ValueError, match=r"empty last axis \(shape \(2, 0\)\)"):
        floating("x", np.ones((2, 0)))
    with pytest.raises(ValueError, match=r"gain must have shape \(3,\) to match y, got \(2,\)"):
        shaped("gain", np.ones(2), (3,), "y")
    assert shaped("gain", None, (3,)) is None


def kernel(x, scale=1):
    """Of the function below; marks its result by a minus sign."""
    return NotImplemented if scale == 0 else -scale * x


@accelerated(f"{__name__}:kernel")
def times(x, scale=1):
    return scale * x


def test_accelerated_chooses_by_type_and_dtype_only():
    for dtype, sign in (np.float32, -1), (np.float64, -1), (np.float16, 1), (np.int64, 1):
        x = np.ones((2, 6), dtype)
        assert (times(x, 3) == sign * 3).all()
        assert (times(x[:, ::2], scale=3) == sign * 3).all()  # contiguous or not must not matter
    assert (times(torch.ones(2), 3) == 3).all()


def test_accelerated_keeps_both_bodies_within_reach():
    x = np.ones(2)
    assert (times.reference(x, 2) == 2).all()
    assert (times.kernel(x, 2) == -2).all()
    assert (times(x, 0) == 0).all()  # the kernel declined
    assert times.__name__ == "times"


def test_importing_the_kit_and_the_norms_imports_neither_numba_nor_torch():
    code = """
import sys, normkit, normkit.arrays, normkit.layers.norms
heavy = {"numba", "torch", "scipy", "array_api_compat"} & set(sys.modules)
assert not heavy, heavy
import numpy as np
normkit.layers.layer_norm(np.ones((2, 3)))
assert "numba" in sys.modules and "torch" not in sys.modules and "scipy.linalg" not in sys.modules
import numba
assert numba.config.THREADING_LAYER_PRIORITY == ["omp", "tbb", "workqueue"]
assert numba.njit(lambda a: a @ a)(np.full((2, 2), 2.0))[0, 0] == 8  # numba's own BLAS still works
"""
    environment = {"PATH": "", "PYTHONPATH": ":".join(p for p in sys.path if p)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
