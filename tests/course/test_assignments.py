"""The assignments, without the grader: setup and answers run as plain Python, and a stand-in takes what probes emit.

Unsolved fails, the solution passes, every named wrong answer differs from the solution and from all others, for every
variant. A hidden probe's seed must not matter for any of this.
"""

import contextlib
import copy
import itertools
import json
import math
import re
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from normkit.rng import stream

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "notebooks" / "assignments").glob("*.ipynb"))
KINDS = ("write a function", "predict before running", "read a lab", "find the bug")


def source(cell):
    return "".join(cell["source"])


def own(cell):
    return cell["metadata"]["normkit"]


class Assignment:
    def __init__(self, path):
        self.path, self.notebook = path, json.loads(path.read_text(encoding="utf-8"))
        self.cells = self.notebook["cells"]
        self.questions = [own(c)["question"] for c in self.cells if own(c)["role"] == "probe"]
        self.choices = json.loads(re.search(r"^choices = (\{.*?\})$", source(self.cell("setup")), re.M | re.S)[1])

    def cell(self, role, question=None):
        return next(c for c in self.cells if own(c)["role"] == role and own(c).get("question") == question)

    def wrong(self, question):
        cells = [c for c in self.cells if own(c)["role"] == "wrong" and own(c)["question"] == question]
        return {own(c)["message"]: source(c) for c in cells}

    def uses_variant(self, question):
        return "variant[" in source(self.cell("answer", question))

    def emitted(self, question, answer=None, *, seed=0, choice=0, after=""):
        """What the probe emits, as (values, rtol, atol): the cases' results, or names of what was raised."""
        course = Course(seed, choice)
        namespace = {"course": course}
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            for cell in self.cells:
                if own(cell)["role"] == "setup" and own(cell).get("question") in (None, question):
                    exec(source(cell).replace("from normkit import course\n", ""), namespace)
            exec(source(self.cell("answer", question)) if answer is None else answer, namespace)
            exec(after, namespace)
            exec(source(self.cell("probe", question)), namespace)
        return course


class Course:
    """Stands in for normkit.course: records, compares nothing."""

    def __init__(self, seed, choice):
        self.seed, self.choice, self.values = seed, choice, None

    def variant(self, name, assignment):
        return SimpleNamespace(integers=lambda n: self.choice % n)

    def secret(self, question):
        return stream(self.seed, "test", question)

    def calls(self, function, cases):
        self.cases = cases
        return [self._call(function, copy.deepcopy(case)) for case in cases]

    def _call(self, function, case):
        try:
            return function(*case)
        except Exception as error:
            return "ValueError" if isinstance(error, ValueError) else type(error).__name__

    def emit(self, question, values, *, rtol, atol):
        assert self.values is None  # once
        self.values, self.rtol, self.atol = values, rtol, atol


def same(a, b, rtol, atol):
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k], rtol, atol) for k in a)
    if isinstance(a, str | dict) or isinstance(b, str | dict):
        return type(a) is type(b) and a == b
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(same(x, y, rtol, atol) for x, y in zip(a, b, strict=True))
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    return a.shape == b.shape and np.allclose(b, a, rtol=rtol, atol=atol, equal_nan=True)


def agree(reference, other):
    pairs = zip(reference.values, other.values, strict=True)
    return all(same(a, b, reference.rtol, reference.atol) for a, b in pairs)


def numbers(values):
    """All numbers in nested cases or values, flat."""
    if isinstance(values, str):
        return []
    if isinstance(values, dict):
        values = list(values.values())
    if isinstance(values, list | tuple):
        return [n for v in values for n in numbers(v)]
    return np.asarray(values, dtype=float).ravel().tolist()


ASSIGNMENTS = [Assignment(path) for path in FILES]
QUESTIONS = [pytest.param(a, q, id=f"{a.path.stem[:2]}-{q}") for a in ASSIGNMENTS for q in a.questions]
by_assignment = pytest.mark.parametrize("a", ASSIGNMENTS, ids=lambda a: a.path.stem)
by_question = pytest.mark.parametrize(("a", "question"), QUESTIONS)


def test_the_five_themes_are_there():
    assert [p.stem for p in FILES] == [
        "01_variance_growth",
        "02_effective_learning_rate",
        "03_attention_entropy",
        "04_advantage_normalization",
        "05_bug_hunt",
    ]


def test_assignments_are_no_lessons():
    """`run.py test` hands nbval the notebooks of one folder, and the lessons' form tests read the same one."""
    assert not set(FILES) & set((ROOT / "notebooks").glob("*.ipynb"))
    assert 'Path(ROOT, "notebooks").glob("*.ipynb")' in (ROOT / "run.py").read_text(encoding="utf-8")


