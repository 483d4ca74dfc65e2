"""`normkit bench`: the same work by normkit, by its peers and by the memory floor, interleaved in one run.

Every variant is first compared with a float64 reference; a wrong one is not timed. Then each round runs every variant
once, so that a busy machine slows all alike, in an order of its own, since a variant leaves threads and a cache behind:
read the ratios (the median over rounds of a variant's time over normkit's), not the times. The cases stand in
bench_cases.py.
"""

import json
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

import numpy as np

from normkit.rng import stream


@dataclass(frozen=True)
class Work:
    """One piece of work, ready to run. variants: name -> function without arguments that returns the result.

    "normkit" is ours and is what ratios are taken to. floors (e.g. a copy of the same bytes) are timed, not checked.
    repeat: calls per timing. tolerance: largest error allowed, relative to the largest entry of `reference`.
    clock: maps (function, repeat) to seconds a call. items: how many things, such as trajectories, one call makes.
    """

    variants: dict[str, Callable]
    reference: np.ndarray
    floors: dict[str, Callable] = field(default_factory=dict)
    repeat: int = 1
    tolerance: float = 1e-5
    clock: Callable | None = None
    items: int | None = None


@dataclass(frozen=True)
class Case:
    """A named piece of work; `setup()` makes the arrays and the variants of whatever is installed."""

    name: str
    about: str
    setup: Callable[[], Work]


@dataclass(frozen=True)
class Result:
    """seconds: median over rounds; low, high: quartiles; ratio: median of this variant's time / normkit's.

    error: largest difference from float64, relative to its largest entry (None for a floor). refused: why it was not
    timed, or None. rate: items a second, where the work counts them.
    """

    case: str
    variant: str
    seconds: float | None = None
    low: float | None = None
    high: float | None = None
    ratio: float | None = None
    error: float | None = None
    refused: str | None = None
    rate: float | None = None


def run(only=None, rounds=9, cases=None):
    """Time the cases (all, or those whose name starts with `only`); a list of Result. A line a case goes to stderr.

    Raises ValueError for a name that no case has and for rounds < 1.
    """
    if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1:
        raise ValueError(f"rounds must be an integer >= 1, got {rounds!r}")
    if cases is None:
        from normkit.bench_cases import cases as known

        cases = known()
    chosen = [c for c in cases if only is None or c.name.startswith(only)]
    if not chosen:
        raise ValueError(f"no benchmark is named {only!r}; there are {', '.join(c.name for c in cases)}")
    results = []
    for number, case in enumerate(chosen, 1):
        print(f"{number} of {len(chosen)}  {case.name}: {case.about}", file=sys.stderr, flush=True)
        results += _measure(case, rounds)
    return results


def _measure(case, rounds):
    work = case.setup()
    errors, refused = {}, {}
    for name, variant in work.variants.items():
        errors[name], refused[name] = _check(variant, work)
    timed = {name: f for name, f in work.variants.items() if refused[name] is None} | work.floors
    clock = work.clock or _wall
    for floor in work.floors.values():
        floor()  # first touch of its memory; the variants were warmed by their check
    seconds = {name: np.empty(rounds) for name in timed}
    order = stream(0, "bench", case.name)
    for i in range(rounds):
        for name in order.permutation(list(timed)):
            seconds[name][i] = clock(timed[name], work.repeat)
    results = []
    for name in [*work.variants, *work.floors]:
        if name not in timed:
            results.append(Result(case.name, name, error=errors[name], refused=refused[name]))
            continue
        low, median, high = (float(q) for q in np.quantile(seconds[name], [0.25, 0.5, 0.75]))
        ratio = float(np.median(seconds[name] / seconds["normkit"])) if "normkit" in timed else None
        rate = work.items / median if work.items else None
        results.append(Result(case.name, name, median, low, high, ratio, errors.get(name), rate=rate))
    return results


def _check(variant, work):
    """(error, why refused or None)."""
    try:
        got = np.asarray(variant(), np.float64)
    except Exception as failure:  # a peer that cannot do it here is a finding, not the end of the run
        return None, f"it failed: {type(failure).__name__}: {str(failure)[:200]}"
    if got.shape != work.reference.shape:
        return None, f"its result has shape {got.shape}, the reference {work.reference.shape}"
    error = float(np.max(np.abs(got - work.reference)) / np.max(np.abs(work.reference)))
    if not error <= work.tolerance:
        return error if np.isfinite(error) else None, f"its error {error:.1e} exceeds {work.tolerance:.0e}"
    return error, None


def _wall(function, repeat):
    start = time.perf_counter()
    for _ in range(repeat):
        function()
    return (time.perf_counter() - start) / repeat


def report(results):
    """The results as a text table."""
    lines = [
        f"{'case':22s} {'variant':18s} {'median':>10s} {'quartiles':>19s} {'/ normkit':>9s} {'error':>8s} {'a second':>9s}"
    ]
    for r in results:
        error = "" if r.error is None else f"{r.error:.0e}"
        if r.refused:
            lines.append(f"{r.case:22s} {r.variant:18s} not timed: {r.refused}")
            continue
        ratio = "" if r.ratio is None else f"{r.ratio:.2f}"
        rate = "" if r.rate is None else f"{r.rate:.2g}"
        quartiles = f"{_pretty(r.low)} .. {_pretty(r.high)}"
        lines.append(
            f"{r.case:22s} {r.variant:18s} {_pretty(r.seconds):>10s} {quartiles:>19s} {ratio:>9s} {error:>8s} {rate:>9s}".rstrip()
        )
    return "\n".join(lines)


def _pretty(seconds):
    unit, scale = next((u for u in (("s", 1), ("ms", 1e-3)) if seconds >= u[1]), ("us", 1e-6))
    return f"{seconds / scale:.3g} {unit}"


def _cpu():
    """The processor's model as Linux names it, elsewhere what Python knows of it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or None


def main(json_output=False, only=None, rounds=9, cases=None):
    """Run, print the table (or JSON) and return the exit code: 0, 1 if normkit was wrong, 2 for an unknown name."""
    try:
        results = run(only, rounds, cases)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if json_output:
        machine = {"system": platform.system(), "machine": platform.machine(), "python": platform.python_version()}
        machine |= {"cpu": _cpu(), "cores": os.cpu_count()}
        print(json.dumps({"machine": machine, "numpy": np.__version__, "results": [asdict(r) for r in results]}))
    else:
        print(report(results))
    return int(any(r.refused and r.variant == "normkit" for r in results))
