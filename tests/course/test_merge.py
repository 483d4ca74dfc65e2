import json
import os

import pytest
from tiny_assignment import RIGHT, RMS, answered, cell, source_notebook, write

from normkit.course import merge, release, source

SEEDS = {"q1": 11, "q2": 22}


@pytest.fixture
def assignment(tmp_path):
    return source.read(write(tmp_path / "source.ipynb", source_notebook()))


@pytest.fixture
def submitted(assignment, tmp_path):
    """submitted(change, **answers): merges the student's notebook after `change(notebook)`; gives cells by id, and notes."""

    def submit(change=lambda notebook: None, **answers):
        notebook = json.loads(json.dumps(answered(release.student_version(assignment), **{**RIGHT, **answers})))
        change(notebook)
        submission = merge.load(write(tmp_path / "ada.ipynb", notebook), assignment)
        merged, ids = merge.merge(assignment, submission, seeds=SEEDS)
        return dict(zip(ids, merged["cells"], strict=True)), submission.notes

    return submit


ORDER = ["setup", "q1", "q1-check", "q1-probe", "q2", "q2-check", "q2-probe"]


def test_an_honest_submission_brings_its_answers_and_nothing_else(submitted):
    cells, notes = submitted()
    assert list(cells) == ORDER and notes == []
    assert cells["q1"]["source"] == RMS and cells["q2"]["source"] == "growth = 4 / 2"
    assert "probes.seeds['q1'] = 11" in cells["q1-probe"]["source"]
    assert not any("11" in cells[name]["source"] for name in ORDER if name != "q1-probe")


