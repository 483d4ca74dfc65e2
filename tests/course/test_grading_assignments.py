"""The real assignments through the real grader: all right, all unsolved, and every named wrong answer with its message."""

import copy
import itertools
import json
from pathlib import Path

import pytest

from normkit.course import grade, release, source
from normkit.course.runner import solution

FILES = sorted((Path(__file__).parents[2] / "notebooks" / "assignments").glob("*.ipynb"))


def submission(released, answers):
    notebook = copy.deepcopy(released)
    for cell in notebook.cells:
        cell.source = answers.get(source.label(cell)["id"], cell.source)
    return json.dumps(notebook)


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_every_exercise_fails_unsolved_passes_solved_and_names_each_wrong_answer(tmp_path, path):
    assignment, released, folder = source.read(path), release.released(path), tmp_path / "in"
    folder.mkdir()
    (folder / "solved.ipynb").write_text(submission(released, solution(assignment).answers))
    (folder / "unsolved.ipynb").write_text(submission(released, {}))
    # The first wrong answer of every question in one submission, the second ones in the next, and so on.
    sheets = list(itertools.zip_longest(*(q.wrong for q in assignment.questions)))
    for number, sheet in enumerate(sheets):
        wrong = {q.answers[0]: w.code for q, w in zip(assignment.questions, sheet, strict=True) if w}
        (folder / f"wrong{number}.ipynb").write_text(submission(released, wrong))
    graded = {r["student"]: r for r in grade.grade(path, folder, progress_file=tmp_path / "progress.jsonl")}

    assert graded["solved"]["points"] == assignment.points
    assert [note for note in graded["solved"]["notes"] if "handed out to no one by name" not in note] == []
    assert not any(q["passed"] for q in graded["unsolved"]["questions"].values())
    for number, sheet in enumerate(sheets):
        result = graded[f"wrong{number}"]["questions"]
        for q, wrong in zip(assignment.questions, sheet, strict=True):
            assert not result[q.id]["passed"]
            assert (
                "not answered yet" in result[q.id]["hint"]
                if wrong is None
                else wrong.message[1:] in result[q.id]["hint"]
            )
