"""Parts of the compiled training, by hand and against plain loops: chains, trees, gradients, the memory, the step."""

import itertools
import math

import numpy as np
import pytest
from tiny_environment import tiny

from normkit.advantage import simulation_kernels as kernels
from normkit.advantage.episode_kernels import Episodes, Policy, absorb, fresh_row
from normkit.advantage.estimate_kernels import OPTIONS, PRIORITIZED, Rows
from normkit.advantage.exact import exact
from normkit.advantage.experiment import tables_of
from normkit.advantage.methods import AGGREGATIONS
from normkit.rng import stream

HIDDEN = [[0, 1, 0], [3], [0, 2], [3, 1, 2]]  # the second role acts in states 1 and 2
ACTION = [[0, 1, 2], [1], [2, 0], [0, 0, 1]]


def batch(roles=2):
    """Four trajectories of the tiny environment as a sampler might have left them, with payoffs of no meaning."""
    environment, rng = tiny(roles=roles), stream(0, "simulation kernels", roles)
    hidden, action = (np.concatenate(x).astype(np.uint32) for x in (HIDDEN, ACTION))
    first = np.cumsum([0] + [len(x) for x in HIDDEN])
    owner, role = np.repeat(np.arange(4), np.diff(first)), environment.role[hidden]
    paid, unit = rng.standard_normal((len(hidden), roles)), owner * roles + role
    outcome = np.array([paid[a:b].sum(0) for a, b in itertools.pairwise(first)]).ravel()
    tokens = np.bincount(unit, minlength=4 * roles).astype(float)
    no_numbers = np.empty(0, np.uint64), np.empty((0, 0, 0)), np.empty((0, 0))
    e = Episodes(
        hidden, action, unit, paid, first, np.array([0, 0, 1, 1]), np.zeros(4, int), outcome, tokens, *no_numbers
    )
    return environment, tables_of(environment), e


def policy_of(environment, tables, theta, stamp=0):
    rows, actions = environment.offset.shape
    policy = Policy(np.empty((rows, actions)), np.empty((rows, actions)), np.empty(rows), np.full(rows, -1))
    for s in range(rows):
        fresh_row(theta, tables.features, policy, s, stamp)
    return policy


@pytest.mark.parametrize("aggregation", range(4), ids=AGGREGATIONS)
def test_ascend_is_the_sum_of_weighted_scores(aggregation):
    environment, tables, e = batch()
    theta = stream(1, "ascend").standard_normal(environment.theta.shape)
    policy, advantage = policy_of(environment, tables, theta), stream(2, "ascend").standard_normal(len(e.hidden))
    group, dropped = np.arange(8) // 4, np.array([0.0, 1.0])  # the second group does not count in the mean
    gradient, logit = np.ones_like(theta), np.zeros_like(policy.probability)
    kernels.ascend(tables, policy, 0, e, group, dropped, advantage, aggregation, np.empty(8), logit, gradient)
    expected = np.ones_like(theta)
    for c, unit in enumerate(e.unit):
        weight = [1 / 4, 1 / 4 / e.tokens[unit], 1 / e.tokens[:4].sum(), 1 / 4 / environment.horizon][aggregation]
        row = environment.row[e.hidden[c]]
        score = np.eye(3)[e.action[c]] - policy.probability[row]
        expected += weight * advantage[c] * np.outer(environment.features[row], score)
    np.testing.assert_allclose(gradient, expected, rtol=1e-12)
    assert not logit.any() and np.abs(gradient - 1).max() > 0.1


def test_ascend_without_units_leaves_the_gradient_alone():
    environment, tables, e = batch()
    policy, gradient = policy_of(environment, tables, environment.theta), np.full(environment.theta.shape, 3.0)
    room = np.empty(8), np.zeros_like(policy.probability)
    kernels.ascend(tables, policy, 0, e, np.zeros(8, int), np.ones(1), np.ones(len(e.hidden)), 0, *room, gradient)
    assert np.all(gradient == 3)


def test_climb():
    theta, gradient, kept = np.ones((2, 2)), np.array([[1.0, 2.0], [0.0, -4.0]]), np.zeros((3, 2, 2))
    assert kernels.climb(theta, 0.5, gradient, kept, 1)
    assert theta.tolist() == [[1.5, 2.0], [1.0, -1.0]] and not gradient.any()
    assert kept[1].tolist() == [[1.0, 2.0], [0.0, -4.0]] and not kept[[0, 2]].any()
    gradient[1, 1] = math.inf
    assert not kernels.climb(theta, 0.5, gradient, kept[:0], 2)
    assert theta[1, 1] == math.inf and not gradient.any()


