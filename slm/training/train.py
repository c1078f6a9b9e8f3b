"""Training the language model: a flat loop over packed batches, with validation and exact resume.

A step depends only on the weights, the optimizer's state and the step's number: the batch is a function of the step
(`pipelines.dataset.batches`), and dropout is seeded by it. So on a CPU with the same number of threads, a resumed run
has exactly the losses of an uninterrupted run.

Processes started by `torchrun` divide the rows of each step. The batch does not depend on the number of processes, so
the losses are the same up to the order of sums and dropout, which each process draws for itself.
"""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pipelines.dataset.mixture import read_data
from pipelines.dataset.token_dataset import TokenDataset
from slm.checkpoint import model_of
from slm.documents.tasks import SPEECH_TASK
from slm.model.packed_attention import leave_uncompiled
from slm.model.transformer import LanguageModel, ModelConfig
from slm.text_model import TextModel
from slm.training.checkpoints.optimizer_state import trained
from slm.training.checkpoints.run_folder import Progress, RunFolder
from slm.training.loaders import data_identity, loaders
from slm.training.lora import add_adapters, fingerprint, separated
from slm.training.parallel import distribute, settle, whole_weights
from slm.training.prefetch import Prefetched
from slm.training.reporting import TrainReport, bar_line, held_out_record, validation_line
from slm.training.samples import write_samples
from slm.training.settings import TrainSettings
from slm.training.spikes import Spikes
from slm.training.steps import in_layers, train_step, validate
from slm.training.utilisation import flops_per_token, peak_flops
from slm.training.warm_start import warm_start
from slm.vocabulary import Vocabulary
from tokenizer import Codec
from tokenizer.errors import InputError
from tokenizer.machine import check_device
from tokenizer.runs.monitor import Monitor
from tokenizer.runs.optimizers import Optimizers
from tokenizer.runs.precision import resolved_bfloat16
from tokenizer.runs.ranks import Ranks
from tokenizer.runs.stop_signals import stop_signals


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

    Raises:
        InputError: the device cannot be used; datasets and codec do not belong together; rows cannot be divided among
            the processes; a task with text has no texts; `out` is in use or cannot be resumed; the initial model does
            not fit; or a gradient is no longer finite.
    """
    check_device(device)
    resume = resume or resume_from is not None
    if related_codec and init_from is None:
        raise InputError("--related-codec keeps the codes of another model: name the model with --init-from")
    if settings.lora and init_from is None:
        raise InputError(f"train.lora is {settings.lora}: adapters need a model to adapt; name it with --init-from")
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
        training, speech_alone = data_for.training, list(data_for.validation) == [SPEECH_TASK]
        torch.manual_seed(settings.seed)
        model = LanguageModel(model_config, vocabulary.size, vocabulary.pieces)
        if init_from is not None and (settings.lora or not resume):
            is_whole = warm_start(model, vocabulary, init_from, settings.seed, related_codec)
            if settings.lora and not is_whole:
                raise InputError(
                    f"--lora {settings.lora}: {init_from} has no rows for some ids of this run, and what is frozen "
                    "must not be random; start from a speech model of the same codec and text model, or give --lora 0"
                )
        initial_weights = fingerprint(model) if settings.lora else None
        if settings.lora:
            add_adapters(model, settings.lora, settings.lora_layers, settings.lora_scale, settings.seed)
        model.to(device).train()
    trained_parameters = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    parameters -= trained_parameters if settings.lora else 0
    flops = flops_per_token(model, settings.row_tokens)
    peak, source = peak_flops(device, bfloat16)
    model.recompute = settings.recompute
    if settings.compiles_on(device):
        leave_uncompiled()
        for layer in model.layers:
            layer.compile()
    trainee = distribute(model, settings.parallel, ranks)
    optimizer = Optimizers(trained(model).items(), settings, settings.learning_rate, in_layers)
    identity = data_identity(
        dataset, validation_data, sources, init_from, vocabulary, data_for.texts, related_codec, initial_weights
    )
    silent = ranks.rank > 0
    if data_for.note and show_progress and not silent:
        print(data_for.note, file=sys.stderr)
    with (
        folder.begin(model, optimizer, identity, resume_from) as progress,
        stop_signals() as signals,
        Monitor(out, "train", progress.step, settings.steps, silent, show_progress) as monitor,
        Prefetched(training, settings.steps) as batches,
    ):
        ranks.keep_pace()
        spikes = Spikes(settings, progress.skipped, progress.latest_losses, progress.latest_norms)
        stopped_by = reason_to_stop(progress, settings, signals, ranks, device)
        started = time.perf_counter()
        while not stopped_by:
            began = time.perf_counter()
            rate = settings.rate_at(max(progress.step, int(settings.steps * (began - started) / seconds)))
            share = rate / settings.learning_rate
            loss, norm, skipped = train_step(
                trainee, optimizer, batches.batch(progress.step), settings, progress.step, share, ranks, spikes
            )
            speed = settings.rows * settings.row_tokens / (time.perf_counter() - began)
            progress = dataclasses.replace(
                progress,
                step=progress.step + 1,
                skipped=spikes.skipped,
                latest_losses=tuple(spikes.losses),
                latest_norms=tuple(spikes.norms),
            )
            bits_per_token = loss / math.log(2)
            numbers = {
                "bits_per_token": bits_per_token,
                **({"bits_per_second": bits_per_token * vocabulary.token_rate} if speech_alone else {}),
                "gradient_norm": norm,
            }
            record: dict[str, Any] = {
                "step": progress.step,
                **{name: value if math.isfinite(value) else None for name, value in numbers.items()},  # JSON has no NaN
                **({"skipped": spikes.skipped} if skipped else {}),
                "learning_rate": rate,
                "tokens_per_second": round(speed, 1),
                "utilisation": round(speed * flops / (peak * ranks.world), 4),
            }
            in_time = not ranks.any(time.perf_counter() - started >= seconds, device)
            if progress.step % settings.validate_every == 0 or progress.step == settings.steps or not in_time:
                bits = {task: validate(trainee, part, settings, ranks) for task, part in data_for.validation.items()}
                by_source = {}
                for name, part in data_for.sources.items():
                    by_source[name] = validate(trainee, part, settings, ranks)
                settle(model)
                record |= held_out_record(bits, settings, vocabulary, data_for.targets_per_character, by_source)
                progress = judged(progress, record["held_out_bits_per_token"])
                if show_progress and not silent:
                    monitor.bar.write(validation_line(record), file=sys.stderr)
            monitor.step(record, bar_line(record, source))
            if skipped and show_progress and not silent:
                monitor.bar.write(
                    f"step {progress.step}: batch skipped (loss {loss:.3f}, gradient norm {norm:.3g}), "
                    f"{spikes.skipped} of at most {settings.skip_limit}",
                    file=sys.stderr,
                )
            if settings.sample_every and progress.step % settings.sample_every == 0:
                weights, _ = separated(whole_weights(model), settings.lora_scale)
                if not silent:
                    speaker = model_of(model_config, vocabulary, weights, device)
                    place = out / "samples" / f"step-{progress.step:06d}"
                    waves = write_samples(speaker, vocabulary, data_for.validation[SPEECH_TASK], codec, place)
                    monitor.hear(progress.step, waves, codec.sample_rate_out if codec else 0)
            stopped_by = reason_to_stop(progress, settings, signals, ranks, device) or ("" if in_time else "time")
            is_due = progress.step % settings.save_every == 0 or progress.step == settings.decay_begins
            if stopped_by or is_due or progress.best_step == progress.step:
                folder.save(model, vocabulary, optimizer, progress)
    best_bits = progress.best_bits_per_token if progress.best_step >= 0 else None
    return TrainReport(
        step=progress.step,
        best_step=progress.best_step if best_bits is not None else None,
        best_bits_per_token=best_bits,
        best_bits_per_second=best_bits * vocabulary.token_rate if best_bits is not None and speech_alone else None,
        parameters=parameters,
        trained_parameters=trained_parameters,
        training_tokens=training.tokens_per_epoch,
        epochs=progress.step * settings.rows * settings.row_tokens / training.tokens_per_epoch,
        stopped_by=stopped_by,
        skipped=progress.skipped,
        codec_streams=dataset.codec.get("first_samples", 1) == 1,  # absent in version 0.1.0, where codecs stream
    )


def judged(progress: Progress, bits: float) -> Progress:
    """Progress after a validation."""
    if bits < progress.best_bits_per_token:
        return dataclasses.replace(
            progress, best_step=progress.step, best_bits_per_token=bits, validations_since_best=0
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