def test_deleted_duplicated_retyped_tagged_and_reordered_cells_change_nothing(submitted):
    plain, _ = submitted()

    def vandal(notebook):
        q1, check = cell(notebook, "q1"), cell(notebook, "q1-check")
        q1["cell_type"], q1["metadata"]["tags"] = "markdown", ["nbval-skip", "raises-exception"]
        q1["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "all passed"}]
        check["source"] = "print('ok')"
        cell(notebook, "setup")["source"] += "\nnp.sqrt = None"
        notebook["cells"] = [c for c in notebook["cells"] if c is not cell(notebook, "q2-check")][::-1]

    cells, notes = submitted(vandal)
    assert cells == plain
    said = " ".join(notes)
    for part in (
        "turned into 'markdown'",
        "q1-check: the check cell was edited",
        "setup cell was edited",
        "q2-check: the check",
    ):
        assert part in said


def test_copies_of_an_answer_run_in_their_order_without_stubs_and_blanks(submitted, assignment):
    """A cell that is copied or split keeps its id; in the student's own notebook all of them ran."""
    stub = cell(release.student_version(assignment), "q2")

    def copies(notebook):
        first = cell(notebook, "q2")
        notebook["cells"] += [{**first, "source": "growth += 1"}, stub, {**first, "source": " \n"}]
        notebook["cells"] += [{**first, "source": "growth = 9", "cell_type": "raw"}]

    cells, notes = submitted(copies)
    assert cells["q2, copy 1"]["source"] == "growth = 4 / 2" and cells["q2"]["source"] == "growth += 1"
    assert list(cells).index("q2, copy 1") == list(cells).index("q2") - 1 and len(cells) == len(ORDER) + 1
    assert notes == ["q2: the answer cell is there 5 times; what is written was run in its order"]


def test_a_thousand_copies_and_cells_are_taken_in_part_and_said_once(submitted):
    def many(notebook):
        notebook["cells"] += [{**cell(notebook, "q2"), "source": f"growth = {i}"} for i in range(1000)]
        notebook["cells"] += [{"cell_type": "code", "metadata": {}, "source": f"x = {i}"} for i in range(1000)]

    cells, notes = submitted(many)
    assert len(cells) < 2 * merge.HELPERS + len(ORDER) and cells["q2"]["source"] == "growth = 999"
    assert len(notes) == 2 and "of 1000 own cells the first 200 were run" in notes


def test_lost_metadata_is_said_and_the_cells_run_in_their_order(submitted):
    """A tool that drops the metadata of all cells: what the student was given is known by its text."""

    def lose(notebook):
        for each in notebook["cells"]:
            each["metadata"] = {}
        notebook["cells"].insert(2, {"cell_type": "code", "metadata": {}, "source": "mine = 1"})

    cells, notes = submitted(lose)
    assert [c["source"] for name, c in cells.items() if "helper" in name] == ["mine = 1", RMS, "growth = 4 / 2"]
    assert list(cells) == ["setup", "helper 1", "helper 2", "q1-check", "q1-probe", "helper 3", "q2-check", "q2-probe"]
    assert "metadata is lost" in notes[0] and "q1: the answer cell is missing" in notes


def test_answers_with_swapped_ids_run_where_their_ids_say(submitted):
    def swap(notebook):
        one, two = cell(notebook, "q1"), cell(notebook, "q2")
        one["metadata"], two["metadata"] = two["metadata"], one["metadata"]

    cells, _ = submitted(swap)
    assert cells["q1"]["source"] == "growth = 4 / 2" and cells["q2"]["source"] == RMS and list(cells) == ORDER


def test_own_helper_cells_come_along_where_they_stood(submitted):
    def helper(notebook):
        place = notebook["cells"].index(cell(notebook, "q1"))
        notebook["cells"].insert(
            place, {"cell_type": "code", "metadata": {}, "source": ["def mean(x):\n", "    return x.mean()"]}
        )
        notebook["cells"].insert(0, {"cell_type": "code", "metadata": {"normkit": "odd"}, "source": "first = 1"})

    cells, _ = submitted(helper)
    assert cells["helper 2"]["source"] == "def mean(x):\n    return x.mean()"
    assert list(cells).index("helper 1") == 0  # it stood before the setup cell
    assert list(cells).index("helper 2") < list(cells).index("q1")


def test_a_student_cannot_bring_a_hidden_cell_or_nbval_markers(submitted):
    def probe(notebook):
        fake = {"id": "q1-probe", "role": "probe", "question": "q1"}
        notebook["cells"].append({"cell_type": "code", "metadata": {"normkit": fake}, "source": "course.emit('q1', 0)"})

    cells, _ = submitted(probe, q2="# NBVAL_SKIP\ngrowth = 2\n  #  NBVAL_IGNORE_OUTPUT")
    assert "emit('q1', 0)" not in str(cells)
    from nbval.plugin import find_comment_markers

    assert list(find_comment_markers(cells["q2"]["source"])) == []


def test_a_missing_answer_is_noted_and_no_stub_takes_the_place_of_what_stands_elsewhere(submitted):
    """Two answer cells merged into one keep the first one's id: what the second defined must not be overwritten."""

    def merged(notebook):
        cell(notebook, "q1")["source"] += "\n\n" + cell(notebook, "q2")["source"]
        notebook["cells"].remove(cell(notebook, "q2"))

    cells, notes = submitted(merged)
    assert "q2" not in cells and notes == ["q2: the answer cell is missing"]
    assert cells["q1"]["source"].endswith("growth = 4 / 2")


def test_cells_can_be_left_out(assignment, tmp_path):
    submission = merge.load(write(tmp_path / "a.ipynb", release.student_version(assignment)), assignment)
    _, ids = merge.merge(assignment, submission, seeds=SEEDS, without={"q1", "q1-probe"})
    assert ids == [name for name in ORDER if name not in ("q1", "q1-probe")]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not JSON"),
        (b"\x00\xff\xfe", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[1, 2]", "no list of cells"),
        (b'{"cells": {"a": 1}}', "no list of cells"),
        (b'{"worksheets": []}', "no list of cells"),
    ],
)
def test_what_is_no_notebook_is_said_in_words(tmp_path, assignment, content, said):
    path = tmp_path / "ada.ipynb"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=said):
        merge.load(path, assignment)


def test_links_folders_and_huge_files_are_not_read(tmp_path, assignment):
    secret = write(tmp_path / "secret.ipynb", source_notebook())
    (tmp_path / "link.ipynb").symlink_to(secret)
    with pytest.raises(ValueError, match="cannot be opened as a plain file"):
        merge.load(tmp_path / "link.ipynb", assignment)
    os.mkfifo(tmp_path / "pipe.ipynb")
    with pytest.raises(ValueError, match="not a plain file"):
        merge.load(tmp_path / "pipe.ipynb", assignment)
    with open(tmp_path / "huge.ipynb", "wb") as file:
        file.truncate(100 * 2**20)
    with pytest.raises(ValueError, match="105 MB"):
        merge.load(tmp_path / "huge.ipynb", assignment)


@pytest.mark.parametrize(
    "odd", [None, 3, "cell", [], {"source": 5}, {"metadata": None, "source": None}, {"source": [1]}]
)
def test_odd_cells_are_left_out(submitted, odd):
    cells, _ = submitted(lambda n: n["cells"].insert(0, odd))
    assert list(cells) == ORDER


def test_lone_surrogates_null_bytes_and_endless_cells_do_no_harm(submitted):
    cells, notes = submitted(q1="x = '\ud800\x00'", q2="#" * 300_000)
    cells["q1"]["source"].encode()
    assert "NotImplementedError" not in cells["q1"]["source"]
    assert "q2" not in cells
    assert "a cell without readable source was left out" in notes
