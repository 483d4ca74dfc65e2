"""Linear attention against explicit sums, its two forms against each other, and what division and subtraction promise."""

import math

import numpy as np
import pytest

from normkit.attention import linear
from normkit.attention.linear import FORMS, KINDS, features, linear_attention, norm_power, weights

rng = np.random.default_rng(7)
DIVIDING = tuple(k for k in KINDS if k != "subtraction")
EPS = np.finfo(np.float64).eps


def draw(*lead, tokens=7, keys=None, width=4, values=5, scale=1.0):
    keys = keys or tokens
    return [scale * rng.normal(size=(*lead, n, m)) for n, m in ((tokens, width), (keys, width), (keys, values))]


def phi(x, kind, side):
    """The papers' feature maps for one vector, unscaled."""
    if kind == "elu":
        return np.where(x > 0, x + 1, np.exp(np.minimum(x, 0)))
    if kind == "division":
        return np.maximum(x, 0) + 1e-6
    if kind != "nala":
        return np.maximum(x, 0)
    signs = np.concatenate([np.maximum(x, 0), np.maximum(-x, 0)])
    if side == "key":
        return signs**3
    norm = math.sqrt(sum(x**2))
    return (signs / norm) ** (3 * (0.5 + math.tanh(norm)))


def by_hand(q, k, kind, causal=False, seen=None):
    """Weights one query and key at a time, from the formulas."""
    out = np.zeros((len(q), len(k)))
    for t, query in enumerate(q):
        keys = [j for j in range(len(k)) if (not causal or j <= t) and (seen is None or seen[j])]
        products = {j: phi(query, kind, "query") @ phi(k[j], kind, "key") for j in keys}
        total = sum(products.values())
        for j in keys:
            if kind == "subtraction":
                out[t, j] = (1 + (products[j] - total / len(keys)) / math.sqrt(q.shape[1])) / len(keys)
            else:
                out[t, j] = products[j] / total
    return out


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_weights_and_outputs_are_the_papers_sums(kind, causal, masked):
    q, k, v = draw()
    q[:, 0], k[:, 0] = abs(q[:, 0]), abs(k[:, 0])  # every relu product is positive
    seen = np.array([True, True, False, True, False, True, True]) if masked else None
    wanted = by_hand(q, k, kind, causal, seen)
    options = {"kind": kind, "causal": causal, "mask": seen}
    np.testing.assert_allclose(weights(q, k, **options), wanted, rtol=1e-9, atol=1e-14)
    for form in FORMS:
        np.testing.assert_allclose(linear_attention(q, k, v, form=form, **options), wanted @ v, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lead", [(), (3,), (2, 3)])
@pytest.mark.parametrize(("tokens", "keys"), [(1, 1), (5, 2), (2, 9), (8, 8)])
def test_shapes_rows_and_forms(kind, lead, tokens, keys):
    q, k, v = draw(*lead, tokens=tokens, keys=keys, width=3, values=2)
    w = weights(q, k, kind)
    assert w.shape == (*lead, tokens, keys)
    np.testing.assert_allclose(w.sum(-1), 1, rtol=1e-12)
    linear_form = linear_attention(q, k, v, kind=kind)
    assert linear_form.shape == (*lead, tokens, 2)
    np.testing.assert_allclose(linear_form, w @ v, rtol=1e-10, atol=1e-12)
    if kind != "subtraction":
        assert (w >= 0).all()
    constant = np.broadcast_to([2.0, -1.0], v.shape)
    np.testing.assert_allclose(
        linear_attention(q, k, constant, kind=kind), constant[..., :1, :] + 0 * q[..., :1], rtol=1e-9
    )


def test_masked_keys_do_not_count_whatever_they_hold():
    q, k, v = draw(2, tokens=6)
    seen = np.array([[True, False, True, True, False, True]] * 2)
    for kind in KINDS:
        wanted = linear_attention(q, k[:, seen[0]], v[:, seen[0]], kind=kind)
        broken_k, broken_v = k.copy(), v.copy()
        broken_k[:, 1], broken_v[:, 4], broken_k[:, 4] = np.nan, np.inf, 1e200
        for form in FORMS:
            got = linear_attention(q, broken_k, broken_v, kind=kind, mask=seen, form=form)
            np.testing.assert_allclose(got, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_causal_outputs_do_not_see_the_future(kind):
    q, k, v = draw(tokens=9)
    before = linear_attention(q, k, v, kind=kind, causal=True)
    for t in (1, 4, 8):
        prefix = linear_attention(q[:t], k[:t], v[:t], kind=kind)
        np.testing.assert_allclose(before[t - 1], prefix[-1], rtol=1e-9, atol=1e-12)
    k[6:], v[6:] = 5 * k[6:], 0
    np.testing.assert_allclose(linear_attention(q, k, v, kind=kind, causal=True)[:6], before[:6], rtol=1e-9, atol=1e-12)


def test_division_forgets_the_query_norm_and_subtraction_is_linear_in_it():
    q, k, _ = draw(tokens=20)
    scale = 10.0 ** rng.integers(-3, 4, size=(20, 1))
    np.testing.assert_allclose(weights(scale * q, k, "relu"), weights(q, k, "relu"), rtol=1e-12, atol=1e-15)
    away = weights(q, k, "subtraction") - 1 / 20
    np.testing.assert_allclose(weights(scale * q, k, "subtraction") - 1 / 20, scale * away, rtol=1e-9, atol=1e-14)
    # rows that differ from uniform have a negative weight from some norm on, and those weights sum to 1 all the same
    long = weights(1e3 * q, k, "subtraction")
    assert (long.min(-1) < 0)[abs(away).max(-1) > 1e-3].all()
    np.testing.assert_allclose(long.sum(-1), 1, atol=1e-10)


def entropy(w):
    return float(-np.sum(w * np.log(np.where(w > 0, w, 1)), axis=-1).mean())


def test_entropies_against_the_query_norm():
    q, k, _ = draw(tokens=64, width=16)
    q /= np.linalg.norm(q, axis=-1, keepdims=True)
    norms = (0.2, 0.5, 1, 2, 4, 16)
    found = {kind: [entropy(weights(n * q, k, kind)) for n in norms] for kind in ("relu", "nala", "softmax")}
    np.testing.assert_allclose(found["relu"], found["relu"][0], rtol=1e-12)
    assert (np.diff(found["nala"]) < 0).all()
    assert (np.diff(found["softmax"]) < 0).all()
    # the power is 4.5 to 3e-3 at |q| = 4 already: nothing is left to sharpen, while softmax goes on
    assert found["nala"][-2] - found["nala"][-1] < 1e-2 < found["softmax"][-2] - found["softmax"][-1]
    assert entropy(weights(1e-12 * q, k, "softmax")) == pytest.approx(math.log(64))


def test_norm_power():
    np.testing.assert_allclose(
        norm_power(np.array([0.0, 0.5, 1e30])), [1.5, 3 * (0.5 + math.tanh(0.5)), 4.5], rtol=4 * EPS
    )
    x = np.array([[3.0, -4.0]])
    p = 3 * (0.5 + math.tanh(5))
    np.testing.assert_allclose(features(x, "nala", "query"), [[0.6**p, 0, 0, 0.8**p]], rtol=1e-12)
    np.testing.assert_allclose(features(x, "nala", "key"), [[0.75**3, 0, 0, 1]], rtol=1e-12)  # over the largest


@pytest.mark.parametrize("kind", ["relu", "nala"])
def test_a_query_that_nothing_matches_sees_all_alike(kind):
    q, k, v = draw(tokens=5)
    q[2] = 0
    if kind == "relu":
        q[3] = -1
    rows = [2, 3] if kind == "relu" else [2]
    assert (weights(q, k, kind)[rows] == 1 / 5).all()
    for form in FORMS:
        np.testing.assert_allclose(
            linear_attention(q, k, v, kind=kind, form=form)[rows], np.tile(v.mean(0), (len(rows), 1)), rtol=1e-12
        )
        causal = linear_attention(q, k, v, kind=kind, causal=True, form=form)
        np.testing.assert_allclose(causal[2], v[:3].mean(0), rtol=1e-12)


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1e5, 1e30])
@pytest.mark.parametrize("causal", [False, True])
def test_division_at_any_scale_in_float32(scale, causal):
    q, k, v = (x.astype(np.float32) for x in draw(3, tokens=6))
    for kind in ("relu", "nala", "elu", "division"):
        exact = linear_attention(*(x.astype(np.float64) * scale for x in (q, k, v)), kind=kind, causal=causal)
        for form in FORMS:
            scaled = [x * np.float32(scale) for x in (q, k, v)]
            got = linear_attention(*scaled, kind=kind, causal=causal, form=form)
            assert got.dtype == np.float32
            # products of up to 4.5th powers of float32 numbers: some 1e2 roundings of 6e-8
            np.testing.assert_allclose(got / np.float32(scale), exact / scale, rtol=2e-4, atol=2e-5)


