"""The pictures of the demo page show what they claim to show."""

from __future__ import annotations

import io

import numpy as np
import pytest

from slm.demo import plots


def pixels(png: bytes) -> np.ndarray:
    """uint8 [H, W, 4]."""
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"))


@pytest.mark.parametrize(("rate", "hertz", "level"), [(16_000, 1000.0, -6.0), (24_000, 5200.0, -20.0)])
def test_spectrogram_puts_a_sine_at_its_frequency_and_level(rate, hertz, level):
    seconds = np.arange(rate) / rate
    decibels = plots.spectrogram(10 ** (level / 20) * np.sin(2 * np.pi * hertz * seconds), rate)
    middle = decibels[:, decibels.shape[1] // 2]
    row_hertz = rate / 2 / (len(decibels) - 1)
    assert np.argmax(middle) * row_hertz == pytest.approx(hertz, abs=row_hertz)
    # A bin can lie half a row away from the sine: a Hann window loses up to 1.4 dB there.
    assert middle.max() == pytest.approx(level, abs=1.5)


def test_spectrogram_frames_are_centred_on_their_time():
    rate = 16_000
    wave = np.zeros(rate)
    wave[12_000] = 1.0  # a click at 0.75 s
    loudest = plots.spectrogram(wave, rate).sum(axis=0).argmax()
    assert loudest * plots.HOP_SECONDS == pytest.approx(0.75, abs=plots.HOP_SECONDS)


@pytest.mark.parametrize("rate", [8_000, 16_000, 24_000])
def test_picture_rises_from_low_to_high_at_every_rate(rate):
    seconds = np.arange(rate) / rate
    picture = pixels(plots.spectrogram_png(0.5 * np.sin(2 * np.pi * 2000 * seconds), rate, top_hz=8000))
    brightness = picture[..., :3].astype(float).sum(axis=2).mean(axis=1)
    height = len(picture) - 1
    assert 1 - brightness.argmax() / height == pytest.approx(2000 / 8000, abs=0.01)


def test_token_track_has_the_highest_bit_on_top():
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 4096, 37)
    opaque = pixels(plots.token_track_png(tokens.tolist(), 12))[..., 3] == 255
    expected = np.array([[int(bit) for bit in f"{token:012b}"] for token in tokens]).T
    np.testing.assert_array_equal(opaque, expected == 1)


def test_colours_get_lighter_in_equal_steps():
    colours = plots.colour_map()
    assert colours.shape == (256, 4) and (colours[:, 3] == 255).all()
    srgb = colours[:, :3] / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    lightness = np.where(luminance > 0.008856, 116 * np.cbrt(luminance) - 16, 903.3 * luminance)  # CIELAB
    # Channels of 8 bits, and the four digits of sRGB's matrix, move the lightness by as much.
    np.testing.assert_allclose(lightness, np.linspace(0, plots.HIGHEST_LIGHTNESS, 256), atol=0.5)


def test_png_holds_the_levels_and_the_palette():
    rng = np.random.default_rng(4)
    levels = rng.integers(0, 200, (23, 41)).astype(np.uint8)
    palette = rng.integers(0, 256, (200, 4)).astype(np.uint8)
    palette[:, 3] = 255
    palette[7, 3] = 0
    np.testing.assert_array_equal(pixels(plots.palette_png(levels, palette)), palette[levels])
