"""The readable bodies, the dispatching functions and the modules, against torch.nn and float64 closed forms."""

import functools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from normkit import layers
from normkit.layers import layer_norm, rms_norm
from normkit.rng import stream


def exact(x, weight=1.0, bias=0.0, eps=1e-5):
    """LayerNorm in longdouble, two passes."""
    x = np.asarray(x, np.longdouble)
    centered = x - x.mean(axis=-1, keepdims=True)
    return centered / np.sqrt((centered**2).mean(axis=-1, keepdims=True) + eps) * weight + bias


# ---- a property suite that kills ten well-known mistakes, and is itself run on them ----


def mutant_bessel(x, w, b, eps):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True, ddof=1) + eps) * w + b


def mutant_uncentered(x, w, b, eps):
    return x / np.sqrt(x.var(-1, keepdims=True) + eps) * w + b


def mutant_batch_axis(x, w, b, eps):
    return (x - x.mean(0)) / np.sqrt(x.var(0) + eps) * w + b


def mutant_large_eps(x, w, b, eps):
    return exact(x, w, b, 1e-3)


def mutant_identity(x, w, b, eps):
    return x


def mutant_no_eps(x, w, b, eps):
    with np.errstate(all="ignore"):
        return exact(x, w, b, 0)


def mutant_eps_outside_root(x, w, b, eps):
    return (x - x.mean(-1, keepdims=True)) / (x.std(-1, keepdims=True) + eps) * w + b


def mutant_cancellation(x, w, b, eps):
    mean = x.mean(-1, keepdims=True)
    with np.errstate(all="ignore"):
        return (x - mean) / np.sqrt((x**2).mean(-1, keepdims=True) - mean**2 + np.float32(eps)) * w + b


def mutant_no_bias(x, w, b, eps):
    return exact(x, w, 0, eps)


def mutant_gain_before(x, w, b, eps):
    return exact(x * w, 1, b, eps)


MUTANTS = [f for name, f in list(globals().items()) if name.startswith("mutant_")]


def suite(f):
    """Raises AssertionError unless f(x, weight, bias, eps) is a LayerNorm in float32."""
    rng = stream(0, "suite")
    x = rng.standard_normal((5, 16), dtype=np.float32)
    w, b = rng.standard_normal((2, 16), dtype=np.float32)
    close = functools.partial(np.testing.assert_allclose, rtol=0)
    # A random gain and bias. float32: a few roundings of 6e-8 on entries up to about 6.
    close(f(x, w, b, 1e-5), exact(x, w, b), atol=5e-6)
    # Far from zero: x itself is rounded to 2.4e-4 at 3000, exactly as the reference sees it; the mean may be, too.
    close(f(x + np.float32(3000), w, b, 1e-5), exact(x + np.float32(3000), w, b), atol=2e-3)
    # Small inputs: variance 1e-6 against eps 1e-5.
    close(f(x / 1000, w, b, 1e-5), exact(x / np.float32(1000), w, b), atol=5e-6)
    # A constant row: the bias alone.
    close(f(np.full((2, 16), np.float32(0.7)), w, b, 1e-5), np.broadcast_to(b, (2, 16)), atol=1e-4)
    # Samples do not see each other.
    close(f(x[:1], w, b, 1e-5), f(x, w, b, 1e-5)[:1], atol=1e-6)


def subject(body):
    return lambda x, w, b, eps: body(x, w, b, eps=eps)


@pytest.mark.parametrize("body", [layer_norm, layer_norm.reference], ids=["kernel", "reference"])
def test_layer_norm_has_the_properties(body):
    suite(subject(body))


def test_layer_norm_of_torch_has_the_properties():
    suite(lambda *a: layer_norm(*map(torch.from_numpy, a[:3]), eps=a[3]).numpy())


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_property_suite_kills_each_mutant(mutant):
    with pytest.raises(AssertionError):
        suite(mutant)


def test_there_are_ten_mutants():
    assert len(MUTANTS) == 10


# ---- against torch ----

