"""How likely each 32 ms of a recording are speech, by Silero VAD, whose weights lie in the package `silero-vad`.

The model takes frames of 512 samples at 16 kHz, each with the 64 samples before it, and an LSTM state that goes on from
frame to frame. It runs here on ONNX Runtime, many frames a call, so that neither torch nor the whole recording is
needed. Source: github.com/snakers4/silero-vad (model `silero_vad_16k_sequence`).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from tokenizer.chunks import regrouped, whole_chunks
from tokenizer.errors import InputError

SAMPLE_RATE = 16000  # Hz
FRAME = 512  # samples
CONTEXT = 64  # samples before a frame
AT_ONCE = 256  # frames a call of the model
FRAME_SECONDS = FRAME / SAMPLE_RATE


class SpeechActivity:
    """The model, loaded; one thread.

    Raises:
        InputError: a package is not installed, or has no such model.
    """

    def __init__(self) -> None:
        found = importlib.util.find_spec("silero_vad")
        folder = Path(found.origin).parent if found is not None and found.origin else Path()
        weights = folder / "data" / "silero_vad_16k_sequence.onnx"
        if found is None or not weights.exists() or importlib.util.find_spec("onnxruntime") is None:
            raise InputError("segmenting needs silero-vad 6.2 or later: pip install 'focalstream[segment]'")
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            str(weights), sess_options=options, providers=["CPUExecutionProvider"]
        )

    def probabilities(self, blocks: Iterable[np.ndarray]) -> np.ndarray:
        """Of each frame of a recording, float32 [N] from 0 to 1; the last frame is filled up with zeros.

        Args:
            blocks: float32 [n] at `SAMPLE_RATE`, of any sizes; only one is held at a time.
        """
        hidden = cell = np.zeros((1, 1, 128), np.float32)
        before = np.zeros(CONTEXT, np.float32)
        pieces = [np.zeros(0, np.float32)]
        for frames in _frames(blocks):
            flat = np.concatenate([before, frames.ravel()])
            windows = np.lib.stride_tricks.sliding_window_view(flat, CONTEXT + FRAME)[::FRAME]
            found, hidden, cell = self._session.run(None, {"input": windows.copy(), "h": hidden, "c": cell})
            before = flat[-CONTEXT:]
            pieces.append(found)
        return np.concatenate(pieces)


def _frames(blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Samples regrouped to whole frames [n, FRAME], of up to `AT_ONCE` frames; the last one is filled with zeros."""
    for block in regrouped(blocks, AT_ONCE * FRAME):
        yield whole_chunks(block[None], FRAME, 0.0).reshape(-1, FRAME)
