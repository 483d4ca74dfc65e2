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
HELPERS = 200  # own cells of a student that are taken at most
KEPT = ("setup", "text", "check")  # roles of what a student has and does not write
MARKERS = re.compile(r"^(\s*)#(?=\W*(NBVAL_|PYTEST_VALIDATE_))", re.MULTILINE)


@dataclass
class Submission:
    """A student's notebook as it came: id of an answer cell -> source; own helper cells with the id they follow."""

    answers: dict[str, str] = field(default_factory=dict)
    earlier: dict[str, list[str]] = field(default_factory=dict)  # id -> copies of the answer cell that stood before it
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


def assignment_of(path: Path) -> str | None:
    """The assignment that a notebook says it is of; None for what is no notebook, and for one that does not say."""
    try:
        name = label(read_json(path)).get("assignment")
    except (ValueError, AttributeError):
        return None
    return name if isinstance(name, str) else None


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
    found, last, master = Submission(), None, {label(c)["id"]: c for c in assignment.notebook.cells}
    kernel = _dict(_dict(_dict(notebook).get("metadata")).get("kernelspec")).get("language", "python")
    if str(kernel).lower() != "python":
        found.notes.append(f"the notebook asks for a kernel of language {str(kernel)[:40]!r}; it was run with Python")
    told = _dict(_dict(_dict(notebook).get("metadata")).get("normkit")).get("student")
    found.released_to = told if isinstance(told, str) else None
    named = [_name(cell, master) for cell in cells]
    if not any(named):
        found.notes.append(
            "no cell says which one it is (its metadata is lost): all are run as one's own, in their order"
        )
        places = {_squeezed(c.source): name for name, c in master.items() if label(c)["role"] in KEPT}
        named = [places.get(_squeezed(_source(cell) or "")) for cell in cells]
    copies = {}
    for name, cell in zip(named, cells, strict=True):
        source = _source(cell)
        if source is None:
            found.notes.append("a cell without readable source was left out")
        elif name is None:
            if _dict(cell).get("cell_type") == "code" and source.strip():
                found.helpers.append((last, source))
        else:
            copies.setdefault(name, []).append((cell.get("cell_type"), source))
            last = name
    for name, cell in master.items():
        role, mine = label(cell)["role"], copies.get(name, [])
        if role == "answer":
            _answer(found, name, mine, without_solution(cell.source))
        elif role == "check" and not mine:
            found.notes.append(f"{name}: the check cell was deleted; it was put back")
        elif role in ("check", "setup") and any(_squeezed(s) != _squeezed(cell.source) for _, s in mine):
            found.notes.append(f"{name}: the {role} cell was edited; the instructor's was run")
    if len(found.helpers) > HELPERS:
        found.notes.append(f"of {len(found.helpers)} own cells the first {HELPERS} were run")
        del found.helpers[HELPERS:]
    return found


def _answer(found, name, copies, stub):
    """Take the copies of an answer cell as they would have run: a cell that is split or copied keeps its id."""
    if not copies:
        found.notes.append(f"{name}: the answer cell is missing")
        return
    code = [c for c in copies if c[0] == "code"]
    if not code:
        found.notes.append(f"{name}: the answer cell was turned into {str(copies[-1][0])[:20]!r}; it was run as code")
    if len(copies) > 1:
        found.notes.append(
            f"{name}: the answer cell is there {len(copies)} times; what is written was run in its order"
        )
    sources = [source for _, source in code or copies]
    written = [s for s in sources if s.strip() and _squeezed(s) != _squeezed(stub)] or sources
    *found.earlier[name], found.answers[name] = written[-HELPERS:]


def merge(assignment: Assignment, submission: Submission, *, seeds: dict[str, int], without=()) -> tuple:
    """The notebook to run, as (notebook, ids): one id per code cell, in order; own cells are called "helper 1", ...

    seeds: question -> the seed its probe is given in its first line. without: ids of cells that are not to be run.
    Tags, outputs and nbval's comment markers of the student do not come along.
    """
    notebook = copy.deepcopy(assignment.notebook)
    helpers = {}
    for number, (after, source) in enumerate(submission.helpers, 1):
        helpers.setdefault(after, []).append((f"helper {number}", source))
    cells, ids = [], []

    def put(name, source, metadata):
        if name not in without:
            cells.append(
                {"cell_type": "code", "source": source, "metadata": metadata, "outputs": [], "execution_count": 1}
            )
            ids.append(name)

    def own(name, source):
        put(name, _plain(source), {"normkit": {"id": name, "role": "helper"}})

    for helper in helpers.get(None, ()):
        own(*helper)
    for cell in notebook.cells:
        this = label(cell)
        if this["role"] == "answer" and this["id"] in submission.answers:
            for number, source in enumerate(submission.earlier.get(this["id"], ()), 1):
                own(f"{this['id']}, copy {number}", source)
            put(this["id"], _plain(submission.answers[this["id"]]), {"normkit": this})
        elif this["role"] == "probe":
            seed = f"probes.seeds[{this['question']!r}] = {seeds[this['question']]}"
            head = f"from normkit import course\nfrom normkit.course import probes\n{seed}\n"
            put(this["id"], head + cell.source, {"normkit": this})
        elif this["role"] in ("setup", "check"):
            put(this["id"], cell.source, {"normkit": this})
        for helper in helpers.get(this["id"], ()):
            own(*helper)
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


def _squeezed(source):
    return "".join(source.split())


def _name(cell, master):
    """The id of a cell of the master's; None for any other cell."""
    own = label(cell) if isinstance(cell, dict) and isinstance(cell.get("metadata"), dict) else {}
    return own["id"] if isinstance(own.get("id"), str) and own["id"] in master else None


def _dict(value):
    return value if isinstance(value, dict) else {}
