"""The demo's HTML page: what it shows, and how that becomes one file.

Sounds are embedded as 16-bit WAV, pictures as PNG. `demo_page.html` extends the base template of all our pages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.pages.charts import HEIGHT, WIDTH, curve_path, span_axis, value_axis
from pipelines.pages.html import Row, data_uri, render_page
from pipelines.pages.player import wav_bytes
from slm.demo import plots

TEMPLATE = Path(__file__).resolve().with_suffix(".html")
TOP_HZ = 8000.0  # upper edge of every spectrogram
LABEL_BITS = 0.3  # free height above the highest line of the loss chart, for its label


@dataclass(frozen=True)
class Waveform:
    """wave: float32 [S], full scale 1; sample_rate in Hz."""

    wave: np.ndarray
    sample_rate: int

    @property
    def seconds(self) -> float:
        return len(self.wave) / self.sample_rate


@dataclass(frozen=True)
class ShownClip:
    """A held-out utterance beside its resynthesis. `text` and `speaker` may be empty."""

    name: str
    speaker: str
    text: str
    original: Waveform
    resynthesis: Waveform

    @property
    def title(self) -> str:
        return f"“{self.text}”" if self.text else self.name

    @property
    def byline(self) -> str:
        speaker = f"speaker {self.speaker}, " if self.speaker else ""
        return f"{self.name}, {speaker}{self.original.seconds:.1f} s"


@dataclass(frozen=True)
class ShownContinuation:
    """Prompt and continuation as one sound, and the tokens [T] it was decoded from.

    `note` describes how it was made; the prompt ends at prompt_seconds; token_rate is in tokens per second.
    """

    title: str
    note: str
    sound: Waveform
    prompt_seconds: float
    tokens: Sequence[int]
    token_rate: float
    bits: int

    @property
    def prompt_part(self) -> float:
        """How much of the sound the prompt is, from 0 to 1."""
        return self.prompt_seconds / self.sound.seconds


@dataclass(frozen=True)
class LossCurve:
    """Points are (step, bits per token); `levels` are named horizontal lines in bits per token."""

    train: Sequence[tuple[float, float]]
    held_out: Sequence[tuple[float, float]]
    levels: Sequence[tuple[str, float]]


@dataclass(frozen=True)
class Table:
    caption: str
    rows: Sequence[Row]


@dataclass(frozen=True)
class Page:
    """The content of the page. Texts are plain text, not HTML."""

    title: str
    introduction: Sequence[str]
    caveat: str  # what to know before judging the sounds
    headlines: Sequence[Row]
    continuation_text: str
    continuations: Sequence[ShownContinuation]
    resynthesis_text: str
    clips: Sequence[ShownClip]
    dataset_text: str
    dataset: Table
    training_text: str
    loss: LossCurve
    figures_text: str
    tables: Sequence[Table]
    footer: str


def render(page: Page) -> str:
    """The page as HTML."""
    low, high = (f"{level:.0f} dB".replace("-", "−") for level in plots.DB_RANGE)
    return render_page(
        TEMPLATE,
        page=page,
        loss=loss_plot(page.loss),
        frequency_axis=value_axis(0, TOP_HZ / 1000),
        time_axis=lambda sound: span_axis(sound.seconds, 6),
        spectrogram_uri=lambda sound: png_uri(plots.spectrogram_png(sound.wave, sound.sample_rate, TOP_HZ)),
        tokens_uri=lambda item: png_uri(plots.token_track_png(item.tokens, item.bits)),
        wav_uri=lambda sound: data_uri("audio/wav", wav_bytes(sound.wave, sound.sample_rate)),
        scale={"uri": png_uri(plots.colour_scale_png()), "low": low, "high": high},
    )


def png_uri(picture: bytes) -> str:
    return data_uri("image/png", picture)


def loss_plot(curve: LossCurve) -> dict[str, Any]:
    """Axes and SVG paths of bits per token over training steps."""
    points = [*curve.train, *curve.held_out]
    values = [bits for _, bits in points] + [bits for _, bits in curve.levels]
    x = span_axis(max(step for step, _ in points), 4)
    y = value_axis(min(values), max(values) + LABEL_BITS)

    def path(line: Sequence[tuple[float, float]]) -> str:
        return curve_path(line, x, y, WIDTH, HEIGHT)

    return {
        "x": x,
        "y": y,
        "box": (WIDTH, HEIGHT),
        "summary": f"Loss in bits per token: held-out from {curve.held_out[0][1]:.2f} to {curve.held_out[-1][1]:.2f}",
        "train": path(curve.train),
        "held_out": path(curve.held_out),
        "points": "".join(path([point]) + "h0" for point in curve.held_out),
        "levels": [
            {"name": f"{name} {bits:.2f}", "path": path([(0, bits), (x.high, bits)]), "top": 1 - y.part(bits)}
            for name, bits in curve.levels
        ],
    }
