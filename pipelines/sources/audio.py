"""The audio of a cut as mono float32 at the codec's rate, in blocks of bounded size.

There is one path for short and long cuts: the file is read in blocks (see `tokenizer.audio_input`), channels are
averaged, and a streaming resampler (soxr HQ) turns the blocks into the codec's rate. soxr's stream gives the same
samples for any split into blocks, so neither the block size nor the length of a recording changes a sample.

Channels: a MonoCut reads its one channel, a MultiCut the mean of its channels. Mixes, recordings with transforms and
sources that are neither a file nor a URL are loaded by Lhotse itself, whole.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from pipelines.sources.access import FILE_SOURCES, REFUSED, why_refused
from pipelines.sources.audio_bytes import open_audio, open_reader
from pipelines.sources.cuts import LONGEST_SECONDS, UNUSABLE, CutError, SourceCut, describe_source, duration, recordings
from pipelines.sources.pieces import KnownPlace, TarPair
from pipelines.sources.shar_tars import find_pair
from pipelines.storage.places import is_url
from pipelines.storage.redirects import refused_redirect
from tokenizer.audio_input.contents import LOUDEST, BadAudio
from tokenizer.audio_input.reader import AudioReader
from tokenizer.errors import InputError

BLOCK_SECONDS = 10.0
SHORTAGE_SECONDS = 0.025  # audio may always end this much before its manifest says


def _tolerance() -> float:
    """Seconds by which a manifest may differ from its audio: those of the Lhotse that is installed."""
    from lhotse.audio.utils import get_audio_duration_mismatch_tolerance

    return get_audio_duration_mismatch_tolerance()


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
    _refuse_unusable(item)
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
        if len(block := block[:remaining]):  # to the end of the blocks, where the file is held against its checksum
            remaining -= len(block)
            yield block
    if remaining == 0:
        return
    if remaining == samples or (remaining > SHORTAGE_SECONDS * sample_rate and remaining > _tolerance() * sample_rate):
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


def _refuse_unusable(item: SourceCut) -> None:
    for recording in recordings(item.cut):
        for source in recording["sources"]:
            if source["type"] == UNUSABLE:
                raise CutError(str(source.get("reason")), str(source["source"]))


def _open_sources(item: SourceCut) -> None:
    """Raise what opening the audio of a cut raises."""
    for recording in recordings(item.cut):
        for source in recording["sources"]:
            if item.audio is not None or source["type"] in FILE_SOURCES:
                with _opened(source, item) as reader:
                    next(reader.read(0, 0), None)


@contextlib.contextmanager
def _opened(source: dict[str, Any], item: SourceCut) -> Iterator[AudioReader]:
    """The decoder of a source. Raises CutError for what is wrong with its audio, also while it is read."""
    try:
        reader, data = open_reader(source, _place(item), hosts=item.hosts, share=_share(item.cut))
        with contextlib.closing(data):
            yield reader
    except BadAudio as error:
        raise CutError(error.reason, str(error)) from None
    except Exception as error:
        if refused := refused_redirect(error):
            raise CutError("refused", str(refused)) from None
        raise


def _place(item: SourceCut) -> KnownPlace | None:
    """Where the audio of a cut is that has no file of its own. Raises CutError where a Shar tar does not have it."""
    if not isinstance(item.audio, TarPair):
        return item.audio
    try:
        return find_pair(item.audio)
    except BadAudio as error:
        raise CutError(error.reason, str(error)) from None


def _share(cut: dict[str, Any]) -> float:
    """How much of its recording a cut takes; 1 for a mix, of which that is not known."""
    lengths = [found.get("duration") for found in recordings(cut)]
    if len(lengths) != 1 or not isinstance(lengths[0], (int, float)) or not 0 < lengths[0] < math.inf:
        return 1.0
    return min(1.0, duration(cut) / lengths[0])


def _shown(seconds: float) -> str:
    if isinstance(seconds, int) and abs(seconds) > LONGEST_SECONDS:
        return f"a number of {len(str(abs(seconds)))} digits"
    return f"{seconds:g}"


def _why_empty(item: SourceCut) -> str:
    found = recordings(item.cut)
    if not found:
        return "the cut has no recording"
    rate = found[0].get("sampling_rate")
    if item.seconds <= 0:
        seconds = item.cut.get("duration")
        return f"the cut's duration is {_shown(seconds) if isinstance(seconds, (int, float)) else seconds} s"
    if not isinstance(rate, (int, float)) or not 1 <= rate < math.inf:
        return f"the sampling_rate of its recording is {rate!r}, expected a number of Hz"
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
    for recording in recordings(cut):
        for source in recording["sources"]:
            if source["type"] == REFUSED:
                raise CutError("refused", why_refused(source))
    sources = [] if cut["type"] == "MixedCut" else cut["recording"]["sources"]
    is_file = all(source["type"] in FILE_SOURCES for source in sources) or item.audio is not None
    if cut["type"] == "MixedCut" or cut["recording"].get("transforms") or not is_file:
        return _blocks_from_lhotse(item)
    return _blocks_from_files(item)


def _blocks_from_files(item: SourceCut) -> Blocks:
    cut = item.cut
    channels = cut["channel"] if isinstance(cut["channel"], list) else [cut["channel"]]
    wanted = [source for source in cut["recording"]["sources"] if set(source["channels"]) & set(channels)]
    missing = set(channels) - {channel for source in wanted for channel in source["channels"]}
    if missing or not channels:
        raise CutError("no such channel", f"channels {sorted(missing, key=str)} are in no source of the recording")
    with contextlib.ExitStack() as stack:
        readers = [stack.enter_context(_opened(source, item)) for source in wanted]
        rate = readers[0].sample_rate
        start = _start(cut, rate)
        columns = []
        for source, reader in zip(wanted, readers, strict=True):
            if reader.channels < len(source["channels"]) or reader.sample_rate != rate:
                raise CutError(
                    "no such channel",
                    f"the manifest gives {source['source']} the channels {source['channels']}; it has "
                    f"{reader.channels} at {reader.sample_rate} Hz",
                )
            _check_manifest(cut, reader)
            columns.append([i for i, channel in enumerate(source["channels"]) if channel in channels])
        remaining, block = source_samples(item.seconds, rate), int(BLOCK_SECONDS * rate)
        parts = [
            (data[:, picked] for data in reader.read(start, remaining, block))
            for reader, picked in zip(readers, columns, strict=True)
        ]
        for joined in parts[0] if len(parts) == 1 else _side_by_side(parts):
            yield np.ascontiguousarray(joined[:, 0] if joined.shape[1] == 1 else joined.mean(axis=1)), rate


def _start(cut: dict[str, Any], rate: int) -> int:
    """The first sample of a cut; a start below 0 by less than half a sample is a rounded 0."""
    start = cut.get("start") or 0.0
    if not isinstance(start, (int, float)) or not -0.5 / rate < start <= LONGEST_SECONDS:
        shown = _shown(start) if isinstance(start, (int, float)) else start
        raise CutError("impossible start", f"the cut starts at {shown} s, expected 0 or more")
    return max(0, source_samples(start, rate))


def _check_manifest(cut: dict[str, Any], reader: AudioReader) -> None:
    """Raise CutError where the file is not the recording that the manifest describes.

    The same seconds at another rate are the same recording (Opus decodes at rates of its own). The same number of
    samples at another rate is not, nor is a longer one where the cut is meant to be all of it.
    """
    recording, frames, rate = cut["recording"], reader.announced, reader.sample_rate
    samples, manifest_rate = recording.get("num_samples"), recording.get("sampling_rate")
    if not frames or not isinstance(samples, int) or not isinstance(manifest_rate, (int, float)) or manifest_rate < 1:
        return
    more = frames / rate - samples / manifest_rate
    same_samples = rate != manifest_rate and abs(frames - samples) <= 1
    longer = more > 0 and abs((cut.get("duration") or 0) - samples / manifest_rate) < 1 / manifest_rate
    if (same_samples or longer) and abs(more) > SHORTAGE_SECONDS and abs(more) > _tolerance():
        raise CutError(
            "wrong manifest",
            f"the manifest says {samples} samples at {manifest_rate:g} Hz ({samples / manifest_rate:.3f} s), the file "
            f"has {frames} at {rate} Hz ({frames / rate:.3f} s)",
        )


def _side_by_side(parts: Sequence[Iterator[np.ndarray]]) -> Iterator[np.ndarray]:
    """Blocks [n, C] of several files as blocks of all their channels, up to the end of the shortest."""
    held: list[np.ndarray | None] = [None] * len(parts)
    while True:
        for i, part in enumerate(parts):
            if held[i] is None and (block := next(part, None)) is None:
                return
            elif held[i] is None:
                held[i] = block
        blocks = [block for block in held if block is not None]
        frames = min(len(block) for block in blocks)
        yield np.concatenate([block[:frames] for block in blocks], axis=1)
        held = [block[frames:] if len(block) > frames else None for block in blocks]


def _refuse_damage(part: dict[str, Any], item: SourceCut) -> None:
    """Raise CutError where a part of a mix lies in a damaged file, which Lhotse would not notice."""
    end = (part.get("start") or 0.0) + duration(part)
    for recording in recordings(part):
        for source in recording["sources"]:
            if item.audio is not None or source["type"] in FILE_SOURCES:
                with _opened(source, item) as reader:
                    reader.refuse_damage(end)


def _blocks_from_lhotse(item: SourceCut) -> Blocks:
    import copy

    from lhotse.serialization import deserialize_item

    for part in [track["cut"] for track in item.cut["tracks"]] if item.cut["type"] == "MixedCut" else [item.cut]:
        _refuse_damage(part, item)
    description = copy.deepcopy(item.cut)  # Lhotse takes it apart
    if item.hosts is not None:  # it would follow redirects to others
        for recording in recordings(description):
            for source in recording["sources"]:
                if source["type"] in FILE_SOURCES and is_url(source["source"]):
                    with contextlib.closing(open_audio(source, None, item.hosts)) as data:
                        source["type"], source["source"] = "memory", data.read_at(0, data.size)
    cut = deserialize_item(description)
    if item.audio is not None:
        with contextlib.closing(open_audio({}, _place(item))) as data:
            cut.recording.sources[0].type, cut.recording.sources[0].source = "memory", data.read_at(0, data.size)
    samples = np.atleast_2d(cut.load_audio())
    mono = samples[0] if len(samples) == 1 else samples.mean(axis=0)
    size = int(BLOCK_SECONDS * cut.sampling_rate)
    for begin in range(0, len(mono), size):
        yield np.ascontiguousarray(mono[begin : begin + size], np.float32), cut.sampling_rate
