"""sigmaReparam against a plain-NumPy power iteration, exact singular values and torch's autograd."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from normkit.attention import SigmaReparam
from normkit.attention.reparam import Spectral
from normkit.rng import stream

EPS32 = np.finfo(np.float32).eps


def draws(*path):
    return torch.Generator().manual_seed(int(stream(0, "reparam", *path).integers(2**63)))


def normal(*shape, dtype=torch.float64, name="x"):
    return torch.randn(shape, generator=draws(name, *shape), dtype=dtype)


def linear(rows=6, columns=5, dtype=torch.float64, bias=True):
    layer = nn.Linear(columns, rows, bias=bias, dtype=dtype)
    with torch.no_grad():
        layer.weight.copy_(normal(rows, columns, dtype=dtype, name="weight"))
    return layer


def norm(weight):
    return torch.linalg.matrix_norm(weight.detach().double().flatten(1), 2).item()


def state(wrapped):
    (spectral,) = [m for m in wrapped.modules() if isinstance(m, Spectral)]
    return spectral


@pytest.mark.parametrize("gamma", [1.0, 0.3, "sigma"])
def test_the_matrix_has_the_norm_gamma(gamma):
    layer = linear()
    before = layer.weight.detach().clone()
    wrapped = SigmaReparam(layer, gamma=gamma)
    want = norm(before) if gamma == "sigma" else gamma
    assert norm(layer.weight) == pytest.approx(want, rel=1e-12)
    torch.testing.assert_close(layer.weight, before * (want / norm(before)), rtol=1e-12, atol=0)
    ((sigma, found),) = wrapped.norms().values()
    assert (sigma.item(), found.item()) == pytest.approx((norm(before), want), rel=1e-12)
    if gamma == "sigma":
        torch.testing.assert_close(layer.weight, before, rtol=1e-12, atol=0)  # the function is unchanged


def test_steps_of_training_are_those_of_the_paper_in_numpy():
    """One power iteration a forward; its order, its start and the gradient through sigma, all by hand."""
    layer, lr = linear(), 0.1
    w = layer.weight.detach().numpy().copy()
    wrapped = SigmaReparam(layer, gamma="sigma")
    _, s, vt = np.linalg.svd(w)
    u, gamma = vt[0], s[0]
    optimizer = torch.optim.SGD([p for p in wrapped.parameters() if p is not layer.bias], lr=lr)
    for step in range(25):
        x, g = normal(7, 5, name=f"x{step}"), normal(7, 6, name=f"g{step}")
        (wrapped(x) * g).sum().backward()
        v = w @ u / np.linalg.norm(w @ u)
        u = w.T @ v / np.linalg.norm(w.T @ v)
        sigma = v @ w @ u
        outer = g.numpy().T @ x.numpy()  # the gradient to W_hat
        to_gamma = (outer * w).sum() / sigma
        to_w = gamma / sigma * (outer - (outer * w).sum() / sigma * np.outer(v, u))
        original = layer.parametrizations.weight.original
        np.testing.assert_allclose(original.grad.numpy(), to_w, rtol=1e-9, atol=1e-11)
        np.testing.assert_allclose(state(wrapped).gamma.grad.numpy(), [to_gamma], rtol=1e-9)
        np.testing.assert_allclose(state(wrapped).u[0].abs().numpy(), np.abs(u), rtol=1e-9, atol=1e-12)
        optimizer.step()
        optimizer.zero_grad()
        w, gamma = w - lr * to_w, gamma - lr * to_gamma
        np.testing.assert_allclose(original.detach().numpy(), w, rtol=1e-9, atol=1e-11)
    assert abs(sigma - np.linalg.norm(w, 2)) > 1e-4  # it is an estimate: the iteration runs behind the weights


def test_the_iteration_finds_a_new_matrix():
    wrapped = SigmaReparam(linear())
    layer = wrapped.module
    with torch.no_grad():
        layer.parametrizations.weight.original.copy_(normal(6, 5, name="other"))
    for _ in range(200):
        wrapped(normal(1, 5))
    assert norm(layer.weight) == pytest.approx(1, rel=1e-9)


def test_the_gradient_is_orthogonal_to_the_matrix_and_its_scale_does_not_count():
    wrapped = SigmaReparam(linear())
    layer, x = wrapped.module, normal(3, 5)
    y = wrapped(x)
    (y**2).sum().backward()
    w = layer.parametrizations.weight.original
    assert abs((w * w.grad).sum()) < 1e-12 * (w.norm() * w.grad.norm())
    with torch.no_grad():
        w.mul_(7.3)
    torch.testing.assert_close(wrapped(x), y, rtol=1e-12, atol=1e-12)


def test_gradcheck():
    spectral = Spectral(normal(4, 3)).eval()
    with torch.no_grad():
        spectral.u.copy_(torch.linalg.svd(normal(4, 3))[2][:1])
    # v and u are constants to the gradient; where they are the singular vectors that is the whole derivative.
    assert torch.autograd.gradcheck(lambda w, g: _apply(spectral, w, g), _inputs(spectral))


def _inputs(spectral):
    return normal(4, 3).requires_grad_(), torch.tensor([0.7], dtype=torch.float64, requires_grad=True)


def _apply(spectral, weight, gamma):
    matrix = spectral.matrix(weight)
    return matrix / spectral.sigma(matrix)[0][:, None, None] * gamma


def test_evaluation_moves_nothing_and_training_does():
    wrapped = SigmaReparam(linear().eval())
    assert not wrapped.training
    with torch.no_grad():
        wrapped.module.parametrizations.weight.original.copy_(normal(6, 5, name="other"))
    start = state(wrapped).u.clone()
    wrapped.eval()
    first = wrapped(normal(2, 5))
    assert torch.equal(first, wrapped(normal(2, 5)))
    assert torch.equal(state(wrapped).u, start)
    wrapped.train()(normal(2, 5))
    assert not torch.equal(state(wrapped).u, start)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (lambda: nn.Conv1d(3, 4, 5), (2, 3, 9)),
        (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), (2, 4, 7, 7)),
        (lambda: nn.Conv3d(2, 3, 2), (1, 2, 4, 4, 4)),
        (lambda: nn.Linear(1, 1), (2, 1)),
        (lambda: nn.Linear(8, 1, bias=False), (2, 8)),
    ],
)
def test_layers_and_their_removal(layer, shape):
    plain, x = layer(), normal(*shape, dtype=torch.float32)
    before = plain(x)
    wrapped = SigmaReparam(copy.deepcopy(plain), gamma="sigma")
    torch.testing.assert_close(wrapped(x), before, rtol=1e-5, atol=1e-6)
    wrapped = SigmaReparam(plain)
    assert norm(plain.weight) == pytest.approx(1, rel=1e-6)
    with torch.no_grad():
        plain.parametrizations.weight.original.add_(0.1)
    want = wrapped.eval()(x)
    removed = wrapped.remove()
    assert removed is plain
    assert type(removed) is type(layer())
    assert not parametrize.is_parametrized(removed)
    assert set(removed.state_dict()) == set(layer().state_dict())
    assert removed.weight.requires_grad
    assert torch.equal(removed(x), want)


def test_a_transformer_with_its_three_stacked_matrices():
    model = nn.TransformerEncoderLayer(8, 2, 16, dropout=0, batch_first=True, dtype=torch.float64)
    x = normal(2, 5, 8)
    before = model(x)
    stacked = model.self_attn.in_proj_weight.detach().clone()
    same = SigmaReparam(copy.deepcopy(model), gamma="sigma")
    torch.testing.assert_close(same(x), before, rtol=1e-10, atol=1e-10)
    wrapped = SigmaReparam(model)
    assert set(wrapped.norms()) == {
        "self_attn.in_proj_weight",
        "self_attn.out_proj.weight",
        "linear1.weight",
        "linear2.weight",
    }
    for new, old in zip(model.self_attn.in_proj_weight.chunk(3), stacked.chunk(3), strict=True):
        torch.testing.assert_close(new, old / norm(old), rtol=1e-10, atol=1e-12)  # each of q, k, v by itself
    wrapped(x).sum().backward()
    assert all(p.grad is not None for p in wrapped.parameters())
    want = wrapped.eval()(x)
    torch.testing.assert_close(wrapped.remove()(x), want, rtol=1e-10, atol=1e-12)


def test_which_chooses():
    model = nn.Sequential(linear(4, 4), nn.ReLU(), linear(3, 4))
    wrapped = SigmaReparam(model, which=lambda name, layer: name == "2")
    assert list(wrapped.norms()) == ["2.weight"]
    assert isinstance(model[0].weight, nn.Parameter)


def test_state_dict_round_trip():
    first, second = SigmaReparam(linear()), SigmaReparam(nn.Linear(5, 6, dtype=torch.float64), gamma="sigma")
    optimizer = torch.optim.SGD(first.parameters(), lr=0.3)
    x = normal(4, 5)
    for _ in range(3):
        optimizer.zero_grad()
        (first(x) ** 2).sum().backward()
        optimizer.step()
    assert not torch.equal(first(x), second(x))
    second.load_state_dict(first.state_dict())
    for _ in range(3):  # the state of the iteration is part of it
        assert torch.equal(first(x), second(x))
    assert torch.equal(copy.deepcopy(first)(x), first(x))


def test_a_tied_weight_is_left_to_the_other_layer():
    table, head = nn.Embedding(6, 4), nn.Linear(4, 6, bias=False)
    head.weight = table.weight
    before = table.weight.detach().clone()
    wrapped = SigmaReparam(head, gamma=0.5)
    want = wrapped.eval()(before)
    removed = wrapped.remove()
    assert torch.equal(table.weight, before)
    assert torch.equal(removed(before), want)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_estimates_in_float32(dtype):
    layer = linear(40, 30, torch.float32).to(dtype)
    exact = norm(layer.weight)
    wrapped = SigmaReparam(layer)
    ((sigma, _),) = wrapped.norms().values()
    assert sigma.dtype == torch.float32
    assert sigma.item() == pytest.approx(exact, rel=1e-6)
    out = wrapped(normal(3, 30, dtype=torch.float32).to(dtype))
    assert out.dtype == dtype
    # Converted after wrapping, u is rounded; one iteration brings back most: its error is squared in sigma.
    converted = SigmaReparam(linear(40, 30, torch.float32)).to(dtype)
    ((sigma, _),) = converted.norms().values()
    assert sigma.item() == pytest.approx(exact, rel=torch.finfo(dtype).eps ** 2 * 30 + 1e-6)


def test_autocast_does_not_touch_the_estimate():
    layer = linear(40, 30, torch.float32)
    want = norm(layer.weight)
    wrapped = SigmaReparam(layer)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        weight = layer.weight
        assert weight.dtype == torch.float32
        assert wrapped(normal(2, 30, dtype=torch.float32)).dtype == torch.bfloat16
    torch.testing.assert_close(weight * want, layer.parametrizations.weight.original, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12, 1e30])
def test_scales(scale):
    layer = linear(dtype=torch.float32)
    want = layer.weight.detach() / norm(layer.weight)
    with torch.no_grad():
        layer.weight.mul_(scale)
    SigmaReparam(layer)
    if scale > 1e-12:
        torch.testing.assert_close(layer.weight, want, rtol=20 * EPS32, atol=20 * EPS32)
    assert torch.isfinite(layer.weight).all()


def test_errors():
    with pytest.raises(ValueError, match="chosen"):
        SigmaReparam(nn.ReLU())
    with pytest.raises(ValueError, match="chosen"):
        SigmaReparam(linear(), which=lambda name, layer: False)
    for gamma in 0.0, -1.0, np.nan, np.inf, "one":
        with pytest.raises(ValueError, match=r"gamma|positive"):
            SigmaReparam(linear(), gamma=gamma)
    for value, words in (0.0, "zero"), (np.nan, "not finite"):
        layer = linear()
        nn.init.constant_(layer.weight, value)
        with pytest.raises(ValueError, match=words):
            SigmaReparam(nn.Sequential(linear(), layer))
    model = nn.Sequential(linear(), linear(5, 6))
    SigmaReparam(model[1])
    with pytest.raises(ValueError, match="already"):
        SigmaReparam(model)
    assert not parametrize.is_parametrized(model[0])  # all of them, or none
    with pytest.raises(ValueError, match="already"):
        SigmaReparam(parametrizations.weight_norm(linear()))
