"""Where a submission's code runs: a kernel of its own with limits, without network, files of others or credentials.

`protection()` says which of these this system allows:

- "full", "namespaces": Linux with util-linux's `unshare`, `setpriv` and `mount`. The kernel gets namespaces of its own
  (network, mounts, processes), in which the master, the other submissions and the results are covered, and the scratch
  folder has the size `disk_mb`. In "full" the grader is root, and every kernel has a user id of its own.
- "landlock": Linux that forbids these (containers, as a rule) but has Landlock: only Python, the system's programs and
  the scratch folder can be read, only the latter written. No TCP from Linux 6.7 on, no signals to other processes from
  6.12 on. UDP stays, and so do sockets that lie in the file system. Submissions cannot use multiprocessing.
- "limits": those of `resource` (POSIX); whatever the user id may read and write stays open, and files can be left for
  the next submission. "clock": the wall clock (Windows).

Where the system has Landlock, the first two apply it too; without it, "namespaces" can read and write what the grader
can, but for what is covered, and "full" can leave files in /tmp. Where the grader is root and may set user ids,
"landlock" and "limits" give each kernel one of its own.
Not protected anywhere: the CPU's side channels; memory as a whole, since `memory_mb` is for one process of `processes`.
Nor, outside of "full" and "namespaces", the disk's space below `file_mb` times the number of files. The number of
processes is not limited where kernels run as root: do not grade as root where Python is root's alone.
"""

import contextlib
import ctypes
import dataclasses
import functools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from normkit.course import landlock

COMPILED = "compiled"  # in the scratch folder: numba's cache
USERS = 61_000, 1_000  # first user id given to kernels, and how many
PATIENCE = 10  # seconds for ending processes
FILES = 10_000  # in the scratch folder, where it has a size
PARENT_DEATH_SIGNAL, CHILD_SUBREAPER = 1, 36  # of prctl
# What programs read besides: who they are, what machine this is, and names of users, hosts, fonts and time zones.
SYSTEM = [f"/proc/{name}" for name in ("self", "cpuinfo", "meminfo", "stat", "filesystems", "sys/vm", "sys/kernel")]
SYSTEM += [f"/etc/{name}" for name in ("ld.so.cache", "localtime", "passwd", "group", "nsswitch.conf", "fonts", "ssl")]
SYSTEM += ["/etc/alternatives", "/sys/devices/system", "/dev/zero", "/dev/random", "/dev/urandom"]


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
    disk_mb: int = 256
    output_kb: int = 1024
    processes: int = 128


@functools.cache
def protection() -> str:
    """ "full", "namespaces", "landlock", "limits" or "clock": what this system allows."""
    if sys.platform == "win32":
        return "clock"
    for kind in ("full", "namespaces") if all(map(shutil.which, ("unshare", "setpriv", "mount"))) else ():
        if kind == "full" and os.getuid() != 0:
            continue
        test = _in_namespaces(
            kind, 0, _open() if kind == "full" else ["mount -t tmpfs none /mnt"], [sys.executable, "-c", _FINDS]
        )
        if subprocess.run(test, capture_output=True, check=False, cwd="/").returncode == 0:
            return kind
    return "landlock" if landlock.version() else "limits"


@functools.cache
def _has_users():
    """Whether kernels can have user ids of their own: the grader is root, and others may run its Python."""
    if not hasattr(os, "setresuid") or os.getuid() != 0:  # macOS and Windows have no such call
        return False
    try:
        own = {"user": USERS[0], "group": USERS[0], "extra_groups": []}
        return subprocess.run([sys.executable, "-c", _FINDS], check=False, cwd="/", **own).returncode == 0
    except OSError:  # a container without the right to set user ids, or no way to Python
        return False


def kernel_command(scratch: Path, run: Path, hide: list[Path], limits: Limits, number=0, keep=False) -> list[str]:
    """The command of a Jupyter kernel spec. run: the folder of the kernel's own sockets.

    hide: files and folders that the kernel must not see. number: which user id, so that submissions that run at the same
    time have different ones. keep: files in `scratch` are to outlive the kernel. Raises ValueError for what cannot be
    hidden.
    """
    kind, read, write = protection(), [], []
    if kind in ("full", "namespaces", "landlock") and landlock.version():
        read, write = [*map(str, _programs()), *SYSTEM], [str(scratch), str(run), os.devnull]
        if kind != "landlock":  # these are its own
            read, write = [*read, "/proc"], [*write, "/dev/shm"]
    if kind == "landlock":
        for path in hide:
            if any(path.resolve().is_relative_to(p) for p in _programs()):
                raise ValueError(f"{path} cannot be hidden from submissions, since it is among Python's own files")
    own = user(number)
    if own is None and os.name == "posix":  # what the grader runs besides counts too
        limits = dataclasses.replace(limits, processes=limits.processes + _threads(os.getuid()))
    inside = {
        "limits": dataclasses.asdict(limits),
        "user": None if kind == "full" else own,
        "read": read,
        "write": write,
    }
    kernel = [sys.executable, "-c", _KERNEL.format(inside=inside), "-f", "{connection_file}"]
    if kind not in ("full", "namespaces"):
        return kernel
    script = [*(_cover(path, scratch) for path in hide)]
    script += _open(scratch, run) if kind == "full" else []
    script += ["mount -t tmpfs -o mode=1777,size=64m none /dev/shm"]
    script += [f"cd {_quoted(scratch)}"]
    if not keep:  # the working folder is still the one below the mount
        owner = f",uid={own},gid={USERS[0]}" if own is not None else ""
        size = f"mode=700,size={limits.disk_mb}m,nr_inodes={FILES}{owner}"
        script += [f"mount -t tmpfs -o {size} none {_quoted(scratch)}", f"cp -a . {_quoted(scratch)}"]
        script += [f"cd {_quoted(scratch)}"]
    return _in_namespaces(kind, number, script, kernel)


