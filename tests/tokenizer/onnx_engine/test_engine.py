"""The ONNX engine equals PyTorch, whatever the state is made of; an export stands alone; bad input is named."""

from __future__ import annotations

import pickle
import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from slm.cli import main
from tokenizer import Codec, InputError

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

MARGIN = 1e-4  # a latent nearer to zero than this may round to either sign: the engines sum in another order
WIDE = 64  # channels, so that products are large enough for 8 bits
EXTRAS = {"use_post_norm": True, "use_layerscale": True, "layerscale_init": 0.5, "normalize_modulator": True}


def widened(codec: Codec, **changes: dict[str, Any]) -> dict[str, Any]:
    """The tiny codec's configuration with WIDE channels and `changes` by stage."""
    raw = codec.config.to_dict()
    raw["encoder_config"] |= {"dim": WIDE, "ffn_dim": 2 * WIDE}
    raw["compressor_config"] |= {"input_dim": WIDE, "hidden_dims": [WIDE]}
    raw["decompressor_config"] |= {"output_dim": WIDE, "hidden_dims": [WIDE]}
    raw["decoder_config"] |= {"input_dim": WIDE, "dim": WIDE, "ffn_dim": 2 * WIDE}
    for stage, change in changes.items():
        raw[f"{stage}_config"] |= change
    return raw


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The user's cache, for these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module", params=["short states", "comb", "histories", "every layer", "single frames"])
def codec(request: pytest.FixtureRequest, tiny_codec: Codec, make_codec: Callable[..., Codec]) -> Codec:
    """Short states only, at a window of no whole number of hops; a comb filter; long states; the layers that remain; no
    refiner."""
    if request.param == "short states":
        return make_codec(widened(tiny_codec, encoder={"mel_window": 500}), seed=1)
    if request.param == "comb":
        return make_codec(widened(tiny_codec, decoder={"head": "comb"}), seed=5)
    if request.param == "single frames":
        alone = {"lookahead_size": 0}
        return make_codec(widened(tiny_codec, encoder=alone, decompressor=alone), seed=4)
    if request.param == "histories":
        encoder = {"window_size": 128, "conv_pos": 120, "conv_pos_groups": 2, "num_layers": 2}
        long = {"window_size": 130}
        return make_codec(widened(tiny_codec, encoder=encoder, compressor=long, decompressor=long), seed=2)
    stem = {"stem": "conv", "hidden_dims": [8] * 7, "window_size": 128}
    down = {"downscale_factors": [2, 1], "hidden_dims": [WIDE, WIDE], "window_size": 110, **EXTRAS}
    up = {"upscale_factors": [1, 2], "hidden_dims": [WIDE, WIDE], **EXTRAS}
    head = {"head": "linear", "hop_length": 480}
    return make_codec(widened(tiny_codec, encoder=stem, compressor=down, decompressor=up, decoder=head), seed=3)


