"""Hostile, broken and unlucky submissions: the right grade for each, the others unharmed, in bounded time, nothing left.

Each is a notebook of the two-question assignment of tests/course; "5" is full marks, 3 for q1 and 2 for q2. They are graded
as one class, once, and this class is what the tests look at.
"""

import copy
import csv
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

import pytest

from normkit.course import commands, export, grade, landlock, release, sandbox

spec = importlib.util.spec_from_file_location("tiny", Path(__file__).parents[1] / "course" / "tiny_assignment.py")
tiny = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny)

pytestmark = pytest.mark.skipif(os.name != "posix", reason="made of names, links and signals that POSIX has")
LIMITS = sandbox.Limits(cell_s=4, total_s=60, output_kb=200)
ISOLATED = sandbox.protection() in ("full", "namespaces")
RMS, WRONG_RMS = tiny.RMS, "def rms_norm(x, eps=0): return x"
MARK = "normkit_was_here"  # name of what a submission leaves behind
LEFT = [Path(place) for place in ("/tmp", "/var/tmp", "/dev/shm")]

STEAL = """import gc, inspect, pathlib, sys, zlib
from normkit.course import probes
assert "q2" not in probes.seeds
text = " ".join(str(f.f_locals) for info in inspect.stack() for f in [info.frame])
text += " ".join(o for o in gc.get_objects() if isinstance(o, str))
frames = [f for f in sys._current_frames().values()]
while frames:
    frame = frames.pop()
    text += str(frame.f_code.co_names) + str(frame.f_locals.keys())
    frames += [frame.f_back] if frame.f_back else []
for root in {roots!r}:
    for path in pathlib.Path(root).rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            text += data.decode(errors="ignore")
            try:
                text += zlib.decompress(data).decode(errors="ignore")
            except zlib.error:
                pass
growth = 2.0 if "HIDDEN" + " TESTS" in text else 0
"""
LITTER = f"""import os, pathlib, site, sys
home, inside = pathlib.Path.home(), "raise RuntimeError('{MARK}')"
def leave(path, *names):
    for name in ("{MARK}.py", *names):
        try:
            path.mkdir(parents=True, exist_ok=True)
            if not (path / name).exists():
                (path / name).write_text("import {MARK}" if name.endswith("pth") else inside)
        except OSError:
            pass
for place in ("/tmp", "/var/tmp", "/dev/shm"):
    leave(pathlib.Path(place))
for place in (home / ".ipython/profile_default/startup", pathlib.Path.cwd(), site.getusersitepackages(),
              os.environ["NUMBA_CACHE_DIR"], *site.getsitepackages(), os.path.dirname(sys.modules["normkit"].__file__)):
    leave(pathlib.Path(place), "sitecustomize.py", "usercustomize.py", "numpy.py", "{MARK}.pth", "00.py", "pytest.ini")
"""
FIND = f"""import os, pathlib, sys
places = ["/tmp", "/var/tmp", "/dev/shm", os.getcwd(), os.environ["NUMBA_CACHE_DIR"], *filter(None, sys.path)]
found = [place for place in places if os.path.exists(os.path.join(place, "{MARK}.py"))]
assert not found, found
growth = 2"""
DEEP = """import os
for i in range(3000):
    open(f"small_{i}", "w").write("x")
os.mkdir("closed", 0o000)
for _ in range(2000):
    os.mkdir("d"), os.chdir("d")
"""
DAEMON = """import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.environ.clear()
        while True:
            open("still_there", "w").write("x" * 1000)
    os._exit(0)
"""
REPLAY = """import json
from normkit.course import checker, probes
public = checker.unpack(checker.notebook_metadata()["checks"])["q1"]["right"]["values"]
encode = probes.encode
probes.encode = lambda values: public if isinstance(values, list) else encode(values)
"""
PUBLIC_SEED = """from normkit.course import checker, probes
class Fixed(dict):
    __setitem__ = lambda self, key, value: None
    get = lambda self, key, default=None: checker.PUBLIC
    pop = lambda self, key, default=None: None
probes.seeds = Fixed()
public = iter(checker.unpack(checker.notebook_metadata()["checks"])["q1"]["right"]["values"] * 2)
def rms_norm(x, eps=1e-6):
    this = next(public)
    return np.reshape(this["array"], this["shape"])
"""
READ_PROBE = """import inspect, sys
def rms_norm(x, eps=1e-6):
    frame = sys._getframe()
    while frame is not None:
        if "cases" in frame.f_globals:
            frame.f_globals["cases"] = []
        frame = frame.f_back
    source = get_ipython().user_ns["_ih"][-1]
    return course.calls(lambda x: x, [(x,)])[0]
old_emit, old_calls = course.emit, course.calls
course.calls = lambda function, cases: [1.0 for case in cases]
course.emit = lambda question, values, **more: old_emit(question, values, rtol=1e9, atol=1e9)
"""
PUBLISH = """from IPython.display import publish_display_data
def forge(question="q2"):
    mime = "application/vnd.normkit.answer+json"
    publish_display_data({mime: {"question": question, "values": 2.0, "rtol": 0.01, "atol": 0.0}, "text/plain": ""})
"""
# name -> (answers, points): what stands in the answer cells; a missing one is right, None is the stub
CODE = {
    "honest": ({}, 5),
    "unsolved": ({"q1": None, "q2": None}, 0),
    # Time, memory, output, processes
    "endless_loop": ({"q1": "while True: pass"}, 2),
    "loop_in_function": ({"q1": "def rms_norm(x, eps=0):\n    while True: pass"}, 2),
    "swallowing_loop": (
        {"q1": "while True:\n    try:\n        while True: print(end='')\n    except BaseException: pass"},
        2,
    ),
    "memory": ({"q1": "a = [0] * 10**10; b = [0] * 10**10"}, 2),
    "flood": ({"q1": "while True: print('x' * 10_000)"}, 2),
    "gigabyte_in_one_print": ({"q1": "print('x' * 10**9)"}, 2),
    "fork_bomb": ({"q1": "import os\nwhile True:\n    os.fork()"}, 2),
    "thousands_of_files": ({"q1": DEEP + RMS}, 5),
    "big_file": ({"q1": "open('big', 'wb').write(bytes(10**9))\n" + WRONG_RMS}, 2),
    # The end of Python, now or later
    "os_exit": ({"q1": "import os; os._exit(0)"}, 2),
    "exit_in_function": ({"q1": "import os\ndef rms_norm(x, eps=0): os._exit(0)"}, 2),
    "segfault": ({"q1": "import ctypes; ctypes.string_at(0)"}, 2),
    "stopped": ({"q1": "import os, signal, time\nos.kill(os.getpid(), signal.SIGSTOP); time.sleep(100)"}, 2),
    "kill_parent": ({"q1": "import os, signal\nos.kill(os.getppid() or os.getpid(), signal.SIGKILL)"}, 2),
    "kill_all": ({"q1": "import os, signal\nos.kill(-1, signal.SIGKILL)\nos.kill(os.getpid(), signal.SIGKILL)"}, 2),
    "later_exit": (
        {
            "q1": f"import os, threading\nthreading.Timer(0.2, lambda: os._exit(1)).start()\n{RMS}",
            "q2": "import time; time.sleep(1); growth = 2",
        },
        5,
    ),
    "exit_handlers": ({"q1": f"import atexit, time\natexit.register(lambda: time.sleep(1000))\n{RMS}"}, 5),
    "daemon": ({"q1": DAEMON + RMS}, 5),
    # The kernel's own parts
    "closed_streams": ({"q1": "import sys\nsys.stdout.close(); sys.stderr.close(); sys.__stdout__.close()"}, 2),
    "closed_descriptors": ({"q1": "import os; os.closerange(3, 4096)"}, 2),
    "closed_output": ({"q1": "get_ipython().kernel.iopub_socket.io_thread.stop()"}, 2),
    "no_modules": ({"q1": "import sys; sys.modules.clear()"}, 2),
    "patched_json": ({"q1": "import json\njson.dumps = json.loads = lambda *a, **k: '{}'"}, 2),
    "patched_zmq": ({"q1": "import zmq\nzmq.Socket.send_multipart = zmq.Socket.send = lambda *a, **k: None"}, 2),
    "early_reply": (
        {
            "q1": "k = get_ipython().kernel\nk.session.send(k.shell_stream, 'execute_reply', {'status': 'ok'}, "
            "k.get_parent(), ident=k._shell_parent_ident if hasattr(k, '_shell_parent_ident') else None)\n"
            "k.session.send(k.iopub_socket, 'status', {'execution_state': 'idle'}, k.get_parent())\nwhile True: pass"
        },
        2,
    ),
    # Patches
    "patched_allclose": ({"q1": f"np.allclose = np.isclose = lambda *a, **k: True\n{WRONG_RMS}"}, 2),
    "patched_normkit": ({"q2": "course.check = course.emit = lambda *a, **k: None\ngrowth = 2"}, 3),
    "patched_print": ({"q2": "import builtins; builtins.print = None; builtins.AssertionError = None; growth = 3"}, 3),
    "patched_publisher": ({"q2": "get_ipython().display_pub.publish = lambda *a, **k: None\ngrowth = 2"}, 3),
    "transformer": (
        {"q1": f"get_ipython().input_transformers_cleanup.append(lambda lines: [])\n{WRONG_RMS}", "q2": "growth = 3"},
        0,
    ),
    # Forged emissions
    "publishes_from_a_thread": (
        {
            "q2": f"{PUBLISH}\nimport threading, time\nfrom normkit.course import probes\ndef watch():\n"
            "    while 'q2' not in probes.seeds: time.sleep(0)\n    while True: forge(); time.sleep(0.01)\n"
            "threading.Thread(target=watch, daemon=True).start()\ngrowth = 3"
        },
        3,
    ),
    "replays_the_public_cases": ({"q1": REPLAY}, 2),
    "fixes_the_seed": ({"q1": PUBLIC_SEED}, 2),
    "reads_the_probe": ({"q1": READ_PROBE}, 2),
    "unicode": (
        {"q1": "def rms_norm(χ, eps=1e-6):\n    return χ / np.sqrt(np.mean(χ * χ, axis=-1, keepdims=True) + eps)"},
        5,
    ),
    "other_questions_names": ({"q1": f"{RMS}\ngrowth = 2", "q2": None}, 3),
    "takes_away_names": ({"q2": "growth = 2; np = course = rms_norm = None"}, 5),
    # Left behind, and the next one
    "litter": ({"q1": LITTER + RMS}, 5),
    "zz_after_all": ({"q2": FIND}, 5),
}
if not ISOLATED:  # here these would reach the tests themselves, or this machine
    for name in ("kill_all", "kill_parent", "fork_bomb", "daemon", "litter"):
        CODE.pop(name)


