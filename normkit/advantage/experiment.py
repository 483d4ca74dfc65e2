"""Toy agents under every estimator: moments of the estimated gradient, and learning curves over many seeds.

The compiled engine behind both draws the episodes of sampling.py from counted random numbers: a result depends on its
seed alone, not on the number of threads, of other seeds or of steps. Readable twin: estimation.py.

Options of the methods: options.py. Hash seeds: curve i of `learning_curves(seed=s)` has s * 1000003 + i, the batches of
`gradient_statistics(seed=s)` and `advantage_sample` are those of curve 0, and `tune` adds 2**62: it never sees a number that
any of the others draws.
"""

import functools
import itertools
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from normkit.advantage.environments import Environment
from normkit.advantage.exact import exact
from normkit.advantage.methods import AGGREGATIONS, METHODS
from normkit.advantage.options import method_options, vector
from normkit.arrays import finite, shaped
from normkit.checks import count, pick, positive

SEEDS = 1_000_003  # hash seeds reserved for one `seed`
TUNING = 1 << 62
SERIAL = 20_000  # trajectories (some 2 ms): below, starting threads costs more than it gains
RUNS = 64  # into which the batches of `gradient_statistics` are cut, roughly


@dataclass(frozen=True, eq=False)
class GradientStatistics:
    """Moments of the estimated gradient g_hat over independent batches, at fixed parameters. D parameters, A actions.

    mean, error, gradient (D, A): E g_hat, its standard error, and the exact gradient g. bias: |E g_hat - g|; its own noise
    is noise = sqrt(tr Cov / batches). cosine of E g_hat and g, scale <E g_hat, g> / |g|^2, trace of Cov(g_hat), snr
    <E g_hat, g> / (|g| sqrt(tr Cov)), batch_cosine: mean over batches (a batch without a gradient counts 0), cv: standard
    deviation of |g_hat| over its mean. degenerate: share of groups whose outcomes are all equal; zero: of decisions with
    advantage 0. objective and entropy: exact, of the policy. Ratios to a gradient of exactly 0 are NaN.
    """

    method: str
    batches: int
    mean: np.ndarray
    error: np.ndarray
    gradient: np.ndarray
    bias: float
    noise: float
    cosine: float
    scale: float
    trace: float
    snr: float
    batch_cosine: float
    cv: float
    degenerate: float
    zero: float
    objective: float
    entropy: float


@dataclass(frozen=True, eq=False)
class LearningCurves:
    """step (P,): steps done; objective, entropy (seeds, P): exact, at each of them; theta (seeds, D, A): at the end.

    degenerate, zero (seeds, P): shares of groups and of decisions, see `GradientStatistics`, in the batches since the
    point before (NaN at the first). decisions (seeds, P): sampled so far, rollouts included and a tree's shared ones once.
    finite (seeds,): whether the parameters stayed finite; where not, objective and entropy are NaN from there on.
    """

    method: str
    lr: float
    step: np.ndarray
    objective: np.ndarray
    entropy: np.ndarray
    degenerate: np.ndarray
    zero: np.ndarray
    decisions: np.ndarray
    theta: np.ndarray
    finite: np.ndarray


@dataclass(frozen=True, eq=False)
class Tuning:
    """rate: the best of rates (n,); score (seeds, n): the criterion on every tuning seed, NaN where training diverged.

    inside: whether the best rate has a neighbor on both sides, that is, whether the grid was wide enough.
    """

    rate: float
    rates: np.ndarray
    score: np.ndarray
    inside: bool


@dataclass(frozen=True, eq=False)
class AdvantageSample:
    """One batch: advantages (N, T), 0 outside `mask`, and what they came from, in the order of the units.

    rewards, groups, strata, roles, prompts (N,); turns, mask, entropy (N, T), see `sampling.Batch`; actions (n, T).
    """

    advantages: np.ndarray
    rewards: np.ndarray
    groups: np.ndarray
    strata: np.ndarray
    roles: np.ndarray
    prompts: np.ndarray
    turns: np.ndarray
    mask: np.ndarray
    entropy: np.ndarray
    actions: np.ndarray


