"""`verify` finds a flipped bit in any file, whatever the checksums say of a wrongly written one, and says where."""

import gzip
import hashlib
import io
import json
import shutil
import tarfile

import numpy as np
import pytest

from pipelines.bulk.ownership import Part
from pipelines.format.description import content_checksum
from pipelines.tools.verify import Share, verify
from slm.cli import main
from tokenizer.errors import InputError

FILES = [
    "dataset.json",
    "dataset.copy.json",
    "index/wids.json",
    "index/codes.000001.npy",
    "index/codes.000001.tar.idx",
    "shards/cuts.000001.jsonl.gz",
    "shards/codes.000001.tar",
]


@pytest.fixture
def copied(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "out")


def test_a_sound_dataset(finished, capsys):
    assert verify(finished) == []
    assert main(["verify", str(finished)]) == 0
    assert "sound. 24 cuts" in capsys.readouterr().out


def test_a_dataset_of_a_codec_that_does_not_stream(audio_folder, whole_codec_dir, run, tmp_path):
    totals = run(audio_folder, tmp_path / "out", codec=str(whole_codec_dir))
    assert totals["cuts"] == 24 and verify(tmp_path / "out") == []


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("where", [0.0, 0.31, 0.77])
def test_a_flipped_bit_in_any_file(copied, name, where):
    content = bytearray((copied / name).read_bytes())
    content[int(where * len(content))] ^= 0x04
    (copied / name).write_bytes(content)
    problems = verify(copied)
    # Any flip in dataset.json may change a file's name in it, and so what is said of that file.
    assert name.startswith("dataset.") or all(problem.startswith((name, "shards/", "index/")) for problem in problems)
    assert any(problem.startswith(name) for problem in problems)


@pytest.mark.parametrize("name", [*FILES[2:], "quarantine.jsonl"])
def test_missing_files_and_files_of_another_size(copied, name):
    content = (copied / name).read_bytes()
    (copied / name).unlink()
    assert f"{name}: missing" in verify(copied)
    (copied / name).write_bytes(content + b"#")
    assert any(problem.startswith(f"{name}: {len(content) + 1} bytes") for problem in verify(copied))


def test_strange_files(copied):
    (copied / "shards/codes.000001.tar.idx").write_bytes(b"")
    assert verify(copied) == ["shards/codes.000001.tar.idx: not part of the dataset; remove it"]


def test_a_file_that_a_damaged_description_does_not_list_is_to_be_kept(copied):
    content = json.loads((copied / "dataset.json").read_text())
    del content["shards"][1]["files"]["shards/codes.000001.tar"]
    (copied / "dataset.json").write_text(json.dumps(content))
    problems = verify(copied)
    assert "dataset.json: its content does not match its checksum" in problems
    (found,) = [problem for problem in problems if problem.startswith("shards/codes.000001.tar: not part")]
    assert "keep it until `focalstream repair`" in found


def resign(out, shard, **changes):
    """Make dataset.json vouch for the shard's files as they are now, so that only their content can be at fault."""
    description = json.loads((out / "dataset.json").read_text())
    entry = description["shards"][shard]
    for name, recorded in entry["files"].items():
        content = (out / name).read_bytes()
        recorded.update(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    entry.update(changes)
    del description["checksum"]
    description["checksum"] = content_checksum(description)
    for name in ("dataset.json", "dataset.copy.json"):
        (out / name).write_text(json.dumps(description))


def rewrite_tar(path, change):
    with tarfile.open(path) as tar:
        members = [(member, tar.extractfile(member).read()) for member in tar]
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for member, data in change(members):
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def with_codes(members, row, codes):
    stream = io.BytesIO()
    np.save(stream, codes)
    members[2 * row] = (members[2 * row][0], stream.getvalue())
    return members


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda members: with_codes(members, 2, np.full(50, 256, np.uint16)), "outside the codebook of 256"),
        (lambda members: with_codes(members, 2, np.full(500, 3, np.uint16)), "500 tokens, but"),
        (lambda members: with_codes(members, 2, np.full(50, 3, np.int32)), "int32 of shape"),
        (lambda members: members[2:4] + members[:2] + members[4:], "its turn in the tar has"),
        (lambda members: members[:-2], "dataset.json says"),
        (lambda members: members[:-1], "cannot be read"),
        (lambda members: [members[1], members[0], *members[2:]], "not a pair"),
    ],
)
def test_wrong_content_with_right_checksums(copied, change, words):
    rewrite_tar(copied / "shards/codes.000000.tar", change)
    resign(copied, 0)
    problems = verify(copied)
    assert any(words in problem for problem in problems)
    assert all("000000" in problem for problem in problems)


