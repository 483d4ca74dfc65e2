import numpy as np
import pytest
from tiny_assignment import cell, source_notebook, write

from normkit import course
from normkit.course import checker, grade, merge, release, source, student, variant


def draw(*names):
    assignment, who, question = names
    return variant(question, assignment=assignment, who=who).integers(2**62)


def test_the_same_student_gets_the_same_variant_everywhere():
    # Typed once, so that a change of hash, of Python or of machine would be seen.
    assert draw("tiny", "ada", "q1") == 3093004795705697575
    assert draw("tiny", " Ada ", "q1") == draw("tiny", "ada", "q1")


def test_every_name_counts_and_names_do_not_run_into_each_other():
    names = [
        ("tiny", "ada", "q1"),
        ("tiny", "ada", "q2"),
        ("tiny", "bob", "q1"),
        ("other", "ada", "q1"),
        ("tin", "yada", "q1"),
    ]
    assert len({draw(*n) for n in names}) == len(names)


def test_variants_of_a_class_are_spread_evenly():
    draws = np.array([variant("q1", assignment="tiny", who=f"s{i}").random() for i in range(400)])
    # Four quarters of a uniform draw: chi-square with 3 degrees of freedom, exceeded 1 time in 10**4 at 21.1.
    counts = np.histogram(draws, bins=4, range=(0, 1))[0]
    assert ((counts - 100) ** 2 / 100).sum() < 21.1


def test_who_the_student_is_comes_from_the_release(monkeypatch, tmp_path):
    monkeypatch.delenv("NORMKIT_STUDENT", raising=False)
    monkeypatch.setenv("NORMKIT_NOTEBOOK", str(tmp_path / "none.ipynb"))
    monkeypatch.setenv("JUPYTERHUB_USER", "hub-17")  # which need not be the id that the roster has
    monkeypatch.chdir(tmp_path)
    source = write(tmp_path / "source.ipynb", source_notebook())
    assert student() == "anyone"
    monkeypatch.setenv("NORMKIT_STUDENT", "bob")
    assert student() == "bob"
    # Checks were made for whom it was released to, so the parameters are theirs, whoever opens the notebook.
    release.release(source, tmp_path / "tiny.ipynb", "ada")
    assert student() == "ada"
    assert variant("q1", assignment="tiny").random() == variant("q1", assignment="tiny", who="ada").random()
    release.release(source, tmp_path / "tiny.ipynb")
    assert student() == "anyone"


def test_checks_and_grades_follow_the_students_own_parameters(tmp_path, monkeypatch):
    notebook = source_notebook()
    own = "\nsize = float(course.variant('q2', assignment='tiny').integers(10, 99))"
    cell(notebook, "setup")["source"] += own
    cell(notebook, "q2")["source"] = "### BEGIN SOLUTION\ngrowth = 2 * size\n### END SOLUTION"
    master = write(tmp_path / "source.ipynb", notebook)
    size = {who: float(variant("q2", assignment="tiny", who=who).integers(10, 99)) for who in ("ada", "bob")}
    assert size["ada"] != size["bob"]
    monkeypatch.delenv("NORMKIT_STUDENT", raising=False)
    for who in size:
        path = release.release(master, tmp_path / f"{who}.ipynb", who)
        monkeypatch.setenv("NORMKIT_NOTEBOOK", str(path))
        assert [checker.verdict("q2", {"course": course, "growth": 2 * size[w]})[0] for w in size] == [
            w == who for w in size
        ]

    assignment = source.read(master)
    for released_to, counts in ((None, "anyone"), ("ada", "ada"), ("Bob", "ada")):
        submission = merge.Submission(released_to=released_to)
        assert grade._parameters(assignment, submission, "ada") == counts
        assert bool(submission.notes) == (released_to != "ada")


def test_an_empty_name_is_refused():
    with pytest.raises(ValueError, match="non-empty names"):
        variant("", assignment="tiny", who="ada")
