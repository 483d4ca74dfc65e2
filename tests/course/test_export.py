import csv
import json

import jsonschema
import pytest

from normkit.course import export


def result(student, first, second):
    given = {"q1": (3, first), "q2": (2, second)}
    questions = {
        q: {
            "points": most * ok,
            "max": most,
            "passed": bool(ok),
            "said": "" if ok else "yours is 3",
            "hint": f"{q} hint",
        }
        for q, (most, ok) in given.items()
    }
    total = sum(q["points"] for q in questions.values())
    own = {
        "student": student,
        "file": f"{student}.ipynb",
        "sha256": "0",
        "assignment": "tiny",
        "points": total,
        "max": 5,
    }
    return own | {"questions": questions, "notes": ["one", "two\nlines"], "seconds": 1.5}


RESULTS = [result("ada", 1, 1), result("=cmd()", 1, 0)]


def rows(path):
    with open(path, newline="", encoding="utf-8-sig") as file:
        return list(csv.reader(file))


def test_csv_has_a_column_a_question_and_no_formulas(tmp_path):
    export.write_csv(RESULTS, tmp_path / "grades.csv")
    header, ada, other = rows(tmp_path / "grades.csv")
    assert header == ["student", "q1", "q2", "points", "max", "notes"]
    assert ada == ["ada", "3", "2", "5", "5", "one; two lines"]
    assert other[:4] == ["'=cmd()", "3", "0", "3"]


def test_json_is_checked_against_its_schema(tmp_path):
    export.write_json(RESULTS, tmp_path / "results.json")
    assert json.loads((tmp_path / "results.json").read_text(encoding="utf-8")) == RESULTS
    for wrong in ({"points": "5"}, {"extra": 1}, {"questions": {"q1": {"points": 1}}}):
        with pytest.raises(jsonschema.ValidationError):
            export.write_json([RESULTS[0] | wrong], tmp_path / "no.json")
    assert not (tmp_path / "no.json").exists()


def test_canvas_and_moodle_forms(tmp_path):
    export.write_canvas(RESULTS, tmp_path / "canvas.csv")
    header, possible, ada, _ = rows(tmp_path / "canvas.csv")
    assert header == ["Student", "ID", "SIS Login ID", "Section", "tiny"]
    assert possible == ["    Points Possible", "", "", "", "5"] and ada == ["", "", "ada", "", "5"]
    export.write_moodle(RESULTS, tmp_path / "moodle.csv")
    assert rows(tmp_path / "moodle.csv")[2] == ["'=cmd()", "3", "5", "q1: right; q2: yours is 3"]


ODD = [
    'O\'Hara, "Ann"',
    "Zoë 李",
    "-1",
    "@ada",
    "\tx",
    "＝1",
    "a;b",
    "a\nb\r\nc",
    "x" * 240,
    "ada.",
    "ada",
    "Ada",
    "a/b",
    ".",
]


def test_odd_ids_keep_their_row_and_their_folder(tmp_path):
    results = [result(name, 1, 0) for name in ODD]
    export.write_csv(results, tmp_path / "grades.csv")
    table = rows(tmp_path / "grades.csv")[1:]
    assert len(table) == len(ODD) and all(len(row) == 6 and row[3] == "3" for row in table)
    ids = [row[0] for row in table]
    assert ids == [*ODD[:2], "'-1", "'@ada", "'\tx", "'＝1", "a;b", "a b c", *ODD[8:]]
    for write in (export.write_canvas, export.write_moodle):
        write(results, tmp_path / "other.csv")
        assert len(rows(tmp_path / "other.csv")) == len(ODD) + (2 if write is export.write_canvas else 1)
    export.write_gradescope(results, tmp_path / "g")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["g", "grades.csv", "other.csv"]
    assert len([*(tmp_path / "g").glob("*/results.json")]) == len(ODD)


def test_gradescope_gets_a_file_a_student_inside_its_folder(tmp_path):
    export.write_gradescope([*RESULTS, result("..", 0, 0)], tmp_path / "g")
    body = json.loads((tmp_path / "g" / "=cmd()" / "results.json").read_text())
    assert body["score"] == 3 and body["tests"][1] == {
        "name": "q2",
        "score": 0,
        "max_score": 2,
        "output": "yours is 3",
        "visibility": "visible",
    }
    assert sorted(p.name for p in tmp_path.iterdir()) == ["g"] and len(list((tmp_path / "g").iterdir())) == 3


@pytest.mark.parametrize(
    ("passed", "hint", "told"),
    [
        (1, "q2: right. What was shown.", "right"),
        (0, "q2: right. What was shown.", "yours is 3"),  # on the public inputs alone
        (0, "q2: not yet. You forgot eps.", "not yet. You forgot eps."),
        (0, "q2: not answered yet.", "not answered yet."),
        (0, "q2: not yet: case 1 of 2: yours is 4.", "yours is 3"),
        (0, "", "yours is 3"),
    ],
)
def test_a_student_is_told_the_mistake_that_the_check_named(tmp_path, passed, hint, told):
    answered = result("ada", 1, passed)
    answered["questions"]["q2"]["hint"] = hint
    export.write_moodle([answered], tmp_path / "moodle.csv")
    assert rows(tmp_path / "moodle.csv")[1][3] == f"q1: right; q2: {told}"
    export.write_gradescope([answered], tmp_path / "g")
    assert json.loads((tmp_path / "g" / "ada" / "results.json").read_text())["tests"][1]["output"] == told
