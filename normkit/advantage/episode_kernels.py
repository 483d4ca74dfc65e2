"""numba kernels of the simulation: random numbers, the policy and its exact objective, episodes of an Environment.

The same random numbers as normkit.rng.uniforms, hence the same episodes as sampling.py. Readable twins: rng.py, exact.py,
sampling.py.
"""

import math
from typing import NamedTuple

import numpy as np

from normkit.compiling import load_numba
from normkit.rng import FIRST, GOLDEN, SECOND

numba = load_numba()

_GOLDEN, _FIRST, _SECOND = np.uint64(GOLDEN), np.uint64(FIRST), np.uint64(SECOND)
_30, _27, _31, _12, _0 = (np.uint64(k) for k in (30, 27, 31, 12, 0))
PROMPTS = 0xFFFF  # the branch whose numbers pick the prompts
SERIES = tuple(1 / (k * (k + 1)) for k in range(20, 0, -2))  # ratios of the terms of the sine's series, the last first
ROOTS, ATANH = 0x3FE6A09E667F3BCD, tuple(1 / k for k in range(23, 0, -2))  # the bits of sqrt(1/2); 1/23, ..., 1/3, 1

_leaf = numba.njit(error_model="numpy", _nrt=False)  # nothing allocates: without reference counts
_inline = numba.njit(
    error_model="numpy", _nrt=False, forceinline=True
)  # tables are 100 words to hand over: not in a loop


class Features(NamedTuple):
    """Row s of the features has value[i] in column[i] for begin[s] <= i < begin[s + 1], and 0 elsewhere; offset (S, A)."""

    begin: np.ndarray
    column: np.ndarray
    value: np.ndarray
    offset: np.ndarray


class Tables(NamedTuple):
    """An Environment with its distributions summed up."""

    horizon: int
    features: Features
    start: np.ndarray
    first_begin: np.ndarray  # prompt q starts in one of first_state[first_begin[q] : first_begin[q + 1]]
    first_state: np.ndarray
    first_mass: np.ndarray
    first_sum: np.ndarray
    row: np.ndarray
    role: np.ndarray
    worth: np.ndarray  # (H, A): expected true payoff, mean over the roles
    random: np.ndarray  # (H,): whether any action has several possible outcomes
    sure: np.ndarray  # (H, A): else the only one
    chance: np.ndarray
    sums: np.ndarray  # cumulative, with 2 from the last possible outcome on
    next: np.ndarray  # the number of states stands for the end
    seen: np.ndarray
    noise: np.ndarray
    tally: np.ndarray


class Policy(NamedTuple):
    """(S, A) probabilities and cumulative sums, and entropies (S,), of the rows whose stamp (S,) is the present step."""

    probability: np.ndarray
    sums: np.ndarray
    entropy: np.ndarray
    stamp: np.ndarray


class Episodes(NamedTuple):
    """Of cells, one a decision, as many as fit: hidden state, action, unit, payoffs (cells, R) as seen, when they came.

    first (n + 1,): trajectory j has the cells first[j] to first[j + 1]. prompt, tally (n,). Of units, trajectory * R +
    role: outcome and tokens, both (n R,). Random numbers: hash (n,), those of actions and outcomes (2, horizon, n), normal
    ones (horizon, n); without the last of them where nothing depends on them.
    """

    hidden: np.ndarray
    action: np.ndarray
    unit: np.ndarray
    paid: np.ndarray
    first: np.ndarray
    prompt: np.ndarray
    tally: np.ndarray
    outcome: np.ndarray
    tokens: np.ndarray
    hash: np.ndarray
    uniform: np.ndarray
    normal: np.ndarray


# ---- random numbers -------------------------------------------------------------------------------------------------


@_inline
def absorb(h, index):
    h = (h ^ np.uint64(index)) + _GOLDEN
    h = (h ^ (h >> _30)) * _FIRST
    h = (h ^ (h >> _27)) * _SECOND
    return h ^ (h >> _31)


@_inline
def uniform(h, slot):
    return np.float64(absorb(h, slot) >> _12) * 2.0**-52 + 2.0**-53


@_inline
def log(u):
    """log(u) of a normal u > 0 to 5e-16: u = 2^k m with m near 1, and log m is twice an inverse tangent's series.

    Of several numbers at once, a quarter of math.log's time; of one alone, more than it.
    """
    bits = np.float64(u).view(np.int64)
    k = (bits - np.int64(ROOTS)) >> np.int64(52)
    m = np.int64(bits - (k << np.int64(52))).view(np.float64)  # between the roots of 1/2 and 2
    x, total = (m - 1) / (m + 1), 0.0
    for c in ATANH:
        total = total * x * x + c
    return k * math.log(2) + 2 * x * total


@_inline
def cosine(u):
    """cos(2 pi u) of u in [0, 1] to 2e-16: the series of the sine, a quarter of a turn away."""
    x = 2 * math.pi * (abs(u - 0.5) - 0.25)
    y, total = x * x, 0.0
    for k in SERIES:
        total = (1 - total) * y * k
    return x * (1 - total)


# ---- the policy and its exact objective -----------------------------------------------------------------------------


