"""The encoder as teacher: the hidden states of `transformers.WavLMModel`, from either layout of its weights."""

from __future__ import annotations

import copy
import json
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tokenizer.errors import InputError
from tokenizer.network.encoder import Encoder
from tokenizer.network.stage_configs import EncoderConfig
from tokenizer.teachers.wavlm import load_wavlm

transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-4  # float32 rounding over three layers is about 1e-6
SIZES: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "conv_dim": (24,) * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "num_buckets": 32,
    "max_bucket_distance": 60,
    "do_stable_layer_norm": True,
    "feat_extract_norm": "layer",
    "attn_implementation": "eager",
}
LENGTHS = torch.tensor([32_000, 20_001, 400])


@pytest.fixture(scope="module")
def model() -> Any:
    """A small `WavLMModel` built like WavLM Large; every weight random, so that none can be left out unseen."""
    torch.manual_seed(0)
    model = transformers.WavLMModel(transformers.WavLMConfig(**SIZES)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model.requires_grad_(False)


@pytest.fixture(scope="module")
def directory(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("wavlm")
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def wave() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(3, int(LENGTHS.max()), generator=generator)
    return noise * torch.linspace(0.02, 0.4, noise.shape[1])


def original(weights: dict[str, Tensor]) -> dict[str, Any]:
    """The same model as Microsoft published it, as far as reading it goes."""
    names = [
        (r"^feature_projection\.layer_norm", "layer_norm"),
        (r"^feature_projection\.projection", "post_extract_proj"),
        (r"(feature_extractor\.conv_layers\.\d)\.conv", r"\1.0"),
        (r"(feature_extractor\.conv_layers\.\d)\.layer_norm", r"\1.2.1"),
        (r"pos_conv_embed\.conv\.parametrizations\.weight\.original0", "pos_conv.0.weight_g"),
        (r"pos_conv_embed\.conv\.parametrizations\.weight\.original1", "pos_conv.0.weight_v"),
        (r"pos_conv_embed\.conv", "pos_conv.0"),
        (r"(layers\.\d)\.layer_norm", r"\1.self_attn_layer_norm"),
        (r"\.attention\.rel_attn_embed", ".self_attn.relative_attention_bias"),
        (r"\.attention\.gru_rel_pos_linear", ".self_attn.grep_linear"),
        (r"\.attention\.gru_rel_pos_const", ".self_attn.grep_a"),
        (r"\.attention\.", ".self_attn."),
        (r"feed_forward\.intermediate_dense", "fc1"),
        (r"feed_forward\.output_dense", "fc2"),
        (r"^masked_spec_embed", "mask_emb"),
    ]
    renamed = {}
    for name, tensor in weights.items():
        for pattern, replacement in names:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    cfg = {
        "extractor_mode": "layer_norm",
        "layer_norm_first": True,
        "gru_rel_pos": True,
        "encoder_embed_dim": 48,
        "encoder_ffn_embed_dim": 96,
        "encoder_attention_heads": 4,
        "encoder_layers": 3,
        "conv_feature_layers": "[(24,10,5)] + [(24,3,2)] * 4 + [(24,2,2)] * 2",
        "conv_pos": 16,
        "conv_pos_groups": 4,
        "num_buckets": 32,
        "max_distance": 60,
        "normalize": True,
        "activation_fn": "gelu",
    }
    return {"cfg": cfg, "model": renamed}


def test_hidden_states_are_those_of_transformers(model: Any, directory: Path, wave: Tensor) -> None:
    outputs, frames = load_wavlm(directory, layers=3).forward_layers(wave, LENGTHS)
    assert len(outputs) == 3 and frames.tolist() == [99, 62, 1]
    outputs.append(model.encoder.layer_norm(outputs[-1]))  # a norm of the whole model, which the codec does not use
    for row, (samples, count) in enumerate(zip(LENGTHS.tolist(), frames.tolist(), strict=True)):
        expected = model(wave[row : row + 1, :samples], output_hidden_states=True)
        for ours, theirs in zip(outputs, (*expected.hidden_states[1:], expected.last_hidden_state), strict=True):
            assert (ours[row, :count] - theirs[0]).abs().max() / theirs.abs().max() < TOLERANCE


def test_fewer_layers_are_the_first_ones(directory: Path, wave: Tensor) -> None:
    whole, _ = load_wavlm(directory, layers=3).forward_layers(wave, LENGTHS)
    part, frames = load_wavlm(directory, layers=2)(wave, LENGTHS)
    torch.testing.assert_close(part, whole[1])
    assert part.shape == (3, int(frames.max()), 48)


def test_every_layout_gives_the_same_encoder(model: Any, directory: Path, tmp_path: Path) -> None:
    expected = load_wavlm(directory, layers=3).state_dict()
    weights = model.state_dict()
    torch.save(original(weights), tmp_path / "WavLM.pt")
    (tmp_path / "config.json").write_bytes((directory / "config.json").read_bytes())
    older = {
        name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): tensor
        for name, tensor in weights.items()
    }
    torch.save({f"wavlm.{name}": tensor for name, tensor in older.items()}, tmp_path / "pytorch_model.bin")
    for source in (tmp_path / "WavLM.pt", tmp_path):
        got = load_wavlm(source, layers=3).state_dict()
        assert got.keys() == expected.keys()
        assert all(torch.equal(got[name], expected[name]) for name in expected)


def test_a_causal_encoder_starts_from_the_teacher(directory: Path) -> None:
    teacher = load_wavlm(directory, layers=2)
    sizes = {"hidden_dims": (24,) * 7, "num_layers": 2, "dim": 48, "ffn_dim": 96, "num_heads": 4, "num_buckets": 32}
    config = EncoderConfig(**sizes, max_distance=60, conv_pos=16, conv_pos_groups=4, causal=True, window_size=16)
    student = Encoder(config)
    student.load_state_dict(teacher.state_dict())
    state = student.init_state(1)
    outputs, _ = student.step_layers(torch.randn(1, 2 * 1280), state)
    features, _ = student.step(torch.randn(1, 2 * 1280), state)
    assert [output.shape for output in outputs] == [(1, 8, 48)] * 2 and features.shape == (1, 8, 48)


class Hostile:
    """What a pickle can carry: a call made when it is loaded."""

    def __reduce__(self):
        return (print, ("hostile code ran",))


def spoiled(directory: Path, target: Path, model: Any, how: str) -> Path:
    """A WavLM under `target` with one fault."""
    content = original(model.state_dict())
    path = target / "WavLM.pt"
    if how == "base":
        content["cfg"]["layer_norm_first"] = False
    elif how == "no config":
        content = content["model"]
    elif how == "missing weight":
        del content["model"]["encoder.layers.1.self_attn.grep_a"]
    elif how == "wrong size":
        content["cfg"]["encoder_ffn_embed_dim"] = 100
    elif how == "no size":
        del content["cfg"]["encoder_embed_dim"]
    torch.save(content, path)
    if how == "hostile":
        path.write_bytes(pickle.dumps({"cfg": Hostile()}))
    if how in ("base directory", "no weights"):
        config = json.loads((directory / "config.json").read_text())
        config["do_stable_layer_norm"] = how != "base directory"
        (target / "config.json").write_text(json.dumps(config))
        if how == "base directory":
            (target / "model.safetensors").write_bytes((directory / "model.safetensors").read_bytes())
        return target
    return target / "nowhere" if how == "absent" else path


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("base", "layer_norm_first False, expected True: only models built like WavLM Large"),
        ("base directory", "do_stable_layer_norm False, expected True"),
        ("no config", 'a mapping with "cfg" and "model"'),
        ("missing weight", r"lack 'encoder.layers.1.attention.gru_rel_pos_const'"),
        ("wrong size", r"has shape \(96, 48\)"),
        ("no size", "lacks 'encoder_embed_dim'"),
        ("hostile", "would run code"),
        ("no weights", "model.safetensors or pytorch_model.bin"),
        ("absent", "not found"),
    ],
)
def test_faults_are_named(directory: Path, model: Any, tmp_path: Path, capsys, how: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_wavlm(spoiled(directory, tmp_path, copy.deepcopy(model), how), layers=3)
    assert "hostile code ran" not in capsys.readouterr().out


@pytest.mark.parametrize("layers", [0, 4])
def test_layers_there_are_not(directory: Path, layers: int) -> None:
    with pytest.raises(InputError, match="it has 3, so expected 1 to 3"):
        load_wavlm(directory, layers=layers)
