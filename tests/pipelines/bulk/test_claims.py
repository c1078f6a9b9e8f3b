"""Parts that take over shards of others: each is done by one of them, also when some are slow, hang or are killed."""

import contextlib
import json
import shlex
import shutil
import subprocess
import sys
import threading
import time

import fsspec
import pytest

from pipelines.bulk import run as bulk_run
from pipelines.bulk import tasks
from pipelines.bulk.claims import Claims
from pipelines.bulk.executors.inline import Inline
from pipelines.bulk.ownership import Part
from pipelines.bulk.tasks import Task
from pipelines.format.layout import Layout
from pipelines.format.ledger import Receipt, shards_with_receipts, write_receipt
from pipelines.sources.cuts import Selection
from pipelines.storage import leases
from pipelines.storage.folders import RemotePath
from pipelines.storage.locks import is_flocked
from tokenizer.errors import InputError

SHARDS = 24


@pytest.mark.slow
def test_an_idle_part_takes_over_what_another_has_not_begun_and_later_what_it_held(
    write_manifest, speech, tiny_codec_dir, run, tmp_path, file_bytes, monkeypatch
):
    """Part 2 hangs in its first shard, and has read some more ahead. It is killed."""
    manifest, out = write_manifest({f"cut-{i}": speech(i, 0.3 + 0.1 * i) for i in range(SHARDS)}), tmp_path / "out"
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    audio = shlex.quote(str(tmp_path / "audio/1.wav"))
    waits = f"while [ ! -e {shlex.quote(str(tmp_path / 'go'))} ]; do sleep 0.1; done; cat {audio}"
    lines[1]["recording"]["sources"][0].update(type="command", source=waits)
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = {"shard_cuts": 1, "batch_seconds": 120.0, "selection": Selection(allow_commands=True)}
    command = ["tokenize", str(manifest), str(out), "--codec", str(tiny_codec_dir), "--executor", "inline"]
    command += ["--shard-cuts", "1", "--batch-seconds", "120", "--allow-commands", "--part", "2/2"]
    stored, store = [], tasks.store_shard

    def noted(layout, made):
        stored.append(made.receipt.shard)
        return store(layout, made)

    monkeypatch.setattr(tasks, "store_shard", noted)
    slow = subprocess.Popen([sys.executable, "-m", "slm.cli", *command], stderr=subprocess.DEVNULL)
    while len(list(out.glob("work/claims/*"))) < 3:  # it has read ahead
        assert slow.poll() is None
        time.sleep(0.05)
    run(manifest, out, part=Part(1, 2), **options)
    claimed = {int(claim.parent.name) for claim in out.glob("work/claims/*/claim") if is_flocked(claim)}
    assert 1 in claimed and len(claimed) < SHARDS / 2
    assert sorted(stored) == sorted(set(range(SHARDS)) - claimed)
    assert set(stored) == shards_with_receipts(Layout(out))
    slow.kill()
    slow.wait()
    (tmp_path / "go").touch()  # ends the shell, too, which outlives its process
    run(manifest, out, part=Part(1, 2), **options)
    assert sorted(stored) == list(range(SHARDS))  # each once, by one part
    run(manifest, tmp_path / "whole", **options)
    assert file_bytes(out) == file_bytes(tmp_path / "whole")


def test_a_part_by_itself_does_only_its_own(audio_folder, run, tmp_path):
    run(audio_folder, tmp_path / "out", part=Part(2, 3))
    run(audio_folder, tmp_path / "out", part=Part(2, 3))
    assert shards_with_receipts(Layout(tmp_path / "out")) == {1, 4}


def test_a_shard_of_a_part_whose_file_is_gone_is_done_again(audio_folder, finished, run, tmp_path, file_bytes):
    for number in (1, 2):
        run(audio_folder, tmp_path / "out", part=Part(number, 3))
    (tmp_path / "out/shards/codes.000003.tar").unlink()
    for number in (3, 1):
        run(audio_folder, tmp_path / "out", part=Part(number, 3))
    assert file_bytes(tmp_path / "out") == file_bytes(finished)


def test_a_part_does_nothing_again_while_another_finishes_the_dataset(
    audio_folder, finished, run, tmp_path, monkeypatch
):
    """Between the receipts, which it has read, and `dataset.json` no shard may change."""
    out = tmp_path / "out"
    for number in (1, 2):
        run(audio_folder, out, part=Part(number, 3))
    (out / "shards/codes.000003.tar").unlink()
    waits = bulk_run.once

    @contextlib.contextmanager
    def others_finish_first(layout, what, done):
        with waits(layout, what, done) as still_held:
            if what == "finish":
                shutil.copy(finished / "dataset.json", out)
            yield still_held

    monkeypatch.setattr(bulk_run, "once", others_finish_first)
    assert run(audio_folder, out, part=Part(1, 3))["cuts"] == 24
    assert not (out / "shards/codes.000003.tar").exists()


