"""Where the samples of a file end: what stands behind them, sizes never filled in, frames and chunks cut off."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile

from pipelines.sources.audio import read_wave
from pipelines.sources.audio_files import audio_file_cut
from tokenizer.audio import read_audio
from tokenizer.audio_input.mpeg import _header_frame, parse_header
from tokenizer.errors import InputError

RATE = 16000
WAVE = (0.1 * np.random.default_rng(5).standard_normal(24000)).astype(np.float32)
LIST = b"LIST" + struct.pack("<I", 26) + b"INFOISFT" + struct.pack("<I", 14) + b"Lavf60.16.100\0"


def encoded(kind: str, subtype: str | None = "PCM_16", **options: object) -> bytearray:
    buffer = io.BytesIO()
    soundfile.write(buffer, WAVE, RATE, format=kind, subtype=subtype, **options)
    return bytearray(buffer.getvalue())


def both(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """As the commands read it, and as `tokenize` does."""
    return read_audio(path, RATE), read_wave(audio_file_cut(str(path), "a"), RATE)


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF])
def test_chunks_behind_samples_of_unknown_size_are_no_sound(tmp_path: Path, size: int) -> None:
    data = encoded("WAV")
    data[40:44] = struct.pack("<I", size)
    (tmp_path / "a.wav").write_bytes(data + LIST)
    for wave in both(tmp_path / "a.wav"):
        assert len(wave) == len(WAVE) and np.abs(wave - WAVE).max() < 1e-4


def unfinished_caf() -> bytearray:
    data = encoded("CAF")
    at = data.index(b"data")
    data[at + 4 : at + 12] = b"\xff" * 8
    return data


def unfinished_rf64() -> bytearray:
    data = encoded("RF64")
    at = data.index(b"ds64")
    data[at + 8 : at + 32] = bytes(24)
    return data


@pytest.mark.parametrize("make", [unfinished_caf, unfinished_rf64])
def test_a_recording_that_was_never_finalised_is_read(tmp_path: Path, make) -> None:
    (tmp_path / "a").write_bytes(make())
    for wave in both(tmp_path / "a"):
        assert len(wave) == len(WAVE) and np.abs(wave - WAVE).max() < 1e-4


@pytest.mark.parametrize("kind", ["SVX", "VOC", "AVR", "MAT5"])
def test_a_cut_file_is_truncated_with_both_figures(tmp_path: Path, kind: str) -> None:
    data = encoded(kind)
    (tmp_path / "whole").write_bytes(data)
    assert len(read_audio(tmp_path / "whole", RATE)) == len(WAVE)
    (tmp_path / "cut").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"truncated: its header announces 48\d\d\d bytes of samples, but there are 2"):
        read_audio(tmp_path / "cut", RATE)
    with pytest.raises(InputError, match="truncated"):
        read_wave(audio_file_cut(str(tmp_path / "cut"), "a"), RATE)


@pytest.mark.parametrize(("kind", "cut"), [("PAF", 1001), ("IRCAM", 1001)])
def test_a_file_that_says_no_length_is_truncated_within_a_sample(tmp_path: Path, kind: str, cut: int) -> None:
    data = encoded(kind)
    (tmp_path / "whole").write_bytes(data)
    assert len(read_audio(tmp_path / "whole", RATE)) == len(WAVE)
    (tmp_path / "cut").write_bytes(data[:-cut])
    with pytest.raises(InputError, match="truncated"):
        read_audio(tmp_path / "cut", RATE)


def header_length(data: bytes) -> int:
    frame = parse_header(data[:4])
    assert frame is not None
    return frame.length


def test_an_mp3_whose_header_announces_half_is_refused_in_bulk_too(tmp_path: Path) -> None:
    data = encoded("MP3", "MPEG_LAYER_III", bitrate_mode="VARIABLE", compression_level=0.5)
    at = data.index(b"Xing" if b"Xing" in data[:100] else b"Info") + 8
    data[at : at + 4] = struct.pack(">I", struct.unpack(">I", data[at : at + 4])[0] // 2)
    (tmp_path / "a.mp3").write_bytes(data)
    for read in (read_audio, lambda path, rate: read_wave(audio_file_cut(str(path), "a"), rate)):
        with pytest.raises(InputError, match=r"damaged.*header announces 0\.\d+ s, but its frames last 1\.\d+ s"):
            read(tmp_path / "a.mp3", RATE)


def test_an_mp3_without_a_header_that_breaks_off_in_a_frame_is_truncated(tmp_path: Path) -> None:
    data = encoded("MP3", "MPEG_LAYER_III")
    frames = bytes(data[header_length(data) :])
    (tmp_path / "a.mp3").write_bytes(frames)
    assert all(len(wave) > 24000 for wave in both(tmp_path / "a.mp3"))
    (tmp_path / "b.mp3").write_bytes(frames[:-50])
    for read in (read_audio, lambda path, rate: read_wave(audio_file_cut(str(path), "a"), rate)):
        with pytest.raises(InputError, match=r"truncated.*its last frame breaks off"):
            read(tmp_path / "b.mp3", RATE)


def test_a_vbri_header_is_not_taken_for_the_length(tmp_path: Path) -> None:
    data = encoded("MP3", "MPEG_LAYER_III")
    first = parse_header(bytes(data[:4]))
    assert first is not None
    frames, body = 0, bytes(data[first.length :])
    at = 0
    while at < len(body):
        at, frames = at + header_length(body[at:]), frames + 1
    header = bytearray(_header_frame(first, 1))
    header[4:] = bytes(len(header) - 4)
    text = b"VBRI" + struct.pack(">HHHIIHHHH", 1, 0, 75, len(data), frames, 0, 1, 2, 1)
    header[36 : 36 + len(text)] = text
    (tmp_path / "vbri.mp3").write_bytes(bytes(header) + body)
    (tmp_path / "none.mp3").write_bytes(body)
    assert np.array_equal(read_audio(tmp_path / "vbri.mp3", RATE), read_audio(tmp_path / "none.mp3", RATE))


def test_the_decoder_of_mp3_prints_nothing(tmp_path: Path, capfd) -> None:
    data = encoded("MP3", "MPEG_LAYER_III")
    (tmp_path / "a.mp3").write_bytes(data)
    (tmp_path / "b.mp3").write_bytes(data + bytes(5000))
    assert np.array_equal(read_audio(tmp_path / "a.mp3", RATE), read_audio(tmp_path / "b.mp3", RATE))
    assert capfd.readouterr() == ("", "")


def test_only_a_file_without_audio_is_said_to_hold_none(tmp_path: Path) -> None:
    (tmp_path / "a.ogg").write_bytes(b"<!DOCTYPE html>" * 50)
    with pytest.raises(InputError, match="no OGG in it"):
        read_audio(tmp_path / "a.ogg", RATE)
    other = io.BytesIO()
    soundfile.write(other, WAVE, 24000, format="OGG", subtype="VORBIS")
    (tmp_path / "b.ogg").write_bytes(encoded("OGG", "VORBIS") + other.getvalue())
    with pytest.raises(InputError, match="several streams, of 16000 Hz") as found:
        read_audio(tmp_path / "b.ogg", RATE)
    assert "no OGG" not in str(found.value)
