"""A trained language model on the Hugging Face Hub: exported for transformers if it can be, with its training in the
card."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from slm.checkpoint import load_lm, save_lm
from slm.llama import export_lm, is_exportable
from tokenizer.files import write_atomically
from tokenizer.hub import CARD, push

TAGS = ("speech", "language-model")
LIBRARY = "transformers"  # what loads an exported model
OWN = """# A speech language model

Its tokens are those of codec `{codec}` (fingerprint `{fingerprint}`), {rate:g} a second of speech. It is in the layout
of focalstream:

    hf download THIS_REPOSITORY --local-dir FOLDER
    focalstream continue PROMPT.wav OUT.wav --lm FOLDER
"""
TRAINING = """
## Training

By `focalstream train-lm`, {parameters:.2f} M parameters, step {step}: best held-out {measure} {best}.
Settings:

```json
{settings}
```
"""


def push_run(run: Path, report: Any, repo: str, private: bool, dry_run: bool, license_id: str | None = None) -> str:
    """Upload the best model of a training run.

    Args:
        run: its folder.
        report: `TrainReport` or `PreferenceReport`.
        repo, private, dry_run, license_id: see `tokenizer.hub.push`.

    Returns:
        What to print.

    Raises:
        InputError: see `tokenizer.hub.push`.
    """
    model, vocabulary = load_lm(run)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / run.resolve().name
        exported = is_exportable(model.config)
        if exported:
            export_lm(model, vocabulary, folder)
            text = (folder / CARD).read_text(encoding="utf-8")
        else:
            save_lm(model, vocabulary, folder, torch.float32)
            text = OWN.format(
                codec=vocabulary.codec_name, fingerprint=vocabulary.codec_fingerprint, rate=vocabulary.token_rate
            )
        best = getattr(report, "best_bits_per_token", None)
        loss = getattr(report, "best_loss", None)
        settings = json.loads((run / "run.json").read_text(encoding="utf-8"))["train"]
        text += TRAINING.format(
            parameters=report.parameters / 1e6,
            step=report.step if report.best_step is None else report.best_step,
            measure="loss in nats a pair" if loss is not None else "bits per token",
            best="not measured" if best is None and loss is None else f"{best if best is not None else loss:.3f}",
            settings=json.dumps(settings, indent=1),
        )
        write_atomically(folder / CARD, text.encode())
        library = LIBRARY if exported else "focalstream"
        return push(folder, repo, TAGS, private=private, dry_run=dry_run, library=library, license_id=license_id)
