"""What is graded: the instructor's notebook with the student's answer cells and own helper cells, and nothing else of theirs."""

import copy
import json
import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path

from normkit.course.release import without_solution
from normkit.course.source import Assignment, label

SIZE = 20 * 2**20  # bytes of a submission that are read at most
SOURCE = 200_000  # characters of a cell that are taken at most
HELPERS = 50  # own cells of a student that are taken at most
MARKERS = re.compile(r"^(\s*)#(?=\W*(NBVAL_|PYTEST_VALIDATE_))", re.MULTILINE)


@dataclass
class Submission:
    """A student's notebook as it came: id of an answer cell -> source; own helper cells with the id they follow."""

    answers: dict[str, str] = field(default_factory=dict)
    helpers: list[tuple[str | None, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    released_to: str | None = None  # the student whose parameters the notebook says it has


def load(path, assignment: Assignment) -> Submission:
    """Read a submission, whatever it is. Raises ValueError, in words for the student, for what is no notebook at all."""
    notebook = read_json(Path(path))
    cells = notebook.get("cells") if isinstance(notebook, dict) else None
    if not isinstance(cells, list):
        raise ValueError(f"{Path(path).name} is not a notebook of format 4: it has no list of cells")
    return _collect(cells, notebook, assignment)


def read_json(path: Path):
    """The JSON of a plain file of a bounded size. Raises ValueError, in words for the student."""
    try:
        # No following of links, no waiting on a pipe, and the size is that of the file which is then read.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        raise ValueError(f"{path.name} cannot be opened as a plain file ({error.strerror})") from None
    with open(handle, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{path.name} is not a plain file")
        if status.st_size > SIZE:
            raise ValueError(
                f"{path.name} has {status.st_size / 1e6:.0f} MB, more than {SIZE / 1e6:.0f}: clear its outputs"
            )
        data = file.read(SIZE + 1)
    try:
        return json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name} is not a notebook: it is not JSON in UTF-8 ({str(error)[:80]})") from None


def _collect(cells, notebook, assignment):
    found, seen, last, master = Submission(), {}, None, {label(c)["id"]: c for c in assignment.notebook.cells}
    kernel = _dict(_dict(_dict(notebook).get("metadata")).get("kernelspec")).get("language", "python")
    if str(kernel).lower() != "python":
        found.notes.append(f"the notebook asks for a kernel of language {str(kernel)[:40]!r}; it was run with Python")
    told = _dict(_dict(_dict(notebook).get("metadata")).get("normkit")).get("student")
    found.released_to = told if isinstance(told, str) else None
    for cell in cells:
        own = label(cell) if isinstance(cell, dict) and isinstance(cell.get("metadata"), dict) else {}
        name, source = own.get("id"), _source(cell)
        name = name if isinstance(name, str) and name in master else None
        if source is None:
            found.notes.append("a cell without readable source was left out")
        elif name is None:
            if _dict(cell).get("cell_type") == "code" and source.strip() and len(found.helpers) < HELPERS:
                found.helpers.append((last, source))
        else:
            _known(found, seen, name, source, cell, master[name])
            last = name
    for name, cell in master.items():
        if label(cell)["role"] == "answer" and name not in found.answers:
            found.notes.append(f"{name}: the answer cell is missing")
        elif label(cell)["role"] == "check" and name not in seen:
            found.notes.append(f"{name}: the check cell was deleted; it was put back")
    return found


def _known(found, seen, name, source, cell, original):
    role = label(original)["role"]
    seen[name] = seen.get(name, 0) + 1
    if role == "answer":
        if cell.get("cell_type") != "code":
            found.notes.append(f"{name}: the answer cell was turned into {cell.get('cell_type')!r}; it was run as code")
        if seen[name] > 1:
            # A copy of a cell keeps its id. The later one would have run last, unless it is the untouched stub.
            found.notes.append(
                f"{name}: the answer cell is there {seen[name]} times; the last one with an answer counts"
            )
            if _same(source, without_solution(original.source)) or not source.strip():
                return
        found.answers[name] = source
    elif role in ("check", "setup") and not _same(source, original.source):
        found.notes.append(f"{name}: the {role} cell was edited; the instructor's was run")


def merge(assignment: Assignment, submission: Submission, *, seeds: dict[str, int], without=()) -> tuple:
    """The notebook to run, as (notebook, ids): one id per code cell, in order; helpers are called "helper 1", ...

    seeds: question -> the seed its probe is given in its first line. without: ids of cells that are not to be run.
    Tags, outputs and nbval's comment markers of the student do not come along.
    """
    notebook = copy.deepcopy(assignment.notebook)
    known = [label(c)["id"] for c in notebook.cells]
    helpers = {}
    for number, (after, source) in enumerate(submission.helpers, 1):
        # A cell that follows a hidden or deleted one stands after the nearest cell before; the first stands after setup.
        helpers.setdefault(after if after in known else None, []).append((f"helper {number}", source))
    first = next((label(c)["id"] for c in notebook.cells if label(c)["role"] == "setup"), None)
    cells, ids = [], []

    def put(name, source, metadata):
        if name not in without:
            cells.append(
                {"cell_type": "code", "source": source, "metadata": metadata, "outputs": [], "execution_count": 1}
            )
            ids.append(name)

    for cell in notebook.cells:
        own = label(cell)
        if own["role"] == "answer":
            put(own["id"], _plain(submission.answers.get(own["id"], without_solution(cell.source))), {"normkit": own})
        elif own["role"] == "probe":
            seed = f"probes.seeds[{own['question']!r}] = {seeds[own['question']]}"
            put(
                own["id"],
                f"from normkit import course\nfrom normkit.course import probes\n{seed}\n{cell.source}",
                {"normkit": own},
            )
        elif own["role"] in ("setup", "check"):
            put(own["id"], cell.source, {"normkit": own})
        for key in (own["id"], None) if own["id"] == first else (own["id"],):
            for name, source in helpers.get(key, ()):
                put(name, _plain(source), {"normkit": {"id": name, "role": "helper"}})
    if first is None:
        raise ValueError("the source notebook has no setup cell")
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python"}}
    return {"nbformat": 4, "nbformat_minor": 4, "metadata": metadata, "cells": cells}, ids


def _plain(source):
    return MARKERS.sub(r"\1# (no marker) ", source)


def _source(cell):
    source = _dict(cell).get("source", "")
    if isinstance(source, list) and all(isinstance(line, str) for line in source):
        source = "".join(source)
    if not isinstance(source, str) or len(source) > SOURCE:
        return None
    return source.encode("utf-8", "replace").decode()  # lone surrogates cannot be sent to a kernel


def _same(a, b):
    return "".join(a.split()) == "".join(b.split())


def _dict(value):
    return value if isinstance(value, dict) else {}
