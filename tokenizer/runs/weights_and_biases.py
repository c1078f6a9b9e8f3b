"""The log of a training run on Weights & Biases, beside log.jsonl; only for a run that asks for it.

The package decides from its environment whether it needs a network: WANDB_MODE=offline writes to OUT/wandb, for `wandb
sync` later.
"""

from __future__ import annotations

import importlib.util
import json
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

from tokenizer.errors import InputError, first_line
from tokenizer.files import write_atomically

RUN = "wandb.json"  # in the run's folder: the id under which a resumed run goes on


def check_wandb(project: str | None) -> None:
    """Raise InputError if a project is named and the package is missing."""
    if project is not None and importlib.util.find_spec("wandb") is None:
        raise InputError(f"--wandb {project}: needs wandb, which is not installed; pip install focalstream[wandb]")


class WandbLog:
    """One run of a project.

    Args:
        project: its name, or ENTITY/NAME.
        out: the folder of the training run, which has run.json.

    Raises:
        InputError: it cannot begin: no key, no network.
    """

    def __init__(self, project: str, out: Path) -> None:
        entity, _, name = project.rpartition("/")
        if not (out / RUN).exists():
            write_atomically(out / RUN, json.dumps({"id": secrets.token_hex(8)}).encode())
        try:
            import wandb

            self._wandb = wandb
            run_id = json.loads((out / RUN).read_text())["id"]
            settings = json.loads((out / "run.json").read_text()) if (out / "run.json").exists() else {}
            self._run: Any = wandb.init(
                project=name,
                entity=entity or None,
                name=out.resolve().name,
                id=run_id,
                dir=str(out),
                config=settings,
                resume="allow",
            )
        except Exception as error:  # whatever it is, it is for the user to mend
            reason = first_line(error)
            raise InputError(
                f"--wandb {project}: {reason}; log in with `wandb login`, set WANDB_MODE=offline, or leave it out"
            ) from None
        # Steps that are done again after a crash are logged again, so they are a field and not W&B's own count.
        self._run.define_metric("*", step_metric="step")

    def step(self, record: dict[str, Any]) -> None:
        """Log the numbers of a step."""
        self._run.log({name: value for name, value in record.items() if value is not None})

    def hear(self, step: int, waves: Iterable[Tensor], sample_rate: int) -> None:
        """Log waves, each [S]."""
        sounds = {
            f"held_out/{row}": self._wandb.Audio(wave.cpu().numpy(), sample_rate=sample_rate)
            for row, wave in enumerate(waves)
        }
        if sounds:
            self._run.log({"step": step, **sounds})

    def close(self) -> None:
        self._run.finish()
