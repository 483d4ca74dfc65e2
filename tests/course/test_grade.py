import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from tiny_assignment import RIGHT, WRONG, answered, cell, source_notebook, write

from normkit.course import commands, grade, release, runner, sandbox, source


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


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_a_killed_grader_goes_on_where_it_was(tmp_path, master):
    """A class of real submissions, and a kill of the whole process group in the middle of it: what it ran ends too."""
    released, folder = release.released(master), tmp_path / "submissions"
    folder.mkdir()
    answers = [RIGHT, {}, {"q1": RIGHT["q1"]}, *({"q1": code} for code in list(WRONG["q1"].values())[:2])]
    for number, given in enumerate(answers):
        write(folder / f"s{number}.ipynb", answered(released, **given))

    def command(out):
        whole = [sys.executable, "-m", "normkit", "grade", str(folder), "--master", str(master), "--workers", "2"]
        return [*whole, "--out", str(tmp_path / f"{out}.csv"), "--json", str(tmp_path / f"{out}.json")]

    def lines(out):
        path = tmp_path / f"{out}.progress.jsonl"
        return path.read_bytes().splitlines(keepends=True) if path.exists() else []

    hanging = write(folder / "hanging.ipynb", answered(released, q1="while True: pass"))
    space = Path(tempfile.mkdtemp(prefix="nkc"))
    space.chmod(0o711)
    told = {"env": os.environ | {"TMPDIR": str(space)}, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command("cut"), start_new_session=True, **told)
    while process.poll() is None and len(lines("cut")) < 3:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    hanging.unlink()
    end = time.monotonic() + 60
    while (left := left_in(space)) and time.monotonic() < end:
        time.sleep(0.1)
    assert not left
    kept = lines("cut")
    assert 3 <= len(kept) <= len(answers) and not (tmp_path / "cut.csv").exists()

    (tmp_path / "whole.progress.jsonl").write_bytes(kept[0])  # the same secret seed
    for out in ("cut", "whole"):
        subprocess.run(command(out), check=True, env=told["env"], capture_output=True)
    assert not [
        path for folder in space.iterdir() for path in folder.iterdir()
    ]  # the next run has removed what was left
    shutil.rmtree(space)
    assert lines("cut")[: len(kept)] == kept and len(lines("cut")) == 1 + len(answers)
    assert (tmp_path / "cut.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    cut, whole = (json.loads((tmp_path / f"{out}.json").read_text()) for out in ("cut", "whole"))
    assert [r | {"seconds": 0} for r in cut] == [r | {"seconds": 0} for r in whole]
    assert [r["points"] for r in whole] == [5, 0, 3, 0, 0]


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="SIGINT")
def test_an_interrupted_grader_waits_for_no_submission(tmp_path, master):
    folder, out = two(tmp_path, master), tmp_path / "grades.csv"
    write(folder / "aa.ipynb", answered(release.released(master), q1="while True: pass"))
    command = [sys.executable, "-m", "normkit", "grade", str(folder), "--master", str(master), "--out", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    progress = tmp_path / "grades.progress.jsonl"
    while process.poll() is None and not (progress.exists() and progress.read_bytes().count(b"\n") == 3):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)  # two are graded, and one has most of its two minutes left
    assert "goes on from here" in process.communicate(timeout=30)[1]
    assert process.returncode == 130 and not out.exists()


