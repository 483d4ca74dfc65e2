"""Where a submission's code runs: a kernel of its own with limits, without network, files of others or credentials.

On Linux with util-linux's `unshare`, `setpriv` and `mount` the kernel gets namespaces of its own (network, mounts,
processes) in which the master, the other submissions and the results are covered; where the grader is root it also gets
a user id of its own. Elsewhere only the limits of `resource` hold (POSIX), or none but the wall clock (Windows):
`protection()` says which. What is not protected anywhere: the CPU's side channels, and the disk's space below `file_mb`
times the number of files.
"""

import dataclasses
import functools
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

COMPILED = "compiled"  # in the scratch folder: numba's cache
USERS = 61_000, 1_000  # first user id given to kernels, and how many


@dataclass(frozen=True)
class Limits:
    """What one submission may use. `cell_s` is for one cell, `total_s` for all runs of the submission (wall clock).

    A cell's time covers compiling what the master's own run has not compiled: of that every submission has its own copy.
    """

    cell_s: float = 120.0
    total_s: float = 1200.0
    cpu_s: int = 600
    memory_mb: int = 4096
    file_mb: int = 64
    output_kb: int = 1024
    processes: int = 128


@functools.cache
def protection() -> str:
    """ "full" (namespaces, and a user id of its own), "namespaces", "limits" or "clock": what this system allows."""
    if sys.platform == "win32":
        return "clock"
    if not all(map(shutil.which, ("unshare", "setpriv", "mount"))):
        return "limits"
    for kind in ("full", "namespaces"):
        if kind == "full" and os.getuid() != 0:
            continue
        test = [
            *_namespaces(kind),
            "sh",
            "-c",
            f'mount -t tmpfs none /mnt && exec {_drop(kind, 0)} "$0" -c 0',
            sys.executable,
        ]
        if subprocess.run(test, capture_output=True, check=False).returncode == 0:
            return kind
    return "limits"


def kernel_command(scratch: Path, hide: list[Path], limits: Limits, number: int = 0) -> list[str]:
    """The command of a Jupyter kernel spec. hide: files and folders that the kernel must not see.

    number: which user id, so that submissions that run at the same time have different ones.
    """
    kind = protection()
    if kind != "full":  # the grader's own processes would count
        limits = dataclasses.replace(limits, processes=max(limits.processes, 4096))
    kernel = [sys.executable, "-c", _KERNEL.format(limits=limits), "-f", "{connection_file}"]
    if kind in ("clock", "limits"):
        return kernel
    script = "".join(f"{_cover(path, scratch)}\n" for path in hide) + f'exec {_drop(kind, number)} "$@"'
    return [*_namespaces(kind), "sh", "-e", "-c", script, "sh", *kernel]


def user(number: int) -> int | None:
    """The user id of kernel `number`, or None where it is the grader's own."""
    return USERS[0] + number % USERS[1] if protection() == "full" else None


def environment(scratch: Path, **more: str) -> dict[str, str]:
    """The whole environment of a submission: nothing of the grader's but where programs and languages are."""
    keep = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL", "SYSTEMROOT", "TZ") if name in os.environ}
    home = {name: str(scratch) for name in ("HOME", "TMPDIR", "IPYTHONDIR", "MPLCONFIGDIR")}
    home["NUMBA_CACHE_DIR"] = str(scratch / COMPILED)
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return keep | home | threads | {"PYTHONDONTWRITEBYTECODE": "1", "NORMKIT_STATIC": "1"} | more


def _namespaces(kind):
    own = "" if kind == "full" else "--user --map-root-user"
    return f"setpriv --pdeathsig KILL unshare {own} --net --ipc --mount --pid --fork --kill-child --mount-proc".split()


def _drop(kind, number):
    """Give up every capability, so that what was covered cannot be uncovered."""
    who = f"--reuid {USERS[0] + number % USERS[1]} --regid {USERS[0]} --clear-groups " if kind == "full" else ""
    return f"setpriv {who}--no-new-privs --inh-caps=-all --bounding-set=-all --"


def can_cover(folder: Path, *needed) -> bool:
    """Whether `folder` can be hidden from a kernel: neither Python, nor normkit, nor anything `needed` lies in it."""
    needed = [Path(p).resolve() for p in (sys.prefix, sys.base_prefix, __file__, *needed)]
    return not any(n.is_relative_to(folder.resolve()) for n in needed)


def _cover(path, scratch):
    path = path.resolve()
    if path.is_dir() and not can_cover(path, scratch):
        raise ValueError(f"{path} cannot be hidden from submissions, since Python or their scratch folder is in it")
    quoted = "'" + str(path).replace("'", "'\\''") + "'"
    return f"mount -t tmpfs -o mode=0,size=4k none {quoted}" if path.is_dir() else f"mount --bind /dev/null {quoted}"


# Runs in the kernel before any code of the student. The parent's number would have the kernel watch for a process that
# it cannot see from its own namespace.
_KERNEL = """
import os
os.environ.pop("JPY_PARENT_PID", None)
try:
    import resource as r
except ImportError:
    pass
else:
    from normkit.course.sandbox import Limits
    limits = {limits!r}
    sizes = dict(AS=limits.memory_mb << 20, CPU=limits.cpu_s, FSIZE=limits.file_mb << 20, CORE=0, NPROC=limits.processes)
    for name, size in sizes.items():
        try:
            r.setrlimit(getattr(r, "RLIMIT_" + name), (size, size))
        except (AttributeError, ValueError, OSError):
            pass
from ipykernel.kernelapp import launch_new_instance
launch_new_instance()
"""
