import os
import sys

import psutil
import pytest
from tiny_assignment import RIGHT, cell, source_notebook, write

from normkit.course import landlock, merge, runner, sandbox, source

TOLD = {"seeds": {"q1": 1, "q2": 2}, "student": "ada", "checks": {}, "limits": sandbox.Limits(cell_s=60, total_s=120)}


@pytest.fixture
def compiling(tmp_path):
    """An assignment whose setup calls a function that numba compiles."""
    notebook = source_notebook()
    setup = "\nfrom normkit.layers.kernels import _copy_cached\n_copy_cached(np.zeros((1, 1)), np.zeros((1, 1)))"
    cell(notebook, "setup")["source"] += setup
    return source.read(write(tmp_path / "tiny.ipynb", notebook))


def test_what_the_reference_compiled_is_loaded_and_no_submission_can_spoil_it_for_the_next(compiling):
    reference = runner.reference(compiling, **TOLD)
    spoil = """
import os, pathlib
for path in pathlib.Path(os.environ["NUMBA_CACHE_DIR"]).rglob("*.nb?"):
    path.write_bytes(b"spoiled")
growth = 2.0 if _copy_cached.stats.cache_hits else 0.0"""
    told = TOLD | {"expected": reference["emitted"], "compiled": reference["compiled"]}
    for _ in range(2):
        ran = runner.execute(compiling, merge.Submission(RIGHT | {"q2": spoil}), **told)
        assert [ran.cells[f"{q}-probe"]["outcome"] for q in ("q1", "q2")] == ["passed", "passed"]
    ran = runner.execute(compiling, merge.Submission(RIGHT | {"q2": spoil}), **told | {"compiled": None})
    assert ran.cells["q2-probe"]["outcome"] == "failed"


@pytest.fixture
def tiny(tmp_path):
    return source.read(write(tmp_path / "tiny.ipynb", source_notebook()))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a process that hides is not found")
@pytest.mark.parametrize(
    ("kind", "then"), [("here", ""), ("landlock", ""), ("clock", ""), ("limits", "\nwhile True: pass")]
)
def test_no_process_outlives_its_run(tiny, monkeypatch, kind, then):
    if kind == "landlock" and not landlock.version():
        pytest.skip("no Landlock here")
    if kind != "here":
        monkeypatch.setattr(sandbox, "protection", lambda: kind)
    seconds = f"86400.{os.getpid()}"
    daemon = f"""
import os, subprocess, sys
if not os.fork():
    os.setsid()
    os.chdir("/")
    if not os.fork():
        os.execve("/bin/sleep", ["sleep", "{seconds}"], {{}})
    os._exit(0)
growth = 2.0{then}"""
    ran = runner.execute(tiny, merge.Submission(RIGHT | {"q2": daemon}), **TOLD, expected={}, time_s=6)
    assert ran.cells["q1-probe"]["outcome"] == "passed" and (ran.culprit, ran.how) == (
        ("q2", "late") if then else (None, "")
    )
    assert not [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == ["sleep", seconds]]


@pytest.mark.skipif(sys.platform != "linux" or sandbox.user(0) is None, reason="root's processes are not counted")
@pytest.mark.slow
def test_a_fork_bomb_is_bounded_and_ended(tiny):
    bomb = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"
    told = TOLD | {"limits": sandbox.Limits(cell_s=3, total_s=60, processes=50)}
    ran = runner.execute(tiny, merge.Submission(RIGHT | {"q2": bomb}), **told, expected={}, number=7)
    assert ran.cells["q1-probe"]["outcome"] == "passed" and ran.culprit == "q2"
    assert not [
        p for p in psutil.process_iter() if p.uids().real == sandbox.user(7) and p.status() != psutil.STATUS_ZOMBIE
    ]
