"""Results as CSV, as JSON with a schema, and in the forms that Canvas, Moodle and Gradescope import."""

import csv
import json
from pathlib import Path

_QUESTION = {
    "type": "object",
    "required": ["points", "max", "passed", "said", "hint"],
    "additionalProperties": False,
    "properties": {
        "points": {"type": "number", "minimum": 0},
        "max": {"type": "number", "exclusiveMinimum": 0},
        "passed": {"type": "boolean"},
        "said": {"type": "string"},
        "hint": {"type": "string"},
    },
}
SCHEMA = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "array",
    "items": {
        "type": "object",
        "required": ["student", "file", "sha256", "assignment", "points", "max", "questions", "notes", "seconds"],
        "additionalProperties": False,
        "properties": {
            "student": {"type": "string"},
            "file": {"type": "string"},
            "sha256": {"type": "string"},
            "assignment": {"type": "string"},
            "points": {"type": "number", "minimum": 0},
            "max": {"type": "number", "minimum": 0},
            "questions": {"type": "object", "additionalProperties": _QUESTION},
            "notes": {"type": "array", "items": {"type": "string"}},
            "seconds": {"type": "number", "minimum": 0},
        },
    },
}


def write_csv(results: list[dict], path) -> None:
    """One row a student, one column a question."""
    names = list(results[0]["questions"])
    rows = [
        [r["student"], *(r["questions"][q]["points"] for q in names), r["points"], r["max"], _notes(r)] for r in results
    ]
    _table(path, ["student", *names, "points", "max", "notes"], rows)


def write_json(results: list[dict], path) -> None:
    """The whole results, checked against `SCHEMA`. Raises jsonschema.ValidationError if they do not fit."""
    import jsonschema

    jsonschema.validate(results, SCHEMA)
    Path(path).write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def write_canvas(results: list[dict], path) -> None:
    """Canvas' gradebook import: the column's name is the assignment's, and the row below the header its maximum."""
    title, most = results[0]["assignment"], results[0]["max"]
    rows = [["    Points Possible", "", "", "", most], *(["", "", r["student"], "", r["points"]] for r in results)]
    _table(path, ["Student", "ID", "SIS Login ID", "Section", title], rows)


def write_moodle(results: list[dict], path) -> None:
    """Moodle's grade import (map `username` to the user and the rest to the grade item)."""
    rows = [[r["student"], r["points"], r["max"], _feedback(r)] for r in results]
    _table(path, ["username", "Grade", "Maximum grade", "Feedback comments"], rows)


def write_gradescope(results: list[dict], folder) -> None:
    """One `results.json` of Gradescope's autograder a student, in FOLDER/STUDENT/results.json."""
    for result in results:
        # An id is the name of a file or folder already; only "." and ".." would lead elsewhere.
        name = result["student"].replace("/", "_")
        target = Path(folder) / (name if name.strip(".") else f"_{name}") / "results.json"
        target.parent.mkdir(parents=True, exist_ok=True)
        tests = [
            {
                "name": name,
                "score": q["points"],
                "max_score": q["max"],
                "output": told(name, q),
                "visibility": "visible",
            }
            for name, q in result["questions"].items()
        ]
        body = {
            "score": result["points"],
            "execution_time": result["seconds"],
            "output": _notes(result),
            "tests": tests,
        }
        target.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")


def _notes(result):
    return "; ".join(result["notes"])


def _feedback(result):
    return "; ".join(f"{name}: {told(name, q)}" for name, q in result["questions"].items())


def told(name, question):
    """What the student is told: the mistake if their check named it, else where the grader found a difference."""
    if question["passed"]:
        return "right"
    hint = question["hint"].removeprefix(f"{name}: ")
    return hint if hint.startswith(("not yet. ", "not answered")) else question["said"]


def _table(path, header, rows):
    with open(path, "w", newline="", encoding="utf-8-sig") as file:  # Excel takes UTF-8 only with the mark
        csv.writer(file).writerows([[_cell(v) for v in row] for row in (header, *rows)])


def _cell(value):
    """A student's text must not become a formula of the instructor's spreadsheet, nor a second row."""
    if not isinstance(value, str):
        return value
    value = " ".join(value.replace("\x00", "").splitlines())
    return "'" + value if value[:1] in ("=", "+", "-", "@", "\t", "＝", "＋", "－", "＠") else value