def test_half_precision_is_computed_in_float32():
    q, k, v = (x.astype(np.float16) for x in draw(tokens=6))
    for kind in KINDS:
        got = linear_attention(q, k, v, kind=kind)
        assert got.dtype == np.float16
        wide = linear_attention(*(x.astype(np.float64) for x in (q, k, v)), kind=kind)
        np.testing.assert_allclose(got, wide, rtol=2e-3, atol=2e-3)  # one rounding to 11 bits
        assert weights(q, k, kind).dtype == np.float16
    torch = pytest.importorskip("torch")
    q, k, v = (torch.tensor(x).bfloat16() for x in (q, k, v))
    assert linear_attention(q, k, v, kind="nala").dtype == torch.bfloat16


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("causal", [False, True])
def test_the_gate_multiplies_features_and_values(kind, causal):
    q, k, v = draw(2, 3, tokens=6)
    q[..., 0], k[..., 0] = abs(q[..., 0]), abs(k[..., 0])
    key_gate, value_gate = rng.uniform(0.5, 2, size=(2, 3, 6))
    plain = linear_attention(q, k, v, kind=kind, causal=causal)
    ones = np.ones(6)
    np.testing.assert_allclose(
        linear_attention(q, k, v, kind=kind, causal=causal, gate=(ones, ones)), plain, rtol=1e-12
    )
    w = weights(q, k, kind, causal=causal, key_gate=key_gate)
    for form in FORMS:
        got = linear_attention(q, k, v, kind=kind, causal=causal, gate=(key_gate, value_gate), form=form)
        np.testing.assert_allclose(got, w @ (v * value_gate[..., None]), rtol=1e-9, atol=1e-12)
    if kind != "subtraction":  # reweighted, and normalized again; a common factor cancels
        again = weights(q, k, kind, causal=causal) * key_gate[:, None, :]
        np.testing.assert_allclose(w, again / again.sum(-1, keepdims=True), rtol=1e-9, atol=1e-15)
        np.testing.assert_allclose(weights(q, k, kind, causal=causal, key_gate=3 * key_gate), w, rtol=1e-9, atol=1e-15)
    assert (linear_attention(q, k, v, kind=kind, gate=(None, 0 * ones)) == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_torch_agrees_and_gradients_are_right(kind):
    torch = pytest.importorskip("torch")
    q, k, v = draw(2, tokens=4, width=3, values=2)
    q[0, 1] = [-1.0, -2.0, 0.5]
    tensors = [torch.tensor(x, requires_grad=True) for x in (q, k, v)]
    gates = [
        torch.rand(4, dtype=torch.float64, requires_grad=True, generator=torch.Generator().manual_seed(i))
        for i in (0, 1)
    ]
    seen = torch.tensor([[True, False, True, True]] * 2)
    for causal in (False, True):
        for form in FORMS:
            options = {"kind": kind, "causal": causal, "form": form}
            np.testing.assert_allclose(
                linear_attention(*tensors, **options).detach(),
                linear_attention(q, k, v, **options),
                rtol=1e-10,
                atol=1e-12,
            )

            def attend(q, k, v, *gate, options=options):
                return linear_attention(q, k, v, mask=seen, gate=gate, **options)

            assert torch.autograd.gradcheck(attend, (*tensors, *gates))


def test_gradients_stay_finite_where_the_formula_is_0_over_0():
    torch = pytest.importorskip("torch")
    for kind in KINDS:
        q, k, v = (torch.tensor(x, requires_grad=True) for x in draw(tokens=3))
        with torch.no_grad():
            q[1] = 0
            k[2] = 0
        linear_attention(q, k, v, kind=kind).square().sum().backward()
        assert all(x.grad.isfinite().all() for x in (q, k, v))


def test_softmax_weights_are_torchs():
    torch = pytest.importorskip("torch")
    q, k, v = (torch.tensor(x) for x in draw(2, tokens=5))
    for causal in (False, True):
        wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal)
        torch.testing.assert_close(weights(q, k, "softmax", causal=causal) @ v, wanted, rtol=1e-12, atol=1e-13)
    big = weights(1e3 * q, k, "softmax")
    assert big.isfinite().all()
    with pytest.raises(ValueError, match="no key gate"):
        weights(q, k, "softmax", key_gate=torch.ones(5))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"kind": "rleu"}, ValueError, "did you mean 'relu'"),
        ({"kind": "softmax"}, ValueError, "unknown kind"),
        ({"form": "cubic"}, ValueError, "unknown form"),
        ({"k": np.ones((5, 3))}, ValueError, "k must have shape"),
        ({"v": np.ones((4, 2))}, ValueError, "v must have shape"),
        ({"q": np.ones(4)}, ValueError, "q must have shape"),
        ({"k": np.ones((0, 4)), "v": np.ones((0, 2))}, ValueError, "tokens at least 1"),
        ({"q": np.ones((5, 4), int)}, TypeError, "real floating"),
        ({"q": np.ones((5, 4), np.float32)}, TypeError, "one dtype"),
        ({"q": np.ones((3, 4)), "causal": True}, ValueError, "one key a query"),
        ({"mask": np.zeros(5, bool)}, ValueError, "without a key"),
        ({"mask": np.arange(5) > 0, "causal": True}, ValueError, "without a key"),
        ({"mask": np.ones(4, bool)}, ValueError, "mask must have shape"),
        ({"mask": np.ones(5)}, TypeError, "boolean"),
        ({"gate": (np.ones(4), None)}, ValueError, "key_gate must broadcast"),
        ({"gate": (None, np.ones((2, 5)))}, ValueError, "value_gate must broadcast"),
    ],
)
def test_errors_say_what_was_wrong(change, error, words):
    arguments = {"q": np.ones((5, 4)), "k": np.ones((5, 4)), "v": np.ones((5, 2)), **change}
    with pytest.raises(error, match=words):
        linear_attention(**arguments)


