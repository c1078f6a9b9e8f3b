"""Pictures for the demo page: spectrograms and token tracks.

Pictures carry no words or ticks: the page draws those as text, so that they stay legible on a narrow screen and in
the dark. Letters in shapes: S samples, F frequency rows, T frames (or tokens).
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np

WINDOW_SECONDS = 0.025
HOP_SECONDS = 0.0125
DB_RANGE = (-95.0, -30.0)  # dB, 0 is a full-scale sine; one scale for every picture, so that they can be compared
COLOUR_MAP = "magma"
TOKEN_COLOUR = (28, 148, 143)  # red, green, blue; reads on a white and on a black page


def spectrogram_png(wave: np.ndarray, sample_rate: int, top_hz: float) -> bytes:
    """A power spectrogram, 0 Hz at the bottom and `top_hz` at the top.

    Args:
        wave: float [S], full scale 1.
        sample_rate: Hz.
        top_hz: the upper edge in Hz. What lies above half the sample rate is drawn as silence.
    """
    decibels = spectrogram(wave, sample_rate)
    rows = max(1, round(top_hz / (sample_rate / 2) * (len(decibels) - 1)) + 1)
    missing = max(0, rows - len(decibels))
    decibels = np.pad(decibels[:rows], ((0, missing), (0, 0)), constant_values=DB_RANGE[0])
    return coloured_png(decibels[::-1])


def spectrogram(wave: np.ndarray, sample_rate: int) -> np.ndarray:
    """Power in dB, [F, T]: rows from 0 Hz to half the sample rate, one frame every HOP_SECONDS centred on its time."""
    window = round(WINDOW_SECONDS * sample_rate)
    hop = round(HOP_SECONDS * sample_rate)
    padded = np.pad(np.asarray(wave, dtype=np.float64), window // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[::hop]
    taper = np.hanning(window)
    size = 1 << (window - 1).bit_length()
    amplitude = np.abs(np.fft.rfft(frames * taper, n=size)) * 2 / taper.sum()
    return 20 * np.log10(np.maximum(amplitude.T, 1e-10))


def colour_scale_png() -> bytes:
    """The colours of DB_RANGE from left to right."""
    return coloured_png(np.linspace(*DB_RANGE, 128)[None])


def coloured_png(decibels: np.ndarray) -> bytes:
    """dB values [F, T], first row on top, as a picture of one pixel a value."""
    from matplotlib import colormaps

    low, high = DB_RANGE
    levels = np.clip((decibels - low) / (high - low) * 255, 0, 255).round().astype(np.uint8)
    palette = colormaps[COLOUR_MAP](np.arange(256), bytes=True)
    return palette_png(levels, palette)


def token_track_png(tokens: Sequence[int], bits: int) -> bytes:
    """The bits of each token as a column, highest bit on top: set is coloured, clear is transparent."""
    planes = np.asarray(tokens)[None] >> np.arange(bits - 1, -1, -1)[:, None] & 1
    return palette_png(planes.astype(np.uint8), np.array([[0, 0, 0, 0], [*TOKEN_COLOUR, 255]], dtype=np.uint8))


def palette_png(levels: np.ndarray, palette: np.ndarray) -> bytes:
    """uint8 levels [H, W] through a palette of (red, green, blue, alpha) rows: a third of the bytes of true colour."""
    from PIL import Image  # matplotlib brings it

    picture = Image.fromarray(levels).convert("P")
    picture.putpalette(palette.tobytes(), rawmode="RGBA")
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
