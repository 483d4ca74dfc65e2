"""Compare two emissions, as JSON, in a process that never ran the student's code."""

import sys

import numpy as np

SCHEMA = {
    "type": "object",
    "required": ["question", "values", "rtol", "atol"],
    "additionalProperties": False,
    "properties": {
        "question": {"type": "string"},
        "rtol": {"type": "number", "minimum": 0},
        "atol": {"type": "number", "minimum": 0},
        "values": {"$ref": "#/$defs/value"},
    },
    "$defs": {
        "number": {
            "anyOf": [
                {"type": "number"},
                {
                    "type": "object",
                    "required": ["number"],
                    "additionalProperties": False,
                    "properties": {"number": {"enum": ["nan", "inf", "-inf"]}},
                },
            ]
        },
        "value": {
            "anyOf": [
                {"type": ["null", "boolean", "string", "number"]},
                {"type": "array", "items": {"$ref": "#/$defs/value"}},
                {"$ref": "#/$defs/number"},
                {"type": "object", "required": ["raised"], "properties": {"raised": {"type": "string"}}},
                {"type": "object", "required": ["other"], "properties": {"other": {"type": "string"}}},
                {
                    "type": "object",
                    "required": ["dict"],
                    "properties": {"dict": {"type": "object", "additionalProperties": {"$ref": "#/$defs/value"}}},
                },
                {
                    "type": "object",
                    "required": ["array", "shape"],
                    "properties": {
                        "array": {"type": "array", "items": {"$ref": "#/$defs/number"}},
                        "shape": {"type": "array", "maxItems": 32, "items": {"type": "integer", "minimum": 0}},
                    },
                },
            ]
        },
    },
}


def judge(reference: dict, emitted) -> str | None:
    """`difference` for what comes from another process: anything that is not of the form `SCHEMA` is refused in words."""
    import jsonschema

    try:
        jsonschema.validate(emitted, SCHEMA)
    except (jsonschema.ValidationError, RecursionError):
        return "what was emitted is not of the form that a probe emits"
    if emitted["question"] != reference["question"]:
        return f"the emission is about question {emitted['question'][:40]!r}"
    return difference(reference, emitted)


def difference(reference: dict, emitted: dict) -> str | None:
    """None if `emitted` agrees with the `reference` emission within the reference's tolerances, else where it does not.

    The text names the place and what came, never the right value. NaN agrees with NaN. Lists and arrays of numbers
    compare by value and shape, whatever their type, for a correct answer may be in any style: True is 1, and text compares
    without regard to case and outer blanks. (1,) is another shape than that of a number. A float32 is as near as float32
    is, so with rtol=1e-6 it passes only where nothing cancels: a probe whose inputs are float64 asks for float64.
    """
    want, have = reference["values"], emitted["values"]
    if isinstance(want, list) and isinstance(have, list) and len(want) == len(have):
        for number, (w, h) in enumerate(zip(want, have, strict=True), 1):
            said = _differ(w, h, reference["rtol"], reference["atol"])
            if said:
                return f"case {number} of {len(want)}: {said}"
        return None
    return _differ(want, have, reference["rtol"], reference["atol"])


def resembles(right: dict, wrong, emitted: dict) -> bool:
    """Whether `emitted` is what a known wrong answer emits, `wrong`, but for rounding errors of the right values' size.

    Where a mistake makes a zero of what is none, its digits are noise, and differ from machine to machine.
    """
    parts = [right["values"], wrong, emitted["values"]]
    alike = all(isinstance(part, list) for part in parts) and len({len(part) for part in parts}) == 1
    cases = zip(*parts, strict=True) if alike else [parts]
    rounding = 2.0**-40  # of float64's 52 digits, a dozen for what adds up
    return all(_differ(w, h, right["rtol"], right["atol"] + rounding * _size(r)) is None for r, w, h in cases)


def _size(value):
    """The largest finite number in a value, without its sign; 0 if there is none."""
    if isinstance(value, dict):
        value = value.get("array", list(value["dict"].values()) if "dict" in value else [])
    if isinstance(value, list):
        return max(map(_size, value), default=0.0)
    return abs(float(value)) if isinstance(value, int | float) else 0.0


def _differ(want, have, rtol, atol):
    if isinstance(have, dict) and "raised" in have:
        return None if want == have else f"your code raised {have['raised'][:60]}"
    if isinstance(want, dict) and "raised" in want:
        return f"your code should raise {want['raised']} here, and did not"
    if isinstance(want, str) or want is None:
        same = have == want or (isinstance(have, str) and want is not None and _folded(have) == _folded(want))
        return None if same else f"yours is {_shown(have)}"
    if isinstance(want, dict) and "dict" in want:
        if not isinstance(have, dict) or set(have.get("dict", ())) != set(want["dict"]):
            return f"a dict with the keys {', '.join(want['dict'])} is expected"
        parts = ((key, _differ(want["dict"][key], have["dict"][key], rtol, atol)) for key in want["dict"])
        return next((f"at {key!r}: {said}" for key, said in parts if said), None)
    expected, got = _numbers(want), _numbers(have)
    if expected is None:  # a list of unlike things
        if not isinstance(want, list) or not isinstance(have, list) or len(want) != len(have):
            return "a list of another length or kind is expected"
        parts = (_differ(w, h, rtol, atol) for w, h in zip(want, have, strict=True))
        return next((said for said in parts if said), None)
    if got is None:
        form = f"an array of shape {expected.shape}" if expected.shape else "a number"
        return f"{form} is expected, yours is {_shown(have)}"
    if got.shape != expected.shape:
        form = f"the shape should be {expected.shape}" if expected.shape else "a number is expected, no array"
        return f"{form}, yours is {got.shape}"
    close = np.isclose(got, expected, rtol=rtol, atol=atol, equal_nan=True)
    if close.all():
        return None
    at = tuple(int(i) for i in np.argwhere(~close)[0])
    return f"yours is {got[at]:.6g}" + (f" at index {at}" if at else "")


def _folded(text):
    return text.strip().casefold()


def _shown(value):
    """A student's value in a few words."""
    if isinstance(value, dict):
        return value["other"][:60] if "other" in value else "an array" if "array" in value else "a dict"
    return "a list of unlike things" if isinstance(value, list) else repr(value)[:60]


def _numbers(value):
    """The value as a float64 array if it is a number, an array or nested lists of equal shape; None otherwise."""
    if isinstance(value, bool | int | float):
        return np.float64(value) if abs(value) <= sys.float_info.max else None
    if isinstance(value, dict) and "number" in value:
        return np.float64(value["number"])
    if isinstance(value, dict) and "array" in value:
        flat = [_numbers(v) for v in value["array"]]
        try:
            return None if None in flat else np.array(flat, dtype=np.float64).reshape(value["shape"])
        except (ValueError, OverflowError):  # not so many values, or no shape that an array can have
            return None
    if isinstance(value, list):
        parts = [_numbers(v) for v in value]
        if any(p is None for p in parts) or len({p.shape for p in parts}) > 1:
            return None
        return np.array(parts, dtype=np.float64)
    return None
