"""The house: one list of versions, two commands, a light import, a complete wheel."""

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import normkit

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PINS = {
    canonicalize_name(pin.name): pin
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
    for pin in [Requirement(line)]
}


@pytest.fixture
def run(monkeypatch):
    """run.py as a module that starts no process; `run.called` lists what it would have started, `run.code` answers."""
    spec = importlib.util.spec_from_file_location("run", ROOT / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.called, module.code = [], 0

    def call(command, cwd=None, env=None):
        module.called.append([str(part) for part in command])
        module.env = env
        return module.code(command) if callable(module.code) else module.code

    monkeypatch.setattr(module.subprocess, "call", call)
    return module


def isolated(code, **options):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, **options).stdout


# --- what an import costs


def test_import_normkit_is_light():
    heavy = "torch plotly ipywidgets anywidget scipy transformers numba numpy jupyterlab"
    assert isolated(f"import sys, normkit; print(set('{heavy}'.split()) & set(sys.modules))").strip() == "set()"


@pytest.mark.parametrize("module", ["normkit.depth", "normkit.layers", "normkit.profile", "normkit.files"])
def test_the_numpy_side_needs_no_torch_and_no_widgets(module):
    heavy = "torch plotly ipywidgets anywidget scipy transformers"
    assert isolated(f"import sys, {module}; print(set('{heavy}'.split()) & set(sys.modules))").strip() == "set()"


def test_the_slow_grammar_of_jsonschema_is_not_built():
    assert isolated("import normkit, jsonschema, sys; print(sys.modules['rfc3987_syntax'])").strip() == "None"


def test_pytest_loads_normkit_before_nbval(pytestconfig):
    assert pytestconfig.pluginmanager.has_plugin("normkit")
    assert sys.modules["rfc3987_syntax"] is None
    assert pytestconfig.getini("filterwarnings")[0] == "error"


# --- one list of versions


def extras():
    return PROJECT["optional-dependencies"]


APART = ("verl",)  # an extra, and its package, that want other versions than the rest: an environment of its own


def test_every_range_admits_its_pin():
    for line in [*PROJECT["dependencies"], *(line for part in extras().values() for line in part)]:
        want = Requirement(line)
        if want.name in ("normkit", *APART):
            continue
        pin = PINS[canonicalize_name(want.name)]
        (exact,) = pin.specifier
        assert exact.operator == "=="
        assert exact.version in want.specifier, f"pyproject asks {want}, constraints.txt pins {pin}"
        assert not any(s.operator in ("==", "<", "<=", "~=") for s in want.specifier), f"{want}: a range, open above"


def test_a_package_has_the_same_range_in_every_extra():
    ranges = {}
    for line in [*PROJECT["dependencies"], *(line for part in extras().values() for line in part)]:
        want = Requirement(line)
        assert ranges.setdefault(want.name, want.specifier) == want.specifier, want.name


def test_the_extra_all_is_all_of_them():
    (line,) = extras()["all"]
    assert Requirement(line).extras == extras().keys() - {"all", *APART}


def test_the_pins_are_what_the_tests_run_with():
    """Every installed package that normkit pulls in is pinned, in the version that is installed here, for any Python."""
    from importlib import metadata

    todo, seen, oldest = [("normkit", frozenset(["all"]))], set(), PROJECT["requires-python"].removeprefix(">=") + ".0"
    while todo:
        name, wanted = todo.pop()
        if (name, wanted) in seen:
            continue
        seen.add((name, wanted))
        distribution = metadata.distribution(name)
        if name not in ("normkit", "setuptools"):
            pin = PINS[name]
            assert pin.specifier.contains(distribution.version), (
                f"{name} {distribution.version} is installed, not {pin}"
            )
            python = distribution.metadata.get("Requires-Python") or ""  # Dask's importlib_metadata raises on [...]
            assert oldest in SpecifierSet(python), f"{name} {distribution.version} wants Python {python}"
        for line in distribution.requires or []:
            need = Requirement(line)
            # packages of another system or Python, and CUDA's, stay with what asked for them
            if all(not need.marker.evaluate({"extra": e}) for e in (wanted or {""})) if need.marker else False:
                continue
            if canonicalize_name(need.name).startswith(("nvidia-", "cuda-", "triton")):
                continue
            todo.append((canonicalize_name(need.name), frozenset(need.extras)))
    assert len(seen) > 100


def test_conda_installs_the_same_list():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    python, pip, rest = environment["dependencies"]
    assert pip == "pip"
    assert rest == {"pip": ["-c constraints.txt", "-e .[all]"]}
    name, _, version = python.partition("=")
    assert name == "python"
    assert version in SpecifierSet(PROJECT["requires-python"])


def test_torch_is_pinned_without_a_build_tag():
    (exact,) = PINS["torch"].specifier
    assert "+" not in exact.version


