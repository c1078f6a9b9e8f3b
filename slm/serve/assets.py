"""The page's files and its example prompts."""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path

import numpy as np
import soundfile

from tokenizer.audio import read_audio

PAGE = Path(__file__).resolve().parent / "page"
SPEECH = Path(__file__).resolve().parents[1] / "demo" / "speech" / "audio"
EXAMPLES = {  # bundled prompts for the page, with the start of each sentence
    "ada-01": "Ada: The lighthouse keeper counted seven ships …",
    "ben-01": "Ben: Please leave the blue ladder …",
}
EXAMPLE_RATE = 16000  # Hz
EXAMPLE_SECONDS = 3.0


@cache
def example_wav(name: str) -> bytes:
    """An example of `EXAMPLES` as a WAV file."""
    wave = read_audio(SPEECH / f"{name}.ogg", EXAMPLE_RATE, EXAMPLE_SECONDS)
    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(wave, -1, 1), EXAMPLE_RATE, format="WAV", subtype="PCM_16")
    return buffer.getvalue()
