"""PPGT's attention against distances computed one by one, its norm against RMSNorm and against the identity."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from normkit.attention import l2
from normkit.attention.heads import AdaRMSNorm
from normkit.attention.variants import sink_softmax
from normkit.rng import stream

EPS32 = np.finfo(np.float32).eps


def normal(*shape, name="x", scale=1.0):
    return stream(0, "l2", name, *shape).standard_normal(shape) * scale


def tensors(*shapes):
    return [torch.from_numpy(normal(*shape, name=f"t{i}")).requires_grad_() for i, shape in enumerate(shapes)]


def softmax(z):
    return sink_softmax(z, -math.inf)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5), st.integers(1, 6), st.integers(1, 8), st.booleans(), st.integers(0, 999))
def test_simplified_is_full_l2_after_softmax(queries, keys, d, masked, seed):
    draws = stream(seed, "sl2")
    q, k = draws.standard_normal((2, queries, d)), draws.standard_normal((2, keys, d)) * draws.uniform(0, 3)
    mask = None
    if masked:
        mask = draws.random((queries, keys)) < 0.6
        mask[:, -1] = True
    full = np.array([[[-((a - b) ** 2).sum() / (2 * math.sqrt(d)) for b in kb] for a in qb] for qb, kb in zip(q, k)])  # noqa: B905
    full = full if mask is None else np.where(mask, full, -np.inf)
    np.testing.assert_allclose(l2.squared_distance_logits(q, k, mask), full, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(softmax(l2.l2_logits(q, k, mask=mask)), softmax(full), rtol=1e-9, atol=1e-12)
    # what softmax does not see is -||q||^2 / (2 sqrt d), a number for each row
    gap = l2.l2_logits(q, k) - l2.squared_distance_logits(q, k)
    np.testing.assert_allclose(
        gap, np.broadcast_to((q**2).sum(-1)[..., None] / (2 * math.sqrt(d)), gap.shape), atol=1e-10
    )


def test_the_released_form_is_as_read():
    """Its bias is divided by sqrt(d), its dot product is not: the distance for queries sqrt(d) times smaller."""
    q, k = normal(4, 9, name="q"), normal(6, 9, name="k")
    want = np.array([[a @ b - b @ b / (2 * 3) for b in k] for a in q])
    np.testing.assert_allclose(l2.l2_logits(q, k, form="released"), want, rtol=1e-12)
    np.testing.assert_allclose(l2.l2_logits(q / 3, k, form="released"), l2.l2_logits(q, k), rtol=1e-12)
    assert np.abs(softmax(want) - softmax(l2.squared_distance_logits(q, k))).max() > 0.1


def test_keys_of_one_length_give_dot_product_attention():
    q, k = normal(4, 8, name="q"), normal(6, 8, name="k")
    k *= 2 / np.linalg.norm(k, axis=-1, keepdims=True)
    np.testing.assert_allclose(softmax(l2.l2_logits(q, k)), softmax(q @ k.T / math.sqrt(8)), rtol=1e-12)


def test_on_a_ray_the_nearest_key_wins_not_the_longest():
    q = np.array([[2.0, 1.0]])
    direction = np.array([1.0, 0.5])
    lengths = np.linspace(0, 6, 601)
    logits = l2.l2_logits(q, lengths[:, None] * direction)[0]
    best = q[0] @ direction / (direction @ direction)  # where c q.k - c^2 ||k||^2 / 2 peaks
    assert lengths[logits.argmax()] == pytest.approx(best, abs=0.01)
    assert (q @ direction * lengths).argmax() == 600


def test_bias_and_gate():
    q, k, bias = normal(2, 4, 8, name="q"), normal(2, 6, 8, name="k"), normal(4, 6, name="b")
    np.testing.assert_allclose(l2.l2_logits(q, k, bias), l2.l2_logits(q, k) + bias, rtol=1e-13)
    p, gate = softmax(normal(4, 6)), normal(4, 6, name="g")
    want = [[p[i, j] * (1 + gate[i, j]) for j in range(6)] for i in range(4)]
    np.testing.assert_allclose(l2.pair_gate(p, gate), want, rtol=1e-14)
    np.testing.assert_array_equal(l2.pair_gate(p, 0 * gate), p)


def test_ada_rms_norm_as_read_in_the_code():
    x, alpha, beta = normal(5, 7), normal(7, name="a"), normal(7, name="b")
    eps = 1e-2
    want = [r / math.sqrt((r**2).mean() + eps) * math.sqrt(((alpha * r + beta) ** 2).mean() + eps) for r in x]
    np.testing.assert_allclose(l2.ada_rms_norm(x, alpha, beta, eps=eps), want, rtol=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 4),
    st.integers(1, 12),
    st.floats(-30, 30),
    st.sampled_from([np.float32, np.float64]),
    st.integers(0, 99),
)
def test_identity_and_rms_norm_are_its_ends(rows, n, log_scale, dtype, seed):
    eps = 1e-6
    x = (stream(seed, "ends").standard_normal((rows, n)) * 10**log_scale).astype(dtype)
    one, zero, rtol = np.ones(n, dtype), np.zeros(n, dtype), 20 * np.finfo(dtype).eps
    got = l2.ada_rms_norm(x, one, zero, eps=eps)
    assert got.dtype == dtype
    np.testing.assert_allclose(got, x, rtol=rtol)
    wide = x.astype(np.longdouble)
    want = (wide / np.sqrt((wide**2).mean(-1, keepdims=True) + eps)).astype(float) * math.sqrt(1 + eps)
    for args in (), (zero, one):
        np.testing.assert_allclose(l2.ada_rms_norm(x, *args, eps=eps), want, rtol=rtol, atol=1e-44)


GRADIENTS = {
    "l2_logits": (l2.l2_logits, (2, 3, 4), (2, 5, 4), (3, 5)),
    "released": (lambda q, k: l2.l2_logits(q, k, form="released"), (3, 4), (5, 4)),
    "squared_distance_logits": (l2.squared_distance_logits, (2, 3, 4), (2, 5, 4)),
    "pair_gate": (l2.pair_gate, (3, 5), (3, 5)),
    "ada_rms_norm": (l2.ada_rms_norm, (2, 3, 5), (5,), (5,)),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradcheck_and_numpy(name):
    f, *shapes = GRADIENTS[name]
    x = tensors(*shapes)
    assert torch.autograd.gradcheck(f, x)
    np.testing.assert_allclose(f(*(t.detach().numpy() for t in x)), f(*x).detach().numpy(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    x = torch.from_numpy(normal(6, 32, scale=1e4)).to(dtype)
    alpha, beta = (torch.from_numpy(normal(32, name=n)).to(dtype) for n in "ab")
    got = l2.ada_rms_norm(x, alpha, beta)
    assert got.dtype == dtype
    want = l2.ada_rms_norm(x.double(), alpha.double(), beta.double())
    torch.testing.assert_close(got.double(), want, rtol=2 * torch.finfo(dtype).eps, atol=0)
    small = x / 100
    logits = l2.l2_logits(small, small)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits.double(), l2.l2_logits(small.double(), small.double()), rtol=1e-5, atol=1.0)


def test_the_layer():
    layer = AdaRMSNorm(6).double()
    x = torch.from_numpy(normal(2, 3, 6))
    torch.testing.assert_close(layer(x), F.rms_norm(x, (6,), eps=1e-6) * math.sqrt(1 + 1e-6), rtol=1e-12, atol=0)
    with torch.no_grad():
        layer.alpha.copy_(torch.from_numpy(normal(6, name="a")))
        layer.beta.copy_(torch.from_numpy(normal(6, name="b")))
    torch.testing.assert_close(layer(x), l2.ada_rms_norm(x, layer.alpha, layer.beta), rtol=1e-13, atol=0)
    layer(x).square().sum().backward()
    assert layer.alpha.grad.abs().min() > 0
    with pytest.raises(ValueError, match="size 6"):
        layer(x[..., :5])
    with pytest.raises(ValueError, match="at least 1"):
        AdaRMSNorm(0)
    with pytest.raises(ValueError, match="eps"):
        AdaRMSNorm(3, eps=-1.0)


def test_errors():
    q, k = normal(3, 4), normal(5, 4)
    with pytest.raises(ValueError, match="one d"):
        l2.l2_logits(q, k[:, :3])
    with pytest.raises(ValueError, match="did you mean 'paper'"):
        l2.l2_logits(q, k, form="papers")
    with pytest.raises(ValueError, match="hides every key"):
        l2.l2_logits(q, k, mask=np.zeros((3, 5), bool))
    for value in np.nan, np.inf:
        broken = k.copy()
        broken[2, 0] = value
        with pytest.raises(ValueError, match=r"k\[2, 0\]"):
            l2.l2_logits(q, broken)
        with pytest.raises(ValueError, match=r"x\[2, 0\]"):
            l2.ada_rms_norm(broken)
        with pytest.raises(ValueError, match="alpha must be finite"):
            l2.ada_rms_norm(k, broken[2], k[0])
        with pytest.raises(ValueError, match="gate must be finite"):
            l2.pair_gate(softmax(k), broken)
        with pytest.raises(ValueError, match="bias must be finite"):
            l2.l2_logits(q, k, np.full((3, 5), value))
    with pytest.raises(ValueError, match="gate must have shape"):
        l2.pair_gate(softmax(k), k[:2])
    with pytest.raises(ValueError, match="beta must have shape"):
        l2.ada_rms_norm(k, k[0], k[0, :2])
    with pytest.raises(ValueError, match="eps"):
        l2.ada_rms_norm(k, eps=np.nan)
