"""Datasets behind URLs: the same bytes as on disk, whatever the store does meanwhile, and one owner at a time."""

import contextlib
import errno
import gzip
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from pipelines.bulk.ownership import Part, only_run, refuse_strange_folder
from pipelines.dataset.token_dataset import TokenDataset
from pipelines.format.layout import Layout
from pipelines.storage import leases, retries
from pipelines.storage.folders import RemotePath, dataset_folder, files_below, on_disk, remove_tree, sizes_in
from pipelines.tools.verify import verify
from slm.cli import main
from tokenizer.errors import InputError


@pytest.fixture
def bucket():
    """The URL of an empty folder in fsspec's file system in memory."""
    files = fsspec.filesystem("memory")
    files.store.clear()
    yield RemotePath("memory://bucket/data")
    files.store.clear()


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(retries, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(leases, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(leases, "LOOK_SECONDS", 0.02)


@pytest.fixture
def silent_soon(monkeypatch):
    """A dead run is replaced after 2 s. Without this after a minute, so that on a busy machine no living one is."""
    monkeypatch.setattr(leases, "SILENCE_SECONDS", 2.0)


def noticed(still_ours, words):
    """Whether a run is told, by one of its next beats, that it has lost its lease."""
    with pytest.raises(InputError, match=words):
        for _ in range(600):
            time.sleep(leases.BEAT_SECONDS)
            still_ours()


def remote_bytes(folder):
    return {name: (folder / name).read_bytes() for name in files_below(folder)}


# ---- the file system --------------------------------------------------------------------------------------------


def test_a_remote_path_is_like_a_path(bucket):
    path = bucket / "a" / "b.txt"
    assert not path.exists() and not bucket.is_dir() and sizes_in(bucket / "a") == {} and list(bucket.iterdir()) == []
    with pytest.raises(FileNotFoundError, match=r"memory://bucket/data/a/b\.txt"):
        path.read_bytes()
    path.write_bytes(b"12345")
    assert path.is_file() and bucket.is_dir() and path.stat().st_size == 5 and path.open().read() == b"12345"
    assert sizes_in(bucket / "a") == {"b.txt": 5} and list(bucket.iterdir()) == [bucket / "a"]
    assert path.name == "b.txt" and files_below(bucket) == ["a/b.txt"] and Layout(bucket).name(path) == "a/b.txt"
    assert path.create(b"other") == b"12345" == path.read_bytes()
    path.unlink()
    path.unlink(missing_ok=True)
    assert not path.exists() and path.create(b"other") == b"other"


def test_what_a_text_names(tmp_path):
    assert dataset_folder("s3://bucket/out/") == RemotePath("s3://bucket/out")
    assert dataset_folder(str(tmp_path)) == dataset_folder(f"file://{tmp_path}") == tmp_path


class Throttled(Exception):
    """As botocore raises it."""

    response = {"ResponseMetadata": {"HTTPStatusCode": 503}}  # noqa: RUF012


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (TimeoutError(), True),
        (ConnectionResetError(), True),
        (OSError(errno.EBUSY, "SlowDown"), True),
        (Throttled(), True),
        (FileNotFoundError(errno.ENOENT, "no such bucket"), False),
        (PermissionError(errno.EACCES, "AccessDenied"), False),
        (OSError(errno.EINVAL, "AuthorizationHeaderMalformed"), False),
        (ValueError("of ours"), False),
    ],
)
def test_only_what_may_pass_is_tried_again(error, passes):
    tries = []

    def request():
        tries.append(1)
        if len(tries) < 3:
            raise error
        return "done"

    if passes:
        assert retries.retried(request) == "done" and len(tries) == 3
    else:
        with pytest.raises(type(error)):
            retries.retried(request)
        assert len(tries) == 1


def test_what_goes_on_failing_is_one_line(bucket, monkeypatch):
    def busy(*arguments, **options):
        raise OSError(errno.EBUSY, "SlowDown")

    monkeypatch.setattr(MemoryFileSystem, "cat_file", busy)
    with pytest.raises(InputError, match=r"memory://bucket/data/x: the store refuses or fails .*SlowDown"):
        (bucket / "x").read_bytes()


def test_files_on_disk_for_what_needs_them(bucket, tmp_path):
    (bucket / "tar").write_bytes(b"codes")
    with on_disk(bucket, ["tar", "none"]) as folder:
        copy = folder / "tar"
        assert copy.read_bytes() == b"codes" and list(folder.iterdir()) == [copy]
    assert not folder.exists()
    (tmp_path / "tar").write_bytes(b"codes")
    with on_disk(tmp_path, ["tar"]) as path:
        assert path == tmp_path
    assert (path / "tar").exists()


# ---- who may write ----------------------------------------------------------------------------------------------


