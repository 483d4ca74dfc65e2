import json
import re
from pathlib import Path

import nbformat
import pytest
from tiny_assignment import GROWTH, RMS, WRONG, cell, source_notebook, write

from normkit.course import checker, release, source
from normkit.course.source import label


def test_the_student_version_holds_no_answer_no_hidden_cell_and_no_output(tmp_path):
    assignment = source.read(write(tmp_path / "tiny.ipynb", source_notebook()))
    student = release.student_version(assignment)
    text = str(student)
    for secret in (
        "np.sqrt",
        "growth = 2.0",
        "HIDDEN",
        "SOLUTION",
        "an old output",
        "You forgot",
        "just shown",
        *WRONG["q2"],
    ):
        assert secret not in text
    assert [c.metadata.normkit.role for c in student.cells] == ["text", "setup"] + ["text", "answer", "check"] * 2
    assert student.cells[1].execution_count is None
    assert cell(student, "q1-check").metadata.editable is False and "editable" not in cell(student, "q1").metadata
    assert "np.sqrt" in str(assignment.notebook)  # the source was not changed


@pytest.mark.parametrize(
    ("solved", "stub"),
    [
        (RMS, "def rms_norm(x, eps=1e-6):\n    raise NotImplementedError  # your code here"),
        (GROWTH, "growth = ...  # your answer here"),
        (
            "### BEGIN SOLUTION\na = 1\nb = c = 2\n### END SOLUTION",
            "\n".join(f"{n} = ...  # your answer here" for n in "abc"),
        ),
        ("### BEGIN SOLUTION\nprint(1)\n### END SOLUTION\nrest()", "...  # your code here\nrest()"),
    ],
)
def test_a_solution_becomes_a_stub_that_is_python(solved, stub):
    assert release.without_solution(solved) == stub
    compile(stub, "stub", "exec")


def test_a_release_never_overwrites_its_source(tmp_path):
    path = write(tmp_path / "tiny.ipynb", source_notebook())
    with pytest.raises(ValueError, match="the source notebook itself"):
        release.release(path, tmp_path)
    assert "np.sqrt" in path.read_text()


def test_two_students_get_notebooks_of_their_own(tmp_path):
    path = write(tmp_path / "tiny.ipynb", source_notebook())
    ada, bob, anyone = (release.released(path, who) for who in ("ada", "bob", "anyone"))
    assert ada.cells[0].source.endswith("This copy was made for `ada`.") and ada.metadata.normkit.student == "ada"
    assert "`ada`" not in str(bob) and "student" not in anyone.metadata.normkit
    assert anyone.cells[0].source == source_notebook().cells[0].source


# ---- the assignments themselves, read by a curious student

ROOT = Path(__file__).parents[2]
ASSIGNMENTS = sorted((ROOT / "notebooks" / "assignments").glob("*.ipynb"))
SHORT = 12  # characters; shorter lines, such as "return out", give nothing away


def lines(*sources):
    return {line.strip() for text in sources for line in text.splitlines() if len(line.strip()) >= SHORT}


class Secrets:
    """What must not be read: for each question the solution's lines, and what only the instructor's cells hold."""

    def __init__(self, path):
        self.assignment = source.read(path)
        cells = {label(c)["id"]: (label(c)["role"], c.source) for c in self.assignment.notebook.cells}
        given = "\n".join(text for role, text in cells.values() if role == "setup")
        self.solutions, self.code, self.words = {}, set(), set()
        for q in self.assignment.questions:
            answers = [cells[name][1] for name in q.answers]
            stubs = lines(*map(release.without_solution, answers))
            # Mistaken code that is given holds much of the solution.
            known = {line for line in lines(*answers, q.probe, *(w.code for w in q.wrong)) if line in given} | stubs
            self.solutions[q.id] = lines(*answers) - known
            self.code |= lines(q.probe, *(w.code for w in q.wrong)) - known - lines(*answers)
            self.words |= {q.shown, *(w.message for w in q.wrong)}


