"""The benchmark's cases of the advantage theme."""

import functools
import importlib.util

import numpy as np

from normkit.bench import Case, Work
from normkit.bench_cases import _warm
from normkit.rng import stream

AGENTS = ("contextual_bandit", "search_agent", "dialogue", "two_role_game", "token_chain", "length_drift")
SEEDS, STEPS, TRAJECTORIES = 500, 10, 64


def cases():
    """Those that run anywhere."""
    orders = {"sorted": "float32 rewards in sorted groups of 8", "random": "float32 rewards in mixed groups of 8"}
    groups = [
        Case(f"grpo_{order}_{size}", about, lambda o=order, r=int(float(size)): group_normalization(o, r))
        for size in ("64", "1e7")
        for order, about in orders.items()
    ]
    batch = f"GRPO: {SEEDS} seeds x {STEPS} steps x {TRAJECTORIES} trajectories"
    agents = [Case(f"agent_{name}", batch, lambda n=name: agent(n)) for name in AGENTS]
    return groups + agents + [Case("advantage_lab", "4 methods x 8 seeds x 100 steps x 64 trajectories", lab_curves)]


def group_normalization(order, rows):
    """GRPO's advantages of float32 rewards (rows,) with int64 ids, sorted or mixed, numbered without gaps."""
    from normkit.advantage import estimators

    draw = stream(0, "bench", "grpo", rows)
    rewards = (draw.random(rows) < 0.5) + draw.standard_normal(rows, dtype=np.float32)
    groups = np.arange(rows) // 8
    if order == "random":
        groups = draw.permutation(groups)
    readable, target, seen = estimators.grpo.reference, np.empty_like(rewards), np.empty_like(groups)
    variants = {"normkit": lambda: estimators.grpo(rewards, groups), "numpy": lambda: readable(rewards, groups)}
    floors = {
        "copy of the rewards": lambda: np.copyto(target, rewards),
        "copy of both": lambda: (np.copyto(target, rewards), np.copyto(seen, groups)),
    }
    if order == "sorted":
        variants["numpy, rows of 8"] = lambda: _rows_of_8(rewards)
    if importlib.util.find_spec("torch"):
        variants |= _torch_groups(rewards, groups)
    repeat = max(1, min(1000, 2**18 // rows))
    return Work(variants, readable(rewards.astype(np.float64), groups), floors, repeat=repeat)


def _rows_of_8(rewards):
    """What is left of the work when all groups are known to be sorted and of 8, as TRL has them."""
    r = rewards.reshape(-1, 8)
    return ((r - r.mean(1, keepdims=True)) / (r.std(1, ddof=1, keepdims=True) + 1e-6)).ravel()


def _torch_groups(rewards, groups):
    """With index_add, as verl does, and with what is known here: that the ids are 0..K-1."""
    import torch

    r, ids, k = torch.from_numpy(rewards), torch.from_numpy(groups), int(groups.max()) + 1

    def index_add(r, ids):
        zeros = torch.zeros(k)
        count = zeros.index_add(0, ids, torch.ones_like(r))
        centered = r - (zeros.index_add(0, ids, r) / count)[ids]
        variance = zeros.index_add(0, ids, centered * centered) / (count - 1)
        return centered / (variance.sqrt() + 1e-6)[ids]

    def scatter(r, ids):
        count = torch.bincount(ids, minlength=k)
        centered = r - torch.zeros(k).scatter_reduce(0, ids, r, "mean", include_self=False)[ids]
        variance = torch.zeros(k).scatter_add(0, ids, centered * centered) / (count - 1)
        return centered / (variance.sqrt() + 1e-6)[ids]

    compiled = functools.cache(lambda: torch.compile(index_add, dynamic=False))
    return {
        "torch index_add": lambda: index_add(r, ids),
        "torch scatter": lambda: scatter(r, ids),
        "torch, warm memory": _warm(lambda: index_add(r, ids)),
        "torch.compile": _warm(lambda: compiled()(r, ids)),
    }


def agent(name):
    """Training of a toy agent with GRPO: the mean exact objective over the seeds, before and after.

    All variants but "numpy, counted numbers" and ours draw their libraries' own random numbers.
    """
    from normkit.advantage import environments, estimation, experiment

    environment = getattr(environments, name)()
    size = {"groups": TRAJECTORIES // 8, "group_size": 8, "steps": STEPS}
    rate = {"lr": 0.5, "every": STEPS}
    draw = stream(0, "bench", "agent").random

    def twin(seeds, **options):
        found = estimation.train("grpo", environment, seeds=seeds, **size, **rate, **options).objective
        return np.asarray(found).mean(axis=1)

    def numpy_own(*indices):
        return draw(np.broadcast_shapes(*map(np.shape, indices)))

    seeds = np.arange(SEEDS)
    variants = {
        "normkit": lambda: experiment.learning_curves(environment, "grpo", seeds=SEEDS, **size, **rate).objective.mean(
            0
        ),
        "numpy": lambda: twin(seeds, draw=numpy_own),
        "numpy, counted numbers": lambda: twin(seeds),
    }
    if importlib.util.find_spec("torch"):
        variants["torch"] = _torch_agent(twin)
    if importlib.util.find_spec("jax") and name == "search_agent":
        variants["jax.jit"] = _jax_search_agent(environment)
    trajectories = SEEDS * STEPS * TRAJECTORIES
    return Work(variants, twin(seeds), tolerance=0.1, items=trajectories)  # means of so many runs: about 1 % apart


def _torch_agent(twin):
    import torch

    def own(*indices):
        shape = torch.broadcast_shapes(*(getattr(i, "shape", ()) for i in indices))
        return torch.rand(shape, dtype=torch.float64)

    return lambda: twin(torch.arange(SEEDS), draw=own)


def _jax_search_agent(environment):
    """The search agent alone, written for jax: two choices a trajectory, no table that another agent would need."""
    import jax
    from jax import numpy as jnp

    states, actions = environment.offset.shape
    offset, success = jnp.asarray(environment.offset), jnp.asarray(environment.chance[:, :, 1])

    def step(theta, key):
        keys, logits = jax.random.split(key, 3), theta + offset
        searches = jax.random.categorical(keys[0], logits[0], shape=(TRAJECTORIES,))
        answer = jax.random.categorical(keys[1], logits[1 + searches])
        reward = (jax.random.uniform(keys[2], (TRAJECTORIES,)) < success[1 + searches, answer]).reshape(-1, 8)
        centered = reward - reward.mean(1, keepdims=True)
        weight = (centered / (reward.std(1, ddof=1, keepdims=True) + 1e-6)).reshape(-1) / (2 * TRAJECTORIES)
        chosen = jnp.zeros((states, actions)).at[0, searches].add(weight).at[1 + searches, answer].add(weight)
        return theta + 0.5 * (chosen - jax.nn.softmax(logits) * chosen.sum(1, keepdims=True)), None

    def objective(theta):
        policy = jax.nn.softmax(theta + offset)
        return policy[0, : states - 1] @ (policy * success).sum(1)[1:]

    @jax.jit
    @jax.vmap
    def run(key):
        theta = jnp.zeros((states, actions))
        return jnp.stack([objective(theta), objective(jax.lax.scan(step, theta, jax.random.split(key, STEPS))[0])])

    keys = jax.random.split(jax.random.key(0), SEEDS)
    return lambda: np.asarray(run(keys)).mean(axis=0)


def lab_curves():
    """What the lab computes when a slider moves: the final objectives of four methods on the search agent."""
    from normkit.advantage import environments, estimation, experiment

    environment, methods = environments.search_agent(), ("grpo", "rloo", "san", "bnpo")
    size = {"groups": 8, "group_size": 8, "steps": 100, "lr": 0.5}

    def curves():
        return [experiment.learning_curves(environment, m, seeds=8, **size).objective[:, -1].mean() for m in methods]

    readable = [estimation.train(m, environment, seeds=np.arange(8), **size).objective[-1].mean() for m in methods]
    return Work({"normkit": lambda: np.array(curves())}, np.array(readable), tolerance=1e-9)
