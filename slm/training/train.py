"""Training the language model on tokenized datasets, with validation and exact resume; the loop is in
`slm.training.loop`.

Processes started by `torchrun` divide the rows of each step. The batch does not depend on the number of processes, so
the losses are the same up to the order of sums and dropout, which each process draws for itself.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pipelines.dataset.mixture import read_data
from pipelines.dataset.token_dataset import TokenDataset
from slm.checkpoint import model_of
from slm.documents.tasks import SPEECH_TASK
from slm.model.transformer import ModelConfig
from slm.text_model import TextModel
from slm.training.checkpoints.run_folder import RunFolder
from slm.training.loaders import Loaders, data_identity, loaders
from slm.training.loop import learn
from slm.training.reporting import TrainReport, bar_line, held_out_record, validation_line
from slm.training.samples import write_samples
from slm.training.settings import TrainSettings
from slm.training.start import Start
from slm.training.steps import TokenLoss, validate
from slm.vocabulary import Vocabulary
from tokenizer import Codec
from tokenizer.errors import InputError
from tokenizer.machine import check_device
from tokenizer.runs.precision import resolved_bfloat16
from tokenizer.runs.ranks import Ranks


def train(
    model_config: ModelConfig,
    settings: TrainSettings,
    data: Sequence[str | Path],
    out: Path,
    held_out: Sequence[str | Path] = (),
    resume: bool = False,
    device: str = "cpu",
    show_progress: bool = True,
    cache: Path | None = None,
    init_from: str | None = None,
    ranks: Ranks = Ranks(),  # noqa: B008
    codec: Codec | None = None,
    text_model: Path | None = None,
    seconds: float = math.inf,
    related_codec: bool = False,
    resume_from: int | None = None,
    wandb: str | None = None,
) -> TrainReport:
    """Train a model on tokenized datasets.

    Args:
        model_config: the model's shape.
        settings: the run's settings.
        data: folders or URLs written by `focalstream tokenize`, all of one codec; see `read_data`.
        out: the run's folder; see `slm.training.checkpoints.run_folder`.
        held_out: datasets for validation; none: a share of the recordings of `data`.
        resume: continue from the latest checkpoint in `out`.
        device: a torch device.
        show_progress: draw a bar if stderr is a terminal, and print a line for each validation.
        cache: local folder for shards behind URLs.
        init_from: a model that provides the initial weights; see `slm.training.warm_start`.
        ranks: this process and the number of processes (`tokenizer.runs.ranks.join_ranks`).
        codec: the datasets' codec, to decode samples; None: samples are tokens only.
        text_model: written by `focalstream train-text`, for tasks with text; see `slm.documents.tasks`.
        seconds: of training, at most, from its first step on; the learning rate then falls by this time where that is
            ahead of the steps. Such a run depends on the machine's speed.
        related_codec: keep the codes of `init_from` though its codec is a different one; see `slm.training.warm_start`.
        resume_from: resume from the checkpoint of this step instead, and remove the later ones.
        wandb: a project of Weights & Biases to log to as well.

    Raises:
        InputError: the device cannot be used; datasets and codec do not belong together; rows cannot be divided among
            the processes; a task with text has no texts; `out` is in use or cannot be resumed; the initial model does
            not fit; or a gradient is no longer finite.
    """
    check_device(device)
    resume = resume or resume_from is not None
    if related_codec and init_from is None:
        raise InputError("--related-codec keeps the codes of another model: name the model with --init-from")
    if settings.row_tokens < model_config.context and not resume:
        raise InputError(
            f"train.row_tokens is {settings.row_tokens}, model.context {model_config.context}: the model would never "
            f"be trained on a context that long; give --row-tokens {model_config.context} or more, or --model "
            f"context={settings.row_tokens}"
        )
    bfloat16 = resolved_bfloat16(settings.bfloat16, device, out / "run.json", say=show_progress and not ranks.rank)
    settings = dataclasses.replace(settings, bfloat16=bfloat16)
    if held_out:  # then it is not used, and equal for all such runs
        settings = dataclasses.replace(settings, held_out_by="cut")
    folder = RunFolder(out, settings, ranks, resume, show_progress)
    with folder.removed_if_refused(), ranks.together():
        sources = read_data(data)
        dataset = TokenDataset(sources.places, cache)
        sources.check_cuts(dataset.folder_begins)
        validation_data = TokenDataset(list(held_out), cache) if held_out else None
        text = None if text_model is None else TextModel.load(text_model)
        codec_name = dataset.codec["name"]
        vocabulary = Vocabulary(dataset.codebook_size, dataset.token_rate, codec_name, dataset.fingerprint, text)
        if validation_data is not None:
            vocabulary.check(str(held_out[0]), validation_data.fingerprint, validation_data.codebook_size)
        if codec is not None:
            vocabulary.check(f"codec '{codec.name}'", codec.fingerprint, codec.codebook_size)
        data_for = loaders(settings, dataset, vocabulary, validation_data, sources.weights, ranks)
        has_checkpoint = resume and bool(folder.checkpoints())
        start = Start(model_config, vocabulary, settings, init_from, related_codec, has_checkpoint)
        frozen, initial = None, None
        if settings.parallel == "fsdp" and ranks.world > 1 and not settings.lora:
            model, initial = start.sharded()
        else:
            model, frozen = start.whole()
            model.to(device)
        model.train()
    identity = data_identity(
        dataset, validation_data, sources, init_from, vocabulary, data_for.texts, related_codec, frozen
    )
    if data_for.note and show_progress and not ranks.rank:
        print(data_for.note, file=sys.stderr)
    objective = NextTokens(settings, model_config, vocabulary, data_for, codec)
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
        seconds=seconds,
        resume_from=resume_from,
        wandb=wandb,
        initial=initial,
    )
    best_bits = progress.best_bits_per_token if progress.best_step >= 0 else None
    has_rate = best_bits is not None and objective.is_speech_alone
    return TrainReport(
        step=progress.step,
        best_step=progress.best_step if best_bits is not None else None,
        best_bits_per_token=best_bits,
        best_bits_per_second=best_bits * vocabulary.token_rate if best_bits is not None and has_rate else None,
        parameters=parameters,
        trained_parameters=trained_parameters,
        training_tokens=data_for.training.tokens_per_epoch,
        epochs=progress.step * objective.tokens_per_step / data_for.training.tokens_per_epoch,
        stopped_by=stopped_by,
        skipped=progress.skipped,
        codec_streams=dataset.codec.get("first_samples", 1) == 1,  # absent in version 0.1.0, where codecs stream
    )


class NextTokens(TokenLoss):
    """The objective of a run on tokenized datasets: to predict the next token, in all tasks.

    Args:
        settings: the run's.
        config, vocabulary: the model's.
        data: the batches.
        codec: the vocabulary's, to decode samples; None: samples are tokens only.
    """

    def __init__(
        self, settings: TrainSettings, config: ModelConfig, vocabulary: Vocabulary, data: Loaders, codec: Codec | None
    ) -> None:
        self.training, self.tokens_per_step = data.training, settings.rows * settings.row_tokens
        self.is_speech_alone = list(data.validation) == [SPEECH_TASK]
        self._settings, self._config, self._vocabulary, self._data, self._codec = (
            settings,
            config,
            vocabulary,
            data,
            codec,
        )

    def numbers(self, nats: float, figures: dict[str, float]) -> dict[str, float]:
        bits = nats / math.log(2)
        rate = {"bits_per_second": bits * self._vocabulary.token_rate} if self.is_speech_alone else {}
        return {"bits_per_token": bits, **rate}

    def validate(self, trainee: nn.Module, ranks: Ranks) -> tuple[dict[str, float], float]:
        data, settings = self._data, self._settings
        bits = {task: validate(trainee, part, settings, ranks) for task, part in data.validation.items()}
        by_source = {name: validate(trainee, part, settings, ranks) for name, part in data.sources.items()}
        record = held_out_record(bits, settings, self._vocabulary, data.targets_per_character, by_source)
        return record, record["held_out_bits_per_token"]

    def bar_line(self, record: dict[str, Any], source: str) -> str:
        return bar_line(record, source)

    def validation_line(self, record: dict[str, Any]) -> str:
        return validation_line(record)

    def samples(self, weights: dict[str, Tensor], place: Path, device: str) -> tuple[list[Tensor], int]:
        model = model_of(self._config, self._vocabulary, weights, device)
        waves = write_samples(model, self._vocabulary, self._data.validation[SPEECH_TASK], self._codec, place)
        return waves, self._codec.sample_rate_out if self._codec else 0
