"""The stages of a codec's training: what each trains, what it is taught, and by which losses.

    teacher      (ours)  a small full-context encoder that reconstructs and recognises: stands in for WavLM
    decoder      teacher's features -> wave                        adversarial, feature matching, log-mel
    posemb       the causal positional convolution -> the teacher's
    encoder      the causal encoder -> the teacher's layers
    quantizer    compressor and decompressor -> their own input    + entropy
    joint        all but the decoder -> the teacher's features     + entropy
    end_to_end   (ours)  everything -> wave, with or without a teacher
    tune         (ours)  the decoder alone, on what it will hear: dequantized causal features

"decoder" to "joint" are causal distillation, arXiv 2509.16195, section 3; weights of the losses are the published ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokenizer.model import CodecModel
from tokenizer.network.comb import CombHead
from tokenizer.network.encoder import Encoder
from tokenizer.network.padding import present
from tokenizer.training import passes
from tokenizer.training.batches import Batch
from tokenizer.training.config import ADVERSARIAL, StageConfig
from tokenizer.training.losses.content import ContentLosses, Teacher
from tokenizer.training.losses.pitch import LOSSES as VOICE
from tokenizer.training.losses.pitch import PitchLosses
from tokenizer.training.losses.recognition import Recogniser
from tokenizer.training.losses.wave import WaveLosses, entropy_term

SOUND = ("mel", "multi_mel", "convergence", "intelligibility", "loudness", *VOICE)  # losses of a wave
LAYER_WEIGHTS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # of the layers that are distilled, the last of these for the last layer


class Outcome(NamedTuple):
    """losses: scalars by name; wave and target: [B, S'], of stages that make sound."""

    losses: dict[str, Tensor]
    wave: Tensor | None = None
    target: Tensor | None = None


class Stage(nn.Module):
    """One stage over a codec and its teacher.

    Args:
        codec: the codec in training; parameters that the stage does not train are frozen.
        teacher: a full-context encoder, or None.
        config: the stage's settings; losses without a weight in it are not computed.

    `forward(batch)` gives the losses, unweighted.
    """

    losses: ClassVar[dict[str, float]]  # every loss that the stage has, with its weight when none is given
    taught: ClassVar[bool] = True  # whether the stage cannot do without a teacher

    def __init__(self, codec: CodecModel, teacher: Teacher | None, config: StageConfig) -> None:
        super().__init__()
        self.codec, self.teacher, self.weights = codec, teacher, config.losses
        self.temperature, self.binarise = config.entropy_temperature, config.binarise
        self.wave_losses = WaveLosses(codec.sample_rate_out, set(config.losses))
        self.pitch_losses: PitchLosses | None = None
        if isinstance(codec.decoder.head, CombHead):
            self.pitch_losses = PitchLosses(set(config.losses), codec.decoder.head.hop)
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(self.trains(name) and not is_frozen(name, config.freeze))

    @staticmethod
    def trains(name: str) -> bool:
        """Whether the stage trains a parameter of itself, such as "codec.decoder.head.proj.weight"."""
        raise NotImplementedError

    def train(self, mode: bool = True) -> Stage:
        """As of any module, but parts that the stage does not train stay as in use: a teacher drops nothing out."""
        super().train(mode)
        for part in (*self.codec.children(), *([self.teacher] if self.teacher is not None else [])):
            part.train(mode and any(p.requires_grad for p in part.parameters()))
        return self

    def trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and parameters that the stage trains."""
        return ((name, p) for name, p in self.named_parameters() if p.requires_grad)

    def prepare(self) -> None:
        """Changes to the weights before the stage's first step."""

    def _taught(self, batch: Batch) -> tuple[list[Tensor], Tensor]:
        """The teacher's layers, [B, T, D] each, and frames of each row that count, int64 [B]."""
        assert self.teacher is not None
        with torch.no_grad():
            return self.teacher.forward_layers(batch.wave, batch.lengths)

    def _frames(self, batch: Batch) -> Tensor:
        """Causal frames of each row that count, int64 [B]."""
        hop = self.codec.config.encoder.hop_samples
        return (batch.lengths + hop - 1) // hop

    def _sound(self, features: Tensor, batch: Batch) -> Outcome:
        """Features to a wave, the target cut to its length, and the losses between them."""
        wave, voice = passes.waveform(self.codec, features)
        target = batch.target[:, : wave.shape[1]]
        losses = self.wave_losses(wave, target)
        if self.pitch_losses is not None and self.pitch_losses.names and voice is not None:
            losses |= self.pitch_losses(voice, wave, target)
        return Outcome(losses, wave, target)

    def _dequantized(self, latents: Tensor) -> Tensor:
        return passes.dequantized(self.codec, latents, self.binarise)

    def _entropy(self, latents: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Mean entropy of an assignment less the entropy of the mean assignment, over real frames."""
        kept = present(self._frames(batch), latents.shape[1])
        sample, code = entropy_term(latents.flatten(0, 1), self.temperature, kept.flatten())
        return {"entropy": sample - code}


class DecoderStage(Stage):
    """Stage 1: the decoder on the teacher's features."""

    losses = ADVERSARIAL | dict.fromkeys(SOUND, 0.0) | {"mel": 45.0}

    @staticmethod
    def trains(name: str) -> bool:
        return name.startswith("codec.decoder.")

    def forward(self, batch: Batch) -> Outcome:
        layers, _ = self._taught(batch)
        return self._sound(layers[-1], batch)


class PositionStage(Stage):
    """Stage 2: the causal positional convolution, on what the teacher's own gets; the student starts as the teacher."""

    losses: ClassVar[dict[str, float]] = {"position": 1.0}

    def prepare(self) -> None:
        assert isinstance(self.teacher, Encoder)  # `load_teacher` refuses another
        self.codec.encoder.load_state_dict(self.teacher.state_dict())

    @staticmethod
    def trains(name: str) -> bool:
        return name.startswith("codec.encoder.encoder.positional_embedding.")

    def forward(self, batch: Batch) -> Outcome:
        assert isinstance(self.teacher, Encoder)
        with torch.no_grad():
            projected, frames = self.teacher.projected(batch.wave, batch.lengths)
            wanted = F.gelu(self.teacher.encoder.positional_embedding.conv(projected, frames))
        conv = self.codec.encoder.encoder.positional_embedding.conv
        got, _ = conv.step(projected, conv.init_state(len(projected)))
        return Outcome({"position": squared_error(F.gelu(got), wanted, frames)})


class EncoderStage(Stage):
    """Stage 3: the causal encoder, layer by layer; positional and relative embeddings stay."""

    losses: ClassVar[dict[str, float]] = {"layers": 1.0}

    @staticmethod
    def trains(name: str) -> bool:
        frozen = ("codec.encoder.encoder.positional_embedding.", "codec.encoder.encoder.relative_embedding.")
        return name.startswith("codec.encoder.") and not name.startswith(frozen)

    def forward(self, batch: Batch) -> Outcome:
        wanted, frames = self._taught(batch)
        got = passes.feature_layers(self.codec, batch.wave)
        weights = LAYER_WEIGHTS[-len(got) :]
        errors = [w * squared_error(g, t, frames) for w, g, t in zip(weights, got[-6:], wanted[-6:], strict=True)]
        return Outcome({"layers": torch.stack(errors).mean()})


class QuantizerStage(Stage):
    """Stage 4: compressor and decompressor, without the refiner, on the frozen causal encoder's features."""

    losses: ClassVar[dict[str, float]] = {"features": 1.0, "entropy": 0.1}
    taught = False

    @staticmethod
    def trains(name: str) -> bool:
        return name.startswith(("codec.compressor.", "codec.decompressor.")) and ".refiner." not in name

    def forward(self, batch: Batch) -> Outcome:
        with torch.no_grad():
            features = passes.feature_layers(self.codec, batch.wave)[-1]
        latents = passes.latents(self.codec, features)
        losses = self._entropy(latents, batch)
        losses["features"] = squared_error(self._dequantized(latents), features, self._frames(batch))
        return Outcome(losses)


class JointStage(Stage):
    """Stage 5: encoder, compressor, decompressor and refiner towards the full-context teacher's features."""

    losses: ClassVar[dict[str, float]] = {"features": 1.0, "entropy": 0.1}

    @staticmethod
    def trains(name: str) -> bool:
        return name.startswith(("codec.encoder.", "codec.compressor.", "codec.decompressor."))

    def forward(self, batch: Batch) -> Outcome:
        wanted, frames = self._taught(batch)
        latents = passes.latents(self.codec, passes.feature_layers(self.codec, batch.wave)[-1])
        losses = self._entropy(latents, batch)
        losses["features"] = squared_error(self._dequantized(latents), wanted[-1], frames)
        return Outcome(losses)


RECONSTRUCTION = {  # towards the wave without discriminators
    "mel": 0.0,
    "adversarial": 0.0,
    "feature_matching": 0.0,
    "multi_mel": 1.0,
    "convergence": 1.0,
    "intelligibility": 1.0,
    "loudness": 0.5,
    "pitch": 0.0,
    "voicing": 0.0,
    "periodicity": 0.0,
}


class EndToEndStage(Stage):
    """Everything at once towards the wave; with a weight on "features", towards the teacher's features too.

    "content" and "distilled" learn what is said from any full-context encoder: `tokenizer.training.losses.content`;
    "recognition" learns it from the texts: letters are to be read off the dequantized features.
    """

    losses = RECONSTRUCTION | {
        "entropy": 0.1,
        "features": 0.0,
        "content": 0.0,
        "distilled": 0.0,
        "recognition": 0.0,
    }
    taught = False

    def __init__(self, codec: CodecModel, teacher: Teacher | None, config: StageConfig) -> None:
        super().__init__(codec, teacher, config)
        dims = codec.config.decoder.input_dim, 0 if teacher is None else teacher.dim
        self.content = ContentLosses(set(config.losses), codec.sample_rate_out, *dims, config.content_noise_db)
        self.recogniser = Recogniser(dims[0]) if "recognition" in config.losses else None

    @staticmethod
    def trains(name: str) -> bool:
        return name.startswith(("codec.", "content.", "recogniser."))

    def forward(self, batch: Batch) -> Outcome:
        latents = passes.latents(self.codec, passes.feature_layers(self.codec, batch.wave)[-1])
        features = self._dequantized(latents)
        sound = self._sound(features, batch)
        losses = self._entropy(latents, batch)
        if "features" in self.weights:
            wanted, frames = self._taught(batch)
            losses["features"] = squared_error(features, wanted[-1], frames)
        if self.recogniser is not None:
            losses["recognition"] = self.recogniser(features, self._frames(batch), batch.texts)
        if self.content.names:
            assert self.teacher is not None and sound.wave is not None
            losses |= self.content(self.teacher, features, sound.wave, batch.wave, batch.lengths)
        return sound._replace(losses=losses | sound.losses)


class TuneStage(Stage):
    """The decoder alone, on the dequantized features of the causal codec, as it will be used."""

    losses = DecoderStage.losses
    taught = False

    @staticmethod
    def trains(name: str) -> bool:
        return name.startswith("codec.decoder.")

    def forward(self, batch: Batch) -> Outcome:
        with torch.no_grad():
            latents = passes.latents(self.codec, passes.feature_layers(self.codec, batch.wave)[-1])
            features = self._dequantized(latents)
        return self._sound(features, batch)


class TeacherStage(Stage):
    """A full-context encoder of the codec's size: its features carry the sound (decoder) and the text (CTC)."""

    losses = RECONSTRUCTION | {"entropy": 0.0, "features": 0.0, "recognition": 1.0}

    def __init__(self, codec: CodecModel, teacher: Teacher | None, config: StageConfig) -> None:
        super().__init__(codec, teacher, config)
        self.recogniser = Recogniser(codec.config.encoder.dim)

    @staticmethod
    def trains(name: str) -> bool:
        return name.startswith(("teacher.", "codec.decoder.", "recogniser."))

    def forward(self, batch: Batch) -> Outcome:
        assert self.teacher is not None
        layers, frames = self.teacher.forward_layers(batch.wave, batch.lengths)
        sound = self._sound(layers[-1], batch)
        if "recognition" in self.weights:
            sound.losses["recognition"] = self.recogniser(layers[-1], frames, batch.texts)
        return sound


STAGES: dict[str, type[Stage]] = {
    "teacher": TeacherStage,
    "decoder": DecoderStage,
    "posemb": PositionStage,
    "encoder": EncoderStage,
    "quantizer": QuantizerStage,
    "joint": JointStage,
    "end_to_end": EndToEndStage,
    "tune": TuneStage,
}


def is_frozen(name: str, freeze: tuple[str, ...]) -> bool:
    """Whether a parameter of a stage ("codec.decoder.head.proj.weight") is in a part of the codec that stays."""
    return f"{name}.".startswith(tuple(f"codec.{part}." for part in freeze))


def squared_error(got: Tensor, wanted: Tensor, frames: Tensor) -> Tensor:
    """Mean squared error over the frames that count, of [B, T, D] and [B, T', D]; the longer is cut (T' may be T - 1:
    the teacher's last frame needs 80 samples more than the causal one)."""
    count = min(got.shape[1], wanted.shape[1])
    heard = present(frames.clamp(max=count), count)
    error = (got[:, :count].float() - wanted[:, :count].float()).square().mean(-1)
    return (error * heard).sum() / heard.sum().clamp(min=1)