def left_in(space):
    """The processes whose temporary files lie in `space`."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("HOME", "").startswith(str(space)):
                found.append(process)
    return found


def two(tmp_path, master):
    """A folder of two submissions."""
    released, folder = release.released(master), tmp_path / "two"
    folder.mkdir()
    write(folder / "ada.ipynb", answered(released, **RIGHT))
    write(folder / "bob.ipynb", answered(released, q2="growth = 2"))
    return folder


@pytest.mark.slow
def test_processes_can_grade(tmp_path, master):
    folder = two(tmp_path, master)
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        results = grade.grade(master, folder, progress_file=tmp_path / "p.jsonl", executor=pool)
    assert [(r["student"], r["points"]) for r in results] == [("ada", 5), ("bob", 2)]


@pytest.mark.slow
def test_dask_can_grade(tmp_path, master, capsys):
    """From the command line by a scheduler's address: its client is one more executor."""
    distributed = pytest.importorskip("distributed")
    folder, out = two(tmp_path, master), tmp_path / "grades.csv"
    own = {"n_workers": 1, "threads_per_worker": 2, "processes": False, "dashboard_address": None}
    with distributed.LocalCluster(protocol="tcp", **own) as cluster:
        assert commands.grade(folder, master, out=out, forms={}, dask=cluster.scheduler_address) == 0
    assert "2 submissions, 1 with all points" in capsys.readouterr().out
    assert [line.split(",")[:4] for line in out.read_text(encoding="utf-8-sig").splitlines()[1:]] == [
        ["ada", "3", "2", "5"],
        ["bob", "0", "2", "2"],
    ]


class TestSubmissions:
    def found(self, folder):
        found = grade.submissions(folder, "tiny", "tiny.ipynb")
        return {student: [str(p.relative_to(folder)) for p in paths] for student, paths in found.items()}

    def test_one_notebook_an_id_and_the_rest_beside_it(self, tmp_path, master):
        released = release.released(master)
        for name in ("ada", "bob", "cy", "dee", "eve"):
            (tmp_path / "s" / name).mkdir(parents=True)
        for path in ("ada.ipynb", "bob.ipynb", "bob/mine.ipynb", "cy/a.ipynb", "cy/b.ipynb", "dee/tiny.ipynb"):
            write(tmp_path / "s" / path, released)
        (tmp_path / "s" / "cy" / "a.ipynb").write_text("{}")
        (tmp_path / "s" / "dee" / "a.ipynb").write_text("{}")
        assert self.found(tmp_path / "s") == {
            "ada": ["ada.ipynb"],  # the folder beside it holds no notebook
            "bob": ["bob.ipynb", "bob/mine.ipynb"],
            "cy": ["cy/b.ipynb", "cy/a.ipynb"],
            "dee": ["dee/tiny.ipynb", "dee/a.ipynb"],
            "eve": ["eve/tiny.ipynb"],  # is not there, which is said
        }

    def test_what_is_no_submission_is_passed_over(self, tmp_path):
        for name in (".ipynb_checkpoints", "__MACOSX", ".git"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "tiny.ipynb").write_text("{}")
        for name in ("._ada.ipynb", "grades.csv", "readme.md", ".hidden.ipynb"):
            (tmp_path / name).write_text("")
        (tmp_path / "Ada.IPYNB").write_text("{}")
        assert self.found(tmp_path) == {"Ada": ["Ada.IPYNB"]}

    @pytest.mark.skipif(sys.platform != "linux", reason="names that are no UTF-8")
    def test_names_become_text_that_can_be_shown(self, tmp_path):
        for name in (b"caf\xe9.ipynb", b"new\nline.ipynb", "Zoë.ipynb".encode()):
            with open(os.fsencode(tmp_path) + b"/" + name, "w") as file:
                file.write("{}")
        assert list(self.found(tmp_path)) == ["Zoë", "caf\\udce9", "new\\nline"]


def test_what_must_not_be_seen_is_hidden_once(tmp_path, master):
    """A folder below one that is covered is not there any more, and one that holds Python cannot be covered."""
    (tmp_path / "master" / "submissions").mkdir()
    (tmp_path / ".git").mkdir()
    own, inside = tmp_path / "p.jsonl", tmp_path / "master" / "submissions"
    assert set(grade._secrets(master, inside, own)) == {tmp_path / "master", tmp_path / ".git", own}
    assert set(grade._secrets(master, inside, inside / "p.jsonl")) == {tmp_path / "master", tmp_path / ".git"}
    (tmp_path / "space").mkdir()
    around = pytest.MonkeyPatch()
    around.setattr(tempfile, "tempdir", str(tmp_path / "space"))
    assert set(grade._secrets(master, tmp_path, own)) == {tmp_path / "master", tmp_path / ".git", own}
    around.undo()


