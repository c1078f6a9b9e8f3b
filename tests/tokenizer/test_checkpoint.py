"""Weights on disk: every way to name a codec, and every way a file can be wrong."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tokenizer import Codec, InputError
from tokenizer.files import cache_folder


def test_every_way_to_name_a_codec_gives_the_same_one(tiny_codec: Codec, tiny_codec_dir: Path, tmp_path: Path) -> None:
    shutil.copy(tiny_codec_dir / "config.json", tmp_path / "mine.json")
    shutil.copy(tiny_codec_dir / "model.safetensors", tmp_path / "mine.safetensors")
    (tmp_path / "torch").mkdir()
    shutil.copy(tiny_codec_dir / "config.json", tmp_path / "torch" / "config.json")
    torch.save(load_file(tiny_codec_dir / "model.safetensors"), tmp_path / "torch" / "model.pt")
    for name in (tiny_codec_dir, tmp_path / "mine", tmp_path / "mine.json", tmp_path / "torch"):
        codec = Codec.from_pretrained(name)
        assert codec.fingerprint == tiny_codec.fingerprint
        assert not codec.training and not any(p.requires_grad for p in codec.parameters())


def test_fingerprint_is_of_values_not_of_storage(tiny_codec: Codec, tmp_path: Path) -> None:
    tiny_codec.save_pretrained(tmp_path / "half", dtype=torch.float16)
    half = Codec.from_pretrained(tmp_path / "half")
    assert half.decoder.head.proj.weight.dtype == torch.float32
    assert half.fingerprint != tiny_codec.fingerprint  # rounding changed the weights
    half.save_pretrained(tmp_path / "again")
    assert Codec.from_pretrained(tmp_path / "again").fingerprint == half.fingerprint
    assert Codec.from_pretrained(tmp_path / "half").double().fingerprint == half.fingerprint


def test_fingerprint_sees_every_weight_and_the_configuration(tiny_codec: Codec, tmp_path: Path) -> None:
    tiny_codec.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["encoder.encoder.relative_embedding.weight"][3, 1] += 1e-3
    save_file(weights, tmp_path / "model.safetensors")
    assert Codec.from_pretrained(tmp_path).fingerprint != tiny_codec.fingerprint
    tiny_codec.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["encoder_config"]["max_distance"] = 17
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert Codec.from_pretrained(tmp_path).fingerprint != tiny_codec.fingerprint


class Hostile:
    """What a pickle can carry: a call made when it is loaded."""

    def __reduce__(self):
        return (print, ("hostile code ran",))


def spoil(directory: Path, how: str) -> None:
    weights_path = directory / "model.safetensors"
    weights = load_file(weights_path)
    if how == "truncated":
        weights_path.write_bytes(weights_path.read_bytes()[:-100])
    elif how == "not json":
        (directory / "config.json").write_text("{")
    elif how == "no weights":
        weights_path.unlink()
    elif how == "missing key":
        del weights["decoder.head.proj.bias"]
        save_file(weights, weights_path)
    elif how == "extra key":
        save_file(weights | {"surprise": torch.zeros(1)}, weights_path)
    elif how == "wrong shape":
        save_file(weights | {"decoder.head.proj.bias": torch.zeros(3)}, weights_path)
    elif how == "nan":
        weights["decoder.head.proj.bias"][0] = float("nan")
        save_file(weights, weights_path)
    else:
        weights_path.unlink()
        (directory / "model.pt").write_bytes(pickle.dumps({"a": Hostile()}))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("truncated", "not a readable file of plain tensors"),
        ("not json", "not a JSON file"),
        ("no weights", "neither"),
        ("missing key", "lack 'decoder.head.proj.bias'"),
        ("extra key", "hold 'surprise'"),
        ("wrong shape", r"decoder.head.proj.bias has shape \(3,\)"),
        ("nan", "NaN"),
        ("hostile pickle", "would run code"),
    ],
)
def test_bad_files_are_refused_by_name(
    tiny_codec_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str, message: str
) -> None:
    directory = tmp_path / "codec"
    shutil.copytree(tiny_codec_dir, directory)
    spoil(directory, how)
    with pytest.raises(InputError, match=message):
        Codec.from_pretrained(directory)
    assert "hostile code ran" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["no_such_codec", "./nowhere", "/nowhere/at/all", ".", ""])
def test_unknown_names_say_what_was_expected(name: str) -> None:
    with pytest.raises(InputError, match="expected"):
        Codec.from_pretrained(name)


def test_hub_failure_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: str) -> str:
        raise OSError("no network here\nand a long explanation")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    with pytest.raises(InputError, match=r"Hub did not give it \(no network here\)"):
        Codec.from_pretrained("someone/some_codec")


def test_hub_files_are_asked_for_by_published_name(monkeypatch: pytest.MonkeyPatch, tiny_codec_dir: Path) -> None:
    asked = []

    def give(repo: str, file: str) -> str:
        asked.append((repo, file))
        return str(tiny_codec_dir / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", give)
    Codec.from_pretrained("someone/some_codec")
    assert asked == [("someone/some_codec", "config.json"), ("someone/some_codec", "model.safetensors")]


def test_the_face_is_a_module_that_is_copied_pickled_and_moved(tiny_codec_dir: Path) -> None:
    from tokenizer.codec import Codec as Face
    from tokenizer.model import CodecModel

    codec = Codec.from_pretrained(tiny_codec_dir)
    assert Codec is Face and isinstance(codec, CodecModel) and isinstance(codec, torch.nn.Module)
    wave = 0.1 * torch.randn(1, 9_000, generator=torch.Generator().manual_seed(2))
    tokens = codec.encode(wave)
    for other in (copy.deepcopy(codec), pickle.loads(pickle.dumps(codec)), copy.deepcopy(codec).to("cpu").double()):
        assert type(other) is Codec and other.fingerprint == codec.fingerprint and other.name == codec.name
        firm = codec.latents(codec.features(wave)).abs().amin(-1)[:, : tokens.shape[1]] > 1e-4
        assert torch.equal(other.encode(wave)[firm], tokens[firm])


def test_importing_the_package_loads_no_pytorch() -> None:
    code = "import sys, tokenizer; assert 'torch' not in sys.modules; tokenizer.Codec; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_the_cache_is_in_the_users_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "focalstream"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    if sys.platform == "linux":
        assert cache_folder() == tmp_path / "home" / ".cache" / "focalstream"
