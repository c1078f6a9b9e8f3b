"""Slurm on this machine alone: the files of configs/slurm/ run as they are, and give the bytes of a run without them.

    sudo apt-get install slurm-wlm munge
    python benchmarks/slurm.py

Munge, a controller and two nodes (several slurmd of one host, `linuxproc`) are started in a temporary folder by this
user; no running Slurm is touched. Then: an array of parts with one task requeued by its signal, against a plain run;
an array larger than MaxArraySize; two ranks of train-lm on gloo, against one; an array of which a node is lost. What
cannot start is skipped with its reason. Prints a line for each; exit status 1 where something differs.
"""

from __future__ import annotations

import argparse
import contextlib
import getpass
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import clusters
from benchmarks.clusters import ROOT, Failed, Skipped, free_port, said, tail, wait_for

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue")
PATIENCE = 600.0  # seconds for a job
SILENCE = 60  # seconds after which a node that does not answer counts as lost; 300 where nothing is said
TINY = ["width=32", "layers=2", "heads=2", "kv_heads=1", "ffn_width=64", "context=64", "dropout=0"]
MUNGE = (("socket", "socket"), ("pid-file", "pid"), ("log-file", "log"), ("seed-file", "seed"))  # options and files


def main() -> int:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    return clusters.trial("slurm", PROGRAMS, "sudo apt-get install slurm-wlm munge", checks)


def checks(folder: Path) -> Generator[str, None, None]:
    with cluster(folder) as second:
        yield f"{said('scontrol', '--version').strip()} with {said('munged', '--version').split()[0]} and two nodes"
        sounds, plain = clusters.plain_run(folder)
        yield f"task requeued by its signal: {task_requeued(folder, sounds, plain)}"
        yield f"too large an array: {too_large_an_array(folder)}"
        yield f"two ranks: {two_ranks(folder)}"
        yield f"node lost: {node_lost(folder, sounds, plain, second)}"


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Munge, slurmctld and two slurmd, which end with the block. Yields the second slurmd.

    Raises:
        Skipped: one does not start.
    """
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
SlurmdTimeout={SILENCE}
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
        wait_for(lambda: (munge / "socket").exists(), 60, Skipped(f"munged: {tail(munge / 'log')}"))
        for command in (["slurmctld", "-D"], ["slurmd", "-D", "-N", "n0"], ["slurmd", "-D", "-N", "n1"]):
            started.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        wait_for(
            lambda: said("sinfo", "-h", "-o", "%T %D", check=False).strip() == "idle 2",
            180,
            Skipped("the nodes do not get ready: " + tail(folder / "slurmctld.log")),
        )
        yield started[-1]
    finally:
        if len(started) > 1:  # jobs outlive their daemons
            said("scancel", f"--user={getpass.getuser()}", check=False)
            time.sleep(3)
        for process in reversed(started):
            process.terminate()
        for process in started:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:  # a slurmd waits for steps that do not end
                process.kill()


def task_requeued(folder: Path, sounds: Path, plain: dict[str, str]) -> str:
    """Three tasks, of which the first is told that its time ends."""
    out = folder / "requeued"
    job = tokenize(folder, "--array=0-2", sounds, out)
    wait_for(lambda: has_begun(out), PATIENCE, Failed("no shard was begun"))
    said("scancel", "--signal=USR1", "--batch", f"{job}_0")
    ended(job)
    if "out of time, requeued" not in logs(folder):
        raise Failed(f"no task was requeued:\n{logs(folder)[-2000:]}")
    return clusters.compare(plain, clusters.digests(out))


def node_lost(folder: Path, sounds: Path, plain: dict[str, str], second: subprocess.Popen[bytes]) -> str:
    """Two tasks; the second node and everything on it is killed when it has begun. The other node does its task."""
    out = folder / "lost"
    job = tokenize(folder, "--array=0-1", "--exclusive", sounds, out)
    wait_for(lambda: has_begun(out) and bool(processes_on(folder, "n1")), PATIENCE, Failed("no shard was begun"))
    second.kill()
    for pid in processes_on(folder, "n1"):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    done = len(list(out.glob("work/receipts/*.json")))
    wait_for(lambda: "down" in said("sinfo", "-h", "-n", "n1", "-o", "%T"), PATIENCE, Failed("no node was lost"))
    ended(job)
    return f"after {done} shards; {clusters.compare(plain, clusters.digests(out))}"


def tokenize(folder: Path, *words: object) -> str:
    *options, sounds, out = map(str, words)
    return submit(folder, "tokenize.sbatch", *options, "--cpus-per-task=1", sounds, out, *clusters.OPTIONS)


def has_begun(out: Path) -> bool:
    return (out / "work/receipts").is_dir()


def processes_on(folder: Path, node: str) -> list[int]:
    """Processes of jobs on a node, those first that watch over others and would tell the controller."""
    words, watchers, found = (f"SLURM_CONF={folder}/slurm.conf", f"SLURMD_NODENAME={node}"), set(), []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if set(words) <= set((process / "environ").read_text(errors="replace").split("\0")):
                found.append(int(process.name))
                parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
                if Path(f"/proc/{parent}/comm").read_text().startswith("slurmstepd"):
                    watchers.add(parent)
    return [*watchers, *found]


def logs(folder: Path) -> str:
    return "".join(path.read_text() for path in sorted((folder / "logs").glob("tokenize-*")))


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
    own = [word for word in words if word.startswith(("--array", "--cpus", "--exclusive"))]
    rest = [word for word in words if word not in own]
    place = f"--chdir={folder}"
    return said("sbatch", "--parsable", place, *own, str(ROOT / "configs/slurm" / name), *rest).strip()


def ended(job: str) -> None:
    """Wait until a job has ended; what is requeued begins at once and not after two minutes."""

    def is_over() -> bool:
        states = said("squeue", "-h", "-r", "-j", job, "-o", "%i %r", check=False).split("\n")
        for task, reason in (state.split(" ", 1) for state in states if " " in state):
            if reason == "BeginTime":
                said("scontrol", "update", f"JobId={task}", "StartTime=now", check=False)
        return not any(states)

    wait_for(is_over, PATIENCE, Failed(f"job {job} did not end: {said('squeue', '-l', check=False)}"))


if __name__ == "__main__":
    sys.exit(main())