def notebook(released, answers=None):
    kept = {**tiny.RIGHT, **(answers or {})}
    return tiny.answered(released, **{name: source for name, source in kept.items() if source is not None})


def wrong(released):
    """A wrong answer to q1, and right ones to the rest: worth 2 whatever else is done."""
    return notebook(released, {"q1": WRONG_RMS})


def checks(book):
    return [c for c in book["cells"] if c["metadata"].get("normkit", {}).get("role") == "check"]


def each(change):
    """A maker of notebooks: `change` applied to every cell of one with a wrong answer."""

    def make(released):
        book = wrong(released)
        for cell in book["cells"]:
            change(cell)
        return book

    return make


def saved_output(cell):
    if cell["cell_type"] == "code":
        cell["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "right"}]
        cell["execution_count"] = 1


def cleared(cell):
    if cell["cell_type"] == "code":
        cell["outputs"], cell["execution_count"] = [], None


def tagged(*tags):
    return each(lambda cell: cell["metadata"].update(tags=list(tags)))


def without_checks(released):
    book = wrong(released)
    book["cells"] = [c for c in book["cells"] if c not in checks(book)]
    return book


def edited_checks(released):
    book = wrong(released)
    for cell in checks(book):
        cell["source"] = "print('right')"
    return book


def skip_comment(cell):
    if cell["cell_type"] == "code":
        cell["source"] = f"# NBVAL_SKIP\n{cell['source']}"


def transformed(released):
    book = wrong(released)
    code = "get_ipython().input_transformers_cleanup.append(lambda ls: [x for x in ls if 'emit' not in x])"
    book["cells"].insert(0, {"cell_type": "code", "metadata": {}, "source": code})
    return book


# The nine ways in which stock nbval ends with exit code 0 and no right answer, with "patched_allclose", and then its other
# traps, with "endless_loop", "swallowing_loop" and "os_exit": what is handed in, and the points.
TRAPS = {
    "wrong_with_its_own_output": (each(saved_output), 2),
    "deleted_check": (without_checks, 2),
    "edited_check": (edited_checks, 2),
    "skip_tag": (tagged("nbval-skip"), 2),
    "skip_comment": (each(skip_comment), 2),
    "raises_tag": (tagged("raises-exception", "nbval-raises-exception"), 2),
    "cleared_counts": (each(cleared), 2),
    "input_transformer": (transformed, 0),
    "loop_that_prints": (
        lambda r: notebook(r, {"q1": "while True:\n    try: print(1)\n    except BaseException: pass"}),
        2,
    ),
    "own_kernel": (lambda r: wrong(r) | {"metadata": {"kernelspec": {"name": "my-env", "display_name": "x"}}}, 2),
}


def backwards(released):
    book = notebook(released)
    book["cells"].reverse()
    return book


def retyped(released):
    book = notebook(released)
    tiny.cell(book, "q1")["cell_type"], tiny.cell(book, "q2")["cell_type"] = "markdown", "raw"
    return book


def other_kernel(released):
    book = notebook(released)
    book["metadata"]["kernelspec"] = {"name": "ir", "language": "\x1b[2JR\ud800", "display_name": "R"}
    return book


def without_cells(released):
    book = notebook(released)
    book["cells"] = [c for c in book["cells"] if c["metadata"]["normkit"].get("question") != "q1"]
    return book


def doubled(released):
    book = notebook(released)
    book["cells"] += copy.deepcopy(book["cells"])
    return book


def swapped(released):
    book = notebook(released)
    one, two = tiny.cell(book, "q1"), tiny.cell(book, "q2")
    one["metadata"], two["metadata"] = two["metadata"], one["metadata"]
    return book


def lost(released):
    book = notebook(released)
    book["metadata"] = {}
    for cell in book["cells"]:
        cell["metadata"], cell["id"] = {}, None
    return book


def split(released):
    book = notebook(released)
    first = tiny.cell(book, "q1")
    first["source"] = "mean = np.mean"
    book["cells"].insert(book["cells"].index(first) + 1, {**first, "source": RMS.replace("np.mean", "mean")})
    return book


def helpers(released):
    """Own cells of every kind, more than anyone writes, among them what clears all names before the notebook begins."""
    book = notebook(released, {"q1": ["def rms_norm(x, eps=1e-6):\n", "    return x / root(x, eps)"]})
    sources = [f"x{i} = {i}" for i in range(60)] + [
        "%matplotlib inline",
        "%%time\nx = 1",
        "!echo hello",
        "input('name?')",
        "1 / 0",
        "def broken(:",
        ["def root(x, eps):\n", "    return np.sqrt((x * x).mean(-1, keepdims=True) + eps)"],
        "%%writefile a.py\nx = 3",
        "import a; assert a.x == 3; x59 += 1",
        "?np.mean",
    ]
    cells = [{"cell_type": "code", "metadata": {}, "source": source} for source in sources]
    book["cells"][2:2] = cells
    book["cells"].insert(0, {"cell_type": "code", "metadata": {}, "source": "%reset -f"})
    return book


BOOKS = {
    "backwards": (backwards, 5),
    "retyped": (retyped, 5),
    "other_kernel": (other_kernel, 5),
    "no_cells": (without_cells, 2),
    "doubled": (doubled, 5),
    "swapped_ids": (swapped, 2),
    "lost_metadata": (lost, 5),
    "split_answer": (split, 5),
    "own_cells": (helpers, 5),
}
BROKEN = {
    "empty": b"",
    "no_json": b"\x00\xff",
    "no_notebook": b"[1]",
    "no_cell_list": b'{"cells": 3}',
    "deep": b"[" * 10**6,
    "format_3": b'{"nbformat": 3, "worksheets": [{"cells": [{"input": "growth = 2"}]}]}',
    "huge_number": b'{"cells": [' + b"9" * 10**6 + b"]}",
    "odd_cells": b'{"cells": [1, null, {"source": 3}]}',
    **dict.fromkeys(("=cmd()", 'o\'hara, "ann"', "Ada", "ada", "李", "a.b", "x" * 240, "-rf"), b""),
}


def forms(released):
    """The same notebook as bytes, in forms that tools write."""
    text = json.dumps(notebook(released), indent=1)
    twice = '{"cells": [], "metadata": {"normkit": 1}, ' + json.dumps(notebook(released))[1:]
    heavy = notebook(released)
    heavy["metadata"]["widgets"] = {"state": "x" * 5 * 2**20}
    return {
        "bom_and_crlf": b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode(),
        "keys_twice": twice.encode(),
        "heavy_metadata": json.dumps(heavy).encode(),
    }


@pytest.fixture(scope="module")
def graded(tmp_path_factory):
    """(results by student, seconds, the folder for temporary files) of the whole class."""
    here = tmp_path_factory.mktemp("hostile")
    (here / "course" / ".git" / "objects").mkdir(parents=True)
    (here / "course" / "master").mkdir()
    master = tiny.write(here / "course" / "master" / "tiny.ipynb", tiny.source_notebook())
    (here / "course" / ".git" / "objects" / "ab").write_bytes(zlib.compress(master.read_bytes()))
    released, folder = release.released(master), here / "submissions"
    folder.mkdir()
    for name, (answers, _) in CODE.items():
        tiny.write(folder / f"{name}.ipynb", notebook(released, answers))
    roots = [str(here / "course"), str(folder), str(here / "out")]
    tiny.write(folder / "thief.ipynb", notebook(released, {"q2": STEAL.format(roots=roots)}))
    for name, (make, _) in (TRAPS | BOOKS).items():
        tiny.write(folder / f"{name}.ipynb", make(released))
    for name, content in (BROKEN | forms(released)).items():
        (folder / f"{name}.ipynb").write_bytes(content)
    with open(folder / "huge.ipynb", "wb") as file:
        file.truncate(100 * 10**6)
    strays(folder, here, released)
    places = pytest.MonkeyPatch()
    space = Path(tempfile.mkdtemp(prefix="nkh"))
    space.chmod(0o711)
    places.setattr(tempfile, "tempdir", str(space))
    start = time.monotonic()
    results = grade.grade(master, folder, progress_file=here / "out" / "progress.jsonl", limits=LIMITS, workers=4)
    seconds = time.monotonic() - start
    places.undo()
    assert json.loads(json.dumps(results)) == results
    yield {r["student"]: r for r in results}, seconds, space
    for place in LEFT:
        (place / f"{MARK}.py").unlink(missing_ok=True)
    space.rmdir()


def strays(folder, here, released):
    """What lies in a folder of submissions besides."""
    (folder / "link.ipynb").symlink_to(folder / "honest.ipynb")
    (folder / "loop.ipynb.ipynb").symlink_to(folder / "loop.ipynb.ipynb")
    (folder / "linked_folder").symlink_to(here / "course" / "master")
    (folder / "loop_folder").symlink_to(folder)
    (folder / "empty_folder").mkdir()
    (folder / "folder.ipynb").mkdir()
    os.mkfifo(folder / "pipe.ipynb")
    for name in ("__MACOSX", ".ipynb_checkpoints", "both", "several"):
        (folder / name).mkdir()
        tiny.write(folder / name / "unsolved.ipynb", released)
    (folder / "readme.txt").write_text("no submission")
    (folder / "._ada.ipynb").write_bytes(b"\x00\x05\x16\x07")
    tiny.write(folder / "both.ipynb", notebook(released))
    (folder / "several" / "a_scratch.ipynb").write_text('{"cells": []}')
    tiny.write(folder / "several" / "tiny.ipynb", notebook(released))
    (folder / "honest").mkdir()  # beside honest.ipynb, with pictures for instance
    with open(os.fsencode(folder) + NO_UTF8 + b"\nnew.ipynb", "wb") as file:
        file.write(json.dumps(notebook(released, {"q1": None})).encode())
    (folder / "closed").mkdir()
    tiny.write(folder / "closed" / "tiny.ipynb", notebook(released, {"q1": None}))
    (folder / "closed" / "tiny.ipynb").chmod(0o444)
    (folder / "closed").chmod(0o555)


STRAYS = ["link", "loop.ipynb", "linked_folder", "loop_folder", "empty_folder", "folder", "pipe", "huge"]
FORMS = ("bom_and_crlf", "keys_twice", "heavy_metadata")
NO_UTF8, SHOWN = (b"/caf\xe9", "caf\\udce9") if sys.platform == "linux" else (b"/caf", "caf")  # macOS has none such
TIDY = {"both": 5, "several": 5, f"{SHOWN}\\nnew": 2, "closed": 2}  # student -> points


def points(graded, name):
    return graded[0][name]["points"]


@pytest.mark.slow
@pytest.mark.parametrize("name", CODE)
def test_hostile_code_gets_the_right_grade(graded, name):
    assert points(graded, name) == CODE[name][1], graded[0][name]


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAPS)
def test_what_stock_nbval_lets_pass_gets_the_right_grade(graded, name):
    assert points(graded, name) == TRAPS[name][1], graded[0][name]


