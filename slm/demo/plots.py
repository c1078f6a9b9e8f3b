"""Pictures for the demo page: spectrograms and token tracks, as PNG files.

They have no labels or ticks: the page draws those as text, so that they stay legible on a narrow screen and in dark
mode. Letters in shapes: S samples, F frequency rows, T frames or tokens, H and W pixels.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from functools import cache

import numpy as np

WINDOW_SECONDS = 0.025
HOP_SECONDS = 0.0125
DB_RANGE = (-95.0, -30.0)  # dB, 0 is a full-scale sine; one scale for all pictures, so that they can be compared
HUES = (300.0, 450.0)  # degrees in CIELAB from quiet to loud: violet, red, yellow
HIGHEST_LIGHTNESS, HIGHEST_CHROMA = 96.0, 66.0  # in CIELAB; more chroma would leave sRGB
D65 = (0.95047, 1.0, 1.08883)  # XYZ of white
XYZ_TO_LINEAR_SRGB = ((3.2406, -1.5372, -0.4986), (-0.9689, 1.8758, 0.0415), (0.0557, -0.2040, 1.0570))
TOKEN_COLOUR = (28, 148, 143)  # red, green, blue; reads on a white and on a black page


def spectrogram_png(wave: np.ndarray, sample_rate: int, top_hz: float) -> bytes:
    """A power spectrogram, 0 Hz at the bottom and `top_hz` at the top.

    Args:
        wave: float [S], full scale 1.
        sample_rate: Hz.
        top_hz: the upper edge in Hz. Frequencies above half the sample rate are drawn as silence.
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
    low, high = DB_RANGE
    levels = np.clip((decibels - low) / (high - low) * 255, 0, 255).round().astype(np.uint8)
    return palette_png(levels, colour_map())


@cache
def colour_map() -> np.ndarray:
    """uint8 [256, 4], opaque colours from black to pale yellow, through violet and red.

    Their CIELAB lightness (CIE 1976) rises in equal steps, so that equal differences in dB look equally large.
    """
    level = np.linspace(0, 1, 256)
    hue = np.radians(HUES[0] + (HUES[1] - HUES[0]) * level)
    chroma = HIGHEST_CHROMA * np.sin(np.pi * level)
    srgb = lab_to_srgb(np.stack((HIGHEST_LIGHTNESS * level, chroma * np.cos(hue), chroma * np.sin(hue)), 1))
    return np.concatenate(((255 * srgb).round(), np.full((256, 1), 255)), 1).astype(np.uint8)


def lab_to_srgb(colours: np.ndarray) -> np.ndarray:
    """CIELAB [N, 3] of the white point D65 as sRGB (IEC 61966-2-1) [N, 3] from 0 to 1, clipped to that range."""
    middle = (colours[:, 0] + 16) / 116
    cubed = np.stack((middle + colours[:, 1] / 500, middle, middle - colours[:, 2] / 200), 1)
    xyz = np.where(cubed > 6 / 29, cubed**3, 3 * (6 / 29) ** 2 * (cubed - 4 / 29)) * D65
    linear = np.clip(xyz @ np.transpose(XYZ_TO_LINEAR_SRGB), 0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def token_track_png(tokens: Sequence[int], bits: int) -> bytes:
    """The bits of each token as a column, highest bit on top: set is coloured, clear is transparent."""
    planes = np.asarray(tokens)[None] >> np.arange(bits - 1, -1, -1)[:, None] & 1
    return palette_png(planes.astype(np.uint8), np.array([[0, 0, 0, 0], [*TOKEN_COLOUR, 255]], dtype=np.uint8))


def palette_png(levels: np.ndarray, palette: np.ndarray) -> bytes:
    """A PNG file (ISO/IEC 15948) with a palette: a third of the bytes of true colour.

    Args:
        levels: uint8 [H, W], rows of the palette.
        palette: uint8 [at most 256, 4]: red, green, blue, alpha.
    """
    height, width = levels.shape
    rows = np.pad(levels, ((0, 0), (1, 0)))  # each row begins with its filter, 0: none
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0),  # 8 bits a pixel, with a palette
        b"PLTE": palette[:, :3].tobytes(),
        b"tRNS": palette[:, 3].tobytes(),
        b"IDAT": zlib.compress(rows.tobytes(), 9),
        b"IEND": b"",
    }
    framed = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks.items()
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)
