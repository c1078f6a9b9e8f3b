"""Ceph on this machine alone: `tokenize` to its S3 gateway, which is killed in mid-run and started again.

    sudo apt-get install ceph-mon ceph-osd radosgw
    python benchmarks/ceph.py
    python benchmarks/ceph.py --moto      # the last two checks on a stand-in, without Ceph

A monitor, a store in memory and a gateway (radosgw) are started in a temporary folder by this user; no running Ceph is
touched. When the first shards are there, the gateway is killed (SIGKILL), and 5 s later started again; the run goes on
by itself. Then the run itself is killed and given again; and of three parts one is killed, whose shards the others must
take over. Every file must have the sha256 of an undisturbed local run. What cannot start is skipped with its reason;
exit status 1 where something differs.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Generator, Iterator
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import clusters
from benchmarks.clusters import Failed, Skipped, free_port, running, said, tail, wait_for
from pipelines.bulk.ownership import Part, dealt_to
from pipelines.storage.folders import RemotePath, files_below
from tests.pipelines.storage.slow_s3 import slow_s3

PROGRAMS = ("ceph", "ceph-mon", "ceph-osd", "ceph-authtool", "monmaptool", "radosgw", "radosgw-admin")
INSTALL = "sudo apt-get install ceph-mon ceph-osd radosgw"
BUCKET = "trial"
PATIENCE = 900.0  # seconds for a run
TRIES = 5  # to start the store: now and then it ends at once, as the monitor finds its "wrong fsid"


class Gateway:
    """A radosgw of a cluster that runs: can be killed and started again."""

    def __init__(self, folder: Path, conf: Path) -> None:
        self.port, self.log = free_port(), folder / "radosgw.log"
        self.command = ["radosgw", "-f", "-c", str(conf), "-n", "client.admin"]
        self.command += ["--rgw-frontends", f"beast endpoint=127.0.0.1:{self.port}"]
        self.address = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self.command, stdout=self.log.open("ab"), stderr=subprocess.STDOUT)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def gateway(folder: Path) -> Iterator[Gateway]:
    """A cluster with a gateway that end with the block, an empty bucket, and the environment to reach it.

    Raises:
        Skipped: something does not start.
    """
    from urllib.request import urlopen

    conf, before = configure(folder), dict(os.environ)
    with contextlib.ExitStack() as stack:
        stack.enter_context(running("ceph-mon", "-f", "-c", str(conf), "-i", "a", log=folder / "mon.log"))
        ceph = ["ceph", "-c", str(conf), "--connect-timeout", "10"]
        dead = Skipped(f"the monitor does not answer: {tail(folder / 'mon.log')}")
        wait_for(lambda: "mon" in said(*ceph, "-s", check=False), 90, dead)
        store = str(uuid.uuid4())
        said(*ceph, "osd", "new", store)
        said("ceph-osd", "-c", str(conf), "-i", "0", "--mkfs", "--osd-uuid", store)
        is_up = lambda: "1 up" in said(*ceph, "osd", "stat", check=False)  # noqa: E731
        dead = Skipped(f"the store does not start: see {folder / 'osd.0.log'}")
        for _ in range(TRIES):
            start = running("ceph-osd", "-f", "-c", str(conf), "-i", "0", log=folder / "osd.log")
            osd = stack.enter_context(start)
            wait_for(lambda: osd.poll() is not None or is_up(), PATIENCE, dead)  # noqa: B023
            if osd.poll() is None:
                break
        else:
            raise dead
        keys = {"AWS_ACCESS_KEY_ID": "trial", "AWS_SECRET_ACCESS_KEY": "trial"}
        user = ["--uid=trial", "--display-name=trial", "--access-key=trial", "--secret-key=trial"]
        said("radosgw-admin", "-c", str(conf), "-n", "client.admin", "user", "create", *user)
        started = Gateway(folder, conf)
        stack.callback(started.kill)

        def answers() -> bool:
            with contextlib.suppress(OSError), urlopen(started.address) as answer:
                return answer.status == 200
            return False

        wait_for(answers, 120, Skipped(f"the gateway does not answer: {tail(started.log)}"))
        try:
            os.environ |= {**keys, "AWS_ENDPOINT_URL": started.address, "AWS_DEFAULT_REGION": "default"}
            fresh_client().mkdir(BUCKET)
            yield started
        finally:
            os.environ.clear()
            os.environ |= before


def configure(folder: Path) -> Path:
    """Write the files of a cluster of one monitor and one store, without passwords, for 127.0.0.1 only."""
    cluster, port, conf = str(uuid.uuid4()), free_port(), folder / "ceph.conf"
    address = f"v1:127.0.0.1:{port}"
    conf.write_text(
        f"""[global]