@by_assignment
class TestForm:
    def test_it_says_points_minutes_and_goals(self, a):
        intro = source(a.cell("text"))
        rows = re.findall(r"^\| \d+ \| .+? \| (.+?) \| (\d+) \| (\d+) \|$", intro, re.M)
        points, minutes = (sum(int(row[i]) for row in rows) for i in (1, 2))
        assert len(rows) == len(a.questions) and 6 <= len(rows) <= 10
        assert 60 <= minutes <= 120 and f"**{points} points, about {minutes} minutes.**" in intro
        assert len(re.findall(r"^- ", intro, re.M)) >= 3
        assert {kind for kind, *_ in rows} <= set(KINDS) and len({kind for kind, *_ in rows}) >= 2
        graded = [a.cell("probe", q)["metadata"]["nbgrader"]["points"] for q in a.questions]
        assert graded == [int(row[1]) for row in rows]

    def test_kinds_are_mixed_beyond_the_bug_hunt(self, a):
        kinds = [kind for kind in KINDS if f"*{kind.capitalize()}.*" in "\n".join(map(source, a.cells))]
        assert "find the bug" in kinds and len(kinds) == (2 if a.path.stem == "05_bug_hunt" else 4)

    def test_ids_are_unique_and_cells_clean(self, a):
        ids = [own(c)["id"] for c in a.cells]
        assert len(set(ids)) == len(ids)
        for cell in a.cells:
            assert not cell.get("outputs") and cell.get("execution_count") is None
            if cell["cell_type"] == "code":
                assert cell["metadata"]["nbgrader"]["schema_version"] == 3
        assert not re.search(r"/(?:home|root|work|tmp)/|[A-Z]:\\\\", a.path.read_text(encoding="utf-8"))

    def test_inputs_are_also_tiny_and_huge(self, a):
        sizes = [np.abs(numbers(a.emitted(q).cases)) for q in a.questions]
        wide = [s for s in sizes if len(s) and np.nanmin(s) <= 1e-5 and np.nanmax(s) >= 1e3]
        assert len(wide) >= 4  # predictions and labs have no inputs at all

    def test_students_differ(self, a):
        personal = [q for q in a.questions if a.uses_variant(q)]
        assert personal
        for question in personal:
            few = min(len(v) for v in a.choices.values())
            several = [a.emitted(question, choice=c) for c in range(few)]
            assert not any(agree(x, y) for x, y in itertools.combinations(several, 2)), question


@by_question
class TestQuestion:
    def test_it_has_three_hints_and_a_line_on_what_was_shown(self, a, question):
        text = source(a.cell("text", question))
        assert re.findall(r"<summary>Hint (\d): ", text) == ["1", "2", "3"]
        check = a.cell("check", question)
        assert len(own(check)["shown"].split()) >= 8
        assert source(check) == f'course.check("{question}")'

    def test_the_probe_is_hidden_and_graded(self, a, question):
        lines = source(a.cell("probe", question)).splitlines()
        assert (lines[0], lines[-1]) == ("### BEGIN HIDDEN TESTS", "### END HIDDEN TESTS")
        assert a.cell("probe", question)["metadata"]["nbgrader"]["grade"]

    def test_the_solution_passes_whatever_was_called_before(self, a, question):
        for seed in (0, 1, 2):
            first, again = (a.emitted(question, seed=seed) for _ in range(2))
            assert agree(first, again)
            assert all(value in ("ValueError",) for value in first.values if isinstance(value, str))
            assert not any(math.isnan(n) for n in numbers(first.values))  # a probe never asks for what is undefined

    def test_unsolved_fails(self, a, question):
        stub = re.sub(
            r"### BEGIN SOLUTION.*### END SOLUTION",
            "raise NotImplementedError",
            source(a.cell("answer", question)),
            flags=re.S,
        )
        assert not agree(a.emitted(question), a.emitted(question, stub))

    def test_wrong_answers_are_wrong_and_can_be_told_apart(self, a, question):
        wrong = a.wrong(question)
        assert len(wrong) >= 5
        choices = range(max(map(len, a.choices.values()))) if a.uses_variant(question) else [0]
        for seed, choice in itertools.product((0, 1), choices):
            reference = a.emitted(question, seed=seed, choice=choice)
            emitted = {m: a.emitted(question, code, seed=seed, choice=choice) for m, code in wrong.items()}
            passing = [m for m, e in emitted.items() if agree(reference, e)]
            assert not passing
            for (m, x), (n, y) in itertools.combinations(emitted.items(), 2):
                x.rtol, x.atol = reference.rtol, reference.atol
                assert not agree(x, y), f"{m!r} and {n!r} look alike (seed {seed}, choice {choice})"

    def test_the_mistaken_code_that_is_given_fails(self, a, question):
        with contextlib.suppress(StopIteration):
            given = source(a.cell("setup", question))
            before, name = re.search(r"^def ((?:broken|released)_)(\w+)", given, re.M).groups()
            if f"def {name}(" in source(a.cell("answer", question)):
                after = f"{name} = {before}{name}"
            else:  # the given name is short for the answer's
                after = f"{re.search(r'def (.+?)[(]', source(a.cell('answer', question)))[1]} = {before}{name}"
            assert not agree(a.emitted(question), a.emitted(question, after=after))
