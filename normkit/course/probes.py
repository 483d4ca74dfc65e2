"""What runs in the student's process: hidden cells emit what the student's function returned, and compare nothing.

The values leave as JSON under our own mime type; `normkit.course.nbval_plugin` compares them in another process.
"""

import copy
import math
import numbers
import sys
import warnings
from collections.abc import Collection, Mapping, Set
from decimal import Decimal
from itertools import islice

import numpy as np

from normkit.rng import stream

MIME = "application/vnd.normkit.answer+json"
VALUES = 40_000  # numbers that one array or list may hold; as text they fit into what a cell may print
seeds: dict[str, int] = {}  # question -> seed; the grader fills it in the probe's own cell, after the answers ran
_sink = None  # while course.check runs, a list that takes what is emitted


def secret(question: str) -> np.random.Generator:
    """The generator that a probe draws its inputs from: secret when grading, a public one for `course.check`."""
    return stream(seeds.get(question, 0), "probe", question)


def calls(function, cases) -> list:
    """[function(*case) for case in cases] on copies of the inputs; an exception becomes `Raised`, its name.

    Warnings are left aside: whether they are errors depends on where the notebook runs.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [_call(function, case) for case in cases]


class Raised(str):
    """The name of the exception that a call raised."""


def _call(function, case):
    try:
        return function(*copy.deepcopy(case))
    except Exception as error:
        return Raised("ValueError" if isinstance(error, ValueError) else type(error).__name__)


def emit(question: str, values, *, rtol: float = 1e-6, atol: float = 0.0) -> None:
    """Emit the student's `values` for a question. The tolerances that count are those of the master's own run."""
    payload = {"question": question, "values": encode(values), "rtol": rtol, "atol": atol}
    if _sink is not None:
        _sink.append(payload)
    else:
        from IPython.display import publish_display_data

        publish_display_data({MIME: payload, "text/plain": question})


def capture(source: str, namespace: dict, seed: int, question: str) -> dict:
    """Run a probe's source in a copy of `namespace` with a public seed; returns what it emitted.

    Raises what the probe raises, and ValueError unless it emits once.
    """
    global _sink
    kept, _sink = (_sink, seeds.get(question)), []
    seeds[question] = seed
    try:
        exec(compile(source, f"<probe {question}>", "exec"), dict(namespace))
        if len(_sink) != 1:
            raise ValueError(f"the probe of {question} must emit once, it did so {len(_sink)} times")
        return _sink[0]
    finally:
        _sink = kept[0]
        seeds.pop(question)
        if kept[1] is not None:
            seeds[question] = kept[1]


def encode(value):
    """`value` as JSON: numbers, text, None, lists, dicts; an array or tensor is {"array": flat values, "shape": shape}.

    Any collection is a list (a set in order), any mapping a dict with text for keys, a fraction or a decimal a number. What
    is not finite is "nan", "inf" or "-inf" within {"number": ...}. What cannot be said so is {"other": type}.
    """
    value = _array(value)
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "biuf" or value.size > VALUES:
            return {"other": f"array of {value.dtype}, shape {value.shape}"}
        return {"array": [_number(v) for v in value.astype(np.float64).ravel().tolist()], "shape": list(value.shape)}
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, numbers.Real | Decimal):
        return _number(float(value))
    if isinstance(value, Raised):
        return {"raised": str(value)}
    if value is None or isinstance(value, str):
        return value if value is None else value[:10_000]
    if isinstance(value, Mapping):
        return {"dict": {_key(k): encode(v) for k, v in islice(value.items(), VALUES)}}
    if isinstance(value, Set):
        value = sorted(value, key=lambda v: (isinstance(v, str), v))
    if isinstance(value, Collection) and not isinstance(value, bytes | bytearray):
        return [encode(v) for v in islice(value, VALUES)]
    return {"other": type(value).__name__}


def _array(value):
    """A plain array for a tensor, a Series, a matrix or another kind of array; a scalar for one without dimensions."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        value = value.numpy() if value.is_complex() else value.double().numpy()
    if hasattr(type(value), "__array__"):
        value = np.asarray(value)
        if value.dtype.kind == "U":
            return value.tolist()
        return value[()] if value.ndim == 0 and value.dtype.kind in "biuf" else value
    return value


def _key(key):
    """1, 1.0 and np.int64(1) are one key of a dict, and here one text."""
    if isinstance(key, tuple):
        return f"({', '.join(map(_key, key))})"
    return str(int(key)) if isinstance(key, numbers.Real) and key == int(key) else str(key)


def _number(value):
    return value if math.isfinite(value) else {"number": str(value)}
