"""One live stream, block by block, and the pipes of the command line on top of it.

PCM in a pipe is raw 16-bit little-endian mono at the codec's rate. Tokens are little-endian uint16, without a header.

Legend: S samples, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from tokenizer.audio_input.mpeg import parse_header
from tokenizer.chunks import StreamingCodec, whole_chunks
from tokenizer.errors import InputError
from tokenizer.inputs import NO_TOKEN

if TYPE_CHECKING:
    from torch import Tensor

    from tokenizer.model import Voice

FILE_HEADERS = {
    b"RIFF": "a WAV file",
    b"RF64": "a WAV file",
    b"fLaC": "a FLAC file",
    b"OggS": "an Ogg file",
    b"ID3": "an MP3 file",
    b"FORM": "an AIFF file",
    b"caff": "a CAF file",
    b"\x1aE\xdf\xa3": "a Matroska or WebM file",
}


class LiveStream:
    """One stream over a codec of any engine. The two directions advance separately.

        stream = LiveStream(codec)
        for samples in regrouped(microphone, codec.chunk_samples):
            tokens = stream.encode(samples)
            play(stream.decode(tokens))

    Blocks are whole chunks, as many as the caller likes (`tokenizer.chunks.regrouped` makes them). The last one may be
    of any length: it is filled up, with zeros or with -1, and its output trimmed to what it holds. So the tokens and
    the audio of a stream are those that `Codec.encode` and `Codec.decode` give for the whole.

    Args:
        codec: one that streams.
        state: of one stream, to continue from; None: a new stream.
        voice: convert to this voice (engine "torch" only); None keeps the speaker's own.

    Attributes:
        state: the codec's state after the blocks so far; a `StreamPool` can take it over.

    Raises:
        InputError: a codec that does not stream; of the methods, what `encode_step` and `decode_step` refuse, and any
            block after one that was not whole chunks.
    """

    def __init__(self, codec: StreamingCodec, state: Any = None, voice: Voice | None = None) -> None:
        self._codec = codec
        decode_step: Any = codec.decode_step  # a voice is for those that take one
        self._decode_step = decode_step if voice is None else partial(decode_step, voice=voice)
        self.state = codec.init_state(1) if state is None else state
        self._audio_ended = self._tokens_ended = False

    def encode(self, samples: Tensor) -> Tensor:
        """The next samples, float [S], to tokens int64 [codec.token_count(S)]."""
        chunks = whole_chunks(samples[None], self._codec.chunk_samples, 0)
        _check_open(self._audio_ended, "encode", f"{self._codec.chunk_samples} samples")
        tokens, self.state = self._codec.encode_step(chunks, self.state)
        self._audio_ended = chunks.shape[1] > len(samples)
        return tokens[0, : self._codec.token_count(len(samples))]

    def decode(self, tokens: Tensor) -> Tensor:
        """The next tokens, int64 [T], to samples [T * codec.samples_per_token]."""
        chunks = whole_chunks(tokens[None], self._codec.tokens_per_chunk, NO_TOKEN)
        _check_open(self._tokens_ended, "decode", f"{self._codec.tokens_per_chunk} tokens")
        wave, self.state = self._decode_step(chunks, self.state)
        self._tokens_ended = chunks.shape[1] > len(tokens)
        return wave[0, : len(tokens) * self._codec.samples_per_token]


def encode_pipe(codec: StreamingCodec, pcm: BinaryIO, tokens: BinaryIO) -> int:
    """Read PCM until it ends; write tokens after each chunk. Returns the number of samples read.

    Raises:
        InputError: when the pipe brings no whole sample.
    """
    stream, total = LiveStream(codec), 0
    for samples in read_pcm(pcm, codec.chunk_samples):
        total += len(samples)
        tokens.write(stream.encode(samples).cpu().numpy().astype("<u2").tobytes())
        tokens.flush()
    return total


def decode_pipe(codec: StreamingCodec, tokens: BinaryIO, pcm: BinaryIO) -> int:
    """Read tokens until they end; write PCM after each chunk. Returns the number of tokens read.

    Raises:
        InputError: when the pipe brings no token, or one outside the codebook.
    """
    import torch

    stream, total = LiveStream(codec), 0
    for block in _blocks(tokens, codec.tokens_per_chunk):
        if not total and block.tobytes().startswith(b"\x93NU"):
            raise InputError('standard input: begins as a NumPy file, but "-" is raw uint16; give the name of the file')
        total += len(block)
        wave = stream.decode(torch.from_numpy(block.view("<u2").astype(np.int64)))
        pcm.write(to_pcm(wave.cpu().numpy()))
        pcm.flush()
    if not total:
        raise InputError("standard input: no tokens; expected raw little-endian uint16")
    return total


def read_pcm(pipe: BinaryIO, size: int) -> Iterator[Tensor]:
    """Float samples [size] in [-1, 1] as they come in; the last block may be shorter.

    Raises:
        InputError: when the pipe ends without a whole sample, or brings a file whose header would be heard.
    """
    import torch

    block, first = None, True
    for block in _blocks(pipe, size):
        if first:
            _refuse_file(block.tobytes())
        first = False
        yield torch.from_numpy(block.astype(np.float32) / 32768)
    if block is None:
        raise InputError("standard input: no audio; expected raw 16-bit little-endian mono PCM")


def to_pcm(wave: np.ndarray) -> bytes:
    """Float samples [S] in [-1, 1] as 16-bit little-endian PCM."""
    return np.rint(np.clip(wave, -1.0, 1.0) * 32767).astype("<i2").tobytes()


def _refuse_file(head: bytes) -> None:
    kind = next((kind for magic, kind in FILE_HEADERS.items() if head.startswith(magic)), None)
    if head[4:8] == b"ftyp":
        kind = "an MP4 file"
    frame = parse_header(head)
    following = parse_header(head[frame.length : frame.length + 4]) if frame is not None else None
    if frame is not None and following is not None and following.same_stream(frame):  # one header could be samples
        kind = "an MP3 file"
    if kind is not None:
        raise InputError(
            f'standard input: begins as {kind}, but "-" is raw 16-bit little-endian mono PCM; give /dev/stdin to '
            "read a sound file from a pipe"
        )


def _blocks(pipe: BinaryIO, size: int) -> Iterator[np.ndarray]:
    """int16 blocks of `size` values, the last one shorter; an odd byte at the end is dropped."""
    while data := pipe.read(2 * size):
        while len(data) < 2 * size and (more := pipe.read(2 * size - len(data))):
            data += more
        if block := data[: len(data) // 2 * 2]:
            yield np.frombuffer(block, dtype="<i2")


def _check_open(ended: bool, method: str, chunk: str) -> None:
    if ended:
        raise InputError(
            f"LiveStream.{method}: the block before was not a whole number of chunks of {chunk}, so it ended the "
            "stream; regroup the blocks with tokenizer.chunks.regrouped, or begin another stream"
        )
