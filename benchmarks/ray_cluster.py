"""Ray on this machine alone: `tokenize` on two raylets, of which one is killed in mid-run, and as a submitted job.

    pip install 'ray[default]'
    python benchmarks/ray_cluster.py

A head and a second raylet (`ray start`, one CPU each, ports of their own) are started in a temporary folder; no
running Ray is touched. When the second has a worker and the first shard is there, the second is killed (SIGKILL). Then
the same corpus is given to `ray job submit`, with a second raylet again. Every file must have the sha256 of an
undisturbed local run. Without Ray the script says so and ends; exit status 1 where something differs.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import clusters
from benchmarks.clusters import Failed, Skipped, free_port, running, said, tail, wait_for

PATIENCE = 600.0  # seconds for a run
OF_RAY = {
    "RAY_worker_niceness": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DISABLE_MEMORY_MONITOR": "1",
    # On a busy machine a raylet and its agents need more than the 30 to 60 s that Ray gives them.
    "RAY_raylet_start_wait_time_s": "60",
    "RAY_agent_register_timeout_ms": "300000",
    "RAY_worker_register_timeout_seconds": "300",
    "RAY_gcs_server_port_wait_time_s": "300",
    "RAY_gcs_server_request_timeout_seconds": "300",
    "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "300",
}
TRIES = 5  # to start a raylet: it ends where its agent does not listen within 15 s, which no option changes
MEMORY = f"--object-store-memory={80 << 20}"  # bytes, about the least that Ray takes


def checks(folder: Path) -> Generator[str, None, None]:
    os.environ |= OF_RAY
    sounds, plain = clusters.plain_run(folder)
    with two_raylets(folder / "killed") as (address, second):
        yield f"{said('ray', '--version').strip()}, two raylets"
        yield "raylet killed: " + raylet_killed(folder, sounds, plain, address, second)
    if importlib.util.find_spec("aiohttp_cors") is None:
        yield "skipped: `ray job submit` needs pip install 'ray[default]'"
        return
    page, out, log = free_port(), folder / "job", folder / "job.log"
    with two_raylets(folder / "submitted", "--include-dashboard=true", f"--dashboard-port={page}"):
        submit = ["ray", "job", "submit", f"--address=http://127.0.0.1:{page}", "--"]
        with running(*submit, *command(sounds, out), log=log) as job:
            ended(job, log)
        yield f"as a job: {clusters.compare(plain, clusters.digests(out))}"


@contextlib.contextmanager
def two_raylets(logs: Path, *head: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A cluster of a head and a second raylet that ends with the block. Yields its address, and the second."""
    port, second = free_port(), logs.with_suffix(".second.log")
    own = ["--num-cpus=1", MEMORY, "--block", "--disable-usage-stats"]
    # Ray's sockets lie in its folder, and their names may have 107 characters.
    with tempfile.TemporaryDirectory(prefix="r-", ignore_cleanup_errors=True) as short:
        of_head = ["--head", f"--port={port}", f"--temp-dir={short}", *(head or ["--include-dashboard=false"])]
        with raylet(["ray", "start", *of_head, *own], logs.with_suffix(".head.log")):
            address = f"127.0.0.1:{port}"
            with raylet(["ray", "start", f"--address={address}", *own], second) as process:
                yield address, process


@contextlib.contextmanager
def raylet(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A node of Ray, ready when the block begins. Raises Skipped where it does not start."""
    has_started = lambda: "Ray runtime started" in log.read_text(errors="replace")  # noqa: E731
    for _ in range(TRIES):
        with running(*command, log=log) as process:
            wait_for(lambda: has_started() or process.poll() is not None, PATIENCE, Skipped("Ray does not start"))
            if has_started():
                yield process
                return
    raise Skipped(f"Ray does not start: {tail(log)}")


def raylet_killed(
    folder: Path, sounds: Path, plain: dict[str, str], address: str, second: subprocess.Popen[bytes]
) -> str:
    out, log = folder / "killed", folder / "killed.log"
    with running(*command(sounds, out), "--ray-address", address, log=log) as run:

        def has_begun() -> bool:
            return run.poll() is not None or (receipts(out) > 0 and works(second.pid))

        wait_for(has_begun, PATIENCE, Failed(f"no shard was finished: {tail(log)}"))
        before = receipts(out)
        if run.poll() is not None:
            raise Failed(f"the run was over before the raylet was killed: {tail(log)}")
        for pid in descendants(second.pid):
            if name_of(pid) == "raylet":
                os.kill(pid, 9)
        ended(run, log)
    return f"after {before} shards; {clusters.compare(plain, clusters.digests(out))}"


def command(sounds: Path, out: Path) -> list[str]:
    return ["focalstream", "tokenize", str(sounds), str(out), *clusters.OPTIONS, "--executor", "ray", "--workers", "2"]


def ended(run: subprocess.Popen[bytes], log: Path) -> None:
    wait_for(lambda: run.poll() is not None, PATIENCE, Failed(f"did not end: {tail(log)}"))
    if run.returncode:
        raise Failed(f"exit status {run.returncode}: {tail(log)}")


def receipts(out: Path) -> int:
    return len(list(out.glob("work/receipts/*.json")))


def works(second: int) -> bool:
    """Whether one of our actors runs below a process."""
    return any(name_of(pid).startswith("ray::Shards") for pid in descendants(second))


def descendants(pid: int) -> list[int]:
    children = [int(child) for child in said("ps", "-o", "pid=", "--ppid", str(pid), check=False).split()]
    return children + [below for child in children for below in descendants(child)]


def name_of(pid: int) -> str:
    """The title that a process has given itself, or the name of its program."""
    title = said("ps", "-o", "args=", "-p", str(pid), check=False).split(" ")[0].strip()
    return title.rpartition("/")[2]


def main() -> int:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    return clusters.trial("ray", ["ray"], "pip install 'ray[default]'", checks)


if __name__ == "__main__":
    sys.exit(main())