class TestRuns:
    """The order of the runs of one submission, with runs that are made up."""

    CELLS = ("setup", "helper 1", "q1", "q1-check", "q1-probe", "q2", "q2-check", "q2-probe")

    def found(self, master, ends, time_s=100.0):
        """ends(cells) -> (the cell that ends a run of these cells, how) or None. Gives what was found, and the runs."""
        runs = []

        def run(without, time_s):
            cells = [name for name in self.CELLS if name not in without]
            runs.append(cells)
            culprit, how = ends(cells) or (None, "")
            ran = cells[: cells.index(culprit) + 1] if culprit else cells
            lines = {name: {"outcome": outcome(name, cells), "said": "", "text": ""} for name in ran}
            if culprit:
                lines[culprit]["outcome"] = how
            return runner.Run(lines, culprit, how)

        def outcome(name, cells):
            return "passed" if name.removesuffix("-probe") in cells else "failed"  # a probe, without its answer

        found = grade._Found(source.read(master), [])
        found.all_runs(run, time.monotonic() + time_s)
        return found, runs

    def test_what_ends_nothing_runs_once(self, master):
        found, runs = self.found(master, lambda cells: None)
        assert found.passed == {"q1", "q2"} and len(runs) == 1

    def test_a_hung_check_takes_its_probe_along_and_the_others_come_first(self, master):
        found, runs = self.found(master, lambda cells: ("q1-check", "hung") if "q1-check" in cells else None)
        assert found.passed == {"q1", "q2"}
        assert runs[1:] == [
            ["setup", "helper 1", "q1", "q2", "q2-check", "q2-probe"],
            ["setup", "helper 1", "q1", "q1-probe"],
        ]

    def test_what_ends_a_setup_cell_came_before_it(self, master):
        found, runs = self.found(master, lambda cells: ("setup", "dead") if {"q1", "q2"} <= {*cells} else None)
        assert found.passed == {"q1", "q2"} and len(runs) == 3 and all("setup" in cells for cells in runs)

    def test_own_cells_that_use_up_the_time_are_left_out(self, master):
        found, runs = self.found(master, lambda cells: ("q1", "late") if "helper 1" in cells else None)
        assert "q2" in found.passed and runs[1] == ["setup", "q1-check", "q1-probe", "q2", "q2-check", "q2-probe"]

    def test_an_end_that_another_question_left_behind_costs_that_one_nothing(self, master):
        found, runs = self.found(master, lambda cells: ("q2", "dead") if {"q1", "q2"} <= {*cells} else None)
        assert found.passed == {"q1", "q2"} and "q1" not in runs[-1]

    def test_without_time_nothing_runs_and_that_is_said(self, master):
        found, runs = self.found(master, lambda cells: None, time_s=0)
        assert runs == [] and found.question(found.assignment.questions[0])["said"] == "was not reached in time"


def test_a_checker_that_does_not_start_is_no_grade(tmp_path, master, monkeypatch):
    folder, progress = two(tmp_path, master), tmp_path / "p.jsonl"
    monkeypatch.setattr(grade, "_reference", lambda *a: {"emitted": {"q1": {}, "q2": {}}, "compiled": {}})
    monkeypatch.setattr(sandbox, "environment", lambda *a, **k: {"PYTHONHOME": "/nowhere"})
    results = grade.grade(master, folder, progress_file=progress)
    assert all("the checker did not start" in r["notes"][0] for r in results)
    assert progress.read_bytes().count(b"\n") == 1  # so the next call tries again
