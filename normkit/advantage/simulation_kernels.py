"""numba kernels of the simulation: segment advantages, estimated gradients and training. Readable twin: estimation.py.

Sums run in a fixed order within one seed, and seeds share nothing: nothing depends on the number of threads.
"""

import math
from typing import NamedTuple

import numpy as np

from normkit.advantage import estimate_kernels as estimate
from normkit.advantage.episode_kernels import (
    Episodes,
    Policy,
    absorb,
    describe,
    evaluate,
    expected_outcomes,
    pick_prompts,
    play,
    rollout,
)
from normkit.advantage.estimate_kernels import Rows
from normkit.advantage.group_kernels import Room, degenerate, room
from normkit.compiling import load_numba

numba = load_numba()

SUM, MEAN, TOKENS, NORM = range(4)  # the order of methods.AGGREGATIONS
DETAILED = (estimate.SAN, estimate.CANON, estimate.MAPO, estimate.MARS, estimate.HAPO)  # see more than outcomes

_leaf = numba.njit(error_model="numpy", _nrt=False)  # what allocates nothing: without reference counts
_inline = numba.njit(error_model="numpy", _nrt=False, forceinline=True)  # what every batch needs, once


# ---- segment estimators ---------------------------------------------------------------------------------------------


@_leaf
def chain(theta, tables, policy, stamp, key, e, interval, repeats, scratch, out):
    """Segment advantages from `repeats` fresh rollouts before every interval-th decision; how many decisions those took."""
    roles, spent = e.paid.shape[1], 0
    earned, before, now = scratch[0], scratch[1], scratch[2]
    for j in range(e.prompt.shape[0]):
        h, begin, end = absorb(key, j), e.first[j], e.first[j + 1]
        for r in range(roles):
            earned[r] = before[r] = 0.0
        for cell in range(begin, end + 1):
            t, over = cell - begin, cell == end
            cut = not over and t % interval == 0
            if cut:
                for r in range(roles):
                    now[r] = 0.0
                for k in range(repeats):
                    own = absorb(h, 1 + t * repeats + k)
                    spent += rollout(theta, tables, policy, stamp, own, e.hidden[cell], t, now)
            for r in range(roles):
                if over:
                    now[r] = e.outcome[j * roles + r]
                elif cut:
                    now[r] = now[r] / repeats + earned[r]
            if t > 0 and (cut or over):
                for c in range(begin + (t - 1) // interval * interval, cell):
                    r = tables.role[e.hidden[c]]
                    out[c] = now[r] - before[r]
            for r in range(roles):
                before[r] = now[r] if cut else before[r]
                earned[r] += 0.0 if over else e.paid[cell, r]
    return spent


@_leaf
def _mean(e, first, leaves, r):
    total, roles = 0.0, e.paid.shape[1]
    for j in range(first, first + leaves):
        total += e.outcome[j * roles + r]
    return total / leaves


@_leaf
def tree(tables, e, branch, size, segment, out):
    """Edge advantages: a node's value is the mean outcome of the leaves below it."""
    for j in range(e.prompt.shape[0]):
        leaves = size
        for cell in range(e.first[j], e.first[j + 1]):
            r = tables.role[e.hidden[cell]]
            if (cell - e.first[j]) % segment == 0:
                leaves //= branch
            child, parent = j - j % leaves, j - j % (leaves * branch)
            out[cell] = _mean(e, child, leaves, r) - _mean(e, parent, leaves * branch, r)


# ---- gradients and training -----------------------------------------------------------------------------------------


@_inline
def ascend(tables, policy, stamp, e, group, dropped, advantage, aggregation, share, logit, gradient):
    """gradient += the weighted sum of advantage times score, in logit space first; logit (S, A) stays zeros.

    dropped: for every group whether it does not count in the mean over units or tokens, or (0,). share (N,): room to work.
    """
    units = tokens = 0.0
    for i in range(share.shape[0]):
        if dropped.shape[0] == 0 or dropped[group[i]] == 0:
            units += 1
            tokens += e.tokens[i]
    if units == 0:
        return
    for i in range(share.shape[0]):
        share[i] = 1 / units
        if aggregation == MEAN:
            share[i] /= e.tokens[i]
        elif aggregation == TOKENS:
            share[i] = 1 / tokens
        elif aggregation == NORM:
            share[i] /= tables.horizon
    for c in range(advantage.shape[0]):
        logit[tables.row[e.hidden[c]], e.action[c]] += share[e.unit[c]] * advantage[c]
    for s in range(logit.shape[0]):
        if policy.stamp[s] == stamp:
            _to_parameters(tables.features, policy.probability[s], s, logit[s], gradient)


@_inline
def _to_parameters(features, p, s, logit, gradient):
    gone, moved = 0.0, False
    for a in range(logit.shape[0]):
        gone += logit[a]
        moved |= logit[a] != 0
    for a in range(logit.shape[0] if moved else 0):
        x = logit[a] - gone * p[a]
        logit[a] = 0.0
        for k in range(features.begin[s], features.begin[s + 1]):
            gradient[features.column[k], a] += features.value[k] * x


@_leaf
def baselines(e, expected, memory, rows):
    """Fill the units' baselines: the memory's values, or, where given, the expected outcomes (Q, R)."""
    roles = e.paid.shape[1]
    for i in range(rows.outcome.shape[0]):
        q = e.prompt[i // roles]
        rows.baseline[i] = expected[q, i % roles] if expected.shape[0] else memory[q, 0] / (memory[q, 0] + memory[q, 1])


@_leaf
def remember(memory, e, rho):
    """The memory after a batch."""
    roles = e.paid.shape[1]
    for i in range(e.outcome.shape[0]):
        q = e.prompt[i // roles]
        memory[q, 0] = rho * memory[q, 0] + e.outcome[i]
        memory[q, 1] = rho * memory[q, 1] + 1 - e.outcome[i]


@_inline
def draw_batch(theta, tables, policy, stamp, key, o, size, branch, segment, memory, races, prompts, e):
    """All the episodes of one batch; the number of decisions. races (2, Q): room to work."""
    weights = races[0, : races.shape[1] if o[estimate.PRIORITIZED] == 1 else 0]
    for q in range(weights.shape[0]):
        v = memory[q, 0] / (memory[q, 0] + memory[q, 1])
        weights[q] = math.sqrt(max(v * (1 - v), 0.0)) + 0.05
    pick_prompts(key, weights, races[1], prompts)
    for j in range(e.prompt.shape[0]):
        e.prompt[j] = prompts[j // size]
    return play(theta, tables, policy, stamp, key, branch, size, segment, e)


@_leaf
def _zeros(x):
    """Share of entries that are 0."""
    total = 0
    for y in x:
        total += y == 0
    return total / x.shape[0]


@_inline
def climb(theta, lr, gradient, kept, step):
    """theta += lr gradient; whether all of it is still finite. The gradient is kept, if there is room, and set to 0."""
    good = True
    for d in range(theta.shape[0]):
        for a in range(theta.shape[1]):
            if kept.shape[0]:
                kept[step, d, a] = gradient[d, a]
            theta[d, a] += lr * gradient[d, a]
            gradient[d, a] = 0.0
            good &= math.isfinite(theta[d, a])
    return good


class Work(NamedTuple):
    """Room for one batch, that of one thread."""

    policy: Policy
    episodes: Episodes
    room: Room
    units: np.ndarray  # (4, N): outcome, tokens, baseline, share
    kinds: np.ndarray  # (2, N): group, stratum
    numbers: np.ndarray  # (3, cells): reward, entropy, advantage
    cells: np.ndarray  # (3, cells): unit, turn, role
    logit: np.ndarray
    gradient: np.ndarray
    prompts: np.ndarray
    races: np.ndarray
    latest: np.ndarray
    earned: np.ndarray
    masses: np.ndarray
    values: np.ndarray
    expected: np.ndarray  # (Q, R), or (0, R) where the method does not ask for it


def workspace(tables, method, groups, size, parameters):
    """A Work for batches of groups * size trajectories; parameters: the shape of theta."""
    roles, horizon, (states, actions) = tables.noise.size, tables.horizon, tables.features.offset.shape
    n, hidden, prompts = groups * size, tables.row.size, tables.first_begin.size - 1
    most, units = n * horizon, n * roles
    random, noisy = 1 + bool(tables.random.max()), horizon * bool(tables.noise.max() > 0)
    x, cells, integers = np.zeros((4, units)), np.zeros((3, most), np.int64), np.zeros((3, n + 1), np.int64)
    kinds = np.stack([np.arange(units) // (size * roles), np.zeros(units, np.int64)])
    policy = Policy(*np.empty((2, states, actions)), np.empty(states), np.empty(states, np.int64))
    e = Episodes(
        *np.empty((2, most), np.uint32), cells[0], np.empty((most, roles)), integers[0], *integers[1:, :n], *x[:2],
        np.empty(n, np.uint64), np.empty((random, horizon, n)), np.empty((noisy, n)),
    )  # fmt: skip
    return Work(
        policy, e, room(max(most, units)), x, kinds,
        np.zeros((3, most)), cells, np.zeros((states, actions)), np.zeros(parameters), np.empty(groups, np.int64),
        np.empty((2, prompts)), np.empty(roles, np.int64), np.empty((3, roles)), np.empty((2, hidden + 1)),
        np.empty((2, hidden + 1, roles)), np.zeros((prompts if method == estimate.VALUE else 0, roles)),
    )  # fmt: skip


@numba.njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def train(
    tables, theta, seeds, first, steps, method, aggregation, o, groups, size, lr, every, memory, gradients, out, w
):
    """Train theta (B, D, A) in place, one row of it for each of the hash seeds (B,), whose batches count from first (B,).

    memory (B, Q, 2): the tracker's. gradients (B, steps or 0, D, A). out (B, 5, P or 0): at every point objective,
    entropy, shares of degenerate groups and of zero advantages since the last point, and decisions so far. A seed ends
    where a parameter is no longer finite: what is beyond stays as it was. w: a Work.
    """
    n, equal, none = groups * size, w.room.classes[0, :groups], w.room.classes[0, :0]
    policy, e, x, y, kinds, cells = w.policy, w.episodes, w.units, w.numbers, w.kinds, w.cells
    branch, segment, interval, repeats = 0, 1, int(o[estimate.INTERVAL]), int(o[estimate.ROLLOUTS])
    if method == estimate.SEGMENT_TREE:
        branch = int(o[estimate.BRANCH])
        segment = math.ceil(tables.horizon / round(math.log(size) / math.log(branch)))
    for i in range(seeds.shape[0]):
        point, batches, spent, still, nothing = 0, 0, 0, 0.0, 0.0
        for s in range(policy.stamp.shape[0]):
            policy.stamp[s] = -1
        for step in range(steps + 1):
            if out.shape[2] and (step % every == 0 or step == steps):
                out[i, 0, point], out[i, 1, point] = evaluate(theta[i], tables, policy, step, w.masses)
                out[i, 2, point], out[i, 3, point] = still / batches, nothing / batches  # no batches yet: NaN
                out[i, 4, point] = spent
                point, batches, still, nothing = point + 1, 0, 0.0, 0.0
            if step == steps:
                break
            key = absorb(absorb(np.uint64(0), seeds[i]), first[i] + step)
            spent += draw_batch(
                theta[i], tables, policy, step, key, o, size, branch, segment, memory[i], w.races, w.prompts, e
            )
            c = e.first[n]
            rows = Rows(
                x[0], x[1], kinds[0], kinds[1], x[2], cells[0, :c], cells[1, :c], cells[2, :c], y[0, :c], y[1, :c]
            )  # fmt: skip
            advantage = y[2, :c]
            if method in DETAILED:
                describe(tables, policy, e, w.latest, rows)
            if method == estimate.VALUE:
                expected_outcomes(theta[i], tables, policy, step, w.values, w.expected)
            if method == estimate.VALUE or method == estimate.SPO:
                baselines(e, w.expected, memory[i], rows)
            if method == estimate.SEGMENT_CHAIN:
                spent += chain(theta[i], tables, policy, step, key, e, interval, repeats, w.earned, advantage)
            elif method == estimate.SEGMENT_TREE:
                tree(tables, e, branch, size, segment, advantage)
            else:
                estimate.advantages(method, rows, groups, o, w.room, advantage)
            degenerate(rows.outcome, rows.group, w.room.classes[1, :groups], equal)
            dropped = equal if method == estimate.DAPO else none
            ascend(tables, policy, step, e, rows.group, dropped, advantage, aggregation, x[3], w.logit, w.gradient)
            if method == estimate.SPO:
                remember(memory[i], e, o[estimate.RHO])
            batches, still, nothing = batches + 1, still + 1 - _zeros(equal), nothing + _zeros(advantage)
            if not climb(theta[i], lr, w.gradient, gradients[i], step):
                break
