"""Weight normalization, Weight Standardization and the compander: autograd, torch and closed forms as oracles."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from normkit.rates import weights as rw
from normkit.rng import stream

SHAPES = [(6, 5), (4, 3, 2, 2)]


def draw(name, *shape):
    return stream(0, "test_weights", name).normal(size=shape)


def tensor(name, *shape):
    return torch.from_numpy(draw(name, *shape)).requires_grad_()


# ---- weight normalization -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_weight_norm_is_torchs(shape):
    layer = nn.Linear(5, 6) if len(shape) == 2 else nn.Conv2d(3, 4, 2)
    layer = parametrizations.weight_norm(layer.double())
    both = layer.parametrizations.weight
    with torch.no_grad():
        both.original0.copy_(tensor("g", shape[0]).reshape(both.original0.shape))
        both.original1.copy_(tensor("v", *shape))
    torch.testing.assert_close(rw.weight_norm(tensor("v", *shape), tensor("g", shape[0])), layer.weight)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_weight_norm_gradients_are_autograds(shape, kind):
    v, g, grad_w = tensor("v", *shape), tensor("g", shape[0]), draw("grad", *shape)
    (rw.weight_norm(v, g) * torch.from_numpy(grad_w)).sum().backward()
    grad_v, grad_g = rw.weight_norm_gradients(kind(draw("v", *shape)), kind(draw("g", shape[0])), kind(grad_w))
    assert type(grad_v) is type(kind(grad_w))
    np.testing.assert_allclose(grad_v, v.grad, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(grad_g, g.grad, rtol=1e-12, atol=1e-14)


def test_weight_norm_rows_have_length_g_and_v_only_grows():
    v, g = draw("v", 6, 5), np.abs(draw("g", 6))
    w = rw.weight_norm(v, g)
    np.testing.assert_allclose(np.linalg.norm(w, axis=1), g, rtol=1e-14)
    np.testing.assert_allclose(rw.weight_norm(7 * v, g), w, rtol=1e-14)
    for step in range(20):  # |v_new|^2 = |v|^2 + lr^2 |grad_v|^2, because they are orthogonal
        grad_v, _ = rw.weight_norm_gradients(v, g, draw(f"grad {step}", 6, 5))
        np.testing.assert_allclose((v * grad_v).sum(1), 0, atol=1e-13)
        longer = v - 100.0 * grad_v
        np.testing.assert_allclose((longer**2).sum(1), (v**2).sum(1) + 1e4 * (grad_v**2).sum(1), rtol=1e-12)
        v = longer


@pytest.mark.parametrize(
    ("v", "g", "match"),
    [
        (np.ones(3), np.ones(3), "two axes"),
        (np.ones((3, 2)), np.ones(2), "g must have shape"),
        (np.array([[1.0, 2], [0, 0]]), np.ones(2), "row 1 of v is zero"),
        (np.array([[1.0, np.nan]]), np.ones(1), "v must be finite"),
        (np.ones((2, 2)), np.array([1, np.inf]), "g must be finite"),
    ],
)
def test_weight_norm_errors(v, g, match):
    with pytest.raises(ValueError, match=match):
        rw.weight_norm(v, g)
    with pytest.raises(ValueError, match=match):
        rw.weight_norm_gradients(v, g, np.ones_like(v))


def test_gradient_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="grad_w must have shape"):
        rw.weight_norm_gradients(np.ones((3, 2)), np.ones(3), np.ones((2, 3)))
    with pytest.raises(TypeError, match="floating"):
        rw.weight_norm(np.ones((3, 2), int), np.ones(3))


# ---- Weight Standardization -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_rows_are_standardized_with_the_unbiased_deviation_and_eps_outside(shape):
    w, eps = draw("w", *shape) * 3 + 1, 0.25
    flat = w.reshape(shape[0], -1)
    wanted = [(row - row.mean()) / (row.std(ddof=1) + eps) for row in flat]
    np.testing.assert_allclose(rw.weight_standardization(w, eps), np.reshape(wanted, shape), rtol=1e-12)
    module = rw.WeightStandardization(eps)(torch.from_numpy(w))
    np.testing.assert_allclose(module, np.reshape(wanted, shape), rtol=1e-12)
    exact = rw.weight_standardization(w, 0.0).reshape(shape[0], -1)
    np.testing.assert_allclose(exact.mean(1), 0, atol=1e-15)
    np.testing.assert_allclose(exact.std(1, ddof=1), 1, rtol=1e-14)


def test_standardization_ignores_scale_and_shift_of_rows_and_so_its_gradient_is_orthogonal_to_both():
    w = tensor("w", 6, 5)
    scale, shift = torch.from_numpy(np.exp(draw("scale", 6, 1))), torch.from_numpy(draw("shift", 6, 1))
    torch.testing.assert_close(rw.weight_standardization(scale * w + shift, 0.0), rw.weight_standardization(w, 0.0))
    (rw.WeightStandardization(eps=0.0)(w) * torch.from_numpy(draw("grad", 6, 5))).sum().backward()
    assert w.grad.norm() > 1
    torch.testing.assert_close((w.grad * w).sum(1), torch.zeros(6).double(), rtol=0, atol=1e-14)
    torch.testing.assert_close(w.grad.sum(1), torch.zeros(6).double(), rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("w", "eps", "match"),
    [
        (np.ones(4), 1e-5, "two axes"),
        (np.ones((4, 1)), 1e-5, "fan-in"),
        (np.array([[1.0, 2], [0.1, 0.1]]), 1e-5, "row 1 of w has equal numbers"),
        (np.array([[1.0, np.inf]]), 1e-5, "finite"),
        (np.array([[1.0, 2]]), -1.0, "eps"),
        (np.array([[1.0, 2]]), "small", "eps"),
    ],
)
def test_standardization_errors(w, eps, match):
    with pytest.raises(ValueError, match=match):
        rw.weight_standardization(w, eps)


def test_an_eps_below_zero_is_refused_by_the_module_too():
    with pytest.raises(ValueError, match="eps"):
        rw.WeightStandardization(-1e-5)


def net():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5)).double()
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.copy_(torch.from_numpy(draw(f"net {i}", *p.shape)))
    return model, torch.from_numpy(draw("images", 7, 1, 4, 4))


def train(model, x, steps=5):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        (model(x) - 1).square().mean().backward()
        optimizer.step()


def test_standardize_weights_registers_learns_and_is_removed_without_a_trace():
    model, x = net()
    before, original = model(x), model[0].weight.detach().clone()
    assert rw.standardize_weights(model, ["0"]) == ["0"]
    assert not parametrize.is_parametrized(model[4])
    assert not torch.allclose(model(x), before)
    assert torch.equal(model[0].parametrizations.weight.original, original)
    train(model, x)
    assert not torch.allclose(model[0].parametrizations.weight.original, original)
    learned = model(x)
    parametrize.remove_parametrizations(model[0], "weight")
    torch.testing.assert_close(model(x), learned, rtol=1e-12, atol=1e-13)
    assert "eps=1e-05" in repr(rw.WeightStandardization())
    assert {name for name, _ in model.named_parameters()} == {n for n, _ in net()[0].named_parameters()}


def test_standardized_state_dict_loads_and_assignment_sets_what_learns():
    model, x = net()
    assert rw.standardize_weights(model) == ["0", "4"]
    train(model, x)
    other, _ = net()
    rw.standardize_weights(other)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(x), model(x))
    other[4].weight = torch.from_numpy(draw("new", 5, 16))
    torch.testing.assert_close(other[4].weight, torch.from_numpy(rw.weight_standardization(draw("new", 5, 16))))


REGISTER = pytest.mark.parametrize("register", [rw.standardize_weights, rw.compand_weights])


@REGISTER
def test_what_cannot_be_registered_is_named(register):
    model, _ = net()
    with pytest.raises(ValueError, match="'1' is no Linear or Conv layer"):
        register(model, ["1"])
    with pytest.raises(ValueError, match="no layer"):
        register(nn.ReLU())
    register(model, ["0"])
    with pytest.raises(ValueError, match="already"):
        register(model, ["4", "0"])
    assert not parametrize.is_parametrized(model[4])  # all checks come first
    with torch.no_grad():
        model[4].weight.zero_()
    with pytest.raises(ValueError, match=r"equal numbers|zero"):
        register(model, ["4"])


# ---- the compander --------------------------------------------------------------------------------------------------

ABC = [(1.0, 1.0, 1.0), (0.7, 2.0, 2.0), (3.0, 0.5, 4.0)]


@pytest.mark.parametrize("abc", ABC)
@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_compander_is_odd_bounded_increasing_and_inverted(abc, kind):
    positive = np.linspace(0, 4, 401)[1:] * abc[1]
    v = kind(np.concatenate([-positive[::-1], [0.0], positive]))
    w = rw.compander(v, *abc)
    assert type(w) is type(v)
    w = np.asarray(w)
    assert (np.diff(w) > 0).all() and (np.abs(w) < abc[0]).all()
    np.testing.assert_array_equal(w, -w[::-1])
    # tanh(4) = 0.9993: its inverse magnifies rounding by cosh(4)^2 = 750, the power by at most eps^(1 - 1/c) < 1e3
    np.testing.assert_allclose(rw.compander_inverse(kind(w), *abc), v, rtol=1e-11, atol=1e-13)


def test_compander_without_eps_is_a_power_of_tanh_and_c_1_is_tanh():
    v = np.abs(draw("v", 50))
    np.testing.assert_allclose(rw.compander(v, 2.0, 3.0, 4.0, 0.0), 2 * np.tanh(v / 3) ** 0.25, rtol=1e-13)
    np.testing.assert_allclose(rw.compander(-v, 2.0, 3.0, 1.0, 0.1), -2 * np.tanh(v / 3), rtol=1e-13)
    np.testing.assert_allclose(rw.compander(v, 2e6, 1e6, 1.0), 2 * v, rtol=1e-9)  # wide: linear


@pytest.mark.parametrize("abc", ABC)
def test_slope_at_zero_is_the_documented_one_and_autograd_sees_it(abc):
    a, b, c = abc
    eps = 1e-3
    v = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    rw.compander(v, a, b, c, eps).sum().backward()
    slope = a / (b * c) * eps ** (1 / c - 1) / ((1 + eps) ** (1 / c) - eps ** (1 / c))
    assert v.grad.item() == pytest.approx(slope, rel=1e-12)
    assert (slope > 5 * a / b) == (c > 1)  # steep


def test_module_gradients_match_finite_differences():
    module = rw.WeightCompander(0.7, 2.0, 2.0).double()
    v = tensor("v", 3, 4)
    assert torch.autograd.gradcheck(
        lambda v, p: torch.func.functional_call(module, {"log_abc": p}, v), (v, module.log_abc)
    )


def test_compand_weights_changes_nothing_learns_its_parameters_and_is_removed_without_a_trace():
    model, x = net()
    before = model(x)
    assert rw.compand_weights(model, room=1.5, c=3.0) == ["0", "4"]
    torch.testing.assert_close(model(x), before, rtol=1e-10, atol=1e-12)
    module = model[4].parametrizations.weight[0]
    start = module.log_abc.detach().clone()
    assert "c=3" in repr(module)
    train(model, x)
    assert (module.log_abc != start).all()
    assert (model[4].weight.abs() < module.abc[0]).all()
    learned = model(x)
    for layer in (model[0], model[4]):
        parametrize.remove_parametrizations(layer, "weight")
    torch.testing.assert_close(model(x), learned, rtol=1e-12, atol=1e-13)


def test_fixed_parameters_do_not_learn():
    model, x = net()
    rw.compand_weights(model, ["4"], learnable=False)
    start = model[4].parametrizations.weight[0].log_abc.clone()
    train(model, x)
    assert torch.equal(model[4].parametrizations.weight[0].log_abc, start)


@pytest.mark.parametrize("name", ["a", "b", "c", "eps"])
@pytest.mark.parametrize("value", [-0.0, -1.0, math.nan, math.inf, "1", None, np.ones(2)])
def test_the_compander_itself_refuses_impossible_parameters(name, value):
    if name == "eps" and isinstance(value, float) and value == 0:
        return  # the plain power: allowed
    for function in rw.compander, rw.compander_inverse:
        with pytest.raises(ValueError, match=f"{name} must be a finite number >"):
            function(np.array([0.1, 0.2]), **{"a": 1.0, "b": 1.0, "c": 2.0, name: value})


def test_compander_errors():
    with pytest.raises(ValueError, match="enlarge a"):
        rw.compander_inverse(np.array([0.1, -1.0]), 1.0, 1.0, 2.0)
    with pytest.raises(ValueError, match="finite"):
        rw.compander_inverse(np.array([0.1, np.nan]), 1.0, 1.0, 2.0)
    with pytest.raises(ValueError, match="room"):
        rw.compand_weights(net()[0], room=1.0)
    for name, value in (("a", 0.0), ("b", -1.0), ("c", 0.5), ("eps", 0.0), ("a", math.inf), ("c", math.nan)):
        with pytest.raises(ValueError, match=f"{name} must be"):
            rw.WeightCompander(**{name: value})