def gradient_statistics(
    environment: Environment, method: str, *, theta=None, groups: int = 8, group_size: int = 8, batches: int = 1000,
    seed: int = 0, aggregation: str | None = None, **options,
) -> GradientStatistics:  # fmt: skip
    """Moments of a method's estimated gradient at theta (D, A), the environment's own unless given.

    groups groups of group_size trajectories a batch; aggregation: one of AGGREGATIONS, the method's own unless given.
    spo: the batches form one sequence, after enough of them for the memory to forget how it began.
    Raises ValueError for fewer than 2 batches, unknown names, options that the method does not have or out of range, and
    parameters or gradients that are not finite; TypeError for what is of the wrong type.
    """
    batches = count("batches", batches, 2, "there is a variance to measure")
    engine = _engine(environment, method, theta, groups, group_size, aggregation, options)
    length, first, memory = _length(batches), 0, None
    if method == "spo":
        answers = groups * group_size / environment.prompts
        length, first = batches, math.ceil(3 / max(1 - engine.options["rho"], 0.01) / answers)
        memory = engine.run(_hash_seeds(seed, 1), first, 0.0).memory
    begin = first + np.arange(0, batches, length)
    hash_seeds = np.repeat(_hash_seeds(seed, 1), begin.size)
    run = engine.run(hash_seeds, length, 0.0, first=begin, every=length, memory=memory, keep=True)
    g = finite(f"{method}'s estimated gradient", run.gradients.reshape(batches, *engine.theta.shape))
    degenerate, zero = run.found[:, 2:4, -1].mean(axis=0)
    return GradientStatistics(
        method, batches, **_moments(g, exact(environment, engine.theta)), degenerate=degenerate, zero=zero
    )


def _length(batches):
    """Batches in each of about RUNS runs, all of the same length."""
    runs = [r for r in range(1, batches + 1) if batches % r == 0]
    return batches // min(runs, key=lambda r: abs(math.log(r / RUNS)))


def _moments(g, truth):
    batches, mean, true = len(g), g.mean(axis=0), truth.gradient
    variance = np.square(g - mean).sum(axis=0) / (batches - 1)
    trace, along, size = variance.sum(), np.vdot(mean, true), np.linalg.norm(true)
    norms = np.linalg.norm(g, axis=(1, 2))
    with np.errstate(divide="ignore", invalid="ignore"):
        cosines = np.where(norms > 0, np.sum(g * true, axis=(1, 2)) / np.where(norms > 0, norms, 1.0), 0.0) / size
        ratios = {
            "cosine": along / (size * np.linalg.norm(mean)),
            "scale": along / size**2,
            "snr": along / (size * np.sqrt(trace)),
            "batch_cosine": cosines.mean(),
            "cv": norms.std(ddof=1) / norms.mean(),
        }
    return {
        "mean": mean,
        "error": np.sqrt(variance / batches),
        "gradient": true,
        "bias": float(np.linalg.norm(mean - true)),
        "noise": float(np.sqrt(trace / batches)),
        "trace": float(trace),
        "objective": float(truth.objective),
        "entropy": float(truth.entropy),
        **{name: float(x) if np.isfinite(x) else math.nan for name, x in ratios.items()},
    }


def learning_curves(
    environment: Environment, method: str, *, lr: float, theta=None, steps: int = 200, groups: int = 8,
    group_size: int = 8, seeds: int = 100, seed: int = 0, every: int = 5, aggregation: str | None = None, **options,
) -> LearningCurves:  # fmt: skip
    """Plain stochastic gradient ascent, theta += lr g_hat, of `seeds` agents that start at theta (D, A); measured before
    the first step, after each `every`-th and after the last.

    lr 0 leaves the parameters where they are. The other arguments and the errors are those of `gradient_statistics`;
    ValueError for a negative lr, more than 1000003 seeds, and steps, seeds or every below 1.
    """
    positive("lr", lr, zero=True), count("steps", steps), count("every", every)
    engine = _engine(environment, method, theta, groups, group_size, aggregation, options)
    return _curves(engine, lr, steps, every, _hash_seeds(seed, seeds))


def _curves(engine, lr, steps, every, hash_seeds):
    run = engine.run(hash_seeds, steps, lr, every=every)
    objective, entropy, degenerate, zero, decisions = np.ascontiguousarray(run.found.swapaxes(0, 1))
    good = np.isfinite(run.theta).all(axis=(1, 2)) & np.isfinite(objective[:, -1])
    return LearningCurves(
        engine.method, lr, _points(steps, every), objective, entropy, degenerate, zero, decisions, run.theta, good
    )


