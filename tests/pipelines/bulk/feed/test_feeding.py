"""Whole runs by other ways of feeding the codec: the same tokens, whatever reads and whatever shares a batch."""

import json
import sys
import time

import numpy as np
import pytest

from pipelines.bulk import encoding as encoding_module
from pipelines.bulk.encoding import Encoding, encode_cuts
from pipelines.bulk.executors.inline import Inline
from pipelines.bulk.executors.local import Local
from pipelines.bulk.feed.buffers import SharedMemory
from pipelines.bulk.feed.decoders import DecoderLane
from pipelines.bulk.feed.processes import how_it_ended
from pipelines.bulk.feed.reading import ReaderDied, Readers, ThreadLane
from pipelines.bulk.ownership import Part
from pipelines.bulk.plan import Sharding
from pipelines.bulk.run import Job, tokenize
from pipelines.dataset.token_dataset import TokenDataset
from pipelines.sources.cuts import Selection
from tests.pipelines.bulk.test_encoding import Exact, alone, planned
from tokenizer.errors import InputError


@pytest.fixture
def shared_run(tiny_codec_dir):
    """shared_run(source, out, **job fields): shards of 3 cuts, of which 3 share batches."""

    def call(source, out, **fields):
        fields = {"executor": Inline(), **fields}
        return tokenize(
            Job(
                str(source),
                out,
                str(tiny_codec_dir),
                Sharding(cuts=3),
                Encoding(batch_seconds=6.0, batch_shards=3, long_rows=2),
                **fields,
            )
        )

    return call


@pytest.mark.slow
def test_the_same_bytes_by_decoders(finished, audio_folder, run, tmp_path, file_bytes):
    run(audio_folder, tmp_path / "out", decoders=2)
    assert file_bytes(tmp_path / "out") == file_bytes(finished)


class Nap:
    """A job that waits."""

    def run(self, reader, buffers):
        time.sleep(0.05)


def test_readers_are_added_while_they_wait():
    readers = Readers([lambda: ThreadLane([])] * 8, at_first=1)
    for future in [readers.submit(Nap()) for _ in range(40)]:
        future.result()
    readers.close()
    assert readers.count == 1 and readers.running > 3
    readers = Readers([lambda: ThreadLane([])] * 8, at_first=1)
    readers.submit(Nap()).result()  # nothing is left over that others could do
    readers.close()
    assert readers.running == 1


def test_the_same_bytes_by_more_readers(finished, audio_folder, run, tmp_path, file_bytes):
    run(audio_folder, tmp_path / "out", readers=5)
    assert file_bytes(tmp_path / "out") == file_bytes(finished)
    with pytest.raises(InputError, match="readers is 5 and decoders is 2"):
        run(audio_folder, tmp_path / "out", readers=5, decoders=2)


@pytest.mark.slow
def test_a_cut_that_kills_its_decoder_is_found_at_once(write_manifest, speech, run, tmp_path):
    """Lhotse runs the command of a "command" source, and here that kills the process it runs for."""
    manifest = write_manifest({f"cut-{i}": speech(i, 0.5 + i / 10) for i in range(4)})
    run(manifest, tmp_path / "whole")
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    lines[1]["recording"]["sources"][0].update(type="command", source="kill -SEGV $PPID")
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    selection = Selection(allow_commands=True)
    run(manifest, tmp_path / "out", decoders=1, selection=selection)  # in this process, which survives
    entry = json.loads((tmp_path / "out/quarantine.jsonl").read_text())
    assert (entry["id"], entry["reason"], entry["attempts"]) == ("cut-1", "killed its worker", 2)
    assert entry["detail"] == how_it_ended(-11)
    whole, survivors = TokenDataset(tmp_path / "whole"), TokenDataset(tmp_path / "out")
    for row, i in enumerate((0, 2, 3)):
        np.testing.assert_array_equal(survivors.codes(row), whole.codes(i))