def test_nan_stays_visible():
    q, k, v = draw(tokens=4)
    q[2, 1] = np.nan
    for kind in KINDS:
        out = linear_attention(q, k, v, kind=kind)
        assert np.isnan(out[2]).all()
        assert np.isfinite(out[[0, 1, 3]]).all()


def test_linear_form_never_builds_the_matrix(monkeypatch):
    monkeypatch.setattr(linear, "_weights", None)
    for causal in (False, True):
        linear_attention(*draw(tokens=300), causal=causal)
    with pytest.raises(TypeError):
        linear_attention(*draw(), form="quadratic")


# ---- the module and the toys ----------------------------------------------------------------------------------------


def test_module_is_the_function_between_two_matrices():
    torch = pytest.importorskip("torch")
    from normkit.attention.linear_modules import LinearAttention

    x = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0))
    seen = torch.tensor([[True] * 4 + [False] * 2] * 2)
    for kind in KINDS:
        for causal in (False, True):
            module = LinearAttention(8, 2, kind, causal=causal, gate_tokens=6)
            with torch.no_grad():
                for p in module.parameters():
                    p.uniform_(-1, 2, generator=torch.Generator().manual_seed(p.numel()))
                module.key_gate.abs_()
            q, k, v = (module.qkv(x)[..., 8 * i : 8 * i + 8] for i in range(3))
            heads = []
            for h in range(2):
                part = slice(4 * h, 4 * h + 4)
                gate = (module.key_gate[h], module.value_gate[h])
                heads.append(
                    linear_attention(
                        q[..., part], k[..., part], v[..., part], kind=kind, causal=causal, mask=seen, gate=gate
                    )
                )
            torch.testing.assert_close(module(x, seen), module.out(torch.cat(heads, -1)))
    assert LinearAttention(8, 2)(x[:, :3]).shape == (2, 3, 8)
    for wrong in (x[0], x[..., :7]):
        with pytest.raises(ValueError, match="x must have shape"):
            LinearAttention(8, 2)(wrong)
    with pytest.raises(ValueError, match=r"\(batch, 6, 8\)"):
        LinearAttention(8, 2, gate_tokens=6)(x[:, :5])
    with pytest.raises(ValueError, match="divide"):
        LinearAttention(8, 3)


def test_toys_learn_and_repeat():
    pytest.importorskip("torch")
    from normkit.attention.linear_toys import recall, train_patches

    start, end = recall("nala", steps=10), recall("nala", steps=200)
    assert start == pytest.approx(math.log(16), rel=0.25)
    assert end < 0.7 * start
    assert recall("nala", steps=10) == start != recall("nala", steps=10, seed=1)
    assert recall("softmax", steps=200) < end
    untrained, trained = (train_patches("division", width=16, steps=n) for n in (1, 60))
    assert trained < 0.8 < untrained  # the variance of the pixels is 1
    ungated, gated = (train_patches("division", width=16, steps=60, gate=g) for g in (False, True))
    assert ungated == trained != gated
    assert train_patches("subtraction", task="classify", width=16, steps=60) < 0.9 * math.log(10)
    for wrong in ({"task": "sing"}, {"kind": "softmax"}, {"lr": 0.0}, {"steps": 0}):
        with pytest.raises(ValueError):
            train_patches(**wrong)
    with pytest.raises(ValueError):
        recall("cosine")
