"""The model that a run starts from: random weights or another model's, and adapters if it has some."""

from __future__ import annotations

import torch

from slm.model.transformer import LanguageModel, ModelConfig
from slm.training.lora import add_adapters, fingerprint
from slm.training.settings import TrainSettings
from slm.training.warm_start import warm_start
from slm.vocabulary import Vocabulary
from tokenizer.errors import InputError


def starting_model(
    config: ModelConfig,
    vocabulary: Vocabulary,
    settings: TrainSettings,
    init_from: str | None,
    related_codec: bool = False,
    resume: bool = False,
    is_reference: bool = False,
) -> tuple[LanguageModel, str | None]:
    """A model on the CPU, and the sha256 of its weights if they are needed again on resuming.

    Args:
        config: the shape.
        vocabulary: the model's.
        settings: the run's seed and adapters.
        init_from, related_codec: see `slm.training.warm_start`; None: random weights.
        resume: whether a checkpoint will replace the weights.
        is_reference: whether they are needed nevertheless, as frozen ones below adapters are.

    Raises:
        InputError: the initial model does not fit, or there is none to adapt.
    """
    if settings.lora and init_from is None:
        raise InputError(f"train.lora is {settings.lora}: adapters need a model to adapt; name it with --init-from")
    torch.manual_seed(settings.seed)
    model = LanguageModel(config, vocabulary.size, vocabulary.pieces)
    needed = bool(settings.lora) or is_reference
    if init_from is not None and (needed or not resume):
        is_whole = warm_start(model, vocabulary, init_from, settings.seed, related_codec)
        if settings.lora and not is_whole:
            raise InputError(
                f"--lora {settings.lora}: {init_from} has no rows for some ids of this run, and what is frozen must "
                "not be random; start from a speech model of the same codec and text model, or give --lora 0"
            )
    start = fingerprint(model) if needed else None
    if settings.lora:
        add_adapters(model, settings.lora, settings.lora_layers, settings.lora_scale, settings.seed)
    return model, start
