"""Voice conversion: the nearest frames, the reference's frames, and offline = streaming."""

from __future__ import annotations

import copy
import io
import json
import types
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from slm.cli import main
from tokenizer import Codec, InputError
from tokenizer.audio import read_audio, write_wav
from tokenizer.conversion import Voice, convert, convert_live, find_sounds


def speech_like(seconds: float, seed: int) -> Tensor:
    """Float64 [seconds * 16000] of noise whose pitch and level wander."""
    rng = np.random.default_rng(seed)
    samples = np.arange(round(seconds * 16000))
    corners = np.arange(0, len(samples) + 1600, 1600)
    level, pitch = (np.interp(samples, corners, rng.random(len(corners))) for _ in range(2))
    tone = np.sin(np.cumsum(0.05 + 0.3 * pitch))
    return torch.from_numpy((0.3 * tone + 0.2 * rng.standard_normal(len(samples))) * level)


@pytest.fixture(scope="module")
def codec(tiny_codec: Codec) -> Codec:
    return copy.deepcopy(tiny_codec).double()


@pytest.fixture(scope="module")
def voice(codec: Codec) -> Voice:
    return Voice.from_waves(codec, [speech_like(2.0, seed=1), speech_like(1.5, seed=2)])


@pytest.mark.parametrize("block", [3, 10, 10_000])
def test_nearest_is_the_mean_of_the_four_of_smallest_cosine_distance(block: int, monkeypatch) -> None:
    monkeypatch.setattr("tokenizer.conversion.BLOCK_FRAMES", block)
    generator = torch.Generator().manual_seed(3)
    reference = torch.randn(101, 6, generator=generator).double() * torch.rand(101, 1, generator=generator)
    frames = torch.randn(2, 7, 6, generator=generator).double()
    got = Voice(reference, seconds=2.0).nearest(frames)
    for row in range(2):
        for frame in range(7):
            distance = [1 - torch.cosine_similarity(frames[row, frame], each, dim=0) for each in reference]
            four = sorted(range(101), key=lambda i: distance[i])[:4]
            torch.testing.assert_close(got[row, frame], reference[four].mean(0))