SHAPES = [(1,), (7,), (3, 1), (4, 33), (2, 3, 8)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("affine", [False, True])
def test_torch_tensors_agree_with_torch(shape, dtype, affine):
    generator = torch.Generator().manual_seed(1)
    x, w, b = (
        torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in (shape, shape[-1:], shape[-1:])
    )
    w, b = (w, b) if affine else (None, None)
    tolerance = {"rtol": 4 * torch.finfo(dtype).eps, "atol": 8 * torch.finfo(dtype).eps}
    torch.testing.assert_close(
        layer_norm(x, w, b), torch.nn.functional.layer_norm(x, shape[-1:], w, b, 1e-5), **tolerance
    )
    torch.testing.assert_close(rms_norm(x, w), torch.nn.functional.rms_norm(x, shape[-1:], w, 1e-6), **tolerance)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@given(
    rows=st.integers(1, 4),
    columns=st.integers(1, 40),
    offset=st.sampled_from([0.0, -30.0, 1e4]),
    seed=st.integers(0, 999),
)
@settings(deadline=None, max_examples=40)
def test_numpy_kernel_and_reference_agree_with_the_closed_form(dtype, rows, columns, offset, seed):
    rng = stream(seed, "agree")
    x = (rng.standard_normal((rows, columns)) + offset).astype(dtype)
    w, b = rng.standard_normal((2, columns)).astype(dtype)
    scale = np.abs(w).max() * np.sqrt(columns) + np.abs(b).max()  # bounds the largest entry of the result
    for body in layer_norm, layer_norm.reference:
        got = body(x, w, b)
        assert got.dtype == dtype
        np.testing.assert_allclose(got, exact(x, w, b).astype(float), rtol=0, atol=40 * np.finfo(dtype).eps * scale)
    want = x.astype(np.longdouble) / np.sqrt((x.astype(np.longdouble) ** 2).mean(-1, keepdims=True) + 1e-6) * w
    for body in rms_norm, rms_norm.reference:
        np.testing.assert_allclose(body(x, w), want.astype(float), rtol=0, atol=20 * np.finfo(dtype).eps * scale)


def test_half_precision_of_numpy_stays_half_and_is_computed_wide():
    x = np.array([[300, -300, 200, 0]], np.float16)  # 300^2 overflows float16
    got = rms_norm(x)
    assert got.dtype == np.float16
    np.testing.assert_allclose(got, x / np.sqrt((x.astype(float) ** 2).mean()), rtol=1e-3)


@pytest.mark.parametrize("kind", ["LayerNorm", "RMSNorm"])
@pytest.mark.parametrize("affine", [True, False])
def test_modules_load_torchs_state_and_agree_forward_and_backward(kind, affine):
    generator = torch.Generator().manual_seed(2)
    ours = getattr(layers, kind)(6, eps=1e-3, elementwise_affine=affine)
    theirs = getattr(torch.nn, kind)(6, eps=1e-3, elementwise_affine=affine)
    for p in theirs.parameters():
        torch.nn.init.normal_(p, generator=generator)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.randn(4, 6, generator=generator)
    cotangent, a, b = torch.randn(4, 6, generator=generator), x.clone().requires_grad_(), x.clone().requires_grad_()
    (ours(a) * cotangent).sum().backward()
    (theirs(b) * cotangent).sum().backward()
    torch.testing.assert_close(ours(a), theirs(b))
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6)
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["LayerNorm", "RMSNorm"])
def test_modules_pass_gradcheck(kind):
    module = getattr(layers, kind)(5, dtype=torch.float64)
    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(module, x)
    assert torch.autograd.gradgradcheck(module, x)


def test_modules_follow_torchs_arguments():
    assert layers.LayerNorm(3, bias=False).bias is None
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(4)) * 1e-4
    torch.testing.assert_close(layers.RMSNorm(3, eps=None)(x), torch.nn.RMSNorm(3)(x))
    for bad in 0, (2, 3), ():
        with pytest.raises(ValueError, match="normalized_shape"):
            layers.LayerNorm(bad)
    with pytest.raises(ValueError, match="size 3"):
        layers.RMSNorm(3)(torch.ones(2, 1))


# ---- bad input ----


@pytest.mark.parametrize("library", [np, torch])
@pytest.mark.parametrize("norm", [layer_norm, rms_norm])
def test_bad_input_is_named(library, norm):
    x = library.ones((2, 3))
    with pytest.raises(ValueError, match=r"weight must have shape \(3,\).*shape \(2, 3\), got \(2,\)"):
        norm(x, library.ones(2))
    with pytest.raises(ValueError, match="out must have shape"):
        norm(x, out=library.ones((3, 2)))
    with pytest.raises(ValueError, match="empty last axis"):
        norm(library.ones((2, 0)))
    with pytest.raises(ValueError, match="at least one axis"):
        norm(library.asarray(1.5))
    with pytest.raises(TypeError, match="real floating"):
        norm(library.arange(3))
    for eps in -1.0, float("nan"), float("inf"), True:
        with pytest.raises(ValueError, match="eps"):
            norm(x, eps=eps)
    with pytest.raises(TypeError, match="arrays wanted"):
        norm([1.0, 2.0])
    assert norm(library.ones((0, 3))).shape == (0, 3)


def test_a_mixture_of_libraries_is_refused():
    with pytest.raises(TypeError, match="one library"):
        layer_norm(np.ones((2, 3)), torch.ones(3))
    with pytest.raises(ValueError, match="bias must have shape"):
        layer_norm(np.ones((2, 3)), None, np.ones(4))
