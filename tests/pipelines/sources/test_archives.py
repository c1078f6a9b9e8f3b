"""Audio in WebDataset tars, Parquet of Hugging Face and NeMo's sets gives the tokens of the same audio in files."""

import contextlib
import io
import json
import tarfile

import fsspec
import numpy as np
import pyarrow
import pytest
import soundfile
from pyarrow import parquet

from pipelines.dataset.token_dataset import TokenDataset
from pipelines.format.layout import Layout
from pipelines.format.shards import read_cuts
from pipelines.sources.manifests import content_digest, find_inputs
from pipelines.sources.manifests import read_cuts as source_cuts
from tests.pipelines.storage.hub_stand_in import hub_stand_in
from tests.pipelines.storage.slow_s3 import slow_s3
from tokenizer.errors import InputError


@pytest.fixture
def sounds(speech):
    """{name: bytes} of audio files, 0.5 to 1.2 s, of several rates."""
    found = {}
    for i in range(6):
        buffer, rate = io.BytesIO(), (16000, 24000, 48000)[i % 3]
        soundfile.write(buffer, speech(i, 0.5 + i / 8, rate), rate, format=("WAV", "FLAC")[i % 2], subtype="PCM_16")
        found[f"s{i}.{('wav', 'flac')[i % 2]}"] = buffer.getvalue()
    return found


@pytest.fixture
def plain(sounds, run, tmp_path):
    """{name: codes} of the sounds as files in a folder."""
    (tmp_path / "files").mkdir()
    for name, data in sounds.items():
        (tmp_path / "files" / name).write_bytes(data)
    run(tmp_path / "files", tmp_path / "plain")
    dataset = TokenDataset(tmp_path / "plain")
    return {dataset.cut_id(i): dataset.codes(i) for i in range(len(dataset))}


