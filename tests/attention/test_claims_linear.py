"""The claims about linear attention: signs on cases whose answer is known, and that each one measures what it says."""

import math
import re

import numpy as np
import pytest

from normkit.attention import claims_linear as C
from normkit.ledger import Claim

CLAIMS = {c.id: c for c in vars(C).values() if isinstance(c, Claim)}


def values(id, seed=0):
    sample = np.atleast_1d(CLAIMS[id].sample(seed))
    assert sample.shape == (len(CLAIMS[id].regimes),)
    return sample


def inside(id, seed=0):
    low, high = CLAIMS[id].region
    return ((low < values(id, seed)) & (values(id, seed) < high)).tolist()


def test_definitions_are_complete():
    papers = [c.arxiv for c in CLAIMS.values()]
    assert {p: papers.count(p) for p in papers} == {"2506.21137": 4, "2601.22630": 5, "2405.11582": 4}
    for c in CLAIMS.values():
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", c.id)
        assert c.budget_s <= 30


def test_inputs_are_unit_queries_and_their_own_for_each_seed():
    q, k, v = C.inputs(3)
    np.testing.assert_allclose(np.linalg.norm(q, axis=-1), 1, rtol=1e-12)
    assert q.shape == k.shape == v.shape == (64, 16)
    assert not np.allclose(C.inputs(4)[1], k)
    np.testing.assert_array_equal(C.inputs(3)[2], v)


def test_entropy_of_known_weights(monkeypatch):
    from normkit.attention import linear

    monkeypatch.setattr(linear, "weights", lambda q, k, kind: np.array([[0.5, 0.5, 0], [1, 0, 0]]))
    assert C.entropy(0, "relu", 1.0) == pytest.approx(math.log(2) / 2)


def test_claims_on_entropies_have_the_documented_signs(monkeypatch):
    table = {
        "relu": lambda n: 3.0,
        "elu": lambda n: 4.0 - 0.1 * n,
        "nala": lambda n: 3 - n / 100,
        "softmax": lambda n: 4 - n / 5,
    }
    monkeypatch.setattr(C, "entropy", lambda seed, kind, norm: table[kind](norm))
    np.testing.assert_allclose(values("linear-attention-ignores-query-norm"), [0, np.log(3.2 / 3.95)])
    assert inside("linear-attention-ignores-query-norm") == [True, False]
    np.testing.assert_allclose(
        values("nala-entropy-falls-with-query-norm"), np.log([2.99 / 2.9975, 2.96 / 2.99, 2.84 / 2.96])
    )
    assert all(inside("nala-entropy-falls-with-query-norm"))
    # |3 - n/100 - 4 + n/5| over |3 - 4 + n/5| at 1, 4 and 16
    np.testing.assert_allclose(values("nala-closes-entropy-gap"), np.log([0.81 / 0.8, 0.24 / 0.2, 2.04 / 2.2]))
    assert inside("nala-closes-entropy-gap") == [False, False, True]


def test_cheap_claims_are_measured():
    relu, elu = values("linear-attention-ignores-query-norm")
    assert abs(relu) < 1e-12 < abs(elu)
    assert (values("nala-entropy-falls-with-query-norm") < 0).all()
    assert (values("only-subtraction-feels-query-norm") > math.log(100)).all()
    negative = values("subtraction-goes-negative")
    assert 0 <= negative[0] <= negative[1] < negative[2] < 0.5
    q, k, _ = C.inputs(0)
    products = np.maximum(16 * q, 0) @ np.maximum(k, 0).T / 4  # s phi(q).phi(k), s = 1/sqrt(16)
    assert negative[2] == (1 + products - products.mean(-1, keepdims=True) < 0).mean()