def exact_curve(environment: Environment, *, lr: float, theta=None, steps: int = 200, every: int = 5) -> LearningCurves:
    """The curve of one agent that climbs the exact gradient: what `learning_curves` would be without noise or bias.

    Shares of groups are NaN, and no decision is sampled. Raises as `learning_curves` does.
    """
    positive("lr", lr, zero=True), count("steps", steps), count("every", every)
    theta, found, step = _start(environment, theta), [], _points(steps, every)
    for now in range(steps + 1):
        truth = exact(environment, theta)
        if now in (step if now == steps else step[:-1]):
            found.append((truth.objective, truth.entropy))
        theta = theta + lr * truth.gradient if now < steps else theta
    (objective, entropy), none = np.array(found).T[:, None], np.full((1, step.size), math.nan)
    return LearningCurves(
        "exact", lr, step, objective, entropy, none, none, np.zeros((1, step.size)), theta[None], np.ones(1, bool)
    )


def tune(
    environment: Environment, method: str, rates, *, seed: int = 0, seeds: int = 20, steps: int = 200, every: int = 5,
    criterion: str = "final", theta=None, groups: int = 8, group_size: int = 8, aggregation: str | None = None, **options,
) -> Tuning:  # fmt: skip
    """The learning rate with the best mean over `seeds` tuning seeds, which no result of the same `seed` uses.

    rates (n,): those to try, not negative. criterion: "final", the objective after the last step, or "area", its mean over
    the points, every `every` steps. All rates see the same random numbers. A rate at which any seed diverges is out;
    ValueError if all are, and as `learning_curves` does.
    """
    rates = finite("rates", np.asarray(rates, dtype=np.float64))
    pick("criterion", criterion, ("final", "area"))
    if rates.ndim != 1 or not rates.size or rates.min() < 0:
        raise ValueError(f"rates must be a list of numbers, none negative, got {rates}")
    count("steps", steps), count("every", every)
    engine = _engine(environment, method, theta, groups, group_size, aggregation, options)
    hash_seeds, score = TUNING + _hash_seeds(seed, seeds), []
    for rate in rates:
        objective = _curves(engine, rate, steps, steps if criterion == "final" else every, hash_seeds).objective
        score.append(objective[:, -1] if criterion == "final" else objective.mean(axis=1))
    score = np.stack(score, axis=1)
    mean = score.mean(axis=0)
    if np.isnan(mean).all():
        raise ValueError(f"{method} diverges at all rates, {rates.tolist()}: give smaller ones")
    best = int(np.nanargmax(mean))
    return Tuning(float(rates[best]), rates, score, bool(rates.min() < rates[best] < rates.max()))


def advantage_sample(
    environment: Environment, method: str, *, theta=None, groups: int = 8, group_size: int = 8, seed: int = 0,
    step: int = 0, **options,
) -> AdvantageSample:  # fmt: skip
    """The first batch of `learning_curves(seed=seed)`, or its batch `step` if theta (D, A) is as it was then, and the
    advantages that a method gives it. spo: with a memory that knows nothing yet. Raises as `gradient_statistics` does.
    """
    from normkit.advantage.estimation import advantages
    from normkit.advantage.sampling import sample

    engine = _engine(environment, method, theta, groups, group_size, None, options)
    size, theta = {"groups": groups, "group_size": group_size}, engine.theta[None]
    branch = engine.options.get("branch")
    batch = sample(environment, theta, **size, seeds=_hash_seeds(seed, 1), step=count("step", step, 0), branch=branch)
    wanted = {name: x for name, x in engine.options.items() if name not in ("rho", "prioritized")}
    if method == "san":  # one family or the other
        wanted = {"kappa": wanted["kappa"]} if wanted.pop("kappa") is not None else wanted
    memory = np.full((1, environment.prompts, 2), 0.5)
    a = advantages(method, batch, environment, theta, memory=memory, **wanted)
    a = np.where(batch.mask, a if a.ndim == 2 else a[:, None], 0.0)
    names = ("rewards", "groups", "strata", "roles", "prompts", "turns", "mask", "entropy", "actions")
    return AdvantageSample(a, *(getattr(batch, name) for name in names))


# ---- the engine -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Run:
    theta: np.ndarray
    memory: np.ndarray
    gradients: np.ndarray
    found: np.ndarray  # (B, 5, P): objective, entropy, degenerate, zero, decisions


