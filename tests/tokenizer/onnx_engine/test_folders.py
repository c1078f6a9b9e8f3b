"""Exported folders and the cache of them: made once, made again where damaged, and every fault named."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from slm.cli import main
from tokenizer import Codec, InputError, checkpoint
from tokenizer.onnx_engine.manifest import sampled_digest

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")


def test_weights_are_read_once_for_the_cache(
    tiny_codec: Codec, make_codec: Callable[..., Codec], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As long as the files stay as they are, a second start reads the exported folder alone; new weights are seen."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = tmp_path / "source"
    tiny_codec.save_pretrained(source)
    first = Codec.from_pretrained(source, engine="onnx")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "load", lambda name: pytest.fail("read the weights again"))
        again = Codec.from_pretrained(source, engine="onnx")
    assert again.fingerprint == first.fingerprint == tiny_codec.fingerprint
    changed = make_codec(tiny_codec.config.to_dict(), seed=9)
    changed.save_pretrained(source)
    assert Codec.from_pretrained(source, engine="onnx").fingerprint == changed.fingerprint != first.fingerprint
    for record in (tmp_path / "cache" / "focalstream" / "sources").iterdir():
        record.write_bytes(b"\xff nonsense")
    assert Codec.from_pretrained(source, engine="onnx").fingerprint == changed.fingerprint


def test_without_the_packages(tiny_codec_dir: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for package in ("onnx", "onnxruntime"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            with pytest.raises(InputError, match=rf"package {package} is not installed; pip install"):
                Codec.from_pretrained(tiny_codec_dir, engine="onnx")


@pytest.mark.parametrize("damage", ["missing description", "cut weights", "zeroed weights", "a file in its place"])
def test_a_damaged_cache_is_made_again(
    tiny_codec_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    damage: str,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    wave = 0.1 * torch.randn(1, 20_000, generator=torch.Generator().manual_seed(3))
    expected = Codec.from_pretrained(tiny_codec_dir, engine="onnx").encode(wave)
    (folder,) = (tmp_path / "focalstream" / "onnx").iterdir()
    if damage == "missing description":
        (folder / "codec.json").unlink()
    elif damage == "cut weights":
        (folder / "encode_step.weights").write_bytes(b"short")
    elif damage == "zeroed weights":
        weights = folder / "encode_step.weights"
        weights.write_bytes(bytes(weights.stat().st_size))
    else:
        shutil.rmtree(folder)
        folder.write_text("in the way")
    assert torch.equal(Codec.from_pretrained(tiny_codec_dir, engine="onnx").encode(wave), expected)


def test_a_cache_that_cannot_be_written_is_named(
    tiny_codec_dir: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(InputError, match="XDG_CACHE_HOME"):
        Codec.from_pretrained(tiny_codec_dir, engine="onnx")


def test_folders_that_are_no_exports(
    tiny_codec_dir: Path, whole_codec_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("mine")
    assert main(["export", str(tiny_codec_dir), str(full)]) == 2
    assert "give a new or empty folder" in capsys.readouterr().err and (full / "mine.txt").exists()
    assert main(["export", str(whole_codec_dir), str(tmp_path / "whole")]) == 2
    assert "does not stream" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full"]

    out = tmp_path / "out"
    assert main(["export", str(tiny_codec_dir), str(out)]) == 0
    assert main(["encode", str(full / "mine.txt"), str(tmp_path / "tokens.npy"), "--codec", str(out)]) == 2
    assert f"{out}: is an exported codec; run it with --engine onnx" in capsys.readouterr().err
    with pytest.raises(InputError, match="was exported as fp32, not int8"):
        Codec.from_pretrained(out, engine="onnx", precision="int8")
    manifest = json.loads((out / "codec.json").read_text())
    for change, message in (({"version": 99}, "of version 99"), ({"decode_step": [{}]}, "export it again")):
        (out / "codec.json").write_text(json.dumps(manifest | change))
        with pytest.raises(InputError, match=message):
            Codec.from_pretrained(out, engine="onnx")
    (out / "codec.json").write_text(json.dumps(manifest))
    graph = out / "encode_step.onnx"
    size = graph.stat().st_size
    graph.write_bytes(b"cut")
    with pytest.raises(InputError, match=rf"encode_step\.onnx: has 3 bytes of {size}"):
        Codec.from_pretrained(out, engine="onnx")
    graph.write_bytes(b"\xff" * size)
    with pytest.raises(InputError, match=r"encode_step\.onnx: its bytes are not those that were written"):
        Codec.from_pretrained(out, engine="onnx")
    manifest["files"][graph.name] = (size, sampled_digest(graph))
    (out / "codec.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"encode_step\.onnx: ONNX Runtime cannot load it"):
        Codec.from_pretrained(out, engine="onnx")


def test_an_empty_folder_is_written_into(tiny_codec_dir: Path, tmp_path: Path) -> None:
    """It is the user's: its mode, owner and the links to it stay."""
    (tmp_path / "mine").mkdir(mode=0o750)
    before = (tmp_path / "mine").stat()
    assert main(["export", str(tiny_codec_dir), str(tmp_path / "mine")]) == 0
    after = (tmp_path / "mine").stat()
    assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)
    assert len(list((tmp_path / "mine").iterdir())) == 6
    assert Codec.from_pretrained(tmp_path / "mine", engine="onnx").causal
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_the_description_of_the_version_before_is_read(tiny_codec_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(["export", str(tiny_codec_dir), str(out)]) == 0
    wave = 0.1 * torch.randn(1, 9000, generator=torch.Generator().manual_seed(1))
    expected = Codec.from_pretrained(out, engine="onnx").encode(wave)
    manifest = json.loads((out / "codec.json").read_text())
    del manifest["kernel"]
    (out / "codec.json").write_text(json.dumps(manifest | {"version": 3}))
    assert torch.equal(Codec.from_pretrained(out, engine="onnx").encode(wave), expected)