def write_tar(path, members):
    path.parent.mkdir(exist_ok=True, parents=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def written(out):
    """(codes by cut id, cut by cut id, {id: (reason, detail)} of the quarantine) of a finished dataset."""
    layout, dataset = Layout(out), TokenDataset(out)
    codes = {dataset.cut_id(i): dataset.codes(i) for i in range(len(dataset))}
    cuts = {cut["custom"]["cut_id"]: cut for path in sorted(layout.shards.glob("cuts.*")) for cut in read_cuts(path)}
    failed = [json.loads(line) for line in layout.quarantine.read_text().splitlines()]
    return codes, cuts, {line["id"]: (line["reason"], line["detail"]) for line in failed}


def test_webdataset(sounds, plain, run, tmp_path):
    members = []
    for i, (name, data) in enumerate(sounds.items()):
        about = {"speaker": f"p{i}", "language": "en", "codes": [1, 2], "text": "of json"}
        members.append((f"./a b/{name}", data))
        members.append((f"./a b/s{i}.json", json.dumps(about).encode()))
        members += [(f"./a b/s{i}.txt", "größe\n".encode())] if i % 2 else []
    members += [("only.txt", b"no audio"), ("._s0.wav", b"of macOS"), ("bad.wav", b"not audio"), ("worse.wav", b"")]
    members += [("torn.wav", sounds["s0.wav"]), ("torn.json", b'{"text": ')]
    write_tar(tmp_path / "in/x.000.tar", members)
    totals = run(tmp_path / "in", tmp_path / "out")
    assert (totals["cuts"], totals["quarantined"]) == (6, 3)
    codes, cuts, failed = written(tmp_path / "out")
    for i, name in enumerate(sounds):
        np.testing.assert_array_equal(codes[f"x.000/a b/s{i}"], plain[name])
        cut = cuts[f"x.000/a b/s{i}"]
        (said,) = cut["supervisions"]
        text = "größe" if i % 2 else "of json"
        assert (said["text"], said["speaker"], said["language"], said["start"]) == (text, f"p{i}", "en", 0.0)
        assert said["duration"] == cut["duration"] and cut["custom"]["input_codes"] == [1, 2]
    assert failed["x.000/bad"][0] == "unreadable" and failed["x.000/worse"][0] == "zero length"
    assert failed["x.000/torn"][0] == "unreadable" and "'torn.json' in it is not JSON" in failed["x.000/torn"][1]


@pytest.fixture(params=["memory", "s3", "hf"])
def put(request):
    """put({path: bytes}) -> the URL of a folder with these files: in memory, or on a server on this machine."""
    with contextlib.ExitStack() as stack:

        def call(files):
            if request.param == "hf":
                return stack.enter_context(hub_stand_in(files))
            if request.param == "s3":
                pytest.importorskip("moto", reason="needs moto[server] and s3fs")
                pytest.importorskip("s3fs", reason="needs moto[server] and s3fs")
                stack.enter_context(slow_s3(0.0, bucket="archives"))
            store = fsspec.filesystem(request.param)
            for name, data in files.items():
                store.pipe_file(f"{request.param}://archives/{name}", data)
            return f"{request.param}://archives"

        yield call


def write_archives(sounds, folder):
    """The sounds as WebDataset `web`, NeMo's `nemo` and Parquet `hub`. Returns {path below the folder: bytes}."""
    write_tar(folder / "web/x.tar", sounds.items())
    write_tar(folder / "nemo/audio_0.tar", sounds.items())
    lines = [{"audio_filepath": name, "duration": 0.5 + i / 8, "shard_id": 0} for i, name in enumerate(sounds)]
    (folder / "nemo/tarred_audio_manifest.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "hub").mkdir()
    rows = {"audio": [{"bytes": data, "path": name} for name, data in sounds.items()]}
    parquet.write_table(pyarrow.table(rows), folder / "hub/train-00000.parquet", row_group_size=4)
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_same_behind_urls(sounds, plain, run, tmp_path, put):
    store = put(write_archives(sounds, tmp_path / "archives"))
    for name in ("web", "nemo", "hub"):
        totals = run(f"{store}/{name}", tmp_path / f"out-{name}")
        assert (totals["cuts"], totals["quarantined"]) == (6, 0), name
        codes, _, _ = written(tmp_path / f"out-{name}")
        for found, expected in zip(codes.values(), plain.values(), strict=True):
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("at", ["in the audio", "in a header", "after a member"])
def test_a_tar_that_breaks_off_says_so_in_the_quarantine(sounds, plain, run, tmp_path, at):
    write_tar(tmp_path / "whole.tar", sounds.items())
    with tarfile.open(tmp_path / "whole.tar") as tar:
        last = tar.getmembers()[-1]
    size = {"in the audio": last.offset_data + 700, "in a header": last.offset + 100, "after a member": last.offset}[at]
    (tmp_path / "cut.tar").write_bytes((tmp_path / "whole.tar").read_bytes()[:size])
    totals = run(tmp_path / "cut.tar", tmp_path / "out")
    in_audio = at == "in the audio"
    assert (totals["cuts"], totals["quarantined"]) == (5, 1 + in_audio)
    codes, _, failed = written(tmp_path / "out")
    np.testing.assert_array_equal(codes["cut/s4"], plain["s4.wav"])
    assert failed["cut/rest"][0] == "damaged" and "breaks off at byte" in failed["cut/rest"][1]
    assert ("cut/s5" in failed) == in_audio


def test_links_in_a_tar_lead_nowhere(sounds, run, tmp_path):
    write_tar(tmp_path / "x.tar", list(sounds.items())[:1])
    (tmp_path / "secret.wav").write_bytes(sounds["s2.wav"])
    with tarfile.open(tmp_path / "x.tar", "a") as tar:
        link = tarfile.TarInfo("t.wav")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "secret.wav")
        tar.addfile(link)
    totals = run(tmp_path / "x.tar", tmp_path / "out")
    assert (totals["cuts"], totals["quarantined"]) == (1, 1)


def test_parquet_of_hugging_face(sounds, plain, run, tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = [
        {"audio": {"bytes": data, "path": name}, "sentence": f"said {i}", "client_id": i % 2, "scores": [0.5, i]}
        for i, (name, data) in enumerate(sounds.items())
    ]
    rows[3]["audio"] = {"bytes": b"not audio", "path": "s3.flac"}
    rows[4]["audio"] = {"bytes": None, "path": "elsewhere.wav"}
    features = datasets.Features(
        audio=datasets.Audio(decode=False),
        sentence=datasets.Value("string"),
        client_id=datasets.Value("int32"),
        scores=datasets.List(datasets.Value("float32")),
    )
    (tmp_path / "repo/data").mkdir(parents=True)
    table = pyarrow.Table.from_pylist(rows, features.arrow_schema)
    parquet.write_table(table, tmp_path / "repo/data/train-00000.parquet", row_group_size=4)
    (tmp_path / "repo/README.md").write_text("a card")
    totals = run(tmp_path / "repo", tmp_path / "out")
    assert (totals["cuts"], totals["quarantined"]) == (4, 2)
    codes, cuts, failed = written(tmp_path / "out")
    for i, name in enumerate(sounds):
        if i not in (3, 4):
            cut_id = f"train-00000/{i:06d}"
            np.testing.assert_array_equal(codes[cut_id], plain[name])
            (said,) = cuts[cut_id]["supervisions"]
            assert (said["text"], said["speaker"]) == (f"said {i}", str(i % 2))
            assert cuts[cut_id]["custom"]["scores"] == [0.5, i] and cuts[cut_id]["custom"]["path"] == name
    assert failed["train-00000/000003"][0] == "unreadable" and failed["train-00000/000004"][0] == "missing file"


@pytest.mark.parametrize("sharded", [False, True])
def test_tarred_sets_of_nemo(sounds, plain, run, tmp_path, sharded):
    named = list(sounds.items())
    for shard in range(2):
        write_tar(tmp_path / f"set/audio_{shard}.tar", named[3 * shard : 3 * shard + 3])
    lines = [
        {"audio_filepath": name, "duration": 0.5 + i / 8, "text": f"said {i}", "lang": "de", "shard_id": i // 3}
        for i, name in enumerate(sounds)
    ]
    for n, offset in enumerate((0.0, 0.25)):
        lines.append({**lines[5], "audio_filepath": f"s5-sub{n}.flac", "offset": offset, "duration": 0.25})
    lines.append({"audio_filepath": "lost.wav", "duration": 1.0, "text": "", "shard_id": 1})
    lines.append({"audio_filepath": "nowhere.wav", "duration": 1.0, "text": "", "shard_id": 7})
    for shard in range(2) if sharded else [None]:
        chosen = [line for line in lines if shard is None or (line["shard_id"] > 0) == shard]
        path = (
            tmp_path
            / "set"
            / ("tarred_audio_manifest.json" if shard is None else f"sharded_manifests/manifest_{shard}.json")
        )
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(line) + "\n" for line in chosen))
    totals = run(tmp_path / "set", tmp_path / "out")
    assert (totals["cuts"], totals["quarantined"]) == (8, 2)
    codes, cuts, failed = written(tmp_path / "out")
    for i, name in enumerate(sounds):
        np.testing.assert_array_equal(codes[name], plain[name])
        (said,) = cuts[name]["supervisions"]
        assert (said["text"], said["language"]) == (f"said {i}", "de")
    assert (cuts["s5-sub1.flac"]["start"], cuts["s5-sub1.flac"]["duration"], len(codes["s5-sub1.flac"])) == (
        0.25,
        0.25,
        13,
    )
    assert failed["lost.wav"][0] == "missing file" and failed["nowhere.wav"][0] == "damaged"
    before = content_digest(find_inputs(str(tmp_path / "set")))
    path.write_text(path.read_text().replace("said 5", "said 6"))
    assert content_digest(find_inputs(str(tmp_path / "set"))) != before


def test_manifests_of_nemo(sounds, plain, run, tmp_path):
    lines = [{"audio_filepath": f"files/{name}", "duration": 0.5 + i / 8, "text": "x"} for i, name in enumerate(plain)]
    (tmp_path / "train.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    names = list(plain)
    with open(tmp_path / "train.json", "a") as file:
        file.write(json.dumps({"audio_filepath": f"./files/{names[0]}", "offset": 0.25}) + "\n")
        file.write(json.dumps({"audio_filepath": f"./files/{names[1]}", "offset": "0.25", "duration": 0.25}) + "\n")
    totals = run(tmp_path / "train.json", tmp_path / "out")
    assert (totals["cuts"], totals["quarantined"]) == (7, 1)
    codes, cuts, failed = written(tmp_path / "out")
    for name in plain:
        np.testing.assert_array_equal(codes[f"files/{name}"], plain[name])
    assert cuts[f"./files/{names[0]}"]["start"] == cuts[f"./files/{names[0]}"]["duration"] == 0.25  # to the end
    assert failed[f"./files/{names[1]}"][0] == "wrong manifest"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.tar", b"\x1f\x8b no tar" * 100, "not an uncompressed tar"),
        ("x.parquet", b"no parquet" * 100, "not a Parquet file"),
        ("x.json", b'{"audio_filepath": 5}\n', "audio_filepath is 5, expected text"),
        ("x.json", b'{"id": 5}\n', "neither a manifest"),
    ],
)
def test_files_that_are_not_what_they_are_named(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=words):
        list(source_cuts(find_inputs(str(tmp_path / name))))


def test_parquet_without_audio_is_named(tmp_path):
    datasets = pytest.importorskip("datasets")
    schema = datasets.Features(image=datasets.Image(decode=False)).arrow_schema
    parquet.write_table(pyarrow.Table.from_pylist([{"image": None}], schema), tmp_path / "x.parquet")
    with pytest.raises(InputError, match="no column of audio among image"):
        list(source_cuts([str(tmp_path / "x.parquet")]))
