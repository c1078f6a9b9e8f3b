"""The sound player of a page: one recording, in one or several versions. `player.html` draws it."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pipelines.pages.html import data_uri

COMPRESSION = 0.5  # libsndfile's range, from the largest MP3 file (0) to the smallest (1)


@dataclass(frozen=True)
class PlayerClip:
    """A recording on a page. versions: (name, address of the sound), the first one is loaded."""

    title: str
    note: str
    versions: tuple[tuple[str, str], ...]


def player_clip(id: str, text: str, about: str, waves: Mapping[str, np.ndarray], sample_rate: int) -> PlayerClip:
    """Embed a recording as MP3.

    Args:
        id: of the cut; the title where `text` is empty.
        text: what is said, may be empty.
        about: shown after the id.
        waves: version -> float32 [S] at `sample_rate` Hz, full scale 1.
    """
    versions = {name: data_uri("audio/mpeg", mp3_bytes(wave, sample_rate)) for name, wave in waves.items()}
    return PlayerClip(f"“{text}”" if text else id, f"{id}, {about}", tuple(versions.items()))


def mp3_bytes(wave: np.ndarray, sample_rate: int) -> bytes:
    """float32 [S] as MP3, which every browser plays: an eighth of a WAV file."""
    return _sound_file(wave, sample_rate, format="MP3", compression_level=COMPRESSION)


def wav_bytes(wave: np.ndarray, sample_rate: int) -> bytes:
    """float32 [S] as 16-bit WAV."""
    return _sound_file(wave, sample_rate, format="WAV", subtype="PCM_16")


def _sound_file(wave: np.ndarray, sample_rate: int, **options: object) -> bytes:
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(wave, -1, 1), sample_rate, **options)
    return buffer.getvalue()
