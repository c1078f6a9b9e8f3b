"""The YAML of a codec's training: the model, its teacher, and the stages in the order in which they run."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tokenizer.config import CodecConfig
from tokenizer.errors import InputError
from tokenizer.parsed import dataclass_from_dict
from tokenizer.training.augment import NO_AUGMENTATION, Augmentation

SCHEDULES = ("cosine", "plateau", "epoch")
OPTIMIZERS = ("adamw", "muon")
POSITIVE = {  # settings that must be more than 0
    *("batch_size", "crop_seconds", "longest_seconds", "learning_rate", "final_learning_rate", "clip_norm"),
    *("validate_every", "validation_batches", "save_every", "entropy_temperature"),
    *("adversary_width", "adversary_learning_rate"),
}
ADVERSARIAL = {"adversarial": 1.0, "feature_matching": 1.0}  # losses of the discriminators, with their weights


@dataclass(frozen=True)
class StageConfig:
    """Settings of one stage; durations in seconds.

    `steps` or `epochs` says how long it runs; an epoch is once through the corpus. Batches are random crops of
    `crop_seconds`, or whole utterances (at most `longest_seconds` of each) of like durations.

    The learning rate warms up, then falls by `schedule`: "cosine" to `final_learning_rate` at the last step, "plateau"
    by the factor `annealing` after each validation hardly better than the one before, "epoch" by `annealing` an epoch.
    """

    steps: int = 0
    epochs: float = 0.0
    batch_size: int = 16
    crop_seconds: float | None = None
    longest_seconds: float = 20.0
    optimizer: str = "adamw"  # or "muon" for the matrices between layers (torch.optim.Muon), AdamW for the rest
    learning_rate: float = 5e-5
    final_learning_rate: float = 1e-6
    schedule: str = "plateau"
    annealing: float = 0.9
    warmup_steps: int = 0
    beta1: float = 0.9
    beta2: float = 0.98
    weight_decay: float = 0.01
    clip_norm: float = 5.0
    average: float = 0.0  # decay a step of the moving average of the weights that is validated and saved; 0: none
    entropy_temperature: float = 200.0
    binarise: bool = True  # False: latents pass the quantizer as they are, to learn what it costs; no codec for use
    adversary_width: float = 1.0  # channels of the discriminators, relative to the published ones
    adversary_learning_rate: float | None = None  # None: the same as the codec's
    bfloat16: bool = True
    validate_every: int | None = 500  # steps; None: once an epoch
    validation_batches: int = 8
    save_every: int = 100  # steps
    seed: int = 0
    losses: dict[str, float] = field(default_factory=dict)  # weight of each, where it differs from the stage's own
    augment: Augmentation = NO_AUGMENTATION  # of random crops
    freeze: tuple[str, ...] = ()  # parts of the codec that stay, though the stage trains them: "decompressor.refiner"

    def __post_init__(self) -> None:
        if (self.steps > 0) == (self.epochs > 0):
            raise InputError(f"steps {self.steps} and epochs {self.epochs}: expected one of them, above 0")
        if self.optimizer not in OPTIMIZERS:
            raise InputError(f"optimizer {self.optimizer!r} is unknown; use one of {', '.join(OPTIMIZERS)}")
        if self.schedule not in SCHEDULES:
            raise InputError(f"schedule {self.schedule!r} is unknown; use one of {', '.join(SCHEDULES)}")
        for name, value in vars(self).items():
            unbounded = name == "clip_norm" and value == math.inf  # does not clip
            if isinstance(value, float) and not (math.isfinite(value) or unbounded):
                raise InputError(f"{name} is {value}, expected a finite number")
            if name in POSITIVE and value is not None and value <= 0:
                raise InputError(f"{name} is {value}, expected more than 0")
        for name in ("beta1", "beta2", "average"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}, expected at least 0 and less than 1")
        if not 0 < self.annealing <= 1 or self.warmup_steps < 0 or self.weight_decay < 0 or self.seed < 0:
            raise InputError(
                f"annealing {self.annealing}, warmup_steps {self.warmup_steps}, weight_decay {self.weight_decay} and "
                f"seed {self.seed}: expected 0 < annealing <= 1, and the others not negative"
            )
        if self.final_learning_rate > self.learning_rate:
            raise InputError(
                f"final_learning_rate {self.final_learning_rate} must not exceed learning_rate {self.learning_rate}"
            )
        if self.steps and self.warmup_steps >= self.steps:
            raise InputError(f"warmup_steps {self.warmup_steps} must be less than steps {self.steps}")


def recorded(config: StageConfig) -> dict[str, Any]:
    """A stage's settings as a run records them: without what the versions before did not know, where it is off."""
    settings = asdict(config)
    if config.augment == NO_AUGMENTATION:
        del settings["augment"]
    return settings


