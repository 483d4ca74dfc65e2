"""Parts of the compiled simulation, each against its readable twin: random numbers, policy, objective, episodes."""

import math

import numpy as np
import pytest

from normkit.advantage import environments, sampling
from normkit.advantage import episode_kernels as kernels
from normkit.advantage.exact import exact
from normkit.advantage.experiment import tables_of
from normkit.rng import stream, uniforms

AGENTS = [build() for build in environments.ENVIRONMENTS.values()]


def absorb(h, index):
    return np.uint64(kernels.absorb(h, index))  # numba hands a plain int back


def moved(environment):
    """Parameters away from the start, so that no two rows of the policy are alike."""
    return environment.theta + stream(0, "episodes", environment.name).standard_normal(environment.theta.shape)


def empty_policy(environment):
    rows, actions = environment.offset.shape
    return kernels.Policy(
        np.empty((rows, actions)), np.empty((rows, actions)), np.empty(rows), np.full(rows, -1, np.int64)
    )


def drawn(environment, n, groups, seed, step, branch=0, segment=1):
    roles, room = environment.roles, n * environment.horizon
    e = kernels.Episodes(
        *np.zeros((2, room), np.uint32), np.zeros(room, np.int64), np.zeros((room, roles)), np.zeros(n + 1, np.int64),
        *np.zeros((2, n), np.int64), *np.full((2, n * roles), math.nan),
        np.empty(n, np.uint64), np.empty((2, environment.horizon, n)), np.empty((environment.horizon, n)),
    )  # fmt: skip
    tables, policy, theta = tables_of(environment), empty_policy(environment), moved(environment)
    key = absorb(absorb(np.uint64(0), seed), step)
    prompts, times = np.empty(groups, np.int64), np.empty(environment.prompts)
    kernels.pick_prompts(key, np.ones(environment.prompts), times, prompts)
    size = n // groups
    e.prompt[:] = prompts.repeat(size)
    return e, policy, kernels.play(theta, tables, policy, 0, key, branch, size, segment, e)


@pytest.mark.parametrize("path", [(0,), (5, 3), (2**62 + 7, 1, 2, 0xFFFF, 9), (1, 2, 3, 0, 1025)])
def test_numbers_are_those_of_the_kit(path):
    h = np.uint64(0)
    for index in path[:-1]:
        h = absorb(h, index)
    assert kernels.uniform(h, path[-1]) == float(uniforms(*path))


def test_log():
    draw = stream(0, "log").random(500)
    for u in np.r_[2.0**-53, 1 - 2.0**-53, 2.0 ** -np.arange(53), math.sqrt(0.5), draw, 2.0 ** (-53 * draw)]:
        assert kernels.log(float(u)) == pytest.approx(
            math.log(u), rel=5e-16 * 2, abs=0
        )  # four roundings of half a digit


def test_cosine():
    for u in np.r_[2.0**-53, 1 - 2.0**-53, np.arange(9) / 8, stream(0, "cosine").random(500)]:
        exact_cosine = math.cos(2 * math.pi * u)  # of a product below 6.3, itself rounded by up to 9e-16
        assert kernels.cosine(float(u)) == pytest.approx(exact_cosine, rel=0, abs=2e-15)


def test_entropy_of_an_almost_certain_row():
    """p = exp(-x) of the other action: the entropy (1 + x) exp(-x) is far below the rounding of log(1)."""
    rows = kernels.Features(np.array([0, 0]), np.zeros(0, int), np.zeros(0), np.array([[0.0, -50.0]]))
    policy = kernels.Policy(np.empty((1, 2)), np.empty((1, 2)), np.empty(1), np.full(1, -1))
    kernels.fresh_row(np.zeros((1, 2)), rows, policy, 0, 3)
    assert policy.entropy[0] == pytest.approx(51 * math.exp(-50), rel=1e-13)
    assert policy.stamp[0] == 3 and policy.sums[0].tolist() == [1, 2]


