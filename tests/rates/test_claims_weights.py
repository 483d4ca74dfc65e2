"""Claims on optimizers, weights and hypernetworks: statistics where the answer is known, and which way each points."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from normkit.ledger import Claim
from normkit.rates import claims_hypernetwork, claims_weights
from normkit.rates.training import OPTIMIZERS, Net, data
from normkit.rng import stream

CLAIMS = [c for m in (claims_weights, claims_hypernetwork) for c in vars(m).values() if isinstance(c, Claim)]


def inside(claim, values):
    low, high = claim.region
    assert len(values) == len(claim.regimes)
    return [low < v < high for v in values]


def test_each_paper_has_two_to_four_claims():
    papers = [c.arxiv for c in CLAIMS]
    assert {p: papers.count(p) for p in papers} == {"2006.08217": 4, "1903.10520": 3, "2306.16993": 3, "2304.07645": 4}
    assert len({c.id for c in CLAIMS}) == len(CLAIMS)


# ---- which way each claim points: a world in which the paper is right, and its mirror image --------------------------


def worlds(monkeypatch, module, name, right):
    """Put fakes in the place of a cached run: `right(*arguments)` and, second, the same upside down (1 / value)."""
    fakes = iter((lambda *a: right(1, *a), lambda *a: right(-1, *a)))

    def enter():
        monkeypatch.setattr(module, name, next(fakes))

    return enter


LAYERNORM_RUNS = {"momentum": 2.0, "sgd": 1.0, "adam": 2.0, "sgdp": 1.0, "adamp": 1.0}


@pytest.mark.parametrize("name", ["momentum_lengthens", "projection_slows", "projection_helps"])
def test_direction_of_the_claims_on_projection(monkeypatch, name):
    claim = getattr(claims_weights, name)

    def run(sign, optimizer, lr, seed):
        value = LAYERNORM_RUNS[optimizer] ** sign
        return SimpleNamespace(growth=value, test=value)

    enter = worlds(monkeypatch, claims_weights, "layernorm_run", run)
    enter()
    assert all(inside(claim, claim.sample(1)))
    assert np.abs(claim.sample(1)) == pytest.approx(math.log(2))
    enter()
    assert not any(inside(claim, claim.sample(1)))


@pytest.mark.parametrize(("name", "power"), [("bn_fails", 2), ("ws_helps", 1)])
def test_direction_of_the_claims_on_micro_batches(monkeypatch, name, power):
    claim = getattr(claims_weights, name)

    def run(sign, kind, lr, batch, seed):
        return SimpleNamespace(test={"bn": 4.0, "gn": 1.0, "ws+gn": 0.5}[kind] ** sign)

    enter = worlds(monkeypatch, claims_weights, "micro_batch_run", run)
    enter()
    assert all(inside(claim, claim.sample(1)))
    assert np.abs(claim.sample(1)) == pytest.approx(power * math.log(2))
    enter()
    assert not any(inside(claim, claim.sample(1)))


def test_direction_of_the_claim_on_smoothness(monkeypatch):
    claim = claims_weights.ws_smooths

    def run(sign, standardized, steps, seed):
        factor = 0.5**sign if standardized else 1.0
        return factor * (2 + steps), factor * (3 + steps)

    enter = worlds(monkeypatch, claims_weights, "group_roughness", run)
    enter()
    assert all(inside(claim, claim.sample(1)))
    assert claim.sample(1) == pytest.approx(-math.log(2))
    enter()
    assert not any(inside(claim, claim.sample(1)))


@pytest.mark.parametrize("name", ["compander_restricts", "compander_leaves_zero", "compander_overfits_less"])
def test_direction_of_the_claims_on_the_compander(monkeypatch, name):
    claim = getattr(claims_weights, name)
    spread, tight = np.abs(stream(0, "normal").normal(size=1000)), np.full(1000, 0.5)

    def run(sign, companded, lr, weight_decay, seed):
        return (0.5, tight) if companded == (sign == 1) else (1.0, spread)

    enter = worlds(monkeypatch, claims_weights, "overfitted_run", run)
    enter()
    assert all(inside(claim, claim.sample(1)))
    enter()
    assert not any(inside(claim, claim.sample(1)))


@pytest.mark.parametrize("name", ["mip_faster", "halves_help"])
def test_direction_of_the_claims_on_mip(monkeypatch, name):
    claim = getattr(claims_hypernetwork, name)

    def run(sign, encoded, residual, lr, seed):
        loss = 0.5 ** (sign * (encoded + residual))
        return SimpleNamespace(losses=(3 * loss, loss), loss=loss)

    enter = worlds(monkeypatch, claims_hypernetwork, "toy_run", run)
    enter()
    assert all(inside(claim, claim.sample(1)))
    enter()
    assert not any(inside(claim, claim.sample(1)))


# ---- statistics -------------------------------------------------------------------------------------------------------


def test_growth_is_the_sum_of_squared_steps_for_sgd_and_19_times_that_for_momentum():
    """SGD on scale-invariant matrices: Pythagoras, to float32's rounding of 60 steps. Momentum: O6 with equal lengths,
    (T + 2 sum_{k<t<T} beta^(t-k)) / T, 13 % below 19 at T = 60; real lengths differ by tens of percent."""
    net = Net("layernorm", seed=3)
    run = claims_weights.fit(net, OPTIMIZERS["sgd"](net.parameters(), lr=0.5, weight_decay=0.0), 3, 60)
    assert run.growth > 0.1
    assert run.growth / run.moved == pytest.approx(1, rel=1e-3)
    net = Net("layernorm", seed=3)
    run = claims_weights.fit(net, OPTIMIZERS["momentum"](net.parameters(), lr=0.1, weight_decay=0.0), 3, 60)
    equal = 1 + 2 * sum(0.9 ** (t - k) for t in range(60) for k in range(t)) / 60
    assert equal == pytest.approx(16.0, abs=0.5)
    assert run.growth / run.moved == pytest.approx(equal, rel=0.3)


def test_fit_learns_repeats_and_tests_on_what_it_has_not_seen():
    runs = []
    for _ in range(2):
        net = Net("layernorm", seed=3)
        runs.append(claims_weights.fit(net, torch.optim.Adam(net.parameters(), lr=1e-2), 3, 60))
        _, y, test_x, test_y = data()
        with torch.no_grad():
            assert runs[-1].test == nn.functional.cross_entropy(net(test_x), test_y).item()
    assert runs[0] == runs[1]
    assert runs[0].test < 0.6 < math.log(10) + 1 > runs[0].loss > runs[0].test
    few = claims_weights.fit(Net(seed=3), torch.optim.Adam(Net(seed=4).parameters()), 3, 1, labels=y[:5] * 0 + 7)
    assert few.growth == 0  # the optimizer had another net's weights


def test_batchnorm_is_tested_with_its_running_statistics():
    net = claims_weights.make_net("bn", 3)
    run = claims_weights.fit(net, torch.optim.SGD(net.parameters(), lr=0.03), 3, 20, batch=2)
    _, _, test_x, test_y = data()
    with torch.no_grad():
        assert run.test == nn.functional.cross_entropy(net.eval()(test_x), test_y).item()
        assert run.test != nn.functional.cross_entropy(net.train()(test_x), test_y).item()


def test_nets_have_the_norms_and_the_weights_that_their_names_say():
    kinds = {kind: claims_weights.make_net(kind, 5) for kind in ("bn", "gn", "ws+gn")}
    assert {kind: type(net.norms[1]) for kind, net in kinds.items()} == {
        "bn": nn.BatchNorm1d,
        "gn": nn.GroupNorm,
        "ws+gn": nn.GroupNorm,
    }
    standardized = {kind: parametrize.is_parametrized(net.hidden[1]) for kind, net in kinds.items()}
    assert standardized == {"bn": False, "gn": False, "ws+gn": True}
    assert not parametrize.is_parametrized(kinds["ws+gn"].head)
    raw = kinds["ws+gn"].hidden[0].parametrizations.weight.original
    assert torch.equal(raw, kinds["gn"].hidden[0].weight)  # all start from the same weights


@pytest.mark.parametrize("standardized", [False, True])
def test_roughness_does_not_see_the_scale_of_the_hidden_weights(standardized):
    plain, scaled = (claims_weights.group_net(2, standardized) for _ in range(2))
    with torch.no_grad():
        for name, p in scaled.named_parameters():
            if name.startswith("hidden"):
                p.mul_(4.0)
    # the eps of GroupNorm, 1e-5 of a variance of about 1, and of WS are all that sees it; float32 differences 1e-3
    assert claims_weights.roughness(scaled) == pytest.approx(claims_weights.roughness(plain), rel=5e-3)


def test_roughness_of_the_loss_is_its_slope():
    net = claims_weights.group_net(2, False)
    x, y, _, _ = data()
    weights = [layer.weight for layer in net.hidden]
    grads = torch.autograd.grad(nn.functional.cross_entropy(net(x), y), weights)
    size, slope = (math.sqrt(sum(t.square().sum().item() for t in some)) for some in (weights, grads))
    assert claims_weights.roughness(net)[0] == pytest.approx(size * slope, rel=1e-5)


def test_off_zero_of_normal_and_of_two_valued_weights():
    p, n = math.erf(0.1 / math.sqrt(2)), 100_000
    found = claims_weights.off_zero(np.abs(stream(0, "off zero").normal(size=n)))
    assert found == pytest.approx(p, abs=4 * math.sqrt(p / n))
    assert claims_weights.off_zero(np.full(9, 3.0)) == 0


def test_overfitted_run_has_wrong_labels_and_the_compander_its_bound(monkeypatch):
    seen = []

    def look(net, optimizer, seed, steps, labels):
        decays = {p.ndim: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
        seen.append((labels, decays, parametrize.is_parametrized(net.hidden[0])))
        return SimpleNamespace(test=1.5)

    monkeypatch.setattr(claims_weights, "fit", look)
    for companded in (False, True):
        test, weights = claims_weights.overfitted_run.__wrapped__(companded, 1e-2, 0.1, 7)
        assert test == 1.5 and weights.shape == (2 * 64 * 64,) and (weights >= 0).all()
    (labels, decays, plain), (again, _, reparametrized) = seen
    assert not plain and reparametrized and decays == {2: 0.1, 1: 0.0}
    assert torch.equal(labels, again)
    wrong = (labels != data()[1][:200]).sum().item()
    # 40 labels drawn anew from 10: 36 wrong, give or take 4 standard deviations of 1.9
    assert abs(wrong - 36) < 8 and torch.equal(labels[40:], data()[1][40:200])


class Power(nn.Module):
    """Predicts weights of deviation z^p."""

    def __init__(self, p):
        super().__init__()
        self.p = p

    def predict(self, z):
        return {"a": z**self.p * torch.tensor([1.0, -1.0, 2.0]), "b": z[:, :, None] ** self.p * torch.ones(2, 2)}


@pytest.mark.parametrize("p", [0.0, 1.0, 2.5])
def test_magnitude_exponent_is_that_of_the_power_law(p):
    assert claims_hypernetwork.magnitude_exponent(Power(p)) == pytest.approx(p, abs=1e-5)


def test_exponents_of_fresh_hypernetworks(monkeypatch):
    """The plain one is homogeneous: 1. The one after training comes second."""
    monkeypatch.setattr(claims_hypernetwork, "toy_run", lambda *_: SimpleNamespace(model=Power(3.0)))
    assert claims_hypernetwork.plain_proportional.sample(4) == pytest.approx([1.0, 3.0], abs=1e-4)
    fresh, _ = claims_hypernetwork.mip_invariant.sample(4)
    assert abs(fresh) < 0.5
