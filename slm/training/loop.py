"""The training loop, flat: a step, its line in the log, a validation when one is due, a checkpoint when one is due.

A step depends only on the weights, the optimizer's state and the step's number: the batch is a function of the step,
and dropout is seeded by it. So on a CPU with the same number of threads, a resumed run has exactly the losses of an
uninterrupted run. What is learnt from which data is the objective's; see `Objective`.
"""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from slm.model.packed_attention import leave_uncompiled
from slm.model.transformer import LanguageModel
from slm.training.checkpoints.optimizer_state import trained
from slm.training.checkpoints.progress import Progress
from slm.training.checkpoints.run_folder import RunFolder
from slm.training.lora import separated
from slm.training.parallel import distribute, settle, whole_weights
from slm.training.prefetch import Batches, Prefetched
from slm.training.settings import WHOLE, TrainSettings
from slm.training.spikes import Spikes
from slm.training.steps import StepLoss, in_layers, train_step
from slm.training.utilisation import flops_per_token, peak_flops
from slm.vocabulary import Vocabulary
from tokenizer.runs.monitor import Monitor
from tokenizer.runs.optimizers import Optimizers
from tokenizer.runs.ranks import Ranks
from tokenizer.runs.stop_signals import stop_signals


class Objective(StepLoss, Protocol):
    """What a run learns: its batches, its loss, its validation, and what it says about them."""

    @property
    def training(self) -> Batches: ...

    @property
    def tokens_per_step(self) -> int: ...  # of all processes, for the speed

    def numbers(self, nats: float, figures: dict[str, float]) -> dict[str, float]:
        """The log's numbers of a step, from its mean loss and the means of its figures."""

    def validate(self, trainee: nn.Module, ranks: Ranks) -> tuple[dict[str, float], float]:
        """The log's record of a validation, and the number whose lowest value makes a checkpoint the best."""

    def bar_line(self, record: dict[str, Any], source: str) -> str:
        """The progress bar's text for a step; `source` is that of the device's peak."""

    def validation_line(self, record: dict[str, Any]) -> str:
        """The printed line of a validation."""

    def samples(self, weights: dict[str, Tensor], place: Path, device: str) -> tuple[list[Tensor], int]:
        """Write samples of a model with these weights into a folder; their audio, if any, and its sample rate."""


class Outcome(NamedTuple):
    """How a loop ended."""

    progress: Progress
    stopped_by: str  # "end", "patience", "time", or the signal's name
    parameters: int  # of the model that is saved
    trained_parameters: int  # fewer or more than those with adapters


