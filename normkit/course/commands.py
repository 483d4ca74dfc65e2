"""What `normkit release`, `normkit check` and `normkit grade` do. Each returns the exit code of the command."""

import collections
import contextlib
import io
import json
import os
import sys
from pathlib import Path

from normkit.course import merge
from normkit.course.source import label, read

PLACES = ("notebooks/assignments", ".")  # where `grade` looks for the source notebook


def release(source, destination, student="anyone", roster=None) -> int:
    """Write student versions of a source notebook or a folder of them; 2 if a source or the roster breaks a rule.

    roster: a file of student ids, one a line; each gets a version with their own parameters in `destination`/ID/.
    """
    from normkit.course.release import release as write

    source, destination = Path(source), Path(destination)
    try:
        sources = sorted(source.glob("*.ipynb")) if source.is_dir() else [source]
        if not sources:
            raise ValueError(f"{source} holds no notebook")
        students = _roster(Path(roster)) if roster is not None else None
        if students is not None or source.is_dir():
            destination.mkdir(parents=True, exist_ok=True)
        for who in students or [student]:
            folder = destination / who if students else destination
            folder.mkdir(exist_ok=True) if students else None
            for notebook in sources:
                print(f"wrote {write(notebook, folder, who)}")
    except (OSError, ValueError) as problem:
        print(problem, file=sys.stderr)
        return 2
    return 0


def _roster(path):
    students = list(dict.fromkeys(filter(None, map(str.strip, path.read_text(encoding="utf-8-sig").splitlines()))))
    if not students:
        raise ValueError(f"{path.name} names no student; it needs one id a line")
    for name in students:
        if name.startswith(".") or any(c in '/\\:*?"<>|,;' or not c.isprintable() for c in name):
            raise ValueError(f"{path.name}: {name!r} cannot be the name of a folder; a roster has one id a line")
    return students


def check(file) -> int:
    """Run the notebook here and say, question by question, what is right; 0 if all is, 1 if not, 2 if it cannot be read."""
    from IPython.core.interactiveshell import InteractiveShell

    from normkit.course import checker

    file = Path(file).resolve()
    try:
        notebook = json.loads(file.read_text(encoding="utf-8"))
        questions = checker.unpack(notebook["metadata"]["normkit"]["checks"])
        cells = [(label(c), "".join(c["source"])) for c in notebook["cells"] if c["cell_type"] == "code"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
        reason = (
            problem.strerror
            if isinstance(problem, OSError)
            else f"no {problem}"
            if isinstance(problem, KeyError)
            else problem
        )
        print(
            f"{file.name} is no assignment that `normkit release` wrote ({reason}): check the notebook that was handed out",
            file=sys.stderr,
        )
        return 2
    os.environ["NORMKIT_NOTEBOOK"] = str(file)
    shell = InteractiveShell.instance()
    with contextlib.chdir(file.parent):
        for own, source in cells:
            if own.get("role") == "check":
                continue
            with contextlib.redirect_stdout(io.StringIO()):
                outcome = shell.run_cell(source)
            error = outcome.error_before_exec or outcome.error_in_exec
            if error is not None and not isinstance(error, NotImplementedError):
                print(f"{own.get('id', 'one of your own cells')} stopped with {type(error).__name__}: {error}")
    right = 0
    for question in questions:
        passed, message = checker.verdict(question, shell.user_ns)
        right += passed
        print(message)
    print(f"{right} of {len(questions)} right")
    return int(right < len(questions))


def grade(folder, master=None, *, out, forms, workers=None, dask=None, limits=None, afresh=False) -> int:
    """Grade a folder and write a CSV and the `forms` (name -> path or None); 2 if there is nothing that can be graded.

    master: the source notebook; by default the one in `PLACES` that most submissions name. dask: a scheduler's address.
    afresh: forget what an earlier run did.
    """
    from normkit.course import export
    from normkit.course.grade import grade as run
    from normkit.course.sandbox import Limits, protection

    out = Path(out)
    progress = out.with_suffix(".progress.jsonl")
    try:
        master = Path(master) if master is not None else find_master(Path(folder))
        if afresh:
            progress.unlink(missing_ok=True)
        print(f"{master.name}: submissions run with {PROTECTION[protection()]}", file=sys.stderr)
        with contextlib.ExitStack() as stack:
            results = run(
                master,
                folder,
                progress_file=progress,
                workers=workers or os.cpu_count() or 1,
                executor=stack.enter_context(_dask(dask)) if dask is not None else None,
                limits=Limits(**limits or {}),
                bar=sys.stderr.isatty(),
            )
    except (ImportError, OSError, ValueError, RuntimeError) as problem:
        print(problem, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command, without --afresh, goes on from here", file=sys.stderr, flush=True)
        os._exit(130)  # the threads that watch submissions would be waited for
    export.write_csv(results, out)
    for name, path in forms.items():
        if path is not None:
            getattr(export, f"write_{name}")(results, path)
    print("\n".join(summary(results)))
    print(f"wrote {', '.join(str(p) for p in (out, *forms.values()) if p is not None)}")
    return 0


PROTECTION = {
    "full": "a user id of their own, no network, and no view of the source notebook, the grades and each other",
    "namespaces": "your user id, no network, and no view of the source notebook, the grades and each other",
    "landlock": "no view of the source notebook, the grades and each other, and no TCP if Linux is 6.7 or newer",
    "limits": "your user id and limits on time, memory and files: this system lets nothing be hidden from them",
    "clock": "your user id and a limit on time only: grade on Linux to protect files and network",
}


def summary(results: list[dict]) -> list[str]:
    """Lines for the instructor: how many are right in each question, and what its wrong answers were most often told."""
    from normkit.course import export

    questions = results[0]["questions"]
    full = sum(r["points"] == r["max"] for r in results)
    lines = [
        f"{len(results)} submissions, {full} with all points, mean {_mean(r['points'] for r in results):.1f} of {results[0]['max']:g}"
    ]
    for name in questions:
        own = [r["questions"][name] for r in results]
        told = collections.Counter(export.told(name, q).removeprefix("not yet. ") for q in own if not q["passed"])
        most = "; ".join(f"{count} x {text[:100]}" for text, count in told.most_common(2))
        lines.append(f"{name}: {sum(q['passed'] for q in own)} right" + (f"; {most}" if most else ""))
    return lines


def find_master(folder: Path, places=PLACES) -> Path:
    """The source notebook of the assignment that most submissions in `folder` name. Raises ValueError if there is none."""
    masters = {}
    for path in (p for place in places for p in sorted(Path(place).glob("*.ipynb"))):
        with contextlib.suppress(ValueError):
            masters.setdefault(read(path).name, path)
    found = map(merge.assignment_of, [*folder.glob("*.ipynb"), *folder.glob("*/*.ipynb")])
    named = collections.Counter(name for name in found if name in masters)
    if not named:
        raise ValueError(
            f"no source notebook of the submissions in {folder} was found in {' or '.join(map(str, places))}: name it with --master"
        )
    return masters[named.most_common(1)[0][0]]


@contextlib.contextmanager
def _dask(address):
    try:
        from distributed import Client
    except ImportError:
        raise ImportError("--dask needs the package distributed: pip install distributed") from None
    with Client(address) as client:
        yield client.get_executor()


def _mean(values):
    values = list(values)
    return sum(values) / len(values)
