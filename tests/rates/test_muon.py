"""MuonPP against NumPy's SVD written out, torch's own Muon where the two agree, and the common optimizer test."""

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import optimizer_contract as contract  # noqa: E402

from normkit.rates.muon import MuonPP  # noqa: E402
from normkit.rates.spectral import MUON, singular_value_map  # noqa: E402
from normkit.rng import stream  # noqa: E402


def attach(model, lr):
    return [MuonPP([p for p in model.parameters() if p.ndim > 1], lr=lr, weight_decay=0.1)]


@pytest.mark.parametrize("check", contract.ATTACHED)
def test_contract(check):
    check(attach)


def weight(*shape, seed=0):
    return torch.nn.Parameter(torch.from_numpy(stream(seed, "weight", *shape).normal(size=shape)))


def feed(optimizer, w, steps):
    for t in range(steps):
        w.grad = torch.from_numpy(stream(t, "gradient", *w.shape).normal(size=tuple(w.shape)))
        optimizer.step()


@pytest.mark.parametrize("shape", [(6, 6), (8, 3), (3, 8), (4, 2, 3, 3)])
@pytest.mark.parametrize("nesterov", [True, False])
def test_the_update_by_svd(shape, nesterov):
    w = weight(*shape)
    expected, buffer = w.detach().numpy().copy().reshape(shape[0], -1), 0.0
    feed(MuonPP([w], lr=0.05, momentum=0.9, weight_decay=0.2, nesterov=nesterov), w, 4)
    for t in range(4):
        g = stream(t, "gradient", *shape).normal(size=shape).reshape(shape[0], -1)
        buffer = 0.9 * buffer + 0.1 * g
        u, s, vt = np.linalg.svd(0.9 * buffer + 0.1 * g if nesterov else buffer, full_matrices=False)
        o = (u * singular_value_map(s / (np.linalg.norm(s) + 1e-7))) @ vt
        expected = (1 - 0.05 * 0.2) * expected - 0.05 * math.sqrt(o.shape[0] / o.shape[1]) * o
    np.testing.assert_allclose(w.detach().numpy().reshape(shape[0], -1), expected, rtol=1e-9, atol=1e-11)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch.optim.Muon came with torch 2.9")
@pytest.mark.parametrize("shape", [(6, 6), (12, 5)])
def test_torch_muon_where_the_shape_factors_agree(shape):
    ours, theirs = weight(*shape), weight(*shape)
    feed(MuonPP([ours], lr=0.05, weight_decay=0.1), ours, 5)
    feed(torch.optim.Muon([theirs], lr=0.05, weight_decay=0.1, ns_coefficients=MUON), theirs, 5)
    # torch iterates in bfloat16, 8 bits: each update of norm lr sqrt(shape) is off by a few hundredths of itself
    error = (ours - theirs).norm() / (5 * 0.05 * math.sqrt(shape[0] / shape[1]) * math.sqrt(min(shape)))
    assert error < 0.05


def test_the_shape_factor_is_muPs_for_wide_matrices_too():
    w = weight(4, 64)
    start = w.detach().clone()
    feed(MuonPP([w], lr=1.0), w, 1)
    assert 0.6 / 4 < torch.linalg.matrix_norm(w.detach() - start, ord=2) < 1.2024 / 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "lr"),
        ({"momentum": 1.0}, "momentum"),
        ({"weight_decay": math.nan}, "weight_decay"),
        ({"steps": -1}, "steps"),
    ],
)
def test_refused_hyperparameters(options, message):
    with pytest.raises(ValueError, match=message):
        MuonPP([weight(2, 2)], **options)


def test_vectors_are_refused_with_advice_and_leave_the_optimizer_as_it_was():
    optimizer = MuonPP([weight(2, 2)])
    with pytest.raises(ValueError, match=r"shape \(3,\).*AdamW"):
        optimizer.add_param_group({"params": [weight(3)]})
    with pytest.raises(ValueError, match="not empty"):
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(0, 3))]})
    assert len(optimizer.param_groups) == 1


def test_refused_types():
    with pytest.raises(TypeError, match="real floating"):
        MuonPP([torch.zeros(2, 2, dtype=torch.complex64, requires_grad=True)])
    w = weight(2, 2)
    w.grad = torch.zeros(2, 2, dtype=torch.float64).to_sparse()
    before = w.detach().clone()
    with pytest.raises(TypeError, match="sparse"):
        MuonPP([w]).step()
    assert torch.equal(w, before)


def test_groups_keep_their_own_rate():
    moving, still = weight(3, 3), weight(3, 3)
    optimizer = MuonPP([moving])
    optimizer.add_param_group({"params": [still], "lr": 0.0})
    before = still.detach().clone()
    for w in (moving, still):
        w.grad = torch.ones_like(w)
    optimizer.step()
    assert torch.equal(still, before) and not torch.equal(moving, before)
