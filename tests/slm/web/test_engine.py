"""The engine in a real browser against Python's: tokens, sound, logits, continuations, sampling, resampling."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soxr
import torch

from slm.checkpoint import save_lm
from slm.generation.continuation import Continuation
from slm.generation.sampling import RandomStream, Sampling, draw
from slm.model.transformer import LanguageModel, ModelConfig
from slm.onnx_engine.folders import load_arrays
from slm.vocabulary import Vocabulary
from slm.web.export import export_web
from tests.conftest import TINY, random_codec
from tokenizer.audio import read_audio

pytestmark = [pytest.mark.browser, pytest.mark.slow]

CLIP = Path(__file__).resolve().parents[3] / "slm" / "demo" / "speech" / "audio" / "ada-01.ogg"
LOAD = "const { codec, model } = await loadModels(location.origin + '/focalstream.json');"
# Tokens chunk by chunk, of the whole, and their sound; then a continuation, its prompt fed in uneven blocks.
WHOLE_LOOP = f"""{LOAD}
const wave = Float32Array.from(given.wave);
const tokens = [];
for (let at = 0, state = codec.initState(); at < wave.length; at += codec.chunkSamples) {{
  const step = await codec.encodeStep(wave.slice(at, at + codec.chunkSamples), state);
  tokens.push(...step.tokens);
  state = step.state;
}}
const whole = [...(await codec.encode(wave))];
const samples = [...(await codec.decode(given.tokens))];
const continuation = new Continuation(codec, model, given.sampling, given.limits);
const prompt = [];
for (let at = 0, size = 1; at < wave.length; at += size, size = (size * 7) % 4999 + 1) {{
  prompt.push(...(await continuation.feed(wave.slice(at, at + size))).audio);
}}
const codes = [], audio = [];
for await (const chunk of continuation.chunks()) {{ codes.push(...chunk.codes); audio.push(...chunk.audio); }}
return {{ tokens, whole, samples, prompt, codes, audio, ended: continuation.endedByModel }};"""


def compared(run_script: Any, folder: Path, models: Any, wave: np.ndarray, seconds: float) -> dict[str, Any]:
    """What the browser gives for `wave`, beside what Python gives: {name: (browser's, Python's)}."""
    codec, model, vocabulary = models
    tokens = codec.encode(wave[None])[0]
    filters = {"temperature": 0.9, "top_p": 0.95, "top_k": 200, "min_p": 0.001}
    filters |= {"repetition_penalty": 1.1, "silence_limit": 1}
    continuation = Continuation(
        codec, model, vocabulary, wave, Sampling(**filters), seed=7, min_seconds=seconds, max_seconds=seconds
    )
    chunks = list(continuation.chunks())
    names = {"top_p": "topP", "top_k": "topK", "min_p": "minP"}
    names |= {"repetition_penalty": "repetitionPenalty", "silence_limit": "silenceLimit"}
    given = {
        "wave": wave.tolist(),
        "tokens": tokens.tolist(),
        "sampling": {names.get(name, name): value for name, value in filters.items()},
        "limits": {"seed": 7, "minSeconds": seconds, "maxSeconds": seconds},
    }
    found = run_script(folder, WHOLE_LOOP, given)
    expected = {
        "tokens": tokens,
        "whole": tokens,
        "samples": codec.decode(tokens[None])[0],
        "prompt": continuation.prompt_audio,
        "codes": np.concatenate([chunk.codes for chunk in chunks]),
        "audio": np.concatenate([chunk.audio for chunk in chunks]),
    }
    return {name: (np.array(found[name]), value) for name, value in expected.items()}


def check_equal(both: dict[str, Any]) -> None:
    for name, (browser, python) in both.items():
        assert browser.shape == python.shape, name
        if python.dtype == np.int64:
            assert browser.tolist() == python.tolist(), name
        else:  # float32 sums in another order; a sample of 16 bits is 3e-5
            assert np.abs(browser - python).max() < 1e-5 * max(1, np.abs(python).max()), name


@pytest.mark.soak
def test_the_shipped_models_in_float32(run_script: Any, small_folder: Callable[[str], Path]) -> None:
    models = load_arrays("small", "fp32", "small", "fp32", 1)
    wave = read_audio(CLIP, 16000, 3.0)
    whole = wave[: len(wave) // models[0].chunk_samples * models[0].chunk_samples]
    both = compared(run_script, small_folder("fp32"), models, whole, 2.0)
    assert len(both["codes"][1]) == 100  # tokens of 2 s
    assert len(set(both["codes"][1].tolist())) > 20
    check_equal(both)


def test_the_shipped_codec_in_8_bits(run_script: Any, small_folder: Callable[[str], Path]) -> None:
    folder = small_folder("int8")
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 25e6
    codec, model, vocabulary = load_arrays("small", "int8", "small", "int8", 1)
    wave = read_audio(CLIP, 16000, 3.0)
    wave = wave[: len(wave) // codec.chunk_samples * codec.chunk_samples]
    tokens, python = compared(run_script, folder, (codec, model, vocabulary), wave, 1.0)["tokens"]
    flips = np.bitwise_count((tokens ^ python).astype(np.uint32)).sum() / (codec.bits_per_token * len(python))
    # The products are exact in both; around them float32 is rounded otherwise, and 8 bits enlarge that where a value
    # lies between two steps. Another codec, or a product that saturates, flips a twelfth of the bits and more.
    assert flips < 0.02, flips


def test_long_pasts_other_rates_and_grouped_keys(run_script: Any, runtime: dict[str, bytes], tmp_path: Path) -> None:
    """States that are histories, and a prompt and a continuation that go round the cache several times."""
    config = {**TINY, "encoder_config": {**TINY["encoder_config"], "window_size": 128}}
    codec = random_codec(config, seed=3)
    torch.manual_seed(2)
    vocabulary = Vocabulary(codec.codebook_size, codec.token_rate, "long", codec.fingerprint)
    lm = LanguageModel(ModelConfig(width=32, layers=2, heads=4, kv_heads=2, ffn_width=48, context=40), vocabulary.size)
    save_lm(lm, vocabulary, tmp_path / "lm")
    codec.save_pretrained(tmp_path / "codec")
    export_web(codec, tmp_path / "lm", "long", "long", tmp_path / "web", "fp32", runtime)
    models = load_arrays(str(tmp_path / "codec"), "fp32", str(tmp_path / "lm"), "fp32", 1)
    chunk = models[0].chunk_samples
    wave = np.random.default_rng(5).normal(0, 0.1, 60 * chunk).astype(np.float32)
    check_equal(compared(run_script, tmp_path / "web", models, wave, 3.0))


def test_samplers_draw_the_same(run_script: Any, tiny_folder: Path) -> None:
    random = np.random.default_rng(1)
    values = {
        "temperature": (0.0, 0.5, 1.0, 1.7),
        "top_p": (1.0, 0.9, 0.3),
        "top_k": (0, 5),
        "min_p": (0.0, 0.1),
        "repetition_penalty": (1.0, 1.5),
    }
    cases, expected = [], []
    for seed, chosen in enumerate(itertools.product(*values.values())):
        logits = random.normal(0, 3, (1, 300)).astype(np.float32)
        recent = random.integers(0, 300, (1, 50))
        options = dict(zip(values, chosen, strict=True))
        stream = RandomStream(seed)
        drawn = [int(draw(logits, Sampling(**options), recent, [stream], may_end=True)[0]) for _ in range(20)]
        expected.append(drawn)
        temperature, top_p, top_k, min_p, penalty = chosen
        names = {"temperature": temperature, "topP": top_p, "topK": top_k, "minP": min_p, "repetitionPenalty": penalty}
        cases.append({"logits": logits[0].tolist(), "recent": recent[0].tolist(), "options": names, "seed": seed})
    script = """return given.map(({ logits, recent, options, seed }) => {
      const random = new RandomStream(seed);
      return Array.from({ length: 20 }, () => {
        const scores = Float64Array.from(logits, (v, i) => (i < 16 && i !== 2 ? -Infinity : v));
        return draw(scores, new Sampling(options), recent, random);
      });
    });"""
    found = run_script(tiny_folder, script, cases)
    assert found == expected
    assert len({id for row in expected for id in row}) > 50


def test_random_numbers_are_pythons(run_script: Any, tiny_folder: Path) -> None:
    seeds = [0, 1, 12345, 2**32 - 1, 2**32 + 5, 2**53 - 1]
    script = """return given.map((seed) => {
      const random = new RandomStream(seed);
      return Array.from({ length: 700 }, () => random.uniform());
    });"""
    found = run_script(tiny_folder, script, seeds)
    for seed, numbers in zip(seeds, found, strict=True):
        stream = RandomStream(seed)
        assert numbers == [stream.uniform() for _ in range(700)]


@pytest.mark.parametrize(("rate", "to"), [(48000, 16000), (44100, 16000), (8000, 16000), (16000, 16000)])
def test_resampling(run_script: Any, tiny_folder: Path, rate: int, to: int) -> None:
    """As by soxr, in blocks of any length, without what the lower rate cannot hold."""
    time = np.arange(rate) / rate
    wave = 0.3 * np.sin(2 * np.pi * 440 * time) + 0.2 * np.sin(2 * np.pi * 3000 * time + 1)
    if rate > 2 * to:
        wave += 0.3 * np.sin(2 * np.pi * 9000 * time)  # would come back as 7 kHz
    script = """const [from, to, wave] = given, resampler = new Resampler(from, to), found = [];
    for (let at = 0, size = 1; at < wave.length; at += size, size = (size * 5) % 997 + 1)
      found.push(...resampler.next(Float32Array.from(wave.slice(at, at + size))));
    return [...found, ...resampler.flush()];"""
    found = np.array(run_script(tiny_folder, script, [rate, to, wave.tolist()]))
    assert abs(len(found) - to) <= 1
    expected = soxr.resample(wave, rate, to, "VHQ")
    inner = slice(to // 10, -to // 10)
    assert np.abs(found[: len(expected)][inner] - expected[: len(found)][inner]).max() < 1e-3


def test_what_cannot_be_is_refused(run_script: Any, tiny_folder: Path) -> None:
    script = f"""{LOAD}
    const tries = [
      () => codec.encodeStep(new Float32Array(codec.chunkSamples + 1), codec.initState()),
      () => codec.decodeStep(new Int32Array(codec.tokensPerChunk).fill(codec.codebookSize), codec.initState()),
      () => model.step([model.manifest.vocabulary_size], model.makeCache()),
      () => model.step([], model.makeCache()),
      () => new Sampling({{ temperature: -1 }}),
      () => new Sampling({{ heat: 1 }}),
      () => new Continuation(codec, model, {{}}, {{ seed: 1.5 }}),
      () => new Continuation(codec, model).chunks().next(),
      () => new Resampler(0, 16000),
      () => loadModels(location.origin + "/engine/focalstream.json"),
    ];
    const said = [];
    for (const attempt of tries) {{
      try {{ await attempt(); said.push("nothing"); }}
      catch (error) {{ said.push(error instanceof InputError ? error.message : `${{error}}`); }}
    }}
    return said;"""
    expected = [
        "a multiple of",
        "expected 0 to 255",
        "expected ids from 0",
        "expected ids from 0",
        "temperature is -1; expected at least 0",
        "unknown option heat",
        "seed is 1.5",
        "shorter than a chunk",
        "expected whole numbers",
        "HTTP 404",
    ]
    said = run_script(tiny_folder, script)
    assert len(said) == len(expected)
    for line, part in zip(said, expected, strict=True):
        assert part in line
