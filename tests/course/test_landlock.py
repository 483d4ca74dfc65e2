import os
import socket
import subprocess
import sys

import pytest

from normkit.course import landlock

pytestmark = pytest.mark.skipif(not landlock.version(), reason="no Landlock here")
FREE = """
import os, socket, sys
from normkit.course import landlock
landlock.version = lambda: {version}
landlock.restrict([sys.prefix, sys.base_prefix, "/usr", "/lib", "/lib64", {folder!r} + "/read", "/not/there"], [{folder!r} + "/write"])
"""
# What is refused, and from which version of Landlock on.
REFUSED = [
    (1, "open({folder!r} + '/other')"),
    (1, "os.listdir({folder!r})"),
    (1, "open({folder!r} + '/read/a', 'a')"),
    (1, "os.remove({folder!r} + '/read/a')"),
    (1, "if os.fork() == 0: open({folder!r} + '/other')\nelse: sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))"),
    (3, "os.truncate({folder!r} + '/read/a', 0)"),
    (4, "socket.create_connection(('127.0.0.1', {port}), 2)"),
    (4, "socket.create_server(('127.0.0.1', 0))"),
    (6, "os.kill({pid}, 0)"),
]
ALLOWED = """
from pathlib import Path
folder = Path({folder!r}, "write", str({version}))
(folder / "a").mkdir(parents=True)
(folder / "a" / "b").write_text(Path({folder!r}, "read", "a").read_text())
(folder / "a" / "b").rename(folder / "a" / "c")
assert (folder / "a" / "c").read_text() == "text"
os.kill(os.getpid(), 0)
socket.socketpair()
import subprocess
subprocess.run([sys.executable, "-c", "0"], check=True)
"""


@pytest.mark.parametrize("version", sorted({1, 2, 3, 4, 5, 6, landlock.version()}))
def test_each_version_refuses_what_it_knows_and_nothing_that_is_allowed(tmp_path, version):
    if version > landlock.version():
        pytest.skip(f"this system has version {landlock.version()}")
    for name in ("read", "write"):
        (tmp_path / name).mkdir()
    (tmp_path / "read" / "a").write_text("text")
    (tmp_path / "other").write_text("text")
    with socket.create_server(("127.0.0.1", 0)) as server:
        values = {"folder": str(tmp_path), "port": server.getsockname()[1], "pid": os.getpid(), "version": version}

        def refused(code):
            done = subprocess.run(
                [sys.executable, "-c", (FREE + code).format(**values)], capture_output=True, check=False
            )
            assert done.returncode == 0 or b"PermissionError" in done.stderr, done.stderr
            return done.returncode != 0

        assert not refused(ALLOWED)
        assert [code for _, code in REFUSED if refused(code)] == [code for known, code in REFUSED if known <= version]
