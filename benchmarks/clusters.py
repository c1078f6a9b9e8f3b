"""What the trials on clusters of this machine (slurm.py, ray_cluster.py, ceph.py) have in common.

Each starts its programs in a temporary folder, as this user, lets `tokenize` work there with things killed under it,
and compares the sha256 of every file with an undisturbed local run. What cannot start is skipped with its reason.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOUNDS = 12
OPTIONS = ("--codec", "small", "--shard-cuts", "2", "--batch-seconds", "10")


class Failed(Exception):
    """What is not as it should be, in one line."""


def trial(
    name: str, programs: Sequence[str], install: str, checks: Callable[[Path], Generator[str, None, None]]
) -> int:
    """Run `checks`, which start a cluster in the folder given and yield a line for each thing found right.

    Returns the exit status: 1 where something is not right; the folder stays then. 0 also where a program is missing or
    does not start (`Skipped`).
    """
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin:/sbin"
    if missing := [program for program in programs if shutil.which(program) is None]:
        print(f"skipped: {', '.join(missing)} not installed; {install}")
        return 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the daemons end, too
    folder = Path(tempfile.mkdtemp(prefix=f"{name}-"))
    try:
        with contextlib.closing(checks(folder)) as lines:
            for line in lines:
                print(line, flush=True)
    except Skipped as reason:
        print(f"skipped: {reason} ({folder} is kept)")
        return 0
    except (Failed, subprocess.CalledProcessError) as error:
        print(f"FAILED: {error}\n{getattr(error, 'stderr', '') or ''}({folder} is kept)", flush=True)
        return 1
    shutil.rmtree(folder, ignore_errors=True)
    return 0


class Skipped(Exception):
    """Why a cluster does not start on this machine, in one line."""


def plain_run(folder: Path) -> tuple[Path, dict[str, str]]:
    """A folder with a few sounds, and the sha256 of the files that an undisturbed local run makes of them."""
    sounds = folder / "sounds"
    sounds.mkdir()
    for path in sorted((ROOT / "slm/demo/speech/audio").glob("*.ogg"))[:SOUNDS]:
        shutil.copy(path, sounds)
    said("focalstream", "tokenize", str(sounds), str(folder / "plain"), *OPTIONS, "--workers", "1")
    return sounds, digests(folder / "plain")


def compare(plain: dict[str, str], found: dict[str, str]) -> str:
    """Raises Failed where files differ."""
    if plain != found:
        differ = sorted(name for name in plain | found if plain.get(name) != found.get(name))
        raise Failed(f"{len(differ)} of {len(plain)} files differ: {differ[:5]}")
    return f"{len(plain)} files with the sha256 of a local run"


def digests(folder: Path) -> dict[str, str]:
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def said(*command: str, check: bool = True) -> str:
    """What a command printed. Raises CalledProcessError where it fails."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=check, env=environment())
    return done.stdout


@contextlib.contextmanager
def running(*command: str, log: Path, patience: float = 20.0) -> Iterator[subprocess.Popen[bytes]]:
    """A program that ends with the block; what it says is appended to a log."""
    with log.open("ab") as out:
        process = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=out, env=environment())
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for(is_so: Callable[[], bool], seconds: float, otherwise: Exception) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > end:
            raise otherwise
        time.sleep(0.5)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def tail(path: Path) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-5:]) if path.exists() else "no log"