def test_claims_on_training_have_the_documented_signs(monkeypatch):
    recalls = {("nala", 8): 0.5, ("nala", 16): 2.0, ("relu", 8): 1.0, ("relu", 16): 1.0}
    monkeypatch.setattr(C, "recalled", lambda kind, width, lr, seed: recalls[kind, width])
    np.testing.assert_allclose(values("nala-recalls-better"), np.log([0.5, 2, 2]))
    assert inside("nala-recalls-better") == [True, False, False]

    losses = {("division", 8): 0.6, ("division", 32): 0.4, ("subtraction", 8): 0.5, ("subtraction", 32): 0.5}
    gates = {8: 0.9, 32: 1.1}

    def patches(kind, task, width, gate, seed):
        sign = 1 if task == "generate" else -1
        return losses[kind, width] ** sign * (gates[width] if gate else 1)

    monkeypatch.setattr(C, "patches", patches)
    assert values("division-scales-better-for-generation") == pytest.approx(np.log((0.4 / 0.5) / (0.6 / 0.5)))
    assert inside("division-scales-better-for-generation") == [True]
    np.testing.assert_allclose(values("subtraction-good-for-classification"), np.log([0.6 / 0.5, 0.4 / 0.5]))
    assert inside("subtraction-good-for-classification") == [False, True]
    np.testing.assert_allclose(values("kv-gate-lowers-loss"), np.log([0.9, 1.1]))
    assert inside("kv-gate-lowers-loss") == [True, False]


class Found:
    def __init__(self, loss, accuracy):
        self.loss, self.accuracy = loss, accuracy


def test_claims_on_norms_have_the_documented_signs(monkeypatch):
    found = {"layernorm": Found(0.4, 0.9), "prepbn": Found(0.2, 0.895), "batchnorm": Found(0.1, 0.95)}
    monkeypatch.setattr(C, "on_digits", lambda norm, attention, lr, seed: found[norm])
    np.testing.assert_allclose(values("prepbn-as-good-as-layernorm"), [-0.005] * 3)
    assert all(inside("prepbn-as-good-as-layernorm"))
    np.testing.assert_allclose(values("batchnorm-needs-the-progress"), [np.log(2)] * 3)
    assert not any(inside("batchnorm-needs-the-progress"))


def test_regimes_reach_the_training(monkeypatch):
    pytest.importorskip("torch")
    from normkit.attention import linear_toys, slab

    asked = []
    monkeypatch.setattr(linear_toys, "recall", lambda *a, **k: asked.append((a, k)) or 1.0)
    monkeypatch.setattr(linear_toys, "train_patches", lambda *a, **k: asked.append((a, k)) or 1.0)
    monkeypatch.setattr(slab, "train_digits", lambda *a, **k: asked.append((a, k)) or Found(1.0, 1.0))
    for cached in (C.recalled, C.patches, C.on_digits):
        cached.cache_clear()
    values("nala-recalls-better", 990)
    assert asked == [
        ((kind,), {"width": width, "lr": lr, "seed": 990}) for width, lr in C.RECALLS for kind in ("nala", "relu")
    ]
    asked.clear()
    values("kv-gate-lowers-loss", 990)
    assert [k["gate"] for _, k in asked] == [True, False, True, False]
    assert {k["task"] for _, k in asked} == {"generate"}
    values("division-scales-better-for-generation", 990)
    assert len(asked) == 6  # the runs of division are shared
    asked.clear()
    values("batchnorm-needs-the-progress", 990)
    values("prepbn-as-good-as-layernorm", 990)
    assert len(asked) == 9
    assert {(k["attention"], k["lr"]) for _, k in asked} == set(C.DIGITS)
    for cached in (C.recalled, C.patches, C.on_digits):
        cached.cache_clear()  # no stand-ins left behind


def test_fusing_is_measured_on_the_trained_net(monkeypatch):
    torch = pytest.importorskip("torch")
    from normkit.attention.slab import train_digits

    trained = {norm: train_digits(norm, steps=4) for norm in ("prepbn", "layernorm")}
    monkeypatch.setattr(C, "on_digits", lambda norm, attention, lr, seed: trained[norm])
    assert 0 < values("prepbn-fuses")[0] < 1e-5
    broken = trained["prepbn"].model.fused()
    with torch.no_grad():
        broken.head.bias += 1
    monkeypatch.setattr(trained["prepbn"].model, "fused", lambda: broken)
    assert values("prepbn-fuses")[0] > 1e-3
    assert np.isfinite(values("fused-norms-are-faster")).all()


def test_shortest_times_take_turns():
    torch = pytest.importorskip("torch")
    calls = []
    models = [lambda x, i=i: calls.append(i) for i in range(2)]
    times = C.shortest(models, torch.zeros(1), times=3)
    assert calls == [0, 1] * 3
    assert times.shape == (2,) and (times >= 0).all()
