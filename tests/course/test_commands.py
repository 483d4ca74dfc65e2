import json

import pytest
from tiny_assignment import RIGHT, WRONG, answered, source_notebook, write
from typer.testing import CliRunner

from normkit.cli import app
from normkit.course import commands, grade, release


@pytest.fixture
def master(tmp_path):
    return write(tmp_path / "source.ipynb", source_notebook())


def test_release_writes_a_file_or_says_what_is_wrong(tmp_path, master, capsys):
    assert commands.release(master, tmp_path / "tiny.ipynb") == 0
    assert json.loads((tmp_path / "tiny.ipynb").read_text())["metadata"]["normkit"]["checks"]
    assert commands.release(master, master) == 2
    assert "release to another file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("answers", "code", "said"),
    [
        (RIGHT, 0, ["q1: right.", "2 of 2 right"]),
        ({}, 1, ["q1: not answered yet.", "q2: not answered yet.", "0 of 2 right"]),
        ({**RIGHT, "q1": WRONG["q1"]["You forgot eps."]}, 1, ["q1: not yet. You forgot eps.", "1 of 2 right"]),
        ({**RIGHT, "q2": "growth = 1 / 0"}, 1, ["q2 stopped with ZeroDivisionError", "1 of 2 right"]),
    ],
)
def test_check_runs_the_notebook_and_names_mistakes(tmp_path, master, capsys, monkeypatch, answers, code, said):
    monkeypatch.setenv("NORMKIT_NOTEBOOK", "")  # so that what check sets is taken back
    from IPython.core.interactiveshell import InteractiveShell

    InteractiveShell.clear_instance()
    path = write(tmp_path / "ada.ipynb", answered(release.released(master), **answers))
    assert commands.check(path) == code
    printed = capsys.readouterr().out
    assert all(text in printed for text in said), printed
    InteractiveShell.clear_instance()


def test_check_says_what_is_no_assignment(master, tmp_path, capsys):
    assert commands.check(master) == 2 and commands.check(tmp_path / "none.ipynb") == 2
    (tmp_path / "list.ipynb").write_text("[1]")
    assert commands.check(tmp_path / "list.ipynb") == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 3 and all("is no assignment that `normkit release` wrote" in line for line in said)


def test_release_of_a_folder_to_a_roster(tmp_path, capsys):
    sources, roster = tmp_path / "sources", tmp_path / "roster.txt"
    sources.mkdir()
    for name in ("a", "b"):
        write(sources / f"{name}.ipynb", source_notebook())
    roster.write_text("ada\n\nbob lee\nada\n")
    assert commands.release(sources, tmp_path / "out", roster=roster) == 0
    written = sorted(str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*.ipynb"))
    assert written == ["ada/a.ipynb", "ada/b.ipynb", "bob lee/a.ipynb", "bob lee/b.ipynb"]
    metadata = json.loads((tmp_path / "out" / "bob lee" / "a.ipynb").read_text())["metadata"]["normkit"]
    assert metadata["student"] == "bob lee"
    for bad in ("", "../ada", "ada,1", "a\x00b"):
        roster.write_text(bad)
        assert commands.release(sources, tmp_path / "other", roster=roster) == 2
    (tmp_path / "none").mkdir()
    assert commands.release(tmp_path / "none", tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert (
        "names no student" in said and "holds no notebook" in said and said.count("cannot be the name of a folder") == 3
    )


def result(student="ada", points=3, hint="", said=""):
    q = {"points": points, "max": 3, "passed": points == 3, "said": said, "hint": hint}
    own = {
        "student": student,
        "file": f"{student}.ipynb",
        "sha256": "",
        "assignment": "tiny",
        "points": points,
        "max": 3,
    }
    return own | {"questions": {"q1": q}, "notes": [], "seconds": 0.0}


def test_grade_writes_the_forms_that_are_asked_for(tmp_path, master, capsys, monkeypatch):
    seen = {}
    monkeypatch.setattr(grade, "grade", lambda *a, **k: seen.update(k) or [result()])
    names = {"json": "r.json", "canvas": "c.csv", "moodle": "m.csv", "gradescope": "scope"}
    asked = {name: tmp_path / path for name, path in names.items()}
    asked_for = ["--master", master, "--out", tmp_path / "g.csv", "--memory-mb", 2048, "--workers", 3]
    forms = [word for name, path in asked.items() for word in (f"--{name}", path)]
    ran = CliRunner().invoke(app, [str(word) for word in ("grade", tmp_path, *asked_for, *forms)])
    assert ran.exit_code == 0, ran.output
    assert (tmp_path / "g.csv").exists() and (tmp_path / "scope" / "ada" / "results.json").exists()
    assert all(path.exists() for path in asked.values())
    assert "1 submissions, 1 with all points" in ran.output and "q1: 1 right" in ran.output
    assert (seen["limits"].memory_mb, seen["limits"].cell_s, seen["workers"]) == (2048, 120, 3)


def test_the_summary_counts_what_wrong_answers_were_told():
    hint = "q1: not yet. You forgot eps."
    results = [
        result("a"),
        result("b", 0, hint),
        result("c", 0, hint),
        result("d", 0, "q1: not answered yet.", "your code raised"),
    ]
    assert commands.summary(results) == [
        "4 submissions, 1 with all points, mean 0.8 of 3",
        "q1: 1 right; 2 x You forgot eps.; 1 x not answered yet.",
    ]


def test_the_master_is_found_by_the_name_that_most_submissions_carry(tmp_path, master):
    (tmp_path / "sources").mkdir()
    other = source_notebook()
    other.metadata.normkit.assignment = "other"
    write(tmp_path / "sources" / "other.ipynb", other)
    (tmp_path / "sources" / "broken.ipynb").write_text("{}")
    right, folder = write(tmp_path / "sources" / "tiny.ipynb", source_notebook()), tmp_path / "in"
    (folder / "bob").mkdir(parents=True)
    for path in (folder / "ada.ipynb", folder / "bob" / "x.ipynb"):
        write(path, release.released(master))
    write(folder / "eve.ipynb", other)
    for number, text in enumerate(
        ("[]", "{}", "no", '{"metadata": 3}', '{"metadata": {"normkit": {"assignment": []}}}')
    ):
        (folder / f"{number}.ipynb").write_text(text)
    assert commands.find_master(folder, [tmp_path / "sources"]) == right
    with pytest.raises(ValueError, match="name it with --master"):
        commands.find_master(folder, [tmp_path / "nowhere"])


def test_afresh_forgets_what_was_done(tmp_path, master, monkeypatch):
    progress = tmp_path / "g.progress.jsonl"
    progress.write_text("earlier")
    monkeypatch.setattr(
        grade, "grade", lambda *a, **k: [result()] if k["progress_file"].exists() else [result(points=0)]
    )
    assert commands.grade(tmp_path, master, out=tmp_path / "g.csv", forms={}) == 0 and progress.exists()
    assert (
        commands.grade(tmp_path, master, out=tmp_path / "g.csv", forms={}, afresh=True) == 0 and not progress.exists()
    )


def test_grade_says_why_it_cannot(tmp_path, master, capsys):
    (tmp_path / "none").mkdir()
    assert commands.grade(tmp_path / "none", master, out=tmp_path / "g.csv", forms={}) == 2
    assert "holds no submission" in capsys.readouterr().err
