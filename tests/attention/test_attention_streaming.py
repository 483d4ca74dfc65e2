"""Streaming attention against torch's own and naive entropies, its gradient against finite differences, its memory."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from normkit.attention.streaming import attention
from normkit.rng import stream


def generator(*name):
    return torch.Generator().manual_seed(int(stream(0, *name).integers(2**63)))


def draw(lead, queries, keys, width=4, values=6, dtype=torch.float64, scale=1.0):
    g = generator("draw", queries, keys)
    shapes = (*lead, queries, width), (*lead, keys, width), (*lead, keys, values)
    return [(scale * torch.randn(s, generator=g, dtype=torch.float64)).to(dtype) for s in shapes]


def masks(kind, queries, keys):
    g = generator("mask", queries, keys)
    rows = 1 if kind.startswith("row") else queries
    if kind.endswith("added"):
        return torch.randn(rows, keys, generator=g, dtype=torch.float64)
    kept = torch.rand(rows, keys, generator=g) < 0.5
    kept[:, 0] = True  # key 0 may be seen under causal masks, too
    return kept[0] if kind == "row" else kept


def naive(q, k, v, mask=None, causal=False, scale=None):
    z = q @ k.mT * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    if causal:
        z = z.masked_fill(torch.ones(z.shape[-2:], dtype=torch.bool).triu(1), -math.inf)
    if mask is not None:
        z = z.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else z + mask
    p = z.softmax(-1)
    return p @ v, torch.special.entr(p).sum(-1)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kind", [None, "row", "full", "row added", "added"])
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (7, 20), (20, 7), (16, 16)])
@pytest.mark.parametrize("chunk", [1, 5, 16, 1000])
def test_agrees_with_torch_and_naive_entropies(causal, kind, queries, keys, chunk):
    q, k, v = draw((2, 3), queries, keys)
    mask = None if kind is None else masks(kind, queries, keys)
    out, h = attention(q, k, v, mask=mask, causal=causal, chunk=chunk)
    want, want_h = naive(q, k, v, mask, causal)
    torch.testing.assert_close(out, want, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(h, want_h, rtol=1e-12, atol=1e-13)
    if mask is None or not causal:  # torch takes one of them
        wide = None if mask is None else mask.expand(queries, keys)
        torch.testing.assert_close(out, F.scaled_dot_product_attention(q, k, v, wide, is_causal=causal))


@given(
    lead=st.lists(st.integers(1, 3), max_size=3),
    queries=st.integers(1, 9),
    keys=st.integers(1, 9),
    power=st.floats(-15, 15),
    causal=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_any_shape_and_scale(lead, queries, keys, power, causal):
    q, k, v = draw(lead, queries, keys)
    q, k = q * 10**power, k * 10**power  # logits up to 1e30
    out, h = attention(q, k, v, causal=causal, chunk=2)
    z = (q / 2) @ k.mT  # 1/sqrt(d): exact, so that nothing but the algorithm differs
    if causal:
        z = z.masked_fill(torch.ones(z.shape[-2:], dtype=torch.bool).triu(1), -math.inf)
    p = z.softmax(-1)
    # products in blocks may round differently, which the exponential multiplies by the logits' size
    slack = 1e-13 + 1e-15 * min(10 ** (2 * power), 1e3) * 50
    if 10 ** (2 * power) <= 1e3 or 10 ** (2 * power) > 1e6:  # between, a tie of two logits may be decided by rounding
        torch.testing.assert_close(out, p @ v, rtol=0, atol=10 * slack)
        torch.testing.assert_close(h, torch.special.entr(p).sum(-1), rtol=0, atol=100 * slack)
    assert h.min() >= -1e-12 and h.max() <= math.log(keys) + 1e-12


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kind", [None, "full", "row added", "added"])
def test_gradients_by_finite_differences(causal, kind):
    inputs = [x.requires_grad_() for x in draw((2,), 5, 4, 3, 2)]
    mask = None if kind is None else masks(kind, 5, 4)
    if mask is not None and mask.is_floating_point():
        inputs.append(mask.requires_grad_())
        call = lambda q, k, v, m: attention(q, k, v, mask=m, causal=causal, chunk=3)  # noqa: E731
    else:
        call = lambda q, k, v: attention(q, k, v, mask=mask, causal=causal, scale=0.7, chunk=3)  # noqa: E731
    assert torch.autograd.gradcheck(call, inputs)


def test_gradients_of_one_output_alone():
    for which in (0, 1):
        inputs = [x.requires_grad_() for x in draw((2,), 6, 6)]
        got = torch.autograd.grad(attention(*inputs, chunk=4)[which].square().sum(), inputs, allow_unused=True)
        want = torch.autograd.grad(naive(*inputs)[which].square().sum(), inputs, allow_unused=True)
        for g, w in zip(got, want, strict=True):
            torch.testing.assert_close(g, torch.zeros_like(g) if w is None else w)  # H does not depend on v


def test_gradients_of_masked_keys_are_zero():
    q, k, v = (x.requires_grad_() for x in draw((2,), 6, 8))
    mask = torch.arange(8) < 5
    out, h = attention(q, k, v, mask=mask, chunk=3)
    (out.sum() + h.sum()).backward()
    assert (k.grad[:, 5:] == 0).all() and (v.grad[:, 5:] == 0).all()
    assert (k.grad[:, :5] != 0).all() and torch.isfinite(q.grad).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_sums_are_kept_in_float32(dtype):
    q, k, v = draw((2, 2), 40, 3000, 8, 8, dtype=dtype)
    inputs = [x.requires_grad_() for x in (q, k, v)]
    out, h = attention(*inputs)
    assert out.dtype == dtype and h.dtype == torch.float32
    want, want_h = naive(*(x.double() for x in (q, k, v)))
    # 3000 terms in half precision would lose 1e-2 and more; float32's sums lose 1e-6
    torch.testing.assert_close(h.double(), want_h, rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(out.double(), want, rtol=torch.finfo(dtype).eps, atol=2e-6)
    for g in torch.autograd.grad(out.float().sum() + h.sum(), inputs):
        assert g.dtype == dtype and torch.isfinite(g).all()


def test_no_array_of_queries_times_keys_is_made():
    largest = 0

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            for x in result if isinstance(result, tuple | list) else (result,):
                largest = max(largest, x.numel() if isinstance(x, torch.Tensor) else 0)
            return result

    inputs = [x.requires_grad_() for x in draw((2,), 300, 400, 8, 8, torch.float32)]
    with Sizes():
        out, h = attention(*inputs, causal=True, chunk=16)
        torch.autograd.grad(out.sum() + h.sum(), inputs)
    assert largest == 2 * 300 * 16  # one block of logits: 300 queries, 16 keys; q, k, v have 2 x 400 x 8 at most


def test_the_result_does_not_depend_on_other_queries():
    q, k, v = draw((3,), 9, 12)
    out, h = attention(q, k, v, chunk=5)
    alone, h_alone = attention(q[1:2, 4:5], k[1:2], v[1:2], chunk=5)
    torch.testing.assert_close(out[1:2, 4:5], alone, rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(h[1:2, 4:5], h_alone, rtol=1e-13, atol=1e-14)


# ---- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("added", [False, True])
def test_a_query_without_keys_is_named(added):
    q, k, v = draw((2,), 4, 5)
    mask = torch.ones(2, 4, 5, dtype=torch.bool)
    mask[1, 2] = False
    mask = torch.zeros(2, 4, 5, dtype=q.dtype).masked_fill(~mask, -math.inf) if added else mask
    with pytest.raises(ValueError, match=r"query \(1, 2\) may attend to no key"):
        attention(q, k, v, mask=mask, chunk=2)
    with pytest.raises(ValueError, match=r"query \(0, 0\) may attend to no key"):
        attention(q, k, v, mask=torch.arange(5) > 0, causal=True)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_logit_that_is_not_finite_is_named(bad):
    q, k, v = draw((2,), 4, 5)
    q[1, 3, 0] = bad
    with pytest.raises(ValueError, match=r"query \(1, 3\) has a logit that is NaN or infinite"):
        attention(q, k, v)


@pytest.mark.parametrize(
    ("change", "error", "why"),
    [
        ({"k": torch.zeros(2, 5, 3)}, ValueError, "shapes"),
        ({"v": torch.zeros(2, 6, 4)}, ValueError, "shapes"),
        ({"v": torch.zeros(1, 5, 4)}, ValueError, "shapes"),
        ({"q": torch.zeros(2, 0, 4)}, ValueError, "shapes"),
        ({"q": torch.zeros(4)}, ValueError, "shapes"),
        ({"k": torch.zeros(2, 5, 4).double()}, TypeError, "one floating dtype"),
        ({"k": [[1.0]]}, TypeError, "torch tensors"),
        ({"mask": [[True]]}, TypeError, "torch tensors"),
        ({"mask": torch.zeros(4, 6)}, ValueError, "broadcastable"),
        ({"mask": torch.zeros(1, 2, 4, 5)}, ValueError, "broadcastable"),
        ({"mask": torch.zeros(4, 5, dtype=torch.int64)}, TypeError, "boolean"),
        ({"chunk": 0}, ValueError, "chunk"),
        ({"chunk": 2.0}, ValueError, "chunk"),
        ({"scale": math.nan}, ValueError, "scale"),
    ],
)
def test_what_does_not_fit(change, error, why):
    arguments = {"q": torch.zeros(2, 4, 4), "k": torch.zeros(2, 5, 4), "v": torch.zeros(2, 5, 4)} | change
    with pytest.raises(error, match=why):
        attention(**arguments)


# ---- beside the rest of the kit -------------------------------------------------------------------------------------


@pytest.mark.parametrize("causal", [False, True])
def test_entropies_are_those_the_probe_reports(causal):
    from normkit.probing.attention import attention_entropy

    q, k, v = draw((2, 3), 30, 30, dtype=torch.float32, scale=2.0)
    mask = None if causal else masks("full", 30, 30)
    _, h = attention(q, k, v, mask=mask, causal=causal, chunk=7)
    torch.testing.assert_close(h, attention_entropy(q, k, mask=mask, causal=causal), rtol=1e-5, atol=1e-5)


def test_normalized_queries_and_keys_stay_above_their_floor():
    from normkit.attention.laws import bounded_floor, entropy_floor

    q, k, v = draw((4,), 50, 12, width=3, scale=5.0)
    q, k = (F.rms_norm(x, (3,)) for x in (q, k))  # QK-norm: |logit| <= sqrt(3)
    _, h = attention(q, k, v)
    assert h.min() >= bounded_floor(math.sqrt(3), 12)
    k_best = torch.where(torch.arange(12)[:, None] < 1, q[0, :1], -q[0, :1])
    _, best = attention(q[:1, :1], k_best[None], v[:1])
    assert best.item() == pytest.approx(bounded_floor(math.sqrt(3), 12), rel=1e-4)  # with eps 2e-16: one favorite
    norm = torch.linalg.matrix_norm(q @ k.mT / math.sqrt(3), 2)  # of a whole head bounds each row's
    assert (h.min(-1).values >= torch.as_tensor(entropy_floor(norm.numpy(), 12))).all()


def test_uniform_causal_attention_has_the_mean_of_log_t():
    from normkit.attention.laws import causal_entropy

    q, k, v = draw((1,), 64, 64)
    _, h = attention(q * 0, k, v, causal=True, chunk=10)
    assert h.mean().item() == pytest.approx(causal_entropy(64), rel=1e-14)


def test_random_heads_follow_the_exact_mean():
    from normkit.attention.laws import mean_entropy

    g = generator("heads")
    q, k, v = (torch.randn(200, 2, 128, 512 if n < 2 else 1, generator=g)[:, :1] for n in range(3))
    _, h = attention(q[..., :8, :], k, v, scale=2 / math.sqrt(512))
    # 1600 rows in 200 independent heads; |q| varies by 3 % at width 512, which moves the mean by less than 0.01
    assert h.mean().item() == pytest.approx(mean_entropy(2.0, 128), abs=4 * h.mean(-1).std().item() / 200**0.5 + 0.01)
