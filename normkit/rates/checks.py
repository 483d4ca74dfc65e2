"""Checks of numbers that several modules of this theme take."""

import math


def count(name: str, value: int, least: int = 1) -> int:
    """The value as an int; TypeError when it is not an integer, ValueError when it is below `least`."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    return int(value)


def positive(name: str, value: float, zero: bool = False) -> float:
    """The value, a finite number above 0 (with `zero`, 0 is allowed); else ValueError."""
    if not (math.isfinite(value) and (value > 0 or (zero and value == 0))):
        raise ValueError(f"{name} must be a finite {'non-negative' if zero else 'positive'} number, got {value}")
    return value


def pick(name: str, value: str, choices) -> str:
    """The value if it is one of the choices; ValueError that lists them if not."""
    if value not in choices:
        raise ValueError(f"unknown {name} {value!r}; choose from {', '.join(map(str, choices))}")
    return value
