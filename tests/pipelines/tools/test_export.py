"""What `export-dataset` writes holds the same codes when others' readers open it."""

import json
import re
import shutil
import struct
from pathlib import Path

import fsspec
import numpy as np
import pytest
import yaml

from pipelines.dataset.token_dataset import TokenDataset
from slm.cli import main
from slm.vocabulary import BOS, EOS, FIRST_CODE


@pytest.fixture
def dataset(finished):
    return TokenDataset(finished)


def test_parquet_for_load_dataset(finished, dataset, tmp_path, capsys, monkeypatch):
    datasets = pytest.importorskip("datasets")
    assert main(["export-dataset", str(finished), str(tmp_path / "hub"), "--split", "dev"]) == 0
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    rows = datasets.load_dataset(str(tmp_path / "hub"), split="dev", streaming=True)
    check_rows(list(rows), dataset)
    assert main(["export-dataset", str(finished), str(tmp_path / "hub")]) == 2
    assert "is there already" in capsys.readouterr().err


def test_arrow_for_load_from_disk(finished, dataset, tmp_path):
    datasets = pytest.importorskip("datasets")
    assert main(["export-dataset", str(finished), str(tmp_path / "disk"), "--format", "arrow", "--split", "dev"]) == 0
    found = datasets.load_from_disk(str(tmp_path / "disk"))
    check_rows(list(found), dataset)
    assert str(found.split) == "dev" and found.features["codes"].feature.dtype == "uint16"
    again = found.select(range(5)).map(lambda row: {"first": row["codes"][0]})
    again.save_to_disk(str(tmp_path / "again"))
    assert datasets.load_from_disk(str(tmp_path / "again"))["first"] == [int(dataset.codes(i)[0]) for i in range(5)]


def test_a_dry_run_lists_what_an_upload_would_make(finished, tmp_path, capsys):
    pytest.importorskip("pyarrow")
    assert main(["export-dataset", str(finished), str(tmp_path / "hub"), "--push", "me/tokens", "--dry-run"]) == 0
    said = capsys.readouterr().out.partition("would upload to dataset me/tokens: 7 files")[2]
    assert "  README.md\n" in said  # with the repository's name in it
    for path in (path for path in (tmp_path / "hub").rglob("*.*") if path.is_file() and path.name != "README.md"):
        assert f" {path.stat().st_size:,}  {path.relative_to(tmp_path / 'hub').as_posix()}\n" in said
    head = yaml.safe_load((tmp_path / "hub/README.md").read_text().split("---")[1])
    assert head["configs"][0]["data_files"] == [{"split": "train", "path": "data/train-*.parquet"}]
    assert head["size_categories"] == ["n<1K"]
    assert len(list((tmp_path / "hub").glob(head["configs"][0]["data_files"][0]["path"]))) == 5


@pytest.mark.parametrize("kind", ["parquet", "arrow", "megatron"])
def test_out_may_be_a_url(finished, tmp_path, capsys, kind):
    pytest.importorskip("pyarrow")
    files = fsspec.filesystem("memory")
    files.store.clear()
    out = f"memory://exports/{kind}"
    command = ["export-dataset", str(finished), "--format", kind]
    assert main([*command, str(tmp_path / "disk")]) == 0
    assert main([*command, out]) == 0
    written = {path: files.cat_file(path) for path in files.find(out)}
    local = [path for path in (tmp_path / "disk").rglob("*") if path.is_file()]
    assert written == {f"/exports/{kind}/{path.relative_to(tmp_path / 'disk')}": path.read_bytes() for path in local}
    assert main([*command, out]) == 2
    assert "is there already" in capsys.readouterr().err


