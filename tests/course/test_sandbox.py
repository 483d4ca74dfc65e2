import dataclasses
import os
import re
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from normkit.course import landlock, sandbox

HERE = sandbox.protection()
ALL = ["full", "namespaces", "landlock", "limits", "clock"]
# Whoever is allowed more is allowed less: only Landlock is a thing of its own.
KINDS = [k for k in ALL[ALL.index(HERE) :] if k != "landlock" or landlock.version()]
KINDS = KINDS[:-1] if os.name == "posix" else KINDS


@pytest.fixture(params=KINDS)
def kind(request, monkeypatch):
    """Every kind of protection that this system allows."""
    monkeypatch.setattr(sandbox, "protection", lambda: request.param)
    return request.param


@pytest.fixture
def place():
    """A folder that other users can pass through, with a scratch folder and one for sockets."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("work", "r"):
            Path(folder, name).mkdir()
        os.chmod(folder, 0o711)
        yield Path(folder)


def run(place, code, hide=(), **limits):
    """Run `code` where a kernel would run its own; the finished process."""
    for name in ("work", "r") if sandbox.user(0) is not None else ():
        os.chown(place / name, sandbox.user(0), -1)
    start = sandbox._KERNEL[: sandbox._KERNEL.index("from ipykernel")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sandbox, "_KERNEL", start + re.sub(r"([{}])", r"\1\1", code))
        command = sandbox.kernel_command(place / "work", place / "r", [*hide], sandbox.Limits(**limits))
    environment = sandbox.environment(place / "work")
    return subprocess.run(command, cwd=place / "work", env=environment, capture_output=True, check=False, timeout=60)


def test_the_environment_holds_no_credentials(monkeypatch, tmp_path):
    for name in ("AWS_SECRET_ACCESS_KEY", "JUPYTERHUB_API_TOKEN", "PYTHONPATH", "SSH_AUTH_SOCK"):
        monkeypatch.setenv(name, "secret")
    environment = sandbox.environment(tmp_path, NORMKIT_STUDENT="ada")
    assert "secret" not in environment.values()
    assert environment["HOME"] == str(tmp_path) and environment["NORMKIT_STUDENT"] == "ada" and environment["PATH"]


def test_python_itself_is_never_covered(tmp_path):
    assert sandbox.can_cover(tmp_path) and not sandbox.can_cover(tmp_path, tmp_path / "scratch")
    assert not sandbox.can_cover(Path(sys.prefix)) and not sandbox.can_cover(Path("/"))
    with pytest.raises(ValueError, match="cannot be hidden"):
        sandbox._cover(Path(sys.prefix), tmp_path)


@pytest.mark.parametrize(
    ("needs", "attempt"),
    [
        ("net", "import socket; socket.create_connection(('127.0.0.1', {port}), 2)"),
        ("files", "open({file!r}).read() or 1 / 0"),
        ("files", "import os; os.listdir({folder!r})[0]"),
        ("write", "open('/var/tmp/{pid}', 'w')"),
        ("write", "open({open!r}).read()"),
        ("signals", "import os; os.kill({pid}, 0)"),
        ("user", "open('/proc/{pid}/environ').read()"),
        ("mounts", "import subprocess; subprocess.run(['umount', {folder!r}], check=True)"),
    ],
)
def test_what_is_outside_cannot_be_reached(place, kind, needs, attempt):
    own, version = sandbox.user(0) is not None, landlock.version()
    spaces = kind in ("full", "namespaces")
    protects = {
        "net": spaces or (kind == "landlock" and version >= 4),
        "files": kind != "limits",
        "write": kind != "limits" and version,
        "signals": own or spaces or (kind == "landlock" and version >= 6),
        "user": own or kind != "limits",
        "mounts": spaces,
    }
    if not protects[needs]:
        pytest.skip(f"{kind} does not promise this")
    folder = place / "it's hidden"
    folder.mkdir()
    for path in (folder / "a", place / "file", place / "open"):
        path.write_text("secret")
    with socket.create_server(("127.0.0.1", 0)) as server:
        values = {"port": server.getsockname()[1], "pid": os.getpid(), "folder": str(folder)}
        code = attempt.format(**values, file=str(place / "file"), open=str(place / "open"))
        if needs != "mounts":
            subprocess.run([sys.executable, "-c", code], check=True)  # outside, it can
        Path("/var/tmp", str(os.getpid())).unlink(missing_ok=True)
        done = run(place, code, [folder, place / "file"])
    assert done.returncode != 0 and b"Error" in done.stderr and b"confine" not in done.stderr
    works = (
        "import numpy as np, subprocess; open('a', 'w'); subprocess.run(['ls'], check=True); print(np.ones(2).sum())"
    )
    done = run(place, works, [folder, place / "file"])
    assert done.stdout.endswith(b"2.0\n"), done.stderr


@pytest.mark.skipif(os.name != "posix", reason="no limits here")
@pytest.mark.parametrize(
    ("code", "limits"),
    [
        ("bytearray(2 << 30)", {"memory_mb": 1024}),
        ("open('big', 'wb').write(bytes(3 << 20))", {"file_mb": 2}),
        ("while True: pass", {"cpu_s": 1}),
    ],
)
def test_limits_hold_wherever_they_are_known(place, kind, code, limits):
    assert run(place, "print(1)", **limits).returncode == 0
    done = run(place, code, **limits)
    assert done.returncode != 0 and b"confine" not in done.stderr


def test_processes_are_counted(place, kind):
    if os.getuid() == 0 and sandbox.user(0) is None:
        pytest.skip("the system does not count root's processes")
    code = "import os, time\nfor n in range(500):\n    if not os.fork(): time.sleep(1); os._exit(0)"
    done = run(place, code, processes=50)
    assert done.returncode != 0 and b"BlockingIOError" in done.stderr


@pytest.mark.parametrize(
    "code",
    [
        "for i in range(9): open(str(i), 'wb').write(bytes(1 << 20))",
        "for i in range(20_000): open(str(i), 'w')",
        "for i in range(99): open(f'/dev/shm/{i}', 'wb').write(bytes(1 << 20))",
    ],
)
def test_the_disk_cannot_be_filled_and_nothing_is_left(place, kind, code):
    if kind not in ("full", "namespaces"):
        pytest.skip(f"{kind} does not promise this")
    (place / "work" / "given").write_text("text")
    before = {*os.listdir("/dev/shm")}
    done = run(place, code, disk_mb=8)
    assert done.returncode != 0 and b"No space left" in done.stderr
    assert (
        run(place, "assert open('given').read() == 'text' and __import__('os').getcwd()[-4:] == 'work'").returncode == 0
    )
    assert os.listdir(place / "work") == ["given"] and {*os.listdir("/dev/shm")} <= before


def test_what_landlock_cannot_hide_is_an_error(place, monkeypatch):
    monkeypatch.setattr(sandbox, "protection", lambda: "landlock")
    monkeypatch.setattr(landlock, "version", lambda: 1)
    with pytest.raises(ValueError, match="among Python's own files"):
        sandbox.kernel_command(place / "work", place / "r", [Path(sys.prefix, "master.ipynb")], sandbox.Limits())
    monkeypatch.setattr(sandbox, "protection", lambda: "limits")
    assert sandbox.kernel_command(place / "work", place / "r", [Path(sys.prefix, "master.ipynb")], sandbox.Limits())


def test_systems_without_limits_or_user_ids_run_kernels_all_the_same(place, monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setitem(sys.modules, "resource", None)
    monkeypatch.delattr(os, "setresuid", raising=False)
    assert (sandbox.protection.__wrapped__(), landlock.version(), sandbox._has_users.__wrapped__()) == (
        "clock",
        0,
        False,
    )
    monkeypatch.setattr(sandbox, "protection", lambda: "clock")
    command = sandbox.kernel_command(place / "work", place / "r", [place], sandbox.Limits())
    assert command[0] == sys.executable and sandbox.user(0) is None
    sandbox.adopt()
    sandbox.confine({}, None, [], [])


def test_a_system_that_knows_only_some_limits_keeps_those(monkeypatch):
    resource = pytest.importorskip("resource")
    kept = {}

    def setrlimit(which, sizes):
        if which == resource.RLIMIT_AS:
            raise ValueError("current limit exceeds maximum limit")  # macOS
        kept[which] = sizes[0]

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(resource, "setrlimit", setrlimit)
    monkeypatch.delattr(resource, "RLIMIT_NPROC")
    sandbox.confine(dataclasses.asdict(sandbox.Limits(cpu_s=5)), None, [], [])
    assert kept == {resource.RLIMIT_CPU: 5, resource.RLIMIT_FSIZE: 64 << 20, resource.RLIMIT_CORE: 0}


@pytest.mark.skipif(os.name != "posix", reason="needs locks on folders")
def test_a_killed_graders_folder_goes_and_a_living_ones_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    hold = f"import tempfile, time; tempfile.tempdir = {str(tmp_path)!r}\n" + (
        "from normkit.course import sandbox\n"
        "with sandbox.folder() as own:\n    (own / 'file').touch()\n    print(own, flush=True)\n    time.sleep(600)"
    )
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").touch()
    (tmp_path / "nkx.run").symlink_to(tmp_path / "kept")
    with subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE, text=True) as process:
        held = Path(process.stdout.readline().strip())
        with sandbox.folder() as own:
            assert held.is_dir() and own.is_dir()
        assert not own.exists()
        process.kill()
    assert (held / "file").exists()
    with sandbox.folder():
        assert not held.exists()
    assert (tmp_path / "kept" / "file").exists()
