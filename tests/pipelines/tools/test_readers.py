"""Lhotse, webdataset and Hugging Face `datasets` open the same tar and read the same codes."""

import itertools
import json
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
from lhotse import CutSet
from lhotse.supervision import AlignmentItem

from pipelines.dataset.token_dataset import TokenDataset
from pipelines.format.layout import Layout
from pipelines.format.member_ids import member_id
from pipelines.tools.other_readers import datasets_reader, lhotse_reader, webdataset_reader


@pytest.fixture
def nasty(write_manifest, speech, run, tmp_path, nasty_ids):
    """A dataset whose ids break naive member names, with cuts of lengths that do not fill their last token."""
    waves = {cut_id: speech(i, 0.3 + 0.0371 * i) for i, cut_id in enumerate(nasty_ids)}
    assert run(write_manifest(waves), tmp_path / "out")["cuts"] == len(nasty_ids)
    return tmp_path / "out"


@pytest.mark.parametrize("reader", [lhotse_reader, webdataset_reader, datasets_reader])
def test_readers_see_every_cut_and_all_its_codes(nasty, nasty_ids, reader):
    if reader is datasets_reader:
        pytest.importorskip("datasets")
    ours = TokenDataset(nasty)
    theirs = list(reader(Layout(nasty), [0, 1, 2, 3]))
    assert [member for member, _ in theirs] == [member_id(cut_id) for cut_id in nasty_ids]
    for i, (_, codes) in enumerate(theirs):
        assert codes.dtype == np.uint16
        np.testing.assert_array_equal(codes, ours.codes(i))


