"""Files of several streams are planned as long as they are decoded, and a long file of one is not read to plan it."""

from __future__ import annotations

import functools
import io
from pathlib import Path

import numpy as np
import pytest
import soundfile

from pipelines.sources.audio import read_wave
from pipelines.sources.audio_files import audio_file_cut
from tokenizer.audio import read_audio
from tokenizer.audio_input import flac, glances, ogg
from tokenizer.audio_input.byte_source import FileBytes
from tokenizer.audio_input.ogg import _checksum, _pages
from tokenizer.audio_input.reader import AudioReader, examine

RATE = 16000
LOOK = 1 << 14  # bytes; real looks would need longer files
KINDS = {
    "flac": {"format": "FLAC"},
    "vorbis": {"format": "OGG", "subtype": "VORBIS"},
    "opus": {"format": "OGG", "subtype": "OPUS"},
}


@pytest.fixture(autouse=True)
def short_looks(monkeypatch) -> None:
    monkeypatch.setattr(glances, "LOOK_BYTES", LOOK)
    for module in (flac, ogg):
        monkeypatch.setattr(module, "SMALL_BYTES", 4 * LOOK)


@functools.cache
def encoded(seconds: int, seed: int, kind: str) -> bytes:
    """Noise whose loudness wanders, as that of speech does."""
    rng, buffer = np.random.default_rng(seed), io.BytesIO()
    with soundfile.SoundFile(buffer, "w", RATE, 1, **KINDS[kind]) as file:
        for _ in range(seconds):
            file.write(0.3 * rng.uniform(0.1) * rng.standard_normal(RATE))
    data = buffer.getvalue()
    return data if kind == "flac" else b"".join(pages(data, b"same"))


def pages(data: bytes, serial: bytes) -> list[bytes]:
    """The pages of an Ogg file, with that number of their stream."""
    found = []
    for _, page, _ in _pages(FileBytes(io.BytesIO(data), len(data))):
        changed = page[:14] + serial + page[18:]
        found.append(changed[:22] + _checksum(changed) + changed[26:])
    return found


@pytest.mark.parametrize("seconds", [(2, 1), (9, 9, 9, 9), (1, 32), (32, 1), (23, 11), (4,) * 9], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_streams_one_after_another_are_planned_as_they_are_read(tmp_path: Path, kind: str, seconds) -> None:
    path = tmp_path / "joined"
    path.write_bytes(b"".join(encoded(some, i, kind) for i, some in enumerate(seconds)))
    assert path.stat().st_size > 4 * LOOK or sum(seconds) < 5
    cut = audio_file_cut(str(path), "a")
    assert cut.seconds == pytest.approx(sum(seconds), abs=0.001)
    assert np.array_equal(read_wave(cut, RATE), read_audio(path, RATE))


class Counting(FileBytes):
    read = 0

    def read_at(self, offset: int, size: int) -> bytes:
        found = super().read_at(offset, size)
        self.read += len(found)
        return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_long_file_of_one_stream_is_not_read_to_plan_it(kind: str) -> None:
    data = encoded(240, 0, kind)
    source = Counting(io.BytesIO(data), len(data))
    contents = examine(source, quick=True)
    assert len(contents.streams) == 1
    assert source.read < 0.75 * len(data)
    assert AudioReader(source, contents).frames() == 240 * RATE


def test_streams_side_by_side_are_looked_at_whole() -> None:
    """The numbers of their pages do not rise."""
    sides = [pages(encoded(32, seed, "vorbis"), serial) for seed, serial in ((0, b"same"), (1, b"else"))]
    mixed = b"".join(page for pair in zip(*sides, strict=False) for page in pair)
    quick, whole = (examine(FileBytes(io.BytesIO(mixed), len(mixed)), quick) for quick in (True, False))
    assert quick == whole
