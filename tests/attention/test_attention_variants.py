"""Attention's variants against float64 formulas row by row, torch's own attention, and limits known in closed form."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from normkit.attention import variants as V
from normkit.attention.heads import MOMENTUM, Heads
from normkit.attention.variants import MultiHeadAttention
from normkit.probing.attention import EntropyRecorder
from normkit.rng import stream

EPS32 = np.finfo(np.float32).eps
SINK_SOFTMAX = lambda z: V.sink_softmax(z, -math.inf)  # noqa: E731  plain softmax


def normal(*shape, name="x", scale=1.0):
    return stream(0, "variants", name, *shape).standard_normal(shape) * scale


def tensors(*shapes):
    return [torch.from_numpy(normal(*shape, name=f"t{i}")).requires_grad_() for i, shape in enumerate(shapes)]


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def generator(seed=0):
    return torch.Generator().manual_seed(int(stream(seed, "variants", "weights").integers(2**63)))


# ---- logits ---------------------------------------------------------------------------------------------------------


def test_logits_are_those_of_torch_attention():
    q, k, v = normal(2, 3, 5, 8, name="q"), normal(2, 3, 7, 8, name="k"), normal(2, 3, 7, 8, name="v")
    mask = stream(0, "mask").random((2, 1, 5, 7)) < 0.6
    mask[..., 0] = True
    for seen in None, mask:
        got = SINK_SOFTMAX(V.attention_logits(q, k, seen)) @ v
        want = F.scaled_dot_product_attention(
            *map(torch.from_numpy, (q, k, v)), attn_mask=None if seen is None else torch.from_numpy(seen)
        )
        np.testing.assert_allclose(got, want.numpy(), rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(V.attention_logits(q, k, scale=2.0), 2 * q @ k.swapaxes(-1, -2), rtol=1e-14)


def test_qk_norm_row_by_row():
    q, k, gain = normal(4, 6, name="q"), normal(9, 6, name="k"), normal(6, name="gain")
    unit = {"q": q / np.linalg.norm(q, axis=-1, keepdims=True), "k": k / np.linalg.norm(k, axis=-1, keepdims=True)}
    for kind, factor in ("unit", 1.0), ("rms", math.sqrt(6)):
        want = np.array([[factor * (a * gain) @ b for b in unit["k"]] for a in unit["q"]])
        np.testing.assert_allclose(V.qk_norm(q, k, gain, kind=kind, eps=0.0), want, rtol=1e-12, atol=1e-14)
    # two learned norms with gains are one gain, their product
    a, b = np.abs(gain), gain
    want = (
        F.rms_norm(torch.from_numpy(q), (6,), torch.from_numpy(a), 1e-3)
        @ F.rms_norm(torch.from_numpy(k), (6,), torch.from_numpy(b), 1e-3).T
    )
    np.testing.assert_allclose(V.qk_norm(q, k, a * b, eps=1e-3), want.numpy() / math.sqrt(6), rtol=1e-12, atol=1e-14)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 6), st.integers(1, 6), st.integers(1, 9), st.floats(-30, 30), st.floats(-30, 30), st.integers(0, 99)
)
def test_qk_norm_forgets_lengths_at_any_scale(queries, keys, d, log_q, log_k, seed):
    draws = stream(seed, "scales")
    q, k = draws.standard_normal((queries, d)), draws.standard_normal((keys, d))
    for kind in "rms", "unit":
        want = V.qk_norm(q, k, kind=kind, eps=0.0)
        assert (np.abs(want) <= (math.sqrt(d) if kind == "rms" else 1) * (1 + 1e-12)).all()  # Cauchy-Schwarz
        for dtype, rtol in (np.float64, 1e-12), (np.float32, 30 * EPS32):
            got = V.qk_norm((q * 10**log_q).astype(dtype), (k * 10**log_k).astype(dtype), kind="unit", eps=0.0)
            assert got.dtype == dtype
            np.testing.assert_allclose(got * (math.sqrt(d) if kind == "rms" else 1), want, atol=rtol * d, rtol=rtol)


def test_the_gain_of_unit_vectors():
    assert V.unit_gain(32) == pytest.approx(math.log2(32 * 31))
    # what it is for: with cosines 1 for one key and 0 for the others, that key gets at least half of the weight
    for tokens in 4, 32, 1000:
        z = np.zeros(tokens)
        z[0] = V.unit_gain(tokens)
        assert V.sink_softmax(z, -math.inf)[0] > 0.5
    with pytest.raises(ValueError, match="at least 2"):
        V.unit_gain(1)


# ---- sinks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sink", [-math.inf, -5.0, 0.0, 2.0, 80.0])
def test_a_sink_is_one_more_logit(sink):
    z = normal(5, 16)
    with np.errstate(divide="ignore"):
        want = softmax(np.concatenate([z, np.full((5, 1), sink)], -1))[:, :-1]
    np.testing.assert_allclose(V.sink_softmax(z, sink), want, rtol=1e-12)
    np.testing.assert_allclose(V.sink_softmax(z, np.full((5, 1), sink)), want, rtol=1e-12)
    p = V.sink_softmax(z, sink)
    np.testing.assert_allclose(p / p.sum(-1, keepdims=True), softmax(z), rtol=1e-12)  # ratios stay


def test_off_by_one_by_hand():
    np.testing.assert_allclose(V.sink_softmax(np.log([2.0, 5.0])), [2 / 8, 5 / 8])


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 5), st.integers(1, 20), st.floats(-3, 30), st.sampled_from([np.float32, np.float64]), st.data())
def test_sink_softmax_at_any_scale(rows, keys, scale, dtype, data):
    draws = stream(data.draw(st.integers(0, 999)), "sink")
    z = (draws.standard_normal((rows, keys)) * 10**scale).astype(dtype)
    z[draws.random((rows, keys)) < 0.3] = -np.inf
    sink = data.draw(st.sampled_from([0.0, -1e30, 1e30, 3.0]))
    p = V.sink_softmax(z, sink)
    assert p.dtype == dtype
    assert (p[z == -np.inf] == 0).all()
    assert (p >= 0).all()
    assert (p.sum(-1) <= 1 + keys * np.finfo(dtype).eps).all()
    wide = np.concatenate([z.astype(np.longdouble), np.full((rows, 1), sink, np.longdouble)], -1)
    np.testing.assert_allclose(p, softmax(wide)[:, :-1].astype(float), atol=keys * 4 * np.finfo(dtype).eps)


def test_a_row_without_keys_is_the_sinks_or_an_error():
    z = np.full((2, 3), -np.inf)
    assert (V.sink_softmax(z, 0.0) == 0).all()
    z[0] = 1.0
    with pytest.raises(ValueError, match="sees no key"):
        V.sink_softmax(z, -math.inf)


# ---- affine ---------------------------------------------------------------------------------------------------------


def test_linear_clip():
    np.testing.assert_allclose(V.linear_clip(np.array([-1e30, -5, -2.5, 0, 4, 5, 9])), [0, 0, 0.25, 0.5, 0.9, 1, 1])


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 6), st.integers(1, 9), st.floats(0, 1), st.booleans(), st.integers(0, 999))
def test_the_sum_of_affine_weights(rows, keys, average, masked, seed):
    draws = stream(seed, "affine")
    mask = draws.random((rows, keys)) < 0.7 if masked else np.ones((rows, keys), bool)
    mask[:, 0] = True
    p = SINK_SOFTMAX(np.where(mask, draws.standard_normal((rows, keys)), -np.inf))
    alpha = draws.random(rows)
    for count, n in ("visible", mask.sum(-1)), ("all", keys):
        w = V.affine_scaled(p, alpha, average, mask if masked else None, keys=count)
        want = np.where(mask, alpha[:, None] * p + ((average - alpha) / n)[:, None], 0)
        np.testing.assert_allclose(w, want, rtol=1e-12, atol=1e-15)
        np.testing.assert_allclose(w.sum(-1), alpha + mask.sum(-1) * (average - alpha) / n, rtol=1e-12, atol=1e-14)
        if count == "visible":
            np.testing.assert_allclose(w.sum(-1), average, rtol=1e-12, atol=1e-14)  # whatever the query
    if average:
        lowest = (1 - average / alpha) / keys  # where weights turn negative
        whole = V.affine_scaled(p, alpha, average)
        clear = np.abs(p - lowest[:, None]) > 1e-9
        assert ((whole < 0) == (p < lowest[:, None]))[clear].all()


def test_affine_limits():
    p = softmax(normal(4, 8))
    np.testing.assert_allclose(V.affine_scaled(p, np.full(4, 0.3), 0.3), 0.3 * p, rtol=1e-13)
    np.testing.assert_allclose(V.affine_scaled(p, np.zeros(4), 0.3), np.full((4, 8), 0.3 / 8), rtol=1e-13)


# ---- gates and entropies --------------------------------------------------------------------------------------------


def test_gated():
    x, z = normal(3, 4, name="x"), normal(3, 4, name="z", scale=4)
    np.testing.assert_allclose(V.gated(x, z), x / (1 + np.exp(-z)), rtol=1e-12)
    np.testing.assert_allclose(V.gated(x, np.full((3, 4), 1e30)), x)
    assert (V.gated(x, np.full((3, 4), -1e30)) == 0).all()


def test_entropies_when_weights_do_not_sum_to_one():
    w = np.array([[0.1, 0.3, 0.0]])
    h = lambda *p: -sum(x * math.log(x) for x in p)  # noqa: E731
    assert V.weight_entropy(w, how="bucket") == pytest.approx(h(0.1, 0.3, 0.6))
    assert V.weight_entropy(w, how="renormalized") == pytest.approx(h(0.25, 0.75))
    assert V.weight_entropy(w * [1, -1, 1], how="absolute") == pytest.approx(h(0.25, 0.75))
    z = normal(5, 12)
    for sink in -3.0, 0.0, 3.0:
        p = V.sink_softmax(z, sink)
        full = softmax(np.concatenate([z, np.full((5, 1), sink)], -1))
        np.testing.assert_allclose(V.weight_entropy(p, how="bucket"), -(full * np.log(full)).sum(-1), rtol=1e-12)
        plain = softmax(z)
        np.testing.assert_allclose(
            V.weight_entropy(p, how="renormalized"), -(plain * np.log(plain)).sum(-1), rtol=1e-12
        )
    assert V.weight_entropy(np.zeros((1, 3)), how="bucket") == 0  # all in the sink
    for how, bad, words in (
        ("bucket", [-0.1, 0.2], "negative"),
        ("renormalized", [-0.1, 0.2], "negative"),
        ("bucket", [0.9, 0.2], "more than 1"),
        ("renormalized", [0.0, 0.0], "all zero"),
        ("absolute", [0.0, 0.0], "all zero"),
        ("buckets", [0.1, 0.2], "did you mean 'bucket'"),
    ):
        with pytest.raises(ValueError, match=words):
            V.weight_entropy(np.array([bad]), how=how)


# ---- all of them ----------------------------------------------------------------------------------------------------

GRADIENTS = {
    "attention_logits": (V.attention_logits, (2, 3, 4), (2, 5, 4)),
    "qk_norm rms": (V.qk_norm, (2, 3, 4), (2, 5, 4), (4,)),
    "qk_norm unit": (lambda q, k, g: V.qk_norm(q, k, g, kind="unit"), (2, 3, 4), (2, 5, 4), (1,)),
    "sink_softmax": (V.sink_softmax, (2, 3, 5), (2, 3, 1)),
    "plain softmax": (SINK_SOFTMAX, (3, 5)),
    "affine_scaled": (lambda z, a, m: V.affine_scaled(SINK_SOFTMAX(z), a, m), (2, 3, 5), (2, 3), (2, 1)),
    "masked affine": (
        lambda z, a: V.affine_scaled(
            SINK_SOFTMAX(z), a, 0.2, torch.ones(3, 5, dtype=torch.bool).tril(1), keys="visible"
        ),
        (3, 5),
        (3,),
    ),
    "linear_clip": (V.linear_clip, (7,)),
    "gated": (V.gated, (3, 4), (3, 4)),
    "entropy": (lambda z: V.weight_entropy(V.sink_softmax(z, 0.5), how="bucket"), (3, 5)),
    "signed entropy": (lambda w: V.weight_entropy(w, how="absolute"), (3, 5)),
    "root_mean_square": (lambda x: V.root_mean_square(x, 1e-3), (3, 5)),
    "masked": (
        lambda q, k: SINK_SOFTMAX(V.qk_norm(q, k, mask=torch.ones(3, 3, dtype=torch.bool).tril())),
        (3, 4),
        (3, 4),
    ),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradcheck(name):
    f, *shapes = GRADIENTS[name]
    assert torch.autograd.gradcheck(f, tensors(*shapes))


@pytest.mark.parametrize("name", GRADIENTS)
def test_numpy_and_torch_agree(name):
    f, *shapes = GRADIENTS[name]
    if "masked" in name:
        return  # those masks are torch's
    x = tensors(*shapes)
    np.testing.assert_allclose(f(*(t.detach().numpy() for t in x)), f(*x).detach().numpy(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, np.float16])
def test_half_precision(dtype):
    make = torch.from_numpy if isinstance(dtype, torch.dtype) else (lambda x: x)
    cast = (lambda x: x.to(dtype)) if isinstance(dtype, torch.dtype) else (lambda x: x.astype(dtype))
    q, k = (cast(make(normal(6, 32, name=name, scale=200.0))) for name in "qk")
    wide_q, wide_k = (np.asarray(x.tolist()) for x in (q, k))
    logits = V.attention_logits(q, k)
    want = wide_q @ wide_k.T / math.sqrt(32)
    assert np.abs(want).max() > 65504  # it would overflow float16
    np.testing.assert_allclose(np.asarray(logits.tolist()), want, rtol=1e-4, atol=1.0)
    got = V.qk_norm(q, k, eps=0.0)
    np.testing.assert_allclose(np.asarray(got.tolist()), V.qk_norm(wide_q, wide_k, eps=0.0), atol=1e-4)
    p = cast(make(softmax(normal(6, 9))))
    eps = torch.finfo(dtype).eps if isinstance(dtype, torch.dtype) else np.finfo(dtype).eps
    wide_p = np.asarray(p.tolist())
    for f in (V.sink_softmax, lambda p: V.weight_entropy(p, how="absolute"), lambda p: V.gated(p, p)):
        out = f(p)
        assert out.dtype == dtype
        np.testing.assert_allclose(np.asarray(out.tolist()), f(wide_p), rtol=2 * eps, atol=eps)


def test_errors():
    q, k = normal(3, 4), normal(5, 4)
    for bad in normal(5, 3), normal(4), np.zeros((0, 4)):
        with pytest.raises(ValueError, match=r"one d|empty"):
            V.attention_logits(q, bad)
    for value in np.nan, np.inf, -np.inf:
        broken = q.copy()
        broken[1, 2] = value
        for f in V.attention_logits, V.qk_norm:
            with pytest.raises(ValueError, match=r"q must be finite, but q\[1, 2\]"):
                f(broken, k)
        if value != -np.inf:
            with pytest.raises(ValueError, match="logits must be finite"):
                V.sink_softmax(broken)
            with pytest.raises(ValueError, match="sink"):
                V.sink_softmax(q, value)
        with pytest.raises(ValueError, match="alpha must be finite"):
            V.affine_scaled(softmax(q), broken[:, 2], 0.5)
        with pytest.raises(ValueError, match="finite"):
            V.affine_scaled(softmax(q), q[:, 2], value)
    mask = np.ones((3, 5), bool)
    mask[1] = False
    with pytest.raises(ValueError, match="hides every key"):
        V.attention_logits(q, k, mask)
    with pytest.raises(TypeError, match="boolean"):
        V.attention_logits(q, k, mask.astype(float))
    with pytest.raises(ValueError, match="broadcast"):
        V.attention_logits(q, k, np.ones((4, 5), bool))
    with pytest.raises(ValueError, match="zero vector"):
        V.qk_norm(q * 0, k, kind="unit")
    assert np.isfinite(V.qk_norm(q * 0, k)).all()
    with pytest.raises(ValueError, match="unknown kind"):
        V.qk_norm(q, k, kind="layer")
    with pytest.raises(ValueError, match="alpha must have shape"):
        V.affine_scaled(softmax(q), np.zeros(4), 0.5)
    with pytest.raises(TypeError, match="one library"):
        V.attention_logits(q, torch.zeros(5, 4))
    with pytest.raises(TypeError, match="real floating"):
        V.attention_logits(q.astype(int), k)
    with pytest.raises(AttributeError, match="affine_scaled"):
        V.multi_head  # noqa: B018


# ---- the layer ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("variant", V.ATTENTIONS)
def test_the_layer_is_its_formula(variant, causal):
    layer = MultiHeadAttention(12, 3, variant=variant, causal=causal, tokens=7, generator=generator()).double()
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator(1), dtype=p.dtype))
        if variant == "affine":
            layer.average.copy_(torch.tensor([0.2, 0.5, 0.9]))
    layer.eval()
    x = torch.from_numpy(normal(2, 7, 12))
    mask = torch.ones(7, 7, dtype=torch.bool).tril() if causal else torch.ones(7, 7, dtype=torch.bool)
    q, k = ((x @ m.weight.T).unflatten(-1, (3, 4)).transpose(1, 2).detach() for m in (layer.query, layer.key))
    z = V.attention_logits(q, k, mask)
    if variant == "qk_norm":
        z = V.qk_norm(q, k, (layer.query_gain * layer.key_gain).detach(), mask)
    elif variant == "qk_unit":
        z = V.qk_norm(q, k, layer.gain.detach(), mask, kind="unit")
    elif variant == "l2":
        z = ((q @ k.mT) - (k**2).sum(-1)[..., None, :] / 2) / 2
        z = z.masked_fill(~mask, -torch.inf)
    p = V.sink_softmax(z, -math.inf)
    if variant == "sink":
        p = V.sink_softmax(z, layer.sink.detach()[:, None, None])
    elif variant == "affine":
        alpha = V.linear_clip(x @ layer.scale.weight.detach().T).transpose(1, 2)
        p = V.affine_scaled(p, alpha, layer.average[:, None], mask)
    v = (x @ layer.value.weight.T).unflatten(-1, (3, 4)).transpose(1, 2)
    mixed = (p @ v).transpose(1, 2).flatten(-2)
    mixed = V.gated(mixed, x @ layer.gate.weight.T) if variant == "gate" else mixed
    torch.testing.assert_close(layer(x), mixed @ layer.out.weight.T, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(layer.logits(x), z, rtol=1e-10, atol=1e-12)
    seen = layer.inspect(x)
    assert isinstance(seen, Heads)
    torch.testing.assert_close(seen.weights, p, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(
        seen.entropy, V.weight_entropy(V.sink_softmax(z, -math.inf), how="absolute"), rtol=1e-10, atol=1e-12
    )


@pytest.mark.parametrize("variant", V.ATTENTIONS)
def test_every_parameter_learns_and_hooks_see_the_weights(variant):
    layer = MultiHeadAttention(8, 2, variant=variant, causal=True, generator=generator()).double()
    seen = []
    layer.weights.register_forward_hook(lambda module, given, output: seen.append(output))
    x = torch.from_numpy(normal(3, 6, 8)).requires_grad_()
    layer(x).square().sum().backward()
    assert all(p.grad.abs().max() > 0 for p in layer.parameters())
    assert seen[0].shape == (3, 2, 6, 6)
    assert (seen[0].triu(1) == 0).all()  # nothing from the future
    later = x.detach().clone()
    later[:, 4:] += 1
    layer.eval()
    torch.testing.assert_close(layer(later)[:, :4], layer(x)[:, :4], rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(layer, [x[:1, :3].detach().requires_grad_()])


def test_plain_attention_is_torchs():
    layer = MultiHeadAttention(8, 2, causal=True, generator=generator())
    x = torch.from_numpy(normal(3, 6, 8)).float()
    q, k, v = ((m(x)).unflatten(-1, (2, 4)).transpose(1, 2) for m in (layer.query, layer.key, layer.value))
    want = layer.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(-2))
    torch.testing.assert_close(layer(x), want, rtol=1e-5, atol=1e-6)


def test_the_moving_average_of_alpha():
    layer = MultiHeadAttention(8, 2, variant="affine", generator=generator())
    assert layer.average.tolist() == [0, 0]
    want = torch.zeros(2)
    for step in range(3):
        x = torch.from_numpy(normal(4, 5, 8, name=f"step{step}")).float()
        layer(x)
        want = MOMENTUM * want + (1 - MOMENTUM) * V.linear_clip(layer.scale(x).detach()).mean((0, 1))
        torch.testing.assert_close(layer.average, want)
    layer.eval()
    layer(x)
    layer.train().inspect(x)
    torch.testing.assert_close(layer.average, want)
    assert "average" in layer.state_dict()
    sums = layer.inspect(x).weights.sum(-1)
    torch.testing.assert_close(sums, want[:, None].expand(4, 2, 5))  # without a mask: the same for each query


@pytest.mark.parametrize("variant", V.ATTENTIONS)
def test_the_layer_in_bfloat16(variant):
    layer = MultiHeadAttention(16, 2, variant=variant, causal=True, generator=generator())
    x = torch.from_numpy(normal(2, 6, 16)).float()
    for _ in range(3):
        layer(x)
    layer.eval()
    half = layer.bfloat16()(x.bfloat16()).float()
    torch.testing.assert_close(half, layer.float()(x), rtol=0, atol=0.1)  # outputs of size 1, a few roundings of 2^-8
    layer.train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x).isfinite().all()


@pytest.mark.parametrize("variant", V.ATTENTIONS)
def test_probe_reads_its_entropy(variant):
    layer = MultiHeadAttention(16, 2, variant=variant, causal=True, generator=generator())
    x, caught = torch.from_numpy(normal(2, 6, 16)).float(), []
    with EntropyRecorder(caught.append, lambda logits: True):
        layer(x)
    seen = layer.inspect(x)
    bucket = V.weight_entropy(seen.weights, how="bucket") if variant == "sink" else seen.entropy
    torch.testing.assert_close(caught[0], bucket, rtol=1e-5, atol=1e-5)


def test_layers_errors_and_a_mask():
    layer = MultiHeadAttention(8, 2, generator=generator())
    x = torch.from_numpy(normal(2, 5, 8)).float()
    mask = torch.ones(5, 5, dtype=torch.bool)
    mask[:, 3] = False
    assert (layer.inspect(x, mask).weights[..., 3] == 0).all()
    moved = x.clone()
    moved[:, 3] += 1
    torch.testing.assert_close(layer(moved, mask)[:, :3], layer(x, mask)[:, :3])
    mask[2] = False
    with pytest.raises(ValueError, match="hides every key"):
        layer(x, mask)
    with pytest.raises(ValueError, match="x must be"):
        layer(x[0])
    with pytest.raises(ValueError, match="divide"):
        MultiHeadAttention(8, 3)
    with pytest.raises(ValueError, match="did you mean 'qk_norm'"):
        MultiHeadAttention(8, 2, variant="qknorm")
    x[0, 0, 0] = torch.nan
    assert layer(x).isnan().any()  # visible, not an error: a training must be able to report it


def test_weights_come_from_the_generator():
    first, second, other = (MultiHeadAttention(64, 2, generator=generator(s)) for s in (0, 0, 1))
    assert torch.equal(first.query.weight, second.query.weight)
    assert not torch.equal(first.query.weight, other.query.weight)
    assert first.query.weight.std().item() == pytest.approx(1 / 8, rel=0.1)  # 4096 draws: 1 % each
