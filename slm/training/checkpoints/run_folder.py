"""The folder of a training run: settings, log and checkpoints. A checkpoint is complete or absent.

OUT/run.json          model, settings and data of the run
OUT/log.jsonl         one line per step
OUT/tensorboard/      the same, where TensorBoard is installed
OUT/step-000500/      config.json, vocabulary.json, model.safetensors: the model, for `slm.checkpoint`
    adapters.safetensors  of a run with train.lora; see `slm.training.lora`
    optimizer/          the optimizer's state by parameter name (torch.distributed.checkpoint), a file per process
    progress.json       `Progress`
    files.json          every file's bytes and sha256; see `slm.training.checkpoints.checkpoint_files`
OUT/best.json         the best checkpoint on held-out speech
OUT/samples/          samples of runs with train.sample_every; see `slm.training.samples`
OUT/.lock             held by the training process

The contents do not depend on the number of processes, and no file is a pickle.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch.distributed.checkpoint import CheckpointException

from pipelines.storage.locks import flocked
from slm.checkpoint import check_tensors, checkpoints_of
from slm.model.transformer import LanguageModel
from slm.training.checkpoints.checkpoint_files import check_files, check_shared
from slm.training.checkpoints.optimizer_state import read_optimizer_state, reason_of
from slm.training.checkpoints.progress import Progress
from slm.training.checkpoints.resuming import FORMERLY, MAY_FALL, jump, may_change
from slm.training.checkpoints.saving import Saver, discard, step_of
from slm.training.lora import ADAPTERS, adapters_of
from slm.training.parallel import load_weights
from slm.training.settings import TrainSettings
from slm.vocabulary import Vocabulary
from tokenizer.checkpoint import read_weights
from tokenizer.errors import InputError
from tokenizer.files import write_atomically
from tokenizer.parsed import dataclass_from_dict
from tokenizer.runs.monitor import forget_from
from tokenizer.runs.optimizers import Optimizers
from tokenizer.runs.ranks import Ranks
from tokenizer.runs.settings import differences

LOCK = ".lock"
UNFINISHED = (".unfinished.*", ".shared-*")  # files that a killed process may leave beside the lock


class RunFolder:
    """Reads and writes OUT. Every process calls every method; only rank 0 writes, except the shards of the optimizer.

    Args:
        path: created if it is missing.
        settings: the run's settings.
        ranks: this process and the number of processes.
        resume: refuse a folder that is not there, before it is made.
        say: print what changed on resuming.
        measure: what best.json calls the number that the best checkpoint was chosen by.

    Raises:
        InputError: the path is a file or cannot be made, or there is no run to resume.
    """

    def __init__(
        self,
        path: Path,
        settings: TrainSettings,
        ranks: Ranks,
        resume: bool = False,
        say: bool = False,
        measure: str = "bits_per_token",
    ) -> None:
        self.path, self._settings, self._ranks = path, settings, ranks
        self._resume, self._say = resume, say and not ranks.rank
        with ranks.together():
            if path.exists() and not path.is_dir():
                raise InputError(f"{path}: is a file; name a folder for the run")
            if resume and not path.exists():
                raise InputError(f"{path}: holds no training run; start without --resume")
        self._saver = Saver(path, settings, ranks, measure)
        self._is_new = not path.exists() and not ranks.rank
        with ranks.together():
            path.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def removed_if_refused(self) -> Iterator[None]:
        """If the block raises InputError, remove the folder that was made for this run, while it is empty."""
        try:
            yield
        except InputError:
            if self._is_new:
                with suppress(OSError):
                    self.path.rmdir()
            raise

    def checkpoints(self) -> list[Path]:
        """The complete checkpoints, oldest first."""
        return checkpoints_of(self.path)

    @contextmanager
    def begin(
        self, model: LanguageModel, optimizer: Optimizers, identity: dict[str, Any], step: int | None = None
    ) -> Iterator[Progress]:
        """Start a run in an empty folder, or load a checkpoint of the same run. Locks the folder meanwhile.

        A run that stopped before its first checkpoint starts again in both cases.

        Args:
            model, optimizer: filled from the checkpoint when resuming. `slm.training.checkpoints.resuming` says which
                settings may differ from the stored ones.
            identity: of the data; must equal the stored one.
            step: go back to the checkpoint of this step and remove the later ones; None: the latest.

        Raises:
            InputError: the folder holds other files, a different run, or a run in progress; the processes do not share
                it; or there is no such checkpoint, or a damaged one.
        """
        with self._ranks.together():  # all processes have checked before anything changes
            if not (self.path / "run.json").exists() and (strange := self._strange()):
                raise InputError(
                    f"{self.path}: is not empty ({strange} is in it) and holds no training run; name a new or an empty "
                    "folder"
                )
        with ExitStack() as held:
            with self._ranks.together():
                if not self._ranks.rank:
                    try:
                        held.enter_context(flocked(self.path / LOCK, wait=False))
                    except BlockingIOError:
                        raise InputError(
                            f"{self.path}: another process is training in it; wait until it ends, or use another --out"
                        ) from None
            check_shared(self.path, self._ranks)
            record = {"model": model.config.to_dict(), "train": asdict(self._settings), "data": identity}
            progress = self._resumed(model, optimizer, record, step) if self._resume else self._fresh()
            with self._ranks.together():
                if not self._ranks.rank:
                    self._tidy(progress, record)
            with self._saver.open():
                yield progress

    def _fresh(self) -> Progress:
        if self.checkpoints():
            raise InputError(f"{self.path}: holds a training run; pass --resume to continue it, or use another --out")
        return Progress()

    def _resumed(
        self, model: LanguageModel, optimizer: Optimizers, record: dict[str, Any], step: int | None
    ) -> Progress:
        """Load a checkpoint. Adds to `record` what changed over the run's resumptions."""
        found = self.checkpoints()
        if step is not None and step not in (steps := [step_of(folder) for folder in found]):
            known = ", ".join(map(str, steps)) or "none"
            raise InputError(f"{self.path}: has no checkpoint of step {step}; its checkpoints are of steps: {known}")
        if not found:
            return Progress()
        recorded = self._recorded()
        known_sections = {section: recorded.get(section) for section in record}  # later versions may record more
        changed = differences(known_sections, record)
        if refused := sorted(change.name for change in changed if not may_change(change)):
            lower = "; a learning rate may only be lowered" if MAY_FALL & set(refused) else ""
            raise InputError(
                f"{self.path}: this run began with another {', '.join(refused)}{lower}; give what its run.json says, "
                "or use another --out"
            )
        chosen = found[-1] if step is None else self.path / f"step-{step:06d}"
        progress = self._load(chosen, model, optimizer)
        self._tell(f"resuming after step {progress.step}")
        lines = [str(change) for change in changed] + jump(recorded["train"], self._settings, progress.step)
        for line in lines:
            self._tell(f"  {line}")
        later = [folder for folder in found if step_of(folder) > progress.step]
        if later:
            self._tell(f"  removed later checkpoints: {', '.join(folder.name for folder in later)}")
        with self._ranks.together():
            for folder in later if not self._ranks.rank else []:
                discard(folder)
        if before := recorded.get("resumed", []):
            record["resumed"] = before
        if lines:
            record["resumed"] = [*before, {"step": progress.step, "changed": lines}]
        return progress

    def _tell(self, line: str) -> None:
        if self._say:
            print(line, file=sys.stderr)

    def _strange(self) -> str | None:
        ours = {LOCK} | {entry.name for pattern in UNFINISHED for entry in self.path.glob(pattern)}
        return next((entry.name for entry in self.path.iterdir() if entry.name not in ours), None)

    def _tidy(self, progress: Progress, record: dict[str, Any]) -> None:
        """Write run.json, first so that a kill leaves a run, and remove what does not belong to one at `progress`."""
        write_atomically(self.path / "run.json", (json.dumps(record, indent=2) + "\n").encode())
        for pattern in UNFINISHED:
            for leftover in self.path.glob(pattern):
                leftover.unlink()
        for leftover in self.path.glob(".step-*"):  # from a run killed while saving
            shutil.rmtree(leftover)
        self._saver.point_to_best(progress)
        forget_from(self.path / "log.jsonl", progress.step)

    def save(self, model: LanguageModel, vocabulary: Vocabulary, optimizer: Optimizers, progress: Progress) -> None:
        """Save the checkpoint of a step; see `Saver.save`."""
        self._saver.save(model, vocabulary, optimizer, progress)

    @property
    def has_failed(self) -> bool:
        """Whether this process knows that a checkpoint could not be written."""
        return self._saver.has_failed

    def finish_saving(self) -> None:
        """Wait until the latest checkpoint is there; see `Saver.finish`."""
        self._saver.finish()

    def _recorded(self) -> dict[str, Any]:
        try:
            record = dict(json.loads((self.path / "run.json").read_text(encoding="utf-8")))
            # Settings newer than the run have their defaults.
            defaults = {setting.name: setting.default for setting in fields(TrainSettings)} | FORMERLY
            return {**record, "train": {**defaults, **record["train"]}}
        except FileNotFoundError:
            raise InputError(f"{self.path}: holds no training run; start without --resume") from None
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"{self.path / 'run.json'}: is damaged ({error}); use another --out") from None

    def _load(self, folder: Path, model: LanguageModel, optimizer: Optimizers) -> Progress:
        """Put a checkpoint into the model and the optimizer."""
        try:
            check_files(folder, self._ranks)
            path = folder / (ADAPTERS if self._settings.lora else "model.safetensors")
            weights = read_weights(path)
            stored = model.stored_weights()
            check_tensors(adapters_of(stored) or stored, weights, path)
            load_weights(model, weights.items())
            progress = dataclass_from_dict(Progress, json.loads((folder / "progress.json").read_text()), "progress")
            read_optimizer_state(folder / "optimizer", model, optimizer, self._ranks)
        except (
            *(InputError, OSError, RuntimeError, ValueError, KeyError, SafetensorError),
            CheckpointException,
        ) as error:
            raise InputError(
                f"{folder}: cannot be resumed from ({reason_of(error)}); delete this folder to resume from the "
                "checkpoint before"
            ) from None
        if progress.best_step >= 0 and not (self.path / f"step-{progress.best_step:06d}").is_dir():
            return replace(progress, best_step=-1, best_bits_per_token=float("inf"))  # it was deleted
        return progress
