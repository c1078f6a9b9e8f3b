"""The YAML of a codec's training: the model, its teacher, and the stages in the order in which they run."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from tokenizer.config import CodecConfig
from tokenizer.errors import InputError
from tokenizer.runs.precision import check_bfloat16
from tokenizer.training.augment import NO_AUGMENTATION, Augmentation

SCHEDULES = ("cosine", "plateau", "epoch")
OPTIMIZERS = ("adamw", "muon")
ADVERSARIES = ("waves", "spectra", "mixed")
POSITIVE = {  # settings that must be more than 0
    *("batch_size", "crop_seconds", "longest_seconds", "learning_rate", "final_learning_rate", "clip_norm"),
    *("validate_every", "validation_batches", "save_every", "entropy_temperature"),
    *("adversary_width", "adversary_learning_rate", "adversary_seconds"),
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
    content_noise_db: float | None = None  # lowest ratio of speech to the noise that a content teacher hears with it
    adversary: str = "waves"  # discriminators; see `tokenizer.training.adversary`
    adversary_width: float = 1.0  # channels of the discriminators, relative to the published ones
    adversary_seconds: float | None = None  # of each row that the discriminators hear, at a random place; None: all
    adversary_learning_rate: float | None = None  # None: the same as the codec's
    bfloat16: bool | str = "auto"  # where the hardware multiplies it
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
        if self.adversary not in ADVERSARIES:
            raise InputError(f"adversary {self.adversary!r} is unknown; use one of {', '.join(ADVERSARIES)}")
        check_bfloat16(self.bfloat16, "bfloat16")
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


@dataclass(frozen=True)
class TeacherConfig:
    """Where the full-context teacher comes from: a WavLM folder or Hub id, or the run's own stage `teacher`.

    Attributes:
        source: folder or id in a layout of `tokenizer.teachers.wavlm.load_wavlm`, or the folder of a Whisper encoder
            (`tokenizer.teachers.whisper.load_whisper`); null: the stage `teacher` trains one.
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
