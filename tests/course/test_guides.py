"""The guides say what is so: commands, files, messages, numbers and columns; and the first commands do what they say."""

import csv
import itertools
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from tiny_assignment import RIGHT, answered, source_notebook, write
from typer.main import get_command

import normkit
from normkit.cli import app
from normkit.course import commands, export, merge, source
from normkit.course.sandbox import Limits

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "notebooks" / "assignments"
STUDENTS, INSTRUCTORS = GUIDES = [
    (FOLDER / f"for_{who}.md").read_text(encoding="utf-8") for who in ("students", "instructors")
]
BLOCKS = re.compile(r"```(\w*)\n(.*?)```|((?:^    [^\n]*\n)+)", re.MULTILINE | re.DOTALL)
ASSIGNMENTS = {path.stem: source.read(path) for path in sorted(FOLDER.glob("*.ipynb"))}


def spans(text):
    return re.findall(r"`([^`\n]+)`", BLOCKS.sub("", text))


def table(text, columns):
    """Rows of the table with this header, without marks of code."""
    below = text.split(f"| {' | '.join(columns)} |\n")[1].splitlines()[1:]
    rows = itertools.takewhile(lambda line: line.startswith("|"), below)
    return [[cell.strip(" `") for cell in row.split("|")[1:-1]] for row in rows]


def command_lines(text):
    """The arguments of each call of normkit, in blocks and in the text."""
    lines = [line for _, fenced, indented in BLOCKS.findall(text) for line in (fenced or indented).splitlines()]
    for line in [*lines, *spans(text)]:
        for part in re.split(r"&&|;", line):
            if re.match(r"\s*([\w/]+/)?normkit\s", part):
                yield shlex.split(part, comments=True)[1:]


@pytest.mark.parametrize("text", GUIDES, ids=["students", "instructors"])
class TestGuide:
    def test_it_is_one_page(self, text):
        assert len(text.splitlines()) <= 120

    def test_every_command_parses(self, text):
        calls = list(command_lines(text))
        assert len(calls) >= 3
        for name, *arguments in calls:
            command = get_command(app).commands[name]
            if arguments:  # `normkit release` alone speaks of it
                command.make_context(name, arguments)

    def test_every_file_that_is_named_exists(self, text):
        named = re.findall(r"`((?:notebooks/)?(?:\d\d|for)_\w+\.(?:ipynb|md))`", text)
        assert named and not [name for name in named if not ((ROOT if "/" in name else FOLDER) / name).exists()]

    def test_what_is_installed_can_be(self, text):
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        asked = re.findall(r"\[([a-z,]+)\]\"", text)
        assert asked and set(",".join(asked).split(",")) <= set(project["optional-dependencies"])


def test_points_and_minutes_are_the_notebooks():
    rows = table(STUDENTS, ["notebook", "points", "minutes", "read first"])
    told = {Path(name).stem: (float(points), int(minutes)) for name, points, minutes, _ in rows}
    assert told == {name: (a.points, a.notebook.metadata.normkit.minutes) for name, a in ASSIGNMENTS.items()}


def test_the_wheel_and_the_limits_are_named_as_they_are():
    assert f"normkit-{normkit.__version__}-py3-none-any.whl" in STUDENTS
    assert f"{Limits().cell_s:g} seconds and a whole notebook {Limits().total_s / 60:g} minutes" in STUDENTS
    assert f"Up to {merge.SIZE >> 20} MB" in STUDENTS and f"At most {merge.HELPERS} cells" in STUDENTS
    assert f"head -c {merge.SIZE >> 20}M" in INSTRUCTORS
    assert f"at least {source.WRONG_ANSWERS} a question" in INSTRUCTORS


def test_what_a_check_says_is_what_it_says():
    """In the students' guide by the three lines of a question, in the instructors' by the table of wrong answers."""
    unanswered, wrong, right = next(b for _, b, _ in BLOCKS.findall(STUDENTS) if "not answered" in b).splitlines()
    (question,) = (q for q in ASSIGNMENTS["01_variance_growth"].questions if q.id == right.partition(":")[0])
    assert unanswered == f"{question.id}: not answered yet."
    assert right == f"{question.id}: right. {question.shown}"
    rows = table(INSTRUCTORS, ["assignment", "question", "message"])
    assert {name for name, _, _ in rows} == set(ASSIGNMENTS) and len(rows) >= 3 * len(ASSIGNMENTS)
    for name, asked, message in [*rows, ["01_variance_growth", *wrong.split(": not yet. ")]]:
        known = {w.message for q in ASSIGNMENTS[name].questions if q.id == asked for w in q.wrong}
        assert message in {f"{m[0].upper()}{m[1:].rstrip('.')}." for m in known}, (name, asked)


def test_options_and_kinds_of_protection_and_roles_are_the_programs():
    options = {o for p in get_command(app).commands["grade"].params for o in p.opts} | {"--roster"}
    named = {word for span in spans(INSTRUCTORS) for word in span.split() if word.startswith("--")}
    assert named and named <= options
    kinds = {row[0] for row in table(INSTRUCTORS, ["kind", "where", '"submissions run with …"'])}
    assert set(commands.PROTECTION) <= kinds
    assert {row[0] for row in table(INSTRUCTORS, ["role", "cell", "rule"])} == set(source.ROLES)
    assert all(f"`{mark}`" in INSTRUCTORS for mark in source.SOLUTION + source.HIDDEN)


@pytest.mark.parametrize("form", ["csv", "canvas", "moodle"])
def test_columns_are_those_that_are_written(tmp_path, form):
    question = {"points": 1, "max": 1, "passed": True, "said": "", "hint": ""}
    result = {"student": "ada", "assignment": "01_variance_growth", "points": 1, "max": 1, "notes": []}
    getattr(export, f"write_{form}")([result | {"questions": {"q1": question, "q2": question}}], tmp_path / "t.csv")
    with open(tmp_path / "t.csv", encoding="utf-8-sig") as file:
        header = ",".join(next(csv.reader(file)))
    assert f"`{header.replace('q1,q2', 'q1,…')}`" in INSTRUCTORS


def test_the_hubs_settings_are_python():
    (code,) = (block for language, block, _ in BLOCKS.findall(INSTRUCTORS) if language == "python")
    compile(code, "jupyterhub_config.py", "exec")


def test_the_first_commands_hand_out_check_and_grade(tmp_path):
    """As they stand in the guide, from the repository's folder; a tiny assignment takes the place of the first."""
    (tmp_path / "notebooks" / "assignments").mkdir(parents=True)
    write(tmp_path / "notebooks" / "assignments" / "01_variance_growth.ipynb", source_notebook())
    (tmp_path / "roster.txt").write_text("ada\nbob\n")
    release, check, grade = list(command_lines(INSTRUCTORS.split("\n## ")[1]))[:3]

    def run(arguments):
        command = [sys.executable, "-m", "normkit", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)

    assert (release[0], check[0], grade[0]) == ("release", "check", "grade")
    assert run(release).returncode == 0
    assert "0 of 2 right" in run(check).stdout
    shutil.copytree(tmp_path / "released", tmp_path / "submissions")
    ada = tmp_path / "submissions" / "ada" / "01_variance_growth.ipynb"
    write(ada, answered(json.loads(ada.read_text(encoding="utf-8")), **RIGHT))
    graded = run(grade)
    assert graded.returncode == 0, graded.stderr
    results = {r["student"]: r for r in json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))}
    assert results["ada"]["points"] == results["ada"]["max"] and results["bob"]["points"] == 0
    assert not results["ada"]["notes"]
    assert (tmp_path / "grades.csv").exists()