@pytest.mark.slow
@pytest.mark.parametrize("name", BOOKS)
def test_a_tampered_or_odd_notebook_gets_the_right_grade(graded, name):
    assert points(graded, name) == BOOKS[name][1], graded[0][name]


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMS)
def test_forms_that_tools_write_are_read(graded, name):
    assert points(graded, name) == 5, graded[0][name]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*BROKEN, *STRAYS])
def test_what_is_no_submission_gets_nothing_and_a_reason(graded, name):
    result = graded[0][name]
    assert result["points"] == 0 and result["max"] == 5 and result["notes"], result


@pytest.mark.slow
@pytest.mark.parametrize("name", TIDY)
def test_folders_read_only_files_and_odd_names_are_read(graded, name):
    assert points(graded, name) == TIDY[name], graded[0][name]


@pytest.mark.slow
def test_of_two_notebooks_with_one_id_the_assignment_counts_and_the_other_is_noted(graded):
    assert graded[0]["both"]["notes"] == ["unsolved.ipynb was handed in too, and was not graded"]
    assert len(graded[0]["several"]["notes"]) == 2 and graded[0]["honest"]["notes"] == []


@pytest.mark.slow
@pytest.mark.skipif(not ISOLATED, reason="this system hides no files from a kernel")
def test_the_master_its_history_the_other_submissions_and_the_results_cannot_be_read(graded):
    assert points(graded, "thief") == 3, graded[0]["thief"]