def test_parquet_at_a_url_is_read_as_the_command_says(finished, dataset, tmp_path, capsys, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    fsspec.filesystem("memory").store.clear()
    assert main(["export-dataset", str(finished), "memory://exports/read"]) == 0
    said = re.search(r"datasets\.load_dataset\('(\w+)', data_files='(.+)'\)", capsys.readouterr().out)
    check_rows(list(datasets.load_dataset(said[1], data_files=said[2], split="train", streaming=True)), dataset)


@pytest.mark.parametrize("error", [PermissionError("no more"), KeyboardInterrupt()], ids=["refused", "interrupted"])
def test_nothing_stays_of_an_upload_that_fails(finished, capsys, monkeypatch, error):
    pytest.importorskip("pyarrow")
    files = fsspec.filesystem("memory")
    files.store.clear()
    put, name = type(files).put_file, type(error).__name__  # a store in memory keeps the folder that was emptied

    def failing(self, local, remote, **options):
        if remote.endswith("codec.json"):
            raise error
        put(self, local, remote, **options)

    monkeypatch.setattr(type(files), "put_file", failing)
    status = main(["export-dataset", str(finished), f"memory://exports/{name}"])
    said = capsys.readouterr().err
    if isinstance(error, KeyboardInterrupt):
        assert status == 130
    else:
        assert status == 2 and "cannot be written (PermissionError: no more)" in said
    assert not files.find(f"/exports/{name}")


def check_rows(rows, dataset):
    assert len(rows) == len(dataset) == 24
    for i, row in enumerate(rows):
        assert row["id"] == dataset.cut_id(i)
        np.testing.assert_array_equal(row["codes"], dataset.codes(i))
        assert json.loads(row["cut"])["duration"] == row["seconds"]


def indexed_documents(path):
    """Every document of a Megatron indexed dataset: a reader by the description of the format, one field at a time."""
    with open(f"{path}.idx", "rb") as file:
        assert file.read(9) == b"MMIDIDX\x00\x00"
        assert struct.unpack("<Q", file.read(8)) == (1,)
        kind = {4: "<i4", 8: "<u2"}[file.read(1)[0]]
        sequences, bounds = struct.unpack("<QQ", file.read(16))
        lengths = struct.unpack(f"<{sequences}i", file.read(4 * sequences))
        begins = struct.unpack(f"<{sequences}q", file.read(8 * sequences))
        ends = struct.unpack(f"<{bounds}q", file.read(8 * bounds))
        assert not file.read()
    assert ends == tuple(range(sequences + 1))
    tokens = Path(f"{path}.bin").read_bytes()
    assert len(tokens) == sum(lengths) * np.dtype(kind).itemsize
    return [np.frombuffer(tokens, kind, length, begin) for length, begin in zip(lengths, begins, strict=True)]


def megatron_documents(path):
    indexed = pytest.importorskip("megatron.core.datasets.indexed_dataset")  # pip install --no-deps megatron-core
    found = indexed.IndexedDataset(str(path))
    assert len(found.document_indices) == len(found) + 1
    return [found[i].copy() for i in range(len(found))]  # its arrays end with it


@pytest.mark.parametrize("read", [indexed_documents, megatron_documents])
@pytest.mark.parametrize("options", [[], ["--first-code", "65500", "--begin", "-1", "--end", "7"]])
def test_megatron_indexed(finished, dataset, tmp_path, read, options):
    assert main(["export-dataset", str(finished), str(tmp_path / "m"), "--format", "megatron", *options]) == 0
    documents = read(tmp_path / "m/tokens")
    assert len(documents) == 24
    first, begin, end = (65500, [], [7]) if options else (FIRST_CODE, [BOS], [EOS])
    for i, document in enumerate(documents):
        assert document.dtype == (np.int32 if options else np.uint16)
        assert document.tolist() == [*begin, *(dataset.codes(i).astype(int) + first).tolist(), *end]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--format", "megatron", "--split", "dev"], "--split: an indexed dataset has none"),
        (["--end", "3"], "--end: is for --format megatron"),
        (["--format", "megatron", "--first-code", "-4"], "first_code is -4"),
        (["--format", "arrow", "--split", "a/b"], "the split is named 'a/b'"),
        (["--format", "arrow", "--push", "me/tokens"], "--push: the Hub reads Parquet"),
    ],
)
def test_options_that_do_not_fit(finished, tmp_path, capsys, options, words):
    assert main(["export-dataset", str(finished), str(tmp_path / "out"), *options]) == 2
    assert words in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["parquet", "arrow", "megatron"])
def test_damage_is_found_before_anything_is_left(finished, tmp_path, capsys, kind):
    damaged = shutil.copytree(finished, tmp_path / "damaged")
    tar = damaged / "shards/codes.000001.tar"
    tar.write_bytes(tar.read_bytes()[:-1] + b"x")
    assert main(["export-dataset", str(damaged), str(tmp_path / "out"), "--format", kind]) == 2
    assert "shard 1 is damaged" in capsys.readouterr().err
    described = damaged / "dataset.json"
    described.write_text(re.sub('"cuts": 24', '"cuts": 42', described.read_text(), count=1))
    assert main(["export-dataset", str(damaged), str(tmp_path / "out"), "--format", kind]) == 2
    assert "does not match its checksum" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["damaged"]
