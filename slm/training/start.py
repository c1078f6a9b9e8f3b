"""The model that a run starts from: random weights or another model's, whole or shard by shard, and its adapters."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from slm.checkpoint import without_weights
from slm.model.transformer import LanguageModel, ModelConfig
from slm.training.lora import add_adapters, fingerprint
from slm.training.settings import TrainSettings
from slm.training.warm_start import warm_start, warm_weights
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


def sharded_start(
    config: ModelConfig,
    vocabulary: Vocabulary,
    settings: TrainSettings,
    init_from: str | None,
    related_codec: bool = False,
    resume: bool = False,
) -> tuple[LanguageModel, Iterable[tuple[str, Tensor]]]:
    """The model of `starting_model`, without adapters, for processes that hold a shard each: on the meta device, and
    its weights one after the other. None of them is in memory whole for longer than it takes to keep a shard of it.

    The weights are the same: random ones are drawn on the CPU, in the same order, also where the shards are on a GPU,
    which would draw other numbers. There are none to resume from a checkpoint. Arguments and errors are those of
    `starting_model`.
    """
    torch.manual_seed(settings.seed)
    model = without_weights(config, vocabulary, draw=init_from is None and not resume)
    if resume:
        return model, ()
    if init_from is not None:
        weights, _ = warm_weights(model, vocabulary, init_from, settings.seed, related_codec)
        return model, weights.items()
    generator = torch.Generator()
    generator.set_state(torch.get_rng_state())
    return model, model.initial_weights(generator)
