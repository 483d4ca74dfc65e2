"""Grade a class: every submission in its own sandbox, every result on disk as soon as it is known."""

import dataclasses
import hashlib
import json
import os
import secrets
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from normkit.course import merge, runner, sandbox
from normkit.course.release import released
from normkit.course.source import read
from normkit.rng import stream

HOW = {
    "hung": "did not end in time",
    "dead": "ended Python",
    "flood": "printed more than is allowed",
    "late": "was running when the time of the submission was over",
}


def grade(master, folder, *, progress_file, workers=2, executor=None, limits=None, seed=None, bar=False) -> list[dict]:
    """Grade every submission in `folder` against the source notebook `master`; results in the order of the ids.

    Submissions are FOLDER/ID.ipynb or FOLDER/ID/*.ipynb; of several with one ID one is graded, and the others are noted.
    What is done stands in `progress_file` (JSON lines, with the secret seed: keep it to yourself); a second call goes on
    from there, and grades anew what has changed since.
    executor: any concurrent.futures executor, whose workers see the same files; by default `workers` threads, each of
    which waits for a process. seed: of the hidden inputs, by default a secret one.
    Raises ValueError for a master that breaks a rule and for a folder without submissions, RuntimeError if the master's
    own solution does not run.
    """
    assignment, master, folder, progress_file = read(master), Path(master), Path(folder), Path(progress_file)
    files = submissions(folder, assignment.name, master.name)
    if not files:
        raise ValueError(f"{folder} holds no submission; they are ID.ipynb, or ID/*.ipynb")
    limits = limits or sandbox.Limits()
    done, seed = _resume(progress_file, _digest(master), seed)
    done = {s: r for s, r in done.items() if s in files and r["sha256"] == _digest(files[s][0])}
    common = {"master": str(master), "seed": seed, "limits": dataclasses.asdict(limits)}
    common |= {"hide": [str(p) for p in _secrets(master, folder, progress_file)]}
    if len(done) < len(files):
        first = next(s for s in files if s not in done) if _has_variants(assignment) else "anyone"
        common["reference"] = {"student": first} | _reference(assignment, seed, first, released(master, first), limits)
    jobs = [
        common | {"files": [str(p) for p in paths], "student": s, "number": i}
        for i, (s, paths) in enumerate(files.items())
        if s not in done
    ]
    pool = executor or ThreadPoolExecutor(workers)
    try:
        futures = {pool.submit(grade_one, job): job["student"] for job in jobs}
        for future in _progress(as_completed(futures), len(futures), bar):
            student = futures[future]
            try:
                done[student] = future.result()
            except Exception as error:  # the grader's own failure: said, and tried again by the next call
                done[student] = _nothing(assignment, files[student][0], student, f"not graded: {error!r}")
            else:
                _append(progress_file, done[student])
    finally:
        if executor is None:
            # Interrupted, it waits for nothing: what runs ends with this process.
            pool.shutdown(wait=sys.exc_info()[0] is not KeyboardInterrupt, cancel_futures=True)
    return [done[student] for student in sorted(files)]


def submissions(folder: Path, assignment: str, name: str) -> dict[str, list[Path]]:
    """Student id -> the notebooks handed in; the first counts: it names the assignment, or has the `name` of its file.

    What starts with a dot is no submission, nor is the folder that macOS puts into archives.
    """
    found = {}
    for path in sorted(p for p in folder.iterdir() if not p.name.startswith((".", "__MACOSX"))):
        if path.suffix.lower() == ".ipynb":
            found.setdefault(_printable(path.stem), []).append(path)
        elif path.is_symlink() and path.is_dir():  # no folder of one's own: it is refused as a link when it is read
            found.setdefault(_printable(path.name), []).append(path)
        elif path.is_dir():
            inside = sorted(p for p in path.glob("*.ipynb") if not p.name.startswith("."))
            found.setdefault(_printable(path.name), []).extend(inside)
    for student, paths in found.items():
        if len(paths) > 1:
            paths.sort(key=lambda p: (merge.assignment_of(p) != assignment, p.name != name, len(p.parts), p))
        elif not paths:
            paths.append(folder / student / name)  # a folder without a notebook: said when it is read
    return dict(sorted(found.items()))


