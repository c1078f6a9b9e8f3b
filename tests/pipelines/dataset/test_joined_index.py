"""Large datasets: one kept index, the same dataset; arrays that are made once."""

from __future__ import annotations

import shutil
import threading

import numpy as np
import pytest

import pipelines.dataset.joined_index as joined_index
import pipelines.dataset.open_files as open_files
import pipelines.dataset.token_dataset as token_dataset
from pipelines.dataset.kept import kept_arrays
from pipelines.dataset.token_dataset import TokenDataset
from tokenizer.errors import InputError


@pytest.fixture
def large(monkeypatch, tmp_path):
    """Every dataset counts as large; the cache is in tmp_path."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(joined_index, "LEAST_BYTES", 0)
    monkeypatch.setattr(token_dataset, "KEPT_FROM", 0)
    return tmp_path / "cache/focalstream/indexes"


def test_a_kept_index_makes_the_same_dataset(finished, large, monkeypatch):
    with monkeypatch.context() as small:
        small.setattr(joined_index, "LEAST_BYTES", 1 << 40)
        plain = TokenDataset([finished, finished])
    monkeypatch.setattr(token_dataset, "_shards", token_dataset._shards)
    for number in range(2):  # made, then found
        dataset = TokenDataset([finished, finished])
        np.testing.assert_array_equal(dataset.lengths, plain.lengths)
        assert dataset.folder_begins == plain.folder_begins and dataset.codec == plain.codec
        everything = np.random.default_rng(number).permutation(len(plain))
        np.testing.assert_array_equal(dataset.gather(everything), plain.gather(everything))
        assert dataset.cut_id(8) == plain.cut_id(8) and list(dataset.cuts()) == list(plain.cuts())
        monkeypatch.setattr(token_dataset, "_shards", None)  # the second time no index of a shard is read
    assert [path.name.partition("-")[0] for path in large.iterdir() if path.is_dir()] == ["joined"]


def test_tars_beyond_the_maps_are_read_the_same(finished, large, monkeypatch):
    plain = TokenDataset([finished, finished])
    everything = np.random.default_rng(5).permutation(len(plain))
    expected = plain.gather(everything)
    monkeypatch.setattr(token_dataset, "MAPPED_SHARDS", 2)
    dataset = TokenDataset([finished, finished])
    for _ in range(2):
        np.testing.assert_array_equal(dataset.gather(everything), expected)
        assert len(dataset._maps) == 2


def test_a_damaged_tar_beyond_the_maps_is_named(finished, large, tmp_path, monkeypatch):
    monkeypatch.setattr(token_dataset, "MAPPED_SHARDS", 1)
    shutil.copytree(finished, tmp_path / "other")
    dataset = TokenDataset(tmp_path / "other")
    dataset.codes(0)  # this shard is mapped
    tar = sorted((tmp_path / "other/shards").glob("*.tar"))[-1]
    tar.write_bytes(tar.read_bytes()[:-512])
    with pytest.raises(InputError, match=rf"{tar.name}: \d+ bytes, but dataset.json says"):
        dataset.codes(len(dataset) - 1)


def test_other_content_has_another_index(finished, large, tmp_path):
    TokenDataset(finished)
    (tmp_path / "other").mkdir()
    for part in ("shards", "index"):
        (tmp_path / "other" / part).symlink_to(finished / part)
    text = (finished / "dataset.json").read_text()
    (tmp_path / "other/dataset.json").write_text(text + " ")
    TokenDataset(tmp_path / "other")
    assert len(list(large.glob("joined-*"))) == 2


def test_damage_is_named_while_the_index_is_made_and_nothing_is_kept(finished, large, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other/shards").symlink_to(finished / "shards")
    (tmp_path / "other/dataset.json").symlink_to(finished / "dataset.json")
    with pytest.raises(InputError, match=r"codes\.000000\.npy cannot be read"):
        TokenDataset(tmp_path / "other")
    assert not list(large.glob("joined-*"))


def test_arrays_are_made_once_by_many(large):
    made, found = [], []

    def make() -> dict[str, np.ndarray]:
        made.append(1)
        return {"numbers": np.arange(5), "none": np.zeros(0, np.int64)}

    threads = [threading.Thread(target=lambda: found.append(kept_arrays("key", make))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1 and all(arrays["numbers"].tolist() == [0, 1, 2, 3, 4] for arrays in found)
    assert all(len(arrays["none"]) == 0 for arrays in found)
    file = large / "key/numbers.npy"
    file.write_bytes(file.read_bytes()[:-8])
    assert kept_arrays("key", make)["numbers"].tolist() == [0, 1, 2, 3, 4] and len(made) == 2


def test_without_a_place_each_process_makes_its_own(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert kept_arrays("key", lambda: {"a": np.arange(3)})["a"].tolist() == [0, 1, 2]


def test_what_is_read_from_the_cuts_is_kept_for_large_datasets(finished, large, monkeypatch):
    dataset = TokenDataset(finished)
    assert dataset.kept("texts", lambda: {"a": np.arange(3)})["a"].tolist() == [0, 1, 2]
    assert dataset.kept("texts", dict)["a"].tolist() == [0, 1, 2]
    monkeypatch.setattr(token_dataset, "KEPT_FROM", 1 << 40)
    assert dataset.kept("texts", dict) == {}


def test_the_soft_limit_of_files_is_raised():
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(1024, before[1]), before[1]))
        most = open_files.most_mapped()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        assert soft == min(hard, open_files.MOST_MAPPED + open_files.FILES_LEFT) and 0 < most <= soft
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_threads_read_one_dataset(finished, monkeypatch):
    monkeypatch.setattr(token_dataset, "MAPPED_SHARDS", 1)
    dataset, errors = TokenDataset(finished), []
    expected = [dataset.codes(i) for i in range(len(dataset))]

    def read(seed: int) -> None:
        for i in np.random.default_rng(seed).integers(0, len(dataset), 200):
            if not np.array_equal(dataset.codes(int(i)), expected[i]):
                errors.append(i)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
