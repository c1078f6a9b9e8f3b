"""Content losses: zero for the same, a gradient to codec and head alone, and a run that lowers them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.tokenizer.teachers.test_whisper import SIZES, reference, speechlike, stored
from tests.tokenizer.training.conftest import make_corpus, quick, records
from tokenizer import Codec, InputError
from tokenizer.teachers.whisper import WhisperConfig, WhisperEncoder, load_whisper
from tokenizer.training.batches import Crops, Rates, Utterances
from tokenizer.training.config import TeacherConfig, TrainingConfig
from tokenizer.training.loop import run_stage
from tokenizer.training.losses.content import ContentLosses, Resample, angle, scaled_distance, some_noise
from tokenizer.training.teachers import load_full_context, new_teacher
from tokenizer.training.train import check_trainable, train

RATES = Rates(16000, 16000, 1280)
WEIGHTS = {"multi_mel": 1.0, "content": 3.0, "distilled": 1.0}


def test_the_same_wave_has_no_distance_and_another_has() -> None:
    torch.manual_seed(1)
    teacher = random_whisper()
    losses = ContentLosses({"content", "distilled"}, 16000, 6, teacher.dim)
    wave, features = speechlike(6400), torch.randn(2, 20, 6)
    lengths = torch.tensor([6400, 3200])
    same = losses(teacher, features, wave, wave, lengths)
    other = losses(teacher, features, wave.flip(0), wave, lengths)
    assert set(same) == {"content", "distilled"}
    found = {name: value.item() for name, value in same.items()}
    assert found["content"] == 0 and other["content"].item() > 0.1
    assert found["distilled"] == other["distilled"].item() > 0.5  # features of noise know nothing of the wave


def random_whisper() -> WhisperEncoder:
    """A Whisper encoder of random weights, without files."""
    encoder = WhisperEncoder(WhisperConfig(**SIZES))
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return encoder.requires_grad_(False).eval()


def test_distances_count_only_frames_that_are_there_and_scale_each_channel() -> None:
    rng = np.random.default_rng(2)
    wanted = torch.from_numpy(rng.normal(size=(2, 7, 5)) * [1, 10, 100, 0.5, 3]).float()
    got = wanted + wanted.std((0, 1), correction=0)  # one standard deviation off in every channel
    frames = torch.tensor([7, 7])
    assert float(scaled_distance(got, wanted, frames)) == pytest.approx(1, rel=0.01)  # a constant keeps it from 1/0
    got[1, 4:] = 1e6
    longer = torch.cat([got, got[:, :1] * 1e6], 1)  # a frame more than the teacher has
    assert float(scaled_distance(longer, wanted, torch.tensor([8, 4]))) < 2
    centred = wanted - wanted.mean((0, 1))
    assert float(angle(2 * centred, wanted, frames)) == pytest.approx(0, abs=1e-6)
    assert float(angle(-centred, wanted, frames)) == pytest.approx(2, abs=1e-6)


def test_resampling_keeps_a_tone_and_drops_what_does_not_fit() -> None:
    t = torch.arange(24000) / 24000
    low, high = torch.sin(2 * np.pi * 1000 * t), torch.sin(2 * np.pi * 11000 * t)
    out = Resample(24000, 16000)((low + high)[None])[0]
    assert out.shape == (16000,)
    wanted = torch.sin(2 * np.pi * 1000 * torch.arange(16000) / 16000)
    np.testing.assert_allclose(out[200:-200], wanted[200:-200], atol=5e-3)  # a window of 16 periods: -46 dB
    assert Resample(16000, 16000)(low[None]) is not None and torch.equal(Resample(16000, 16000)(low[None])[0], low)


@pytest.mark.parametrize("kind", ["whisper", "like the codec"])
def test_training_lowers_them_and_leaves_the_teacher(kind: str, tiny_codec: Codec, tmp_path: Path) -> None:
    torch.manual_seed(7)
    codec = Codec(tiny_codec.config)
    codec.load_state_dict(tiny_codec.state_dict())
    teacher = random_whisper() if kind == "whisper" else new_teacher(codec.config.encoder)
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    crops = Crops(make_corpus(), RATES, 1280 * 6, 2, seed=0)
    config = quick("end_to_end", steps=8, learning_rate=3e-3, losses=WEIGHTS, bfloat16=False)
    run_stage("end_to_end", config, codec.train(), teacher.requires_grad_(False).eval(), crops, crops, tmp_path)
    rows = records(tmp_path)
    assert {"content", "distilled", "multi_mel"} <= set(rows[0])
    held_out = [row["held_out"] for row in rows if "held_out" in row]
    assert held_out[-1] < held_out[0]
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())
    assert Codec.from_pretrained(str(tmp_path / "codec")).config == tiny_codec.config  # the head is thrown away


def test_letters_are_read_off_the_features_of_whole_utterances(tiny_codec: Codec, tmp_path: Path) -> None:
    torch.manual_seed(7)
    codec = Codec(tiny_codec.config)
    codec.load_state_dict(tiny_codec.state_dict())
    batches = Utterances(make_corpus((0.9, 0.8, 0.7, 0.6)), RATES, 16000 * 20, 2, seed=0)
    losses = {"multi_mel": 1.0, "recognition": 0.5}
    config = quick("end_to_end", steps=12, learning_rate=1e-2, losses=losses, crop_seconds=None, bfloat16=False)
    run_stage("end_to_end", config, codec.train(), None, batches, None, tmp_path)
    heard = [row["recognition"] for row in records(tmp_path)]
    assert max(heard[-2:]) < min(heard[:2])


class Broken:
    """Batches that fail at one number."""

    def __init__(self, batches: Crops, step: int) -> None:
        self.batches, self.step, self.per_epoch = batches, step, batches.per_epoch

    def __getitem__(self, step: int):
        if step == self.step:
            raise RuntimeError("the power is off")
        return self.batches[step]


def test_a_run_that_was_cut_off_goes_on_with_its_head(tiny_codec: Codec, tmp_path: Path) -> None:
    config = quick("end_to_end", steps=6, losses=WEIGHTS, save_every=2)
    crops = Crops(make_corpus(), RATES, 1280 * 6, 2, seed=0)

    def run(batches, out: Path) -> None:
        torch.manual_seed(4)
        codec = Codec(tiny_codec.config)
        codec.load_state_dict(tiny_codec.state_dict())
        torch.manual_seed(5)
        run_stage("end_to_end", config, codec.train(), random_whisper(), batches, None, out)

    run(crops, tmp_path / "whole")
    with pytest.raises(RuntimeError, match="the power is off"):
        run(Broken(crops, 3), tmp_path / "parts")
    run(crops, tmp_path / "parts")
    assert records(tmp_path / "parts") == records(tmp_path / "whole")
    state = torch.load(tmp_path / "parts" / "last.pt", weights_only=True)["stage"]
    assert any(name.startswith("content.head.") for name in state)
    assert not any(name.startswith("teacher.") for name in state)


def test_teachers_that_do_not_fit_are_named(tiny_codec: Codec, tmp_path: Path) -> None:
    stages = {"end_to_end": quick("end_to_end", losses=WEIGHTS)}
    with pytest.raises(InputError, match="learns from a teacher; add the section 'teacher'"):
        check_trainable(TrainingConfig(tiny_codec.config, None, stages))
    source = stored(tmp_path, reference().state_dict())
    config = TrainingConfig(tiny_codec.config, TeacherConfig(source), {"joint": quick("joint")})
    with pytest.raises(InputError, match="is a Whisper encoder, which is built otherwise"):
        train(config, make_corpus(), None, tmp_path / "out", initial=tiny_codec)
    assert torch.equal(
        load_full_context(TeacherConfig(source), tmp_path).conv1.weight, load_whisper(source).conv1.weight
    )


def test_the_teacher_hears_both_through_the_same_noise_in_training_only() -> None:
    torch.manual_seed(1)
    teacher, wave = random_whisper(), speechlike(6400)
    losses = ContentLosses({"content"}, 16000, 6, teacher.dim, noise_db=0.0)
    features, lengths = torch.randn(2, 20, 6), torch.tensor([6400, 6400])
    assert float(losses(teacher, features, wave, wave, lengths)["content"]) == 0  # the same noise for both
    other = wave.flip(0)
    in_training = [float(losses(teacher, features, other, wave, lengths)["content"]) for _ in range(6)]
    losses.eval()
    in_use = {float(losses(teacher, features, other, wave, lengths)["content"]) for _ in range(2)}
    assert len(set(in_training)) > 1 and len(in_use) == 1
    levels = some_noise(torch.ones(400, 800), 5.0).std(1)
    quiet, loud = 10 ** (-25 / 20), 10 ** (-5 / 20)
    heard = levels[levels > 0]
    assert 120 < len(heard) < 280 and quiet * 0.9 < float(heard.min()) and float(heard.max()) < loud * 1.1