def user(number: int) -> int | None:
    """The user id of kernel `number`, or None where it is the grader's own."""
    own = protection() == "full" or (protection() in ("landlock", "limits") and _has_users())
    return USERS[0] + number % USERS[1] if own else None


def confine(limits, user, read, write):
    """What a kernel's own process does before any code of the student: lower its limits, and give up the rest for good."""
    try:
        import resource
    except ImportError:
        return
    sizes = {"AS": limits["memory_mb"] << 20, "CPU": limits["cpu_s"], "FSIZE": limits["file_mb"] << 20, "CORE": 0}
    for name, size in (sizes | {"NPROC": limits["processes"]}).items():
        with contextlib.suppress(AttributeError, ValueError, OSError):  # not every system has every limit
            resource.setrlimit(getattr(resource, "RLIMIT_" + name), (size, size))
    if user is not None:
        os.setgroups([])
        os.setresgid(*[USERS[0]] * 3)
        os.setresuid(*[user] * 3)
    if sys.platform == "linux":  # setting ids has cleared it
        ctypes.CDLL(None).prctl(PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if read:
        landlock.restrict(read, write)


def adopt() -> None:
    """Have processes that lose their parent come to this one, so that `end` finds them below it (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(CHILD_SUBREAPER, 1)


def end(scratch: Path, checker: int | None) -> None:
    """End what a run has left: whatever has its home in `scratch`, and every process below `checker`, while it lives.

    Another process than this one is stopped as the `checker`, so that it draws no conclusions.

    They are stopped before any is killed, so that none can multiply meanwhile. Where kernels may send signals to their
    checker ("limits" with the grader's user id), one that has ended it, and has then changed its own environment, is
    not found.
    """
    import psutil

    def lives(process):
        with contextlib.suppress(psutil.NoSuchProcess):
            return process.status() != psutil.STATUS_ZOMBIE
        return False

    def left():
        with contextlib.suppress(psutil.NoSuchProcess):
            yield from psutil.Process(checker).children(recursive=True) if checker is not None else ()
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.pid != checker and process.environ().get("HOME") == str(scratch):
                    yield process

    if checker not in (None, os.getpid()):
        with contextlib.suppress(psutil.Error):
            psutil.Process(checker).suspend()
    found, deadline = set(), time.monotonic() + PATIENCE
    while (new := {p for p in left() if lives(p)} - found) and time.monotonic() < deadline:
        for process in new:
            with contextlib.suppress(psutil.Error):
                process.suspend()
        found |= new
    for process in found:
        with contextlib.suppress(psutil.Error):
            process.kill()
    while any(map(lives, found)) and time.monotonic() < deadline:
        time.sleep(0.01)


@contextlib.contextmanager
def folder():
    """A temporary folder that is gone afterwards, or with the next one if the grader is killed (POSIX)."""
    try:
        import fcntl
    except ImportError:
        fcntl = None
    for left in Path(tempfile.gettempdir()).glob("nk*.run") if fcntl else ():
        with contextlib.suppress(OSError), _opened(left) as number:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(number).st_uid == os.getuid() and any(left.iterdir()):  # an empty one may be about to be locked
                remove(left)
    own = Path(tempfile.mkdtemp(prefix="nk", suffix=".run"))
    try:
        with _opened(own) if fcntl else contextlib.nullcontext() as number:
            if fcntl:  # the lock ends with this process, however that ends
                fcntl.flock(number, fcntl.LOCK_EX)
            yield own
    finally:
        remove(own)


@contextlib.contextmanager
def _opened(path):
    """The number of an open folder, which is no link."""
    number = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        yield number
    finally:
        os.close(number)


def remove(folder) -> None:
    """Remove a folder whatever a submission left in it: closed folders, or a tree too deep for shutil."""
    for command in ("chmod -R u+rwx", "rm -rf") if os.name == "posix" else ():
        subprocess.run([*command.split(), folder], stderr=subprocess.DEVNULL, check=False)
    shutil.rmtree(folder, ignore_errors=True)


def environment(scratch: Path, **more: str) -> dict[str, str]:
    """The whole environment of a submission: nothing of the grader's but where programs and languages are."""
    names = ("PATH", "LANG", "LC_ALL", "TZ", "SYSTEMROOT", "PATHEXT")
    keep = {name: os.environ[name] for name in names if name in os.environ}
    names = ("HOME", "TMPDIR", "IPYTHONDIR", "MPLCONFIGDIR", "USERPROFILE", "TEMP")  # the last two are Windows'
    home = dict.fromkeys(names, str(scratch))
    home["NUMBA_CACHE_DIR"] = str(scratch / COMPILED)
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return keep | home | threads | {"PYTHONDONTWRITEBYTECODE": "1", "NORMKIT_STATIC": "1"} | more


def _in_namespaces(kind, number, script, command):
    """A command that runs `script` in namespaces of its own, and then `command` without any capability."""
    own, who = "--user --map-root-user", ""
    if kind == "full":
        own, who = "", f"--reuid {USERS[0] + number % USERS[1]} --regid {USERS[0]} --clear-groups "
    spaces = f"setpriv --pdeathsig KILL unshare {own} --net --ipc --mount --pid --fork --kill-child --mount-proc"
    # Without capabilities, what was covered cannot be uncovered.
    script = [*script, f'exec setpriv {who}--no-new-privs --inh-caps=-all --bounding-set=-all -- "$@"']
    return [*spaces.split(), "sh", "-e", "-c", "\n".join(script), "sh", *command]


def _open(*needed):
    """Lines that let other users reach Python, normkit and what is `needed`, and nothing else in folders closed to them.

    Root's Python, as a rule, lies in root's own home.
    """
    paths = {path: _closed(path) for path in (*_own_files(), *needed)}
    paths = {path: closed for path, closed in paths.items() if closed and not {*path.parents} & {*paths}}
    before, after = ["mount -t tmpfs -o mode=755,size=1m none /mnt"], []
    for number, path in enumerate(paths):
        before += [f"mkdir /mnt/{number}", f"mount --rbind {_quoted(path)} /mnt/{number}"]
        after += [f"mkdir -p {_quoted(path)}", f"mount --move /mnt/{number} {_quoted(path)}"]
    covers = [f"mount -t tmpfs -o mode=755,size=1m none {_quoted(closed)}" for closed in {*paths.values()}]
    return [*before, *covers, *after, "umount /mnt"]


def _closed(path):
    """The outermost folder on the way to `path` that other users cannot pass, or None."""
    return next((parent for parent in reversed(path.parents) if not parent.stat().st_mode & 1), None)


def can_cover(folder: Path, *needed) -> bool:
    """Whether `folder` can be hidden from a kernel: neither Python, nor normkit, nor anything `needed` lies in it."""
    needed = [Path(p).resolve() for p in (sys.prefix, sys.base_prefix, __file__, *needed)]
    return not any(n.is_relative_to(folder.resolve()) for n in needed)


def _cover(path, scratch):
    path = path.resolve()
    if path.is_dir() and not can_cover(path, scratch):
        raise ValueError(f"{path} cannot be hidden from submissions, since Python or their scratch folder is in it")
    if path.is_dir():
        return f"mount -t tmpfs -o mode=0,size=4k none {_quoted(path)}"
    return f"mount --bind /dev/null {_quoted(path)}"


def _quoted(path):
    return "'" + str(path).replace("'", "'\\''") + "'"


def _own_files():
    """Python's folders, normkit's, and that of its data."""
    from normkit.files import data_path

    return [Path(p).resolve() for p in (sys.prefix, sys.base_prefix, Path(__file__).parents[1], data_path())]


def _programs():
    """The folders that a kernel may read and run from: the above, and those of the system's programs."""
    return [*_own_files(), *(Path(p).resolve() for p in ("/usr", "/bin", "/sbin", "/lib", "/lib64"))]


def _threads(user):
    """How many threads run for a user: what the limit on processes counts."""
    import psutil

    count = 0
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            count += process.num_threads() if process.uids().real == user else 0
    return count


# Whether another user finds the same Python with its packages: a Python that cannot see its own folders takes others.
_FINDS = f"""
import sys, importlib.util, {__name__}
sys.exit({sys.base_prefix!r} != sys.base_prefix or importlib.util.find_spec("ipykernel") is None)
"""
# The parent's number would have the kernel watch for a process that it cannot see from its own namespace.
_KERNEL = """
import os
os.environ.pop("JPY_PARENT_PID", None)
from normkit.course.sandbox import confine
confine(**{inside!r})
from ipykernel.kernelapp import launch_new_instance
launch_new_instance()
"""
