import pytest
from tiny_assignment import cell, source_notebook, write

from normkit.course import source


def test_a_source_notebook_is_read_into_questions(tmp_path):
    assignment = source.read(write(tmp_path / "tiny.ipynb", source_notebook()))
    first, second = assignment.questions
    assert assignment.name == "tiny" and assignment.points == 5
    assert (first.id, first.points, first.answers, second.id, second.points) == ("q1", 3, ("q1",), "q2", 2)
    assert first.shown == "q1 is what you have just shown." and "course.calls(rms_norm" in first.probe
    assert first.wrong[0].message == "You forgot eps." and len(second.wrong) == 5
    assert second.wrong[2].code == "growth = 3.0"


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("q1", lambda c: c["metadata"]["normkit"].update(id="q2"), "an id of its own"),
        ("q1", lambda c: c["metadata"].pop("normkit"), "role is None"),
        ("q1", lambda c: c["metadata"]["normkit"].update(role="anser"), "role is 'anser'"),
        ("q1", lambda c: c["metadata"]["normkit"].pop("question"), "needs a question"),
        ("q1", lambda c: c.update(source="def rms_norm(x):\n    return x"), "BEGIN SOLUTION"),
        ("q1", lambda c: c.update(source=c["source"].replace("### END SOLUTION", "")), "in pairs"),
        ("q1", lambda c: c.update(source=c["source"] + "\n###BEGIN SOLUTION"), "'###BEGIN SOLUTION' does nothing here"),
        ("setup", lambda c: c.update(source="### BEGIN SOLUTION\nx = 1\n### END SOLUTION"), "would be released"),
        ("q1-text", lambda c: c.update(source="# begin hidden tests"), "'# begin hidden tests' does nothing here"),
        ("q1", lambda c: c["metadata"]["normkit"].update(role="setup"), "question q1: has no answer cell"),
        ("q1-check", lambda c: c["metadata"]["normkit"].update(question="q2"), "needs one check cell, has 2"),
        ("q2-probe", lambda c: c["metadata"]["nbgrader"].update(points=0), "points above 0"),
        ("q2-probe", lambda c: c.update(source="course.emit('q2', growth)"), "BEGIN HIDDEN TESTS"),
        ("q2-wrong-1", lambda c: c["metadata"]["normkit"].update(message="It is not 4.0."), "names 4 wrong answers"),
        ("q2-wrong-1", lambda c: c.update(source="growth ="), "is not Python"),
        ("q2-wrong-1", lambda c: c.update(cell_type="code", outputs=[], execution_count=None), "must be a raw cell"),
    ],
)
def test_each_broken_rule_is_named(tmp_path, name, change, said):
    notebook = source_notebook()
    change(cell(notebook, name))
    with pytest.raises(ValueError, match="cannot be released") as problem:
        source.read(write(tmp_path / "tiny.ipynb", notebook))
    assert said in str(problem.value)


def test_an_assignment_needs_a_name_and_a_file_that_is_a_notebook(tmp_path):
    notebook = source_notebook()
    del notebook.metadata["normkit"]["assignment"]
    with pytest.raises(ValueError, match="a name that never changes"):
        source.read(write(tmp_path / "tiny.ipynb", notebook))
    with pytest.raises(ValueError, match="not a notebook that nbformat can read"):
        source.read(write(tmp_path / "list.ipynb", [1]))
