"""The full-context encoder that a codec learns from: WavLM, Whisper's, or one of the codec's own size, trained here."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from tokenizer.checkpoint import assign, read_weights
from tokenizer.config import EncoderConfig
from tokenizer.errors import InputError
from tokenizer.files import write_atomically
from tokenizer.network.encoder import Encoder
from tokenizer.parsed import dataclass_from_dict
from tokenizer.teachers.wavlm import load_wavlm
from tokenizer.teachers.whisper import WhisperEncoder, is_whisper, load_whisper
from tokenizer.training.config import TeacherConfig


def new_teacher(student: EncoderConfig) -> Encoder:
    """A full-context encoder with the shapes of a causal one, so that the student can start from its weights."""
    return Encoder(dataclasses.replace(student, causal=False))


def save_teacher(teacher: Encoder, directory: Path) -> None:
    """Write config.json (an `encoder_config`) and model.safetensors."""
    from safetensors.torch import save

    directory.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in teacher.state_dict().items()}
    write_atomically(directory / "model.safetensors", save(weights))
    text = json.dumps(dataclasses.asdict(teacher.config), indent=2) + "\n"
    write_atomically(directory / "config.json", text.encode())


def load_full_context(config: TeacherConfig, trained: Path) -> Encoder | WhisperEncoder:
    """The teacher of a training whose losses ask for no particular shapes ("content", "distilled"): any full-context
    encoder. Args and errors: as of `load_teacher`."""
    if config.source is not None and is_whisper(config.source):
        return load_whisper(config.source)
    return _encoder(config, trained)[0].requires_grad_(False).eval()


def load_teacher(config: TeacherConfig, trained: Path, student: EncoderConfig) -> Encoder:
    """The teacher of a training whose student takes over its features.

    Args:
        config: where it comes from.
        trained: the folder `teacher` of the run's own stage of that name; used when `config.source` is None.
        student: the causal encoder's configuration; it must have the teacher's shapes.

    Raises:
        InputError: no teacher there, or one of other shapes.
    """
    if config.source is not None and is_whisper(config.source):
        raise InputError(
            f"teacher.source {config.source!r} is a Whisper encoder, which is built otherwise than the codec's; use it "
            "in the stage end_to_end, for the losses 'content' and 'distilled', without 'features'"
        )
    teacher, source = _encoder(config, trained)
    ours = {name: tensor.shape for name, tensor in Encoder(student).state_dict().items()}
    for name, tensor in teacher.state_dict().items():
        if ours.get(name) != tensor.shape:
            raise InputError(
                f"teacher {source}: {name} has shape {tuple(tensor.shape)}, the model's encoder makes it "
                f"{tuple(ours[name]) if name in ours else 'nothing'}; give encoder_config the teacher's shapes"
            )
    return teacher.eval()


def _encoder(config: TeacherConfig, trained: Path) -> tuple[Encoder, str]:
    """A teacher built like the codec's encoder, and where it comes from."""
    if config.source is not None:
        return load_wavlm(config.source, config.layers), config.source
    if not (trained / "config.json").is_file():
        raise InputError(f"{trained}: no teacher there; run the stage 'teacher' first, or name a teacher.source")
    section = f"{trained / 'config.json'}"
    teacher = Encoder(dataclass_from_dict(EncoderConfig, json.loads(Path(section).read_text()), section))
    assign(teacher, read_weights(trained / "model.safetensors"), f"teacher {trained}")
    return teacher, str(trained)
