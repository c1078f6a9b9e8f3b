"""The folder of a training run: settings, log and checkpoints. A checkpoint is complete or absent.

OUT/run.json          model, settings and data of the run
OUT/log.jsonl         one line per step
OUT/tensorboard/      the same, where TensorBoard is installed
OUT/step-000500/      config.json, vocabulary.json, model.safetensors: the model, for `slm.checkpoint`
    optimizer/          the optimizer's state by parameter name (torch.distributed.checkpoint), a file per process
    progress.json       `Progress`
OUT/best.json         the best checkpoint on held-out speech
OUT/samples/          samples of runs with train.sample_every; see `slm.training.samples`
OUT/.lock             held by the training process

The contents do not depend on the number of processes, and no file is a pickle.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from pipelines.storage.locks import flocked
from slm.checkpoint import BEST, check_fit, checkpoints_of, write_lm
from slm.model.transformer import LanguageModel
from slm.training.parallel import load_weights, whole_weights
from slm.training.settings import TrainSettings
from slm.vocabulary import Vocabulary
from tokenizer.checkpoint import read_weights
from tokenizer.errors import InputError
from tokenizer.files import sync_folder, write_atomically
from tokenizer.parsed import dataclass_from_dict
from tokenizer.runs.monitor import forget_from
from tokenizer.runs.optimizers import Optimizers
from tokenizer.runs.ranks import Ranks
from tokenizer.runs.settings import differences

# Settings that may change on resuming: none changes a batch, or more than the rounding of a step.
MAY_CHANGE = {
    f"train.{name}"
    for name in (
        *("steps", "validate_every", "validation_rows", "patience", "save_every", "keep_checkpoints", "sample_every"),
        *("rows_at_once", "parallel", "compile", "recompute"),
    )
}

LOCK = ".lock"


@dataclass(frozen=True)
class Progress:
    """The state of a run. With the weights and the optimizer it is all that an exact resume needs."""

    step: int = 0  # steps done
    best_step: int = -1
    best_bits_per_token: float = float("inf")
    validations_since_best: int = 0


class RunFolder:
    """Reads and writes OUT. Every process calls every method; only rank 0 writes, except the shards of the optimizer.

    Args:
        path: created if it is missing.
        keep: number of the latest checkpoints to keep.
        ranks: this process and the number of processes.

    Raises:
        InputError: the path is a file.
    """

    def __init__(self, path: Path, keep: int, ranks: Ranks = Ranks()) -> None:  # noqa: B008
        if path.exists() and not path.is_dir():
            raise InputError(f"{path}: is a file; name a folder for the run")
        self.path = path
        self._keep = keep
        self._ranks = ranks
        path.mkdir(parents=True, exist_ok=True)

    def checkpoints(self) -> list[Path]:
        """The complete checkpoints, oldest first."""
        return checkpoints_of(self.path)

    @contextmanager
    def begin(
        self,
        model: LanguageModel,
        optimizer: Optimizers,
        settings: TrainSettings,
        identity: dict[str, Any],
        resume: bool,
    ) -> Iterator[Progress]:
        """Start a run in an empty folder, or load the latest checkpoint of the same run. Locks the folder meanwhile.

        A run that stopped before its first checkpoint starts again in both cases.

        Args:
            model, optimizer: filled from the checkpoint when resuming.
            settings: the run's settings; on resuming, only those in `MAY_CHANGE` may differ from the stored ones.
            identity: of the data; must equal the stored one.
            resume: whether to load the latest checkpoint.

        Raises:
            InputError: the folder holds other files, a different run, or a run in progress; or there is no run to
                resume.
        """
        if not (self.path / "run.json").exists() and (strange := self._strange()):
            raise InputError(
                f"{self.path}: is not empty ({strange} is in it) and holds no training run; name a new or an empty "
                "folder"
            )
        self._ranks.meet()  # all processes have checked before anything changes
        with ExitStack() as held:
            if not self._ranks.rank:
                try:
                    held.enter_context(flocked(self.path / LOCK, wait=False))
                except BlockingIOError:
                    raise InputError(
                        f"{self.path}: another process is training in it; wait until it ends, or use another --out"
                    ) from None
            self._ranks.meet()
            record = {"model": model.config.to_dict(), "train": asdict(settings), "data": identity}
            progress = self._resumed(model, optimizer, record) if resume else self._fresh()
            self._ranks.meet()
            if not self._ranks.rank:
                self._tidy(progress, record)
            self._ranks.meet()
            yield progress

    def _fresh(self) -> Progress:
        if self.checkpoints():
            raise InputError(f"{self.path}: holds a training run; pass --resume to continue it, or use another --out")
        return Progress()

    def _resumed(self, model: LanguageModel, optimizer: Optimizers, record: dict[str, Any]) -> Progress:
        recorded = self._recorded()
        if not self.checkpoints():
            return Progress()
        known = {section: recorded.get(section) for section in record}  # later versions may record more
        changed = {difference.name for difference in differences(known, record)} - MAY_CHANGE
        if changed:
            raise InputError(
                f"{self.path}: this run began with another {', '.join(sorted(changed))}; use another --out"
            )
        return self._load(model, optimizer)

    def _strange(self) -> str | None:
        return next((entry.name for entry in self.path.iterdir() if entry.name != LOCK), None)

    def _tidy(self, progress: Progress, record: dict[str, Any]) -> None:
        """Remove from the folder what does not belong to a run at `progress`."""
        for leftover in self.path.glob(".step-*"):  # from a run killed while saving
            shutil.rmtree(leftover)
        self._point_to_best(progress)
        forget_from(self.path / "log.jsonl", progress.step)
        write_atomically(self.path / "run.json", (json.dumps(record, indent=2) + "\n").encode())

    def save(self, model: LanguageModel, vocabulary: Vocabulary, optimizer: Optimizers, progress: Progress) -> None:
        """Write the checkpoint of a step, update best.json, and delete checkpoints that are neither recent nor best."""
        final = self.path / f"step-{progress.step:06d}"
        temporary = self.path / f".{final.name}"
        weights = whole_weights(model)
        if not self._ranks.rank:
            write_lm(model.config, weights, vocabulary, temporary, torch.float32)
            write_atomically(temporary / "progress.json", json.dumps(asdict(progress)).encode())
        self._ranks.meet()
        writer = dcp.HuggingFaceStorageWriter(str(temporary / "optimizer"), save_distributed=True)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is")  # a warning that there is only one process
            dcp.save(optimizer_state(model, optimizer), storage_writer=writer, no_dist=self._ranks.world == 1)
        if not self._ranks.rank:
            os.replace(temporary, final)
            sync_folder(self.path)
            self._point_to_best(progress)
            for folder in self.checkpoints()[: -self._keep]:
                if folder.name != f"step-{progress.best_step:06d}":
                    shutil.rmtree(folder)
        self._ranks.meet()

    def _recorded(self) -> dict[str, Any]:
        try:
            record = dict(json.loads((self.path / "run.json").read_text(encoding="utf-8")))
            # Settings newer than the run have their defaults.
            defaults = {setting.name: setting.default for setting in fields(TrainSettings)}
            return {**record, "train": {**defaults, **record["train"]}}
        except FileNotFoundError:
            raise InputError(f"{self.path}: holds no training run; start without --resume") from None
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"{self.path / 'run.json'}: is damaged ({error}); use another --out") from None

    def _load(self, model: LanguageModel, optimizer: Optimizers) -> Progress:
        """Put the latest checkpoint into the model and the optimizer."""
        latest = self.checkpoints()[-1]
        try:
            weights = read_weights(latest / "model.safetensors")
            check_fit(model, weights, latest / "model.safetensors")
            load_weights(model, weights)
            progress = dataclass_from_dict(Progress, json.loads((latest / "progress.json").read_text()), "progress")
            read_optimizer_state(latest / "optimizer", model, optimizer, self._ranks)
        except (
            *(InputError, OSError, RuntimeError, ValueError, KeyError, SafetensorError),
            dcp.CheckpointException,
        ) as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(
                f"{latest}: cannot be resumed from ({reason}); delete this folder to resume from the checkpoint before"
            ) from None
        if progress.best_step >= 0 and not (self.path / f"step-{progress.best_step:06d}").is_dir():
            return replace(progress, best_step=-1, best_bits_per_token=float("inf"))  # it was deleted
        return progress

    def _point_to_best(self, progress: Progress) -> None:
        if progress.best_step < 0:
            (self.path / BEST).unlink(missing_ok=True)
            return
        best = {
            "checkpoint": f"step-{progress.best_step:06d}",
            "step": progress.best_step,
            "bits_per_token": progress.best_bits_per_token,
        }
        write_atomically(self.path / BEST, (json.dumps(best, indent=2) + "\n").encode())


def optimizer_state(model: LanguageModel, optimizer: Optimizers) -> dict[str, Tensor]:
    """The optimizer's tensors as "layers.0.mlp.up_proj.weight/exp_avg"."""
    states = {parameter: state for member in optimizer.members for parameter, state in member.state.items()}
    return {
        f"{name}/{kind}": tensor
        for name, parameter in model.named_parameters()
        for kind, tensor in states[parameter].items()
    }


