"""`TokenDataset`: random access, several folders as one, and clear words about damage."""

import json
import pickle
import shutil

import numpy as np
import pytest

from pipelines.dataset import TokenDataset
from pipelines.layout import Layout
from pipelines.readers import lhotse_reader
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


def test_several_folders_are_one(finished):
    one, two = TokenDataset(finished), TokenDataset([finished, finished])
    assert len(two) == 48
    np.testing.assert_array_equal(two.codes(24 + 7), one.codes(7))
    assert two.cut_id(24 + 7) == one.cut_id(7)


def test_more_shards_than_open_maps(finished, monkeypatch):
    monkeypatch.setattr("pipelines.dataset.MAPPED_TARS", 2)
    monkeypatch.setattr("pipelines.dataset.PARSED_SHARDS", 1)
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
        ("dataset.json", b'{"format": "focalstream-tokens", "version": 99}', "99"),
        ("index/codes.000001.npy", None, "cannot be read"),
        ("index/codes.000001.npy", b"junk", "cannot be read"),
    ],
)
def test_damage_is_named_when_opening(finished, tmp_path, name, content, word):
    out = damaged(finished, tmp_path, name, content)
    with pytest.raises(InputError, match=word):
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