def test_shards_that_share_batches_are_the_same_by_any_way(audio_folder, shared_run, tmp_path, file_bytes, monkeypatch):
    """In one go; in parts; and interrupted when some of them are done, which are then silent rows for the others."""
    shared_run(audio_folder, tmp_path / "whole")
    whole = file_bytes(tmp_path / "whole")
    for number in (1, 2):
        from pipelines.bulk.executors.slurm import ArrayTask

        shared_run(audio_folder, tmp_path / "parts", executor=ArrayTask(Part(number, 2), Inline()))
    assert file_bytes(tmp_path / "parts") == whole

    from pipelines.bulk import tasks

    store_shard = tasks.store_shard

    def interrupted(layout, made):
        if made.receipt.shard == 4:
            raise OSError("no space left")
        return store_shard(layout, made)

    monkeypatch.setattr(tasks, "store_shard", interrupted)
    with pytest.raises(OSError, match="no space"):
        shared_run(audio_folder, tmp_path / "out")
    monkeypatch.setattr(tasks, "store_shard", store_shard)
    receipts = sorted(path.stem for path in (tmp_path / "out/work/receipts").iterdir())
    assert receipts[:3] == ["000000", "000001", "000002"] and "000004" not in receipts
    shared_run(audio_folder, tmp_path / "out")
    assert file_bytes(tmp_path / "out") == whole


@pytest.mark.slow
def test_the_same_by_a_worker_process_with_a_decoder(audio_folder, shared_run, tmp_path, file_bytes):
    shared_run(audio_folder, tmp_path / "whole")
    shared_run(audio_folder, tmp_path / "out", executor=Local(1), decoders=1)
    assert file_bytes(tmp_path / "out") == file_bytes(tmp_path / "whole")


def test_long_recordings_side_by_side_equal_each_alone(write_manifest, speech, tiny_codec, monkeypatch, tmp_path):
    """Two rows, seven recordings, one of which breaks off: its row goes on with the next one."""
    monkeypatch.setattr(encoding_module, "LONG_SECONDS", 1.0)
    monkeypatch.setattr(encoding_module, "WINDOW_SECONDS", 0.5)
    waves = {f"cut-{i}": speech(40 + i, 0.7 + 0.61 * i) for i in range(7)}
    cuts = planned(write_manifest(waves))
    codec = Exact(tiny_codec)
    wanted = [alone(codec, cut) for cut in cuts]
    for rows in (1, 2, 4):
        outcomes = encode_cuts(cuts, codec, Encoding(long_rows=rows))
        for codes, expected in zip(outcomes, wanted, strict=True):
            np.testing.assert_array_equal(codes, expected)
    path = tmp_path / "audio/6.wav"
    path.write_bytes(path.read_bytes()[:100_000])
    done = []
    outcomes = encode_cuts(cuts, codec, Encoding(long_rows=2), done.append)
    assert outcomes[6].reason == "truncated" and outcomes[6].attempts == 2
    for codes, expected in zip(outcomes[:6], wanted, strict=False):
        np.testing.assert_array_equal(codes, expected)


def test_what_makes_no_sense_is_refused():
    for wrong, words in (
        ({"batch_shards": 0}, "batch_shards is 0"),
        ({"precision": "bf16"}, "for a GPU"),
        ({"precision": "int8", "device": "cuda"}, "expected one of fp32, tf32, bf16"),
    ):
        with pytest.raises(InputError, match=words):
            Encoding(**wrong)
    with pytest.raises(InputError, match="decoders is -1"):
        Job("in", "out", "small", decoders=-1)


def test_a_run_of_before_is_described_as_before():
    described = Encoding().to_dict()
    assert not {"batch_shards", "long_rows", "precision"} & set(described)
    new = Encoding(600.0, "cuda:1", 8, 60, "bf16")
    assert Encoding.from_dict(new.to_dict(), "cuda:1") == new
    assert Encoding.from_dict(described, "cpu") == Encoding()


class Nothing:
    """A job that its decoder does not live to do."""

    def after_death(self, ask):
        return ask(self)


@pytest.mark.slow
def test_a_decoder_that_dies_as_the_run_ends_is_not_waited_for():
    memory = SharedMemory(1, 10)
    lane = DecoderLane(memory)
    lane.close()
    with pytest.raises(ReaderDied, match="the run has ended"):
        lane.do(Nothing())
    memory.close()


class Allocating:
    """A job that takes and frees what reading a few cuts does. Its result: pages that the system gave for that."""

    def run(self, reader, buffers):
        import resource

        def faults():
            return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

        def take():
            return len([np.ones(160_000, np.float32) for _ in range(8)])  # 10 s each

        take()
        before = faults()
        for _ in range(20):
            take()
        return faults() - before


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="of glibc's malloc")
def test_a_decoder_uses_freed_memory_again():
    memory = SharedMemory(1, 10)
    lane = DecoderLane(memory)
    assert lane.do(Allocating()) < 1000  # 20 rounds of 8 arrays of 157 pages are 25,120
    lane.close()
    memory.close()
