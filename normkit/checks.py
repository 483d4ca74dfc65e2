"""Checks of arguments that all themes share: counts, positive numbers, names."""

import difflib
import math
from collections.abc import Hashable


def count(name: str, value: int, least: int = 1, why: str = "") -> int:
    """The value as an int; TypeError when it is not an integer, ValueError when it is below `least`, because of `why`."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}" + (f": {why}" if why else ""))
    return int(value)


def positive(name: str, value: float, zero: bool = False) -> float:
    """The value, a finite number above 0 (with `zero`, 0 is allowed); else ValueError, TypeError for what is no number."""
    if isinstance(value, bool | str | bytes) or not hasattr(value, "__float__"):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not (math.isfinite(value) and (value > 0 or (zero and value == 0))):
        raise ValueError(f"{name} must be a finite {'non-negative' if zero else 'positive'} number, got {value}")
    return value


def pick(kind: str, name: str, choices) -> str:
    """The name if it is one of the choices; ValueError that lists them, and guesses what was meant, if not."""
    if not isinstance(name, Hashable) or name not in choices:
        near = difflib.get_close_matches(str(name), map(str, choices), n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"unknown {kind} {name!r}: {hint}choose from {', '.join(map(str, choices))}")
    return name
