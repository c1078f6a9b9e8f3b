"""Reading a training's YAML: each section into its dataclass, and each stage's losses against those that it has."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tokenizer.config import CodecConfig
from tokenizer.errors import InputError
from tokenizer.parsed import dataclass_from_dict, read_yaml
from tokenizer.training.augment import Augmentation
from tokenizer.training.config import ADVERSARIAL, StageConfig, TeacherConfig, TrainingConfig
from tokenizer.training.stages import STAGES

NOTHING: Mapping[str, Any] = MappingProxyType({})


def read_config(
    path: Path,
    settings: Mapping[str, Any] = NOTHING,
    stage: str | None = None,
    model: Mapping[str, Any] = NOTHING,
    teacher: Mapping[str, Any] = NOTHING,
) -> TrainingConfig:
    """Read a training's YAML: `model` in the published layout, `teacher` (optional), `stages` by name.

    Args:
        settings: values of `StageConfig` that replace those of the file; `losses` and `augment` replace single
            ones, and `steps` or `epochs` replaces both.
        stage: the stage that `settings` are for; None: every stage.
        model: values that replace those of the file, by dotted name: {"encoder_config.dim": 128}.
        teacher: likewise, of `TeacherConfig`.

    Raises:
        InputError: naming the file, the section and the key.
    """
    raw = read_yaml(path)
    if not isinstance(raw, dict) or not {"model", "stages"} <= set(raw) <= {"model", "teacher", "stages"}:
        raise InputError(f"{path}: expected the sections 'model', 'stages' and, for distillation, 'teacher'")
    stages = raw["stages"]
    if not isinstance(stages, dict) or not stages:
        raise InputError(f"{path}: stages: expected a mapping of stage names to their settings")
    if unknown := [name for name in stages if name not in STAGES]:
        raise InputError(f"{path}: stages: {unknown[0]!r} is unknown; the stages are {', '.join(STAGES)}")
    for name, values in stages.items():
        if stage in (None, name) and isinstance(values, dict):
            stages[name] = _with_settings(values, settings)
    source = None
    if "teacher" in raw or teacher:
        values = raw.get("teacher", {})
        values = {**values, **teacher} if isinstance(values, dict) else values
        source = dataclass_from_dict(TeacherConfig, values, f"{path}: teacher")
    return TrainingConfig(
        CodecConfig.from_dict(_with_dotted(raw["model"], model), f"{path}: model"),
        source,
        {name: _stage(values, STAGES[name].losses, f"{path}: stages.{name}") for name, values in stages.items()},
    )


def _with_settings(stage: dict[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """A stage's settings in the file, replaced by others."""
    replaced = ("steps", "epochs") if {"steps", "epochs"} & set(settings) else ()
    kept = {key: value for key, value in stage.items() if key not in replaced}
    given = dict(settings)
    for key in ("losses", "augment"):
        if key in given and isinstance(kept.get(key, {}), dict):
            given[key] = {**kept.get(key, {}), **given[key]}
    return {**kept, **given}


def _with_dotted(raw: Any, values: Mapping[str, Any]) -> Any:
    """The file's `model`, with {"encoder_config.dim": 128} in it."""
    out = raw
    for name, value in values.items():
        section, dot, key = name.partition(".")
        if not dot:
            raise InputError(f"--model {name}={value}: expected SECTION.KEY=VALUE, such as encoder_config.num_layers=4")
        if isinstance(out, dict) and isinstance(out.get(section, {}), dict):
            out = {**out, section: {**out.get(section, {}), key: value}}
    return out


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