@pytest.fixture(scope="module", params=ASSIGNMENTS, ids=lambda path: path.stem)
def secrets(request):
    return Secrets(request.param), release.released(request.param)


def test_nothing_in_a_released_assignment_gives_an_answer_away_in_plain_reading(secrets):
    secrets, released = secrets
    text = json.dumps(released, ensure_ascii=False).replace('\\"', '"')
    # What goes on is another line: `r` is no part of `r - r.mean()`.
    whole = {line: re.escape(line) + r"(?!\w| ?[-+*/@\[(])" for line in secrets.code | secrets.words}
    assert [line for line, pattern in whole.items() if re.search(pattern, text)] == []
    assert "SOLUTION" not in text and "HIDDEN" not in text and '"outputs": []' in text
    for question, solution in secrets.solutions.items():
        told = [line for line in solution if line in text]
        # A third hint may begin the solution with one line; what it returns is the student's to find.
        assert len(told) <= min(1, len(solution) - 1), (question, told)
        assert not any(line.startswith("return") for line in told), (question, told)


def test_metadata_of_a_released_assignment_holds_names_and_nbgraders_marks_only(secrets):
    released = secrets[1]
    assert set(released.metadata) <= {"kernelspec", "language_info", "normkit"}
    assert set(released.metadata.normkit) <= {"assignment", "title", "minutes", "points", "goals", "checks"}
    for part in released.cells:
        assert set(part) <= {"cell_type", "id", "metadata", "source", "outputs", "execution_count"}
        assert set(part.metadata) <= {"normkit", "nbgrader", "editable", "deletable"}
        assert set(part.metadata.normkit) <= {"id", "role", "question"}
        assert part.metadata.normkit.role in ("setup", "text", "answer", "check")


def test_a_prediction_is_not_written_anywhere(secrets):
    secrets, released = secrets
    text = "\n".join(cell.source for cell in released.cells)
    checks = checker.unpack(released.metadata.normkit.checks)
    for question in secrets.assignment.questions:
        values = checks[question.id]["right"]["values"]
        numbers = [v for v in values if isinstance(v, float)] if "cases = [()]" in question.probe else []
        for number in numbers:
            written = {f"{number:.{digits}g}" for digits in range(3, 7)} | {str(number), f"{number:,.0f}"}
            assert not [w for w in written if len(w) >= 4 and re.search(rf"(?<![\d.]){re.escape(w)}(?!\d)", text)]


def test_the_installed_package_holds_no_assignment_and_no_line_of_a_solution(secrets):
    package = lines(*(path.read_text(encoding="utf-8") for path in (ROOT / "normkit").rglob("*.py")))
    solutions = set().union(*secrets[0].solutions.values())
    assert {s for s in solutions & package if not re.fullmatch(r"return \w+|(if|for|else).*:", s)} == set()
    assert not secrets[0].words & package
    assert not [p for folder in ("normkit", "data") for p in (ROOT / folder).rglob("*.ipynb")]


def test_source_and_release_follow_nbgraders_schema(secrets):
    """Version 3, as https://nbgrader.readthedocs.io/en/stable/contributor_guide/metadata.html has it."""
    for notebook in (secrets[0].assignment.notebook, secrets[1]):
        nbformat.validate(notebook)
        marked = [(part, part.metadata.nbgrader) for part in notebook.cells if part.cell_type != "raw"]
        assert len({own["grade_id"] for _, own in marked}) == len(marked)
        for part, own in marked:
            assert set(own) - {"points"} == {"schema_version", "grade_id", "grade", "solution", "locked", "task"}
            assert own["schema_version"] == 3 and re.fullmatch(r"[\w-]+", own["grade_id"]) and own["task"] is False
            assert ("points" in own) == own["grade"] and isinstance(own.get("points", 0), int | float)
            role = label(part)["role"]
            assert (own["grade"], own["solution"], own["locked"]) == (
                role == "probe",
                role == "answer",
                role != "answer",
            )