@pytest.mark.parametrize("place", ["course/master", "course/.git/objects"])
def test_the_thief_finds_what_is_not_hidden(tmp_path, place):
    (tmp_path / place).mkdir(parents=True)
    text = json.dumps(tiny.source_notebook()).encode()
    (tmp_path / place / "ab").write_bytes(zlib.compress(text) if ".git" in place else text)
    code = STEAL.format(roots=[str(tmp_path)]) + "print(growth)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"2.0\n"


@pytest.mark.slow
def test_the_class_can_be_exported(graded, tmp_path):
    results = list(graded[0].values())
    export.write_csv(results, tmp_path / "grades.csv")
    export.write_json(results, tmp_path / "results.json")
    export.write_canvas(results, tmp_path / "canvas.csv")
    export.write_moodle(results, tmp_path / "moodle.csv")
    export.write_gradescope(results, tmp_path / "g")
    for name, more in (("grades", 1), ("canvas", 2), ("moodle", 1)):
        with open(tmp_path / f"{name}.csv", newline="", encoding="utf-8-sig") as file:
            table = list(csv.reader(file))
        assert len(table) == len(results) + more and len({len(row) for row in table}) == 1
        assert not any(cell[:1] in {*"=+-@"} for row in table for cell in row)
    assert len([*(tmp_path / "g").glob("*/results.json")]) == len(results)
    assert all(line.isprintable() for line in commands.summary(results))