def test_a_placeholder_that_differs_from_the_tar(copied):
    path = copied / "shards/cuts.000002.jsonl.gz"
    lines = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    lines[1]["custom"]["codes"]["array"]["shape"] = [1]
    lines[2]["custom"]["cut_id"] = "somebody else"
    path.write_bytes(gzip.compress("".join(json.dumps(line) + "\n" for line in lines).encode()))
    resign(copied, 2)
    problems = verify(copied)
    assert [problem.rpartition(": ")[2].split(",")[0] for problem in problems] == [
        "its codes placeholder differs from the JSON in the tar",
        f"stands for {lines[2]['recording']['id']}",
    ]


def test_totals_that_do_not_balance(copied):
    description = json.loads((copied / "dataset.json").read_text())
    description["totals"]["planned"] += 1
    description["totals"]["tokens"] += 7
    del description["checksum"]
    description["checksum"] = content_checksum(description)
    for name in ("dataset.json", "dataset.copy.json"):
        (copied / name).write_text(json.dumps(description))
    problems = verify(copied)
    assert len(problems) == 2 and all(problem.startswith("dataset.json: ") for problem in problems)
    assert "25 cuts planned, but 24 tokenized and 0 quarantined" in problems[1]


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("files", [], "files is list, expected a mapping"),
        ("shards", ["x"], "shard number 0: a key is missing or unknown"),
        ("shards", {}, "shards is dict, expected a list"),
        ("totals", [1], "totals is list, expected a mapping"),
        ("codec", {"name": "tiny"}, "codec: the key"),
    ],
)
def test_a_description_with_a_wrong_type(copied, key, value, words):
    description = json.loads((copied / "dataset.json").read_text())
    description[key] = value
    del description["checksum"]
    description["checksum"] = content_checksum(description)
    (copied / "dataset.json").write_text(json.dumps(description))
    assert any(words in problem for problem in verify(copied))


def test_a_cut_that_is_a_list(copied):
    path = copied / "shards/cuts.000000.jsonl.gz"
    lines = gzip.decompress(path.read_bytes()).splitlines(keepends=True)
    path.write_bytes(gzip.compress(b"".join([b"[1, 2]\n", *lines[1:]])))
    resign(copied, 0)
    assert any(problem.startswith("shards/cuts.000000.jsonl.gz: cannot be read") for problem in verify(copied))


def test_command_lists_problems(copied, capsys):
    (copied / "shards/codes.000001.tar").unlink()
    assert main(["verify", str(copied), "--json"]) == 1
    assert "shards/codes.000001.tar: missing" in json.loads(capsys.readouterr().out)["problems"]
    assert main(["verify", str(copied)]) == 1
    assert capsys.readouterr().out.rstrip().endswith("problems")


def test_no_dataset(tmp_path, capsys):
    with pytest.raises(InputError, match=r"holds no dataset\.json"):
        verify(tmp_path)
    assert main(["verify", str(tmp_path)]) == 2


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        '{"shard": 0}',
        '{"shard": [], "id": "a", "source": "", "reason": "r", "error": "", "detail": "", "attempts": 2}',
    ],
)
def test_a_damaged_quarantine_is_a_problem(copied, line):
    (copied / "quarantine.jsonl").write_text(line + "\n")
    assert any(problem.startswith("quarantine.jsonl: cannot be read") for problem in verify(copied))


def test_parts_samples_and_workers_together_read_what_one_process_reads(copied, monkeypatch):
    for shard in (1, 4):
        tar = copied / f"shards/codes.{shard:06d}.tar"
        tar.write_bytes(tar.read_bytes()[:-1])
    (copied / "shards/photo.jpg").write_text("mine")
    everything = verify(copied)
    assert sorted(verify(copied, Share(Part(1, 2))) + verify(copied, Share(Part(2, 2)))) == sorted(everything)
    assert not any("000001" in problem for problem in verify(copied, Share(sample=2)))  # the first and the last
    assert any("000004" in problem for problem in verify(copied, Share(sample=2)))
    monkeypatch.setattr("pipelines.tools.verify.SHARDS_A_TASK", 2)
    assert verify(copied, workers=2) == everything
