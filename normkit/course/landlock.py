"""Linux Landlock: a process gives up files, TCP and signals to others, for itself and its children, for good.

It needs no privileges and no program, but a kernel that has it: files from Linux 5.13 on, TCP from 6.7, signals and
abstract sockets from 6.12. What it never covers: UDP, sockets that lie in the file system, and names, sizes and dates of
files (their contents, and lists of folders, it does).
"""

import ctypes
import os
import sys

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # the same numbers on every processor
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
ALL = (1 << 13) - 1, (1 << 14) - 1, (1 << 15) - 1  # rights on files that the first, second and later versions know
OF_A_FILE = EXECUTE | WRITE_FILE | READ_FILE | 1 << 14  # the others are rights on folders
NO_NEW_PRIVS = 38  # of prctl


class _Ruleset(ctypes.Structure):
    _fields_ = [("files", ctypes.c_uint64), ("tcp", ctypes.c_uint64), ("scoped", ctypes.c_uint64)]


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = [("allowed", ctypes.c_uint64), ("folder", ctypes.c_int32)]


def version() -> int:
    """Landlock's version here, 0 if there is none."""
    if sys.platform != "linux":
        return 0
    return max(0, ctypes.CDLL(None).syscall(CREATE_RULESET, None, ctypes.c_size_t(0), 1))


def restrict(read: list[str], write: list[str]) -> None:
    """Leave this thread and its children only what is below `read` (and to be run) and `write`; skips what is missing.

    From version 4 on no TCP, from 6 on no signals and no abstract sockets to processes outside. Call it before other
    threads start. Raises OSError if the system refuses.
    """
    libc, known = ctypes.CDLL(None, use_errno=True), version()
    rights = ALL[min(known, 3) - 1]
    rules = _Ruleset(rights, 3 if known >= 4 else 0, 3 if known >= 6 else 0)
    ruleset = _done(libc.syscall(CREATE_RULESET, ctypes.byref(rules), ctypes.c_size_t(ctypes.sizeof(rules)), 0))
    allowed = dict.fromkeys(read, EXECUTE | READ_FILE | READ_DIR) | dict.fromkeys(write, rights)
    for path, right in allowed.items():
        try:
            folder = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue
        rule = _Beneath(right & rights if os.path.isdir(path) else right & rights & OF_A_FILE, folder)
        _done(libc.syscall(ADD_RULE, ruleset, 1, ctypes.byref(rule), 0))
        os.close(folder)
    _done(libc.prctl(NO_NEW_PRIVS, *map(ctypes.c_ulong, (1, 0, 0, 0))))
    _done(libc.syscall(RESTRICT_SELF, ruleset, 0))
    os.close(ruleset)


def _done(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), "Landlock: " + os.strerror(ctypes.get_errno()))
    return result