@dataclass(frozen=True)
class TeacherConfig:
    """Where the full-context teacher comes from: a WavLM folder or Hub id, or the run's own stage `teacher`.

    Attributes:
        source: folder or id in a layout of `tokenizer.training.wavlm.load_wavlm`, or the folder of a Whisper encoder
            (`tokenizer.training.whisper.load_whisper`); null: the stage `teacher` trains one.
        layers: first layers of the source that are kept; a Whisper encoder keeps all it has.
    """

    source: str | None = None
    layers: int = 6


@dataclass(frozen=True)
class TrainingConfig:
    """All of a training."""

    model: CodecConfig
    teacher: TeacherConfig | None
    stages: dict[str, StageConfig]


def read_config(path: Path) -> TrainingConfig:
    """Read a training's YAML: `model` in the published layout, `teacher` (optional), `stages` by name.

    Raises:
        InputError: naming the file, the section and the key.
    """
    import yaml

    from tokenizer.training.stages import STAGES

    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a YAML file ({' '.join(str(error).split())})") from None
    if not isinstance(raw, dict) or not {"model", "stages"} <= set(raw) <= {"model", "teacher", "stages"}:
        raise InputError(f"{path}: expected the sections 'model', 'stages' and, for distillation, 'teacher'")
    stages = raw["stages"]
    if not isinstance(stages, dict) or not stages:
        raise InputError(f"{path}: stages: expected a mapping of stage names to their settings")
    if unknown := [name for name in stages if name not in STAGES]:
        raise InputError(f"{path}: stages: {unknown[0]!r} is unknown; the stages are {', '.join(STAGES)}")
    teacher = None
    if "teacher" in raw:
        teacher = dataclass_from_dict(TeacherConfig, raw["teacher"], f"{path}: teacher")
    return TrainingConfig(
        CodecConfig.from_dict(raw["model"], f"{path}: model"),
        teacher,
        {name: _stage(values, STAGES[name].losses, f"{path}: stages.{name}") for name, values in stages.items()},
    )


def _stage(raw: Any, own: dict[str, float], section: str) -> StageConfig:
    """One stage's settings, `losses` filled in and checked against those that the stage has."""
    if not isinstance(raw, dict):
        raise InputError(f"{section}: expected a mapping, found {type(raw).__name__}")
    weights = raw.get("losses", {})
    if not isinstance(weights, dict):
        raise InputError(f"{section}.losses: expected a mapping of losses to weights, found {type(weights).__name__}")
    for name, weight in weights.items():
        if name not in own:
            raise InputError(f"{section}.losses: {name!r} is unknown; this stage has {', '.join(own)}")
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight < math.inf:
            raise InputError(f"{section}.losses: {name} is {weight!r}, expected a weight of 0 or more")
    chosen = {name: float(weight) for name, weight in (own | weights).items() if weight}
    if not set(chosen) - set(ADVERSARIAL):  # validation is without discriminators, and needs something to measure
        measured = ", ".join(name for name in own if name not in ADVERSARIAL)
        raise InputError(f"{section}.losses: expected a weight above 0 for one of {measured}")
    plain = {key: value for key, value in raw.items() if key not in ("losses", "augment")}
    augment = dataclass_from_dict(Augmentation, raw.get("augment", {}), f"{section}.augment")
    try:
        stage = dataclass_from_dict(StageConfig, plain, section)
    except InputError as error:
        text = str(error)
        raise InputError(text if text.startswith(section) else f"{section}: {text}") from None
    return StageConfig(**{**vars(stage), "losses": chosen, "augment": augment})
