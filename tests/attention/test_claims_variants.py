"""The claims' statistics on cases whose answer is known, and that every one of them is measured."""

import re

import numpy as np
import pytest
import torch

from normkit.attention import claims_variants as C
from normkit.ledger import Claim
from normkit.rng import stream

CLAIMS = {c.id: c for c in vars(C).values() if isinstance(c, Claim)}


def values(id, seed=0):
    sample = np.atleast_1d(CLAIMS[id].sample(seed))
    assert sample.shape == (len(CLAIMS[id].regimes),)
    return sample


def inside(id):
    low, high = CLAIMS[id].region
    return ((low < values(id)) & (values(id) < high)).tolist()


@pytest.fixture
def runs(monkeypatch):
    """Sets what training gives: (losses, gradient norms, weights) for each variant."""
    return lambda **arms: monkeypatch.setattr(C, "trained", lambda variant, task, lr, seed: arms[variant])


def run(loss=1.0, norms=(1.0, 2.0), rows=((0.5, 0.5),)):
    """A run with constant loss, alternating norms and the same weights in each layer, batch and head."""
    weights = np.broadcast_to(np.array(rows, float), (2, 3, 2, len(rows), len(rows[0])))
    return np.full(C.STEPS, loss), np.resize(np.array(norms), C.STEPS), weights


def test_definitions_are_complete():
    assert len(CLAIMS) == 9
    for c in CLAIMS.values():
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", c.id)
        assert c.arxiv in ("2602.23057", "2504.12588")
        assert 5 <= c.seeds <= 40


def test_mass(runs):
    steady, wide = [[0.5, 0.5], [0.4, 0.6]], [[0.5, 0.5], [0.1, 0.1]]
    runs(affine=run(rows=wide), sink=run(rows=steady))
    assert values("affine-mass-adapts-to-query")[2:] == pytest.approx([0.4] * 3)  # sums 1 and 0.2, against 1 and 1
    runs(affine=run(rows=steady), sink=run(rows=wide))
    assert values("affine-mass-adapts-to-query")[2:] == pytest.approx([-0.4] * 3)
    # without a mask every row of Affine-Scaled attention has one sum, and a sink's rows differ
    assert values("affine-mass-adapts-to-query")[0] < -1e-6


def test_entropy_and_loss(runs):
    flat, sharp = [[0.2, 0.2]], [[0.5, 0.0]]
    runs(affine=run(0.5, rows=flat), plain=run(1.0, rows=sharp), sink=run(0.25, rows=flat))
    assert values("affine-higher-entropy") == pytest.approx([np.log(2), 0] * 3, abs=1e-12)
    assert values("affine-lower-loss") == pytest.approx([np.log(0.5), np.log(2)] * 3)
    assert inside("affine-lower-loss") == [True, False] * 3
    signed = run(rows=[[0.5, -0.5]])
    runs(affine=signed, plain=run(rows=sharp), sink=signed)
    assert values("affine-higher-entropy") == pytest.approx([np.log(2), 0] * 3, abs=1e-12)


def test_gradients(runs):
    runs(affine=run(norms=(2.0, 4.0)), plain=run(norms=(1.0, 3.0)))  # std/mean 1/3 and 1/2
    assert values("affine-steadier-gradients") == pytest.approx([np.log(2 / 3)] * 3)
    assert all(inside("affine-steadier-gradients"))


def test_trained_is_measured():
    """A short check of the real thing: shapes, causality, and that nothing is shared between arms but seed and data."""
    losses, norms, weights = C.trained("affine", "copy", 3e-3, 0)
    assert losses.shape == norms.shape == (C.STEPS,)
    assert weights.shape == (C.LAYERS, 32, 2, C.TOKENS, C.TOKENS)
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]
    assert (norms > 0).all()
    assert (np.triu(weights, 1) == 0).all()
    sink = C.trained("sink", "copy", 3e-3, 0)
    assert sink[2].sum(-1).max() < 1
    assert not np.array_equal(sink[0], losses)


def test_distance_and_nearest():
    slopes = values("sl2-is-squared-distance")
    assert slopes[:2] == pytest.approx([1, 1], rel=1e-9)
    assert all(abs(s - 1) > 1e-3 for s in slopes[2:])
    q, k = C.cloud(0, 4)
    assert (q.shape, k.shape) == ((256, 4), (16, 4))
    nearest = np.array([np.linalg.norm(k - a, axis=-1).argmin() for a in q])
    dot = np.array([(k @ a).argmax() for a in q])
    assert values("sl2-attends-to-the-nearest")[0] == pytest.approx(1 - (nearest == dot).mean())
    length = np.linalg.norm(k, axis=-1)
    long = np.isin(dot, np.argsort(length)[-4:]).mean()
    assert values("dot-product-favors-long-keys")[0] == pytest.approx(long - 0.25)
    near = np.isin(nearest, np.argsort(length)[-4:]).mean()
    assert values("dot-product-favors-long-keys")[2] == pytest.approx(long - near)


@pytest.mark.parametrize("shape", ["plane", "circle"])
def test_points(shape):
    tokens, answers = C.points(stream(0, "points"), shape)
    assert tokens.shape == (C.BATCH, C.POINTS, 4)
    for rows, answer in zip(tokens, answers, strict=True):
        order = np.linalg.norm(rows[:-1, :2] - rows[-1, :2], axis=-1).argsort()
        assert rows[order[0], 2] == answer
        assert rows[-1, 2:].tolist() == [0, 1]
    assert set(np.unique(answers)) == {-1, 1}
    lengths = np.linalg.norm(tokens[..., :2], axis=-1)
    assert (np.ptp(lengths) < 1e-6) == (shape == "circle")


def test_multisets():
    embedding, bias = stream(0, "embedding").standard_normal((C.TYPES, C.FEATURES)), np.ones(C.FEATURES)
    tokens, answers = C.multisets(stream(1, "sets"), embedding, 0 * bias)
    counts = np.linalg.lstsq(embedding.T, tokens.T.astype(float), rcond=None)[0].T
    np.testing.assert_allclose(counts, counts.round(), atol=1e-4)
    np.testing.assert_allclose(np.log(counts.sum(-1)), answers, atol=1e-4)
    assert counts.round().sum(-1).min() >= 1
    shifted, same = C.multisets(stream(1, "sets"), embedding, bias)
    np.testing.assert_allclose(shifted - tokens, 1, atol=1e-5)
    np.testing.assert_array_equal(same, answers)


def test_fit_reaches_a_known_minimum():
    weight = torch.nn.Linear(1, 1)
    draws = stream(2, "fit")

    def batch():
        x = draws.standard_normal((64, 1)).astype("f4")
        return x, (0.3 * x[:, 0] + 0.1 * draws.standard_normal(64)).astype("f4")

    assert C.fit(weight, lambda x: weight(x)[:, 0], batch, 3e-2) == pytest.approx(0.01, rel=0.15)  # the noise; 30 x 64


def test_trained_toys(monkeypatch):
    monkeypatch.setattr(C, "TOY_STEPS", 20)
    for id in "sl2-finds-the-nearest-trained", "adarmsn-keeps-magnitude":
        found = values(id, seed=3)
        assert np.isfinite(found).all()
        assert (found == values(id, seed=3)).all()  # the same seed, the same runs
        assert (found != values(id, seed=4)).all()
        assert (found != 0).all()  # the arms differ
