"""The simulation's advantages against the public estimators, on batches that no environment draws."""

import math

import numpy as np
import pytest

from normkit.advantage import estimate_kernels as kernels
from normkit.advantage import estimators, group_kernels, strata, turns
from normkit.advantage.beta_weights import bnpo
from normkit.advantage.methods import METHODS
from normkit.advantage.options import method_options, vector
from normkit.advantage.segments import factorize
from normkit.advantage.single_stream import spo
from normkit.advantage.token_entropy import hapo
from normkit.rng import stream

ROLES, TURNS = 2, 7


class Batch:
    """Ragged units in unsorted groups: some of one member, some with equal rewards, some with ties and offsets."""

    def __init__(self, seed, kind):
        rng = stream(seed, "estimate kernels", kind)
        self.n = n = int(rng.integers(2, 40))
        self.groups = rng.integers(-3, 6, n) * 10**12
        self.roles = rng.integers(0, ROLES, n)
        self.strata = rng.choice([-(2**62), -1, 0, 1, 10**15], n)
        self.mask = rng.random((n, TURNS)) < 0.6
        self.mask[np.arange(n), rng.integers(0, TURNS, n)] = True
        self.turns = {
            "binary": lambda: rng.integers(0, 2, (n, TURNS)).astype(float),
            "equal": lambda: np.full((n, TURNS), 0.1),
            "offset": lambda: 1e6 + rng.standard_normal((n, TURNS)),
            "normal": lambda: rng.standard_normal((n, TURNS)),
        }[kind]()
        self.rewards = self.turns[:, 0].copy()
        self.values = rng.random(n)
        self.entropy = np.where(rng.random((n, TURNS)) < 0.1, 0.0, rng.random((n, TURNS)))

    def kernel(self, method, **options):
        groups, count = factorize(self.groups)
        unit, turn = np.nonzero(self.mask)
        rows = kernels.Rows(
            self.rewards.copy(), self.mask.sum(1).astype(float), groups, self.strata.copy(), self.values.copy(),
            unit, turn, self.roles[unit], self.turns[self.mask], self.entropy[self.mask],
        )  # fmt: skip
        cells = np.full(len(unit), math.nan)
        known = method_options(method, options, 8)
        room = group_kernels.room(max(self.n, len(unit)))
        for free in room[2:]:
            free[:] = -7  # whatever stood there
        kernels.advantages(list(METHODS).index(method), rows, count, vector(known), room, cells)
        out = np.zeros(self.mask.shape)
        out[self.mask] = cells
        return out

    def readable(self, method, **options):
        r, g, m = self.rewards, self.groups, self.mask
        if method == "san" and "kappa" in options:
            return strata.kappa_family(r, g, self.strata, **options)
        return {
            "reinforce": lambda **o: estimators.reinforce(r, **o),
            "value": lambda **o: estimators.reinforce(r, self.values, **o),
            "whiten": lambda **o: estimators.whiten(r, **o),
            "grpo": lambda **o: estimators.grpo.reference(r, g, **o),
            "dr_grpo": lambda **o: estimators.dr_grpo.reference(r, g, **o),
            "rloo": lambda **o: estimators.rloo.reference(r, g, **o),
            "reinforce_pp": lambda **o: estimators.reinforce_pp(r, m, **o),
            "reinforce_pp_baseline": lambda **o: estimators.reinforce_pp_baseline(r, g, m, **o),
            "dapo": lambda **o: estimators.dapo(r, g, **o),
            "san": lambda **o: strata.san.reference(r, g, self.strata, **o),
            "canon": lambda **o: strata.canon(r, g, self.strata, **o),
            "mapo": lambda **o: turns.mapo(self.turns, g, m, **o),
            "mars": lambda **o: turns.mars(self.turns, self.roles, m, **o),
            "spo": lambda **o: spo(r, self.values, **o),
            "bnpo": lambda **o: bnpo(r, g, **o),
            "hapo": lambda **o: hapo(r, g, m, self.entropy, **o),
        }[method](**options)


CASES = [(method, {}) for method in METHODS if not method.startswith("segment")] + [
    ("reinforce", {"baseline": 0.3}),
    ("whiten", {"ddof": 0, "eps": 0.1}),
    ("grpo", {"ddof": 0, "eps": 0.0}),
    ("rloo", {"singleton": "raw"}),
    ("reinforce_pp", {"gamma": 0.9}),
    ("san", {"alpha": 0.3, "ddof": 0}),
    ("san", {"kappa": 0.7}),
    ("san", {"kappa": -1.0}),
    ("canon", {"mu": 0.4}),
    ("canon", {"mu": 0.8, "alpha": 1.3, "beta": 0.2}),
    ("mapo", {"alpha": 1.0, "gamma": 0.8}),
    ("mapo", {"alpha": 0.0, "ddof": 1}),
    ("mars", {"scale": "none", "gamma": 0.5}),
    ("mars", {"scale": "batch"}),
    ("spo", {"ddof": 0, "eps": 0.2}),
    ("bnpo", {"limit": 0.5}),
    ("hapo", {"sign": "released"}),
    ("hapo", {"quantile": 0.0, "beta": 0.5, "ddof": 1}),
    ("hapo", {"quantile": 1.0}),
]


