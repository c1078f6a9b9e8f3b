"""Writing the checkpoints of a run, by default in a thread while training goes on.

What is written is a copy in the CPU's memory, taken between two steps, so it does not matter what the training does
meanwhile. A checkpoint is complete or not there, whether a thread writes it or not.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor

from slm.checkpoint import BEST, checkpoints_of, write_lm
from slm.model.transformer import LanguageModel, ModelConfig
from slm.training.checkpoints.checkpoint_files import seal
from slm.training.checkpoints.optimizer_state import optimizer_state, reason_of, write_optimizer_state
from slm.training.checkpoints.progress import Progress
from slm.training.lora import ADAPTERS, separated
from slm.training.parallel import whole_weights
from slm.training.settings import TrainSettings
from slm.vocabulary import Vocabulary
from tokenizer.errors import InputError
from tokenizer.files import sync_folder, write_atomically
from tokenizer.runs.optimizers import Optimizers
from tokenizer.runs.ranks import Ranks


class Saver:
    """Writes the checkpoints of a run, one at a time. Every process calls every method.

    Args:
        path: the run's folder.
        settings: the run's: which checkpoints stay, and whether a thread writes them.
        ranks: this process and the number of processes.
        measure: what best.json calls the number that the best checkpoint was chosen by.
    """

    def __init__(self, path: Path, settings: TrainSettings, ranks: Ranks, measure: str) -> None:
        self._path, self._settings, self._measure = path, settings, measure
        self._ranks = ranks
        self._thread: ThreadPoolExecutor | None = None
        self._saving: Future[None] | None = None

    @contextmanager
    def open(self) -> Iterator[None]:
        """Within the block a thread writes, if the settings say so; leaving it waits for the checkpoint in flight.

        Raises:
            InputError: it could not be written.
        """
        if not self._settings.save_in_background:
            yield
            return
        self._ranks = self._ranks.apart()  # the thread's collectives must not mix with those of the training
        with ThreadPoolExecutor(1, "checkpoint") as self._thread:
            try:
                yield
            except BaseException:
                with suppress(Exception):  # the error that ended the block is the one to report
                    self.finish()
                raise
            self.finish()

    def save(self, model: LanguageModel, vocabulary: Vocabulary, optimizer: Optimizers, progress: Progress) -> None:
        """Save the checkpoint of a step: copy it to the CPU's memory, and with `save_in_background` let a thread write
        it while training goes on. One is written at a time, so this waits for the one before.

        Raises:
            InputError: in all processes, if one could not write its share; see `finish`.
        """
        self.finish()
        separate = separated(whole_weights(model, self._ranks, copied=True), self._settings.lora_scale)
        state = {
            name: tensor.detach().to("cpu", copy=True) for name, tensor in optimizer_state(model, optimizer).items()
        }
        if self._thread is None:
            self._write(model.config, separate, vocabulary, state, progress)
        else:
            self._saving = self._thread.submit(self._write, model.config, separate, vocabulary, state, progress)

    @property
    def has_failed(self) -> bool:
        """Whether this process knows that a checkpoint could not be written."""
        saving = self._saving
        return saving is not None and saving.done() and saving.exception() is not None

    def finish(self) -> None:
        """Wait until the latest checkpoint is there. All processes call this together.

        Raises:
            InputError: in all of them, if one could not write its share; nothing of the checkpoint is left then.
        """
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.result()

    def _write(
        self,
        config: ModelConfig,
        separate: tuple[dict[str, Tensor], dict[str, Tensor]],
        vocabulary: Vocabulary,
        state: dict[str, Tensor],
        progress: Progress,
    ) -> None:
        """Write a checkpoint, update best.json, and delete checkpoints that are not to be kept.

        Args:
            config, vocabulary: of the model.
            separate: its weights and its adapters.
            state: the optimizer's, of this process.
            progress: after the step.
        """
        (weights, adapters), ranks = separate, self._ranks
        final = self._path / f"step-{progress.step:06d}"
        temporary = self._path / f".{final.name}"
        try:
            with ranks.together():
                if not ranks.rank:
                    write_lm(config, weights, vocabulary, temporary, torch.float32)
                    if adapters:
                        write_atomically(temporary / ADAPTERS, to_safetensors(adapters))
                    write_atomically(temporary / "progress.json", json.dumps(asdict(progress)).encode())
            write_optimizer_state(temporary / "optimizer", state, ranks)
            seal(temporary, ranks)
            with ranks.together():
                if not ranks.rank:
                    os.replace(temporary, final)
                    sync_folder(self._path)
                    self.point_to_best(progress)
        except (InputError, OSError) as error:
            if not ranks.rank:
                shutil.rmtree(temporary, ignore_errors=True)
            last = checkpoints_of(self._path)[-1:]
            raise InputError(
                f"{final}: the checkpoint cannot be written ({reason_of(error)}); the last one is "
                f"{last[0].name if last else 'none'}: mend this, then continue with --resume"
            ) from None
        if not ranks.rank:
            kept = self._kept(progress)
            for folder in checkpoints_of(self._path):
                if step_of(folder) not in kept:
                    discard(folder)
        ranks.meet()

    def _kept(self, progress: Progress) -> set[int]:
        """Steps whose checkpoints stay: the latest, the best, every Nth, and the last one before the decay."""
        steps = [step_of(folder) for folder in checkpoints_of(self._path)]
        kept = {*steps[-self._settings.keep_checkpoints :], progress.best_step}
        if every := self._settings.keep_every:
            kept |= {step for step in steps if step % every == 0}
        if (begins := self._settings.decay_begins) is not None:
            kept |= {max((step for step in steps if step <= begins), default=-1)}
        return kept

    def point_to_best(self, progress: Progress) -> None:
        if progress.best_step < 0:
            (self._path / BEST).unlink(missing_ok=True)
            return
        best = {
            "checkpoint": f"step-{progress.best_step:06d}",
            "step": progress.best_step,
            self._measure: progress.best_bits_per_token,
        }
        write_atomically(self._path / BEST, (json.dumps(best, indent=2) + "\n").encode())


def step_of(folder: Path) -> int:
    """The step of a checkpoint's folder."""
    return int(folder.name.removeprefix("step-"))


def discard(folder: Path) -> None:
    """Delete a checkpoint. It is renamed first, so that a kill does not leave a part of it as a checkpoint."""
    hidden = folder.with_name(f".{folder.name}")
    shutil.rmtree(hidden, ignore_errors=True)
    os.replace(folder, hidden)
    shutil.rmtree(hidden)
