"""Shards are stored beside encoding: several at a time, not too many, and a receipt only after its files."""

import json
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor

import fsspec
import pytest

from pipelines.bulk import tasks
from pipelines.bulk.feed import pipeline
from pipelines.format.layout import Layout
from pipelines.format.ledger import Receipt
from pipelines.format.shards import MadeShard
from pipelines.storage.folders import RemotePath
from pipelines.storage.stable_bytes import stored_file
from tokenizer.errors import InputError


@pytest.fixture
def store():
    """The URL of an empty store, and what is in it."""
    files = fsspec.filesystem("memory")
    files.store.clear()
    files.pseudo_dirs[:] = [""]
    yield RemotePath("memory://bucket/out")
    files.store.clear()


def stored(out):
    files = fsspec.filesystem("memory")
    return {path.removeprefix("/bucket/out/"): bytes(file.getvalue()) for path, file in sorted(files.store.items())}


def watched(monkeypatch, before):
    """Have `before(name)` called with the name of every file, below OUT, that is about to be uploaded."""
    write = RemotePath.write_bytes

    def write_bytes(path, data):
        before(path.url.removeprefix("memory://bucket/out/"), data)
        write(path, data)

    monkeypatch.setattr(RemotePath, "write_bytes", write_bytes)


def test_uploads_go_side_by_side_and_receipts_come_last(audio_folder, finished, run, store, file_bytes, monkeypatch):
    side_by_side = threading.Barrier(3)
    receipts = []

    def before(name, data):
        if name in ("shards/codes.000000.tar", "shards/codes.000001.tar", "shards/codes.000002.tar"):
            side_by_side.wait(20)  # seconds; breaks where one upload waits for another
        if name.startswith("work/receipts/"):
            receipts.append(json.loads(data))
            there = stored(store)
            assert all(len(there[file]) == facts["bytes"] for file, facts in receipts[-1]["files"].items())

    watched(monkeypatch, before)
    run(audio_folder, store)
    assert len(receipts) == 5 and stored(store) == file_bytes(finished)


def test_an_upload_that_fails_leaves_no_receipt(audio_folder, finished, run, store, file_bytes, monkeypatch):
    def before(name, data):
        if name == "index/codes.000002.npy":
            raise InputError("the store is full")

    with monkeypatch.context() as patch:
        watched(patch, before)
        with pytest.raises(InputError, match="the store is full"):
            run(audio_folder, store)
    assert "shards/codes.000002.tar" in stored(store) and "work/receipts/000002.json" not in stored(store)
    run(audio_folder, store)
    assert stored(store) == file_bytes(finished)


def test_after_an_upload_has_failed_no_other_begins(audio_folder, run, tmp_path, monkeypatch):
    """Each of those that wait would be tried for minutes while the store does not answer."""
    made, begun, all_made, dropped = [], [], threading.Event(), threading.Event()
    make = tasks.make_shard

    def counted(layout, shard, *arguments):
        made.append(shard)
        if len(made) == 24:
            all_made.set()
        return make(layout, shard, *arguments)

    def fails(layout, shard):
        begun.append(shard)
        all_made.wait(20)
        if shard is not begun[0]:
            dropped.wait(5)
        raise InputError("the store does not answer")

    class Stores(ThreadPoolExecutor):
        def shutdown(self, wait=True, *, cancel_futures=False):
            super().shutdown(wait=False, cancel_futures=cancel_futures)
            dropped.set()
            super().shutdown(wait=wait)

    monkeypatch.setattr(tasks, "make_shard", counted)
    monkeypatch.setattr(tasks, "store_shard", fails)
    monkeypatch.setattr(tasks, "ThreadPoolExecutor", Stores)
    with pytest.raises(InputError, match="the store does not answer"):
        run(audio_folder, tmp_path / "out", shard_cuts=1)
    assert len(made) == 24 and len(begun) <= 1 + tasks.STORES


def test_a_shard_that_comes_after_its_plan_has_gone_leaves_no_receipt(store):
    """Nor does it harm a dataset that others have finished meanwhile."""
    layout, made = Layout(store), Future()
    path = layout.codes_tar(3)
    made.set_result(
        MadeShard({path: b"tokens"}, Receipt(3, {layout.name(path): stored_file(b"tokens")}, 1, 1, 0.1, ()))
    )
    with pytest.raises(InputError, match="was removed while a run was writing there"):
        tasks._stored(layout, made)
    assert stored(store) == {}
    layout.dataset.write_bytes(b"{}")
    tasks._stored(layout, made)
    assert sorted(stored(store)) == ["dataset.json", "shards/codes.000003.tar"]


def test_shards_that_wait_to_be_stored_are_few(audio_folder, run, tmp_path, monkeypatch):
    waiting, most = [], []
    make, store = tasks.make_shard, tasks.store_shard

    def made(layout, shard, *arguments):
        waiting.append(shard)
        most.append(len(waiting))
        return make(layout, shard, *arguments)

    def slowly_stored(layout, shard):
        time.sleep(0.05)
        waiting.remove(shard.receipt.shard)
        return store(layout, shard)

    monkeypatch.setattr(pipeline, "MOST_FINISHING", 3)
    monkeypatch.setattr(tasks, "make_shard", made)
    monkeypatch.setattr(tasks, "store_shard", slowly_stored)
    run(audio_folder, tmp_path / "out", shard_cuts=1)
    assert len(most) == 24 and 2 <= max(most) <= 3 + 1  # those that wait, and the one that is being made
