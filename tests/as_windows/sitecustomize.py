"""Makes Python behave as on Windows where it matters here; a folder to put first in PYTHONPATH, for workers too.

Unix's modules cannot be imported, `msvcrt.locking` stands in for flock, and files that this process has open or mapped
cannot be renamed, replaced or removed.
"""

import fcntl
import mmap  # noqa: F401  what the library has of Unix stays
import multiprocessing.popen_spawn_posix  # noqa: F401
import os
import shutil
import subprocess  # noqa: F401
import sys
import types

UNIX_ONLY = ("fcntl", "grp", "pwd", "resource", "syslog")  # others import posix and termios after a look at os.name


class Missing:
    def find_spec(self, name, path=None, target=None):
        if name in UNIX_ONLY:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def locking(descriptor, mode, count):
    try:
        fcntl.flock(
            descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB if mode == sys.modules["msvcrt"].LK_NBLCK else fcntl.LOCK_UN
        )
    except BlockingIOError:
        raise PermissionError(13, "Permission denied") from None


def used(path):
    """Whether this process has the file open or mapped."""
    path = os.path.realpath(os.fspath(path))
    for number in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{number}") == path:
                return True
        except OSError:
            continue
    with open("/proc/self/maps") as maps:
        return any(line.rstrip().endswith(" " + path) for line in maps)


def refusing(change, several):
    def changed(path, *others, **options):
        for name in (path, *others[: several - 1]):
            if not options.get("dir_fd") and isinstance(name, (str, os.PathLike)) and used(name):
                print(f"AS ON WINDOWS: {change.__name__} of {name}, which is open", file=sys.stderr, flush=True)
                raise PermissionError(13, "used by another process", str(name))
        return change(path, *others, **options)

    return changed


for name in UNIX_ONLY:
    sys.modules.pop(name, None)
sys.meta_path.insert(0, Missing())
sys.modules["msvcrt"] = types.SimpleNamespace(LK_UNLCK=0, LK_NBLCK=2, locking=locking)
for name, several in (("replace", 2), ("rename", 2), ("unlink", 1), ("remove", 1)):
    setattr(os, name, refusing(getattr(os, name), several))
shutil._use_fd_functions = False  # as Windows, by path