@_leaf
def fresh_row(theta, features, policy, s, stamp):
    """Bring the policy's row s to the present parameters."""
    p, sums, best, last = policy.probability[s], policy.sums[s], 0, 0
    for a in range(p.shape[0]):
        p[a] = features.offset[s, a]
    for k in range(features.begin[s], features.begin[s + 1]):
        weights, x = theta[features.column[k]], features.value[k]
        for a in range(p.shape[0]):
            p[a] += x * weights[a]
    for a in range(p.shape[0]):
        best = a if p[a] > p[best] else best
    top, rest, fall, total = p[best], 0.0, 0.0, 0.0
    for a in range(p.shape[0]):
        below = top - p[a]
        p[a] = 1.0 if a == best else math.exp(-below)
        last = a if p[a] > 0 else last
        if a != best and p[a] > 0:
            rest += p[a]
            fall += p[a] * below
    for a in range(p.shape[0]):
        p[a] /= 1 + rest
        total += p[a]
        sums[a] = total
    for a in range(last, p.shape[0]):
        sums[a] = 2.0  # whatever the rounding, the last possible action ends the search
    policy.entropy[s] = math.log1p(rest) + fall / (1 + rest)  # no difference: right for tiny entropies, too
    policy.stamp[s] = stamp


@_leaf
def evaluate(theta, tables, policy, stamp, both):
    """(objective, entropy), exact: forward over the distribution of the hidden state.

    both (2, H + 1): room; the last place collects what has ended.
    """
    states = tables.row.shape[0]
    here, ahead = both[0], both[1]
    for h in range(states + 1):
        here[h], ahead[h] = tables.start[h] if h < states else 0.0, 0.0
    objective = entropy = decisions = 0.0
    for t in range(tables.horizon):
        for h in range(states):
            if here[h] > 0:
                s = tables.row[h]
                if policy.stamp[s] != stamp:
                    fresh_row(theta, tables.features, policy, s, stamp)
                decisions += here[h]
                entropy += here[h] * policy.entropy[s]
                objective += _spread(tables, here[h], h, policy.probability[s], ahead, t + 1 < tables.horizon)
                here[h] = 0.0
        here, ahead = ahead, here
    return objective, entropy / decisions


@_inline
def _spread(tables, mass, h, p, ahead, more):
    paid = 0.0
    for a in range(p.shape[0]):
        paid += mass * p[a] * tables.worth[h, a]
        for k in range(tables.chance.shape[2] if more else 0):
            ahead[tables.next[h, a, k]] += mass * p[a] * tables.chance[h, a, k]
    return paid


@_leaf
def expected_outcomes(theta, tables, policy, stamp, both, value):
    """Fill value (Q, R), the expected outcomes as seen, exact: backward over the decisions. both (2, H + 1, R): room."""
    states, actions, outcomes, roles = tables.seen.shape
    now, later = both[0], both[1]
    for h in range(states + 1):
        for r in range(roles):
            now[h, r] = later[h, r] = 0.0
    for s in range(policy.stamp.shape[0]):
        if policy.stamp[s] != stamp:
            fresh_row(theta, tables.features, policy, s, stamp)
    for _ in range(tables.horizon):
        for h in range(states):
            for r in range(roles):
                now[h, r] = 0.0
            for a in range(actions):
                for k in range(outcomes):
                    m, to = policy.probability[tables.row[h], a] * tables.chance[h, a, k], tables.next[h, a, k]
                    for r in range(roles):
                        now[h, r] += m * (tables.seen[h, a, k, r] + later[to, r])
        now, later = later, now
    for q in range(value.shape[0]):
        for r in range(roles):
            value[q, r] = 0.0
            for i in range(tables.first_begin[q], tables.first_begin[q + 1]):
                value[q, r] += tables.first_mass[i] * later[tables.first_state[i], r]


# ---- episodes -------------------------------------------------------------------------------------------------------


@_inline
def pick_prompts(key, weights, times, prompts):
    """Fill `prompts` (groups,): exponential races without replacement, again from the first when all are taken.

    weights (Q,), or (0,) if all are alike: then the numbers themselves, turned round, are in the order of the times.
    """
    taken = min(times.shape[0], prompts.shape[0])
    for q in range(times.shape[0]):
        u, i = uniform(absorb(absorb(key, q), PROMPTS), 0), min(q, taken - 1)
        time = -math.log(u) / weights[q] if weights.shape[0] else -u
        if i == q or time < times[i]:
            while i > 0 and times[i - 1] > time:
                times[i], prompts[i] = times[i - 1], prompts[i - 1]
                i -= 1
            times[i], prompts[i] = time, q
    for g in range(taken, prompts.shape[0]):
        prompts[g] = prompts[g - taken]


