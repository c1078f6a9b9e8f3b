"""The command line of the codec: files, live pipes, and one clear line for bad input."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from slm.cli import main
from tokenizer import Codec
from tokenizer.audio import read_audio, write_wav


def tone(seconds: float, rate: int = 16000, seed: int = 0) -> np.ndarray:
    """A sweep with noise, float32 [S]."""
    t = np.arange(int(seconds * rate)) / rate
    noise = np.random.default_rng(seed).standard_normal(len(t))
    return (0.3 * np.sin(500 * t + 300 * t**2) + 0.02 * noise).astype(np.float32)


@pytest.fixture
def wav(tmp_path: Path) -> Path:
    write_wav(tmp_path / "in.wav", tone(1.2345), 16000)
    return tmp_path / "in.wav"


def pipe(monkeypatch: pytest.MonkeyPatch, data: bytes) -> io.BytesIO:
    """Put `data` on standard input; what is written to standard output comes back."""
    out = io.BytesIO()
    monkeypatch.setattr("sys.stdin", types.SimpleNamespace(buffer=Dribble(data)))
    monkeypatch.setattr("sys.stdout", types.SimpleNamespace(buffer=out, write=lambda _: None, flush=lambda: None))
    return out


class Dribble(io.BytesIO):
    """A pipe that gives less than is asked for, as real ones do."""

    def read(self, size: int | None = -1) -> bytes:
        return super().read(min(size, 777) if size and size > 0 else size)


def test_files_there_and_back(tiny_codec: Codec, tiny_codec_dir: Path, wav: Path, tmp_path: Path) -> None:
    tokens_path, out = tmp_path / "out.npy", tmp_path / "out.wav"
    assert main(["encode", str(wav), str(tokens_path), "--codec", str(tiny_codec_dir)]) == 0
    tokens = np.load(tokens_path)
    expected = tiny_codec.encode(torch.from_numpy(read_audio(wav, 16000)))[0]
    assert tokens.dtype == np.uint16 and np.array_equal(tokens, expected.numpy())
    assert main(["decode", str(tokens_path), str(out), "--codec", str(tiny_codec_dir)]) == 0
    decoded, rate = soundfile.read(out, dtype="float32")
    assert rate == tiny_codec.sample_rate_out
    # one 16-bit step of rounding
    np.testing.assert_allclose(decoded, tiny_codec.decode(expected)[0].numpy(), atol=1 / 32767)


def test_live_pipes_equal_files(tiny_codec_dir: Path, wav: Path, tmp_path: Path, monkeypatch) -> None:
    codec = ["--codec", str(tiny_codec_dir)]
    main(["encode", str(wav), str(tmp_path / "file.npy"), *codec])
    pcm = soundfile.read(wav, dtype="int16")[0].astype("<i2").tobytes()
    tokens = pipe(monkeypatch, pcm)
    assert main(["encode", "-", "-", *codec]) == 0
    assert np.array_equal(np.frombuffer(tokens.getvalue(), "<u2"), np.load(tmp_path / "file.npy"))
    sound = pipe(monkeypatch, tokens.getvalue())
    assert main(["decode", "-", "-", *codec]) == 0
    main(["decode", str(tmp_path / "file.npy"), str(tmp_path / "file.wav"), *codec])
    expected = soundfile.read(tmp_path / "file.wav", dtype="int16")[0].astype(int)
    got = np.frombuffer(sound.getvalue(), "<i2").astype(int)
    assert len(got) == len(expected) and np.abs(got - expected).max() <= 1  # rounding against truncation to 16 bits


def test_roundtrip_reports(tiny_codec_dir: Path, wav: Path, tmp_path: Path, capsys) -> None:
    arguments = ["roundtrip", str(wav), str(tmp_path / "out.wav"), "--codec", str(tiny_codec_dir), "--json"]
    assert main(arguments) == 0
    offline = json.loads(capsys.readouterr().out)
    first = (tmp_path / "out.wav").read_bytes()
    assert main([*arguments, "--stream"]) == 0
    streamed = json.loads(capsys.readouterr().out)
    assert offline["bitrate"] == 400 and offline["tokens"] == streamed["tokens"] == 62
    assert offline["real_time_factor"] > 0 and streamed["streamed"]
    a, b = np.frombuffer(first[44:], "<i2"), np.frombuffer((tmp_path / "out.wav").read_bytes()[44:], "<i2")
    assert len(a) == len(b) == 62 * 320
    # The tiny model's weights are random, and float32 sums of other shapes may flip a token near zero: most must agree.
    assert np.mean(np.abs(a.astype(int) - b.astype(int)) <= 1) > 0.9


def test_a_codec_for_whole_utterances(whole_codec_dir: Path, wav: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    codec = ["--codec", str(whole_codec_dir)]
    assert main(["encode", str(wav), str(tmp_path / "out.npy"), *codec]) == 0
    assert len(np.load(tmp_path / "out.npy")) == (19752 - 400) // 640 + 1  # 1.2345 s; 25 Hz
    assert main(["decode", str(tmp_path / "out.npy"), str(tmp_path / "out.wav"), *codec]) == 0
    assert soundfile.info(tmp_path / "out.wav").frames == 31 * 640
    capsys.readouterr()
    assert main(["roundtrip", str(wav), str(tmp_path / "again.wav"), *codec, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["latency_ms"] is None and result["tokens"] == 31
    assert (tmp_path / "again.wav").read_bytes() == (tmp_path / "out.wav").read_bytes()
    assert main(["roundtrip", str(wav), str(tmp_path / "no.wav"), *codec, "--stream"]) == 2
    assert "does not stream" in capsys.readouterr().err and not (tmp_path / "no.wav").exists()
    for command in ("encode", "decode"):
        pipe(monkeypatch, bytes(4000))
        assert main([command, "-", "-", *codec]) == 2
        assert "does not stream" in capsys.readouterr().err


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100, 48000])
@pytest.mark.parametrize("channels", [1, 2])
def test_any_rate_and_channels_are_read(tmp_path: Path, rate: int, channels: int) -> None:
    wave = tone(0.5, rate)
    soundfile.write(tmp_path / "a.flac", np.stack([wave] * channels, 1), rate)
    got = read_audio(tmp_path / "a.flac", 16000)
    assert got.dtype == np.float32 and abs(len(got) - 8000) <= 1


def bad_inputs(folder: Path) -> dict[str, Path]:
    files = {
        name: folder / name
        for name in ("empty.wav", "text.wav", "nan.wav", "short.flac", "loud.wav", "cut.wav", "absent.wav")
    }
    files["empty.wav"].write_bytes(b"")
    files["text.wav"].write_text("this is no sound")
    soundfile.write(files["nan.wav"], np.array([0.0, np.nan], np.float32), 16000, subtype="FLOAT")
    noise = 0.1 * np.random.default_rng(0).standard_normal(8000)
    soundfile.write(files["loud.wav"], (1e6 * noise).astype(np.float32), 16000, subtype="FLOAT")
    soundfile.write(files["cut.wav"], noise, 16000)
    os.truncate(files["cut.wav"], 8000)
    soundfile.write(files["short.flac"], np.zeros(0, np.float32), 16000)
    return files


@pytest.mark.parametrize(
    "name", ["empty.wav", "text.wav", "nan.wav", "short.flac", "loud.wav", "cut.wav", "absent.wav"]
)
def test_bad_audio_is_one_line_and_status_2(tiny_codec_dir: Path, tmp_path: Path, capsys, name: str) -> None:
    path = bad_inputs(tmp_path)[name]
    assert main(["encode", str(path), str(tmp_path / "out.npy"), "--codec", str(tiny_codec_dir)]) == 2
    error = capsys.readouterr().err
    assert name in error and len(error.strip().splitlines()) == 1
    assert not (tmp_path / "out.npy").exists()


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 2), int), "expected integers [T]"),
        (np.zeros(4, float), "expected integers [T]"),
        (np.array([5, 300]), "another codec"),
        (np.zeros(0, int), "holds no tokens"),
        (np.array([3, -1]), "from -1 to 3"),
        (np.array([2**64 - 1], np.uint64), "another codec"),
    ],
)
def test_bad_tokens_are_one_line_and_status_2(tiny_codec_dir, tmp_path: Path, capsys, array, message: str) -> None:
    np.save(tmp_path / "bad.npy", array)
    assert main(["decode", str(tmp_path / "bad.npy"), str(tmp_path / "o.wav"), "--codec", str(tiny_codec_dir)]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "o.wav").exists()


def test_other_bad_arguments(tiny_codec_dir: Path, wav: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    codec = ["--codec", str(tiny_codec_dir)]
    assert main(["encode", str(wav), str(tmp_path / "no" / "out.npy"), *codec]) == 2
    assert "does not exist" in capsys.readouterr().err
    assert main(["encode", str(wav), str(tmp_path / "out.npy"), "--codec", "nonesuch"]) == 2
    assert "'nonesuch': not found" in capsys.readouterr().err
    assert main(["encode", str(wav), str(tmp_path / "out.npy"), *codec, "--device", "abacus"]) == 2
    assert "device 'abacus' cannot be used" in capsys.readouterr().err
    (tmp_path / "junk.npy").write_bytes(b"junk")
    assert main(["decode", str(tmp_path / "junk.npy"), str(tmp_path / "out.wav"), *codec]) == 2
    assert "not a NumPy file" in capsys.readouterr().err
    pipe(monkeypatch, b"")
    assert main(["encode", "-", str(tmp_path / "out.npy"), *codec]) == 2
    assert main(["decode", "-", str(tmp_path / "out.wav"), *codec]) == 2
    with pytest.raises(SystemExit) as stop:
        main(["no-such-command"])
    assert stop.value.code == 2


@pytest.mark.parametrize("command", ["encode", "roundtrip"])
def test_a_recording_too_long_at_once_is_named(
    whole_codec_dir: Path, wav: Path, tmp_path: Path, capsys, monkeypatch, command: str
) -> None:
    monkeypatch.setattr("tokenizer.rates.LONGEST_WHOLE", 0.25)
    assert main([command, str(wav), str(tmp_path / "out"), "--codec", str(whole_codec_dir)]) == 2
    error = capsys.readouterr().err
    assert f"{wav}: " in error and "takes at most 0.25 s at once" in error


def test_no_command_writes_over_what_it_reads(tiny_codec_dir: Path, wav: Path, tmp_path: Path, capsys) -> None:
    codec = ["--codec", str(tiny_codec_dir)]
    tokens = tmp_path / "tokens.npy"
    np.save(tokens, np.arange(8, dtype=np.uint16))
    for command, source in (("encode", wav), ("decode", tokens), ("roundtrip", wav), ("convert", wav)):
        before = source.read_bytes()
        reference = ["--reference", str(wav)] if command == "convert" else []
        assert main([command, str(source), str(source), *codec, *reference]) == 2
        error = capsys.readouterr().err
        assert "is also what is read" in error and len(error.splitlines()) == 1
        assert source.read_bytes() == before


def test_a_full_disk_is_one_line(tiny_codec_dir: Path, wav: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")
    command = [sys.executable, "-m", "slm.cli", "encode", str(wav), "-", "--codec", str(tiny_codec_dir)]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr == "focalstream encode: reading or writing failed: No space left on device\n"


@pytest.mark.parametrize(
    ("name", "kind"), [("out.flac", "FLAC"), ("OUT.FLAC", "FLAC"), ("out.wav", "WAV"), ("out", "WAV")]
)
def test_the_name_decides_the_format(tiny_codec_dir: Path, tmp_path: Path, name: str, kind: str, capsys) -> None:
    np.save(tmp_path / "one.npy", np.array([7]))
    assert main(["decode", str(tmp_path / "one.npy"), str(tmp_path / name), "--codec", str(tiny_codec_dir)]) == 0
    with soundfile.SoundFile(tmp_path / name) as file:
        assert (file.format, file.subtype, file.frames) == (kind, "PCM_16", 320)


def test_formats_that_are_not_written_are_refused_before_any_work(wav: Path, tmp_path: Path, capsys) -> None:
    commands = (["roundtrip", str(wav)], ["convert", str(wav), "--reference", str(wav)], ["decode", str(wav)])
    for command, *arguments in commands:
        out = tmp_path / "out.mp3"
        assert main([command, arguments[0], str(out), *arguments[1:], "--codec", "no/such/codec"]) == 2
        assert ".mp3 cannot be written; give a name that ends in .wav or .flac" in capsys.readouterr().err


def test_one_token_is_no_tokens(tiny_codec_dir: Path, tmp_path: Path, capsys) -> None:
    write_wav(tmp_path / "short.wav", tone(0.01), 16000)
    assert main(["encode", str(tmp_path / "short.wav"), str(tmp_path / "t.npy"), "--codec", str(tiny_codec_dir)]) == 0
    assert ": 1 token, 0.02 s" in capsys.readouterr().out


def test_help_gives_no_default_to_options_without_one(capsys) -> None:
    for command in ("tokenize", "convert"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        text = capsys.readouterr().out
        assert "default: small" in text and "default: None" not in text and "default: False" not in text