@pytest.mark.slow
def test_each_submission_is_there_and_the_class_ends_in_bounded_time(graded):
    results, seconds, _ = graded
    assert results.keys() == {*CODE, *BOOKS, *TRAPS, *BROKEN, *STRAYS, *TIDY, *FORMS, "thief"}
    # 60 s a submission, two at a time, would be the limit; this is not a speed test, but that the limits hold.
    assert seconds < LIMITS.total_s * len(results) / 2
    assert all(r["seconds"] < LIMITS.total_s + 15 for r in results.values())
    text = json.dumps(results, ensure_ascii=False)
    assert "\\u001b" not in text and text.encode() and max(len(n) for r in results.values() for n in r["notes"]) < 500


@pytest.mark.skipif(os.name != "posix", reason="names relative to an open folder")
def test_a_tree_too_deep_for_python_and_closed_folders_are_removed(tmp_path):
    folder = tmp_path / "work"
    (folder / "closed" / "inside").mkdir(parents=True)
    (folder / "closed").chmod(0)
    here = os.open(folder, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=here)
        above, here = here, os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(above)
    os.close(here)
    sandbox.remove(folder)
    assert not folder.exists()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").exists(), reason="this system does not list processes as files")
def test_no_process_and_no_file_is_left(graded):
    space = graded[2]

    def left():
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if str(space).encode() in (process / "environ").read_bytes() + os.fsencode(
                    os.readlink(process / "cwd")
                ):
                    found.append(process.name)
            except OSError:
                continue  # it has just ended
        return found

    end = time.monotonic() + 5
    while left() and time.monotonic() < end:
        time.sleep(0.1)
    assert left() == [] and list(space.iterdir()) == []
    if ISOLATED and landlock.version():
        assert not any((place / f"{MARK}.py").exists() for place in LEFT)