@_inline
def draw(key, e):
    """Fill the random numbers of a batch, before anything depends on them: in short loops without choices."""
    for j in range(e.hash.shape[0]):
        e.hash[j] = absorb(absorb(key, j), 0)
    for k in range(e.uniform.shape[0]):
        for t in range(e.uniform.shape[1]):
            numbers = e.uniform[k, t]
            for j in range(numbers.shape[0]):
                numbers[j] = uniform(e.hash[j], 1 + k + 4 * t)
    for t in range(e.normal.shape[0]):
        numbers = e.normal[t]
        for j in range(numbers.shape[0]):
            u, v = uniform(e.hash[j], 3 + 4 * t), uniform(e.hash[j], 4 + 4 * t)
            numbers[j] = math.sqrt(-2 * log(u)) * cosine(v)  # Box and Muller


@_inline
def first_state(tables, q, h):
    i, last = tables.first_begin[q], tables.first_begin[q + 1] - 1
    if i < last:
        u = uniform(h, 0)
        while i < last and tables.first_sum[i] <= u:
            i += 1
    return tables.first_state[i]


@_inline
def place(sums, u):
    """How many of the cumulative sums are at most u. A guess by the processor that fails takes longer than all of them."""
    k = _0
    for i in range(sums.shape[0] - 1):
        k += np.uint64(sums[i] <= u)
    return k


@_inline
def play(theta, tables, policy, stamp, key, branch, size, segment, e):
    """All trajectories of a batch into e, whose prompts are set; how many decisions were made, shared ones once.

    branch > 0: the leaves of trees of `size`, whose numbers are, segment by segment, those of the first leaf below its
    node.
    """
    fresh, cell, roles, states, chance = 0, 0, e.paid.shape[1], tables.row.shape[0], e.uniform.shape[0] > 1
    draw(key, e)
    lazy = policy.stamp.shape[0] > e.prompt.shape[0]  # else nearly all rows will be met
    for s in range(0 if lazy else policy.stamp.shape[0]):
        if policy.stamp[s] != stamp:
            fresh_row(theta, tables.features, policy, s, stamp)
    for j in range(e.prompt.shape[0]):
        shared, t, leaf, tally = size, 0, j, 0
        if branch:
            leaf = j - j % size
        hidden = first_state(tables, e.prompt[j], e.hash[leaf])
        for i in range(j * roles, j * roles + roles):
            e.outcome[i] = e.tokens[i] = 0.0
        while hidden < states and t < tables.horizon:
            if branch and t % segment == 0:
                shared //= branch
                leaf = j - j % shared
            if lazy and policy.stamp[tables.row[hidden]] != stamp:
                fresh_row(theta, tables.features, policy, tables.row[hidden], stamp)
            a = place(policy.sums[tables.row[hidden]], e.uniform[0, t, leaf])
            k = place(tables.sums[hidden, a], e.uniform[1, t, leaf]) if chance else tables.sure[hidden, a]
            own = j * roles + tables.role[hidden]
            e.hidden[cell], e.action[cell], e.unit[cell] = hidden, a, own
            noise = tables.noise[tables.role[hidden]] * e.normal[t, leaf] if e.normal.shape[0] else 0.0
            for r in range(roles):
                paid = tables.seen[hidden, a, k, r] + (noise if r == tables.role[hidden] else 0.0)
                e.paid[cell, r] = paid
                e.outcome[j * roles + r] += paid
            e.tokens[own] += 1
            tally += tables.tally[hidden, a]
            fresh += leaf == j
            hidden = tables.next[hidden, a, k]
            t, cell = t + 1, cell + 1
        e.tally[j], e.first[j + 1] = tally, cell
    return fresh


@_leaf
def rollout(theta, tables, policy, stamp, h, hidden, t, total):
    """Play on from a hidden state before decision t; adds the payoffs to total (R,) and returns the decisions made."""
    begin = t
    while hidden < tables.row.shape[0] and t < tables.horizon:
        if policy.stamp[tables.row[hidden]] != stamp:
            fresh_row(theta, tables.features, policy, tables.row[hidden], stamp)
        a = place(policy.sums[tables.row[hidden]], uniform(h, 1 + 4 * t))
        k = place(tables.sums[hidden, a], uniform(h, 2 + 4 * t)) if tables.random[hidden] else tables.sure[hidden, a]
        scale = tables.noise[tables.role[hidden]]
        if scale > 0:
            scale *= math.sqrt(-2 * math.log(uniform(h, 3 + 4 * t))) * cosine(uniform(h, 4 + 4 * t))
            total[tables.role[hidden]] += scale
        for r in range(total.shape[0]):
            total[r] += tables.seen[hidden, a, k, r]
        hidden = tables.next[hidden, a, k]
        t += 1
    return t - begin


@_leaf
def describe(tables, policy, e, latest, rows):
    """Fill what some of the estimators see besides outcomes. Every payoff goes to its role's latest cell."""
    roles = e.paid.shape[1]
    for j in range(e.prompt.shape[0]):
        for r in range(roles):
            rows.stratum[j * roles + r] = e.tally[j]
            latest[r] = -1
        for c in range(e.first[j], e.first[j + 1]):
            own = tables.role[e.hidden[c]]
            rows.turn[c], rows.role[c], rows.entropy[c] = c - e.first[j], own, policy.entropy[tables.row[e.hidden[c]]]
            rows.reward[c], latest[own] = 0.0, c
            for r in range(roles):
                if latest[r] >= 0:
                    rows.reward[latest[r]] += e.paid[c, r]