def test_baselines_and_memory():
    _, _, e = batch()
    memory, baseline = np.array([[1.0, 3.0], [2.0, 2.0]]), np.full(8, math.nan)
    rows = Rows(e.outcome, *[baseline] * 9)
    kernels.baselines(e, np.zeros((0, 2)), memory, rows)
    assert baseline.tolist() == [0.25] * 4 + [0.5] * 4  # two trajectories of two roles on each prompt
    expected = np.array([[1.0, 2.0], [3.0, 4.0]])
    kernels.baselines(e, expected, memory, rows)
    assert baseline.tolist() == [1, 2, 1, 2, 3, 4, 3, 4]
    kernels.remember(memory, e, 0.5)
    fade, first = 0.5 ** np.arange(4)[::-1], e.outcome[:4]
    np.testing.assert_allclose(memory[0], [1 / 16 + fade @ first, 3 / 16 + fade @ (1 - first)])


def test_memory_weighs_the_prompts():
    environment, tables, e = batch()
    policy, prompts = policy_of(environment, tables, environment.theta), np.empty(2, int)
    memory, races, o = np.array([[1e9, 1e-9], [5.0, 5.0]]), np.empty((2, 2)), np.zeros(len(OPTIONS))
    room = Episodes(
        *np.zeros((2, 12), np.uint32), np.zeros(12, int), np.zeros((12, 2)), np.zeros(5, int), e.prompt.copy(), e.tally,
        *np.zeros((2, 8)), np.empty(4, np.uint64), np.empty((2, 3, 4)), np.empty((0, 4)),
    )  # fmt: skip
    for o[PRIORITIZED], share in ((0, 0.5), (1, 0.55 / 0.6)):  # weights sqrt(v (1 - v)) + 0.05: 0.05 and 0.55
        counted = 0
        for key in range(400):
            h = np.uint64(absorb(np.uint64(7), key))
            kernels.draw_batch(environment.theta, tables, policy, 0, h, o, 2, 0, 1, memory, races, prompts, room)
            assert room.prompt.tolist() == prompts.repeat(2).tolist() and sorted(prompts) == [0, 1]
            counted += prompts[0] == 1
        assert abs(counted / 400 - share) < 4 * math.sqrt(share * (1 - share) / 400)


def test_tree_values_are_means_over_leaves():
    """Four leaves, two at each fork, one decision a segment: the edges' advantages add up to outcome minus root."""
    _, tables, e = batch(roles=1)
    out, value = np.full(len(e.hidden), math.nan), e.outcome
    kernels.tree(tables, e, 2, 4, 2, out)
    for j in range(4):
        half = value[j - j % 2 : j - j % 2 + 2].mean()
        expected = [half - value.mean(), half - value.mean(), value[j] - half][: len(HIDDEN[j])]
        np.testing.assert_allclose(out[e.first[j] : e.first[j + 1]], expected, rtol=1e-12)


@pytest.mark.parametrize("interval", [1, 2, 5])
def test_chain_advantages_add_up_along_an_episode(interval):
    """Differences of one chain of values: their sum over the cuts is the outcome minus the first value, whose mean is
    the start's exact value; decisions of one segment share theirs."""
    environment, tables, e = batch(roles=1)
    policy, out, scratch = policy_of(environment, tables, environment.theta), np.empty(len(e.hidden)), np.empty((3, 1))
    values = []
    for key in range(400):
        h = np.uint64(absorb(np.uint64(3), key))
        spent = kernels.chain(environment.theta, tables, policy, 0, h, e, interval, 3, scratch, out)
        assert spent >= 3 * sum(math.ceil(len(x) / interval) for x in HIDDEN)
        cells = out[e.first[0] : e.first[1]]
        assert np.all(cells[: min(interval, 3)] == cells[0])
        values.append(e.outcome[0] - cells[::interval].sum())
    truth = exact(environment, environment.theta).value[0, HIDDEN[0][0], 0]
    assert abs(np.mean(values) - truth) < 4 * np.std(values) / 20 and np.std(values) > 0