# Answers that do no harm to the next one, so that many fit into one notebook: each a question of its own, whose answer V
# should be 2. All are wrong but the last two.
RAISED = {
    "exits": "import sys; sys.exit(0)",
    "interrupts": "raise KeyboardInterrupt",
    "is_no_python": "def f(x:",
    "null_bytes": "V = 2 # \x00",
    "asks": "V = input('answer? ')",
    "a_long_error": "raise ValueError('x' * 10**5)",
    "an_evil_error": "class E(Exception): __str__ = lambda self: '\\x1b[2J\\udc80=cmd()\\r\\n' * 999\nraise E",
    "an_error_without_text": "class E(Exception): __str__ = property(lambda self: 1 / 0)\nraise E",
    "no_traceback": "s = get_ipython(); show = s._showtraceback; s._showtraceback = lambda *a: None; raise RuntimeError",
    "traceback_again": "get_ipython()._showtraceback = show; V = None",
    "deletes_itself": "V = 2; del V",
    "right": "V = 2",
    "right_too": "%time V = 2",
}
FORGE = """from IPython.display import publish_display_data
def forge(question):
    mime = "application/vnd.normkit.answer+json"
    publish_display_data({mime: {"question": question, "values": 2.0, "rtol": 0.01, "atol": 0.0}, "text/plain": ""})
"""
EQUAL = """class Equal:
    __eq__ = __lt__ = __le__ = __contains__ = lambda self, other: True
    __getattr__ = lambda self, name: self
    __call__ = lambda self, *a, **k: self
    __hash__ = lambda self: 0
V = Equal()"""
RETURNED = {
    "emits_itself": "V = 3\nfor _ in range(3): course.emit('emits_itself', 2.0)",
    "publishes_early": FORGE + "forge('publishes_early'); V = 3",
    "publishes_in_array": "class A:\n    def __array__(s, *a, **k): forge('publishes_in_array'); return np.array(3.0)\nV = A()",
    "publishes_in_float": "class A(float):\n    def __float__(s): forge('publishes_in_float'); return 3.0\nV = A(2)",
    "publishes_in_del": "class A(list):\n    def __del__(s): forge('publishes_in_del')\n"
    "    def __iter__(s): A(); return iter([3])\nV = A([3])",
    "equal_to_all": EQUAL,
    "claims_a_class": "class F: __class__ = float\nV = F()",
    "endless_list": "class L(list): __len__ = lambda s: 10**18; __iter__ = lambda s: iter(int, 1)\nV = L()",
    "itself": "V = []; V.append(V)",
    "many_of_itself": "V = [0]\nfor _ in range(12): V = [V] * 2",
    "generator": "V = (2 for _ in range(1))",
    "huge": "V = np.full(10**7, 2.0)",
    "not_a_number": "V = np.full(1, np.nan)[0]",
    "objects": "V = np.array([2.0, None], dtype=object)",
    "complex": "V = 2 + 0j",
    "mapping": "class D(dict): __getitem__ = get = lambda s, *a: 2.0\nV = D(values=2.0)",
    "raised": "from normkit.course.probes import Raised\nV = Raised('2.0')",
    "odd_array": "class R: __array__ = property(lambda s: 1 / 0)\nV = R()",
    "tolerant": "V = type('T', (float,), {'rtol': 9, 'atol': 9, '__eq__': lambda s, o: True, '__hash__': None})(2.5)",
    "right": "V = np.array(2)",
}