@pytest.mark.parametrize(("method", "options"), CASES, ids=str)
@pytest.mark.parametrize("kind", ["binary", "normal", "offset", "equal"])
def test_kernels_are_the_public_estimators(kind, method, options):
    moved = 0.0
    for seed in range(12):
        batch = Batch(seed, kind)
        expected = batch.readable(method, **options)
        expected = np.where(batch.mask, expected if expected.ndim == 2 else expected[:, None], 0.0)
        # rewards near 1e6 have 1e-10 of rounding, means over 40 of them a few times that, a small std multiplies it
        tolerance = 1e-6 if kind == "offset" else 1e-11
        np.testing.assert_allclose(batch.kernel(method, **options), expected, rtol=tolerance, atol=tolerance)
        moved += np.abs(expected).sum()
    assert kind == "equal" or moved > 1


@pytest.mark.parametrize("method", ["whiten", "grpo", "dr_grpo", "dapo", "san", "canon", "reinforce_pp_baseline"])
def test_equal_rewards_give_exactly_nothing(method):
    assert np.all(Batch(0, "equal").kernel(method) == 0)


def test_values_by_hand():
    """One group of rewards 1, 0, 0, 1 with one turn each."""
    batch = Batch(0, "binary")
    batch.n, batch.groups, batch.strata = 4, np.zeros(4, int), np.array([0, 0, 1, 1])
    batch.roles, batch.values, batch.mask = np.zeros(4, int), np.full(4, 0.25), np.ones((4, 1), bool)
    batch.rewards = np.array([1.0, 0.0, 0.0, 1.0])
    batch.turns, batch.entropy = batch.rewards[:, None], np.ones((4, 1))
    np.testing.assert_allclose(batch.kernel("rloo")[:, 0], np.array([2, -2, -2, 2]) / 3)
    np.testing.assert_allclose(batch.kernel("value")[:, 0], [0.75, -0.25, -0.25, 0.75])
    np.testing.assert_allclose(batch.kernel("grpo", eps=0.0)[:, 0], np.array([1, -1, -1, 1]) * math.sqrt(3) / 2)
    np.testing.assert_allclose(batch.kernel("canon", mu=0.0)[:, 0], np.array([1, -1, -1, 1]) / 2)
    np.testing.assert_allclose(batch.kernel("canon", mu=1.0)[:, 0], np.array([1, -1, -1, 1]) / 2)


@pytest.mark.parametrize("n", [1, 2, 17])
def test_order_statistics(n):
    x = stream(n, "ranks").integers(0, 5, n).astype(float)
    assert [kernels._kth(x.copy(), k) for k in range(n)] == sorted(x)
    assert [kernels._nearest(v) for v in (0.0, 0.5, 1.5, 2.5, 2.4, 2.6)] == [0, 0, 2, 2, 2, 3]


def test_members_keep_their_order():
    order, first = np.empty(5, int), np.full(5, -7)
    group_kernels.members(np.array([2, 0, 2, 1, 0]), order, first)
    assert order.tolist() == [1, 4, 3, 0, 2] and first[:4].tolist() == [0, 2, 3, 5]


def test_pairs_are_numbered_as_they_come():
    """Of 600 rows, with no more of the table free than there must be, and numbers that differ in high bits alone."""
    rng = stream(0, "pairs")
    first, second = (
        rng.integers(0, 20, 600),
        rng.choice([-3, 0, 2**40, 2**62, -(2**62)], 600) << rng.integers(0, 2, 600),
    )
    pair = np.full(600, -7)
    count = group_kernels.pairs(first, second, np.full(1024, -7), pair)
    numbers = {}
    expected = [numbers.setdefault(two, len(numbers)) for two in zip(first, second, strict=True)]
    assert pair.tolist() == expected and count == len(numbers) > 100


def test_every_option_has_a_place():
    named = {name.lower(): getattr(kernels, name) for name in dir(kernels) if name.lower() in kernels.OPTIONS}
    assert named == {name: i for i, name in enumerate(kernels.OPTIONS)}
    numbers = {name.lower(): getattr(kernels, name) for name in dir(kernels) if name.lower() in METHODS}
    assert numbers == {name: i for i, name in enumerate(METHODS)}
