"""Every student's own parameters: a random stream from (assignment, student, question), the same on every machine."""

import contextlib
import contextvars
import hashlib
import os

import numpy as np

from normkit.course import checker
from normkit.rng import stream

_whose: contextvars.ContextVar[str | None] = contextvars.ContextVar("whose", default=None)


def student() -> str:
    """Whom this notebook was released to; where no released notebook is, NORMKIT_STUDENT; else "anyone".

    Raises ValueError where the folder holds several notebooks and it cannot be told which one this is.
    """
    if _whose.get():
        return _whose.get()
    try:
        return checker.notebook_metadata().get("student") or "anyone"
    except FileNotFoundError:
        return os.environ.get("NORMKIT_STUDENT") or "anyone"


@contextlib.contextmanager
def working_as(who: str):
    """Within this, `student()` is `who`: a release runs the source notebook for the student it is made for."""
    token = _whose.set(who)
    try:
        yield
    finally:
        _whose.reset(token)


def variant(question: str, *, assignment: str | None = None, who: str | None = None) -> np.random.Generator:
    """The generator that a question's parameters are drawn from. Ids that differ in case or outer blanks are one student.

    assignment: its name; by default that of the notebook being worked on. who: a student's id, by default `student()`.
    """
    if assignment is None:
        assignment = checker.notebook_metadata()["assignment"]
    checker.assignment_at_work = assignment
    return stream(_number(assignment, (who or student()).strip().casefold(), question), "variant")


def _number(*names):
    for name in names:
        if not isinstance(name, str) or not name:
            raise ValueError(f"a variant is drawn from non-empty names (assignment, student, question), got {name!r}")
    # Length before text: ("ab", "c") and ("a", "bc") are different students.
    text = "".join(f"{len(name.encode())}:{name}" for name in names)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "big")
