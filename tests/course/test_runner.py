import pytest
from tiny_assignment import RIGHT, cell, source_notebook, write

from normkit.course import merge, runner, sandbox, source

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
