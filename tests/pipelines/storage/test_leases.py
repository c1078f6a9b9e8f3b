"""Leases under contention: never two holders at once, and everyone gets a turn."""

import json
import random
import threading
import time
import uuid

import fsspec
import pytest

from pipelines.storage import leases
from pipelines.storage.folders import RemotePath, files_below
from pipelines.storage.leases import NotNeeded, lease
from tests.pipelines.storage.slow_s3 import counts, slow_s3
from tokenizer.errors import InputError

CONTENDERS = 16


@pytest.fixture(autouse=True)
def impatient(monkeypatch, request):
    # On a busy machine a request to the S3 server takes half a second: a holder must get several of them done.
    remote = "store" in request.fixturenames and request.getfixturevalue("store").startswith("s3")
    seconds = (0.8, 4.0, 0.2) if remote else (0.2, 2.0, 0.05)
    for name, value in zip(("BEAT_SECONDS", "SILENCE_SECONDS", "LOOK_SECONDS"), seconds, strict=True):
        monkeypatch.setattr(leases, name, value)


@pytest.fixture(scope="module", params=["memory", "S3 at 30 ms"])
def store(request):
    if request.param == "memory":
        yield "memory://speech"
        return
    pytest.importorskip("moto", reason="needs moto[server] and s3fs")
    pytest.importorskip("s3fs", reason="needs moto[server] and s3fs")
    with slow_s3(0.03):
        yield "s3://speech"


@pytest.fixture
def folder(store):
    return RemotePath(f"{store}/{uuid.uuid4().hex}/work")


def stale(path):
    path.write_bytes(json.dumps({"host": "gone", "process": 1, "lease": "dead", "beat": 7}).encode())


def contend(work, contenders=CONTENDERS):
    """Let so many threads do `work(number)` at once. Returns their errors."""
    errors, start = {}, threading.Barrier(contenders)

    def run(number):
        start.wait()
        try:
            work(number)
        except BaseException as error:
            errors[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(contenders)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def test_behind_a_dead_lease_everyone_gets_it_once_and_never_two_at_a_time(folder):
    path, inside, turns, crowds = folder / "plan.lock", [], [], []
    stale(path)

    def work(number):
        with lease(path, wait=True) as still_held:
            inside.append(number)
            crowds.append(len(inside))
            time.sleep(random.uniform(0, 0.02))
            still_held()
            inside.remove(number)
            turns.append(number)

    assert contend(work) == {}
    assert sorted(turns) == list(range(CONTENDERS)) and set(crowds) == {1}
    assert len(files_below(folder)) == 1  # the last generation, free


def test_a_free_lease_takes_eight_requests_and_a_look_takes_one(monkeypatch):
    pytest.importorskip("moto", reason="needs moto[server] and s3fs")
    monkeypatch.setattr(leases, "BEAT_SECONDS", 60.0)
    monkeypatch.setattr(leases, "SILENCE_SECONDS", 300.0)
    with slow_s3(0.0) as address:
        path = RemotePath("s3://speech/work/plan.lock")
        with lease(path, wait=True):  # here it is found out what the store can do
            pass
        before = counts(address)
        with lease(path, wait=True):
            pass
        taken = counts(address) - before
        assert (taken["PUT"], taken["GET"], taken["DELETE"]) == (2, 5, 1), taken  # lists and reads: three and two
        seen, before = leases.newest(path), counts(address)
        assert leases._looked_again(path, seen) == seen
        looked = counts(address) - before
        assert (looked["GET"], looked["HEAD"]) == (1, 0), looked


def test_of_those_that_do_not_wait_one_holds_it_and_the_others_are_told_by_whom(folder):
    path, held, asked = folder / "lock", [], threading.Barrier(CONTENDERS)
    stale(path)

    def work(number):
        try:
            with lease(path, wait=False):
                held.append(number)
                asked.wait()
        except BlockingIOError:
            asked.wait()
            raise

    errors = contend(work)
    assert len(held) == 1 and len(errors) == CONTENDERS - 1
    assert all(isinstance(error, BlockingIOError) and "process" in str(error) for error in errors.values())


def test_who_waits_for_what_others_have_done_goes_on_at_once(folder):
    done, made = threading.Event(), []

    def work(number):
        with lease(folder / "plan.lock", wait=True, done=done.is_set):
            made.append(number)
            time.sleep(0.2)
            done.set()

    errors = contend(work)
    assert len(made) == 1 and {type(error) for error in errors.values()} == {NotNeeded}


def test_a_holder_that_is_cut_off_stops_before_others_may_take_over(monkeypatch):
    path = RemotePath(f"memory://speech/{uuid.uuid4().hex}/lock")

    def fail(holder):
        raise InputError("no answer")

    with lease(path, wait=False) as still_held:
        with monkeypatch.context() as cut_off:
            cut_off.setattr(leases._Holder, "renew", fail)
            time.sleep(leases.SILENCE_SECONDS - leases.BEAT_SECONDS + 0.1)
            with pytest.raises(InputError, match="no answer"):
                still_held()
        still_held()  # the store answers again, and nobody has taken it
        (path.parent / "lock.1").write_bytes(b'{"host": "other", "process": 2}')
        time.sleep(3 * leases.BEAT_SECONDS)
        with pytest.raises(InputError, match="another run has taken over"):
            still_held()
    assert leases.newest(path) == (1, b'{"host": "other", "process": 2}')  # not freed by the one that lost it


def test_a_protocol_without_conditional_writes_lets_the_last_writer_have_it(monkeypatch, caplog):
    monkeypatch.setattr(leases, "_conditional", {})
    monkeypatch.setattr(leases, "SETTLE_SECONDS", 1.0)
    files = fsspec.filesystem("memory")
    files.store.clear()

    def pipe_file(self, path, value, mode="overwrite", **options):
        with self.open(path, "wb") as file:
            file.write(value)

    monkeypatch.setattr(type(files), "pipe_file", pipe_file)
    path, inside, crowds = RemotePath("memory://speech/work/plan.lock"), [], []

    def work(number):
        with lease(path, wait=True):
            inside.append(number)
            crowds.append(len(inside))
            inside.remove(number)

    assert contend(work, 4) == {} and len(crowds) == 4 and set(crowds) == {1}
    assert "no conditional writes" in caplog.text