@pytest.mark.parametrize("samples", [1, 320, 1280, 1281, 30_001, 64_000])
def test_live_equals_offline(codec: Codec, voice: Voice, samples: int) -> None:
    wave = speech_like(samples / 16000, seed=samples)
    whole = convert(codec, voice, wave)
    live = list(convert_live(codec, voice, wave.split(codec.chunk_samples)))
    assert len(live) == -(-samples // 1280) and len(whole) == -(-samples // 320) * 320
    # 1e-12: float64 sums in another order differ by a few units in the sixteenth digit
    torch.testing.assert_close(torch.cat(live), whole, rtol=0, atol=1e-12)
    assert (whole - codec.decode(codec.encode(wave))[0]).abs().max() > 1e-3  # it is another sound


def test_batch_equals_solo(codec: Codec, voice: Voice) -> None:
    waves = [speech_like(0.3, seed=4), speech_like(1.0, seed=5)]
    tokens = [codec.encode(wave)[0] for wave in waves]
    together = codec.decode(torch.nn.utils.rnn.pad_sequence(tokens, True, -1), voice)
    for row, wave in enumerate(waves):
        solo = convert(codec, voice, wave)
        torch.testing.assert_close(together[row, : len(solo)], solo, rtol=0, atol=1e-12)
        assert (together[row, len(solo) :] == 0).all()


def test_the_reference_is_in_the_space_that_the_decoder_knows(codec: Codec, monkeypatch) -> None:
    wave = speech_like(2.0, seed=6)
    encoded, restored = codec.features(wave)[0], codec.dequantize(codec.encode(wave))[0]
    # This codec's weights are random: what the decompressor restores is unlike what the encoder gave.
    assert torch.equal(Voice.from_waves(codec, [wave]).features, restored)
    blurred = encoded + 0.5 * encoded.std() * torch.from_numpy(np.random.default_rng(7).standard_normal(encoded.shape))
    monkeypatch.setattr(codec, "dequantize", lambda tokens: blurred[None])
    assert torch.equal(Voice.from_waves(codec, [wave]).features, encoded)


def test_a_long_reference_is_used_in_part_and_in_pieces(codec: Codec, monkeypatch) -> None:
    monkeypatch.setattr("tokenizer.conversion.REFERENCE_SECONDS", 2.0)
    monkeypatch.setattr("tokenizer.conversion.PIECE_SECONDS", 0.64)

    def waves() -> Iterator[Tensor]:
        yield speech_like(1.2, seed=8)
        yield speech_like(3.0, seed=9)
        pytest.fail("more was asked for than is used")

    voice = Voice.from_waves(codec, waves())
    assert voice.seconds == 2.0 and len(voice.features) == 100
    first = codec.dequantize(codec.encode(speech_like(1.2, seed=8)[: round(0.64 * 16000)]))[0]
    assert torch.equal(voice.features[:32], first)


def test_no_more_of_a_long_file_is_read_than_is_used(codec: Codec, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("tokenizer.conversion.REFERENCE_SECONDS", 1.0)
    soundfile.write(tmp_path / "long.wav", speech_like(3.0, seed=17).numpy(), 22050)
    assert len(read_audio(tmp_path / "long.wav", 16000, 0.5)) == 8000
    assert Voice.from_path(codec, tmp_path).seconds == 1.0


def test_a_folder_is_read_in_the_order_of_names(codec: Codec, tmp_path: Path) -> None:
    for name, seed in (("b/z.flac", 10), ("a.wav", 11), (".hidden/x.wav", 12), ("b/.y.wav", 13)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        soundfile.write(tmp_path / name, speech_like(0.5, seed).numpy(), 16000)
    (tmp_path / "notes.txt").write_text("no sound")
    assert find_sounds(tmp_path) == [tmp_path / "a.wav", tmp_path / "b" / "z.flac"]
    whole = Voice.from_path(codec, tmp_path)
    alone = [Voice.from_path(codec, tmp_path / name).features for name in ("a.wav", "b/z.flac")]
    assert whole.seconds == 1.0 and torch.equal(whole.features, torch.cat(alone))


def test_what_a_file_holds_decides_in_a_folder_and_others_are_named(tmp_path: Path, caplog) -> None:
    write_wav(tmp_path / "speech.bin", np.sin(np.arange(16000) / 9).astype(np.float32), 16000)
    (tmp_path / "notes.txt").write_text("no sound")
    assert find_sounds(tmp_path) == [tmp_path / "speech.bin"]
    assert "passed over notes.txt" in caplog.text


def test_wrong_references_are_named(codec: Codec, voice: Voice, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent: no such file or folder"):
        Voice.from_path(codec, tmp_path / "absent")
    (tmp_path / "notes.txt").write_text("no sound")
    with pytest.raises(InputError, match=r"no sound file in this folder \(.*\.flac"):
        Voice.from_path(codec, tmp_path)
    with pytest.raises(InputError, match=r"notes\.txt: not a readable sound file"):
        Voice.from_path(codec, tmp_path / "notes.txt")
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    with pytest.raises(InputError, match=r"broken\.wav: not a readable sound file"):
        Voice.from_path(codec, tmp_path)
    write_wav(tmp_path / "short.wav", speech_like(0.03, seed=14).numpy(), 16000)
    with pytest.raises(InputError, match=r"short\.wav holds 0\.03 s of audio; expected some seconds"):
        Voice.from_path(codec, tmp_path / "short.wav")
    with pytest.raises(InputError, match=r"the reference holds 0\.03 s"):
        Voice.from_waves(codec, [speech_like(0.03, seed=14)])
    with pytest.raises(InputError, match="the voice has 16 channels, this codec 8"):
        voice.nearest(torch.zeros(1, 4, 8, dtype=torch.float64))


def test_a_file_that_cannot_be_read_is_left_out_with_a_warning(codec: Codec, tmp_path: Path, caplog) -> None:
    (tmp_path / "a.wav").write_bytes(b"RIFF")
    soundfile.write(tmp_path / "b.wav", speech_like(1.0, seed=18).numpy(), 16000)
    assert Voice.from_path(codec, tmp_path).seconds == 1.0
    (warning,) = caplog.messages
    assert "a.wav: not a readable sound file" in warning and "left out of the reference" in warning


def test_forbidden_files_and_folders_are_called_so(codec: Codec, tmp_path: Path, monkeypatch) -> None:
    soundfile.write(tmp_path / "locked.wav", speech_like(1.0, seed=19).numpy(), 16000)

    def forbidden(path: Path, *args: object) -> None:  # a mode of 000 does not keep root out
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", forbidden)
        with pytest.raises(PermissionError, match=r"locked\.wav"):
            Voice.from_path(codec, tmp_path / "locked.wav")
    monkeypatch.setattr("os.scandir", forbidden)
    with pytest.raises(PermissionError, match=tmp_path.name):
        Voice.from_path(codec, tmp_path)


@pytest.fixture
def files(tiny_codec_dir: Path, tmp_path: Path) -> list[str]:
    """Arguments of `convert` but for its output: a source, a folder of references, a codec."""
    (tmp_path / "voice").mkdir()
    write_wav(tmp_path / "in.wav", speech_like(1.2345, seed=15).numpy(), 16000)
    write_wav(tmp_path / "voice" / "one.wav", speech_like(2.0, seed=16).numpy(), 16000)
    return [str(tmp_path / "in.wav"), "--reference", str(tmp_path / "voice"), "--codec", str(tiny_codec_dir)]


def agreement(a: bytes, b: bytes) -> float:
    """The part of 16-bit samples that agree to one step."""
    first, second = (np.frombuffer(pcm, "<i2").astype(int) for pcm in (a, b))
    return float((np.abs(first - second) <= 1).mean()) if len(first) == len(second) else 0.0


def test_convert_command_whole_in_chunks_and_live(files: list[str], tmp_path: Path, capsys, monkeypatch) -> None:
    out = tmp_path / "out.wav"
    assert main(["convert", files[0], str(out), *files[1:], "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["seconds"] == 1.24 and report["reference_seconds"] == 2.0 and not report["streamed"]
    whole = out.read_bytes()[44:]
    assert main(["convert", files[0], str(out), *files[1:], "--stream"]) == 0
    assert "1.24 s in the voice of 2.00 s of reference" in capsys.readouterr().out
    # The tiny model's weights are random, and float32 sums of other shapes may flip a token near zero: most must agree.
    assert agreement(out.read_bytes()[44:], whole) > 0.9
    pcm = soundfile.read(files[0], dtype="int16")[0].astype("<i2").tobytes()
    sound = io.BytesIO()
    monkeypatch.setattr("sys.stdin", types.SimpleNamespace(buffer=io.BytesIO(pcm)))
    monkeypatch.setattr("sys.stdout", types.SimpleNamespace(buffer=sound, flush=lambda: None))
    assert main(["convert", "-", "-", *files[1:]]) == 0
    assert agreement(sound.getvalue(), whole) > 0.9
    assert "2.00 s of reference" in capsys.readouterr().err


def test_bad_arguments_of_convert_are_one_line_and_status_2(
    files: list[str], tmp_path: Path, capsys, monkeypatch
) -> None:
    (tmp_path / "empty").mkdir()
    out = str(tmp_path / "out.wav")
    for arguments, message in (
        ([files[0], out, *files[1:], "--reference", str(tmp_path / "empty")], "no sound file in this folder"),
        ([files[0], out, *files[1:], "--reference", str(tmp_path / "absent")], "no such file or folder"),
        ([str(tmp_path / "absent.wav"), out, *files[1:]], "absent.wav"),
        ([files[0], str(tmp_path / "no" / "out.wav"), *files[1:]], "does not exist"),
        ([files[0], out, *files[1:], "--threads", "0"], "--threads 0"),
        (["-", out, *files[1:]], "no audio"),
    ):
        monkeypatch.setattr("sys.stdin", types.SimpleNamespace(buffer=io.BytesIO(b"")))
        assert main(["convert", *arguments]) == 2
        error = capsys.readouterr().err
        assert message in error and len(error.strip().splitlines()) == 1
    assert not (tmp_path / "out.wav").exists()