def many_questions(cases):
    """A source notebook with a question for each case."""
    grader = {"schema_version": 3, "grade": True, "solution": False, "locked": True, "task": False, "points": 1}
    setup = "import numpy as np\nfrom normkit import course"
    cells = [tiny.new_code_cell(setup, metadata=tiny.own("setup", "setup"))]
    for name in cases:
        probe = f"### BEGIN HIDDEN TESTS\ncourse.emit({name!r}, v_{name}, rtol=0.01)\n### END HIDDEN TESTS"
        answer = f"### BEGIN SOLUTION\nv_{name} = 2.0\n### END SOLUTION"
        cells += [
            tiny.new_code_cell(answer, metadata=tiny.own(name, "answer", name)),
            tiny.new_code_cell(f"course.check({name!r})", metadata=tiny.own(f"{name}-check", "check", name)),
            tiny.new_code_cell(
                probe, metadata=tiny.own(f"{name}-probe", "probe", name) | {"nbgrader": {**grader, "grade_id": name}}
            ),
        ]
        for value in (1, 3, 4, 5, 6):
            wrong = tiny.own(f"{name}-wrong-{value}", "wrong", name, message=f"It is not {value}.")
            cells.append(tiny.new_raw_cell(f"v_{name} = {value}", metadata=wrong))
    return tiny.new_notebook(cells=cells, metadata={"normkit": {"assignment": "many", "title": "Many", "minutes": 5}})


@pytest.fixture(scope="module", params=[RAISED, RETURNED], ids=["raised", "returned"])
def many(request, tmp_path_factory):
    """(cases, result) of a notebook with all of them."""
    here, cases = tmp_path_factory.mktemp("many"), request.param
    (here / "master").mkdir()
    (here / "submissions").mkdir()
    master = tiny.write(here / "master" / "many.ipynb", many_questions(cases))
    book = tiny.answered(release.released(master), **{n: code.replace("V", f"v_{n}") for n, code in cases.items()})
    tiny.write(here / "submissions" / "ada.ipynb", book)
    (result,) = grade.grade(master, here / "submissions", progress_file=here / "p.jsonl", limits=LIMITS)
    return cases, result


@pytest.mark.slow
def test_odd_answers_cost_their_own_question_only(many):
    cases, result = many
    passed = {name for name, q in result["questions"].items() if q["passed"]}
    assert passed == {"right", "right_too"} & cases.keys(), result
    assert not any("ended Python" in note or "not end" in note for note in result["notes"]), result["notes"]
    assert all(note.isprintable() and len(note) < 400 for note in result["notes"])
