import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from normkit import doctor


def found(findings, name):
    return next(f for f in findings if f.name == name)


def test_this_environment_is_sound():
    findings = doctor.examine()
    assert not doctor.core_is_broken(findings)
    assert {"core", "torch", "lab", "probe", "trl", "course", "dask", "dev", "machine"} == {f.part for f in findings}
    assert found(findings, "numpy").detail.startswith(importlib.metadata.version("numpy"))
    assert found(findings, "data").state == "ok"
    assert "workqueue" in found(findings, "threads").detail  # the layer that every numba build has


def test_a_missing_core_package_breaks_the_core_and_is_told_with_the_command(monkeypatch):
    real = importlib.metadata.version

    def version(name):
        if name == "numba":
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    findings = doctor.examine()
    assert doctor.core_is_broken(findings)
    text = doctor.report(findings)
    assert "MISSING numba" in text
    assert '-m pip install "numba>=' in text
    assert text.endswith("The core cannot work.")


@pytest.mark.parametrize(
    ("installed", "line", "state"),
    [
        ("2.5.9", "torch>=2.6; extra == 'probe'", "missing"),
        ("2.6.0+cpu", "torch>=2.6; extra == 'probe'", "ok"),
        ("2.13.0", "torch>=2.6; extra == 'probe'", "ok"),  # by numbers: as text, 13 < 6
        ("0.1", 'ruff; extra == "dev"', "ok"),
    ],
)
def test_versions_are_compared_as_numbers(monkeypatch, installed, line, state):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: installed)
    finding = doctor._package(line)
    assert finding.state == state
    assert finding.part in ("probe", "dev")
    assert ("pip install" in finding.fix) == (state == "missing")
    assert not doctor.core_is_broken([finding]), "an extra is no part of the core"


def test_a_checkout_that_is_not_installed_is_asked_for_its_ranges(monkeypatch):
    want = {(f.part, f.name) for f in doctor._packages()}

    def requires(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", requires)
    assert {(f.part, f.name) for f in doctor._packages()} == want
    assert len(want) > 15


def test_chromium_is_the_one_asked_for(monkeypatch, tmp_path):
    browser = tmp_path / ("browser.exe" if os.name == "nt" else "browser")
    browser.write_text("")
    browser.chmod(0o755)
    monkeypatch.setenv(doctor.CHROMIUM_VARIABLE, str(browser))
    assert doctor.find_chromium() == str(browser)
    monkeypatch.setenv(doctor.CHROMIUM_VARIABLE, str(tmp_path / "none"))
    with pytest.raises(FileNotFoundError, match="which is no program; Debian/Ubuntu: apt-get install chromium"):
        doctor.find_chromium()
    assert doctor._browser().state == "missing"


def test_without_a_chromium_there_is_none_and_the_report_says_how_to_get_one(monkeypatch, tmp_path):
    monkeypatch.delenv(doctor.CHROMIUM_VARIABLE, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(doctor, "_BROWSER_PATHS", ())
    assert doctor.find_chromium() is None
    assert "get it: Debian/Ubuntu: apt-get install chromium" in doctor.report([doctor._browser()])


def test_overrides_keep_what_others_wrote(tmp_path):
    path = doctor.overrides_path(tmp_path)
    assert path == tmp_path / "share" / "jupyter" / "lab" / "settings" / "overrides.json"
    path.parent.mkdir(parents=True)
    theirs = {"@jupyterlab/apputils-extension:notification": {"doNotDisturbMode": True}, "other:plugin": {"a": 1}}
    path.write_text(json.dumps(theirs))
    assert doctor.write_overrides(tmp_path) == path
    settings = json.loads(path.read_text())
    assert settings["other:plugin"] == {"a": 1}
    assert settings["@jupyterlab/apputils-extension:notification"] == {
        "doNotDisturbMode": True,
        "fetchNews": "false",
        "checkForUpdates": False,
    }
    assert settings["@jupyterlab/apputils-extension:kernels-settings"]["commsOverSubshells"] == "disabled"
    assert settings["@jupyter-widgets/jupyterlab-manager:plugin"]["saveState"] is True
    before = path.read_text()
    doctor.write_overrides(tmp_path)
    assert path.read_text() == before


def test_every_override_is_a_setting_of_the_installed_jupyterlab():
    share = Path(sys.prefix, "share", "jupyter")
    for plugin, values in doctor.OVERRIDES.items():
        package, _, name = plugin.partition(":")
        folders = [share / "lab" / "schemas", share / "labextensions" / package / "schemas"]
        schema = next(f for f in (folder / package / f"{name}.json" for folder in folders) if f.is_file())
        properties = json.loads(schema.read_text(encoding="utf-8"))["properties"]
        for key, value in values.items():
            rule = properties[key]
            if rule["type"] == "boolean":
                assert isinstance(value, bool)
            else:
                assert value in [option["const"] for option in rule["oneOf"]], key
            assert value != rule.get("default"), f"{plugin} {key} is the default already: nothing to override"


def test_jupyter_settings_are_compared_not_only_looked_for(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "overrides_path", lambda prefix=None: tmp_path / "overrides.json")
    assert doctor._jupyter().state == "missing"
    (tmp_path / "overrides.json").write_text("{}")
    assert doctor._jupyter().state == "missing"
    (tmp_path / "overrides.json").write_text(json.dumps(doctor.OVERRIDES))
    assert doctor._jupyter().state == "ok"


def test_importing_the_doctor_takes_the_standard_library_only():
    code = (
        "import sys; import normkit.doctor;"
        "extra = {m.partition('.')[0] for m in sys.modules} - set(sys.stdlib_module_names);"
        "print(sorted(m for m in extra if not m.startswith('_')))"
    )
    # -S: no site-packages at all, as on a machine where nothing is installed yet
    out = subprocess.run(
        [sys.executable, "-S", "-c", code],
        cwd=Path(doctor.__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    assert out.stdout.strip() in ("['normkit']", "['normkit', 'rfc3987_syntax']")
