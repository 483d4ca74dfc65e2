"""One function over a grid of arguments, on any concurrent.futures.Executor."""

import inspect
import itertools
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait


def sweep(function, grid, *, executor=None, seed=None, progress=False):
    """[{**point, "result": function(**point)}, ...] over the product of `grid`, last name fastest.

    grid: name -> sequence of values. executor: any concurrent.futures.Executor, e.g. Dask's `client.get_executor()`;
    by default a process pool, for which `function` must be importable. Records stand in the grid's order, whichever
    finishes first. seed: if given, each point is also passed `seed=`, a number that depends on `seed` and on the
    point's place in the grid only. progress: show a bar.

    Raises ValueError for an empty grid or axis, TypeError for a name that `function` does not take, and RuntimeError
    that names the point where `function` raised (its cause is the original error); what has not begun is cancelled.
    """
    axes = {name: list(values) for name, values in grid.items()}
    empty = [name for name, values in axes.items() if not values]
    if not axes or empty:
        raise ValueError(f"the grid needs at least one value on each axis, got {', '.join(empty) or 'no axis'} empty")
    if "result" in axes or (seed is not None and "seed" in axes):
        raise ValueError("'result' is kept for the result, and 'seed' for seed=; rename the argument")
    points = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    calls = points if seed is None else [p | {"seed": _seed(seed, i)} for i, p in enumerate(points)]
    try:
        inspect.signature(function).bind(**calls[0])
    except TypeError as error:
        raise TypeError(f"the function cannot be called with {', '.join(calls[0])}: {error}") from error
    if executor is not None:
        results = _gather(function, calls, executor, progress)
    else:
        with ProcessPoolExecutor() as pool:
            results = _gather(function, calls, pool, progress)
    return [call | {"result": result} for call, result in zip(calls, results, strict=True)]


def _gather(function, calls, executor, progress):
    futures = [executor.submit(function, **call) for call in calls]
    index = {id(f): i for i, f in enumerate(futures)}
    bar = _bar(len(calls)) if progress else None
    waiting = set(futures)
    try:
        while waiting:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in sorted(done, key=lambda f: index[id(f)]):
                if future.exception() is not None:
                    call = ", ".join(f"{k}={v!r}" for k, v in calls[index[id(future)]].items())
                    raise RuntimeError(f"the sweep failed at {call}: {future.exception()!r}") from future.exception()
                if bar is not None:
                    bar.update()
    finally:
        for future in waiting:
            future.cancel()
        if bar is not None:
            bar.close()
    return [f.result() for f in futures]


def _bar(total):
    from tqdm.auto import tqdm

    return tqdm(total=total, unit="point")


def _seed(seed, i):
    from normkit.rng import stream

    return int(stream(seed, "sweep", i).integers(2**63))
