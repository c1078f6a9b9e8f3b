"""Judges whose weights are in packages, so that they work without a network: naturalness, speaker, words.

A judge that cannot be had is left out with the reason, and never stops an evaluation. None of them took part in the
training of the shipped weights; the recogniser `tiny.en` may be the teacher of a training (docs/training.md), and is
then no independent judge of it.

Legend: S samples at 16 kHz, T frames, M mel bands.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tokenizer.errors import InputError
from tokenizer.metrics.intrusive import METRICS_RATE
from tokenizer.network.mel import slaney_filterbank

DNSMOS_SECONDS = 9.01  # that the network hears at once; shorter clips are repeated
# What turns the network's three outputs into mean opinion scores, highest power first: Reddy et al., ICASSP 2022.
OVERALL = (-0.06766283, 1.11546468, 0.04602535)
SPEAKER_WINDOW, SPEAKER_HOP, SPEAKER_BANDS = 400, 160, 40  # samples, samples, mel bands
SPEAKER_FRAMES = 160  # of one partial utterance, 1.6 s
SPEAKER_STEP = 77  # frames from one to the next: 1.3 a second
SPEAKER_COVERED = 0.75  # share of the last one that must be there
SPEAKER_LEVEL = 10 ** (-30 / 20)  # root mean square that softer clips are raised to
HINTS = {
    "dnsmos": "pip install focalstream[judges]",
    "speaker_ge2e": "pip install --no-deps Resemblyzer (its weights alone are used)",
}

Judge = Callable[[np.ndarray, np.ndarray], float]


def load_package_judges() -> tuple[dict[str, Judge], dict[str, str]]:
    """Measure -> function of (original, wave), both float32 [S]; and measure -> why it is missing."""
    judges: dict[str, Judge] = {}
    missing: dict[str, str] = {}
    for measure, load in {"dnsmos": load_dnsmos, "speaker_ge2e": load_speaker}.items():
        try:
            judges[measure] = load()
        except (ImportError, InputError) as error:
            missing[measure] = f"{error}; {HINTS[measure]}"
    return judges, missing


def load_dnsmos() -> Judge:
    """DNSMOS P.835 overall (arXiv 2110.01763): predicted mean opinion score of a wave alone, 1 to 5."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    file = package_folder("speechmos") / "dnsmos_models" / "sig_bak_ovr.onnx"
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def judge(original: np.ndarray, wave: np.ndarray) -> float:
        raw = [float(session.run(None, {name: piece[None]})[0][0][2]) for piece in dnsmos_pieces(wave)]
        return float(np.mean([np.polyval(OVERALL, value) for value in raw]))

    return judge


def dnsmos_pieces(wave: np.ndarray) -> list[np.ndarray]:
    """float32 [S] in overlapping pieces of 9.01 s, one a second, as the network was made for."""
    size = int(DNSMOS_SECONDS * METRICS_RATE)
    wave = np.clip(wave, -1, 1).astype(np.float32)
    if len(wave) < size:  # doubled until it is long enough, as the published code does
        wave = np.tile(wave, 1 << max(0, (-(-size // max(len(wave), 1)) - 1).bit_length()))
    count = int(len(wave) / METRICS_RATE - DNSMOS_SECONDS) + 1
    pieces = [wave[index * METRICS_RATE :][:size] for index in range(count)]
    return [piece for piece in pieces if len(piece) == size]


class SpeakerEncoder(nn.Module):
    """A speaker's embedding by GE2E (arXiv 1710.10467), sizes and names as in Resemblyzer's weights."""

    def __init__(self, size: int = 256, layers: int = 3) -> None:
        super().__init__()
        self.lstm = nn.LSTM(SPEAKER_BANDS, size, layers, batch_first=True)
        self.linear = nn.Linear(size, size)
        self.register_buffer("taps", torch.hann_window(SPEAKER_WINDOW), persistent=False)
        mels = slaney_filterbank(METRICS_RATE, SPEAKER_WINDOW, SPEAKER_BANDS).float()
        self.register_buffer("mels", mels, persistent=False)

    @torch.no_grad()
    def forward(self, wave: np.ndarray) -> np.ndarray:
        """float32 [S] -> float32 [size], of unit length: the mean over partial utterances of 1.6 s."""
        level = float(np.sqrt(np.square(wave).mean()))
        wave = wave * max(1.0, SPEAKER_LEVEL / max(level, 1e-9))
        mels = self._mels(torch.from_numpy(np.ascontiguousarray(wave, dtype=np.float32)))
        starts = list(range(0, max(1, len(mels) - SPEAKER_FRAMES + SPEAKER_STEP), SPEAKER_STEP))
        if len(starts) > 1 and len(mels) - starts[-1] < SPEAKER_COVERED * SPEAKER_FRAMES:
            starts.pop()
        mels = nn.functional.pad(mels, (0, 0, 0, max(0, starts[-1] + SPEAKER_FRAMES - len(mels))))
        partial = torch.stack([mels[start : start + SPEAKER_FRAMES] for start in starts])
        hidden = self.lstm(partial)[1][0][-1]
        embeddings = nn.functional.normalize(torch.relu(self.linear(hidden)), dim=1)
        return nn.functional.normalize(embeddings.mean(0), dim=0).numpy()

    def _mels(self, wave: torch.Tensor) -> torch.Tensor:
        """[S] -> power in mel bands [T, M]."""
        spectrum = torch.stft(
            wave, SPEAKER_WINDOW, SPEAKER_HOP, window=self.get_buffer("taps"), pad_mode="constant", return_complex=True
        )
        return (spectrum.real.square() + spectrum.imag.square()).T @ self.get_buffer("mels")


def load_speaker() -> Judge:
    """Cosine of the speaker embeddings of the original and the wave, 0 to 1."""
    weights = torch.load(package_folder("resemblyzer") / "pretrained.pt", map_location="cpu", weights_only=True)
    encoder = SpeakerEncoder()
    wanted = encoder.state_dict()
    encoder.load_state_dict({name: tensor for name, tensor in weights["model_state"].items() if name in wanted})
    return speaker_judge(encoder.eval())


def speaker_judge(encoder: SpeakerEncoder) -> Judge:
    """The judge of an encoder; it keeps the embedding of the original that was heard last."""
    kept: dict[int, np.ndarray] = {}

    def judge(original: np.ndarray, wave: np.ndarray) -> float:
        key = hash(original.tobytes())
        if key not in kept:
            kept.clear()
            kept[key] = encoder(original)
        return float(kept[key] @ encoder(wave))

    return judge


def package_folder(package: str) -> Path:
    """Where an installed package has its files, without running it. Raises ImportError where it is not installed."""
    found: Any = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise ImportError(f"{package} is not installed")
    return Path(next(iter(found.submodule_search_locations)))
