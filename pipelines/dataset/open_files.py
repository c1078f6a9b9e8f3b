"""How many files of a corpus a process holds mapped at a time."""

from __future__ import annotations

import contextlib

MOST_MAPPED = 49_152  # shards mapped at a time: Linux allows a process 65,530 maps
FILES_LEFT = 8_192  # file descriptors that are left for others


def most_mapped() -> int:
    """Shards to map at a time: each holds a file descriptor, and some are left for others.

    The soft limit of open files, often 1,024, is raised as far as the hard one allows.
    """
    try:
        import resource
    except ImportError:  # Windows, which has no such limit
        return MOST_MAPPED
    files, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_MAPPED + FILES_LEFT
    if files != resource.RLIM_INFINITY and files < wanted:
        raised = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with contextlib.suppress(OSError, ValueError):  # a sandbox may forbid it
            resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST_MAPPED if files == resource.RLIM_INFINITY else min(MOST_MAPPED, max(files // 2, files - FILES_LEFT))
