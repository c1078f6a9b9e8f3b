"""Continuation: no seam, whatever was generated decodes as one piece, bounded memory, honest clocks, whole files."""

from __future__ import annotations

import io
import itertools
import json
import os
import signal
import sys
import types
import wave as wave_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from slm.checkpoint import load_lm
from slm.cli import main
from slm.generation.audio_sinks import WavSink
from slm.generation.continuation import TIMED_CHUNKS, Continuation, warm_up
from slm.generation.generate import Sampling
from slm.model.transformer import LanguageModel
from slm.vocabulary import Vocabulary
from tokenizer import Codec
from tokenizer.audio import read_audio, write_wav
from tokenizer.errors import InputError


@pytest.fixture(scope="module")
def lm(tiny_lm_dir: Path) -> tuple[LanguageModel, Vocabulary]:
    return load_lm(tiny_lm_dir)


def speech(seconds: float, seed: int = 7) -> np.ndarray:
    """float32 [S] at 16 kHz: noise of wandering loudness."""
    random = np.random.default_rng(seed)
    count = int(seconds * 16000)
    loudness = np.interp(
        np.arange(count), np.arange(0, count + 800, 800), random.uniform(0, 0.5, count // 800 + 1 + (count % 800 > 0))
    )
    return (random.normal(0, 1, count) * loudness).astype(np.float32)


def test_prompt_and_continuation_are_one_stream(tiny_codec, lm):
    """Prompt audio and chunks, put together, are what the decoder makes of all codes in one go: so there is no seam."""
    continuation = Continuation(tiny_codec, *lm, speech(1.234), Sampling(), seed=1, min_seconds=20.0, max_seconds=20.0)
    chunks = list(continuation.chunks())
    assert len(chunks) == 250 and all(len(chunk.codes) == 4 for chunk in chunks)
    codes = np.concatenate([continuation.prompt_codes, *(chunk.codes for chunk in chunks)])
    audio = np.concatenate([continuation.prompt_audio, *(chunk.audio for chunk in chunks)])
    expected = tiny_codec.decode(torch.from_numpy(codes)[None])[0].numpy()
    assert len(continuation.prompt_codes) == 60  # 1.234 s holds 15 whole chunks of 80 ms
    # The same float32 sums in blocks of other sizes.
    np.testing.assert_allclose(audio, expected, atol=1e-5 * np.abs(expected).max())
    assert len(set(codes.tolist())) > 5


def test_a_prompt_longer_than_a_decoding_block_gives_the_same_audio(tiny_codec, lm):
    prompt = speech(25.0)
    continuation = Continuation(tiny_codec, *lm, prompt, Sampling(), max_seconds=0.4, min_seconds=0.4)
    list(continuation.chunks())
    codes = tiny_codec.encode(torch.from_numpy(prompt[: len(prompt) // 1280 * 1280])[None])
    assert np.array_equal(continuation.prompt_codes, codes[0].numpy())
    np.testing.assert_allclose(continuation.prompt_audio, tiny_codec.decode(codes)[0].numpy(), atol=1e-5)


def test_the_same_seed_says_the_same(tiny_codec, lm):
    def say(seed: int) -> list[int]:
        continuation = Continuation(tiny_codec, *lm, speech(1), Sampling(), seed, min_seconds=2, max_seconds=2)
        return np.concatenate([chunk.codes for chunk in continuation.chunks()]).tolist()

    assert say(1) == say(1) != say(2)


def test_when_the_model_ends_inside_a_chunk_the_audio_ends_with_it(tiny_codec, lm, monkeypatch):
    monkeypatch.setattr("slm.generation.continuation.extend", lambda *_: (np.array([i]) for i in range(10)))
    chunks = list(Continuation(tiny_codec, *lm, speech(1), Sampling()).chunks())
    assert [chunk.codes.tolist() for chunk in chunks] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert [len(chunk.audio) for chunk in chunks] == [1280, 1280, 640]


def test_a_model_that_says_nothing_is_no_error(tiny_codec, lm, monkeypatch):
    monkeypatch.setattr("slm.generation.continuation.extend", lambda *_: iter(()))
    continuation = Continuation(tiny_codec, *lm, speech(1), Sampling())
    assert list(continuation.chunks()) == []
    timing = continuation.timing()
    assert (timing.new_seconds, timing.first_audio_ms, timing.real_time_factor) == (0.0, None, None)


def test_an_endless_session_does_not_grow(tiny_codec, lm, monkeypatch):
    monkeypatch.setattr(
        "slm.generation.continuation.extend", lambda *_: (np.array([i % 256]) for i in itertools.count())
    )
    continuation = Continuation(tiny_codec, *lm, speech(1), Sampling())
    shapes = torch.utils._pytree.tree_map(lambda leaf: leaf.shape, continuation._stream.state)
    monkeypatch.setattr(tiny_codec, "decode_step", lambda codes, state: (torch.zeros(1, 1280), state))
    for _ in itertools.islice(continuation.chunks(), TIMED_CHUNKS + 10):
        pass
    assert len(continuation._chunk_times) == TIMED_CHUNKS
    assert continuation.timing().new_seconds == pytest.approx((TIMED_CHUNKS + 10) * 0.08)
    assert torch.utils._pytree.tree_map(lambda leaf: leaf.shape, continuation._stream.state) == shapes


def test_times_add_up(tiny_codec, lm):
    warm_up(tiny_codec, *lm)
    continuation = Continuation(tiny_codec, *lm, speech(2), Sampling(), min_seconds=1, max_seconds=1)
    assert continuation.timing().first_audio_ms is None
    list(continuation.chunks())
    timing = continuation.timing()
    assert timing.first_audio_ms > timing.encode_ms + timing.prime_ms + timing.prefill_ms > 0
    assert timing.chunk_ms_p50 <= timing.chunk_ms_p95 <= timing.chunk_ms_p99
    assert (timing.prompt_seconds, timing.new_seconds) == (2.0, 1.04)  # a second, rounded up to whole chunks
    assert timing.real_time_factor > 0


def test_bad_prompts_and_other_codecs_are_refused(tiny_codec, lm):
    model, vocabulary = lm
    with pytest.raises(
        InputError, match="the prompt has 1279 samples at 16000 Hz; expected at least one chunk of 1280"
    ):
        Continuation(tiny_codec, model, vocabulary, speech(1)[:1279], Sampling())
    torch.manual_seed(99)
    other = Codec.from_config(tiny_codec.config).requires_grad_(False)
    with pytest.raises(InputError, match="codec 'unnamed' has codes of another codec"):
        Continuation(other, model, vocabulary, speech(1), Sampling())


@pytest.fixture
def command(tiny_codec_dir: Path, tiny_lm_dir: Path, tmp_path: Path) -> list[str]:
    """`continue` without its output; 4 s of prompt at another rate, in stereo."""
    soundfile.write(tmp_path / "prompt.flac", np.stack([speech(4), speech(4, seed=8)], 1) * 0.5, 24000)
    models = ["--codec", str(tiny_codec_dir), "--lm", str(tiny_lm_dir)]
    return ["continue", str(tmp_path / "prompt.flac"), *models, "--prompt-seconds", "1.6", "--min-seconds", "9"]


def test_the_command_writes_the_same_audio_in_every_way(command, tmp_path, capsys, monkeypatch):
    ways: dict[str, list[str]] = {"whole.wav": [], "streamed.wav": ["--stream"], "new.wav": ["--only-continuation"]}
    for name, options in ways.items():
        assert main([*command, str(tmp_path / name), "--seconds", "2", "--json", *options]) == 0
        report: dict[str, Any] = json.loads(capsys.readouterr().out)
        assert (report["prompt_seconds"], report["new_seconds"]) == (1.6, 2.0)
    whole, streamed, new = (soundfile.read(tmp_path / name, dtype="int16")[0] for name in ways)
    assert len(whole) == 3.6 * 16000 and whole.any()
    np.testing.assert_array_equal(whole, streamed)
    np.testing.assert_array_equal(new, whole[int(1.6 * 16000) :])

    pipe = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(pipe, write_through=True))
    assert main([*command, "-", "--seconds", "2"]) == 0
    np.testing.assert_array_equal(np.frombuffer(pipe.getvalue(), "<i2"), streamed)
    assert "real-time factor" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.wav", "prompt.flac", "streamed.wav", "whole.wav"]


def test_the_command_takes_pipes_the_microphone_and_the_loudspeaker(command, tmp_path, capsys, monkeypatch):
    prompt, heard = speech(2, seed=3), []
    options = [*command[2:], "--seconds", "1"]

    class Device:
        def __init__(self, samplerate, channels, dtype):
            assert (samplerate, channels, dtype) == (16000, 1, "float32")

        def read(self, count):
            return prompt[:count, None], False

        def write(self, audio):
            heard.append(audio[:, 0])
            return True  # ran dry

        def start(self): ...
        def stop(self): ...
        def close(self): ...

    devices = types.SimpleNamespace(InputStream=Device, OutputStream=Device, PortAudioError=OSError)
    monkeypatch.setitem(sys.modules, "sounddevice", devices)
    assert main(["continue", "mic", "speaker", *options, "--json"]) == 0
    # The prompt is one piece, so the device may have run dry before each of the 13 chunks.
    assert json.loads(capsys.readouterr().out)["underruns"] == 13 and len(heard) == 14
    write_wav(tmp_path / "prompt.wav", prompt, 16000)
    assert main(["continue", str(tmp_path / "prompt.wav"), str(tmp_path / "file.wav"), *options]) == 0
    pcm = soundfile.read(tmp_path / "prompt.wav", dtype="int16")[0].tobytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(pcm)))
    assert main(["continue", "-", str(tmp_path / "pipe.wav"), *options]) == 0
    assert (tmp_path / "pipe.wav").read_bytes() == (tmp_path / "file.wav").read_bytes()
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    capsys.readouterr()
    for places in (["mic", str(tmp_path / "out.wav")], [str(tmp_path / "prompt.wav"), "speaker"]):
        assert main(["continue", *places, *options, "--lm", "nosuch"]) == 2  # found out before models are loaded
        assert 'pip install "focalstream[audio]"' in capsys.readouterr().err


def test_the_command_speaks_on_the_other_engine(command, tmp_path, capsys, monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name, options in {"torch.wav": [], "onnx.wav": ["--engine", "onnx"]}.items():
        assert main([*command, str(tmp_path / name), "--seconds", "1", "--temperature", "0", *options]) == 0
    torch_wave, onnx_wave = (soundfile.read(tmp_path / name)[0] for name in ("torch.wav", "onnx.wav"))
    np.testing.assert_allclose(onnx_wave, torch_wave, atol=2e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--temperature", "-1"], "temperature is -1.0; expected at least 0"),
        (["--seconds", "0"], "--seconds 0.0"),
        (["--seconds", "inf"], "add --stream"),
        (["--seconds", "nan"], "--seconds nan"),
        (["--min-seconds", "inf"], "only --seconds may be inf"),
        (["--prompt-seconds", "0.01"], "the prompt has 160 samples"),
        (["--lm", "nosuch"], "language model 'nosuch': no such model"),
        (["--codec", "nosuch"], "codec 'nosuch'"),
        (["--threads", "0"], "--threads 0"),
        (["--seed", "-1"], "--seed -1"),
        (["--device", "gramophone"], "device 'gramophone' cannot be used"),
    ],
)
def test_bad_requests_exit_with_2_and_one_line(command, change, message, tmp_path, capsys):
    assert main([*command, str(tmp_path / "out.wav"), *change]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["prompt.flac"]


def test_output_that_cannot_be_written_is_refused(command, tmp_path, capsys):
    for options in ([], ["--stream"]):
        assert main([*command, str(tmp_path / "no" / "out.wav"), "--seconds", "0.1", *options]) == 2
        assert "the folder" in capsys.readouterr().err
        for name in ("out.mp3", "out.flac"):
            assert main([*command, str(tmp_path / name), "--seconds", "0.1", *options]) == 2
            assert f"{name}: a continuation is written as WAV" in capsys.readouterr().err


def test_sigterm_finishes_a_streamed_file(command, tmp_path, monkeypatch, capsys):
    written = []

    def write_and_stop(sink, audio):
        original(sink, audio)
        written.append(len(audio))
        if len(written) == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    original = WavSink.write
    monkeypatch.setattr(WavSink, "write", write_and_stop)
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert main([*command, str(tmp_path / "out.wav"), "--stream", "--seconds", "inf", "--min-seconds", "9"]) == 130
    finally:
        signal.signal(signal.SIGTERM, before)
    assert "interrupted" in capsys.readouterr().err
    with wave_module.open(str(tmp_path / "out.wav")) as file:
        assert len(written) == 4 and file.getnframes() == sum(written)


def test_a_device_or_a_pipe_is_no_output_and_a_link_stays_one(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/null")):
        with pytest.raises(InputError, match="not a regular file"):
            WavSink(path, 16000)
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (tmp_path / "link.wav").symlink_to(folder / "real.wav")
    for _ in range(2):  # the target is new, then there
        with WavSink(tmp_path / "link.wav", 16000) as sink:
            sink.write(speech(0.5))
    assert (tmp_path / "link.wav").is_symlink()
    assert [path.name for path in folder.iterdir()] == ["real.wav"]
    assert len(read_audio(folder / "real.wav", 16000)) == 8000


def test_a_streamed_file_is_whole_or_absent(tmp_path):
    audio = speech(0.5)
    with pytest.raises(RuntimeError), WavSink(tmp_path / "error.wav", 16000) as sink:
        sink.write(audio)
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(KeyboardInterrupt), WavSink(tmp_path / "stopped.wav", 16000) as sink:
        sink.write(audio)
        assert not (tmp_path / "stopped.wav").exists()
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["stopped.wav"]
    with wave_module.open(str(tmp_path / "stopped.wav")) as file:
        assert (file.getnframes(), file.getframerate(), file.getnchannels()) == (8000, 16000, 1)
    # A step of 16 bits to round, and one for the scale of 32767 against 32768.
    np.testing.assert_allclose(read_audio(tmp_path / "stopped.wav", 16000), audio.clip(-1, 1), atol=2 / 32768)
