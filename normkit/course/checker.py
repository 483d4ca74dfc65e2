"""The student's own check: which answers are right, and which mistake a wrong one looks like.

A released notebook carries, compressed in its metadata, each question's public probe, what the solution emits for it and
what each named wrong answer emits. Nobody reads an answer there by accident; who unpacks it on purpose only learns public
cases: points come from other inputs.
"""

import base64
import json
import os
import sys
import threading
import zlib
from pathlib import Path

from normkit.course import compare, probes
from normkit.course.source import Assignment, label
from normkit.lab import Text

_one_at_a_time = threading.Lock()  # a capture is a thing of the whole process
PUBLIC = 2026  # the seed of the public cases; any number would do


def check(question: str, *answers) -> Text:
    """Say whether the answer to `question` in the calling notebook is right, and if not, which mistake it looks like.

    answers: what is checked, for the reader of the notebook; it is looked up by name. Raises ValueError if the notebook's
    checks cannot be found.
    """
    return Text(verdict(question, sys._getframe(1).f_globals)[1])


def verdict(question: str, namespace: dict) -> tuple[bool, str]:
    """(right, message) for a question, with the student's names taken from `namespace`."""
    checks = unpack(notebook_metadata()["checks"])
    if question not in checks:
        raise ValueError(f"this notebook has no question {question!r}; it has {', '.join(checks)}")
    this = checks[question]
    try:
        emitted = probes.capture(this["probe"], namespace, PUBLIC, question)
    except NameError as error:
        return False, f"{question}: not yet: {error}. Run your answer's cell first."
    except Exception as error:
        return False, f"{question}: not yet: the check stopped with {type(error).__name__}: {str(error)[:200]}"
    said = compare.difference(this["right"], emitted)
    if said is None:
        return True, f"{question}: right. {this['shown']}".strip()
    if "NotImplementedError" in said or "ellipsis" in said:
        return False, f"{question}: not answered yet."
    for message, values in this["wrong"]:
        if compare.difference(this["right"] | {"values": values}, emitted) is None:
            return False, f"{question}: not yet. {message}"
    return False, f"{question}: not yet: {said}."


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
                if compare.difference(right | {"values": values}, emitted) is None:
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
    """`metadata.normkit` of the notebook this process works on. Raises ValueError if it cannot be found.

    Where: NORMKIT_NOTEBOOK (the grader, `normkit check`), JupyterLab's and VS Code's own variables, else the only
    released assignment in the working directory.
    """
    told = [os.environ.get("NORMKIT_NOTEBOOK"), os.environ.get("JPY_SESSION_NAME"), _vscode()]
    for path in [*filter(None, told), *sorted(Path.cwd().glob("*.ipynb"))]:
        try:
            own = json.loads(Path(path).read_text(encoding="utf-8"))["metadata"]["normkit"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if "checks" in own:
            return own
    raise ValueError(
        f"no released assignment in {Path.cwd().name}: open the notebook that `normkit release` wrote, in its folder"
    )


def _vscode():
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return shell.user_ns.get("__vsc_ipynb_file__") if shell is not None else None


def pack(checks: dict) -> str:
    return base64.b85encode(zlib.compress(json.dumps(checks).encode(), 9)).decode()


def unpack(text: str) -> dict:
    return json.loads(zlib.decompress(base64.b85decode(text)))
