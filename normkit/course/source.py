"""The instructor's source notebook: read it, check that it can be released and graded, and name its parts.

Every cell says in `metadata.normkit` who it is: {"id", "role", "question"}. Ids of cells are no use for this, since tools
renumber them. Points are nbgrader's (`metadata.nbgrader`, schema version 3), so nbgrader reads the same file.
"""

import ast
import re
from dataclasses import dataclass
from pathlib import Path

ROLES = ("setup", "text", "answer", "check", "probe", "wrong")
SOLUTION = ("### BEGIN SOLUTION", "### END SOLUTION")
HIDDEN = ("### BEGIN HIDDEN TESTS", "### END HIDDEN TESTS")
MARK = re.compile(r"\b(?:begin|end) (?:solution|hidden tests)\b", re.IGNORECASE)
WRONG_ANSWERS = 5  # each question names at least so many


@dataclass(frozen=True)
class Wrong:
    """A wrong answer that is known by name: code for the question's first answer cell, and what to tell the student."""

    id: str
    message: str
    code: str


@dataclass(frozen=True)
class Question:
    """One exercise. `shown` is the line on what was just shown, told once the answer is right."""

    id: str
    points: float
    answers: tuple[str, ...]  # ids of the answer cells
    probe: str  # source of the hidden cell
    shown: str
    wrong: tuple[Wrong, ...]


@dataclass(frozen=True)
class Assignment:
    """A source notebook (an nbformat NotebookNode) and its questions, in the notebook's order."""

    name: str
    notebook: dict
    questions: tuple[Question, ...]

    @property
    def points(self) -> float:
        return sum(q.points for q in self.questions)


def label(cell) -> dict:
    """The cell's `metadata.normkit`, or {} where there is none or where it is no dictionary."""
    own = cell.get("metadata", {}).get("normkit", {})
    return own if isinstance(own, dict) else {}


def read(path) -> Assignment:
    """Read and check a source notebook. Raises ValueError that lists every rule it breaks, by cell."""
    import nbformat

    path = Path(path)
    try:
        notebook = nbformat.read(path, as_version=4)
    except Exception as error:
        raise ValueError(f"{path.name} is not a notebook that nbformat can read: {error}") from error
    own = notebook.metadata.get("normkit", {})
    problems = _problems(notebook)
    if not own.get("assignment"):
        problems.insert(0, 'the notebook\'s metadata.normkit needs "assignment", a name that never changes')
    if problems:
        raise ValueError(f"{path.name} cannot be released:\n" + "\n".join(f"- {p}" for p in problems))
    return Assignment(own["assignment"], notebook, tuple(_questions(notebook)))


def _questions(notebook):
    cells = [(label(c), c) for c in notebook.cells]
    for own, probe in cells:
        if own["role"] != "probe":
            continue
        mine = [(o, c) for o, c in cells if o.get("question") == own["question"]]
        yield Question(
            id=own["question"],
            points=probe.metadata.nbgrader["points"],
            answers=tuple(o["id"] for o, _ in mine if o["role"] == "answer"),
            probe=probe.source,
            shown=next(o.get("shown", "") for o, _ in mine if o["role"] == "check"),
            wrong=tuple(Wrong(o["id"], o["message"], c.source) for o, c in mine if o["role"] == "wrong"),
        )


def _problems(notebook):
    found, seen, roles = [], set(), {}
    for number, cell in enumerate(notebook.cells):
        own = label(cell)
        name = f"cell {number} ({own.get('id', 'no id')})"
        role, question = own.get("role"), own.get("question")
        if not own.get("id") or own["id"] in seen:
            found.append(f"{name}: needs an id of its own in metadata.normkit")
        seen.add(own.get("id"))
        if role not in ROLES:
            found.append(f"{name}: role is {role!r}, not one of {', '.join(ROLES)}")
            continue
        if role not in ("setup", "text"):
            if not question:
                found.append(f"{name}: a cell of role {role} needs a question")
            roles.setdefault(question, []).append((role, own))
        found += [f"{name}: {p}" for p in _cell_problems(cell, role, own)]
    for question, members in roles.items():
        count = {r: sum(role == r for role, _ in members) for r in ROLES}
        for role in ("check", "probe"):
            if count[role] != 1:
                found.append(f"question {question}: needs one {role} cell, has {count[role]}")
        if not count["answer"]:
            found.append(f"question {question}: has no answer cell")
        messages = {own.get("message") for role, own in members if role == "wrong"}
        if len(messages) < WRONG_ANSWERS:
            found.append(f"question {question}: names {len(messages)} wrong answers, needs {WRONG_ANSWERS} that differ")
    return found


def _cell_problems(cell, role, own):
    kind = {"text": "markdown", "wrong": "raw"}.get(role, "code")
    if cell.cell_type != kind:
        yield f"a cell of role {role} must be a {kind} cell, is {cell.cell_type}"
    if role == "answer" and not _marked(cell.source, SOLUTION):
        yield f"needs {SOLUTION[0]} and {SOLUTION[1]}, each on a line of its own, in pairs"
    if role == "probe":
        grader = cell.metadata.get("nbgrader", {})
        points = grader.get("points")
        if not grader.get("grade") or not isinstance(points, int | float) or not points > 0:
            yield "needs nbgrader metadata with grade true and points above 0"
        if not _marked(cell.source, HIDDEN):
            yield f"needs {HIDDEN[0]} and {HIDDEN[1]}, each on a line of its own"
    allowed = {"answer": SOLUTION, "probe": HIDDEN}.get(role, ())
    for line in cell.source.splitlines():
        if MARK.search(line) and line.strip() not in allowed:
            yield f"the mark {line.strip()!r} does nothing here, and what stands behind it would be released"
    if role == "wrong" and not own.get("message"):
        yield "needs a message in metadata.normkit"
    if role == "wrong" and not _parses(cell.source):
        yield "is not Python"


def _marked(source, marks):
    found = [line.strip() for line in source.splitlines() if line.strip() in marks]
    return bool(found) and found == list(marks) * (len(found) // 2)


def _parses(source):
    try:
        ast.parse(source)
    except SyntaxError:
        return False
    return True
