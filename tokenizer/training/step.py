"""One step of a stage's training: the discriminators' update, if there are any, then the stage's.

On a GPU a step is thousands of small kernels, and starting them one by one takes longer than they do. `Captured`
records a step once as a CUDA graph, and each later step is one launch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from tokenizer.errors import InputError
from tokenizer.model import CodecModel
from tokenizer.network.encoder import Encoder
from tokenizer.runs.optimizers import Optimizers
from tokenizer.runs.ranks import Ranks
from tokenizer.runs.schedule import Schedule
from tokenizer.training.adversary import Adversary
from tokenizer.training.batches import Batch
from tokenizer.training.config import StageConfig
from tokenizer.training.losses.content import Teacher
from tokenizer.training.stages import Outcome, Stage

EAGER_STEPS = 3  # before one is recorded: libraries choose their kernels, and the optimizers make their state


@dataclass
class Run:
    """All that a stage changes as it trains; a checkpoint is the state of each part."""

    stage: Stage
    optimizer: Optimizers
    averaged: AveragedModel | None
    adversary: Adversary | None
    adversary_optimizer: Optimizers | None
    schedule: Schedule
    captured: bool = False  # whether its steps are recorded
    step: int = 0

    @property
    def shown(self) -> CodecModel:
        """The codec that is validated and saved."""
        codec: CodecModel = self.stage.codec if self.averaged is None else self.averaged.module  # type: ignore[assignment]
        return codec

    @property
    def teaches(self) -> bool:
        """Whether the stage has a teacher that it does not train."""
        return self.stage.teacher is not None and not self.stage.trains("teacher.")

    def parts(self) -> dict[str, Any]:
        """What has a state_dict, by name."""
        parts = {"stage": self.stage, "optimizer": self.optimizer, "averaged": self.averaged}
        parts |= {"adversary": self.adversary, "adversary_optimizer": self.adversary_optimizer}
        return {name: part for name, part in parts.items() if part is not None}


class Steps:
    """Takes the steps of a run.

    Args:
        run: its parts change in place.
        config: the stage's settings.
        ranks: this process among those that train together.
        device: where the run's parts are.
    """

    def __init__(self, run: Run, config: StageConfig, ranks: Ranks, device: torch.device | str) -> None:
        self.run, self.config, self.ranks = run, config, ranks
        self.names: list[str] = []
        self.on_device: Callable[[Batch], Tensor] = self._on_device
        if run.captured:
            self.on_device = Captured(self._on_device, device)

    def __call__(self, batch: Batch) -> dict[str, Any]:
        """One step on a batch that is on the device; what the log says of it.

        Raises:
            InputError: the gradient is not finite.
        """
        run = self.run
        rate = run.schedule.rate(run.step)
        for optimizer in (run.optimizer, run.adversary_optimizer):
            if optimizer is not None:
                optimizer.set_rate(rate / self.config.learning_rate)
        values = self.ranks.mean(self.on_device(batch)).tolist()
        record = {name: round(value, 6) for name, value in zip(self.names, values, strict=True)}
        if not math.isfinite(record["norm"]):
            raise InputError(f"step {run.step}: the gradient is not finite (losses {record}); lower learning_rate")
        run.step += 1
        return {"step": run.step} | record | {"rate": rate}

    def _on_device(self, batch: Batch) -> Tensor:
        """All of a step that happens on the device. Returns the values of the log, in the order of `names`."""
        run, config = self.run, self.config
        with self._autocast(batch):
            outcome: Outcome = run.stage(batch)
        if run.adversary is not None and run.adversary_optimizer is not None:
            with self._autocast(batch):
                contest = run.adversary.discrimination(outcome)
            self._update(run.adversary_optimizer, contest)
            with self._autocast(batch):
                outcome.losses.update(run.adversary.losses(outcome))
            outcome.losses["contest"] = contest.detach()
        total = weighted_sum(outcome, config)
        norm = self._update(run.optimizer, total)
        if run.averaged is not None:
            update_average(run.averaged, run.stage.codec)
        self.names = ["loss", *outcome.losses, "norm"]
        return torch.stack([value.detach().float() for value in (total, *outcome.losses.values(), norm)])

    def _autocast(self, batch: Batch) -> torch.autocast:
        return torch.autocast(batch.wave.device.type, torch.bfloat16, enabled=self.config.bfloat16 is True)

    def _update(self, optimizer: Optimizers, loss: Tensor) -> Tensor:
        """Gradient, mean over ranks, clip, step. Returns the norm before clipping.

        A step that is not finite is not taken, or, where steps are captured, spoils the weights: such a run ends."""
        optimizer.zero_grad()
        loss.backward()
        self.ranks.average_gradients(optimizer.parameters)
        norm = nn.utils.clip_grad_norm_(optimizer.parameters, self.config.clip_norm)
        if self.run.captured or math.isfinite(float(norm)):
            optimizer.step()
        return norm


def weighted_sum(outcome: Outcome, config: StageConfig) -> Tensor:
    """The loss that a stage lowers."""
    weighted = [config.losses[name] * loss for name, loss in outcome.losses.items() if name in config.losses]
    return torch.stack(weighted).sum()


def update_average(averaged: AveragedModel, codec: CodecModel) -> None:
    """Move the averaged weights; at the first step, which is never a captured one, they begin as the codec's."""
    if not torch.cuda.is_available() or not torch.cuda.is_current_stream_capturing():
        averaged.update_parameters(codec)
        return
    assert averaged.multi_avg_fn is not None
    averaged.multi_avg_fn(list(averaged.module.parameters()), [p.detach() for p in codec.parameters()], 0)


def captures(config: StageConfig, teacher: Teacher | None, ranks: Ranks, device: torch.device | str) -> bool:
    """Whether the steps of a stage are recorded: all its batches have one shape, and nothing in a step needs the CPU
    (texts, other processes, a teacher that asks how long its rows are)."""
    alike = config.crop_seconds is not None and "recognition" not in config.losses
    return torch.device(device).type == "cuda" and alike and ranks.world == 1 and not isinstance(teacher, Encoder)


class Captured:
    """A function of a batch, all of whose work is on a GPU, recorded once and then replayed.

    Args:
        function: reads and changes tensors in place, and returns one of figures.
        device: where all of that is.
    """

    def __init__(self, function: Callable[[Batch], Tensor], device: torch.device | str) -> None:
        self.function = function
        self.calls = 0
        if (index := torch.device(device).index) is not None:
            torch.cuda.set_device(index)  # where a graph records and is replayed
        self.stream = torch.cuda.Stream()
        self.graph = torch.cuda.CUDAGraph()
        self.batch: Batch | None = None
        self.values = torch.empty(0)

    def __call__(self, batch: Batch) -> Tensor:
        """As `function`. All batches must be of one shape."""
        self.calls += 1
        if self.batch is None:
            self.batch = batch._replace(**{name: getattr(batch, name).clone() for name in Batch._fields[:3]})
        for kept, given in zip(self.batch[:3], batch[:3], strict=True):
            kept.copy_(given)
        if self.calls <= EAGER_STEPS:
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                values = self.function(self.batch)
            torch.cuda.current_stream().wait_stream(self.stream)
            return values
        if self.calls == EAGER_STEPS + 1:
            with torch.cuda.graph(self.graph, stream=self.stream, capture_error_mode="thread_local"):
                self.values = self.function(self.batch)
        self.graph.replay()
        return self.values
