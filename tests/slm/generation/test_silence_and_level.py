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


def random_lm(codec: Any) -> tuple[Any, Any]:
    """A model with random weights, and its vocabulary."""
    torch = pytest.importorskip("torch")
    from slm.model.transformer import LanguageModel, ModelConfig
    from slm.vocabulary import Vocabulary

    torch.manual_seed(0)
    vocabulary = Vocabulary(codec.codebook_size, codec.token_rate, "tiny", codec.fingerprint)
    model = LanguageModel(ModelConfig(32, 1, 2, 1, 32, 16), vocabulary.size).eval().requires_grad_(False)
    return model, vocabulary


def test_a_stream_with_a_limit_never_rests_longer(tiny_codec: Any) -> None:
    from slm.generation.continuation import Continuation
    from slm.generation.engines import codec_on_arrays

    model, vocabulary = random_lm(tiny_codec)
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


def test_a_continuation_is_as_loud_as_its_prompt(tiny_codec: Any) -> None:
    from slm.generation.continuation import Continuation

    prompt = np.random.default_rng(0).normal(0, 0.1, 32000).astype(np.float32)
    plain = Continuation(tiny_codec, *random_lm(tiny_codec), prompt, Sampling(), 3, 1.0, 1.0)
    power = float(np.mean(np.square(plain.prompt_audio)))
    prompt *= 1.5 * np.sqrt(power) / 0.1  # so the codec renders it other than it was, within the bounds
    sounds = []
    for match in (False, True):
        run = Continuation(tiny_codec, *random_lm(tiny_codec), prompt, Sampling(), 3, 1.0, 1.0, match)
        sounds.append((run.prompt_audio, np.concatenate([chunk.audio for chunk in run.chunks()])))
    (raw, raw_new), (matched, new) = sounds
    gain = np.sqrt(np.mean(np.square(prompt)) / np.mean(np.square(raw)))
    assert 0.5 < gain < 2.0 and abs(gain - 1) > 0.05
    np.testing.assert_allclose(matched, raw * gain, rtol=1e-3)
    np.testing.assert_allclose(new, raw_new * gain, rtol=1e-3)
