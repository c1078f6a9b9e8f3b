"""The demo's page: one HTML file that needs nothing but itself.

Sounds are embedded as 16-bit WAV, pictures as PNG, the skeleton, style and script come from `template/`,
and what it has in common with our other pages from `pipelines.pages.html`.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template

import numpy as np

from pipelines.pages.axes import curve_path, span_axis, value_axis, x_axis_html, y_axis_html
from pipelines.pages.html import Row, base_css, data_uri, headlines_html
from slm.demo import plots

ASSETS = Path(__file__).resolve().parent / "template"
TOP_HZ = 8000.0  # upper edge of every spectrogram
LABEL_BITS = 0.3  # free height above the loss curve's highest line, for its name


@dataclass(frozen=True)
class Sound:
    """wave: float32 [S], full scale 1; sample_rate in Hz."""

    wave: np.ndarray
    sample_rate: int

    @property
    def seconds(self) -> float:
        return len(self.wave) / self.sample_rate


@dataclass(frozen=True)
class Clip:
    """A held-out utterance beside its resynthesis. `text` and `speaker` may be empty."""

    name: str
    speaker: str
    text: str
    original: Sound
    resynthesis: Sound


@dataclass(frozen=True)
class Continuation:
    """Prompt and continuation as one sound, and the tokens [T] it was decoded from.

    `note` says how it was made; prompt_seconds is where the prompt ends; token_rate is in tokens per second.
    """

    title: str
    note: str
    sound: Sound
    prompt_seconds: float
    tokens: Sequence[int]
    token_rate: float
    bits: int


@dataclass(frozen=True)
class LossCurve:
    """Points are (step, bits per token); `levels` are named horizontal lines in bits per token."""

    train: Sequence[tuple[float, float]]
    heldout: Sequence[tuple[float, float]]
    levels: Sequence[tuple[str, float]]


@dataclass(frozen=True)
class Table:
    caption: str
    rows: Sequence[Row]


@dataclass(frozen=True)
class Page:
    """Everything the page says. Texts are plain text, not HTML."""

    title: str
    introduction: Sequence[str]
    caveat: str  # what a listener must know before judging what they hear
    headlines: Sequence[Row]
    continuation_text: str
    continuations: Sequence[Continuation]
    resynthesis_text: str
    clips: Sequence[Clip]
    dataset_text: str
    dataset: Table
    training_text: str
    loss: LossCurve
    figures_text: str
    tables: Sequence[Table]
    footer: str


def render(page: Page) -> str:
    """The page as HTML."""
    introduction = "".join(f"<p>{escape(text)}</p>" for text in page.introduction)
    return Template((ASSETS / "page.html").read_text(encoding="utf-8")).substitute(
        title=escape(page.title),
        css=base_css() + (ASSETS / "page.css").read_text(encoding="utf-8").strip(),
        js=(ASSETS / "page.js").read_text(encoding="utf-8").strip(),
        introduction=introduction + f'<p class="note">{escape(page.caveat)}</p>',
        headlines=headlines_html(page.headlines),
        continuation_text=escape(page.continuation_text),
        continuations="".join(map(continuation_html, page.continuations)),
        resynthesis_text=escape(page.resynthesis_text),
        clips="".join(map(clip_html, page.clips)),
        scale=data_uri("image/png", plots.colour_scale_png()),
        scale_low=f"{plots.DB_RANGE[0]:.0f} dB".replace("-", "−"),
        scale_high=f"{plots.DB_RANGE[1]:.0f} dB".replace("-", "−"),
        dataset_text=escape(page.dataset_text),
        dataset=table_html(page.dataset),
        training_text=escape(page.training_text),
        loss=loss_html(page.loss),
        figures_text=escape(page.figures_text),
        tables=f'<div class="tables">{"".join(map(table_html, page.tables))}</div>',
        footer=escape(page.footer),
    )


def table_html(table: Table) -> str:
    rows = []
    for row in table.rows:
        note = f"<small>{escape(row.note)}</small>" if row.note else ""
        rows.append(f'<tr><th scope="row">{escape(row.label)}{note}</th><td>{escape(row.value)}</td></tr>')
    return f"<table><caption>{escape(table.caption)}</caption><tbody>{''.join(rows)}</tbody></table>"


def clip_html(clip: Clip) -> str:
    """Original and resynthesis side by side."""
    quote = f"“{clip.text}”" if clip.text else clip.name
    return (
        f"<article><h3>{escape(quote)}</h3>{byline(clip)}"
        f'<div class="pair">{sound_html("Original", clip.original, clip.name)}'
        f"{sound_html('Resynthesis', clip.resynthesis, clip.name)}</div></article>"
    )


def byline(clip: Clip) -> str:
    parts = [clip.name, f"speaker {clip.speaker}" if clip.speaker else "", f"{clip.original.seconds:.1f} s"]
    return f'<p class="soft">{escape(", ".join(filter(None, parts)))}</p>'


def continuation_html(item: Continuation) -> str:
    """One wide plot: the spectrogram, the token track below it on the same time axis, and the player."""
    where = item.prompt_seconds / item.sound.seconds
    mark = f'<span class="mark" style="left:{where:.3%}"><b>prompt ends</b></span>'
    bare_mark = f'<span class="mark" style="left:{where:.3%}"></span>'
    ids = ",".join(str(int(token)) for token in item.tokens)
    track = (
        f'<div class="bits" aria-hidden="true"><span>bit {item.bits}</span><span>1</span></div>'
        f'<div class="area track" tabindex="0" role="slider" aria-label="Tokens of {escape(item.title)}" '
        f'aria-valuemin="0" aria-valuemax="{len(item.tokens) - 1}" aria-valuenow="0" '
        f'data-tokens="{ids}" data-bits="{item.bits}" data-rate="{item.token_rate:g}">'
        f'<img src="{data_uri("image/png", plots.token_track_png(item.tokens, item.bits))}" '
        f'alt="{item.bits} bits of each of {len(item.tokens)} tokens over time">'
        f'{bare_mark}<span class="playhead"></span><span class="cursor"></span></div>'
    )
    figure = plot_html(item.title, item.sound, mark=mark, below=track, css_class="wide")
    return f'<article><h3>{escape(item.title)}</h3><p class="soft">{escape(item.note)}</p>{figure}</article>'


def sound_html(label: str, sound: Sound, name: str) -> str:
    return plot_html(f"{label} of {name}", sound, caption=label)


def plot_html(
    title: str, sound: Sound, *, caption: str = "", mark: str = "", below: str = "", css_class: str = ""
) -> str:
    """A spectrogram with its axes and its player. `title` names it to a screen reader."""
    picture = data_uri("image/png", plots.spectrogram_png(sound.wave, sound.sample_rate, TOP_HZ))
    time = span_axis(sound.seconds, 6)
    frequency = value_axis(0, TOP_HZ / 1000)
    readout = '<output class="readout" aria-live="off">Point at a token, or step with the arrow keys.</output>'
    return (
        f'<figure class="{css_class}" data-sound data-seconds="{sound.seconds:.4f}">'
        + (f"<figcaption>{escape(caption)}</figcaption>" if caption else "")
        + f'<div class="plot">{y_axis_html(frequency, "kHz")}'
        f'<div class="area"><img src="{picture}" alt="Spectrogram: {escape(title)}, 0 to {TOP_HZ / 1000:g} kHz, '
        f'{sound.seconds:.1f} s">{mark}<span class="playhead"></span></div>'
        f"{below}{x_axis_html(time, 's')}{readout if below else ''}</div>"
        f'<audio controls preload="metadata" aria-label="{escape(title)}" '
        f'src="{data_uri("audio/wav", wav_bytes(sound))}"></audio></figure>'
    )


def loss_html(curve: LossCurve) -> str:
    """Bits per token over training steps."""
    everything = [*curve.train, *curve.heldout]
    values = [bits for _, bits in everything] + [bits for _, bits in curve.levels]
    x = span_axis(max(step for step, _ in everything), 4)
    y = value_axis(min(values), max(values) + LABEL_BITS)
    width, height = 600.0, 240.0
    lines = "".join(
        f'<line x1="0" x2="{width}" y1="{(1 - y.part(tick)) * height:.2f}" y2="{(1 - y.part(tick)) * height:.2f}"/>'
        for tick in y.ticks
    )
    names = ""
    for index, (name, level) in enumerate(curve.levels):
        top = 1 - y.part(level)
        side = "below" if index % 2 else "above"  # two levels that nearly meet keep their names apart
        lines += f'<line class="level" x1="0" x2="{width}" y1="{top * height:.2f}" y2="{top * height:.2f}"/>'
        names += f'<span class="level-name {side}" style="top:{top:.2%}">{escape(name)} {level:.2f}</span>'
    train = curve_path(curve.train, x, y, width, height)
    heldout = curve_path(curve.heldout, x, y, width, height)
    points = "".join(curve_path([point], x, y, width, height) + "h0" for point in curve.heldout)
    first, last = curve.heldout[0][1], curve.heldout[-1][1]
    return (
        '<figure class="loss"><figcaption>Loss, bits per token</figcaption>'
        '<ul class="legend"><li class="train"><i></i>training batches</li>'
        '<li class="heldout"><i></i>held-out</li><li class="level"><i></i>for comparison</li></ul>'
        f'<div class="plot">{y_axis_html(y, "bits")}<div class="area">'
        f'<svg viewBox="0 0 {width:g} {height:g}" preserveAspectRatio="none" role="img" '
        f'aria-label="Loss in bits per token: held-out from {first:.2f} to {last:.2f}">{lines}'
        f'<path class="train" d="{train}"/><path class="heldout" d="{heldout}"/>'
        f'<path class="heldout points" d="{points}"/></svg>{names}</div>'
        f"{x_axis_html(x, 'steps')}</div></figure>"
    )


def wav_bytes(sound: Sound) -> bytes:
    """16-bit WAV."""
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(sound.wave, -1, 1), sound.sample_rate, format="WAV", subtype="PCM_16")
    return buffer.getvalue()
