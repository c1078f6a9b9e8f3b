"""Slurm on this machine alone: the files of configs/slurm/ run as they are, and give the bytes of a run without them.

    sudo apt-get install slurm-wlm munge
    python benchmarks/slurm.py

Munge, a controller and two nodes (several slurmd of one host, `linuxproc`) are started in a temporary folder by this
user; no running Slurm is touched. Then: an array of parts with one task requeued by its signal, against a plain run;
an array larger than MaxArraySize; two ranks of train-lm on gloo, against one. What cannot start is skipped with its
reason. Prints a line for each; exit status 1 where something differs.
"""

from __future__ import annotations

import argparse
import contextlib
import getpass
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue")
PATIENCE = 300.0  # seconds for a job
SOUNDS = 12
TINY = ["width=32", "layers=2", "heads=2", "kv_heads=1", "ffn_width=64", "context=64", "dropout=0"]


MUNGE = (("socket", "socket"), ("pid-file", "pid"), ("log-file", "log"), ("seed-file", "seed"))  # options and files


class Failed(Exception):
    """What is not as it should be, in one line."""


def main() -> int:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin:/sbin"
    if missing := [name for name in PROGRAMS if shutil.which(name) is None]:
        print(f"skipped: {', '.join(missing)} not installed; sudo apt-get install slurm-wlm munge")
        return 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the daemons end, too
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    status = 0
    try:
        with cluster(folder):
            print(
                said("scontrol", "--version").strip(), "with", said("munged", "--version").split()[0], "and two nodes"
            )
            for check in (array_of_parts, too_large_an_array, two_ranks):
                try:
                    print(f"{check.__name__}: {check(folder)}", flush=True)
                except (Failed, subprocess.CalledProcessError) as error:
                    status = 1
                    print(f"{check.__name__}: FAILED: {error}\n{getattr(error, 'stderr', '') or ''}", flush=True)
    except Failed as error:
        print(f"skipped: {error}")
    if not status:
        shutil.rmtree(folder, ignore_errors=True)
    return status


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[None]:
    """Munge, slurmctld and two slurmd, which end with the block. Raises Failed where one does not start."""
    folder.chmod(0o755)  # munge wants folders that others cannot write
    munge, state = folder / "munge", folder / "state"
    munge.mkdir(mode=0o755)
    state.mkdir()
    key = munge / "key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    ports = [free_port() for _ in range(4)]
    host, cores = socket.gethostname().split(".")[0], os.cpu_count() or 1
    nodes = "".join(
        f"NodeName=n{i} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2 + i]} CPUs={max(2, cores)}\n"
        for i in range(2)
    )
    (folder / "slurm.conf").write_text(
        f"""ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={getpass.getuser()}
SlurmdUser={getpass.getuser()}
AuthType=auth/munge
AuthInfo=socket={munge}/socket
CredType=cred/munge
StateSaveLocation={state}
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
MpiDefault=none
ReturnToService=2
SwitchType=switch/none
MaxArraySize=101
KillWait=5
SchedulerParameters=sched_interval=2
{nodes}PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
    )
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    started = []
    try:
        started.append(
            subprocess.Popen(
                ["munged", "--foreground", "--force", f"--key-file={key}", *(f"--{n}={munge}/{p}" for n, p in MUNGE)],
                stderr=subprocess.DEVNULL,
            )
        )
        wait_for(lambda: (munge / "socket").exists(), 20, f"munged did not start: {tail(munge / 'log')}")
        for command in (["slurmctld", "-D"], ["slurmd", "-D", "-N", "n0"], ["slurmd", "-D", "-N", "n1"]):
            started.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        wait_for(
            lambda: said("sinfo", "-h", "-o", "%T %D", check=False).strip() == "idle 2",
            60,
            "the nodes did not get ready: " + tail(folder / "slurmctld.log"),
        )
        yield
    finally:
        if len(started) > 1:  # jobs outlive their daemons
            said("scancel", f"--user={getpass.getuser()}", check=False)
            time.sleep(3)
        for process in reversed(started):
            process.terminate()
        for process in started:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)


def array_of_parts(folder: Path) -> str:
    """Three tasks, of which the first is requeued, against one plain run."""
    sounds = folder / "sounds"
    sounds.mkdir()
    for path in sorted((ROOT / "slm/demo/speech/audio").glob("*.ogg"))[:SOUNDS]:
        shutil.copy(path, sounds)
    command = [str(sounds), "--codec", "small", "--shard-cuts", "2", "--batch-seconds", "10"]
    said("focalstream", "tokenize", command[0], str(folder / "plain"), *command[1:], "--workers", "1")
    job = submit(
        folder, "tokenize.sbatch", "--array=0-2", "--cpus-per-task=1", command[0], str(folder / "parts"), *command[1:]
    )
    wait_for(lambda: (folder / "parts/work/receipts").is_dir(), PATIENCE, "no shard was begun")
    said("scancel", "--signal=USR1", "--batch", f"{job}_0")
    ended(job)
    logs = "".join(path.read_text() for path in sorted((folder / "logs").glob("tokenize-*")))
    if "out of time, requeued" not in logs:
        raise Failed(f"no task was requeued:\n{logs[-2000:]}")
    if not (folder / "parts/dataset.json").exists():
        raise Failed(f"the dataset is not finished:\n{logs[-2000:]}")
    plain, parts = digests(folder / "plain"), digests(folder / "parts")
    if plain != parts:
        raise Failed(f"files differ: {sorted(name for name in plain | parts if plain.get(name) != parts.get(name))}")
    return f"{len(plain)} files are those of a plain run, with one task of three requeued by its signal"


def too_large_an_array(folder: Path) -> str:
    try:
        submit(folder, "tokenize.sbatch", "--array=0-200", "x", "y")
    except subprocess.CalledProcessError as error:
        return f"refused above MaxArraySize: {error.stderr.strip().splitlines()[-1]}"
    raise Failed("an array above MaxArraySize was accepted")


def two_ranks(folder: Path) -> str:
    """A rank a node on gloo, against one process: the same losses but for the order of sums."""
    words = "--config tiny --row-tokens 64 --rows 4 --rows-at-once 2 --steps 6 --warmup-steps 1 --validation-rows 4"
    options = [*words.split(), "--no-bfloat16", "--data", str(folder / "plain"), "--model", *TINY]
    said("focalstream", "train-lm", *options, "--out", str(folder / "one"))
    ended(submit(folder, "train_lm.sbatch", "--cpus-per-task=1", *options, "--out", str(folder / "two")))
    log = "".join(path.read_text() for path in (folder / "logs").glob("train-lm-*"))
    if not (folder / "two/log.jsonl").exists():
        raise Failed(f"no run:\n{log[-3000:]}")
    one, two = ([json.loads(line) for line in (folder / run / "log.jsonl").open()] for run in ("one", "two"))
    key = "bits_per_token"
    pairs = [(a[key], b[key]) for a, b in zip(one, two, strict=True) if key in a]
    worst = max(abs(a - b) for a, b in pairs)
    if worst > 1e-3:
        raise Failed(f"losses differ by up to {worst}: {pairs}")
    return f"{len(pairs)} losses differ by at most {worst:.1e} bits from those of one process"


def submit(folder: Path, name: str, *words: str) -> str:
    """Give a file of configs/slurm/ to sbatch, with options of sbatch before it. Returns the id of the job."""
    (folder / "logs").mkdir(exist_ok=True)
    own = [word for word in words if word.startswith(("--array", "--cpus"))]
    rest = [word for word in words if word not in own]
    return said("sbatch", "--parsable", *own, str(ROOT / "configs/slurm" / name), *rest, folder=folder).strip()


def ended(job: str) -> None:
    """Wait until a job has ended; what is requeued begins at once and not after two minutes."""

    def is_over() -> bool:
        states = said("squeue", "-h", "-r", "-j", job, "-o", "%i %r", check=False).split("\n")
        for task, reason in (state.split(" ", 1) for state in states if " " in state):
            if reason == "BeginTime":
                said("scontrol", "update", f"JobId={task}", "StartTime=now", check=False)
        return not any(states)

    wait_for(is_over, PATIENCE, f"job {job} did not end: {said('squeue', '-l', check=False)}")


def wait_for(is_so: Callable[[], bool], seconds: float, otherwise: str) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > end:
            raise Failed(otherwise)
        time.sleep(0.5)


def said(*command: str, check: bool = True, folder: Path = ROOT) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=check, env=environment)
    return done.stdout


def digests(folder: Path) -> dict[str, str]:
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def tail(path: Path) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-5:]) if path.exists() else "no log"


if __name__ == "__main__":
    sys.exit(main())