fsid = {cluster}
mon_host = {address}
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
public_network = 127.0.0.0/8
run_dir = {folder}
admin_socket = {folder}/$name.asok
log_file = {folder}/$name.log
pid_file = {folder}/$name.pid
keyring = {folder}/keyring
mon_data = {folder}/mon
osd_data = {folder}/osd
mgr_data = {folder}/mgr
rgw_data = {folder}/rgw
osd_objectstore = memstore
memstore_device_bytes = 2147483648
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 8
osd_crush_chooseleaf_type = 0
mon_allow_pool_size_one = true
mon_max_pg_per_osd = 1000
ms_bind_msgr2 = false
"""
    )
    for name in ("mon", "osd", "rgw"):
        (folder / name).mkdir()
    key = ["--create-keyring", str(folder / "keyring"), "--gen-key", "-n"]
    said("ceph-authtool", *key, "mon.", "--cap", "mon", "allow *")
    said("ceph-authtool", str(folder / "keyring"), "--gen-key", "-n", "client.admin", "--cap", "mon", "allow *")
    said("monmaptool", "--create", "--addv", "a", f"[{address}]", "--fsid", cluster, str(folder / "monmap"))
    said("ceph-mon", "-c", str(conf), "--mkfs", "-i", "a", "--monmap", str(folder / "monmap"))
    return conf


def fresh_client():
    """fsspec's client of S3, as the environment is now."""
    import fsspec

    fsspec.filesystem("s3").clear_instance_cache()
    return fsspec.filesystem("s3")


def checks(folder: Path) -> Generator[str, None, None]:
    with gateway(folder) as store:
        yield said("radosgw", "--version").split(" (")[0]
        sounds, plain = clusters.plain_run(folder)
        yield "gateway killed and started again: " + gateway_killed(folder, store, sounds, plain)
        yield from checks_of_runs(folder, sounds, plain)


def checks_on_moto(folder: Path) -> Generator[str, None, None]:
    with slow_s3(0, BUCKET):
        yield f"moto {version('moto')}"
        yield from checks_of_runs(folder, *clusters.plain_run(folder))


def checks_of_runs(folder: Path, sounds: Path, plain: dict[str, str]) -> Generator[str, None, None]:
    yield "run killed and given again: " + run_killed(folder, sounds, plain)
    yield "part killed: " + part_killed(folder, sounds, plain)


def gateway_killed(folder: Path, store: Gateway, sounds: Path, plain: dict[str, str]) -> str:
    out = RemotePath(f"s3://{BUCKET}/gateway")
    with running(*command(sounds, out), log=folder / "gateway-run.log") as run:
        before = shards_begun(out, run)
        store.kill()
        time.sleep(5)
        if run.poll() is not None:
            raise Failed(f"the run was over before the gateway was killed: {tail(folder / 'gateway-run.log')}")
        store.start()
        wait_for(lambda: run.poll() is not None, PATIENCE, Failed("the run did not end"))
        if run.returncode:
            raise Failed(f"exit status {run.returncode}: {tail(folder / 'gateway-run.log')}")
    return f"after {before} shards; {clusters.compare(plain, fetched(folder, out))}"


def run_killed(folder: Path, sounds: Path, plain: dict[str, str]) -> str:
    out = RemotePath(f"s3://{BUCKET}/run")
    with running(*command(sounds, out), log=folder / "killed-run.log") as run:
        before = shards_begun(out, run)
        run.kill()
    said(*command(sounds, out))
    return f"after {before} shards; {clusters.compare(plain, fetched(folder, out))}"


def part_killed(folder: Path, sounds: Path, plain: dict[str, str]) -> str:
    """Three parts that start together. The last is killed when it holds a claim; the others do what it has left."""
    out, dead = RemotePath(f"s3://{BUCKET}/parts"), Part(3, 3)
    with contextlib.ExitStack() as stack:
        logs = [folder / f"part-{number}.log" for number in (1, 2, 3)]
        runs = [
            stack.enter_context(running(*command(sounds, out), f"--part={number}/3", log=log))
            for number, log in enumerate(logs, start=1)
        ]
        owned = dealt_to(dead, clusters.SOUNDS // 2)

        def of_dead(kind: str) -> int:
            return sum(any(f"{kind}/{shard:06d}" in name for name in files_below(out)) for shard in owned)

        began_nothing = Failed(f"the part began nothing: see {logs[2]}")
        wait_for(lambda: of_dead("claims") > 0 or runs[2].poll() is not None, PATIENCE, began_nothing)
        if runs[2].poll() is not None:
            raise Failed(f"the part ended before it was killed: {tail(logs[2])}")
        runs[2].kill()
        done = of_dead("receipts")
        wait_for(lambda: None not in [run.poll() for run in runs], PATIENCE, Failed("the other parts did not end"))
        if any(run.returncode for run in runs[:2]):
            raise Failed(f"a part failed: {tail(logs[0])}\n{tail(logs[1])}")
    return f"it had done {done} of its {len(owned)} shards; {clusters.compare(plain, fetched(folder, out))}"


def command(sounds: Path, out: RemotePath) -> list[str]:
    return ["focalstream", "tokenize", str(sounds), str(out), *clusters.OPTIONS, "--executor", "inline"]


def shards_begun(out: RemotePath, run: subprocess.Popen[bytes]) -> int:
    """Wait until a run has finished its first shards. Returns how many receipts there are."""

    def receipts() -> int:
        return sum("receipts/" in name for name in files_below(out))

    wait_for(lambda: receipts() > 0 or run.poll() is not None, PATIENCE, Failed("no shard was finished"))
    return receipts()


def fetched(folder: Path, out: RemotePath) -> dict[str, str]:
    copy = folder / out.name
    for name in files_below(out):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes((out / name).read_bytes())
    return clusters.digests(copy)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moto", action="store_true", help="on moto (pip install 'moto[server]') instead of Ceph")
    if parser.parse_args().moto:
        return clusters.trial("moto", [], "", checks_on_moto)
    return clusters.trial("ceph", PROGRAMS, INSTALL, checks)


if __name__ == "__main__":
    sys.exit(main())