def test_who_may_work_beside_whom(bucket):
    layout = Layout(bucket)
    with only_run(layout, Part(1, 4)), only_run(layout, Part(2, 4)):
        for other in (Part(1, 4), Part(1, 3), None):
            with pytest.raises(InputError, match=r"another run is writing there \(process"), only_run(layout, other):
                pass
    with only_run(layout):  # what a part held that came to its end holds nobody up
        pass
    assert files_below(bucket) == []


def test_the_lease_of_a_dead_run_is_taken_over_and_the_dead_notices(bucket, silent_soon):
    layout = Layout(bucket)
    (bucket / "work/lock").write_bytes(json.dumps({"host": "h", "process": 1, "lease": "dead", "beat": 7}).encode())
    with only_run(layout) as still_ours:
        still_ours()
        while (bucket / "work/lock").exists():  # its thread removes what it has replaced
            time.sleep(0.01)
        (bucket / "work/lock").write_bytes(json.dumps({"host": "h", "process": 1, "lease": "dead", "beat": 8}).encode())
        time.sleep(0.3)
        still_ours()  # the dead one came back, and wrote where no one looks any more
        (bucket / "work/lock.2").write_bytes(b'{"host": "h", "process": 1}')
        noticed(still_ours, "another run has taken over")


# ---- whole runs -------------------------------------------------------------------------------------------------


def test_a_whole_run_in_memory(finished, audio_folder, run, bucket, tmp_path, file_bytes, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    run(audio_folder, bucket)
    assert remote_bytes(bucket) == file_bytes(finished)
    assert verify(bucket) == []
    assert run(audio_folder, bucket)["cuts"] == 24  # already complete
    here, there = TokenDataset(finished), TokenDataset("memory://bucket/data")
    assert [there.cut_id(i) for i in range(24)] == [here.cut_id(i) for i in range(24)]
    for i in range(24):
        np.testing.assert_array_equal(there.codes(i), here.codes(i))
    tar = bucket / "shards/codes.000001.tar"
    tar.write_bytes(tar.read_bytes()[:-1])
    assert any(problem.startswith("shards/codes.000001.tar") for problem in verify(bucket))


def test_verify_brings_each_file_of_a_shard_once_and_tells_damage_from_a_store_that_fails(
    audio_folder, run, bucket, monkeypatch
):
    run(audio_folder, bucket, pack=True)
    read, fetched = MemoryFileSystem.cat_file, Counter()

    def count(files, path, **options):
        fetched[path] += 1
        return read(files, path, **options)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", count)
    assert verify(bucket) == []
    shards = {path: times for path, times in fetched.items() if "codes.0" in path or "cuts.0" in path}
    assert len(shards) == 25 and set(shards.values()) == {1}

    def fail(files, path, **options):
        if path.endswith("codes.000003.tar"):
            raise Throttled
        return read(files, path, **options)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", fail)
    with pytest.raises(InputError, match=r"codes\.000003\.tar: the store refuses or fails"):
        verify(bucket)


@pytest.mark.parametrize("at", [2, 9, 20, 27])
def test_going_on_after_any_upload(finished, audio_folder, run, bucket, file_bytes, monkeypatch, at):
    """A run that ends at its `at`-th upload."""
    upload, count = MemoryFileSystem.pipe_file, []

    class Killed(BaseException):
        pass

    def upload_or_die(files, path, *arguments, **options):
        if "lock" in path:  # also written by the thread that keeps the lease
            return upload(files, path, *arguments, **options)
        count.append(path)
        if len(count) >= at:
            raise Killed
        upload(files, path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "pipe_file", upload_or_die)
        with pytest.raises(Killed):
            run(audio_folder, bucket, pack=False)
    run(audio_folder, bucket)
    assert remote_bytes(bucket) == file_bytes(finished)


def test_parts_behind_a_url(finished, audio_folder, run, bucket, file_bytes):
    for number in (2, 1, 3):
        run(audio_folder, bucket, part=Part(number, 3))
    assert remote_bytes(bucket) == file_bytes(finished)


def test_ten_parts_that_start_together_behind_a_dead_lock(finished, audio_folder, run, bucket, file_bytes, silent_soon):
    (bucket / "work/plan.lock").write_bytes(b'{"host": "gone", "process": 1, "lease": "dead", "beat": 7}')
    errors, start = [], threading.Barrier(10)

    def part(number):
        start.wait()
        try:
            run(audio_folder, bucket, part=Part(number, 10))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=part, args=(number,)) for number in range(1, 11)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert remote_bytes(bucket) == file_bytes(finished)


def test_a_part_that_ends_after_the_dataset_was_finished_leaves_nothing(bucket):
    """Whoever finished it has removed `work/`, with the lease of this part, which still claims shards."""
    layout = Layout(bucket)
    with only_run(layout, Part(1, 2)) as still_held:
        layout.write(layout.dataset, b"{}")
        remove_tree(layout.work)
        noticed(still_held, "another run")
        layout.write(layout.work / "claims/000000/claim.1", b'{"free": true}')
    assert files_below(bucket) == ["dataset.json"]


