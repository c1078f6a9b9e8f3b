"""Plain audio files as cuts: folders, globs and single files."""

from __future__ import annotations

import os
from collections.abc import Iterator

from pipelines.sources.audio_bytes import open_audio
from pipelines.sources.cuts import SourceCut, whole_recording
from pipelines.storage.places import files_below, is_url, join, parent
from tokenizer.audio import AUDIO_SUFFIXES
from tokenizer.errors import InputError


def is_audio(place: str) -> bool:
    """Whether a file's name says that it is audio."""
    return os.path.splitext(place)[1].lower() in AUDIO_SUFFIXES


def audio_files(folder: str) -> Iterator[str]:
    """Paths of the audio files below `folder`, relative to it, in a fixed order; hidden ones are left out."""
    return filter(is_audio, files_below(folder))


def read_audio_folder(folder: str) -> Iterator[SourceCut]:
    """A cut for every audio file below `folder`; its id is its path in there. Raises InputError when there is none."""
    found = False
    for name in audio_files(folder):
        found = True
        yield audio_file_cut(join(folder, name), name)
    if not found:
        raise InputError(
            f"{folder}: no audio below it and no Shar manifests in it; expected files ending in "
            f"{', '.join(sorted(AUDIO_SUFFIXES))}"
        )


def id_beside(place: str, inputs: list[str]) -> str:
    """The id of an audio file given by name or glob: its path below the folder all inputs share."""
    return os.path.relpath(place, os.path.commonpath([parent(other) for other in inputs])).replace(os.sep, "/")


def audio_file_cut(place: str, cut_id: str) -> SourceCut:
    """The cut of a whole audio file. A file whose header cannot be read becomes a cut of no length, and tokenizing
    it says why."""
    import soundfile

    source = {"type": "url" if is_url(place) else "file", "source": place}
    try:
        with soundfile.SoundFile(open_audio(source, None)) as file:
            rate, frames, channels = file.samplerate, file.frames, list(range(file.channels))
    except Exception:  # of libsndfile, the system or a network: reading the cut meets it again, and tells
        rate, frames, channels = 0, 0, [0]
    recording = {
        "id": cut_id,
        "sources": [{"type": source["type"], "channels": channels, "source": place}],
        "sampling_rate": rate,
        "num_samples": frames,
        "duration": frames / rate if rate else 0.0,
        "channel_ids": channels,
    }
    return SourceCut(whole_recording(recording))
