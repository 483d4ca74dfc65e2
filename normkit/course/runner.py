"""Run one merged notebook: a pytest process of its own that runs nbval, watched from outside; JSON lines come back."""

import base64
import dataclasses
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass

from normkit.course import sandbox
from normkit.course.merge import Submission, merge
from normkit.course.probes import MIME
from normkit.course.source import SOLUTION, Assignment, label


@dataclass
class Run:
    """Outcomes by cell id, in the order they ran, and the cell that ended the run early, if one did."""

    cells: dict[str, dict]
    culprit: str | None = None
    how: str = ""  # "dead", "hung", "flood", or "late": the run's time was over
    compiled: dict[str, str] | None = None  # of a run that recorded: numba's cache, file -> base64


def solution(assignment: Assignment) -> Submission:
    """The master's own answers, as a submission."""
    answers = {label(c)["id"]: c.source for c in assignment.notebook.cells if label(c)["role"] == "answer"}
    return Submission({name: _unmarked(source) for name, source in answers.items()})


def reference(assignment: Assignment, *, seeds, student, checks, limits, compiled=None) -> dict[str, dict]:
    """The master's own run: {"emitted": question -> emission, "compiled": numba's cache, for `execute`}, plain JSON.

    Raises RuntimeError if it fails.
    """
    own, told = solution(assignment), {"seeds": seeds, "student": student, "checks": checks, "limits": limits}
    ran = execute(assignment, own, **told, expected={}, compiled=compiled, number=-1)  # the user id of no submission
    emitted = {q.id: ran.cells.get(probe_cell(assignment, q.id), {}).get("emitted") for q in assignment.questions}
    missing = {q: ran.cells.get(probe_cell(assignment, q)) for q, value in emitted.items() if value is None}
    if missing:
        raise RuntimeError(
            f"the solution of {assignment.name} itself emits nothing for {missing} ({ran.culprit} {ran.how})"
        )
    return {"emitted": emitted, "compiled": ran.compiled}


def probe_cell(assignment: Assignment, question: str) -> str:
    cells = (label(c) for c in assignment.notebook.cells)
    return next(own["id"] for own in cells if own["role"] == "probe" and own["question"] == question)


def execute(
    assignment,
    submission,
    *,
    seeds,
    student,
    checks,
    limits,
    expected,
    compiled=None,
    hide=(),
    without=(),
    number=0,
    time_s=None,
):
    """Run the merged notebook once, in at most `time_s` seconds. With no `expected` emissions, record what is emitted.

    checks: the released notebook (as a dict) that visible check cells read. compiled: numba's cache of a run that
    recorded, of which the submission gets a copy. Returns a Run; never raises for what the submission does.
    """
    notebook, ids = merge(assignment, submission, seeds=seeds, without=without)
    for cell in notebook["cells"]:
        own = cell["metadata"]["normkit"]
        if own["role"] == "probe" and expected:
            cell["outputs"] = [
                {"output_type": "display_data", "metadata": {}, "data": {MIME: expected[own["question"]]}}
            ]
        cell["metadata"] = {"normkit": {"id": own["id"], "role": own["role"]}}
    with sandbox.folder() as folder:
        work, record = folder / "work", not expected
        work.mkdir(mode=0o700)
        _unpack(compiled or {}, work / sandbox.COMPILED)
        run = _execute(folder, notebook, ids, student, checks, limits, record, hide, number, time_s)
        if record:  # trusted code: what it compiled is good for every submission
            run.compiled = _pack(work / sandbox.COMPILED)
        return run


def _execute(folder, notebook, ids, student, checks, limits, record, hide, number, time_s):
    inside, run, outside = folder / "work", folder / "r", folder / "out"
    for path in (run, outside):
        path.mkdir(mode=0o700)
    folder.chmod(0o711)  # a kernel with a user id of its own passes through, and looks at nothing
    (inside / "checks.json").write_text(json.dumps(checks), encoding="utf-8")
    (outside / "merged.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
    report = outside / "report.jsonl"
    job = {"ids": ids, "record": record, "limits": dataclasses.asdict(limits), "user": sandbox.user(number)}
    job |= {"scratch": str(inside), "run": str(run), "report": str(report)}
    job |= {"folder": str(folder), "grader": os.getpid()}
    job["command"] = sandbox.kernel_command(inside, run, [outside, *hide], limits, number, keep=record)
    (outside / "job.json").write_text(json.dumps(job), encoding="utf-8")
    known = {"NORMKIT_STUDENT": student, "NORMKIT_NOTEBOOK": str(inside / "checks.json")}
    environment = sandbox.environment(inside, **known, PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
    # Our plugin comes first: what it imports keeps jsonschema from building a grammar for 2 s. Nothing is rewritten.
    plugins = ["-p", "normkit.course.nbval_plugin", "-p", "nbval.plugin", "-p", "no:cacheprovider", "--assert=plain"]
    command = [sys.executable, "-m", "pytest", "-q", *plugins, "-c", os.devnull, "--rootdir", str(outside)]
    command += ["--course", str(outside / "job.json"), str(outside / "merged.ipynb")]
    with open(outside / "log", "wb") as log:
        process = subprocess.Popen(
            command,
            cwd=outside,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        late = False
        try:
            process.wait(time_s or limits.total_s)
        except subprocess.TimeoutExpired:
            late = True
        finally:
            sandbox.end(inside, process.pid if process.poll() is None else None)
            _kill(process)
    if not (late or report.exists()):  # no cell has run: this is nothing that a submission does
        raise RuntimeError("the checker did not start:\n" + (outside / "log").read_text(errors="replace")[-2000:])
    cells = {line["cell"]: line for line in _lines(report)}
    ended = next((name for name, line in cells.items() if line["outcome"] in ("dead", "hung", "flood")), None)
    if ended is None and len(cells) < len(ids):
        # The run's time is over, or pytest itself was ended: the next cell is the one that ran.
        return Run(cells, next(name for name in ids if name not in cells), "late" if late else "dead")
    return Run(cells, ended, cells[ended]["outcome"] if ended else "")


def _kill(process):
    """End pytest's process group."""
    try:
        if os.name == "posix":
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    except ProcessLookupError:
        pass
    process.wait()


def _pack(folder):
    files = (path for path in folder.rglob("*") if path.is_file())
    return {p.relative_to(folder).as_posix(): base64.b64encode(p.read_bytes()).decode() for p in files}


def _unpack(files, folder):
    folder.mkdir()
    for name, data in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(base64.b64decode(data))


def _lines(report):
    if not report.exists():
        return
    for line in report.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            return  # the last line of a run that was killed while it wrote


def _unmarked(source):
    return "\n".join(line for line in source.splitlines() if line.strip() not in SOLUTION)
