"""Continuing and serving on ONNX Runtime alone: the same speech, in processes that never import PyTorch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from slm.checkpoint import load_lm, save_lm
from slm.cli import main
from slm.generation.continuation import Continuation
from slm.generation.sampling import Sampling
from slm.model.transformer import LanguageModel, ModelConfig
from slm.vocabulary import Vocabulary
from tokenizer import Codec
from tokenizer.audio import write_wav

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

from slm.onnx_engine.folders import load_arrays


@pytest.fixture
def lm_dir(tiny_codec: Codec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    torch.manual_seed(4)
    vocabulary = Vocabulary(tiny_codec.codebook_size, tiny_codec.token_rate, "tiny", tiny_codec.fingerprint)
    config = ModelConfig(width=64, layers=2, heads=4, kv_heads=2, ffn_width=96, context=40)
    save_lm(LanguageModel(config, vocabulary.size), vocabulary, tmp_path / "lm")
    return tmp_path / "lm"


def noise(seconds: float) -> np.ndarray:
    return np.random.default_rng(9).normal(0, 0.1, round(seconds * 16000)).astype(np.float32)


def test_the_same_continuation_on_both_engines(tiny_codec_dir: Path, lm_dir: Path) -> None:
    on_torch = Codec.from_pretrained(tiny_codec_dir, engine="onnx"), *load_lm(lm_dir)
    on_onnx = load_arrays(str(tiny_codec_dir), "fp32", str(lm_dir), "fp32", 1)
    said: list[Any] = []
    for models in (on_torch, on_onnx):
        continuation = Continuation(*models, noise(1.3), Sampling(top_p=0.9), seed=3, min_seconds=2, max_seconds=2)
        said.append([continuation.prompt_audio, *(chunk.audio for chunk in continuation.chunks())])
        assert len(np.unique(continuation.prompt_codes)) > 8
    np.testing.assert_array_equal(np.concatenate(said[0]), np.concatenate(said[1]))


def test_the_command_does_without_pytorch(tiny_codec_dir: Path, lm_dir: Path, tmp_path: Path) -> None:
    write_wav(tmp_path / "prompt.wav", noise(1), 16000)
    command = ["continue", str(tmp_path / "prompt.wav"), str(tmp_path / "out.wav"), "--codec", str(tiny_codec_dir)]
    command += ["--lm", str(lm_dir), "--seconds", "1", "--lm-engine", "onnx"]
    script = f"import sys; from slm.cli import main; assert main({command!r}) == 0; assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.wav").stat().st_size > 32000


@pytest.mark.parametrize("precision", [pytest.param("fp32", marks=pytest.mark.soak), "int8"])
def test_the_server_does_without_pytorch(tiny_codec_dir: Path, lm_dir: Path, precision: str) -> None:
    script = f"""
import sys, time
import numpy as np
from slm.generation.sampling import Sampling
from slm.serve.messages import Decode, Encode, EndPrompt, Feed, Open, Request, Sound
from slm.serve.model_process import ModelSettings, load
events = []
models = {str(tiny_codec_dir)!r}, "onnx", {precision!r}, "cpu", {str(lm_dir)!r}
settings = ModelSettings(*models, 3, 2, 0.24, 1, "onnx", {precision!r})
scheduler, models = load(settings, events.append)
for stream in range(3):
    scheduler.do(Open(stream, Request(Sampling(), stream, 0.8, 0.8)))
    scheduler.do(Feed(stream, np.random.default_rng(stream).normal(0, 0.1, 9 * 1280).astype(np.float32)))
    scheduler.do(EndPrompt(stream, time.monotonic()))
scheduler.do(Encode(7, np.ones(5000, dtype=np.float32) / 9))
scheduler.do(Decode(8, np.arange(9)))
while (wait := scheduler.work()) is not None:
    time.sleep(wait)
new = [event for event in events if isinstance(event, Sound) and event.new]
assert len(new) == 30 and len({{event.codes.tobytes() for event in new}}) > 5, len(new)
assert "torch" not in sys.modules
print(models.lm_parameters, models.context_seconds > 0)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    parameters = sum(parameter.numel() for parameter in load_lm(lm_dir)[0].parameters())
    assert done.stdout == f"{parameters} True\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--engine", "torch", "--lm-engine", "onnx"], "--lm-engine onnx with --engine torch"),
        (["--lm-precision", "int8"], "add --lm-engine onnx"),
        (["--lm-engine", "onnx", "--device", "cuda"], "device 'cuda'"),
        (["--lm-engine", "onnx", "--lm", "nosuch"], "language model 'nosuch': no such model"),
        (["--lm-engine", "onnx", "--codec", "nosuch"], "codec 'nosuch'"),
    ],
)
def test_what_does_not_go_together(
    options: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_wav(tmp_path / "prompt.wav", noise(1), 16000)
    assert main(["continue", str(tmp_path / "prompt.wav"), str(tmp_path / "out.wav"), *options]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
