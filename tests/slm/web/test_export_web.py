"""`export-web`: what is in the folder, and what is refused. The browser's tests are beside this file."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from slm.cli import main
from slm.web import runtime as runtime_module
from slm.web.export import export_web
from slm.web.runtime import BINARY, FILES, LOADER, MODULE, PACKAGE, VERSION, runtime_files
from tokenizer import Codec
from tokenizer.errors import InputError

STUB = {MODULE: b"export {};", LOADER: b"export {};", BINARY: b"\0asm" + 1000 * b"x"}  # in place of onnxruntime-web


@pytest.fixture
def write(tiny_codec: Codec, random_lm_dir: Path, tmp_path: Path) -> Callable[..., Path]:
    """Exports the tiny models, with a stub of the runtime."""
    pytest.importorskip("onnx", reason='needs pip install "focalstream[onnx]"')

    def export(name: str, precision: str = "fp32") -> Path:
        folder = tmp_path / name
        export_web(tiny_codec, random_lm_dir, "tiny", "random", folder, precision, STUB)
        return folder

    return export


@pytest.mark.slow
def test_the_folder_is_whole_and_describes_itself(write: Callable[..., Path], tiny_codec: Codec) -> None:
    folder = write("out", "int8")
    manifest = json.loads((folder / "focalstream.json").read_text())
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert set(found) == {*manifest["files"], "focalstream.json", "service_worker.js"}
    for name, entry in manifest["files"].items():
        assert entry == {"bytes": len(found[name]), "sha256": hashlib.sha256(found[name]).hexdigest()}, name
    assert manifest["codec"]["fingerprint"] == manifest["lm"]["codec_fingerprint"] == tiny_codec.fingerprint
    assert manifest["codec"]["precision"] == manifest["lm"]["precision"] == "int8"
    assert manifest["codec"]["chunk_samples"] == tiny_codec.chunk_samples
    assert gzip.decompress(found[manifest["runtime"]["binary"]]) == STUB[BINARY]
    for graph in manifest["graphs"].values():
        assert all(gzip.decompress(found[name]) for name in graph)
    worker = found["service_worker.js"].decode()
    assert manifest["content"] in worker and '"engine/index.js"' in worker and '"./"' in worker
    page = found["index.html"].decode()
    assert "Content-Security-Policy" in page and '="/' not in page  # all addresses are relative
    text = "".join(data.decode() for name, data in found.items() if name.endswith((".js", ".html", ".css")))
    for foreign in ("http://", "https://", "//cdn"):
        assert foreign not in text
    assert b"Microsoft" in found["LICENCES.txt"] and b"sdk: static" in found["README.md"]


@pytest.mark.slow
def test_the_same_models_give_the_same_bytes(write: Callable[..., Path]) -> None:
    first, second = write("first"), write("second")
    for path in first.rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (second / path.relative_to(first)).read_bytes(), path


def test_what_is_there_already_stays(write: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="is there already; give a new or empty folder"):
        write("out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_models_that_do_not_belong_together(
    tiny_codec: Codec,
    random_lm_dir: Path,
    tmp_path: Path,
) -> None:
    vocabulary = json.loads((random_lm_dir / "vocabulary.json").read_text())
    (tmp_path / "lm").mkdir()
    (tmp_path / "lm" / "vocabulary.json").write_text(json.dumps({**vocabulary, "codec_fingerprint": "0" * 64}))
    with pytest.raises(InputError, match="codec 'tiny' has codes of another codec"):
        export_web(tiny_codec, tmp_path / "lm", "tiny", "random", tmp_path / "out", "fp32", STUB)
    assert not (tmp_path / "out").exists()


def package(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(f"package/dist/{name}")
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return path


def test_the_runtime_is_the_pinned_one(tmp_path: Path) -> None:
    """Packed and unpacked; another one, a damaged one and one that is not there are refused by name."""
    for data in (b"", b"no package"):
        (tmp_path / "bad.tgz").write_bytes(data)
        with pytest.raises(InputError, match=f"bad.tgz: is not the npm package onnxruntime-web {VERSION}"):
            runtime_files(tmp_path / "bad.tgz")
    with pytest.raises(InputError, match="is not the npm package"):
        runtime_files(package(tmp_path / "other.tgz", STUB))
    with pytest.raises(InputError, match=rf"none.tgz: cannot be read .*npm pack onnxruntime-web@{VERSION}"):
        runtime_files(tmp_path / "none.tgz")
    (tmp_path / "dist").mkdir()
    with pytest.raises(InputError, match=f"{MODULE} cannot be read"):
        runtime_files(tmp_path)
    for name, data in STUB.items():
        (tmp_path / "dist" / name).write_bytes(data)
    with pytest.raises(InputError, match=f"{MODULE} is not that of onnxruntime-web {VERSION}"):
        runtime_files(tmp_path)


def test_the_pinned_runtime_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import base64

    path = package(tmp_path / PACKAGE, STUB)
    digest = base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
    monkeypatch.setattr(runtime_module, "PACKAGE_SHA512", digest)
    assert runtime_files(path) == STUB
    monkeypatch.setattr(
        runtime_module, "FILES", {name: hashlib.sha256(data).hexdigest() for name, data in STUB.items()}
    )
    for place in ("dist", "package/dist", "."):
        folder = tmp_path / "unpacked" / place
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in STUB.items():
            (folder / name).write_bytes(data)
        assert runtime_files(tmp_path / "unpacked") == STUB
    assert set(FILES) == set(STUB)


def test_without_a_network_the_error_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", "http://127.0.0.1:9/")
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert main(["export-web", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"--runtime {PACKAGE}" in said and "cannot be downloaded" in said
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", "ftp://example.org")
    assert main(["export-web", str(tmp_path / "out")]) == 2
    assert "expected an address that begins with https://" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
