"""The audio of a cut as mono float32 at the codec's rate, in blocks of bounded size.

There is one path for short and long cuts: the file is read in blocks, channels are averaged, and a streaming resampler
(soxr HQ) turns the blocks into the codec's rate. soxr's stream gives the same samples for any split into blocks, so
neither the block size nor the length of a recording changes a sample.

Channels: a MonoCut reads its one channel, a MultiCut the mean of its channels. Mixes, recordings with transforms and
sources that are neither a file nor a URL are loaded by Lhotse itself, whole.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from pipelines.sources.audio_bytes import AudioBytes, open_audio
from pipelines.sources.cuts import FILE_SOURCES, CutError, SourceCut, describe_source, recordings
from pipelines.storage.places import open_place, size_of
from tokenizer.audio import LOUDEST, SHORTAGE_SECONDS, why_cut_off
from tokenizer.errors import InputError

BLOCK_SECONDS = 10.0


def expected_samples(cut: dict[str, Any], seconds: float, sample_rate: int) -> int:
    """Samples at `sample_rate` of a cut of `seconds` s: first rounded to source samples as Lhotse does, then to the
    codec's. 0 when the cut has no audio.

    Pure arithmetic on the manifest, so that batches can be laid out before any file is opened.
    """
    found = recordings(cut)
    rate = found[0].get("sampling_rate") if found else None
    if not isinstance(rate, (int, float)) or not 1 <= rate < math.inf:
        return 0
    rate = int(rate)
    return resampled_length(source_samples(seconds, rate), rate, sample_rate)


def source_samples(seconds: float, rate: int) -> int:
    """Samples in `seconds` at `rate` Hz, halves rounded up; noise of the decimal fraction is rounded off first."""
    return int(np.floor(round(seconds * rate, 8) + 0.5))


def resampled_length(samples: int, rate: int, new_rate: int) -> int:
    """Samples left of `samples` after resampling from `rate` to `new_rate` Hz, halves rounded up."""
    return (2 * samples * new_rate + rate) // (2 * rate)


def read_resampled(item: SourceCut, samples: int, sample_rate: int) -> Iterator[np.ndarray]:
    """Blocks of float32 [n] at `sample_rate` Hz, `samples` in total.

    Raises:
        CutError: the audio is missing, unreadable, shorter than the cut, holds NaN or infinity, or is louder than
            any audio.
    """
    if samples <= 0:
        _open_sources(item)  # a file that cannot be opened, or was cut off, says more than that nothing is there
        raise CutError("zero length", _why_empty(item))
    remaining = samples
    for block in _resample(_mono_blocks(item), sample_rate):
        if not np.isfinite(block).all():
            raise CutError("not finite", "the audio holds NaN or infinite samples")
        if block.size and (peak := float(np.abs(block).max())) > LOUDEST:
            raise CutError(
                "not audio", f"a sample is {peak:.3g}, full scale is 1; are its numbers floats from -1 to 1?"
            )
        block = block[:remaining]
        remaining -= len(block)
        yield block
        if remaining == 0:
            return
    if remaining == samples or remaining > SHORTAGE_SECONDS * sample_rate:
        found, wanted = (samples - remaining) / sample_rate, samples / sample_rate
        raise CutError("truncated", f"the cut lasts {wanted:.3f} s, but its audio ends after {found:.3f} s")
    yield np.zeros(remaining, np.float32)


def read_wave(item: SourceCut, sample_rate: int) -> np.ndarray:
    """The whole audio of one cut: float32 [S] at `sample_rate` Hz.

    Raises:
        InputError: wherever a bulk run would quarantine the cut; it names the cut, its source and what to do.
    """
    try:
        samples = expected_samples(item.cut, item.seconds, sample_rate)
        return np.concatenate(list(read_resampled(item, samples, sample_rate)))
    except MemoryError:
        raise
    except Exception as error:  # of libsndfile, Lhotse or the system: whatever is raised, the cut is at fault
        reason = f"{error.reason}, {error}" if isinstance(error, CutError) else f"{type(error).__name__}, {error}"
        raise InputError(
            f"cut {item.id} ({describe_source(item)}): {reason}; mend its audio or remove it from the manifest"
        ) from error


def _open_sources(item: SourceCut) -> None:
    """Raise what opening the audio of a cut raises."""
    import soundfile

    for recording in recordings(item.cut):
        for source in recording["sources"]:
            if item.audio is not None or source["type"] in FILE_SOURCES:
                audio = open_audio(source, item.audio)
                if item.audio is None and size_of(source["source"]) == 0:
                    raise CutError("zero length", "the file is empty")
                with soundfile.SoundFile(audio) as file:
                    _refuse_cut_off(file, file.frames)


def _why_empty(item: SourceCut) -> str:
    if not recordings(item.cut):
        return "the cut has no recording"
    if item.seconds <= 0:
        return f"the cut's duration is {item.cut.get('duration')} s"
    return f"{item.seconds} s is less than one sample of the codec"


Blocks = Iterator[tuple[np.ndarray, int]]
"""Mono float32 blocks, each with its sample rate in Hz (the same for all blocks of a cut)."""


def _resample(blocks: Blocks, sample_rate: int) -> Iterator[np.ndarray]:
    import soxr

    resampler = None
    for block, rate in blocks:
        if rate == sample_rate:
            yield block
            continue
        resampler = resampler or soxr.ResampleStream(rate, sample_rate, 1, dtype="float32", quality="HQ")
        yield resampler.resample_chunk(block)
    if resampler is not None:
        yield resampler.resample_chunk(np.zeros(0, np.float32), last=True)


def _mono_blocks(item: SourceCut) -> Blocks:
    cut = item.cut
    sources = [] if cut["type"] == "MixedCut" else cut["recording"]["sources"]
    is_file = all(source["type"] in FILE_SOURCES for source in sources) or item.audio is not None
    if cut["type"] == "MixedCut" or cut["recording"].get("transforms") or not is_file:
        return _blocks_from_lhotse(item)
    return _blocks_from_files(item)


def _blocks_from_files(item: SourceCut) -> Blocks:
    import soundfile

    cut = item.cut
    channels = cut["channel"] if isinstance(cut["channel"], list) else [cut["channel"]]
    wanted = [source for source in cut["recording"]["sources"] if set(source["channels"]) & set(channels)]
    missing = set(channels) - {channel for source in wanted for channel in source["channels"]}
    if missing:
        raise CutError("no such channel", f"channels {sorted(missing)} are in no source of the recording")
    start = cut.get("start") or 0.0
    if not isinstance(start, (int, float)) or not 0 <= start < math.inf:
        raise CutError("impossible start", f"the cut starts at {start} s, expected 0 or more")
    with contextlib.ExitStack() as stack:
        opened = [open_audio(source, item.audio) for source in wanted]
        files = [stack.enter_context(soundfile.SoundFile(audio)) for audio in opened]
        rate = files[0].samplerate
        columns = []
        for source, file in zip(wanted, files, strict=True):
            if file.channels < len(source["channels"]) or file.samplerate != rate:
                raise CutError(
                    "no such channel",
                    f"the manifest gives {source['source']} the channels {source['channels']}; it has {file.channels} "
                    f"at {file.samplerate} Hz",
                )
            columns.append([i for i, channel in enumerate(source["channels"]) if channel in channels])
            _skip(file, source_samples(start, rate))
        remaining, block_size = source_samples(item.seconds, rate), int(BLOCK_SECONDS * rate)
        for file in files:
            _refuse_cut_off(file, source_samples(start, rate) + remaining)
        while remaining > 0:
            parts = [
                file.read(min(block_size, remaining), dtype="float32", always_2d=True)[:, picked]
                for file, picked in zip(files, columns, strict=True)
            ]
            for audio in opened:
                if isinstance(audio, AudioBytes):
                    audio.check()
            frames = min(len(part) for part in parts)
            if frames == 0:
                return
            block = np.concatenate([part[:frames] for part in parts], axis=1)
            yield np.ascontiguousarray(block[:, 0] if block.shape[1] == 1 else block.mean(axis=1)), rate
            remaining -= frames


def _skip(file: Any, frames: int) -> None:
    """Go to a frame; GSM, for one, has to be decoded up to there."""
    if file.seekable():
        file.seek(min(frames, file.frames))
        return
    while frames > 0 and len(skipped := file.read(min(frames, int(BLOCK_SECONDS * file.samplerate)))):
        frames -= len(skipped)


def _refuse_cut_off(file: Any, end: int) -> None:
    """Raise CutError where a cut reaches the end of a file (frame `end`) that was longer when it was written."""
    if end >= file.frames and (why := why_cut_off(file)) is not None:
        raise CutError("truncated", why)


def _blocks_from_lhotse(item: SourceCut) -> Blocks:
    import copy

    from lhotse.serialization import deserialize_item

    cut = deserialize_item(copy.deepcopy(item.cut))  # it takes its argument apart
    if item.audio is not None:
        with open_place(item.audio.path) as tar:
            tar.seek(item.audio.offset)
            cut.recording.sources[0].type, cut.recording.sources[0].source = "memory", tar.read(item.audio.size)
    samples = np.atleast_2d(cut.load_audio())
    mono = samples[0] if len(samples) == 1 else samples.mean(axis=0)
    size = int(BLOCK_SECONDS * cut.sampling_rate)
    for begin in range(0, len(mono), size):
        yield np.ascontiguousarray(mono[begin : begin + size], np.float32), cut.sampling_rate