def read_optimizer_state(folder: Path, model: LanguageModel, optimizer: Optimizers, ranks: Ranks) -> None:
    """Fill an optimizer that has not stepped yet. Each process reads its own shards.

    Raises:
        OSError, SafetensorError, ValueError, CheckpointException: the files are damaged or belong to another model.
    """
    reader = dcp.HuggingFaceStorageReader(str(folder))
    parameters = dict(model.named_parameters())
    state: dict[str, Tensor] = {}
    for key, stored in reader.read_metadata().state_dict_metadata.items():
        name = key.rpartition("/")[0]
        assert isinstance(stored, TensorStorageMetadata)
        if name not in parameters:
            raise ValueError(f"the optimizer's state has an unknown parameter {name}")
        like = parameters[name].detach()
        is_moment = stored.size == like.shape  # otherwise a count of steps
        state[key] = torch.zeros_like(like) if is_moment else torch.zeros(stored.size, device=like.device)
    if missing := parameters.keys() - {key.rpartition("/")[0] for key in state}:
        raise ValueError(f"the optimizer's state lacks {sorted(missing)[0]}")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is")
        dcp.load(state, storage_reader=reader, no_dist=ranks.world == 1)
    for member in optimizer.members:
        for name, parameter in parameters.items():
            if any(parameter is mine for group in member.param_groups for mine in group["params"]):
                kinds = {k.rpartition("/")[2]: tensor for k, tensor in state.items() if k.rpartition("/")[0] == name}
                member.state[parameter].update(kinds)
