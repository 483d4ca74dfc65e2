"""Right answers in other styles pass, subtly wrong ones fail, and so does every small change of a solution.

tests/course/answers/NAME.txt holds, for each question, answers nobody foresaw when the probe was written: "# %% q1 right:
with einsum", then the code; or "# %% q1 wrong: eps twice". Mutants are made here from the solutions; those that are no
change at all (an equivalent one) stand in the same file as "# %% q1 same: the changed line", without code.
"""

import ast
import copy
import functools
import re
import warnings
from pathlib import Path

import numpy as np
import pytest

from normkit.course import checker, compare, source, variants

HERE = Path(__file__).parent / "answers"
FILES = sorted((Path(__file__).parents[2] / "notebooks" / "assignments").glob("*.ipynb"))
SEEDS = (checker.PUBLIC, 1, 2)  # the student's own check, and two that stand for secret ones
RIGHT, WRONG = 10, 4  # each function has at least so many


@functools.cache
def assignment(stem):
    return source.read(next(p for p in FILES if p.stem == stem))


def question(stem, name):
    return next(q for q in assignment(stem).questions if q.id == name)


def answers(stem, kind):
    """[(question, title, code)] of the answers of one kind."""
    path = HERE / f"{stem}.txt"
    parts = re.split(
        r"^# %% (\w+) (right|wrong|same): (.+)$", path.read_text(encoding="utf-8") if path.exists() else "", flags=re.M
    )
    return [
        (q, title.strip(), code)
        for q, k, title, code in zip(*(parts[i::4] for i in (1, 2, 3, 4)), strict=True)
        if k == kind
    ]


def cases(kind):
    return [pytest.param(p.stem, *a, id=f"{p.stem[:2]}-{a[0]}-{a[1]}") for p in FILES for a in answers(p.stem, kind)]


def said(stem, name, code, seed):
    """None if `code` passes the question with this seed, else how it differs."""
    right = reference(stem, name, seed)
    with warnings.catch_warnings(), np.errstate(all="ignore"), variants.working_as("anyone"):
        warnings.simplefilter("ignore")
        try:
            emitted = checker.emission(assignment(stem), question(stem, name), code, seed)
        except ValueError as error:
            return str(error)
        return compare.difference(right, emitted)


@functools.cache
def reference(stem, name, seed):
    with warnings.catch_warnings(), np.errstate(all="ignore"), variants.working_as("anyone"):
        warnings.simplefilter("ignore")
        return checker.emission(assignment(stem), question(stem, name), None, seed)


@pytest.mark.parametrize(("stem", "name", "title", "code"), cases("right"))
def test_a_right_answer_in_another_style_passes(stem, name, title, code):
    assert [said(stem, name, code, seed) for seed in SEEDS] == [None] * len(SEEDS)


@pytest.mark.parametrize(("stem", "name", "title", "code"), cases("wrong"))
def test_a_subtly_wrong_answer_fails(stem, name, title, code):
    assert all(said(stem, name, code, seed) for seed in SEEDS)


def solution(stem, name):
    cell = next(c for c in assignment(stem).notebook.cells if source.label(c)["id"] == question(stem, name).answers[0])
    return "\n".join(line for line in cell.source.splitlines() if line.strip() not in source.SOLUTION)


QUESTIONS = [(p.stem, q.id) for p in FILES for q in assignment(p.stem).questions]


@pytest.mark.parametrize(("stem", "name"), QUESTIONS)
def test_every_small_change_of_the_solution_fails(stem, name):
    known = {title for q, title, _ in answers(stem, "same") if q == name}
    alive = {
        line for line, code in mutants(solution(stem, name)) if any(said(stem, name, code, s) is None for s in SEEDS)
    }
    assert alive == known, "what passes, or no longer does: " + "\n".join(sorted(alive ^ known))


@pytest.mark.parametrize(("stem", "name"), QUESTIONS)
def test_there_are_enough_answers(stem, name):
    few = "lambda" not in solution(stem, name) and not re.search(r"def \w+\(.+\)", solution(stem, name))
    for kind, least in (("right", RIGHT), ("wrong", WRONG)):
        found = [code for q, _, code in answers(stem, kind) if q == name]
        assert len({ast.dump(ast.parse(code)) for code in found}) >= (least // 2 if few else least)


# ---- mutants

SWAPS = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult, ast.FloorDiv: ast.Div,
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip
NAMES = {
    "mean": "sum",
    "sum": "mean",
    "max": "min",
    "min": "max",
    "sqrt": "abs",
    "log": "log2",
    "maximum": "minimum",
    "minimum": "maximum",
}


def mutants(code):
    """(the changed line, the code) for each single change of an operator, a constant, a function's name or an argument."""
    tree = ast.parse(code)
    for number in range(sum(1 for _ in ast.walk(tree))):
        for change in range(2):
            other = copy.deepcopy(tree)
            target = list(ast.walk(other))[number]
            if not _mutate(target, change):
                continue
            text = ast.unparse(ast.fix_missing_locations(other))
            before = ast.unparse(tree).splitlines()
            yield (
                next((b for a, b in zip(before, text.splitlines(), strict=False) if a != b), "a line less").strip(),
                text,
            )


def _mutate(node, change):
    if isinstance(node, ast.BinOp | ast.AugAssign | ast.BoolOp) and type(node.op) in SWAPS and not change:
        node.op = SWAPS[type(node.op)]()
    elif isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS and not change:
        node.ops[0] = SWAPS[type(node.ops[0])]()
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool) and not change:
        node.value = not node.value
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
        node.value = node.value + 1 if not change else (0 if node.value else -1)
    elif isinstance(node, ast.Attribute) and node.attr in NAMES and not change:
        node.attr = NAMES[node.attr]
    elif isinstance(node, ast.Call) and node.keywords and not change:
        node.keywords.pop()
    elif isinstance(node, ast.Call) and len(node.args) > 1 and change:
        node.args.pop()
    else:
        return False
    return True
