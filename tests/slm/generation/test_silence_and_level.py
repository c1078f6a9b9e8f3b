"""Silence: its codes, and sampling that leaves it. Level: rendered speech as loud as the original."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from slm.generation.level import MOST, LevelMatch
from slm.generation.sampling import RandomStream, Sampling, draw, silences_after
from slm.generation.silence import silent_codes, with_silent_codes
from slm.vocabulary import EOS, FIRST_CODE


def test_silent_codes_are_left_after_the_limit() -> None:
    sampling = Sampling(silence_limit=3, silent_codes=(0, 1))
    logits = np.full((2, FIRST_CODE + 4), -50.0)
    logits[:, FIRST_CODE : FIRST_CODE + 2] = 10.0  # silence is all but certain
    recent = np.zeros((2, 5), np.int64)
    silences = np.array([2, 3])
    generators = [RandomStream(1), RandomStream(1)]
    drawn = draw(logits, sampling, recent, generators, False, silences)
    assert drawn[0] - FIRST_CODE in (0, 1) and drawn[1] - FIRST_CODE in (2, 3)
    assert silences_after(silences, drawn, sampling).tolist() == [3, 0]
    assert silences_after(np.array([4]), np.array([EOS]), sampling).tolist() == [0]


def test_without_a_limit_nothing_changes(tiny_codec: Any) -> None:
    assert with_silent_codes(Sampling(), tiny_codec) == Sampling()


def test_a_stream_with_a_limit_never_rests_longer(tiny_codec: Any) -> None:
    torch = pytest.importorskip("torch")
    from slm.generation.continuation import Continuation
    from slm.generation.engines import codec_on_arrays
    from slm.model.transformer import LanguageModel, ModelConfig
    from slm.vocabulary import Vocabulary

    torch.manual_seed(0)
    vocabulary = Vocabulary(tiny_codec.codebook_size, tiny_codec.token_rate, "tiny", tiny_codec.fingerprint)
    model = LanguageModel(ModelConfig(32, 1, 2, 1, 32, 16), vocabulary.size).eval().requires_grad_(False)
    silent = silent_codes(codec_on_arrays(tiny_codec))
    assert silent and silent == silent_codes(codec_on_arrays(tiny_codec))
    prompt = np.random.default_rng(0).normal(0, 0.1, 16000).astype(np.float32)
    sampling = Sampling(top_p=1.0, silence_limit=1)
    said = Continuation(tiny_codec, model, vocabulary, prompt, sampling, 3, 8.0, 8.0)
    quiet = np.isin(np.concatenate([chunk.codes for chunk in said.chunks()]), silent)
    assert len(quiet) == 400 and not (quiet[1:] & quiet[:-1]).any()


def test_a_limit_below_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="silence_limit is -1; expected at least 0"):
        Sampling(silence_limit=-1)


def test_rendered_speech_is_as_loud_as_the_original() -> None:
    rng = np.random.default_rng(0)
    original = rng.normal(0, 0.1, (20, 5120)).astype(np.float32)
    match = LevelMatch()
    rendered = [match.prompt(piece, 0.7 * piece, 0.32) for piece in original]  # 3.1 dB quieter
    np.testing.assert_allclose(np.concatenate(rendered), original.ravel(), rtol=1e-3)
    np.testing.assert_allclose(match.speech(original[0]), original[0] / 0.7, rtol=1e-3)


def test_the_gain_has_no_steps_and_bounds() -> None:
    match = LevelMatch()
    quiet = np.full(100, 1e-6, np.float32)
    np.testing.assert_array_equal(match.prompt(0 * quiet, quiet, 0.1), quiet)  # of silence no level is measured
    assert match.gain == 1.0
    ones = np.ones(1000, np.float32)
    first = match.prompt(ones, ones, 0.1)
    second = match.prompt(100 * ones, ones, 0.1)
    assert match.gain == MOST and abs(second[0] - first[-1]) < 1e-3 and np.abs(np.diff(second)).max() < 0.01
