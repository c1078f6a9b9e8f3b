"""`TokenDataset`: random access, several folders as one, and clear words about damage."""

import json
import pickle
import shutil

import numpy as np
import pytest

from pipelines.bulk.plan import Sharding
from pipelines.dataset.cache import MissingFile
from pipelines.dataset.token_dataset import TokenDataset
from pipelines.format.layout import Layout
from pipelines.tools.other_readers import lhotse_reader
from pipelines.tools.rewrite import split
from tokenizer.errors import InputError


def test_random_access_equals_reading_in_order(finished, audio_folder):
    dataset = TokenDataset(finished)
    in_order = [codes for _, codes in lhotse_reader(Layout(finished), [0, 1, 2, 3, 4])]
    assert len(dataset) == len(in_order) == 24
    assert dataset.lengths.dtype == np.int64 and dataset.lengths.tolist() == [len(codes) for codes in in_order]
    for i in np.random.default_rng(0).permutation(24):
        np.testing.assert_array_equal(dataset.codes(i), in_order[i])
        assert dataset.codes(i).dtype == np.uint16
    assert dataset.cut_id(0) == "speaker 0/take.00.wav" and dataset.cut_id(23) == "speaker 2/take.23.flac"
    assert (dataset.codebook_size, dataset.token_rate) == (256, 50.0)
    for i in (-1, 24):
        with pytest.raises(IndexError):
            dataset.codes(i)


@pytest.fixture(scope="session")
def packed(finished, tmp_path_factory):
    """`finished` again, in other shards, with packed files; do not change it in place."""
    out = tmp_path_factory.mktemp("packed")
    split(finished, out, {"all": 1.0}, "cut", Sharding(cuts=7, pack=True))
    return out / "all"


@pytest.mark.parametrize("form", ["tars", "packed", "both"])
def test_many_cuts_at_once_are_the_cuts_one_by_one(packed, finished, form, monkeypatch):
    monkeypatch.setattr("pipelines.dataset.token_dataset.MAPPED_SHARDS", 9)
    in_order = [codes for _, codes in lhotse_reader(Layout(packed), [0, 1, 2, 3])]
    dataset = TokenDataset(packed, packed=form != "tars")
    if form == "both":  # shards in either form in one dataset
        tars = TokenDataset(packed, packed=False)
        dataset._shards[2], dataset._packed[2] = tars._shards[2], False
        dataset._begins[14:21] = tars._begins[14:21]
    assert dataset.lengths.tolist() == [len(codes) for codes in in_order]
    random = np.random.default_rng(0)
    for before, after in ((0, 0), (1, 1), (3, 0), (0, 2)):
        cuts = random.integers(0, 24, 40)
        expected = np.concatenate([np.pad(in_order[cut], (before, after)) for cut in cuts])
        np.testing.assert_array_equal(dataset.gather(cuts, before, after), expected)
    assert dataset.codes(23).flags.writeable


def test_packed_files_alone_are_enough(packed, tmp_path):
    for name in ("dataset.json", "packed"):
        (shutil.copytree if (packed / name).is_dir() else shutil.copy)(packed / name, tmp_path / name)
    alone, whole = TokenDataset(tmp_path), TokenDataset(packed)
    everything = np.arange(24)
    np.testing.assert_array_equal(alone.gather(everything), whole.gather(everything))
    assert [alone.cut_id(i) for i in everything] == [whole.cut_id(i) for i in everything]
    with pytest.raises(InputError, match=r"codes\.000000\.npy cannot be read"):
        TokenDataset(tmp_path, packed=False)


def test_cuts_that_are_not_there_or_cannot_be_read_are_named(packed, tmp_path):
    alone = shutil.copytree(packed, tmp_path / "alone", ignore=shutil.ignore_patterns("shards", "index"))
    with pytest.raises(MissingFile, match=r"shards/cuts\.000000\.jsonl\.gz: no such file.*copy shards/cuts\.\*"):
        list(TokenDataset(alone).cuts())
    whole = shutil.copytree(packed, tmp_path / "whole")
    (whole / "shards" / "cuts.000002.jsonl.gz").unlink()
    (whole / "shards" / "cuts.000002.jsonl.gz").mkdir()
    found = TokenDataset(whole).cuts()
    assert len([next(found) for _ in range(14)]) == 14
    with pytest.raises(InputError, match=r"cuts\.000002\.jsonl\.gz: cannot be read \(Is a directory\)"):
        next(found)


def test_packed_files_that_were_never_made_are_refused(finished):
    with pytest.raises(InputError, match=r"has no packed files.*--pack"):
        TokenDataset(finished, packed=True)


def test_a_packed_file_of_other_cuts_is_named(packed, tmp_path):
    out = shutil.copytree(packed, tmp_path / "out")
    path = out / "packed" / "codes.000001.bits"
    content = bytearray(path.read_bytes())
    begin = content.index(b"}") + 1  # of the lengths: the first two swapped give as many bytes
    content[begin : begin + 8] = content[begin + 4 : begin + 8] + content[begin : begin + 4]
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"codes\.000001\.bits: 7 cuts.*not those of the index.*verify"):
        TokenDataset(out, packed=True).codes(8)


