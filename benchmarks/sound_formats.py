"""A corpus in other formats: for the benchmarks that compare what reading them takes."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import soundfile

SUFFIXES = {"wav": "wav", "flac": "flac", "vorbis": "ogg", "opus": "opus", "mp3": "mp3", "m4a": "m4a"}
_BY_LIBSNDFILE = {
    "wav": ("WAV", "PCM_16"),
    "flac": ("FLAC", "PCM_16"),
    "vorbis": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
}


def write_as(kind: str, manifest: Path, folder: Path) -> Path:
    """Every cut of a manifest as a file of that format, and the manifest of these files."""
    from pipelines.sources.audio import read_wave
    from pipelines.sources.audio_files import audio_file_cut
    from pipelines.sources.manifests import read_cuts

    folder.mkdir()
    lines = []
    for number, item in enumerate(read_cuts([str(manifest)])):
        path, rate = folder / f"{number:06d}.{SUFFIXES[kind]}", int(item.cut["recording"]["sampling_rate"])
        path.write_bytes(encoded(read_wave(item, rate), rate, kind))
        lines.append(json.dumps(audio_file_cut(str(path), path.name).cut) + "\n")
    written = folder.with_suffix(".jsonl")
    written.write_text("".join(lines))
    return written


def encoded(wave: np.ndarray, rate: int, kind: str) -> bytes:
    """Float samples [S] as a file."""
    buffer = io.BytesIO()
    if kind in _BY_LIBSNDFILE:
        format_, subtype = _BY_LIBSNDFILE[kind]
        with soundfile.SoundFile(buffer, "w", rate, 1, subtype, format=format_) as file:
            for begin in range(0, len(wave), rate):  # libsndfile crashes where it gets minutes of Vorbis at once
                file.write(wave[begin : begin + rate])
        return buffer.getvalue()
    import av

    with av.open(buffer, "w", format="ipod") as container:
        stream = container.add_stream("aac", rate=rate)
        stream.layout, stream.bit_rate = "mono", 64000
        frame = av.AudioFrame.from_ndarray(wave[None].astype(np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = rate, 0
        for piece in (frame, None):
            container.mux(stream.encode(piece))
    return buffer.getvalue()