def test_the_oldest_python_is_the_same_everywhere():
    low = re.fullmatch(r">=(3\.\d+)", PROJECT["requires-python"])[1]
    assert f"Python {low} or newer" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"({low.replace('.', ', ')})" in (ROOT / "run.py").read_text(encoding="utf-8")
    ruff = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["ruff"]
    assert ruff["target-version"] == "py" + low.replace(".", "")


def test_no_registry_address_and_no_version_is_repeated():
    text = "".join((ROOT / name).read_text(encoding="utf-8") for name in ("run.py", "environment.yml", ".ci/run"))
    assert "://" not in text
    (exact,) = PINS["torch"].specifier
    assert exact.version not in text


def test_citation_agrees_with_the_package():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()  # what the format requires
    assert citation["version"] == normkit.__version__
    assert citation["license"] == PROJECT["license"] == "Apache-2.0"
    assert citation["title"].endswith(PROJECT["description"][1:])
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")


# --- run.py and CI


def test_run_py_needs_the_standard_library_only():
    tree = ast.parse((ROOT / "run.py").read_text(encoding="utf-8"))
    names = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    names |= {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    # normkit.doctor imports the standard library only: tests/test_doctor.py runs it without site-packages
    assert {n.partition(".")[0] for n in names - {"normkit.doctor"}} <= set(sys.stdlib_module_names)


def test_run_py_can_be_read_by_an_old_python():
    """So that an old Python prints what is wrong and no SyntaxError; 3.7 is the oldest that ast can imitate."""
    ast.parse((ROOT / "run.py").read_text(encoding="utf-8"), feature_version=(3, 7))


def test_an_old_python_is_told_what_to_do(run, monkeypatch, capsys):
    monkeypatch.setattr(run.sys, "version_info", (3, 10, 1))
    assert run.main(["lab"]) == 1
    assert "needs Python 3.11 or newer, this is 3.10" in capsys.readouterr().out
    assert run.called == []


def test_usage(run, capsys):
    assert run.main(["--help"]) == 0
    assert run.main([]) == 2
    assert run.main(["tset"]) == 2
    assert "python run.py setup|lab|test" in capsys.readouterr().out


def test_the_python_of_an_environment_on_windows_and_elsewhere(run):
    assert run.venv_python(Path("v"), windows=True) == Path("v/Scripts/python.exe")
    assert run.venv_python(Path("v"), windows=False) == Path("v/bin/python")


def test_setup_makes_fills_and_stamps_an_environment_once(run, monkeypatch, tmp_path):
    monkeypatch.setattr(run, "VENV", tmp_path / ".venv")
    monkeypatch.setenv("NORMKIT_TORCH_INDEX", "the-index")

    def code(command):
        if "venv" in command:
            python = run.venv_python(run.VENV)
            python.parent.mkdir(parents=True)
            python.touch()
        return 0

    run.code = code
    python = run.setup()
    make, torch, rest, warm = run.called
    assert warm == [str(python), "-c", run.WARM]
    assert make[1:] == ["-m", "venv", str(tmp_path / ".venv")]
    constraints = str(ROOT / "constraints.txt")
    assert torch[0] == rest[0] == str(python)
    assert torch[-5:] == [str(PINS["torch"]), "-c", constraints, "--extra-index-url", "the-index"]
    assert rest[-4:] == ["-e", ".[all]", "-c", constraints], "the other index is for torch alone"
    overrides = tmp_path / ".venv" / "share" / "jupyter" / "lab" / "settings" / "overrides.json"
    settings = json.loads(overrides.read_text(encoding="utf-8"))
    assert settings["@jupyterlab/apputils-extension:kernels-settings"] == {"commsOverSubshells": "disabled"}
    assert settings["@jupyter-widgets/jupyterlab-manager:plugin"] == {"saveState": True}
    assert run.setup() == python
    assert len(run.called) == 4, "a second run finds the stamp"
    (tmp_path / ".venv" / "normkit-stamp").write_text("of another list")
    run.setup()
    assert len(run.called) == 7, "another list: install again, into the same environment"


def test_setup_that_fails_leaves_no_stamp_and_the_installers_exit_code(run, monkeypatch, tmp_path):
    monkeypatch.setattr(run, "VENV", tmp_path)
    run.venv_python(tmp_path).parent.mkdir(parents=True)
    run.venv_python(tmp_path).touch()
    run.code = 7
    with pytest.raises(SystemExit) as stop:
        run.setup()
    assert stop.value.code == 7
    assert not (tmp_path / "normkit-stamp").exists()


def test_the_stamp_changes_with_each_list_and_with_python(run, tmp_path):
    for name in run.LISTS:
        (tmp_path / name).write_text("a")
    first = run.fingerprint(tmp_path, (3, 11, 7))
    assert first == run.fingerprint(tmp_path, (3, 11, 9)), "a patch release keeps the environment"
    assert first != run.fingerprint(tmp_path, (3, 12, 0))
    for name in run.LISTS:
        (tmp_path / name).write_text("b")
        assert first != run.fingerprint(tmp_path, (3, 11, 7))
        (tmp_path / name).write_text("a")


@pytest.fixture
def ready(run, monkeypatch):
    monkeypatch.setattr(run, "setup", lambda: Path("python"))
    return run


@pytest.mark.parametrize(
    ("fails", "code"), [(None, 0), ("check", 1), ("format", 1), ("pytest", 5)], ids=["good", "lint", "format", "tests"]
)
def test_the_exit_code_of_test_is_honest(ready, fails, code):
    ready.code = lambda command: (5 if fails == "pytest" else 1) if fails in command else 0
    assert ready.test([]) == code
    assert [c[2] for c in ready.called] == ["ruff", "ruff", "pytest"], "all run, pytest last: its summary closes"


def test_test_takes_the_tests_and_each_notebook_unless_told_otherwise(ready, monkeypatch, tmp_path):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "a.ipynb").touch()
    monkeypatch.setattr(ready, "ROOT", tmp_path)
    ready.test(["-x"])
    command = ready.called[-1]
    assert {"--nbval", "tests", str(Path("notebooks/a.ipynb")), "-x"} <= set(command)
    assert ready.env["OMP_NUM_THREADS"] == os.environ.get("OMP_NUM_THREADS", "1")
    ready.test(["tests/test_house.py", "-q"])
    assert ready.called[-1][3:] == ["tests/test_house.py", "-q"]


