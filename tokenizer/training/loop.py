"""One stage of training, from its first step or from where it was stopped.

OUT/run.json        the settings; of other settings only those in `MAY_CHANGE` are taken
OUT/log.jsonl       one line a step (and tensorboard/, where TensorBoard is installed)
OUT/last.pt         everything to go on exactly
OUT/codec/          the latest weights (their moving average, if the stage has one), for `Codec.from_pretrained`
OUT/best/           those of the lowest validation loss
OUT/teacher/        the teacher, of the stage that trains one
OUT/held_out/       a few held-out rows as the codec renders them before a comb filter, of stages that make sound
"""

from __future__ import annotations

import io
import json
import math
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from tokenizer.audio import write_wav
from tokenizer.checkpoint import fingerprint
from tokenizer.errors import InputError
from tokenizer.files import write_atomically
from tokenizer.model import CodecModel
from tokenizer.network.encoder import Encoder
from tokenizer.runs.monitor import Monitor, forget_from
from tokenizer.runs.optimizers import Optimizers
from tokenizer.runs.precision import resolved_bfloat16
from tokenizer.runs.ranks import Ranks
from tokenizer.runs.schedule import Schedule
from tokenizer.runs.settings import differences
from tokenizer.runs.stop_signals import stop_signals
from tokenizer.training.adversary import Adversary
from tokenizer.training.batches import Batch, Batches
from tokenizer.training.config import StageConfig
from tokenizer.training.losses.content import Teacher
from tokenizer.training.stages import STAGES
from tokenizer.training.step import Run, Steps, captures, weighted_sum
from tokenizer.training.teachers import save_teacher

# Settings that a resumed stage may have otherwise: none of them changes a batch. Those of length and of validation may
# move the learning rate of the steps to come.
MAY_CHANGE = {f"train.{name}" for name in ("steps", "epochs", "validate_every", "validation_batches", "save_every")}

SAMPLES = 4  # held-out rows that are kept to listen to


def run_stage(
    name: str,
    config: StageConfig,
    codec: CodecModel,
    teacher: Teacher | None,
    training: Batches,
    held_out: Batches | None,
    out: Path,
    device: str = "cpu",
    workers: int = 0,
    ranks: Ranks = Ranks(),  # noqa: B008
) -> str | None:
    """Train one stage, or go on with it; `codec` and `teacher` are changed in place and start from what they are.

    A run that was stopped anywhere goes on from its last checkpoint; on CPU with the same number of threads its
    losses are those of an undisturbed run, to the last bit. SIGTERM and Ctrl-C save first.

    Args:
        name: of `STAGES`.
        out: the stage's folder, made when missing.
        workers: processes that prepare batches ahead; 0: none.
        ranks: this process among those of `torchrun`.

    Returns:
        The name of the signal that stopped the stage (if it was heard at the last step, the stage is done), or None.

    Raises:
        InputError: `out` holds a run of other settings, or a gradient is no longer finite.
    """
    bfloat16 = resolved_bfloat16(config.bfloat16, device, out / "run.json", say=not ranks.rank)
    config = replace(config, bfloat16=bfloat16)
    torch.manual_seed(config.seed)
    start = fingerprint(codec.config, codec.state_dict())
    settings = {"stage": name, "train": asdict(config), "model": codec.config.to_dict(), "start": start}
    run = _begin(name, config, codec, teacher, training, device, ranks)
    if run.teaches and teacher is not None:
        settings["teacher"] = fingerprint(codec.config, teacher.state_dict())
    _resume(out, settings, run, ranks)
    stage, steps = run.stage, run.schedule.steps
    batches: DataLoader[Batch] = DataLoader(
        training,  # type: ignore[arg-type]
        batch_size=None,
        sampler=range(run.step * ranks.world + ranks.rank, steps * ranks.world, ranks.world),
        collate_fn=_as_it_is,
        num_workers=workers,
        pin_memory=device.startswith("cuda"),
    )
    take_step = Steps(run, config, ranks, device)
    ranks.keep_pace()
    with stop_signals() as signals, Monitor(out, name, run.step, steps, ranks.rank > 0) as monitor:
        began, stopped = time.perf_counter(), False
        validate_every = config.validate_every or run.schedule.per_epoch
        for batch in batches:
            torch.manual_seed(_seed(config.seed, run.step, ranks.rank))  # so that dropout needs no state to go on
            record = take_step(batch.to(device))
            if held_out is not None and (run.step % validate_every == 0 or run.step == steps):
                loss = _validate(run, config, held_out, device, out, monitor, ranks)
                record["held_out"] = round(loss, 6)
                if run.schedule.validated(loss) and not ranks.rank:
                    run.shown.save_pretrained(out / "best")
            record["seconds"] = round(time.perf_counter() - began, 3)
            began = time.perf_counter()
            monitor.step(record, f"loss={record['loss']:.3f}, rate={record['rate']:.1e}")
            stopped = ranks.any(bool(signals), device)
            if (run.step % config.save_every == 0 or run.step == steps or stopped) and not ranks.rank:
                _save(out, run)
            if stopped:
                break
    ranks.meet()  # what the first process saved is there for all
    stage.codec.load_state_dict(run.shown.state_dict())
    return [*signals, "SIGTERM"][0] if stopped else None  # perhaps it was another process that heard a signal