@pytest.fixture(scope="module")
def saved(codec: Codec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    codec.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def onnx_codec(saved: Path) -> Any:
    return Codec.from_pretrained(saved, engine="onnx")


def speech_like(*shape: int, seed: int) -> Tensor:
    """Noise whose level and colour change all the time."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(*shape, generator=generator)
    level = torch.rand(*shape[:-1], shape[-1] // 700 + 1, generator=generator).repeat_interleave(700, -1)
    return 0.3 * (noise + torch.cumsum(noise, -1) / 30) * level[..., : shape[-1]]


def stream(codec: Any, wave: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Encode and decode [B, S] of whole chunks, some chunks at a time."""
    cuts, state, at, tokens, waves = random.Random(seed), codec.init_state(len(wave)), 0, [], []
    while at < wave.shape[1]:
        step = codec.chunk_samples * cuts.randint(1, 9)
        out, state = codec.encode_step(wave[:, at : at + step], state)
        heard, state = codec.decode_step(out, state)
        tokens.append(out)
        waves.append(heard)
        at += step
    return torch.cat(tokens, 1), torch.cat(waves, 1)


def test_equals_torch_within_rounding(codec: Codec, onnx_codec: Any) -> None:
    wave = speech_like(3, 200_000, seed=1)
    lengths = torch.tensor([200_000, 1, 77_777])
    expected, tokens = codec.encode(wave, lengths), onnx_codec.encode(wave, lengths)
    silenced = wave.masked_fill(torch.arange(wave.shape[1]) >= lengths[:, None], 0)
    firm = codec.latents(codec.features(silenced)).abs().amin(-1)[:, : expected.shape[1]] > MARGIN
    assert torch.equal(tokens[firm], expected[firm]) and len(expected.unique()) > 16
    assert firm.float().mean() > 0.9  # the comparison is of nearly all tokens
    torch.testing.assert_close(onnx_codec.decode(expected), codec.decode(expected), rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", ["causal_4k", "causal_2k_hop320"])
def test_equals_the_published_implementation(parity_dir: Path, case: str) -> None:
    expected = load_file(parity_dir / case / "expected.safetensors")
    codec = Codec.from_pretrained(parity_dir / case, engine="onnx")
    firm = expected["lats"].abs().amin(-1) > 1e-5
    tokens, _ = stream(codec, expected["sig"], seed=0)
    assert torch.equal(tokens[firm], expected["stream_toks"][firm])
    # 1e-4 of the largest value, as for the PyTorch codec
    tolerance = 1e-4 * float(expected["rec_sig"].abs().max())
    torch.testing.assert_close(codec.decode(expected["toks"]), expected["rec_sig"], rtol=0, atol=tolerance)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_batch_equals_solo_equals_streaming(saved: Path, precision: str) -> None:
    codec = Codec.from_pretrained(saved, engine="onnx", precision=precision)
    wave = speech_like(3, 100 * codec.chunk_samples, seed=2)
    tokens = codec.encode(wave)
    heard = codec.decode(tokens)
    for row in range(3):
        solo = codec.encode(wave[row])
        # Float32 sums may be taken in another order, so one bit in thousands may flip.
        assert (solo != tokens[row : row + 1]).sum() <= 1
        streamed, streamed_heard = stream(codec, wave[row : row + 1], seed=row)
        assert (streamed != tokens[row : row + 1]).sum() <= 1
        if torch.equal(streamed[0], tokens[row]):
            torch.testing.assert_close(streamed_heard[0], heard[row], rtol=0, atol=1e-5)


def test_a_state_is_a_value(onnx_codec: Any) -> None:
    """A stream may branch: stepping on from a state leaves that state, and what was made of it, as they were."""
    codec = onnx_codec
    first, left, right = speech_like(3, 2, 6 * codec.chunk_samples, seed=3)
    _, state = codec.encode_step(first, codec.init_state(2))
    expected, _ = codec.encode_step(left, state)
    _, other = codec.encode_step(right, state)
    for _ in range(8):  # longer than buffers have room
        _, other = codec.encode_step(right, other)
    again, _ = codec.encode_step(left, state)
    assert torch.equal(again, expected)
    copied = type(state)(*(tuple(leaf.copy() for leaf in part) for part in state))
    assert torch.equal(codec.encode_step(left, copied)[0], expected)


def test_streams_of_one_batch_may_begin_at_different_times(onnx_codec: Any) -> None:
    """Rows of states are states: a new stream takes the place of one that has left."""
    codec = onnx_codec
    wave = speech_like(2, 60 * codec.chunk_samples, seed=4)
    later = 25 * codec.chunk_samples
    _, old = codec.encode_step(wave[:, :later], codec.init_state(2))
    new = codec.init_state(2)
    mixed = tuple(np.stack([a[0], b[1]]) for a, b in zip(old.encoder, new.encoder, strict=True))
    tokens, _ = codec.encode_step(wave[:, later:], old._replace(encoder=mixed))
    assert (tokens[0] != codec.encode(wave[:1])[0, -tokens.shape[1] :]).sum() <= 1
    assert (tokens[1] != codec.encode(wave[1:, later:])[0]).sum() <= 1


def test_states_of_the_other_engine_are_refused(codec: Codec, onnx_codec: Any) -> None:
    chunk = torch.zeros(1, codec.chunk_samples)
    for stepped, other in ((codec, onnx_codec), (onnx_codec, codec)):
        with pytest.raises(InputError, match=r"expected the .* that init_state of the same codec"):
            stepped.encode_step(chunk, other.init_state(1))
        with pytest.raises(InputError, match=r"expected the .* that init_state of the same codec"):
            stepped.decode_step(torch.zeros(1, codec.tokens_per_chunk).long(), other.init_state(1))


def test_int8_is_close(saved: Path, codec: Codec) -> None:
    small = Codec.from_pretrained(saved, engine="onnx", precision="int8")
    assert small.fingerprint == codec.fingerprint
    wave = speech_like(2, 100_000, seed=5)
    expected, tokens = codec.encode(wave), small.encode(wave)
    flipped = (codec.codes(tokens) != codec.codes(expected)).float().mean()
    assert 0 < flipped < 0.05
    reference, heard = codec.decode(expected), small.decode(expected)
    assert 0 < (heard - reference).norm() < 0.1 * reference.norm()


def test_an_exported_folder_stands_alone(codec: Codec, saved: Path, onnx_codec: Any, tmp_path: Path) -> None:
    for precision in ("fp32", "int8"):
        folder = tmp_path / precision
        assert main(["export", str(saved), str(folder), "--precision", precision]) == 0
        script = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
        assert script
        done = subprocess.run([sys.executable, "-c", script[1]], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        loaded = Codec.from_pretrained(folder, engine="onnx", precision=precision)
        assert loaded.fingerprint == codec.fingerprint and loaded.config == codec.config
        audio = torch.from_numpy(np.random.default_rng(0).uniform(-0.1, 0.1, 10 * codec.chunk_samples))
        printed = [int(number) for row in re.findall(r"\[(.*?)\]", done.stdout) for number in row.split()]
        assert printed == loaded.encode(audio.float())[0].tolist()


def test_without_pytorch(saved: Path, onnx_codec: Any, tmp_path: Path) -> None:
    """`ArrayCodec` in a process that never imports PyTorch gives what the codec on tensors gives."""
    assert main(["export", str(saved), str(tmp_path / "folder")]) == 0
    wave = speech_like(2, 10 * onnx_codec.chunk_samples + 77, seed=8)
    np.save(tmp_path / "wave.npy", wave.numpy())
    script = """
import sys, numpy as np
from tokenizer.onnx_engine.arrays import ArrayCodec
codec, wave = ArrayCodec("folder", "fp32", threads=1), np.load("wave.npy")
tokens = codec.encode(wave, [wave.shape[1], wave.shape[1] // 2])
state = codec.init_state(2)
for begin in range(0, 10 * codec.chunk_samples, codec.chunk_samples):
    _, state = codec.encode_step(wave[:, begin : begin + codec.chunk_samples], state)
assert "torch" not in sys.modules
np.savez("out.npz", tokens=tokens, decoded=codec.decode(tokens), position=state.encoder[0])
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    out = np.load(tmp_path / "out.npz")
    tokens = onnx_codec.encode(wave, torch.tensor([wave.shape[1], wave.shape[1] // 2]))
    assert np.array_equal(out["tokens"], tokens.numpy()) and (out["tokens"] == -1).any()
    np.testing.assert_allclose(out["decoded"], onnx_codec.decode(tokens).numpy(), rtol=0, atol=1e-6)
    assert out["position"].tolist() == [10, 10]


def test_a_pickled_codec_is_loaded_again(onnx_codec: Any) -> None:
    other = pickle.loads(pickle.dumps(onnx_codec))
    wave = speech_like(1, 30_000, seed=9)
    assert torch.equal(other.encode(wave), onnx_codec.encode(wave))
    assert (other.name, other.fingerprint) == (onnx_codec.name, onnx_codec.fingerprint)


def test_rates_are_those_of_the_codec(codec: Codec, onnx_codec: Any) -> None:
    for name in ("sample_rate_in", "sample_rate_out", "token_rate", "chunk_samples", "bitrate", "latency_ms"):
        assert getattr(onnx_codec, name) == getattr(codec, name)
    assert onnx_codec.fingerprint == codec.fingerprint


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c: c.encode(torch.tensor([0.0, float("nan")])), "NaN"),
        (lambda c: c.encode_step(torch.zeros(1, 100), c.init_state(1)), r"n \* (1280|320)"),
        (lambda c: c.encode_step(torch.zeros(2, 1280), c.init_state(1)), "2 streams, but the state is of 1"),
        (lambda c: c.decode_step(torch.zeros(2, 4, dtype=torch.int64), c.init_state(1)), "2 streams"),
        (lambda c: c.decode(torch.tensor([[0, 999999]])), "another codec"),
        (lambda c: c.encode(torch.zeros(1, 500), [501]), r"lengths are \[501\]"),
        (lambda c: c.encode(torch.zeros(2, 500), 500), "lengths are 500; expected one number of samples per row"),
        (lambda c: c.init_state(0), "batch_size is 0; expected a whole number, at least 1 stream"),
        (lambda c: c.init_state(1.5), r"batch_size is 1\.5"),
        (
            lambda c: c.encode_step(torch.zeros(1, 1280), None),
            "encode_step: the state is a NoneType; expected the Onnx",
        ),
        (lambda c: c.decode_step(torch.zeros(1, 4).long(), (1, 2)), "decode_step: the state is a tuple"),
    ],
)
def test_bad_input_is_named(onnx_codec: Any, call: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call(onnx_codec)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "tensorrt"}, "expected one of torch, onnx"),
        ({"engine": "onnx", "precision": "bf16"}, 'bf16 needs engine="torch"'),
        ({"precision": "int8"}, 'int8 needs engine="onnx"'),
        ({"engine": "onnx", "precision": "fp16"}, "runs fp32 and int8"),
        ({"engine": "onnx", "device": "cuda"}, "device"),
    ],
)
def test_engines_that_are_not_there(tiny_codec_dir: Path, options: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Codec.from_pretrained(tiny_codec_dir, **options)
