"""The Whisper encoder is that of `transformers`, at any length, and a gradient passes from its outputs to the wave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tokenizer import InputError
from tokenizer.teachers.whisper import FRAME, WhisperEncoder, is_whisper, load_whisper

SIZES = {
    "d_model": 24,
    "encoder_layers": 3,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 40,
    "num_mel_bins": 80,
    "max_source_positions": 150,
}


def reference() -> Any:
    """Random weights in transformers' own encoder; positions are random too, so that a shift would show."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(3)
    config = transformers.WhisperConfig(**SIZES)
    model = transformers.models.whisper.modeling_whisper.WhisperEncoder(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def stored(folder: Path, weights: dict[str, torch.Tensor], config: dict[str, Any] = SIZES) -> str:
    (folder / "config.json").write_text(json.dumps(config | {"dropout": 0.0}))
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / "encoder.safetensors")
    return str(folder)


def speechlike(samples: int, rows: int = 2) -> torch.Tensor:
    """Noise whose level changes every 50 ms over 40 dB: float32 [rows, samples]."""
    rng = np.random.default_rng(8)
    levels = 10 ** rng.uniform(-2, 0, (rows, -(-samples // 800)))
    return torch.from_numpy((rng.normal(size=(rows, samples)) * levels.repeat(800, 1)[:, :samples] / 4).astype("f4"))


def test_outputs_are_those_of_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = reference()
    ours = load_whisper(stored(tmp_path, theirs.state_dict()))
    assert is_whisper(str(tmp_path)) and ours.dim == 24
    wave = speechlike(FRAME * 150)  # as long as the model has positions for: theirs takes no other length
    extractor = transformers.WhisperFeatureExtractor(feature_size=80, chunk_length=3)
    mels = extractor(list(wave.numpy()), sampling_rate=16000, return_tensors="pt").input_features
    torch.testing.assert_close(ours.log_mel(wave), mels, rtol=0, atol=1e-5)  # float32 spectra in two orders of sums
    with torch.no_grad():
        wanted = theirs(mels, output_hidden_states=True)
        layers, frames = ours.forward_layers(wave, torch.tensor([FRAME * 150] * 2))
    assert frames.tolist() == [150, 150] and len(layers) == 3
    torch.testing.assert_close(layers[-1], wanted.last_hidden_state, rtol=0, atol=2e-4)
    for got, expected in zip(layers[:-1], wanted.hidden_states[1:-1], strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=2e-4 * float(expected.abs().max()))


def test_what_lies_beyond_a_rows_length_is_not_attended_to(tmp_path: Path) -> None:
    encoder = load_whisper(stored(tmp_path, reference().state_dict()))
    lengths = torch.tensor([FRAME * 20, FRAME * 9])
    wave = speechlike(FRAME * 20)
    wave[1, FRAME * 9 :] = 0
    hidden = encoder.forward_layers(wave, lengths)[0][-1]
    alone = encoder.forward_layers(wave[1:, : FRAME * 10], lengths[1:])[0][-1]
    torch.testing.assert_close(hidden[1, :9], alone[0, :9], rtol=0, atol=1e-5)


def test_a_gradient_reaches_the_wave(tmp_path: Path) -> None:
    encoder = load_whisper(stored(tmp_path, reference().state_dict()))
    wave = speechlike(FRAME * 12).requires_grad_()
    encoder.forward_layers(wave, torch.tensor([FRAME * 12] * 2))[0][-1].square().sum().backward()
    assert wave.grad is not None and (wave.grad.abs().amax(1) > 0).all()
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


def test_weights_of_the_whole_model_are_read(tmp_path: Path) -> None:
    weights = reference().state_dict()
    whole = {f"model.encoder.{name}": tensor for name, tensor in weights.items()} | {"model.decoder.x": torch.ones(1)}
    loaded = load_whisper(stored(tmp_path, whole)).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in weights.items())


def test_a_hub_id_is_downloaded(tmp_path: Path, monkeypatch) -> None:
    stored(tmp_path, reference().state_dict())
    asked: list[str] = []

    def download(name: str, files: tuple[str, ...]) -> tuple[Path, Path]:
        asked.append(name)
        assert files == ("model.safetensors",)
        return tmp_path / "config.json", tmp_path / "encoder.safetensors"

    monkeypatch.setattr("tokenizer.teachers.whisper.download", download)
    assert is_whisper("openai/whisper-tiny.en") and not is_whisper("microsoft/wavlm-large")
    assert load_whisper("openai/whisper-tiny.en").dim == 24 and asked == ["openai/whisper-tiny.en"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder_attention_heads": 5}, "d_model 24 is not a multiple of encoder_attention_heads 5"),
        ({"encoder_layers": 0}, "encoder_layers is 0, expected a whole number above 0"),
        ({"d_model": 32}, "but the configuration makes it"),
    ],
)
def test_sizes_that_do_not_fit_are_named(change: dict[str, int], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        load_whisper(stored(tmp_path, reference().state_dict(), SIZES | change))


def test_a_folder_without_weights_and_rows_too_long_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected config\.json beside encoder\.safetensors"):
        load_whisper(str(tmp_path))
    encoder = WhisperEncoder(load_whisper(stored(tmp_path, reference().state_dict())).config)
    with pytest.raises(InputError, match=r"a row of 3.02 s is longer than the 3 s that the Whisper teacher"):
        encoder.forward_layers(speechlike(FRAME * 151), torch.tensor([FRAME * 151] * 2))