def test_a_token_outside_the_codebook_is_named_by_its_shard(finished, tmp_path):
    out = shutil.copytree(finished, tmp_path / "out")
    dataset = TokenDataset(out)
    tar = out / "shards" / "codes.000002.tar"
    content = bytearray(tar.read_bytes())
    content[int(dataset._begins[12]) + 1] = 1  # the high byte of a token: 256 and more
    tar.write_bytes(content)
    dataset.gather(np.array([3, 11, 13]))
    with pytest.raises(InputError, match=r"codes\.000002\.tar: token \d+ in cut 2 of the shard.*256.*verify"):
        dataset.gather(np.array([3, 12, 13]), before=1)


def test_an_index_that_points_beyond_its_tar_is_named(finished, tmp_path):
    out = shutil.copytree(finished, tmp_path / "out")
    path = out / "index" / "codes.000001.npy"
    rows = np.load(path)
    rows["tokens"][3] += 10**6
    np.save(path, rows)
    with pytest.raises(InputError, match=r"codes\.000001\.npy points beyond its shard"):
        TokenDataset(out)


def test_several_folders_are_one(finished):
    one, two = TokenDataset(finished), TokenDataset([finished, finished])
    assert len(two) == 48 and two.folder_begins == [0, 24, 48]
    np.testing.assert_array_equal(two.codes(24 + 7), one.codes(7))
    assert two.cut_id(24 + 7) == one.cut_id(7)


def test_more_shards_than_open_maps(finished, monkeypatch):
    monkeypatch.setattr("pipelines.dataset.token_dataset.MAPPED_SHARDS", 2)
    monkeypatch.setattr("pipelines.dataset.token_dataset.PARSED_SHARDS", 1)
    dataset, whole = TokenDataset(finished), TokenDataset(finished)
    for i in (0, 23, 11, 0, 6, 17, 23):
        assert dataset.cut_id(i) == whole.cut_id(i)
        np.testing.assert_array_equal(dataset.codes(i), whole.codes(i))
    assert len(dataset._maps) == 2


def test_pickling_does_not_carry_the_tars_along(finished):
    dataset = TokenDataset(finished)
    dataset.codes(0)
    copied = pickle.loads(pickle.dumps(dataset))
    assert not copied._maps
    np.testing.assert_array_equal(copied.codes(13), dataset.codes(13))


def test_other_codecs_are_refused(finished, tmp_path):
    other = shutil.copytree(finished, tmp_path / "other")
    description = json.loads((other / "dataset.json").read_text())
    description["codec"]["fingerprint"] = "e" * 64
    (other / "dataset.json").write_text(json.dumps(description))
    with pytest.raises(InputError, match=r"tokenized by codec eeee.*tokenize both with the same codec"):
        TokenDataset([finished, other])


def damaged(finished, tmp_path, name, content):
    out = shutil.copytree(finished, tmp_path / "damaged")
    if content is None:
        (out / name).unlink()
    else:
        (out / name).write_bytes(content)
    return out


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("dataset.json", None, "holds no dataset.json"),
        ("dataset.json", b"{", "is not JSON"),
        ("dataset.json", b"[]", "format and version"),
        ("dataset.json", b'{"format": "focalstream-tokens", "version": 1}', "lacks 'codec'"),
        ("dataset.json", b'{"format": "focalstream-tokens", "version": 99}', "99"),
        ("index/codes.000001.npy", None, "cannot be read"),
        ("index/codes.000001.npy", b"junk", "cannot be read"),
    ],
)
def test_damage_is_named_when_opening(finished, tmp_path, name, content, word):
    out = damaged(finished, tmp_path, name, content)
    with pytest.raises(InputError, match=word):
        TokenDataset(out)


def test_a_shard_whose_entry_lacks_its_tar_is_named(finished, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    content = json.loads((out / "dataset.json").read_text())
    del content["shards"][2]["files"]["shards/codes.000002.tar"]
    (out / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"shard 2 lists no file shards/codes\.000002\.tar.*focalstream repair"):
        TokenDataset(out)


def test_a_truncated_tar_is_named_when_read(finished, tmp_path):
    out = damaged(finished, tmp_path, "shards/codes.000001.tar", b"half")
    dataset = TokenDataset(out)
    dataset.codes(4)
    with pytest.raises(InputError, match=r"codes\.000001\.tar: 4 bytes, but dataset\.json says \d+.*verify"):
        dataset.codes(5)


def test_no_folder_at_all():
    with pytest.raises(InputError, match="no tokenized dataset"):
        TokenDataset([])


def test_an_unfinished_run_says_so(tmp_path):
    (tmp_path / "work").mkdir()
    with pytest.raises(InputError, match="has begun there but not finished"):
        TokenDataset(tmp_path)