def _seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def _as_it_is(batch: Any) -> Any:
    return batch


def _begin(
    name: str,
    config: StageConfig,
    codec: CodecModel,
    teacher: Teacher | None,
    training: Batches,
    device: str,
    ranks: Ranks,
) -> Run:
    """A run at its first step."""
    stage = STAGES[name](codec, teacher, config)
    stage.prepare()
    stage.to(device).train()
    adversary, adversary_optimizer = None, None
    captured = captures(config, teacher, ranks, device)
    if "adversarial" in config.losses or "feature_matching" in config.losses:
        heard = None if config.adversary_seconds is None else round(config.adversary_seconds * codec.sample_rate_out)
        adversary = Adversary(config.adversary_width, config.adversary, heard).to(device)
        rate = config.adversary_learning_rate or config.learning_rate
        adversary_optimizer = Optimizers(adversary.named_parameters(), config, rate, ranks=ranks, on_device=captured)
    averaged = None
    if config.average:
        averaged = AveragedModel(codec, multi_avg_fn=get_ema_multi_avg_fn(config.average))
    per_epoch = math.ceil(training.per_epoch / ranks.world)
    steps = config.steps or math.ceil(config.epochs * per_epoch)
    optimizer = Optimizers(stage.trained(), config, config.learning_rate, ranks=ranks, on_device=captured)
    schedule = Schedule(config, steps, per_epoch)
    return Run(stage, optimizer, averaged, adversary, adversary_optimizer, schedule, captured)


@torch.no_grad()
def _validate(
    run: Run, config: StageConfig, held_out: Batches, device: str, out: Path, monitor: Monitor, ranks: Ranks
) -> float:
    """The stage's loss in float32, without the discriminators, on the first batches of held-out speech.

    The processes share the batches, and all get the same loss: their learning rates depend on it.
    """
    trained = run.stage.codec
    run.stage.codec = run.shown
    run.stage.eval()
    total = torch.zeros(2, device=device)  # of losses, and batches
    for index in range(ranks.rank, config.validation_batches, ranks.world):
        outcome = run.stage(held_out[index].to(device))
        total += torch.stack([weighted_sum(outcome, config), total.new_ones(())])
        if index == 0 and outcome.wave is not None and not ranks.rank:
            rows = outcome.wave[:SAMPLES].float()
            monitor.hear(run.step, rows, trained.sample_rate_out)
            (out / "held_out").mkdir(exist_ok=True)
            for row, wave in enumerate(rows):
                write_wav(out / "held_out" / f"{row}.wav", wave.cpu().numpy(), trained.sample_rate_out)
    run.stage.codec = trained
    run.stage.train()
    loss, count = ranks.mean(total).tolist()
    return loss / count


def _save(out: Path, run: Run) -> None:
    state = {name: part.state_dict() for name, part in run.parts().items()}
    if run.teaches:  # the teacher comes from elsewhere, and does not change
        state["stage"] = {name: t for name, t in state["stage"].items() if not name.startswith("teacher.")}
    run.shown.save_pretrained(out / "codec")
    if isinstance(run.stage.teacher, Encoder) and not run.teaches:
        save_teacher(run.stage.teacher, out / "teacher")
    buffer = io.BytesIO()
    torch.save(state | {"schedule": run.schedule.state(), "step": run.step}, buffer)
    write_atomically(out / "last.pt", buffer.getvalue())  # last of all: a run killed before it does these steps again


def _resume(out: Path, settings: dict[str, Any], run: Run, ranks: Ranks) -> None:
    """Load the last checkpoint of a run with the same settings, if there is one."""
    if not ranks.rank:
        out.mkdir(parents=True, exist_ok=True)
        _check_settings(out, json.loads(json.dumps(settings)))
        if not (out / "last.pt").exists():
            (out / "log.jsonl").unlink(missing_ok=True)
    if not (out / "last.pt").exists():
        return
    saved = torch.load(out / "last.pt", map_location="cpu", weights_only=True)
    saved["stage"] = run.stage.state_dict() | saved["stage"]
    for name, part in run.parts().items():
        part.load_state_dict(saved[name])
    run.schedule.load(saved["schedule"])
    run.step = int(saved["step"])
    if not ranks.rank:
        forget_from(out / "log.jsonl", run.step)


def _check_settings(out: Path, settings: dict[str, Any]) -> None:
    """Keep the settings of a run; refuse others than those that it began with, but for `MAY_CHANGE`."""
    record = out / "run.json"
    if record.exists():
        stored = json.loads(record.read_text())
        # A run that began before there was a setting has its default.
        stored["train"] = json.loads(json.dumps(asdict(StageConfig(steps=1, bfloat16=True)))) | stored["train"]
        changed = {difference.name for difference in differences(stored, settings)} - MAY_CHANGE
        if changed:
            raise InputError(
                f"{out}: holds a run with other settings ({', '.join(sorted(changed))}); give those again, "
                "or use another --out"
            )
    write_atomically(record, json.dumps(settings, indent=2).encode())
