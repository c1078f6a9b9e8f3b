"""Training the language model: a flat loop over packed batches, with validation and exact resume.

A step depends on the weights, the optimizer's state and the step's number alone: the batch is arithmetic
(`pipelines.batches`) and dropout is seeded by the step. So a stopped run that goes on has, on CPU with the same number
of threads, the losses of an undisturbed one to the last bit.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from pipelines.batches import Batch, Framing, PackedBatches, split_held_out
from pipelines.dataset import TokenDataset
from pipelines.mixture import MixedBatches, WeightedData, read_data
from slm.model import LanguageModel, ModelConfig
from slm.objective import IGNORED, NO_DOCUMENT, summed_loss, targets_of
from slm.run_folder import Progress, RunFolder
from slm.settings import TrainSettings
from slm.vocabulary import BOS, EOS, FIRST_CODE, Vocabulary
from slm.warm_start import warm_start
from tokenizer.devices import check_device
from tokenizer.errors import InputError
from tokenizer.stop_signals import stop_signals

FRAMING = Framing(begin=BOS, end=EOS, first_code=FIRST_CODE)


@dataclass(frozen=True)
class TrainReport:
    """How a run ended. Bits are averages over the codes and end tokens of held-out rows; None before a validation."""

    step: int
    best_step: int | None
    best_bits_per_token: float | None
    best_bits_per_second: float | None  # of speech
    parameters: int
    training_tokens: int  # tokens of one epoch
    epochs: float
    stopped_by: str  # "end", "patience", or the signal's name
    codec_streams: bool  # whether the codec of the tokens does, as speaking a continuation needs


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
) -> TrainReport:
    """Train a model on tokenized datasets.

    Args:
        model_config: the model's shape.
        settings: the run's settings.
        data: folders or URLs written by `focalstream tokenize`, all with the same codec; see `read_data`.
        out: the run's folder; see `slm.run_folder`.
        held_out: datasets for validation; none: a share of the cuts of `data`.
        resume: go on from the latest checkpoint in `out`.
        device: a torch device.
        show_progress: draw a bar when stderr is a terminal.
        cache: local folder that shards behind URLs come into.
        init_from: a model whose weights the new one begins with; see `slm.warm_start`.

    Raises:
        InputError: no such device, datasets of different codecs, `out` taken or not resumable, a model to begin with
            that does not fit, or a gradient that is no longer finite.
    """
    check_device(device)
    sources = read_data(data)
    dataset = TokenDataset(sources.places, cache)
    validation_data = TokenDataset(list(held_out), cache) if held_out else None
    vocabulary = Vocabulary(dataset.codebook_size, dataset.token_rate, dataset.codec["name"], dataset.fingerprint)
    if validation_data is not None:
        vocabulary.check(str(held_out[0]), validation_data.fingerprint, validation_data.codebook_size)
    training, validation = loaders(settings, dataset, vocabulary, validation_data, sources.weights)
    torch.manual_seed(settings.seed)
    model = LanguageModel(model_config, vocabulary.size)
    if init_from is not None and not resume:
        warm_start(model, vocabulary, init_from, settings.seed)
    model.to(device).train()
    decayed, other = model.decayed_parameters()
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": other, "weight_decay": 0.0}],
        lr=settings.learning_rate,
        betas=(settings.beta1, settings.beta2),
        fused=True,
    )
    folder = RunFolder(out, settings.keep_checkpoints)
    identity = data_identity(dataset, validation_data, sources, init_from)
    progress = folder.begin(model, optimizer, settings, identity, resume)
    with (
        stop_signals() as signals,
        open(out / "log.jsonl", "a", encoding="utf-8") as log,
        tqdm(total=settings.steps, initial=progress.step, unit="step", disable=None if show_progress else True) as bar,
    ):
        stopped_by = reason_to_stop(progress, settings, signals)
        while not stopped_by:
            began = time.perf_counter()
            rate = settings.rate_at(progress.step)
            for group in optimizer.param_groups:
                group["lr"] = rate
            loss, norm = train_step(model, optimizer, training.batch(progress.step), settings, progress.step)
            seconds = time.perf_counter() - began
            progress = dataclasses.replace(progress, step=progress.step + 1)
            record = {
                "step": progress.step,
                "bits_per_token": loss / math.log(2),
                "bits_per_second": loss / math.log(2) * vocabulary.token_rate,
                "gradient_norm": norm,
                "learning_rate": rate,
                "tokens_per_second": round(settings.rows * settings.row_tokens / seconds, 1),
            }
            if progress.step % settings.validate_every == 0 or progress.step == settings.steps:
                bits = validate(model, validation, settings)
                record["held_out_bits_per_token"] = bits
                record["held_out_bits_per_second"] = bits * vocabulary.token_rate
                progress = judged(progress, bits)
                if show_progress:
                    bar.write(validation_line(record), file=sys.stderr)
            log.write(json.dumps(record) + "\n")
            log.flush()
            bar.set_postfix_str(
                f"{record['bits_per_token']:.3f} bits/token, {record['tokens_per_second']:.0f} tokens/s", refresh=False
            )
            bar.update()
            stopped_by = reason_to_stop(progress, settings, signals)
            if stopped_by or progress.step % settings.save_every == 0 or progress.best_step == progress.step:
                folder.save(model, vocabulary, optimizer, progress)
    best_bits = progress.best_bits_per_token if progress.best_step >= 0 else None
    return TrainReport(
        step=progress.step,
        best_step=progress.best_step if best_bits is not None else None,
        best_bits_per_token=best_bits,
        best_bits_per_second=best_bits * vocabulary.token_rate if best_bits is not None else None,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        training_tokens=training.tokens_per_epoch,
        epochs=progress.step * settings.rows * settings.row_tokens / training.tokens_per_epoch,
        stopped_by=stopped_by,
        codec_streams=dataset.codec.get("first_samples", 1) == 1,  # not in datasets of version 0.1.0, whose codecs do
    )


def train_step(
    model: LanguageModel, optimizer: torch.optim.Optimizer, batch: Batch, settings: TrainSettings, step: int
) -> tuple[float, float]:
    """One optimizer step. Returns the loss in nats per target and the gradient's norm before clipping."""
    torch.manual_seed(settings.seed * 1_000_003 + step)  # dropout
    targets = int((targets_of(batch) != IGNORED).sum())
    optimizer.zero_grad(set_to_none=True)
    total = 0.0
    for first in range(0, settings.rows, settings.rows_at_once):
        part = Batch(*(field[first : first + settings.rows_at_once] for field in batch))
        loss = summed_loss(model, part, settings.bfloat16) / targets
        loss.backward()
        total += float(loss.detach())
    norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm))
    if not math.isfinite(norm):
        raise InputError(
            f"step {step + 1}: the gradient is no longer finite (loss {total:.3f}); train with a train.learning_rate "
            f"below {settings.learning_rate} or a longer train.warmup_steps"
        )
    optimizer.step()
    return total, norm


