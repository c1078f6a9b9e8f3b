"""The folder of a training run: its settings, its log, and checkpoints that appear whole or not at all.

OUT/run.json          the settings, and the fingerprint of the codec
OUT/log.jsonl         one line a step
OUT/step-000500/      config.json, vocabulary.json, model.safetensors, and training.pt: the optimizer and `Progress`
OUT/best.json         which of them was best on held-out speech
"""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from slm.checkpoint import BEST, check_fit, copy_weights, save_lm
from slm.model import LanguageModel
from slm.settings import TrainSettings
from slm.vocabulary import Vocabulary
from tokenizer.atomic import write_atomically
from tokenizer.checkpoint import read_weights
from tokenizer.errors import InputError

# Settings that a resumed run may have otherwise: none of them changes a batch.
MAY_CHANGE = {
    f"train.{name}"
    for name in ("steps", "validate_every", "validation_rows", "patience", "save_every", "keep_checkpoints")
}


@dataclass(frozen=True)
class Progress:
    """Where a run stands; with the weights and the optimizer, all that going on exactly takes."""

    step: int = 0  # steps done
    best_step: int = -1
    best_bits_per_token: float = float("inf")
    validations_since_best: int = 0


class RunFolder:
    """Reads and writes OUT.

    Args:
        path: made when missing.
        keep: how many of the latest checkpoints stay.

    Raises:
        InputError: the path is a file.
    """

    def __init__(self, path: Path, keep: int) -> None:
        if path.exists() and not path.is_dir():
            raise InputError(f"{path}: is a file; name a folder for the run")
        self.path = path
        self._keep = keep
        path.mkdir(parents=True, exist_ok=True)

    def checkpoints(self) -> list[Path]:
        """The whole checkpoints, oldest first."""
        return sorted(
            (folder for folder in self.path.iterdir() if re.fullmatch(r"step-\d+", folder.name)),
            key=lambda folder: int(folder.name[5:]),
        )

    def begin(
        self,
        model: LanguageModel,
        optimizer: torch.optim.Optimizer,
        settings: TrainSettings,
        identity: dict[str, Any],
        resume: bool,
    ) -> Progress:
        """Start a run in an unused folder, or load the latest checkpoint of the same run.

        Args:
            model, optimizer: filled from the checkpoint when resuming.
            settings: the run's settings; only those in `MAY_CHANGE` may differ from the beginning of the run.
            identity: of the data, which must be as it was.
            resume: which of the two.

        Raises:
            InputError: the folder is taken, or holds another run, or nothing to resume from.
        """
        record = {"model": model.config.to_dict(), "train": asdict(settings), "data": identity}
        progress = Progress()
        if resume:
            if changed := sorted(set(differences(self._recorded(), record)) - MAY_CHANGE):
                raise InputError(f"{self.path}: this run began with another {', '.join(changed)}; use another --out")
            progress = self._load(model, optimizer)
        elif (self.path / "run.json").exists():
            raise InputError(f"{self.path}: holds a training run; pass --resume to go on with it, or use another --out")
        write_atomically(self.path / "run.json", (json.dumps(record, indent=2) + "\n").encode())
        return progress

    def save(
        self, model: LanguageModel, vocabulary: Vocabulary, optimizer: torch.optim.Optimizer, progress: Progress
    ) -> None:
        """Write the checkpoint of a step, name the best, and drop the ones that are neither late nor best."""
        final = self.path / f"step-{progress.step:06d}"
        temporary = self.path / f".{final.name}.{os.getpid()}"
        save_lm(model, vocabulary, temporary)
        with open(temporary / "training.pt", "wb") as file:
            torch.save({"progress": asdict(progress), "optimizer": optimizer.state_dict()}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, final)
        self._point_to_best(progress)
        for folder in self.checkpoints()[: -self._keep]:
            if folder.name != f"step-{progress.best_step:06d}":
                shutil.rmtree(folder)

    def _recorded(self) -> dict[str, Any]:
        try:
            return dict(json.loads((self.path / "run.json").read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise InputError(f"{self.path}: holds no training run; start without --resume") from None
        except (ValueError, TypeError) as error:
            raise InputError(f"{self.path / 'run.json'}: is damaged ({error}); use another --out") from None

    def _load(self, model: LanguageModel, optimizer: torch.optim.Optimizer) -> Progress:
        """Put the latest checkpoint into the model and the optimizer, and forget the log of steps after it."""
        for leftover in self.path.glob(".step-*"):  # of a run that was killed while saving
            shutil.rmtree(leftover)
        checkpoints = self.checkpoints()
        if not checkpoints:
            raise InputError(f"{self.path}: has no checkpoint to resume from; start without --resume")
        latest = checkpoints[-1]
        weights = read_weights(latest / "model.safetensors")
        check_fit(model, weights, latest / "model.safetensors")
        copy_weights(model, weights)
        try:
            saved = torch.load(latest / "training.pt", map_location="cpu", weights_only=True)
            progress = Progress(**saved["progress"])
            optimizer.load_state_dict(saved["optimizer"])
        except (OSError, RuntimeError, EOFError, KeyError, TypeError, ValueError, pickle.UnpicklingError) as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(
                f"{latest}: cannot be resumed from ({reason}); delete this folder to resume from the checkpoint before"
            ) from None
        self._point_to_best(progress)
        lines = (self.path / "log.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= progress.step]
        write_atomically(self.path / "log.jsonl", "".join(kept).encode())
        return progress

    def _point_to_best(self, progress: Progress) -> None:
        if progress.best_step < 0:
            return
        best = {
            "checkpoint": f"step-{progress.best_step:06d}",
            "step": progress.best_step,
            "bits_per_token": progress.best_bits_per_token,
        }
        write_atomically(self.path / BEST, (json.dumps(best, indent=2) + "\n").encode())


def differences(old: dict[str, Any], new: dict[str, dict[str, Any]]) -> list[str]:
    """Dotted names of the values of `new` that `old` does not have."""
    return [
        f"{section}.{key}"
        for section, values in new.items()
        for key, value in values.items()
        if old.get(section, {}).get(key) != value
    ]
