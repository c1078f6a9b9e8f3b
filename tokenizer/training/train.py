"""All stages of a codec's training, one after the other; each goes on where it was stopped.

OUT/corpus/         the decoded speech (see `tokenizer.training.corpus`)
OUT/<stage>/        one folder a stage (see `tokenizer.training.loop`)
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from tokenizer import checkpoint
from tokenizer.config import ENCODER_SAMPLE_RATE, CodecConfig
from tokenizer.errors import InputError
from tokenizer.model import CodecModel
from tokenizer.network.comb import CombHead
from tokenizer.network.focal import Refiner
from tokenizer.network.fourier import FourierHead
from tokenizer.runs.ranks import Ranks
from tokenizer.runs.settings import differences
from tokenizer.training.augment import NO_AUGMENTATION, Augmentation
from tokenizer.training.batches import Batches, Crops, Rates, Utterances
from tokenizer.training.config import StageConfig, TrainingConfig
from tokenizer.training.corpus import Corpus
from tokenizer.training.loop import run_stage
from tokenizer.training.losses.content import LOSSES as HEARD
from tokenizer.training.losses.content import Teacher
from tokenizer.training.losses.pitch import LOSSES as VOICE
from tokenizer.training.stages import STAGES, is_frozen
from tokenizer.training.teachers import load_full_context, load_teacher, new_teacher

TAUGHT = {"features", *HEARD}  # losses of `end_to_end` that need a teacher
VALIDATION_SEED = 1  # the held-out batches are the same in every run


def train(
    config: TrainingConfig,
    training: Corpus,
    held_out: Corpus | None,
    out: Path,
    stage: str | None = None,
    initial: CodecModel | None = None,
    device: str = "cpu",
    workers: int = 0,
    ranks: Ranks = Ranks(),  # noqa: B008
) -> tuple[CodecModel, str | None]:
    """Train a codec, or go on training it, in the folder `out`.

    Args:
        config: model, teacher and stages.
        training, held_out: speech at the codec's output rate.
        out: the run's folder.
        stage: only this stage; it starts from the stage before it in the configuration. None: all, in their order.
        initial: the codec that the first stage starts from; None: random weights.
        device: a torch device.
        workers: processes that prepare batches ahead.
        ranks: this process among those of `torchrun`.

    Returns:
        The codec, and the name of the signal that stopped the run before its last step, or None.

    Raises:
        InputError: settings that do not fit the model, the teacher, the stage before, or a run that `out` holds.
    """
    check_trainable(config)
    names = list(config.stages)
    if stage is not None and stage not in names:
        raise InputError(f"--stage {stage}: the configuration has no such stage; it has {', '.join(names)}")
    chosen = names if stage is None else [stage]
    codec = _first_codec(config, names[: names.index(chosen[0])], out, initial)
    batches = {}
    for name in chosen:  # all of them before the first stage begins, since their settings may be refused
        settings = config.stages[name]
        if held_out is None and settings.schedule == "plateau":
            raise InputError(
                f"stages.{name}: schedule 'plateau' lowers the rate by the validation loss; give --held-out, or "
                "another schedule"
            )
        heard = _batches(name, training, codec, settings, settings.seed, settings.augment)
        judged = None if held_out is None else _batches(name, held_out, codec, settings, VALIDATION_SEED)
        batches[name] = heard, judged
    for name in chosen:
        teacher = _teacher(config, name, out)
        stopped = run_stage(
            name, config.stages[name], codec, teacher, *batches[name], out / name, device, workers, ranks
        )
        if stopped:
            return codec.eval(), stopped
    return codec.eval(), None


def has_begun(config: TrainingConfig, out: Path, stage: str | None) -> bool:
    """Whether `out` holds a run of a stage that is to be trained: of `stage`, or of any where that is None."""
    return any((out / name / "run.json").exists() for name in config.stages if stage in (None, name))


def check_trainable(config: TrainingConfig) -> None:
    """Raises InputError: a model that does not stream, or stages without the teacher that they need or that freeze what
    is not there or all there is."""
    if not config.model.causal:
        raise InputError(
            'model: "causal" is false; this training makes streaming codecs, so expects true in each stage'
        )
    with torch.device("meta"):  # names alone
        parameters = [name for name, _ in CodecModel(config.model).named_parameters()]
    for name, settings in config.stages.items():
        _check_freeze(name, settings.freeze, parameters)
        if config.teacher is None and (STAGES[name].taught or (name == "end_to_end" and TAUGHT & set(settings.losses))):
            raise InputError(f"stages.{name}: learns from a teacher; add the section 'teacher' to the configuration")
        head = getattr(config.model.decoder, "head", None)
        if head != "comb" and (asked := [loss for loss in VOICE if loss in settings.losses]):
            raise InputError(
                f'stages.{name}.losses: {", ".join(asked)}: of a codec whose decoder_config.head is "comb", not '
                f'"{head}"; give them the weight 0'
            )
    if config.teacher and config.teacher.source and "teacher" in config.stages:
        raise InputError(f"teacher.source is {config.teacher.source!r}, so a stage 'teacher' has nothing to train")


def _check_freeze(stage: str, freeze: tuple[str, ...], parameters: list[str]) -> None:
    for part in freeze:
        if not any(f"{name}.".startswith(f"{part}.") for name in parameters):
            raise InputError(
                f"stages.{stage}.freeze: the model has no part {part!r}; expected such as 'encoder' or "
                "'decompressor.refiner'"
            )
    of_stage = ["teacher.", *(f"codec.{name}" for name in parameters)]
    if not any(STAGES[stage].trains(name) and not is_frozen(name, freeze) for name in of_stage):
        raise InputError(f"stages.{stage}.freeze: {', '.join(freeze)} is all that the stage trains; freeze less")


def _first_codec(config: TrainingConfig, before: list[str], out: Path, initial: CodecModel | None) -> CodecModel:
    """What the first stage starts from: the stage before, or `initial`, or random weights."""
    if before:
        folder = out / before[-1] / "codec"
        if initial is None and not (folder / "config.json").is_file():
            raise InputError(f"{folder}: not there; run the stage {before[-1]!r} first, or give --init-from")
        initial = initial or CodecModel.with_weights(*checkpoint.load(str(folder)), str(folder))
    torch.manual_seed(next(iter(config.stages.values())).seed)
    codec = CodecModel(config.model)
    if initial is not None:
        gets_voice = isinstance(codec.decoder.head, CombHead) and type(initial.decoder.head) is FourierHead
        _check_same(config.model, initial, {"decoder_config.head"} if gets_voice else set())
        new = {name: t for name, t in codec.state_dict().items() if name.startswith("decoder.head.source.")}
        codec.load_state_dict((new if gets_voice else {}) | initial.state_dict())
    elif isinstance(codec.decompressor.refiner, Refiner):  # begins as what the codec would be without it
        nn.init.zeros_(codec.decompressor.refiner.out_proj.weight)
        nn.init.zeros_(codec.decompressor.refiner.out_proj.bias)
    return codec.train()


def _check_same(model: CodecConfig, initial: CodecModel, may_differ: set[str]) -> None:
    names = [difference.name for difference in differences(initial.config.to_dict(), model.to_dict())]
    if differing := [name for name in names if name not in may_differ]:
        raise InputError(
            f"--init-from {initial.name}: is not of the configuration's 'model' (they differ in "
            f"{', '.join(differing)}); expected the same"
        )


def _teacher(config: TrainingConfig, name: str, out: Path) -> Teacher | None:
    """The teacher that a stage needs: a new one to train, or one to learn from."""
    if config.teacher is None:
        return None
    if name == "teacher":
        torch.manual_seed(config.stages[name].seed)
        return new_teacher(config.model.encoder).train()
    asked = TAUGHT & set(config.stages[name].losses)
    if not STAGES[name].taught and asked and "features" not in asked:
        return load_full_context(config.teacher, out / "teacher" / "teacher")
    if not STAGES[name].taught and not asked:
        return None
    return load_teacher(config.teacher, out / "teacher" / "teacher", config.model.encoder)


def _batches(
    name: str,
    corpus: Corpus,
    codec: CodecModel,
    settings: StageConfig,
    seed: int,
    augmentation: Augmentation = NO_AUGMENTATION,
) -> Batches:
    rates = Rates(ENCODER_SAMPLE_RATE, codec.sample_rate_out, codec.chunk_samples)
    if settings.crop_seconds is None:
        if augmentation != NO_AUGMENTATION:
            raise InputError(f"stages.{name}.augment: is for random crops; give crop_seconds, or leave it out")
        longest = round(settings.longest_seconds * ENCODER_SAMPLE_RATE)
        if longest < codec.chunk_samples:
            raise InputError(
                f"stages.{name}: longest_seconds {settings.longest_seconds} is less than a chunk of "
                f"{codec.chunk_samples} samples ({codec.latency_ms:g} ms)"
            )
        return Utterances(corpus, rates, longest, settings.batch_size, seed)
    samples = round(settings.crop_seconds * ENCODER_SAMPLE_RATE)
    if not samples or samples % codec.chunk_samples:
        raise InputError(
            f"stages.{name}: crop_seconds {settings.crop_seconds} is {samples} samples; expected a whole number of "
            f"chunks of {codec.chunk_samples} samples ({codec.latency_ms:g} ms)"
        )
    return Crops(corpus, rates, samples, settings.batch_size, seed, augmentation)
