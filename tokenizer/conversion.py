"""Voice conversion: before decoding, each frame becomes the mean of its k nearest frames of a reference recording
(k-NN voice conversion: arXiv 2305.18975, section 2).

As in FocalCodec (arXiv 2502.04465 and its published code): k = 4, cosine distance, equal weights. The source's frames
are dequantized from its tokens. The reference's frames are the encoder's features, without quantization; the
decompressor is trained to restore these. The published demo takes them from the non-causal model. A `Voice` can do the
same: it may come from any codec with the same feature space as the codec that decodes. In a codec that was trained on
the wave alone, encoder and decompressor features are unrelated, so there the reference is quantized too.

Legend: B batch, T frames, N reference frames, D channels, S samples.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from tokenizer.audio import read_audio
from tokenizer.audio_input.kinds import AUDIO_SUFFIXES, is_audio_file
from tokenizer.chunks import regrouped
from tokenizer.errors import InputError
from tokenizer.live import LiveStream
from tokenizer.model import CodecModel

log = logging.getLogger(__name__)

NEIGHBOURS = 4
NAMED = 5  # files passed over that are named
REFERENCE_SECONDS = 600.0  # used at most; beyond five minutes a reference gains little (kNN-VC's README)
PIECE_SECONDS = 30.0  # of the reference that are encoded at a time: bounds memory
BLOCK_FRAMES = 8192  # of reference compared at a time: bounds memory
TIED = 0.5  # mean cosine above which encoder and decompressor share a space; the shipped codec has 0.01


class Voice:
    """Reference frames of one speaker, for `Codec.decode(tokens, voice)` and `Codec.decode_step`.

    Args:
        features: [N, D], in the space of the decoder's input.
        seconds: of reference audio behind them.
        source: what to call that audio.

    Raises:
        InputError: for fewer than 4 frames.
    """

    def __init__(self, features: Tensor, seconds: float, source: str = "the reference") -> None:
        if len(features) < NEIGHBOURS:
            raise InputError(f"{source} holds {seconds:.2f} s of audio; expected some seconds at least, better minutes")
        self.features = features
        self.seconds = seconds
        self._inverse_norms = features.norm(dim=-1).clamp(min=torch.finfo(features.dtype).tiny).reciprocal()

    @classmethod
    def from_path(cls, codec: CodecModel, path: str | Path) -> Voice:
        """The voice of a sound file, or of all sound files in a folder and its subfolders, in the order of their names.

        Raises:
            InputError: when nothing is there, or no sound file can be read. Unreadable files of a folder are skipped
                with a warning; files beyond the first `REFERENCE_SECONDS` are not opened.
        """
        return cls.from_waves(codec, _read(find_sounds(path), codec.sample_rate_in), str(path))

    @classmethod
    @torch.no_grad()
    def from_waves(cls, codec: CodecModel, waves: Iterable[Tensor], source: str = "the reference") -> Voice:
        """The voice of recordings [S] at `codec.sample_rate_in`; what exceeds `REFERENCE_SECONDS` is left out."""
        rate, samples, features, tied = codec.sample_rate_in, 0, [], None
        for piece in _pieces(waves, int(PIECE_SECONDS * rate), int(REFERENCE_SECONDS * rate)):
            samples += len(piece)
            if tied is None:
                encoded, restored = codec.features(piece)[0], codec.dequantize(codec.encode(piece))[0]
                tied = bool(F.cosine_similarity(encoded, restored[: len(encoded)], dim=-1).mean() > TIED)
                features.append(encoded if tied else restored)
            else:
                features.append(codec.features(piece)[0] if tied else codec.dequantize(codec.encode(piece))[0])
        return cls(torch.cat(features) if features else torch.zeros(0, 1), samples / rate, source)

    def nearest(self, features: Tensor) -> Tensor:
        """Each frame of [B, T, D] as the mean of its nearest in the reference: [B, T, D].

        Raises:
            InputError: when D is another than the reference's.
        """
        if features.shape[-1] != self.features.shape[-1]:
            raise InputError(
                f"the voice has {self.features.shape[-1]} channels, this codec {features.shape[-1]}; make the voice "
                "with the codec that decodes"
            )
        queries = features.flatten(0, 1)
        best = queries.new_zeros(len(queries), 0)
        indices = best.long()
        for begin in range(0, len(self.features), BLOCK_FRAMES):
            block = slice(begin, begin + BLOCK_FRAMES)
            # Dividing by the query's norm would not change its ranking.
            similarity = queries @ self.features[block].T * self._inverse_norms[block]
            found, at = similarity.topk(min(NEIGHBOURS, similarity.shape[1]))
            best, kept = torch.cat([best, found], 1).topk(min(NEIGHBOURS, best.shape[1] + found.shape[1]))
            indices = torch.cat([indices, at + begin], 1).gather(1, kept)
        return self.features[indices].mean(1).view_as(features)


def find_sounds(path: str | Path) -> list[Path]:
    """A sound file itself, or the sound files in a folder and below, sorted; hidden ones are left out. A file counts if
    its first bytes or its name say that it is audio (see `is_audio_file`). Others are named in the log.

    Raises:
        InputError: when there is nothing there, or no sound file in the folder.
        PermissionError: when the folder may not be read.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; expected recordings of the voice to convert to")
    if not path.is_dir():
        return [path]
    os.scandir(path).close()  # `rglob` finds nothing in a folder that may not be read
    files = sorted(
        file
        for file in path.rglob("*")
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(path).parts)
    )
    found = [file for file in files if is_audio_file(file)]
    if found and (others := [str(file.relative_to(path)) for file in files if file not in set(found)]):
        more = f" and {len(others) - NAMED} more" if len(others) > NAMED else ""
        log.warning("%s: passed over %s%s, in which there is no sound", path, ", ".join(others[:NAMED]), more)
    if not found:
        raise InputError(
            f"{path}: no sound file in this folder ({', '.join(sorted(AUDIO_SUFFIXES))}); put recordings of the voice "
            "to convert to there"
        )
    return found


def convert(codec: CodecModel, voice: Voice, wave: Tensor) -> Tensor:
    """A whole recording [S] at `codec.sample_rate_in` in another voice: [S'] at `codec.sample_rate_out`."""
    return codec.decode(codec.encode(wave), voice)[0]


def convert_live(codec: CodecModel, voice: Voice, blocks: Iterable[Tensor]) -> Iterator[Tensor]:
    """The same for live audio: yields the converted audio of each chunk.

    Args:
        blocks: float [S] of any length at `codec.sample_rate_in`.
    """
    stream = LiveStream(codec, voice=voice)
    for chunk in regrouped(blocks, codec.chunk_samples):
        yield stream.decode(stream.encode(chunk))


def _read(paths: list[Path], sample_rate: int) -> Iterator[Tensor]:
    """The audio of each file, at most `REFERENCE_SECONDS`. Raises the last error where no file can be read."""
    readable, reason = 0, None
    for path in paths:
        try:
            wave = read_audio(path, sample_rate, REFERENCE_SECONDS)
        except (InputError, PermissionError) as error:
            reason = error
            if len(paths) > 1:
                log.warning("%s; left out of the reference", error)
            continue
        readable += 1
        yield torch.from_numpy(wave)
    if reason is not None and not readable:
        raise reason


def _pieces(waves: Iterable[Tensor], size: int, room: int) -> Iterator[Tensor]:
    """Pieces of at most `size` samples, `room` samples in all; waves beyond them are not asked for."""
    for wave in waves:
        for piece in wave[:room].split(size):
            room -= len(piece)
            yield piece
        if not room:
            return
