"""The student's notebook: solutions, hidden cells, named wrong answers and outputs taken out of the source notebook."""

import ast
import copy
import functools
import textwrap
from pathlib import Path

from normkit.course.source import SOLUTION, Assignment, label, read
from normkit.course.variants import working_as


def release(source, destination, student: str = "anyone") -> Path:
    """Write the student version of the source notebook to `destination` (a file, or a folder that exists).

    student: whose parameters the notebook has, where the assignment draws them; `course.check` compares with theirs.

    The file also carries, compressed, what `course.check` compares with. Raises ValueError if the source breaks a rule.
    """
    import nbformat

    destination = Path(destination)
    if destination.is_dir():
        destination = destination / Path(source).name
    if destination.resolve() == Path(source).resolve():
        raise ValueError(f"{destination} is the source notebook itself; release to another file or folder")
    nbformat.write(released(source, student), destination)
    return destination


def released(source, student: str = "anyone"):
    """The released notebook of a source notebook, made once for each student and state of the file."""
    source = Path(source)
    return copy.deepcopy(_released(source, source.stat().st_mtime_ns, student))


@functools.lru_cache(8)
def _released(source, changed, student):
    from normkit.course.checker import answers_for_checks

    assignment = read(source)
    notebook = student_version(assignment)
    if student != "anyone":
        notebook.metadata.normkit.student = student
        cover = next((cell for cell in notebook.cells if cell.cell_type == "markdown"), None)
        if cover is not None:
            cover.source += f"\n\nThis copy was made for `{student}`."
    with working_as(student):
        notebook.metadata.normkit.checks = answers_for_checks(assignment)
    return notebook


def student_version(assignment: Assignment):
    """The notebook without solutions, hidden cells, named wrong answers and outputs (no `checks` yet)."""
    notebook = copy.deepcopy(assignment.notebook)
    notebook.cells = [cell for cell in notebook.cells if label(cell)["role"] not in ("probe", "wrong")]
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
        if label(cell)["role"] == "answer":
            cell.source = without_solution(cell.source)
        if label(cell)["role"] != "answer":
            cell.metadata.editable = cell.metadata.deletable = False
        cell.metadata.normkit = {key: label(cell)[key] for key in ("id", "role", "question") if key in label(cell)}
    notebook.metadata.pop("widgets", None)
    return notebook


def without_solution(source: str) -> str:
    """`source` with each solution replaced by a stub that runs, so that other questions can be worked on first.

    A solution inside a function becomes `raise NotImplementedError`; assignments at the margin become `name = ...`.
    """
    out, solution = [], None
    for line in source.splitlines():
        mark = line.strip()
        if mark == SOLUTION[0]:
            solution, indent = [], line[: len(line) - len(line.lstrip())]
        elif mark == SOLUTION[1]:
            out += [indent + stub for stub in _stub("\n".join(solution), bool(indent))]
            solution = None
        elif solution is None:
            out.append(line)
        else:
            solution.append(line)
    return "\n".join(out)


def _stub(solution, inside):
    if inside:
        return ["raise NotImplementedError  # your code here"]
    names = [
        ast.unparse(target)
        for statement in ast.parse(textwrap.dedent(solution)).body
        if isinstance(statement, ast.Assign)
        for target in statement.targets
    ]
    return [f"{name} = ...  # your answer here" for name in dict.fromkeys(names)] or ["...  # your code here"]
