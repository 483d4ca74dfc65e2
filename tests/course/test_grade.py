import json
import os
import signal
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tiny_assignment import RIGHT, WRONG, answered, cell, source_notebook, write

from normkit.course import grade, release


@pytest.fixture
def master(tmp_path):
    (tmp_path / "master").mkdir()
    return write(tmp_path / "master" / "tiny.ipynb", source_notebook())


@pytest.fixture
def folder(tmp_path, master):
    """Submissions that stand in every form that is taken."""
    path, released = tmp_path / "submissions", release.released(master)
    (path / "bob").mkdir(parents=True)
    write(path / "ada.ipynb", answered(released, **RIGHT))
    write(path / "bob" / "a_draft.ipynb", released)
    write(path / "bob" / "tiny.ipynb", answered(released, q1=WRONG["q1"]["You forgot eps."], q2="growth = 2"))
    return path


def test_a_class_is_graded_once_and_what_changed_is_graded_anew(tmp_path, master, folder):
    progress = tmp_path / "out" / "progress.jsonl"
    ada, bob = grade.grade(master, folder, progress_file=progress)
    assert (ada["student"], ada["points"], ada["notes"]) == ("ada", 5, [])
    assert (bob["student"], bob["points"], bob["questions"]["q1"]["points"]) == ("bob", 2, 0)
    # The named mistake reaches the teacher; the hidden comparison says where, and not what is right.
    assert bob["questions"]["q1"]["hint"] == "q1: not yet. You forgot eps."
    assert "of 5: yours is" in bob["questions"]["q1"]["said"]
    if os.name == "posix":
        assert progress.stat().st_mode & 0o077 == 0  # the secret seed is in it

    before = progress.read_text()
    assert grade.grade(master, folder, progress_file=progress) == [ada, bob] and progress.read_text() == before
    (folder / "bob" / "tiny.ipynb").write_text("no notebook")
    again = grade.grade(master, folder, progress_file=progress)
    assert again[0] == ada and again[1]["points"] == 0
    seeds = [json.loads(line).get("seed") for line in progress.read_text().splitlines()]
    assert seeds[0] is not None and set(seeds[1:]) == {None}


@pytest.fixture
def instant(monkeypatch):
    """Grading without any process, by the size of the file; `instant` lists who was graded."""
    graded = []

    def one(job):
        graded.append(job["student"])
        return {
            "student": job["student"],
            "sha256": grade._digest(Path(job["files"][0])),
            "points": len(job["student"]),
        }

    monkeypatch.setattr(grade, "grade_one", one)
    monkeypatch.setattr(grade, "_reference", lambda *a: {})
    return graded


def many(tmp_path, number):
    (tmp_path / "many").mkdir()
    for i in range(number):
        (tmp_path / "many" / f"s{i:03}.ipynb").write_text(f"{i}")
    return tmp_path / "many"


def test_a_class_of_200_goes_on_after_a_cut_in_the_middle_of_a_line(tmp_path, master, instant):
    folder, progress = many(tmp_path, 200), tmp_path / "progress.jsonl"
    whole = grade.grade(master, folder, progress_file=progress)
    assert len(instant) == 200 and [r["student"] for r in whole] == [f"s{i:03}" for i in range(200)]
    lines = progress.read_bytes().splitlines(keepends=True)
    progress.write_bytes(b"".join(lines[:81]) + lines[81][:20])  # seed, 80 results, and a piece of the next
    instant.clear()
    assert grade.grade(master, folder, progress_file=progress) == whole
    assert len(instant) == 120
    instant.clear()
    assert grade.grade(master, folder, progress_file=progress) == whole and instant == []


def test_another_master_or_seed_starts_anew(tmp_path, master, instant):
    folder, progress = many(tmp_path, 3), tmp_path / "progress.jsonl"
    grade.grade(master, folder, progress_file=progress, seed=1)
    grade.grade(master, folder, progress_file=progress, seed=1)
    assert len(instant) == 3
    grade.grade(master, folder, progress_file=progress, seed=2)
    assert len(instant) == 6
    notebook = source_notebook()
    cell(notebook, "title")["source"] = "# Other"
    grade.grade(write(master, notebook), folder, progress_file=progress)
    assert len(instant) == 9


def test_any_executor_will_do_and_the_graders_own_failure_is_no_grade(tmp_path, master, instant, monkeypatch):
    folder, progress = many(tmp_path, 3), tmp_path / "progress.jsonl"
    honest = grade.grade_one

    def failing(job):
        if job["student"] == "s001":
            raise OSError("disk full")
        return honest(job)

    monkeypatch.setattr(grade, "grade_one", failing)
    with ThreadPoolExecutor(3) as pool:
        results = grade.grade(master, folder, progress_file=progress, executor=pool)
    assert "not graded: OSError('disk full')" in results[1]["notes"] and results[2]["points"] == 4
    monkeypatch.setattr(grade, "grade_one", honest)
    instant.clear()
    assert grade.grade(master, folder, progress_file=progress)[1]["points"] == 4 and instant == ["s001"]


def test_an_empty_folder_is_an_error(tmp_path, master):
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="holds no submission"):
        grade.grade(master, tmp_path / "none", progress_file=tmp_path / "p.jsonl")


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_a_killed_grader_loses_nothing(tmp_path, master):
    folder, progress = many(tmp_path, 30), tmp_path / "progress.jsonl"
    code = f"""
        import time
        from pathlib import Path
        from normkit.course import grade
        def slow(job):
            time.sleep(0.05)
            return {{"student": job["student"], "sha256": grade._digest(Path(job["files"][0])), "points": 1}}
        grade.grade_one, grade._reference = slow, lambda *a: {{}}
        grade.grade({str(master)!r}, {str(folder)!r}, progress_file={str(progress)!r}, workers=1)
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)])
    while process.poll() is None and not (progress.exists() and progress.read_bytes().count(b"\n") > 5):
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = progress.read_bytes().count(b"\n") - 1
    assert 5 <= kept < 30
    done, _ = grade._resume(progress, grade._digest(master), None)
    assert len(done) == kept
