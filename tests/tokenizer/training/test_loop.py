"""A stage that was stopped anywhere goes on to the last bit; averages, schedules, and what is refused."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch

from tests.tokenizer.training.conftest import make_corpus, quick, records
from tokenizer import Codec, InputError
from tokenizer.runs.schedule import Schedule
from tokenizer.training import loop
from tokenizer.training.batches import Batch, Crops, Rates
from tokenizer.training.config import StageConfig, TrainingConfig
from tokenizer.training.loop import run_stage
from tokenizer.training.train import train

GAME = {"adversarial": 1.0, "feature_matching": 1.0, "multi_mel": 1.0, "entropy": 0.1}
SETTINGS = {
    "plain": {},
    "everything": {"losses": GAME, "average": 0.9, "optimizer": "muon", "schedule": "plateau", "warmup_steps": 0},
}


def crops(seed: int = 0) -> Crops:
    return Crops(make_corpus(), Rates(16000, 16000, 1280), 1280 * 6, 2, seed)


def fresh(tiny_codec: Codec) -> Codec:
    codec = Codec(tiny_codec.config)
    codec.load_state_dict(tiny_codec.state_dict())
    return codec.train()


class Stopped(Exception):
    pass


class StopsAt(Crops):
    """Raises, or is told to stop, when batch `at` is asked for."""

    def __init__(self, at: int, number: int | None = None) -> None:
        super().__init__(make_corpus(), Rates(16000, 16000, 1280), 1280 * 6, 2, 0)
        self.at, self.number = at, number

    def __getitem__(self, step: int) -> Batch:
        if step == self.at:
            if self.number is None:
                raise Stopped
            os.kill(os.getpid(), self.number)
        return super().__getitem__(step)


@pytest.mark.parametrize("settings", SETTINGS)
def test_stopped_stage_goes_on_to_the_last_bit(settings: str, tiny_codec: Codec, tmp_path: Path) -> None:
    config = quick("end_to_end", **SETTINGS[settings])
    whole, parts = fresh(tiny_codec), fresh(tiny_codec)
    run_stage("end_to_end", config, whole, None, crops(), crops(1), tmp_path / "whole")
    assert [row["step"] for row in records(tmp_path / "whole")] == [1, 2, 3, 4, 5, 6]
    with pytest.raises(Stopped):  # one step after the checkpoint of step 2: step 3 is logged and must be done again
        run_stage("end_to_end", config, parts, None, StopsAt(3), crops(1), tmp_path / "parts")
    assert len(records(tmp_path / "parts")) == 3
    resumed = fresh(tiny_codec)
    run_stage("end_to_end", config, resumed, None, crops(), crops(1), tmp_path / "parts")
    assert records(tmp_path / "parts") == records(tmp_path / "whole")
    assert resumed.fingerprint == whole.fingerprint != tiny_codec.fingerprint
    assert Codec.from_pretrained(str(tmp_path / "parts" / "codec")).fingerprint == whole.fingerprint
    assert Codec.from_pretrained(str(tmp_path / "parts" / "best")).config == whole.config
    assert (tmp_path / "parts" / "held_out" / "0.wav").stat().st_size > 10000


def test_sigterm_saves_before_it_stops(tiny_codec: Codec, tmp_path: Path) -> None:
    config = quick("end_to_end", save_every=100)
    stopped = run_stage("end_to_end", config, fresh(tiny_codec), None, StopsAt(2, signal.SIGTERM), None, tmp_path)
    assert stopped == "SIGTERM"
    assert torch.load(tmp_path / "last.pt", weights_only=True)["step"] == 3
    assert len(records(tmp_path)) == 3


def test_the_average_lags_behind_the_weights(tiny_codec: Codec, tmp_path: Path) -> None:
    averaged, plain = fresh(tiny_codec), fresh(tiny_codec)
    run_stage("end_to_end", quick("end_to_end", average=0.99), averaged, None, crops(), None, tmp_path / "a")
    run_stage("end_to_end", quick("end_to_end"), plain, None, crops(), None, tmp_path / "b")
    start = tiny_codec.state_dict()

    def moved(codec: Codec) -> float:
        return sum(float((value - start[name]).abs().sum()) for name, value in codec.state_dict().items())

    assert 0 < moved(averaged) < 0.5 * moved(plain)


def test_settings_of_another_run_are_refused(tiny_codec: Codec, tmp_path: Path) -> None:
    run_stage("end_to_end", quick("end_to_end"), fresh(tiny_codec), None, crops(), None, tmp_path)
    with pytest.raises(InputError, match=r"other settings \(train.learning_rate\)"):
        other = quick("end_to_end", learning_rate=1.0)
        run_stage("end_to_end", other, fresh(tiny_codec), None, crops(), None, tmp_path)
    torch.manual_seed(9)
    with pytest.raises(InputError, match=r"other settings \(start\)"):
        run_stage("end_to_end", quick("end_to_end"), Codec(tiny_codec.config), None, crops(), None, tmp_path)


def test_what_does_not_fit_is_refused(tiny_codec: Codec, whole_codec: Codec, tmp_path: Path) -> None:
    stages = {"end_to_end": quick("end_to_end")}
    with pytest.raises(InputError, match="streaming codecs"):
        train(TrainingConfig(whole_codec.config, None, stages), make_corpus(), None, tmp_path)
    with pytest.raises(InputError, match=r"stages\.joint: learns from a teacher"):
        train(TrainingConfig(tiny_codec.config, None, {"joint": quick("joint")}), make_corpus(), None, tmp_path)
    config = TrainingConfig(tiny_codec.config, None, stages | {"tune": quick("tune")})
    with pytest.raises(InputError, match="--stage joint"):
        train(config, make_corpus(), None, tmp_path, stage="joint")
    with pytest.raises(InputError, match="run the stage 'end_to_end' first"):
        train(config, make_corpus(), None, tmp_path, stage="tune")
    odd = TrainingConfig(tiny_codec.config, None, {"end_to_end": quick("end_to_end", crop_seconds=0.5)})
    with pytest.raises(InputError, match=r"crop_seconds 0.5 is 8000 samples.*1280"):
        train(odd, make_corpus(), None, tmp_path)


def test_plateau_lowers_the_rate() -> None:
    config = StageConfig(steps=100, learning_rate=1.0, annealing=0.5, final_learning_rate=0.1)
    schedule = Schedule(config, 100, 10)
    assert schedule.validated(4.0) and schedule.rate(0) == 1.0
    assert schedule.validated(3.9) and schedule.rate(50) == 1.0
    assert schedule.validated(3.895) and schedule.rate(50) == 0.5  # better, but by less than a quarter of a percent
    assert not schedule.validated(5.0) and schedule.rate(50) == 0.25
    assert not schedule.validated(5.0) and not schedule.validated(5.0) and schedule.rate(50) == 0.1
    again = Schedule(config, 100, 10)
    again.load(schedule.state())
    assert again.rate(50) == 0.1 and not again.validated(3.9)


def test_epochs_lower_the_rate() -> None:
    config = StageConfig(steps=100, learning_rate=1.0, schedule="epoch", annealing=0.5, warmup_steps=4)
    schedule = Schedule(config, 100, 10)
    assert [schedule.rate(step) for step in (0, 3, 9, 10, 25)] == [0.25, 1.0, 1.0, 0.5, 0.25]


def test_killed_while_it_saves_its_last_step_it_still_ends_with_the_last_weights(
    tiny_codec: Codec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = quick("end_to_end", save_every=3)
    saved = loop.write_atomically
    times = []

    def dies_after_the_second(path: Path, data: bytes) -> None:
        saved(path, data)
        times.append(path)
        if len([p for p in times if p.name == "last.pt"]) == 2:
            raise Stopped

    monkeypatch.setattr(loop, "write_atomically", dies_after_the_second)
    with pytest.raises(Stopped):
        run_stage("end_to_end", config, fresh(tiny_codec), None, crops(), None, tmp_path)
    monkeypatch.undo()
    resumed = fresh(tiny_codec)
    run_stage("end_to_end", config, resumed, None, crops(), None, tmp_path)
    assert torch.load(tmp_path / "last.pt", weights_only=True)["step"] == 6
    assert Codec.from_pretrained(str(tmp_path / "codec")).fingerprint == resumed.fingerprint


def test_dropout_goes_on_as_it_would_have(tiny_codec: Codec, tmp_path: Path) -> None:
    raw = tiny_codec.config.to_dict()
    raw["encoder_config"]["dropout"] = 0.3
    codecs = []
    for _ in range(3):
        torch.manual_seed(4)
        codecs.append(Codec.from_config(raw).train())
    config = quick("end_to_end")
    run_stage("end_to_end", config, codecs[0], None, crops(), None, tmp_path / "whole")
    with pytest.raises(Stopped):
        run_stage("end_to_end", config, codecs[1], None, StopsAt(3), None, tmp_path / "parts")
    run_stage("end_to_end", config, codecs[2], None, crops(), None, tmp_path / "parts")
    assert records(tmp_path / "parts") == records(tmp_path / "whole")


def test_plateaus_are_told_by_the_validation_before() -> None:
    schedule = Schedule(quick("tune", schedule="plateau", warmup_steps=0), 10, 5)
    for loss in (1.0, 1.2, 1.1, 1.1):  # up; down again, though not to the best; level
        schedule.validated(loss)
    assert schedule.anneals == 2 and schedule.best == 1.0
