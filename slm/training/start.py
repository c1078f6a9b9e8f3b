"""The model that a run starts from: random weights or another model's, whole or shard by shard, and its adapters."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from slm.checkpoint import without_weights
from slm.model.transformer import LanguageModel, ModelConfig
from slm.training.lora import add_adapters, fingerprint
from slm.training.settings import TrainSettings
from slm.training.warm_start import warm_start, warm_weights
from slm.vocabulary import Vocabulary
from tokenizer.errors import InputError


@dataclass(frozen=True)
class Start:
    """What decides the first weights of a run.

    Attributes:
        config: the model's shape.
        vocabulary: the model's.
        settings: the run's seed and adapters.
        init_from, related_codec: see `slm.training.warm_start`; None: random weights.
        resume: a checkpoint will replace the weights.
    """

    config: ModelConfig
    vocabulary: Vocabulary
    settings: TrainSettings
    init_from: str | None = None
    related_codec: bool = False
    resume: bool = False

    def whole(self, is_reference: bool = False) -> tuple[LanguageModel, str | None]:
        """A model on the CPU, with adapters if the run has them.

        Args:
            is_reference: the first weights are needed on resuming, too. So are those that adapters are added to.

        Returns:
            The model, and the sha256 of its first weights if they are needed on resuming.

        Raises:
            InputError: the initial model does not fit, or there is none to adapt.
        """
        settings = self.settings
        if settings.lora and self.init_from is None:
            raise InputError(f"train.lora is {settings.lora}: adapters need a model to adapt; name it with --init-from")
        torch.manual_seed(settings.seed)
        model = LanguageModel(self.config, self.vocabulary.size, self.vocabulary.pieces)
        needed = bool(settings.lora) or is_reference
        if self.init_from is not None and (needed or not self.resume):
            is_whole = warm_start(model, self.vocabulary, self.init_from, settings.seed, self.related_codec)
            if settings.lora and not is_whole:
                raise InputError(
                    f"--lora {settings.lora}: {self.init_from} has no rows for some ids of this run, and what is "
                    "frozen must not be random; start from a speech model of the same codec and text model, or give "
                    "--lora 0"
                )
        digest = fingerprint(model) if needed else None
        if settings.lora:
            add_adapters(model, settings.lora, settings.lora_layers, settings.lora_scale, settings.seed)
        return model, digest

    def sharded(self) -> tuple[LanguageModel, Iterable[tuple[str, Tensor]]]:
        """The model of `whole`, without adapters, on the meta device, and its weights one after the other: each
        process keeps its shard of a weight before the next one is made, so none holds the whole model.

        The weights are those of `whole`, also where the shards are on a GPU: random ones are drawn on the CPU in the
        same order. A run that resumes has none, as they come from its checkpoint.

        Raises:
            InputError: the initial model does not fit.
        """
        torch.manual_seed(self.settings.seed)
        model = without_weights(self.config, self.vocabulary, draw=self.init_from is None and not self.resume)
        if self.resume:
            return model, ()
        if self.init_from is not None:
            weights, _ = warm_weights(model, self.vocabulary, self.init_from, self.settings.seed, self.related_codec)
            return model, weights.items()
        generator = torch.Generator()
        generator.set_state(torch.get_rng_state())
        return model, model.initial_weights(generator)