@pytest.mark.parametrize("local", [True, False])
def test_a_part_that_ends_late_leaves_the_run_that_tries_failed_cuts_again(bucket, tmp_path, local):
    layout = Layout(tmp_path / "out" if local else bucket)
    with contextlib.ExitStack() as stack:
        with only_run(layout, Part(1, 2)):
            layout.write(layout.dataset, b"{}")
            remove_tree(layout.work)
            stack.enter_context(only_run(layout))
            layout.write(layout.work / "plan.json", b"{}")
        assert (layout.work / "plan.json").exists() and (layout.work / "lock").exists()
    assert layout.dataset.exists() and not layout.work.exists()


def test_failed_cuts_are_tried_again(write_manifest, speech, run, bucket, tmp_path):
    manifest = write_manifest({f"cut-{i}": speech(i, 0.4) for i in range(4)})
    (tmp_path / "audio/2.wav").rename(tmp_path / "2.wav")
    assert run(manifest, bucket)["quarantined"] == 1
    (tmp_path / "2.wav").rename(tmp_path / "audio/2.wav")
    assert run(manifest, bucket, retry_quarantined=True)["quarantined"] == 0
    assert verify(bucket) == []


def test_a_folder_that_fills_while_it_is_listed_holds_no_file_of_others(bucket, monkeypatch):
    """s3fs lists an empty folder, looks what it is, finds what another part has written meanwhile, and names it."""
    monkeypatch.setattr(MemoryFileSystem, "find", lambda self, path: [path])
    assert files_below(bucket / "work") == []
    refuse_strange_folder(Layout(bucket))


def test_files_of_others_are_refused(audio_folder, run, bucket):
    (bucket / "holiday.jpg").write_bytes(b"mine")
    with pytest.raises(InputError, match=r"not empty \(holiday\.jpg"):
        run(audio_folder, bucket)
    assert files_below(bucket) == ["holiday.jpg"]


@pytest.mark.slow
def test_a_store_that_fails_now_and_then_and_a_killed_run(
    finished, audio_folder, tiny_codec_dir, tmp_path, file_bytes, monkeypatch, capsys, silent_soon
):
    """One of 20 requests fails, half of these after they were carried out. The retries of botocore are off, so that
    it is ours that are tried."""
    pytest.importorskip("moto", reason="needs moto[server] and s3fs")
    pytest.importorskip("s3fs", reason="needs s3fs")
    server_script = Path(__file__).with_name("flaky_s3.py")
    server = subprocess.Popen([sys.executable, str(server_script), "20", "3"], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.stdout.readline().strip()}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "testing")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        fsspec.filesystem("s3").clear_instance_cache()
        retries.retried(lambda: fsspec.filesystem("s3").mkdir("speech"))
        retries.retried(lambda: fsspec.filesystem("s3").put(f"{audio_folder}/", "speech/audio/", recursive=True))
        out = RemotePath("s3://speech/tokens/out")
        arguments = [
            "--codec",
            str(tiny_codec_dir),
            "--shard-cuts",
            "5",
            "--batch-seconds",
            "6",
            "--executor",
            "inline",
        ]
        words = ["tokenize", "s3://speech/audio", str(out), *arguments]
        process = subprocess.Popen([sys.executable, "-m", "slm.cli", *words], stderr=subprocess.PIPE, text=True)
        while process.poll() is None and not sizes_in(out / "work/receipts"):
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL and not (out / "dataset.json").exists()
        assert main(words) == 0, capsys.readouterr().err
        ours, theirs = remote_bytes(out), file_bytes(finished)
        for name in ("dataset.json", "dataset.copy.json"):  # they say where the input lies
            assert json.loads(ours.pop(name))["totals"] == json.loads(theirs.pop(name))["totals"]
        for name in (name for name in ours if name.startswith("shards/cuts")):  # and these
            ours[name], theirs[name] = (without_source(content[name]) for content in (ours, theirs))
        assert ours == theirs
        assert verify(out) == []
        assert main(["tokenize", str(audio_folder), "s3://no-such-bucket/out", *arguments]) == 2
        error = capsys.readouterr().err
        assert "no-such-bucket" in error and "bucket does not exist" in error
    finally:
        server.kill()
        refused, _ = server.communicate()
        fsspec.filesystem("s3").clear_instance_cache()
    assert {"GET", "PUT", "HEAD"} <= {line.split()[1] for line in refused.splitlines()}


def without_source(cuts):
    """Cuts without what says where their audio lies."""
    lines = [json.loads(line) for line in gzip.decompress(cuts).splitlines()]
    for line in lines:
        del line["recording"]["sources"]
    return lines
