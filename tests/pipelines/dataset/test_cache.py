"""Datasets behind URLs: the index first, shards on demand, and nothing taken for whole that is not."""

from __future__ import annotations

from pathlib import Path

import fsspec
import numpy as np
import pytest

from pipelines.bulk.plan import Sharding
from pipelines.dataset.cache import MissingFile
from pipelines.dataset.token_dataset import TokenDataset
from pipelines.storage.folders import RemotePath
from pipelines.tools.rewrite import split
from tokenizer.errors import InputError

URL = "memory://bucket/tokens"


@pytest.fixture
def remote(finished):
    """fsspec's file system in memory, with `finished` at `URL`."""
    files = fsspec.filesystem("memory")
    for path in finished.rglob("*"):
        if path.is_file():
            files.pipe(f"/bucket/tokens/{path.relative_to(finished).as_posix()}", path.read_bytes())
    yield files
    files.rm("/bucket", recursive=True)


def names(cache: Path) -> set[str]:
    return {path.name for path in cache.rglob("*") if path.is_file()}


def test_the_index_comes_first_and_shards_when_they_are_read(remote, finished, tmp_path):
    ours, theirs = TokenDataset(finished), TokenDataset(URL, tmp_path / "cache")
    indexes = {f"codes.{i:06d}.npy" for i in range(5)}
    assert names(tmp_path) == {"dataset.json", *indexes}
    np.testing.assert_array_equal(theirs.lengths, ours.lengths)
    np.testing.assert_array_equal(theirs.codes(7), ours.codes(7))
    assert names(tmp_path) == {"dataset.json", *indexes, "codes.000001.tar"}
    assert theirs.cut_id(23) == ours.cut_id(23)
    np.testing.assert_array_equal(theirs.gather(np.arange(24)), ours.gather(np.arange(24)))
    assert {f"codes.{i:06d}.tar" for i in range(5)} < names(tmp_path)


def test_what_is_in_the_cache_is_not_read_again(remote, finished, tmp_path, monkeypatch):
    TokenDataset(URL, tmp_path).gather(np.arange(24))
    read = []
    real = RemotePath.read_bytes
    monkeypatch.setattr(RemotePath, "read_bytes", lambda place: (read.append(place.url), real(place))[1])
    TokenDataset(URL, tmp_path).gather(np.arange(24))
    assert read == [f"{URL}/dataset.json"]


def test_a_file_that_was_cut_short_in_the_cache_is_brought_again(remote, finished, tmp_path):
    TokenDataset(URL, tmp_path).gather(np.arange(24))
    paths = [path for path in tmp_path.rglob("*") if path.is_file()]
    contents = [path.read_bytes() for path in paths]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content[: len(content) // 2])
    theirs = TokenDataset(URL, tmp_path)
    np.testing.assert_array_equal(theirs.gather(np.arange(24)), TokenDataset(finished).gather(np.arange(24)))
    assert [path.read_bytes() for path in paths] == contents
    assert {path.suffix for path in paths} == {".json", ".npy", ".tar"}


def test_a_file_that_is_not_behind_the_url_is_named(remote, tmp_path):
    remote.rm("/bucket/tokens/shards/cuts.000003.jsonl.gz")
    with pytest.raises(MissingFile, match=r"tokens/shards/cuts\.000003\.jsonl\.gz: is not there.*verify"):
        list(TokenDataset(URL, tmp_path).cuts())


def test_file_urls_and_folders_beside_one_another(finished, tmp_path):
    both = TokenDataset([finished, f"file://{finished}"], tmp_path)
    np.testing.assert_array_equal(both.codes(5), both.codes(24 + 5))


def test_packed_files_are_preferred(remote, finished, tmp_path):
    split(finished, tmp_path / "out", {"all": 1.0}, "cut", Sharding(cuts=7, pack=True))
    remote.put(f"{tmp_path / 'out' / 'all'}/", "/bucket/packed/", recursive=True)
    theirs = TokenDataset("memory://bucket/packed", tmp_path / "cache")
    local = TokenDataset(tmp_path / "out" / "all")
    np.testing.assert_array_equal(theirs.gather(np.arange(24)), local.gather(np.arange(24)))
    assert not [name for name in names(tmp_path / "cache") if name.endswith(".tar")]


def test_another_dataset_at_the_same_url_has_a_folder_of_its_own(remote, tmp_path):
    TokenDataset(URL, tmp_path)
    content = remote.cat_file("/bucket/tokens/dataset.json")
    remote.pipe("/bucket/tokens/dataset.json", content.replace(b"{", b"{ ", 1))
    TokenDataset(URL, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_shard_that_is_not_what_dataset_json_says_is_refused_and_not_kept(remote, tmp_path):
    content = bytearray(remote.cat_file("/bucket/tokens/shards/codes.000001.tar"))
    content[700] ^= 1
    remote.pipe("/bucket/tokens/shards/codes.000001.tar", bytes(content))
    dataset = TokenDataset(URL, tmp_path)
    dataset.codes(0)
    with pytest.raises(InputError, match=r"shards/codes\.000001\.tar: \d+ bytes that are not those.*verify"):
        dataset.codes(5)
    assert "codes.000001.tar" not in names(tmp_path)


def test_bad_urls_are_refused(remote, tmp_path):
    with pytest.raises(InputError, match=r"memory://bucket/nothing: no dataset\.json there"):
        TokenDataset("memory://bucket/nothing", tmp_path)
    with pytest.raises(InputError, match=r"gopher://host/tokens/dataset\.json.*(cannot be read|refuses or fails)"):
        TokenDataset("gopher://host/tokens", tmp_path)
