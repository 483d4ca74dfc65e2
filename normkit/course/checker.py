"""The student's own check: which answers are right, and which mistake a wrong one looks like.

A released notebook carries, compressed in its metadata, each question's public probe, what the solution emits for it and
what each named wrong answer emits. Nobody reads an answer there by accident. Who unpacks it on purpose learns the public
cases, while points come from other inputs; only a prediction, which has no inputs, is found there (hashes would not hide
it: it must be compared within a tolerance, or is one of a few words).
"""

import base64
import html
import json
import os
import re
import sys
import threading
import zlib
from pathlib import Path

import numpy as np

from normkit.course import compare, probes
from normkit.course.source import Assignment, label
from normkit.lab import Text

_one_at_a_time = threading.Lock()  # a capture is a thing of the whole process
PUBLIC = 2026  # the seed of the public cases; any number would do
assignment_at_work: str | None = None  # the one whose variants this process drew last, which its setup cell names


class Prose(Text):
    """Text that JupyterLab breaks between words: it breaks plain text anywhere."""

    def _repr_html_(self):
        return f'<div style="white-space: pre-wrap">{html.escape(self)}</div>'


def check(question: str) -> Prose:
    """Say whether the answer to `question` in the calling notebook is right, and if not, which mistake it looks like.

    Raises ValueError and FileNotFoundError as `notebook_metadata` does.
    """
    return Prose(verdict(question, sys._getframe(1).f_globals)[1])


def verdict(question: str, namespace: dict) -> tuple[bool, str]:
    """(right, message) for a question, with the student's names taken from `namespace`."""
    checks = unpack(notebook_metadata()["checks"])
    if question not in checks:
        raise ValueError(f"this notebook has no question {question!r}; it has {', '.join(checks)}")
    this, watched = checks[question], _Watched()
    try:
        emitted = probes.capture(this["probe"], namespace | {"course": watched}, PUBLIC, question)
    except NameError as error:
        todo = "run the setup cell and your answer's cell, and keep the name that the answer was handed out with"
        return False, f"{question}: not yet: {error}; {todo}."
    except (Exception, SystemExit) as error:
        text = f"{type(error).__name__}: {str(error)[:200]}".removesuffix(": ")
        todo = "run the setup cell again, and your answer's"
        return False, f"{question}: not yet: the check stopped with {text}; {todo}."
    said = compare.difference(this["right"], emitted)
    if said is None:
        return True, f"{question}: right. {this['shown']}".strip()
    if "NotImplementedError" in said or "ellipsis" in said:
        return False, f"{question}: not answered yet."
    for message, values in this["wrong"]:
        if compare.resembles(this["right"], values, emitted):
            return False, f"{question}: not yet. {message[0].upper()}{message[1:].rstrip('.')}."
    return False, f"{question}: not yet: {watched.explained(said)}."


class _Watched:
    """`course` for a probe that runs here: remembers how the student's function was called, and what it raised."""

    secret, emit = staticmethod(probes.secret), staticmethod(probes.emit)

    def __init__(self):
        self.name, self.cases, self.results, self.errors = "", [], [], {}

    def calls(self, function, cases):
        def watched(*case):
            number = next(numbers)
            try:
                return function(*case)
            except Exception as error:
                self.errors[number] = f": {str(error)[:200]}" if str(error) else ""
                raise

        numbers = iter(range(len(cases)))
        self.name, self.cases = getattr(function, "__name__", "your function"), cases
        self.results = probes.calls(watched, cases)
        return self.results

    def explained(self, said):
        """`said`, a difference, with the call that showed it."""
        found = re.match(r"(case (\d+) of (\d+)): ", said)
        if found is None or int(found[3]) != len(self.cases):
            return said
        number = int(found[2]) - 1
        rest = said[found.end() :] + (self.errors.get(number, "") if "your code raised" in said else "")
        if self.results[number] is None:
            rest = "your function returned None. Does it end with return? What is printed does not come back"
        return f"{found[1]}, {self.name}({', '.join(map(_described, self.cases[number]))}): {rest}"


def _described(value):
    if isinstance(value, np.ndarray) and value.size > 4:
        return f"array of shape {value.shape} from {value.min():.3g} to {value.max():.3g}"
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{type(value).__name__} of {len(value)}"


