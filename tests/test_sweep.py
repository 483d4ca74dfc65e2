import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from normkit.sweep import sweep


def slow_first(a, b):
    time.sleep(0.05 if (a, b) == (1, "x") else 0)  # the first point finishes last
    return f"{a}{b}"


def divide(a, b):
    return a / b


def draw(a, seed):
    return seed


def test_records_stand_in_the_grids_order_whichever_finishes_first():
    with ThreadPoolExecutor(4) as pool:
        records = sweep(slow_first, {"a": [1, 2], "b": "xy"}, executor=pool)
    assert records == [
        {"a": 1, "b": "x", "result": "1x"},
        {"a": 1, "b": "y", "result": "1y"},
        {"a": 2, "b": "x", "result": "2x"},
        {"a": 2, "b": "y", "result": "2y"},
    ]


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")
def test_the_default_is_a_process_pool():
    assert [r["result"] for r in sweep(divide, {"a": [6.0], "b": [2, 3]})] == [3, 2]


def test_an_error_names_the_point_and_keeps_its_cause():
    with ThreadPoolExecutor(1) as pool, pytest.raises(RuntimeError, match=r"at a=5, b=0: ZeroDivisionError") as caught:
        sweep(divide, {"a": [5], "b": [1, 0, 2]}, executor=pool)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_seeds_depend_on_the_seed_and_the_point_only():
    def seeds(workers, seed):
        with ThreadPoolExecutor(workers) as pool:
            return [r["seed"] for r in sweep(draw, {"a": range(5)}, executor=pool, seed=seed)]

    assert seeds(1, 3) == seeds(4, 3)
    assert len(set(seeds(1, 3)) | set(seeds(1, 4))) == 10


def test_progress_is_optional(capsys):
    with ThreadPoolExecutor(1) as pool:
        sweep(divide, {"a": [1, 2], "b": [1]}, executor=pool)
        assert capsys.readouterr().err == ""
        sweep(divide, {"a": [1, 2], "b": [1]}, executor=pool, progress=True)
        assert "2/2" in capsys.readouterr().err


def test_bad_grids():
    with ThreadPoolExecutor(1) as pool:
        for grid in {}, {"a": [], "b": [1]}:
            with pytest.raises(ValueError, match="at least one value"):
                sweep(divide, grid, executor=pool)
        with pytest.raises(TypeError, match="cannot be called with a, c"):
            sweep(divide, {"a": [1], "c": [1]}, executor=pool)
        with pytest.raises(ValueError, match="result"):
            sweep(divide, {"a": [1], "result": [1]}, executor=pool)