@pytest.mark.parametrize("environment", AGENTS, ids=lambda e: e.name)
def test_objective_entropy_and_expected_outcomes_are_exact(environment):
    theta, policy = moved(environment), empty_policy(environment)
    both, values = (
        np.full((2, environment.states + 1), 7.0),
        np.full((2, environment.states + 1, environment.roles), 7.0),
    )
    objective, entropy = kernels.evaluate(theta, tables_of(environment), policy, 0, both)
    truth = exact(environment, theta)
    assert objective == pytest.approx(float(truth.objective), rel=1e-12)
    assert entropy == pytest.approx(float(truth.entropy), rel=1e-12)
    found = np.full((environment.prompts, environment.roles), math.nan)
    kernels.expected_outcomes(theta, tables_of(environment), policy, 1, values, found)
    np.testing.assert_allclose(found, truth.baseline, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(policy.probability, truth.policy, rtol=1e-13, atol=1e-300)
    assert np.all(policy.stamp == 1)


@pytest.mark.parametrize("environment", AGENTS, ids=lambda e: e.name)
def test_episodes_are_those_of_the_readable_sampler(environment):
    """Every state and action alike: no uniform number lies within rounding of a boundary."""
    e, _, spent = drawn(environment, 24, 3, seed=11, step=4)
    batch = sampling.sample(environment, moved(environment)[None], groups=3, group_size=8, seeds=np.array([11]), step=4)
    inside, cells, roles = batch.hidden >= 0, e.first[-1], environment.roles
    np.testing.assert_array_equal(np.diff(e.first), inside.sum(1))
    np.testing.assert_array_equal(e.hidden[:cells], batch.hidden[inside])
    np.testing.assert_array_equal(e.action[:cells], batch.actions[inside])
    np.testing.assert_allclose(e.outcome, batch.rewards, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(e.tokens, batch.mask.sum(1))
    paid = batch.paid.reshape(24, roles, -1).swapaxes(1, 2)  # both have 24 trajectories of R roles
    np.testing.assert_allclose(e.paid[:cells], paid[inside], rtol=1e-12, atol=1e-12)
    role = batch.mask.reshape(24, roles, -1).argmax(1)
    np.testing.assert_array_equal(e.unit[:cells], (np.arange(24)[:, None] * roles + role)[inside])
    np.testing.assert_array_equal(np.repeat(e.tally, environment.roles), batch.strata)
    np.testing.assert_array_equal(np.repeat(e.prompt, environment.roles), batch.prompts)
    assert spent == cells and len(np.unique(batch.actions)) > 1


def test_leaves_of_a_tree_share_their_beginnings():
    environment = environments.token_chain(6, (1, 3, 5))
    e, _, spent = drawn(environment, 16, 2, seed=3, step=0, branch=2, segment=2)
    action = e.action.reshape(16, 6)  # nobody stops early
    assert e.first[-1] == action.size
    for first in (0, 8):
        for level, leaves in enumerate((4, 2, 1)):
            for leaf in range(first, first + 8):
                head = leaf - leaf % leaves
                np.testing.assert_array_equal(action[leaf, : 2 * level + 2], action[head, : 2 * level + 2])
    assert spent == 2 * 2 * (2 + 4 + 8)
    assert len(np.unique(action[:8], axis=0)) > 2


def test_prompts_come_once_before_any_comes_again_and_heavy_ones_first():
    prompts, times = np.empty(12, np.int64), np.empty(5)
    kernels.pick_prompts(np.uint64(99), np.ones(0), times, prompts)
    alike = prompts.copy()
    kernels.pick_prompts(np.uint64(99), np.ones(5), times, prompts)
    np.testing.assert_array_equal(alike, prompts)  # no weights: the same order, without a logarithm
    assert sorted(prompts[:5]) == list(range(5))
    np.testing.assert_array_equal(prompts[5:10], prompts[:5])
    np.testing.assert_array_equal(prompts[10:], prompts[:2])
    weights, n, first = np.array([1.0, 1.0, 1.0, 1.0, 6.0]), 4000, 0
    for key in range(n):
        kernels.pick_prompts(absorb(np.uint64(0), key), weights, times, prompts)
        first += prompts[0] == 4
    assert abs(first / n - 0.6) < 4 * math.sqrt(0.24 / n)


def test_the_last_possible_choice_ends_the_search():
    """Probabilities whose rounded sum is below a number close to 1, and an action that is not available."""
    environment = environments.search_agent()
    tables, policy = tables_of(environment), empty_policy(environment)
    theta = moved(environment)
    for s in range(len(policy.stamp)):
        kernels.fresh_row(theta, tables.features, policy, s, 0)
    assert np.all(policy.sums[:, -1] == 2) and np.all(tables.sums[..., -1] == 2)
    blocked = environments.search_agent("hard_deceptive")  # four of the first choice's eight actions do not exist
    policy = empty_policy(blocked)
    kernels.fresh_row(moved(blocked), tables_of(blocked).features, policy, 0, 0)
    assert np.all(policy.probability[0, 4:] == 0) and np.all(policy.sums[0, 3:] == 2)
    assert policy.probability[0].sum() == pytest.approx(1, rel=1e-15)


def test_rollouts_have_the_value_of_their_state():
    environment = environments.dialogue(5, noise=0.2)
    tables, policy, theta, total = tables_of(environment), empty_policy(environment), moved(environment), np.zeros(1)
    n, state, turn, outcomes = 4000, np.uint64(3), 2, []
    for k in range(n):
        total[0] = 0
        decisions = kernels.rollout(theta, tables, policy, 0, absorb(np.uint64(5), k), state, turn, total)
        assert decisions == 3
        outcomes.append(total[0])
    value = exact(environment, theta).value[turn, 3, 0]
    assert abs(np.mean(outcomes) - value) < 4 * np.std(outcomes) / math.sqrt(n)