@torch.no_grad()
def validate(model: LanguageModel, batches: PackedBatches, settings: TrainSettings) -> float:
    """Bits per target over the held-out rows, each document once."""
    model.eval()
    rows = min(settings.validation_rows, batches.rows_per_epoch)
    nats, count = 0.0, 0
    for first in range(0, rows, settings.rows_at_once):
        batch = batches.rows(first, min(first + settings.rows_at_once, rows))
        # The last row runs on into the next epoch: there the documents begin again.
        batch.documents[batch.documents >= batches.documents_per_epoch] = NO_DOCUMENT
        nats += float(summed_loss(model, batch, settings.bfloat16))
        count += int((targets_of(batch) != IGNORED).sum())
    model.train()
    return nats / count / math.log(2)


def loaders(
    settings: TrainSettings,
    dataset: TokenDataset,
    vocabulary: Vocabulary,
    held_out: TokenDataset | None,
    weights: Sequence[float] | None = None,
) -> tuple[PackedBatches | MixedBatches, PackedBatches]:
    """Batches for training, mixed by the weights of the folders of `dataset` if there are any, and for validation.

    Raises:
        InputError: datasets that are empty or smaller than a row; weights that are none.
    """
    rows, row_tokens, seed = settings.rows, settings.row_tokens, settings.seed
    if held_out is not None:
        cuts, validation = np.arange(len(dataset)), PackedBatches(held_out, FRAMING, rows, row_tokens, seed)
    else:
        cuts, validation_cuts = split_held_out(len(dataset), settings.held_out_fraction, seed)
        validation = PackedBatches(dataset, FRAMING, rows, row_tokens, seed, validation_cuts)
    if weights is None:
        training: PackedBatches | MixedBatches = PackedBatches(dataset, FRAMING, rows, row_tokens, seed, cuts)
    else:
        folders = np.split(cuts, np.searchsorted(cuts, dataset.folder_begins[1:-1]))
        parts = [PackedBatches(dataset, FRAMING, rows, row_tokens, seed, part) for part in folders]
        training = MixedBatches(parts, weights, rows, seed)
    if training.tokens_per_epoch < row_tokens:
        raise InputError(
            f"train.row_tokens is {row_tokens}, but all cuts for training together have {training.tokens_per_epoch} "
            "tokens: give shorter rows or more audio"
        )
    return training, validation


def data_identity(
    dataset: TokenDataset, held_out: TokenDataset | None, sources: WeightedData, init_from: str | None
) -> dict[str, Any]:
    """What decides a run beside the settings: with other held-out data, the cuts for training are others too."""
    validation = held_out.lengths if held_out is not None else np.zeros(0, np.int64)
    return {
        "codec_fingerprint": dataset.fingerprint,
        "cut_lengths": hashlib.sha256(dataset.lengths.tobytes()).hexdigest(),
        "held_out_cut_lengths": hashlib.sha256(validation.tobytes()).hexdigest(),
        "weights": list(sources.weights) if sources.weights else None,
        **({"init_from": init_from} if init_from is not None else {}),
    }


def judged(progress: Progress, bits: float) -> Progress:
    """Progress after a validation."""
    if bits < progress.best_bits_per_token:
        return dataclasses.replace(
            progress, best_step=progress.step, best_bits_per_token=bits, validations_since_best=0
        )
    return dataclasses.replace(progress, validations_since_best=progress.validations_since_best + 1)


def reason_to_stop(progress: Progress, settings: TrainSettings, signals: list[str]) -> str:
    """ "end", "patience", a signal's name, or nothing."""
    if progress.step >= settings.steps:
        return "end"
    if settings.patience and progress.validations_since_best >= settings.patience:
        return "patience"
    return signals[0] if signals else ""


def validation_line(record: dict[str, float]) -> str:
    """A step's record for people."""
    return (
        f"step {record['step']}: training {record['bits_per_token']:.3f}, held-out "
        f"{record['held_out_bits_per_token']:.3f} bits/token = {record['held_out_bits_per_second']:.1f} bits per "
        "second of speech"
    )
