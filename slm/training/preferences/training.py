"""Training on preferences: a run whose objective is `slm.training.preferences.dpo`, in the ordinary loop."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipelines.dataset.batches import ranks_rows, split_held_out
from slm.checkpoint import locate
from slm.model.transformer import ModelConfig
from slm.training.checkpoints.run_folder import RunFolder
from slm.training.loop import learn
from slm.training.preferences.dpo import PairBatches, PreferenceLoss, check_lengths, log_likelihoods
from slm.training.preferences.records import fingerprint_of, read_preferences
from slm.training.reporting import speed
from slm.training.settings import TrainSettings
from slm.training.start import Start
from slm.vocabulary import Vocabulary
from tokenizer.errors import InputError
from tokenizer.machine import check_device
from tokenizer.runs.precision import resolved_bfloat16
from tokenizer.runs.ranks import Ranks


@dataclass(frozen=True)
class PreferenceReport:
    """How a run ended; None before a validation."""

    step: int
    best_step: int | None
    best_loss: float | None  # nats a held-out pair
    parameters: int
    trained_parameters: int  # fewer or more than those with train.lora
    preferences: int  # for training
    epochs: float
    stopped_by: str  # "end", "patience", or the signal's name
    skipped: int  # batches


def train_on_preferences(
    model_config: ModelConfig,
    settings: TrainSettings,
    preferences: Path,
    init_from: str,
    out: Path,
    resume: bool = False,
    device: str = "cpu",
    show_progress: bool = True,
    ranks: Ranks = Ranks(),  # noqa: B008
    resume_from: int | None = None,
    wandb: str | None = None,
) -> PreferenceReport:
    """Train a speech model on preferences, without dropout.

    Args:
        model_config: the model's shape.
        settings: the run's: `rows` pairs a step, of `row_tokens` tokens at most; `held_out_fraction` of them validate.
        preferences: see `slm.training.preferences.records`.
        init_from: the model that the run starts from, which is also the reference.
        out, resume, device, show_progress, ranks, resume_from, wandb: see `slm.training.train.train`.

    Raises:
        InputError: the device cannot be used; the file does not fit the model; `out` is in use or cannot be resumed;
            the model does not fit its configuration; or a gradient is no longer finite.
    """
    check_device(device)
    resume = resume or resume_from is not None
    if settings.sample_every:
        raise InputError(
            f"train.sample_every is {settings.sample_every}: a run on preferences has no held-out speech to continue; "
            "set it to 0"
        )
    bfloat16 = resolved_bfloat16(settings.bfloat16, device, out / "run.json", say=show_progress and not ranks.rank)
    settings = dataclasses.replace(settings, bfloat16=bfloat16)
    folder = RunFolder(out, settings, ranks, resume, show_progress, measure="loss")
    with folder.removed_if_refused(), ranks.together():
        place = locate(init_from) / "vocabulary.json"
        if not place.is_file():
            raise InputError(f"--init-from {init_from}: is no speech model; preferences need one to start from")
        vocabulary = Vocabulary.load(place)
        pairs = read_preferences(preferences, vocabulary)
        check_lengths(pairs, settings.row_tokens)
        if len(pairs) < 2:
            raise InputError(f"{preferences}: holds one preference; at least two are needed, one of them to validate")
        start = Start(model_config, vocabulary, settings, init_from, resume=resume)
        model, initial_weights = start.whole(is_reference=True)
        model.to(device).eval()  # for the whole run: dropout would move it away from its reference
        training, held_out = split_held_out(len(pairs), settings.held_out_fraction, settings.seed)
        ranks_rows(settings.rows, 0, ranks.rank, ranks.world)  # refuses what cannot be divided, before minutes of work
    reference = log_likelihoods(model, pairs, settings.rows_at_once, bfloat16, ranks)
    batches = [
        PairBatches([pairs[number] for number in chosen], reference[chosen], settings.rows, settings.seed, ranks)
        for chosen in (training, held_out)
    ]
    objective = Preferring(settings, *batches)
    identity = {
        "codec_fingerprint": vocabulary.codec_fingerprint,
        "preferences": fingerprint_of(pairs),
        "init_from": init_from,
        "initial_weights": initial_weights,
    }
    progress, stopped_by, parameters, trained_parameters = learn(
        model,
        vocabulary,
        objective,
        settings,
        folder,
        identity,
        device,
        ranks,
        show_progress,
        resume_from=resume_from,
        wandb=wandb,
    )
    is_judged = progress.best_step >= 0
    return PreferenceReport(
        step=progress.step,
        best_step=progress.best_step if is_judged else None,
        best_loss=progress.best_bits_per_token if is_judged else None,
        parameters=parameters,
        trained_parameters=trained_parameters,
        preferences=len(training),
        epochs=progress.step * settings.rows / len(training),
        stopped_by=stopped_by,
        skipped=progress.skipped,
    )


class Preferring(PreferenceLoss):
    """The objective of a run on preferences.

    Args:
        settings: the run's.
        training, held_out: this process's batches, and those of the pairs that validate.
    """

    def __init__(self, settings: TrainSettings, training: PairBatches, held_out: PairBatches) -> None:
        super().__init__(settings.dpo_beta)
        self.training, self._held_out, self._settings = training, held_out, settings
        self.tokens_per_step = round(settings.rows * training.mean_tokens)

    def numbers(self, nats: float, figures: dict[str, float]) -> dict[str, float]:
        return {"loss": nats, **figures}

    @torch.no_grad()
    def validate(self, trainee: nn.Module, ranks: Ranks) -> tuple[dict[str, float], float]:
        at_once, pairs = self._settings.rows_at_once, min(self._settings.validation_rows, len(self._held_out))
        sums: dict[str, Tensor] = {}
        for first in range(0, pairs, at_once * ranks.world):
            mine = first + at_once * ranks.rank
            start = min(mine, pairs - 1)  # a process without pairs computes too: FSDP needs all of them in every pass
            batch = self._held_out.pairs(range(start, min(start + at_once, pairs)))
            loss, figures = self.summed(trainee, batch, self._settings.bfloat16 is True)
            for name, value in {"loss": loss, **figures}.items():
                sums[name] = sums.get(name, value.new_zeros((), dtype=torch.float64)) + value.double() * (mine < pairs)
        # The mean over the processes times their number is the sum.
        means = {f"held_out_{name}": float(ranks.mean(value)) * ranks.world / pairs for name, value in sums.items()}
        return means, means["held_out_loss"]

    def bar_line(self, record: dict[str, Any], source: str) -> str:
        loss, margin = record["loss"], record["margin"]
        said = "batch skipped" if loss is None else f"loss {loss:.3f}, margin {margin:.2f}"
        return f"{said}, {speed(record, source)}"

    def validation_line(self, record: dict[str, Any]) -> str:
        trained = "skipped" if record["loss"] is None else f"{record['loss']:.3f}"
        return (
            f"step {record['step']}: training {trained}, held-out {record['held_out_loss']:.3f} nats a pair, margin "
            f"{record['held_out_margin']:.2f}, {100 * record['held_out_accuracy']:.0f} % above 0"
        )

    def samples(self, weights: dict[str, Tensor], place: Path, device: str) -> tuple[list[Tensor], int]:
        raise AssertionError("train.sample_every is 0 in a run on preferences")