def test_a_part_whose_shards_others_have_done_meanwhile_has_no_error(audio_folder, finished, run, tmp_path, file_bytes):
    """Its workers may find no plan, because whoever finished the dataset has removed it."""

    class Slow(Inline):
        def run(self, *work):
            run(audio_folder, tmp_path / "out", part=Part(1, 2))
            raise InputError("a worker process does not see the plan there")

    assert run(audio_folder, tmp_path / "out", part=Part(2, 2), executor=Slow())["cuts"] == 24
    assert file_bytes(tmp_path / "out") == file_bytes(finished)


# ---- claims -----------------------------------------------------------------------------------------------------


@pytest.fixture(params=["disk", "memory"])
def layout(request, tmp_path, monkeypatch):
    monkeypatch.setattr(leases, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(leases, "LOOK_SECONDS", 0.02)
    files = fsspec.filesystem("memory")
    files.store.clear()
    (tmp_path / "out").mkdir()
    yield Layout(tmp_path / "out" if request.param == "disk" else RemotePath("memory://bucket/out"))
    files.store.clear()


def receipt(shard):
    return Receipt(shard, {}, 0, 0, 0.0, ())


def test_of_many_parts_one_gets_a_group(layout):
    parts = [Claims(layout, Part(number, 6), 2) for number in range(1, 7)]
    groups = [[Task(2 * group), Task(2 * group + 1)] for group in range(5)]
    granted, start = [], threading.Barrier(6)

    def take(claims):
        start.wait()
        for group in groups:
            granted.extend(task.shard for task in claims.take(group))

    threads = [threading.Thread(target=take, args=(claims,)) for claims in parts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(granted) == len(set(granted))
    ours, theirs = Claims(layout, Part(1, 6), 2), Claims(layout, Part(2, 6), 2)
    for claims in parts:
        claims.close()
        assert claims.take(groups[0]) == []  # also where a thread was still reading ahead
    assert ours.take(groups[0]) == groups[0] == ours.take(groups[0]) and theirs.take(groups[0]) == []
    ours.close()
    theirs.close()


def test_only_what_has_no_receipt_is_left_to_do(layout):
    ours, theirs = (Claims(layout, Part(number, 2), 3) for number in (1, 2))
    group = [Task(3), Task(4), Task(5)]
    write_receipt(layout, receipt(4))
    assert ours.take(group) == [group[0], group[2]]
    for shard in (3, 5):
        assert theirs.take(group) == []
        write_receipt(layout, receipt(shard))
        ours.done(shard)
    assert theirs.take(group) == []
    layout.write(layout.dataset, b"{}")  # and a run that ends removes the receipts
    (layout.receipts / "000003.json").unlink()
    assert theirs.take(group) == []
    theirs.close()


def test_what_is_left_is_found_from_the_end_and_only_in_parts_that_began(layout):
    layout.write(layout.work / "parts/1-of-3", b"")
    layout.write(layout.work / "parts/3-of-3.1", b"")
    claims = Claims(layout, Part(1, 3), 2)
    for shard in (0, 1, 5):
        write_receipt(layout, receipt(shard))
    left = claims.left_by_others(13, Task)  # groups 0, 3, 6 and 2, 5 of two shards, the last one of one
    assert [task.shard for task in left] == [12, 10, 11, 6, 7, 4]
    other = Claims(layout, Part(3, 3), 2)
    for shards in ((12,), (10, 11), (6, 7), (4,)):
        assert other.take([Task(shard) for shard in shards])
    assert claims.left_by_others(13, Task) == []
    other.close()


def test_claims_of_the_dead_behind_a_url(layout, monkeypatch):
    if not isinstance(layout.out, RemotePath):
        pytest.skip("on disk the lock of a dead process is free")
    monkeypatch.setattr(leases, "SILENCE_SECONDS", 2.0)  # only here: on a busy machine the living are silent, too
    layout.write(layout.work / "parts/1-of-2", b"")
    (layout.work / "claims/000000/claim").write_bytes(b'{"host": "gone", "process": 1, "lease": "dead", "beat": 7}')
    alive, ours = Claims(layout, Part(2, 2), 1), Claims(layout, Part(1, 2), 1)
    assert alive.take([Task(2)]) and ours.take([Task(0)]) == []
    write_receipt(layout, receipt(4))
    assert ours.left_by_others(5, Task) == [Task(0)]
    alive.close()
    ours.close()