def answers_for_checks(assignment: Assignment) -> str:
    """What `check` compares with, as text for the released notebook's metadata: runs the solution and each wrong answer.

    This runs the instructor's own code, in this process. Raises ValueError for a wrong answer that is right on the public
    cases, and for two wrong answers of a question with the same outcome.
    """
    with _one_at_a_time:
        return pack(_all_emissions(assignment))


def _all_emissions(assignment):
    checks = {}
    for question in assignment.questions:
        right = emission(assignment, question)
        wrong = []
        for known in question.wrong:
            emitted = emission(assignment, question, known.code)
            if compare.difference(right, emitted) is None:
                raise ValueError(
                    f"{known.id}: this wrong answer passes; give the probe of {question.id} a case that tells"
                )
            for message, values in wrong:
                if compare.resembles(right, values, emitted):
                    raise ValueError(f"{known.id}: cannot be told from the wrong answer {message!r}")
            wrong.append((known.message, emitted["values"]))
        checks[question.id] = {"probe": question.probe, "right": right, "shown": question.shown, "wrong": wrong}
    return checks


def emission(assignment: Assignment, question, code: str | None = None, seed: int = PUBLIC) -> dict:
    """What the probe emits after setup and the solutions up to the question, with `code` for its first answer cell.

    In this process: for the instructor's own code only. Raises ValueError if that code raises.
    """
    namespace = {"__name__": "assignment"}
    for cell in assignment.notebook.cells:
        own = label(cell)
        if own["role"] not in ("setup", "answer") or (code and own["id"] in question.answers[1:]):
            continue
        source = code if code and own["id"] == question.answers[0] else cell.source
        try:
            exec(compile(source, f"<{own['id']}>", "exec"), namespace)
        except Exception as error:
            raise ValueError(f"{own['id']}: the source notebook's own code raised {error!r}") from error
        if own.get("question") == question.id and own["id"] == question.answers[-1 if not code else 0]:
            break
    return probes.capture(question.probe, namespace, seed, question.id)


def notebook_metadata() -> dict:
    """`metadata.normkit` of the released notebook that this process works on.

    Where: NORMKIT_NOTEBOOK (the grader, `normkit check`, you), or else what VS Code or Jupyter's server say, or else the
    working folder. Of several the one whose setup cell ran here counts. Raises FileNotFoundError if there is none, and
    ValueError if the folder holds several and it cannot be told which.
    """
    if told := _released(os.environ.get("NORMKIT_NOTEBOOK")):
        return told
    told = [own for path in (_vscode(), os.environ.get("JPY_SESSION_NAME")) if (own := _released(path))]
    beside = {path.name: own for path in sorted(Path.cwd().glob("*.ipynb")) if (own := _released(path))}
    fitting = {name: own for name, own in beside.items() if own.get("assignment") == assignment_at_work}
    for own in told:
        # A kernel that was taken over from another notebook still bears that one's name.
        if assignment_at_work in (None, own.get("assignment")) or not fitting:
            return own
    fitting = fitting or beside
    first = next(iter(fitting), None)
    if first is None:
        raise FileNotFoundError(
            f"no released assignment in {Path.cwd().name}: open the notebook that `normkit release` wrote, in its folder,"
            " and restart the kernel if you moved it"
        )
    if any(own != fitting[first] for own in fitting.values()):
        raise ValueError(
            f"{', '.join(fitting)} lie in one folder, and nothing says which of them this is: move the others, or say so"
            f' in a cell before the first: import os; os.environ["NORMKIT_NOTEBOOK"] = "{first}"'
        )
    return fitting[first]


def _released(path):
    """The `metadata.normkit` of a released notebook; None for any other file."""
    try:
        own = json.loads(Path(path).read_text(encoding="utf-8"))["metadata"]["normkit"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return own if isinstance(own, dict) and "checks" in own else None


def _vscode():
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return shell.user_ns.get("__vsc_ipynb_file__") if shell is not None else None


def pack(checks: dict) -> str:
    return base64.b85encode(zlib.compress(json.dumps(checks).encode(), 9)).decode()


def unpack(text: str) -> dict:
    """What `pack` packed. Raises ValueError for anything else."""
    try:
        return json.loads(zlib.decompress(base64.b85decode(text)))
    except (ValueError, TypeError, zlib.error):
        raise ValueError("the notebook's checks are damaged: get it again, and copy your answers over") from None