def learn(
    model: LanguageModel,
    vocabulary: Vocabulary,
    objective: Objective,
    settings: TrainSettings,
    folder: RunFolder,
    identity: dict[str, Any],
    device: str,
    ranks: Ranks,
    show_progress: bool,
    seconds: float = math.inf,
    resume_from: int | None = None,
    wandb: str | None = None,
    initial: Iterable[tuple[str, Tensor]] | None = None,
) -> Outcome:
    """Train a model until the steps, the patience or the time are over, or a signal comes.

    Args:
        model: on its device, with the weights to start from; a checkpoint replaces them when resuming. With `initial`
            on the meta device.
        vocabulary: the model's.
        objective: what is learnt.
        settings: the run's, with `bfloat16` resolved.
        folder: the run's.
        identity: of the data, which must be the same when resuming.
        device, ranks, show_progress, seconds, resume_from, wandb: see `slm.training.train.train`.
        initial: with FSDP, names and full weights to start from, one after the other.

    Raises:
        InputError: the folder is in use or cannot be resumed, or a gradient is no longer finite.
    """
    trained_parameters = sum(parameter.numel() for parameter in trained(model).values())
    parameters = sum(parameter.numel() for parameter in model.parameters())
    parameters -= trained_parameters if settings.lora else 0
    flops = flops_per_token(model, settings.row_tokens)
    peak, source = peak_flops(device, settings.bfloat16 is True)
    model.recompute = settings.recompute
    if settings.compiles_on(device):
        leave_uncompiled()
        if settings.compile == WHOLE:
            model.compile_whole()
        else:
            for layer in model.layers:
                layer.compile()
    trainee = distribute(
        model, settings.parallel, ranks, settings.fsdp_replicas, settings.fsdp_bfloat16, device, initial
    )
    optimizer = Optimizers(trained(model).items(), settings, settings.learning_rate, in_layers, ranks)
    silent = ranks.rank > 0
    with (
        folder.begin(model, optimizer, identity, resume_from) as progress,
        stop_signals() as signals,
        Monitor(folder.path, "train", progress.step, settings.steps, silent, show_progress, wandb) as monitor,
        Prefetched(objective.training, settings.steps) as batches,
    ):
        ranks.keep_pace()
        spikes = Spikes(settings, progress.skipped, progress.latest_losses, progress.latest_norms)
        stopped_by = reason_to_stop(progress, settings, signals, ranks, device)
        started = time.perf_counter()
        while not stopped_by:
            began = time.perf_counter()
            rate = settings.rate_at(max(progress.step, int(settings.steps * (began - started) / seconds)))
            share, batch = rate / settings.learning_rate, batches.batch(progress.step)
            loss, norm, skipped, figures = train_step(
                trainee, optimizer, batch, settings, progress.step, share, ranks, spikes, objective
            )
            speed = objective.tokens_per_step / (time.perf_counter() - began)
            progress = dataclasses.replace(
                progress,
                step=progress.step + 1,
                skipped=spikes.skipped,
                latest_losses=tuple(spikes.losses),
                latest_norms=tuple(spikes.norms),
            )
            numbers = {**objective.numbers(loss, figures), "gradient_norm": norm}
            record: dict[str, Any] = {
                "step": progress.step,
                **{name: value if math.isfinite(value) else None for name, value in numbers.items()},  # JSON has no NaN
                **({"skipped": spikes.skipped} if skipped else {}),
                "learning_rate": rate,
                "tokens_per_second": round(speed, 1),
                "utilisation": round(speed * flops / (peak * ranks.world), 4),
            }
            in_time = not ranks.any(time.perf_counter() - started >= seconds or folder.has_failed, device)
            if not in_time:
                folder.finish_saving()  # raises in all processes if the checkpoint of one could not be written
            if progress.step % settings.validate_every == 0 or progress.step == settings.steps or not in_time:
                found, score = objective.validate(trainee, ranks)
                settle(model)
                record |= found
                progress = judged(progress, score)
                if show_progress and not silent:
                    monitor.bar.write(objective.validation_line(record), file=sys.stderr)
            monitor.step(record, objective.bar_line(record, source))
            if skipped and show_progress and not silent:
                monitor.bar.write(
                    f"step {progress.step}: batch skipped (loss {loss:.3f}, gradient norm {norm:.3g}), "
                    f"{spikes.skipped} of at most {settings.skip_limit}",
                    file=sys.stderr,
                )
            if settings.sample_every and progress.step % settings.sample_every == 0:
                weights, _ = separated(whole_weights(model, ranks), settings.lora_scale)
                if not silent:
                    place = folder.path / "samples" / f"step-{progress.step:06d}"
                    monitor.hear(progress.step, *objective.samples(weights, place, device))
            stopped_by = reason_to_stop(progress, settings, signals, ranks, device) or ("" if in_time else "time")
            is_due = progress.step % settings.save_every == 0 or progress.step == settings.decay_begins
            if stopped_by or is_due or progress.best_step == progress.step:
                folder.save(model, vocabulary, optimizer, progress)
    return Outcome(progress, stopped_by, parameters, trained_parameters)


def judged(progress: Progress, score: float) -> Progress:
    """Progress after a validation."""
    if score < progress.best_bits_per_token:
        return dataclasses.replace(
            progress, best_step=progress.step, best_bits_per_token=score, validations_since_best=0
        )
    return dataclasses.replace(progress, validations_since_best=progress.validations_since_best + 1)


def reason_to_stop(progress: Progress, settings: TrainSettings, signals: list[str], ranks: Ranks, device: str) -> str:
    """ "end", "patience", a signal's name, or nothing: the same in all processes, which call it together."""
    if progress.step >= settings.steps:
        return "end"
    if settings.patience and progress.validations_since_best >= settings.patience:
        return "patience"
    heard = ranks.any(bool(signals), device)
    return [*signals, "SIGTERM"][0] if heard else ""  # another process may have received the signal