def test_lhotse_opens_the_folder_and_finds_everything_a_cut_carried(nasty, nasty_ids, speech):
    cuts = list(CutSet.from_shar(in_dir=nasty / "shards"))
    assert [cut.custom["cut_id"] for cut in cuts] == nasty_ids
    for i, cut in enumerate(cuts):
        (supervision,) = cut.supervisions
        assert (supervision.text, supervision.speaker) == ("some words", "anna")
        assert len(cut.load_codes()) == -(-cut.num_samples // 320)
        np.testing.assert_array_equal(cut.load_audio()[0], speech(i, 0.3 + 0.0371 * i))


def test_lhotse_slices_codes_with_the_cut(write_manifest, speech, run, tmp_path):
    manifest = write_manifest({"a": speech(0, 5.0)})
    line = {**json.loads(manifest.read_text()), "start": 1.0, "duration": 3.0, "supervisions": []}
    manifest.write_text(json.dumps(line) + "\n")
    run(manifest, tmp_path / "out")
    (cut,) = CutSet.from_shar(in_dir=tmp_path / "out/shards")
    codes = cut.load_codes()
    assert (cut.start, len(codes)) == (1.0, 150)
    np.testing.assert_array_equal(cut.truncate(offset=0.5, duration=1.0).load_codes(), codes[25:75])


def test_mixes_keep_their_tracks_and_words(write_manifest, speech, run, tmp_path):
    first, second = CutSet.from_file(write_manifest({"a": speech(0, 1.0), "b": speech(1, 1.5)}))
    CutSet.from_cuts([first.append(second).with_id("joined"), first]).to_file(tmp_path / "mixed.jsonl")
    run(tmp_path / "mixed.jsonl", tmp_path / "out")
    mix, plain = CutSet.from_shar(in_dir=tmp_path / "out/shards")
    assert len(mix.load_codes()) == 125 and len(plain.load_codes()) == 50
    assert [(supervision.start, supervision.text) for supervision in mix.supervisions] == [
        (0.0, "some words"),
        (1.0, "some words"),
    ]
    assert [track["cut"]["id"] for track in mix.custom["tracks"]] == ["a", "b"]


def test_word_times_stay_with_their_cuts_and_in_a_mix_count_from_its_start(write_manifest, speech, run, tmp_path):
    """Lhotse's count from the start of the recording, wherever the cut begins in it."""
    cuts = list(CutSet.from_file(write_manifest({"a": speech(0, 1.0), "b": speech(1, 2.0)})))
    for cut in cuts:
        words = [AlignmentItem("some", 0.55, 0.1, 0.9), AlignmentItem("words", 0.7, 0.2)]
        cut.supervisions = [cut.supervisions[0].with_alignment("word", words)]
    part = cuts[1].truncate(offset=0.5, duration=1.25, preserve_id=True)
    CutSet.from_cuts([part, cuts[0].append(part).with_id("joined")]).to_file(tmp_path / "aligned.jsonl")
    run(tmp_path / "aligned.jsonl", tmp_path / "out")
    plain, mix = CutSet.from_shar(in_dir=tmp_path / "out/shards")
    assert plain.start == 0.5 and plain.supervisions[0].alignment == part.supervisions[0].alignment
    found = [[(item.symbol, item.start) for item in said.alignment["word"]] for said in mix.supervisions]
    assert found == [[("some", 0.55), ("words", 0.7)], [("some", 1.05), ("words", 1.2)]]
    assert mix.supervisions[0].alignment["word"][0] == AlignmentItem("some", 0.55, 0.1, 0.9)


def test_multichannel_cuts_stay_multichannel(finished):
    cuts = list(CutSet.from_shar(in_dir=finished / "shards"))
    assert {type(cut).__name__ for cut in cuts} == {"MonoCut", "MultiCut"}


def test_lhotse_index_has_the_offset_of_every_pair(finished):
    layout = Layout(finished)
    offsets = np.fromfile(layout.lhotse_index(1), "<u8")
    with tarfile.open(layout.codes_tar(1)) as tar:
        assert offsets[:-1].tolist() == [member.offset for member in tar.getmembers()[::2]]
    assert offsets[-1] == layout.codes_tar(1).stat().st_size


def test_wids_lists_the_shards_relative_to_itself(finished):
    layout = Layout(finished)
    shards = json.loads(layout.wids.read_text())["shardlist"]
    assert [shard["nsamples"] for shard in shards] == [5, 5, 5, 5, 4]
    for shard in shards:
        assert (layout.wids.parent / shard["url"]).stat().st_size == shard["filesize"]


def test_members_have_no_owner_and_no_time(finished):
    with tarfile.open(Layout(finished).codes_tar(0)) as tar:
        for member in tar:
            assert (member.mtime, member.uid, member.gid, member.uname, member.mode) == (0, 0, 0, "", 0o644)


@pytest.mark.parametrize("reader", [lhotse_reader, webdataset_reader, datasets_reader])
def test_folders_with_odd_names(write_manifest, speech, run, tmp_path, reader):
    if reader is datasets_reader:
        pytest.importorskip("datasets")
    out = tmp_path / "a [b] {c,d} *e"
    run(write_manifest({"cut": speech(0, 1.0)}), out)
    assert [(member, len(codes)) for member, codes in reader(Layout(out), [0])] == [("cut", 50)]


def test_the_webdataset_pipeline_of_the_manual_packs_every_document(nasty):
    """The code as docs/language-model.md has it, but for the last lines that show its use."""
    manual = Path(__file__).parents[3] / "docs" / "language-model.md"
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", manual.read_text(), re.S) if "wds." in block)
    namespace = {}
    exec(code[: code.index("\nfor tokens in")], namespace)
    batches = list(namespace["webdataset_batches"](nasty, rows=2, row_tokens=11))
    assert len(batches) > 20 and all(batch.shape == (2, 12) and batch.dtype == np.int64 for batch in batches)
    rows = np.concatenate(batches)
    np.testing.assert_array_equal(rows[1:, 0], rows[:-1, -1])
    stream = [*rows[:, :-1].ravel().tolist(), int(rows[-1, -1])]
    dataset = TokenDataset(nasty)
    documents = {(1, *(dataset.codes(i).astype(int) + 16).tolist(), 2) for i in range(len(dataset))}
    begins = [at for at, token in enumerate(stream) if token == 1]
    seen = {tuple(stream[a:b]) for a, b in itertools.pairwise(begins)}
    assert begins[0] == 0 and seen <= documents
    # Only what is left after the last full batch is missing: less than a batch and the document cut there.
    assert len(stream) > sum(map(len, documents)) - 2 * 11 - 1