def _printable(name):
    """A file's name as an id that every table and terminal can show."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def _secrets(master, folder, progress_file):
    """What submissions must not see: the master with its folder and history, each other, and the seed."""

    def cover(path):
        return sandbox.can_cover(path, tempfile.gettempdir())

    found = [master.parent if cover(master.parent) else master, progress_file]
    found += [folder] if cover(folder) else [p for p in folder.iterdir() if cover(p)]
    found += [parent / ".git" for parent in master.resolve().parents if (parent / ".git").exists()]
    found = sorted({p.resolve() for p in found})
    # Below a folder that is covered nothing is left that could be covered.
    return [p for p in found if not any(p.is_relative_to(q) for q in found if q != p)]


def grade_one(job: dict) -> dict:
    """Grade one submission; `job` and the result are plain JSON. Raises only for what is not the submission's fault."""
    start = time.monotonic()
    assignment, student = read(job["master"]), job["student"]
    file, *others = map(Path, job["files"])
    try:
        submission = merge.load(file, assignment)
    except ValueError as error:
        return _nothing(assignment, file, student, str(error))
    submission.notes += [f"{_printable(o.name)} was handed in too, and was not graded" for o in others]
    who = _parameters(assignment, submission, student)
    limits, checks = sandbox.Limits(**job["limits"]), released(job["master"], who)
    reference = job["reference"]
    if reference["student"] != who:  # other parameters, the same code to compile
        reference = _reference(assignment, job["seed"], who, checks, limits, reference["compiled"])

    def run(without, time_s):
        return runner.execute(
            assignment,
            submission,
            seeds=_seeds(assignment, job["seed"]),
            student=who,
            checks=checks,
            limits=limits,
            expected=reference["emitted"],
            compiled=reference["compiled"],
            hide=[Path(p) for p in job["hide"]],
            without=without,
            number=job["number"],
            time_s=time_s,
        )

    found = _Found(assignment, submission.notes)
    found.all_runs(run, start + limits.total_s)
    questions = {q.id: found.question(q) for q in assignment.questions}
    return {
        "student": student,
        "file": _printable(file.name),
        "sha256": _digest(file),
        "assignment": assignment.name,
        "points": sum(q["points"] for q in questions.values()),
        "max": assignment.points,
        "questions": questions,
        "notes": found.notes,
        "seconds": round(time.monotonic() - start, 2),
    }


def _parameters(assignment, submission, student):
    """The student whose parameters count: the one who submits, unless the notebook was handed out to no one by name."""
    if not _has_variants(assignment):
        return "anyone"
    told = submission.released_to
    if told is None:
        submission.notes.append("the notebook was handed out to no one by name; the parameters are those of anyone")
        return "anyone"
    if told.strip().casefold() != student.strip().casefold():
        submission.notes.append(
            f"the notebook was handed out to {told[:60]!r}; it was graded with the parameters of {student!r}"
        )
    return student


