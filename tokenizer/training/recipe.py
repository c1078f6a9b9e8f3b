"""Reading a training's YAML: each section into its dataclass, and each stage's losses against those that it has."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from tokenizer.config import CodecConfig
from tokenizer.errors import InputError
from tokenizer.parsed import dataclass_from_dict
from tokenizer.training.config import ADVERSARIAL, StageConfig, TeacherConfig, TrainingConfig
from tokenizer.training.stages import STAGES


def read_config(path: Path) -> TrainingConfig:
    """Read a training's YAML: `model` in the published layout, `teacher` (optional), `stages` by name.

    Raises:
        InputError: naming the file, the section and the key.
    """
    import yaml

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
    plain = {key: value for key, value in raw.items() if key != "losses"}
    try:
        stage = dataclass_from_dict(StageConfig, plain, section)
    except InputError as error:
        text = str(error)
        raise InputError(text if text.startswith(section) else f"{section}: {text}") from None
    return StageConfig(**{**vars(stage), "losses": chosen})