def test_a_missing_browser_is_announced_and_no_test_is_left_out_for_it(ready, monkeypatch, capsys):
    monkeypatch.setattr("normkit.doctor.find_chromium", lambda: None)
    ready.test([])
    assert "no Chromium, so the browser tests will fail" in capsys.readouterr().out
    assert "-m" not in ready.called[-1][3:]
    monkeypatch.setattr("normkit.doctor.find_chromium", lambda: "the-browser")
    ready.test([])
    assert ready.env["NORMKIT_CHROMIUM"] == "the-browser"


def test_lab_starts_on_the_first_notebook_and_passes_arguments_on(ready, monkeypatch):
    monkeypatch.setattr(ready.os, "execv", lambda path, command: ready.called.append(command))
    monkeypatch.setattr(ready.os, "geteuid", lambda: 0, raising=False)
    monkeypatch.setattr(ready.os, "chdir", lambda folder: None)
    ready.lab(["--no-browser", "--port", "9999"])
    start = str(Path("notebooks/00_start.ipynb"))
    want = ["python", "-m", "jupyterlab", start, "--allow-root", "--no-browser", "--port", "9999"]
    trust, started = ready.called[:2]
    assert trust[:4] == ["python", "-m", "jupyter", "trust"]
    assert start in trust
    assert started == want
    assert (ROOT / start).is_file()
    monkeypatch.setattr(ready.os, "geteuid", lambda: 1000, raising=False)
    ready.lab([])
    assert "--allow-root" not in ready.called[-1]


def test_ci_runs_the_users_command():
    script = ROOT / ".ci" / "run"
    lines = script.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    assert lines[-1] == 'exec python3 run.py test "$@"'
    assert "set -euo pipefail" in lines
    if os.name != "nt":
        assert os.access(script, os.X_OK)
        subprocess.run(["bash", "-n", script], check=True)


# --- the wheel


def test_the_wheel_is_complete(tmp_path):
    """Built without isolation, so without the network: hatchling is in the dev extra for this."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "site")
    package = ROOT / "normkit"
    source = {p.relative_to(ROOT).as_posix() for p in package.rglob("*") if p.suffix in (".py", ".js", ".css")}
    assert source <= names
    data = {f"normkit/_data/{p.name}" for p in (ROOT / "data").iterdir()}
    assert {"normkit/_data/digits.csv.gz", "normkit/_data/text.txt", "normkit/_data/references.bib"} <= data <= names
    assert not any(n.startswith(("tests/", "notebooks/")) or "__pycache__" in n for n in names)
    info = f"normkit-{normkit.__version__}.dist-info/"
    assert {info + "licenses/LICENSE", info + "licenses/NOTICE", info + "entry_points.txt"} <= names
    code = "from normkit import files; print(files.data_path(), files.digits()[0].shape, len(files.text()))"
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    out = isolated(code, env=env, cwd=tmp_path).split(" ", 1)
    assert Path(out[0]) == (tmp_path / "site" / "normkit" / "_data").resolve()
    assert out[1].startswith("(1797, 64)")
