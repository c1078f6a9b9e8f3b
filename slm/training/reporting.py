"""What a training run says: the log's records of validations, the printed lines, and the report at the end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from slm.documents.tasks import SPEECH_TASK, TEXT_TASKS
from slm.training.settings import TrainSettings
from slm.vocabulary import Vocabulary

SOURCE = "held_out_speech_bits_per_token/"  # before the name of a dataset of a mixture


@dataclass(frozen=True)
class TrainReport:
    """How a run ended. Bits are means over the targets of held-out rows: codes and ends, or with text
    (`slm.documents.tasks`) the weighted mean of the tasks, which has no bits per second. None before a validation."""

    step: int
    best_step: int | None
    best_bits_per_token: float | None
    best_bits_per_second: float | None  # of speech
    parameters: int  # of the model that is saved
    trained_parameters: int  # fewer or more than those with train.lora
    training_tokens: int  # tokens of one epoch
    epochs: float
    stopped_by: str  # "end", "patience", "time", or the signal's name
    skipped: int  # batches
    codec_streams: bool  # whether the dataset's codec streams, which `focalstream continue` needs


def held_out_record(
    bits: dict[str, float],
    settings: TrainSettings,
    vocabulary: Vocabulary,
    targets_per_character: float,
    by_source: dict[str, float] | None = None,
) -> dict[str, float]:
    """The log's record of a validation. The weighted mean of the tasks' `bits` per target decides the best step.

    `by_source` has the bits per token of speech of each dataset of a mixture.
    """
    sources = {f"{SOURCE}{name}": found for name, found in (by_source or {}).items()}
    if list(bits) == [SPEECH_TASK]:
        (speech,) = bits.values()
        second = speech * vocabulary.token_rate
        return {"held_out_bits_per_token": speech, "held_out_bits_per_second": second, **sources}
    weights = {task: settings.task_weights[task] for task in bits}
    mean = sum(bits[task] * weight for task, weight in weights.items()) / sum(weights.values())
    record = {"held_out_bits_per_token": mean}
    record |= {f"held_out_{task}_bits_per_token": found for task, found in bits.items()}
    if "speech_to_text" in bits:
        record["held_out_speech_to_text_bits_per_character"] = bits["speech_to_text"] * targets_per_character
    return record | sources


def bar_line(record: dict[str, Any], source: str) -> str:
    """The progress bar's text for a step; `source` is that of the peak."""
    bits = record["bits_per_token"]
    return f"{'batch skipped' if bits is None else f'{bits:.3f} bits/token'}, {speed(record, source)}"


def speed(record: dict[str, Any], source: str) -> str:
    """The end of the progress bar's text."""
    used = 100 * record["utilisation"]
    return f"{record['tokens_per_second']:.0f} tokens/s, {used:.1f} % of the {source} peak"


def validation_line(record: dict[str, Any]) -> str:
    """The printed line of a validation."""
    bits = record["bits_per_token"]
    line = f"step {record['step']}: training {'skipped' if bits is None else f'{bits:.3f}'}, held-out "
    line += f"{record['held_out_bits_per_token']:.3f} bits/token"
    sources = [f"{key.removeprefix(SOURCE)} {bits:.3f}" for key, bits in record.items() if key.startswith(SOURCE)]
    if "held_out_bits_per_second" in record:
        line += f" = {record['held_out_bits_per_second']:.1f} bits per second of speech"
        return f"{line} ({', '.join(sources)})" if sources else line
    said = []
    for task in (SPEECH_TASK, *TEXT_TASKS):
        if (bits := record.get(f"held_out_{task}_bits_per_token")) is not None:
            characters = record.get(f"held_out_{task}_bits_per_character")
            more = "" if characters is None else f" = {characters:.3f} bits/character"
            said.append(f"{task.replace('_', ' ')} {bits:.3f}{more}")
    return f"{line} ({', '.join(said + sources)})"
