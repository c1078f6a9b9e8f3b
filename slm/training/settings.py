"""The configuration of a training run: the model's shape and the run's settings, a YAML file with two sections."""

from __future__ import annotations

import math
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizer.errors import InputError
from tokenizer.parsed import dataclass_from_dict, read_yaml_file
from tokenizer.runs.precision import AUTO, check_bfloat16
from tokenizer.runs.schedule import warmup_cosine, warmup_stable_decay

if TYPE_CHECKING:
    from slm.model.transformer import ModelConfig

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "lm"

WHOLE = "whole"  # for the setting `compile`


def setting(help: str, default: Any = MISSING, choices: tuple[str, ...] = ()) -> Any:
    """A field with its text for `train-lm --help`. Fields without a default are required in every YAML file."""
    return field(default=default, metadata={"help": help, "choices": choices})


@dataclass(frozen=True)
class TrainSettings:
    """Settings of a run. The command line can override each setting of the YAML file.

    Raises:
        InputError: a value is out of range, or two values do not fit each other.
    """

    steps: int = setting("optimizer steps of the run, which also set the learning rate schedule")
    rows: int = setting("rows of a step")
    rows_at_once: int = setting("rows of one forward pass; more need more memory and change only rounding")
    row_tokens: int = setting("tokens of a row")
    learning_rate: float = setting("highest learning rate, reached after the warm-up")
    final_learning_rate: float = setting("learning rate at the last step")
    warmup_steps: int = setting("steps over which the learning rate rises linearly")
    beta1: float = setting("AdamW: decay of the gradient's mean")
    beta2: float = setting("AdamW: decay of the gradient's square")
    weight_decay: float = setting("weight decay of matrices (not of norm gains)")
    clip_norm: float = setting("gradients are scaled down to this norm")
    bfloat16: bool | str = setting(
        "compute in bfloat16 autocast; weights stay in float32 (auto, in a config: where hardware does it)"
    )
    validate_every: int = setting("steps between validations on held-out speech")
    validation_rows: int = setting("rows of a validation at most, always the same rows")
    patience: int = setting("end the run after this many validations without a new best; 0: never")
    held_out_fraction: float = setting(
        "share of the recordings (see held_out_by) used for validation if no held-out dataset is given"
    )
    save_every: int = setting("steps between checkpoints")
    keep_checkpoints: int = setting("latest checkpoints to keep, beside the best")
    seed: int = setting("seed of the weights, the order of the cuts, and dropout")
    schedule: str = setting(
        "after the warm-up: cosine, a half cosine; wsd, constant until a decay at the end",
        "cosine",
        ("cosine", "wsd"),
    )
    decay_fraction: float = setting("share of the steps in the decay of schedule wsd", 0.2)
    optimizer: str = setting(
        "AdamW for all parameters, or Muon for the matrices of the layers", "adamw", ("adamw", "muon")
    )
    parallel: str = setting(
        "with torchrun: ddp, every process has the whole model; fsdp, every process has a shard",
        "ddp",
        ("ddp", "fsdp"),
    )
    fsdp_replicas: int = setting(
        "with fsdp: shard within each of this many groups of processes and replicate between them (HSDP)", 1
    )
    fsdp_bfloat16: bool = setting(
        "with fsdp and bfloat16: gather the layers' weights in bfloat16, half of the bytes (gradients: float32)",
        False,
    )
    compile: bool | str = setting(
        "compile the layers (torch.compile): a slow first step, then faster ones (in a config also auto: on CUDA, and "
        "whole: embedding, layers and last norm as one graph)",
        "auto",
    )
    recompute: bool = setting("recompute layers in the backward pass: less memory, more computation", False)
    keep_every: int = setting("also keep the checkpoints of the steps that are multiples of this; 0: none", 0)
    save_in_background: bool = setting(
        "write checkpoints in a thread while training goes on; holds a copy of weights and moments in memory", True
    )
    held_out_by: str = setting(
        "without --held-out, hold out whole recordings, whole speakers, or single cuts",
        "recording",
        ("recording", "speaker", "cut"),
    )
    validate_by_source: bool = setting("validate each dataset of a mixture, or of --held-out, also by itself", True)
    skip_limit: int = setting(
        "batches that may be skipped in the run because their gradient is not finite; 0: the first ends the run", 0
    )
    skip_sigma: float = setting(
        "with --skip-limit: also skip batches whose loss or gradient is this many standard deviations above the mean "
        "of the latest 128 steps (6 is usual); 0: none",
        0.0,
    )
    lora: int = setting("rank of adapters (LoRA) that are trained beside a frozen --init-from; 0: train the model", 0)
    lora_layers: str = setting(
        "which matrices of the layers have adapters", "all", ("all", "attention", "feed-forward")
    )
    lora_scale: float = setting("factor of the adapters' updates (alpha / rank in the paper)", 2.0)
    dpo_beta: float = setting("with --preferences: the higher, the closer the model stays to its start", 0.1)
    sample_every: int = setting("steps between spoken samples (see --codec); 0: none", 0)
    speech_weight: float = setting("weight of rows of speech alone, relative to the next three", 1.0)
    text_to_speech_weight: float = setting("weight of rows of speech after its text (see --text-model)", 0.0)
    speech_to_text_weight: float = setting("weight of rows of text after its speech (see --text-model)", 0.0)
    interleaved_weight: float = setting(
        "weight of rows in which speech and text alternate between words, for cuts with word times (see --text-model)",
        0.0,
    )

    def __post_init__(self) -> None:
        for option in fields(self):
            value = getattr(self, option.name)
            unbounded = option.name == "clip_norm" and value == math.inf  # no clipping
            if isinstance(value, float) and not (math.isfinite(value) or unbounded):
                raise InputError(f"train.{option.name} is {value}; expected a finite number")
        check_bfloat16(self.bfloat16, "train.bfloat16")
        if not isinstance(self.compile, bool) and self.compile not in (AUTO, WHOLE):
            raise InputError(f"train.compile is {self.compile!r}; expected true, false, {AUTO} or {WHOLE}")
        if self.compile == WHOLE and self.parallel == "fsdp":
            raise InputError(
                f"train.compile is {WHOLE}, but with train.parallel fsdp every layer gathers its weights by itself; "
                "expected true, or ddp"
            )
        positive = (
            "steps rows rows_at_once row_tokens learning_rate clip_norm validate_every validation_rows save_every "
            "keep_checkpoints lora_scale dpo_beta fsdp_replicas"
        )
        for name in positive.split():
            if not getattr(self, name) > 0:
                raise InputError(f"train.{name} is {getattr(self, name)}; expected more than 0")
        not_negative = (
            "warmup_steps final_learning_rate weight_decay patience seed lora sample_every keep_every skip_limit "
            "skip_sigma speech_weight text_to_speech_weight speech_to_text_weight interleaved_weight"
        )
        for name in not_negative.split():
            if getattr(self, name) < 0:
                raise InputError(f"train.{name} is {getattr(self, name)}; expected at least 0")
        if not any(self.task_weights.values()):
            raise InputError(
                "train.speech_weight, train.text_to_speech_weight, train.speech_to_text_weight and "
                "train.interleaved_weight are all 0; expected at least one above 0"
            )
        if self.sample_every and not self.speech_weight:
            raise InputError(
                f"train.sample_every is {self.sample_every}, but with train.speech_weight 0 the model never learns to "
                "continue speech; set train.sample_every to 0 or train.speech_weight above 0"
            )
        if self.seed >= 2**31:
            raise InputError(f"train.seed is {self.seed}; expected less than 2^31")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"train.{name} is {getattr(self, name)}; expected 0 <= {name} < 1")
        for name in ("held_out_fraction", "decay_fraction"):
            if not 0 < getattr(self, name) < 1:
                raise InputError(f"train.{name} is {getattr(self, name)}; expected more than 0, less than 1")
        for option in fields(self):
            choices = option.metadata["choices"]
            if choices and getattr(self, option.name) not in choices:
                raise InputError(
                    f"train.{option.name} is {getattr(self, option.name)!r}; expected one of {', '.join(choices)}"
                )
        if self.fsdp_replicas != 1 and self.parallel != "fsdp":
            raise InputError(
                f"train.fsdp_replicas is {self.fsdp_replicas}, but train.parallel {self.parallel}; expected fsdp, or 1"
            )
        if self.fsdp_bfloat16 and (self.parallel != "fsdp" or self.bfloat16 is False):
            raise InputError(
                f"train.fsdp_bfloat16 is true with train.parallel {self.parallel} and train.bfloat16 {self.bfloat16}; "
                "expected fsdp and bfloat16"
            )
        if self.warmup_steps >= self.steps:
            raise InputError(
                f"train.warmup_steps {self.warmup_steps} must be less than train.steps {self.steps}; give a lower "
                "--warmup-steps or a higher --steps"
            )
        if self.final_learning_rate > self.learning_rate:
            raise InputError(
                f"train.final_learning_rate {self.final_learning_rate} is above train.learning_rate "
                f"{self.learning_rate}; expected at most that"
            )
        if self.rows % self.rows_at_once:
            raise InputError(f"train.rows {self.rows} must be a multiple of train.rows_at_once {self.rows_at_once}")

    def compiles_on(self, device: str) -> bool:
        """Whether the model is compiled on a torch device."""
        return device.startswith("cuda") if self.compile == AUTO else bool(self.compile)

    @property
    def task_weights(self) -> dict[str, float]:
        """Weight of each task; see `slm.documents.tasks`."""
        tasks = ("speech", "text_to_speech", "speech_to_text", "interleaved")
        return {task: getattr(self, f"{task}_weight") for task in tasks}

    @property
    def decay_begins(self) -> int | None:
        """The step after which the rate of schedule wsd decays; None: it has no level part to go back to."""
        if self.schedule != "wsd":
            return None
        begins = self.steps - max(1, round(self.steps * self.decay_fraction))
        return begins if begins > self.warmup_steps else None

    def rate_at(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        steps, warmup, peak, final = self.steps, self.warmup_steps, self.learning_rate, self.final_learning_rate
        if self.schedule == "cosine":
            return warmup_cosine(step, steps, warmup, peak, final)
        return warmup_stable_decay(step, steps, warmup, max(1, round(steps * self.decay_fraction)), peak, final)


def read_settings(
    name_or_path: str, overrides: dict[str, Any], model_overrides: dict[str, Any] | None = None
) -> tuple[ModelConfig, TrainSettings]:
    """Read a training config.

    Args:
        name_or_path: a YAML file, or the name of a shipped one ("tiny", "small", "25m" ...).
        overrides: values of `TrainSettings` that replace those of the file.
        model_overrides: the same for `ModelConfig`.

    Raises:
        InputError: the file does not exist or is not YAML, keys are unknown or missing, or values do not fit.
    """
    from slm.model.transformer import (
        ModelConfig,  # here, because importing PyTorch would slow down `train-lm --help`
    )

    path = Path(name_or_path)
    if not path.exists() and (CONFIGS / f"{name_or_path}.yaml").is_file():
        path = CONFIGS / f"{name_or_path}.yaml"
    try:
        raw = read_yaml_file(path)
    except FileNotFoundError:
        known = ", ".join(sorted(file.stem for file in CONFIGS.glob("*.yaml")))
        raise InputError(f"config '{name_or_path}': no such file; expected a YAML file, or one of: {known}") from None
    if not isinstance(raw, dict) or set(raw) != {"model", "train"}:
        found = ", ".join(f"{key!r}" for key in raw) if isinstance(raw, dict) else type(raw).__name__
        raise InputError(f"{path}: expected exactly the sections 'model' and 'train', found {found}")
    for section, found in raw.items():
        if not isinstance(found, dict):
            raise InputError(f"{path}: {section}: expected settings, found {type(found).__name__}")
    try:
        model = dataclass_from_dict(ModelConfig, {**raw["model"], **(model_overrides or {})}, "model")
        return model, dataclass_from_dict(TrainSettings, {**raw["train"], **overrides}, "train")
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