class _Found:
    """What the runs of one submission have shown, question by question."""

    def __init__(self, assignment, notes):
        self.assignment, self.notes = assignment, list(notes)
        self.passed, self.culprits, self.said, self.hints = set(), set(), {}, {}
        self.roles = {o["id"]: o for c in assignment.notebook.cells for o in [c.metadata.normkit]}
        self.probes = {o["question"]: i for i, o in self.roles.items() if o["role"] == "probe"}

    def all_runs(self, run, deadline):
        """Run; without the cell that ended Python, run again; then the questions of such cells each on its own."""
        without, alone = set(), set()
        while (left := deadline - time.monotonic()) > 1:
            ran = run(without, left / 2)  # the other half is for what has not been reached
            self._take(ran)
            if ran.culprit is None:
                break
            own = self._own(ran.culprit)
            if own["role"] == "setup":  # nothing runs without it, and what came before has ended it
                alone |= self.probes.keys()
                break
            without |= {ran.culprit} | {self.probes[q] for q in self.passed}  # what is known need not run again
            if own["role"] == "check":
                without.add(self.probes[own["question"]])  # it would cost the same time, so it comes after the others
            if ran.how == "late":
                without |= {name for name in ran.cells if self._own(name)["role"] == "helper"}
            before = {self._own(name)["question"] for name in ran.cells} - {None, own["question"]}
            if own["role"] == "check" or (own["role"] != "helper" and before):
                alone.add(own["question"])
        ended = {name for name in self.culprits if self._own(name)["role"] in ("check", "helper")}
        for question in sorted(alone - self.passed):
            # Another question's cell may have left something behind that ended Python only now.
            others = {i for i, o in self.roles.items() if o.get("question") not in (None, question)}
            if (left := deadline - time.monotonic()) > 1:
                self._take(run(others | ended, left))

    def _own(self, name):
        return {"question": None} | self.roles.get(name, {"role": "helper", "question": "one's own"})

    def _take(self, run):
        for name, line in run.cells.items():
            own = self._own(name)
            if own["role"] == "probe":
                if line["outcome"] == "passed":
                    self.passed.add(own["question"])
                else:
                    self.said.setdefault(own["question"], line["said"])
            elif own["role"] == "check" and line["text"]:
                self.hints.setdefault(own["question"], line["text"][:500])
            elif line["outcome"] == "failed" and own["role"] in ("answer", "helper"):
                self.notes.append(f"{name}: raised {' '.join(line['said'].split())[:200]}")
        if run.culprit is not None:
            own, text = self._own(run.culprit), f"the cell {run.culprit} {HOW[run.how]}"
            self.culprits.add(run.culprit)
            self.notes.append(f"{text}; the others were run without it")
            if own["role"] in ("answer", "probe"):
                self.said[own["question"]] = text
        self.notes = list(dict.fromkeys(self.notes))

    def question(self, question):
        passed = question.id in self.passed
        said = "" if passed else self.said.get(question.id, "was not reached in time")
        points = question.points if passed else 0
        hint = self.hints.get(question.id, "")
        return {"points": points, "max": question.points, "passed": passed, "said": said, "hint": hint}


def _nothing(assignment, file, student, note):
    questions = {
        q.id: {"points": 0, "max": q.points, "passed": False, "said": note, "hint": ""} for q in assignment.questions
    }
    own = {"student": student, "file": _printable(file.name), "sha256": _digest(file), "assignment": assignment.name}
    return own | {"points": 0, "max": assignment.points, "questions": questions, "notes": [note], "seconds": 0.0}


def _reference(assignment, seed, student, checks, limits, compiled=None):
    seeds = _seeds(assignment, seed)
    return runner.reference(assignment, seeds=seeds, student=student, checks=checks, limits=limits, compiled=compiled)


def _seeds(assignment, seed):
    return {q.id: int(stream(seed, "course", q.id).integers(2**62)) for q in assignment.questions}


def _has_variants(assignment):
    return any(f"course.{name}(" in c.source for c in assignment.notebook.cells for name in ("variant", "student"))


def _resume(path, master, seed):
    """What the progress file says is done, and its seed; a new file if there is none, or one of another master."""
    lines = []
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(line))
            except ValueError:
                continue  # cut short by a kill
    if lines and lines[0].get("master") == master and seed in (None, lines[0]["seed"]):
        return {line["student"]: line for line in lines[1:]}, lines[0]["seed"]
    seed = secrets.randbits(62) if seed is None else seed
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
    _append(path, {"master": master, "seed": seed})
    return {}, seed


def _append(path, line):
    with open(path, "ab+") as file:
        # A kill in the middle of a line leaves it without an end; this one must not become part of it.
        file.seek(max(file.seek(0, os.SEEK_END) - 1, 0))
        file.write(b"\n" * (file.read(1) not in (b"", b"\n")) + json.dumps(line).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _digest(path):
    """SHA-256 of a file that can be a submission; "" for any other."""
    if path.is_symlink() or not path.is_file() or path.stat().st_size > merge.SIZE:
        return ""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _progress(futures, total, bar):
    from tqdm import tqdm

    return tqdm(futures, total=total, unit="submission", disable=not bar)
