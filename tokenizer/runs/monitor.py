"""The log of a training run: a progress bar, log.jsonl, TensorBoard where that is installed, W&B where asked for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor
from tqdm import tqdm

from tokenizer.errors import InputError
from tokenizer.files import write_atomically
from tokenizer.runs.weights_and_biases import WandbLog


class Monitor:
    """Writes one line a step. Silent (a stand-in that does nothing) on ranks other than the first.

    Args:
        out: the stage's folder: log.jsonl, and TensorBoard's files in tensorboard/.
        name: of the stage, for the bar.
        step, steps: done so far, and in all.
        silent: write nothing.
        bar: draw a bar, if stderr is a terminal.
        wandb: a project of Weights & Biases to log to as well.
    """

    def __init__(
        self, out: Path, name: str, step: int, steps: int, silent: bool, bar: bool = True, wandb: str | None = None
    ) -> None:
        self.wandb = None if silent or wandb is None else WandbLog(wandb, out)
        hidden = silent or not bar
        self.bar = tqdm(total=steps, initial=step, desc=name, unit="step", disable=True if hidden else None)
        self.log = None if silent else open(out / "log.jsonl", "a", encoding="utf-8", newline="\n")  # noqa: SIM115
        self.board: Any = None
        if not silent:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                return
            self.board = SummaryWriter(str(out / "tensorboard"), purge_step=step + 1)

    def __enter__(self) -> Monitor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.close()
        for sink in (self.log, self.board, self.wandb):
            if sink is not None:
                sink.close()

    def step(self, record: dict[str, Any], shown: str) -> None:
        """Note a step: `record` has "step" and numbers by name (None: there is none); `shown` goes into the bar."""
        if self.log is not None:
            self.log.write(json.dumps(record) + "\n")
            self.log.flush()
        if self.board is not None:
            for name, value in record.items():
                if name != "step" and value is not None:
                    self.board.add_scalar(name, value, record["step"])
        if self.wandb is not None:
            self.wandb.step(record)
        self.bar.set_postfix_str(shown, refresh=False)
        self.bar.update()

    def hear(self, step: int, waves: Sequence[Tensor], sample_rate: int) -> None:
        """Log waves, each [S], as audio of TensorBoard and W&B."""
        if self.wandb is not None:
            self.wandb.hear(step, waves, sample_rate)
        if self.board is not None:
            for row, wave in enumerate(waves):
                self.board.add_audio(f"held_out/{row}", wave[None].cpu(), step, sample_rate)


def forget_from(log: Path, step: int) -> None:
    """Drop a log's lines after `step`: those steps are done again.

    Raises:
        InputError: a line was not written by `Monitor`.
    """
    written = log.read_text() if log.exists() else ""
    lines = written.rpartition("\n")[0].splitlines()  # a power cut may have left a last line without its end
    kept = []
    for number, line in enumerate(lines, 1):
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{log}: line {number} is no step of a run; move the file away to go on") from None
    write_atomically(log, "".join(f"{line}\n" for line in kept).encode())
