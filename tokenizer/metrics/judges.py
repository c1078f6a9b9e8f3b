"""Neural measures of speech, as in the codec papers: UTMOS, Whisper word errors, WavLM speaker similarity.

Their models come from the network (torch.hub, Hugging Face Hub) unless the local caches hold them. A judge that cannot
be had is left out with the reason, and never stops an evaluation.

Legend: S samples.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from tokenizer.metrics.intrusive import METRICS_RATE
from tokenizer.metrics.words import WordErrors, word_errors

UTMOS = ("tarepan/SpeechMOS:v1.2.0", "utmos22_strong")  # torch.hub repository and entry
WHISPER = "openai/whisper-small"
SPEAKER = "microsoft/wavlm-base-sv"
HUB_SECONDS = 5.0
MEASURES = ("utmos", "dwer_whisper", "speaker_similarity")

Judge = Callable[[np.ndarray, np.ndarray], "float | WordErrors"]


class Judges(NamedTuple):
    """judges: measure -> function of (original, wave), both float32 [S] at 16 kHz; missing: measure -> reason."""

    judges: dict[str, Judge]
    missing: dict[str, str]


def load_judges(device: str) -> Judges:
    """Every judge that can be had here and gives a figure for a second of noise."""
    noise = np.random.default_rng(0).normal(0, 0.1, METRICS_RATE).astype(np.float32)
    judges: dict[str, Judge] = {}
    missing: dict[str, str] = {}
    for measure, load in zip(MEASURES, (_utmos, _whisper, _speaker), strict=True):
        try:
            judge = load(device)
            judge(noise, noise)
            judges[measure] = judge
        except Exception as error:  # no network, no package, a model of another version: say which
            missing[measure] = f"{type(error).__name__}: {str(error).strip().partition('. ')[0]}"
    return Judges(judges, missing)


def _utmos(device: str) -> Judge:
    """UTMOS (arXiv 2204.02152): predicted mean opinion score of naturalness, 1 to 5."""
    model: Any = torch.hub.load(*UTMOS, trust_repo=True, verbose=False)
    model = model.to(device).eval()

    @torch.no_grad()
    def judge(original: np.ndarray, wave: np.ndarray) -> float:
        return float(model(torch.from_numpy(wave)[None].to(device), METRICS_RATE))

    return judge


def _whisper(device: str) -> Judge:
    """Word errors of Whisper's text of the resynthesis against its text of the original (arXiv 2502.04465)."""
    from transformers import WhisperForConditionalGeneration, WhisperProcessor

    cached = _only_cached(WHISPER)
    processor: Any = WhisperProcessor.from_pretrained(WHISPER, local_files_only=cached)
    model: Any = WhisperForConditionalGeneration.from_pretrained(WHISPER, local_files_only=cached)
    model = model.to(device).eval()
    texts: dict[int, str] = {}  # of the latest original, which is compared with several resyntheses

    @torch.no_grad()
    def transcribe(wave: np.ndarray) -> str:
        inputs = processor(wave, sampling_rate=METRICS_RATE, return_tensors="pt").input_features
        tokens = model.generate(inputs.to(device))
        return processor.batch_decode(tokens, skip_special_tokens=True)[0]

    def judge(original: np.ndarray, wave: np.ndarray) -> WordErrors:
        key = hash(original.tobytes())
        if key not in texts:
            texts.clear()
            texts[key] = transcribe(original)
        return word_errors(texts[key], transcribe(wave))

    return judge


def _speaker(device: str) -> Judge:
    """Cosine similarity of WavLM x-vectors, -1 to 1 (arXiv 2502.04465 prints it times 100)."""
    from transformers import AutoFeatureExtractor, WavLMForXVector

    cached = _only_cached(SPEAKER)
    extractor: Any = AutoFeatureExtractor.from_pretrained(SPEAKER, local_files_only=cached)
    model: Any = WavLMForXVector.from_pretrained(SPEAKER, local_files_only=cached)
    model = model.to(device).eval()

    @torch.no_grad()
    def embedding(wave: np.ndarray) -> torch.Tensor:
        inputs = extractor(wave, sampling_rate=METRICS_RATE, return_tensors="pt").input_values
        return model(inputs.to(device)).embeddings[0]

    def judge(original: np.ndarray, wave: np.ndarray) -> float:
        return float(torch.nn.functional.cosine_similarity(embedding(original), embedding(wave), dim=0))

    return judge


def _only_cached(repository: str) -> bool:
    """Whether to look in the cache alone: where the Hub does not answer at once, its client would try for minutes."""
    from huggingface_hub import HfApi

    try:
        HfApi().model_info(repository, timeout=HUB_SECONDS)
    except Exception:  # no name, no route, refused, an outage: all the same here
        return True
    return False