@dataclass(frozen=True)
class _Engine:
    environment: Environment
    method: str
    theta: np.ndarray
    groups: int
    group_size: int
    aggregation: str
    options: dict

    def run(self, hash_seeds, steps, lr, *, first=None, every=0, memory=None, keep=False):
        """Train one agent for each hash seed (B,); its batches count from first (B,). every 0: no points."""
        import numba

        from normkit.advantage.simulation_kernels import train, workspace

        seeds, prompts = len(hash_seeds), self.environment.prompts
        theta = np.repeat(self.theta[None], seeds, axis=0)
        first = np.zeros(seeds, np.int64) if first is None else first
        memory = np.full((seeds, prompts, 2), 0.5) if memory is None else memory.copy()
        gradients = np.full((seeds, steps if keep else 0, *self.theta.shape), math.nan)
        found = np.full((seeds, 5, len(_points(steps, every)) if every else 0), math.nan)
        numbers = list(METHODS).index(self.method), AGGREGATIONS.index(self.aggregation), vector(self.options)
        tables, plan = tables_of(self.environment), (self.groups, self.group_size, float(lr), max(every, 1))

        def work(part):
            train(
                tables, theta[part], hash_seeds[part], first[part], steps, *numbers, *plan, memory[part],
                gradients[part], found[part],
                workspace(tables, numbers[0], self.groups, self.group_size, self.theta.shape),
            )  # fmt: skip

        parts = min(seeds, numba.get_num_threads())
        if parts == 1 or seeds * steps * self.groups * self.group_size < SERIAL:
            work(slice(None))
        else:  # threads of our own: the kernel holds no lock, and numba takes 10 s longer to compile a parallel one
            ends = np.linspace(0, seeds, parts + 1).astype(int)
            mine, *others = (slice(a, b) for a, b in itertools.pairwise(ends))
            with ThreadPoolExecutor(parts - 1) as pool:
                done = pool.map(work, others)
                work(mine)
                list(done)  # raises what was raised there
        return _Run(theta, memory, gradients, found)


def _engine(environment, method, theta, groups, group_size, aggregation, options):
    if not isinstance(environment, Environment):
        raise TypeError(
            f"environment must be an Environment, got {environment!r}; environments.ENVIRONMENTS builds them"
        )
    count("groups", groups), count("group_size", group_size)
    options = method_options(method, options, group_size)
    aggregation = METHODS[method] if aggregation is None else pick("aggregation", aggregation, AGGREGATIONS)
    return _Engine(environment, method, _start(environment, theta), groups, group_size, aggregation, options)


def _start(environment, theta):
    theta = environment.theta if theta is None else np.asarray(theta, dtype=np.float64)
    return finite("theta", shaped("theta", theta, environment.theta.shape, "the environment"))


def _hash_seeds(seed, seeds):
    if count("seeds", seeds) > SEEDS:
        raise ValueError(f"at most {SEEDS} seeds, got {seeds}; take several values of seed instead")
    if count("seed", seed, 0) >= TUNING // SEEDS:
        raise ValueError(f"seed must be below {TUNING // SEEDS}, got {seed}")
    return seed * SEEDS + np.arange(seeds, dtype=np.int64)


def _points(steps, every):
    return np.unique(np.r_[np.arange(0, steps, every), steps])


@functools.lru_cache(maxsize=64)
def tables_of(environment: Environment):
    """The kernels' form of an environment."""
    from normkit.advantage.episode_kernels import Features, Tables

    # indices that are read at every decision are unsigned: numba leaves out the check for those that count from the end
    chance, states, unsigned = environment.chance.copy(), environment.states, np.uint64
    first_begin, first_state, mass = _nonzero(environment.start)
    last = environment.outcomes - 1 - np.argmax(chance[..., ::-1] > 0, axis=-1)
    capped, several = np.arange(environment.outcomes) >= last[..., None], np.sum(chance > 0, axis=-1) > 1
    return Tables(
        horizon=environment.horizon,
        features=Features(*_nonzero(environment.features), environment.offset.copy()),
        start=environment.start.mean(axis=0),
        first_begin=first_begin,
        first_state=first_state.astype(unsigned),
        first_mass=mass,
        first_sum=np.concatenate([np.cumsum(mass[a:b]) for a, b in itertools.pairwise(first_begin)]),
        row=environment.row.astype(unsigned),
        role=environment.role.astype(unsigned),
        worth=np.sum(chance[..., None] * environment.pay, axis=(-2, -1)) / environment.roles,
        random=several.any(-1),
        sure=last.astype(unsigned),
        chance=chance,
        sums=np.where(capped, 2.0, np.cumsum(chance, axis=-1)),
        next=np.where(environment.next < 0, states, environment.next).astype(unsigned),
        **{
            name: getattr(environment, name).copy() for name in ("seen", "noise", "tally")
        },  # one type, can be written to
    )


def _nonzero(matrix):
    """(begin, column, value) of a matrix's entries that are not 0, row by row."""
    row, column = map(np.ascontiguousarray, np.nonzero(matrix))  # one type for numba, whatever the matrix
    return np.searchsorted(row, np.arange(len(matrix) + 1)), column, matrix[row, column]
