"""All figures of a demo run, for `demo.json`, the page and the terminal. All are measured."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from slm.generation.continuation import Timing
from slm.generation.sampling import Sampling


@dataclass(frozen=True)
class CodecFigures:
    """Of the clips shown. `*_times_real_time` are seconds of audio per second of computing on `cpu_threads` threads."""

    name: str
    fingerprint: str
    parameters: int
    token_rate: float  # tokens per second
    bits_per_token: int
    bitrate: float  # bits per second
    latency_ms: float
    encode_times_real_time: float
    decode_times_real_time: float
    cpu_threads: int
    pesq_wb: float | None  # means over the clips shown; None where the `metrics` extra is not installed
    stoi: float | None


@dataclass(frozen=True)
class DatasetFigures:
    """The tokenized dataset. `bytes_per_hour` is of shards and indexes, `packed_bytes_per_hour` of the tokens' bits."""

    source: str
    bundled: bool  # the project's own synthetic speech
    cuts: int
    heldout_cuts: int
    quarantined: int
    hours: float
    tokens: int
    codes_used: int  # of codebook_size
    codebook_size: int
    shards: int
    seconds: float  # to tokenize, from loading the codec to the finished dataset
    times_real_time: float
    verify_seconds: float
    bytes_per_hour: float
    packed_bytes_per_hour: float


@dataclass(frozen=True)
class ModelFigures:
    """A language model and its loss on the held-out cuts, packed into rows as in training."""

    name: str
    parameters: int
    heldout_bits_per_token: float
    heldout_bits_per_second: float  # of speech


@dataclass(frozen=True)
class TrainingFigures:
    """The training. Curves are (step, bits per token)."""

    steps: int
    seconds: float
    tokens_per_second: float
    epochs: float
    train_curve: list[tuple[int, float]]
    heldout_curve: list[tuple[int, float]]
    best_step: int  # with the lowest held-out loss: this checkpoint is used
    unigram_bits_per_token: float  # held-out; training frequencies with add-one smoothing
    uniform_bits_per_token: float


@dataclass(frozen=True)
class ContinuationFigures:
    """One continuation: the model, the file in the demo's folder, timing and sampling."""

    model: str
    file: str
    timing: Timing
    sampling: Sampling


@dataclass(frozen=True)
class DemoFigures:
    """The whole run. `seconds` is its wall time."""

    codec: CodecFigures
    dataset: DatasetFigures
    training: TrainingFigures
    fresh: ModelFigures
    shipped: ModelFigures
    prompt: str  # id of the prompt's cut
    continuations: list[ContinuationFigures]
    seconds: float
    cpu_cores: int
    version: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
