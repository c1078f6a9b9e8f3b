"""The codec's training loop: waveform in, waveform out, spectral losses and the quantizer's entropy term.

A run directory holds the settings in run.json, log.jsonl, last.pt (everything to resume, exactly) and
codec/ (the latest weights, loadable with `Codec.from_pretrained`).
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from tokenizer.atomic import write_atomically
from tokenizer.codec import Codec
from tokenizer.config import CodecConfig
from tokenizer.crops import Crops
from tokenizer.decoder import Decoder
from tokenizer.errors import InputError
from tokenizer.losses import SpectralLoss, entropy_term
from tokenizer.parsed import dataclass_from_dict
from tokenizer.schedule import warmup_cosine
from tokenizer.stop_signals import stop_signals

VALIDATION_SEED = 1  # the held-out crops are the same in every run


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a run; durations in seconds."""

    steps: int = 10000
    batch_size: int = 16
    crop_seconds: float = 2.0
    learning_rate: float = 1e-3
    final_learning_rate: float = 1e-5
    warmup_steps: int = 200
    beta1: float = 0.9
    beta2: float = 0.98
    weight_decay: float = 0.01
    clip_norm: float = 5.0
    mel_weight: float = 1.0
    convergence_weight: float = 1.0
    entropy_weight: float = 0.1
    entropy_temperature: float = 30.0
    bfloat16: bool = True
    validate_every: int = 500
    save_every: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        if self.warmup_steps >= self.steps:
            raise InputError(f"train: warmup_steps {self.warmup_steps} must be less than steps {self.steps}")
        if min(self.batch_size, self.crop_seconds, self.save_every, self.validate_every) <= 0:
            raise InputError("train: batch_size, crop_seconds, save_every and validate_every must be positive")
        if min(self.learning_rate, self.final_learning_rate, self.clip_norm, self.seed + 1) <= 0:
            raise InputError("train: learning rates and clip_norm must be positive, seed at least 0")
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1):
            raise InputError(f"train: beta1 {self.beta1} and beta2 {self.beta2} must be at least 0 and less than 1")

    def rate_at(self, step: int) -> float:
        """The learning rate of a step."""
        return warmup_cosine(step, self.steps, self.warmup_steps, self.learning_rate, self.final_learning_rate)


def read_config(path: Path) -> tuple[CodecConfig, TrainConfig]:
    """A codec's YAML: `model` in the published layout, `train` as `TrainConfig`. Raises InputError."""
    import yaml

    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a YAML file ({' '.join(str(error).split())})") from None
    if not isinstance(raw, dict) or set(raw) != {"model", "train"}:
        raise InputError(f"{path}: expected exactly the sections 'model' and 'train'")
    model = CodecConfig.from_dict(raw["model"], f"{path}: model")
    return model, dataclass_from_dict(TrainConfig, raw["train"], f"{path}: train")


def reconstruct(codec: Codec, wave: Tensor) -> tuple[Tensor, Tensor]:
    """One differentiable pass: wave [B, S] of whole chunks -> (wave [B, S'], latents [B, T, bits])."""
    batch = wave.shape[0]
    features, _ = codec.encoder.step(wave, codec.encoder.init_state(batch))
    raw, _ = codec.compressor.step(features, codec.compressor.init_state(batch))
    latents = codec.quantizer.normalize(raw.float())
    codes = codec.quantizer.straight_through(latents)
    present = torch.ones(codes.shape[:2], dtype=torch.bool, device=wave.device)
    restored, _ = codec.decompressor.step(codes, present, codec.decompressor.init_state(batch))
    assert isinstance(codec.decoder, Decoder)  # `train` refuses codecs that do not stream
    out, _ = codec.decoder.step(restored, codec.decoder.init_state(batch))
    return out.float(), latents


def losses(codec: Codec, spectral: SpectralLoss, wave: Tensor, config: TrainConfig) -> tuple[Tensor, dict[str, float]]:
    """The loss of a batch [B, S], and its parts for the log (entropies in bits)."""
    with torch.autocast(wave.device.type, torch.bfloat16, enabled=config.bfloat16):
        out, latents = reconstruct(codec, wave)
    mel, convergence = spectral(out, wave)
    sample_entropy, code_entropy = entropy_term(latents.flatten(0, 1), config.entropy_temperature)
    total = (
        config.mel_weight * mel
        + config.convergence_weight * convergence
        + config.entropy_weight * (sample_entropy - code_entropy)
    )
    parts = {"loss": total, "mel": mel, "convergence": convergence}
    entropies = {"sample_bits": sample_entropy / math.log(2), "code_bits": code_entropy / math.log(2)}
    return total, {name: round(float(value.detach()), 6) for name, value in (parts | entropies).items()}


@torch.no_grad()
def validate(codec: Codec, spectral: SpectralLoss, crops: Crops, config: TrainConfig, batches: int = 8) -> float:
    """Log-mel L1 in float32 on fixed crops of held-out speech."""
    codec.eval()
    config = dataclasses.replace(config, bfloat16=False)
    values = [losses(codec, spectral, crops.batch(i, config.batch_size), config)[1]["mel"] for i in range(batches)]
    codec.train()
    return sum(values) / len(values)


def train(
    model: CodecConfig,
    config: TrainConfig,
    training: Crops,
    held_out: Crops | None,
    out: Path,
    device: str = "cpu",
    initial: Codec | None = None,
) -> tuple[Codec, str | None]:
    """Train, or go on training, in the run directory `out`; a new run starts from `initial`, or from random weights.

    A run that was stopped anywhere goes on from its last checkpoint; on CPU with the same number of threads its
    losses are those of an undisturbed run, to the last bit. SIGTERM and Ctrl-C save first.

    Returns:
        The codec, and the name of the signal that stopped the run before its last step, or None.

    Raises:
        InputError: when `out` holds a run of another configuration, `initial` is of another model than the
            configuration's, the model does not stream, or crops are no whole number of chunks.
    """
    if not model.causal:
        raise InputError(
            'model: "causal" is false; this training makes streaming codecs, so expects true in each stage'
        )
    torch.manual_seed(config.seed)
    codec = Codec(model).to(device).train()
    if initial is not None:
        if initial.config != model:
            ours, theirs = model.to_dict(), initial.config.to_dict()
            differing = [
                f"{section}.{key}"
                for section in ours
                if isinstance(ours[section], dict)
                for key in ours[section]
                if theirs.get(section, {}).get(key) != ours[section][key]
            ]
            raise InputError(
                f"--init {initial.name}: is not of the configuration's 'model' (they differ in "
                f"{', '.join(differing) or 'their stages'}); expected the same"
            )
        codec.load_state_dict(initial.state_dict())
    if codec.sample_rate_out != codec.sample_rate_in:
        raise InputError(
            f"model: hop_length {model.decoder.hop_length} makes {codec.sample_rate_out} Hz of "
            f"{codec.sample_rate_in} Hz; this training compares input and output, so expects the same rate"
        )
    for crops in (training, held_out):
        if crops is not None and crops.crop % codec.chunk_samples:
            raise InputError(
                f"train: crop_seconds {config.crop_seconds} is {crops.crop} samples; expected a whole number of chunks "
                f"of {codec.chunk_samples} samples ({codec.latency_ms:g} ms)"
            )
    decayed = [p for p in codec.parameters() if p.ndim > 1]
    plain = [p for p in codec.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), fused=True)
    settings = {
        "model": model.to_dict(),
        "train": dataclasses.asdict(config),
        "init": {"fingerprint": initial.fingerprint if initial else None},
    }
    step = _resume(out, settings, codec, optimizer)
    spectral = SpectralLoss(codec.sample_rate_out).to(device)
    with (
        stop_signals() as signals,
        open(out / "log.jsonl", "a") as log,
        tqdm(total=config.steps, initial=step, unit="step", disable=None) as bar,
    ):
        while step < config.steps and not signals:
            began = time.perf_counter()
            for group in optimizer.param_groups:
                group["lr"] = config.rate_at(step)
            total, parts = losses(codec, spectral, training.batch(step, config.batch_size).to(device), config)
            optimizer.zero_grad(set_to_none=True)
            total.backward()
            norm = torch.nn.utils.clip_grad_norm_(codec.parameters(), config.clip_norm)
            if not torch.isfinite(norm):
                raise InputError(
                    f"{out}: step {step}: the gradient is not finite (losses {parts}); lower train.learning_rate"
                )
            optimizer.step()
            step += 1
            record: dict[str, Any] = {"step": step, **parts, "norm": round(float(norm), 4)}
            if held_out is not None and (step % config.validate_every == 0 or step == config.steps):
                record["held_out_mel"] = round(validate(codec, spectral, held_out, config), 6)
            record["seconds"] = round(time.perf_counter() - began, 3)
            log.write(json.dumps(record) + "\n")
            log.flush()
            bar.set_postfix(loss=f"{parts['loss']:.3f}", bits=f"{parts['code_bits']:.1f}")
            bar.update()
            if step % config.save_every == 0 and step < config.steps:
                _save(out, step, codec, optimizer)
        _save(out, step, codec, optimizer)
        return codec.eval(), signals[0] if signals and step < config.steps else None


def _save(out: Path, step: int, codec: Codec, optimizer: torch.optim.Optimizer) -> None:
    buffer = io.BytesIO()
    torch.save({"step": step, "codec": codec.state_dict(), "optimizer": optimizer.state_dict()}, buffer)
    write_atomically(out / "last.pt", buffer.getvalue())
    codec.save_pretrained(out / "codec")


def _resume(out: Path, settings: dict[str, dict[str, Any]], codec: Codec, optimizer: torch.optim.Optimizer) -> int:
    """Load the last checkpoint of a run with the same settings; the step to go on from."""
    out.mkdir(parents=True, exist_ok=True)
    settings = json.loads(json.dumps(settings))
    record = out / "run.json"
    if record.exists() and (stored := json.loads(record.read_text())) != settings:
        changed = [
            f"{section}.{key}"
            for section in settings
            for key in settings[section]
            if stored.get(section, {}).get(key) != settings[section][key]
        ]
        raise InputError(
            f"{out}: holds a run with other settings ({', '.join(changed)}); give those again, or use another --out"
        )
    write_atomically(record, json.dumps(settings, indent=2).encode())
    if not (out / "last.pt").exists():
        (out / "log.jsonl").unlink(missing_ok=True)
        return 0
    saved = torch.load(out / "last.pt", map_location="cpu", weights_only=True)
    codec.load_state_dict(saved["codec"])
    optimizer.load_state_dict(saved["optimizer"])
    # Lines past the checkpoint are steps that will be done again.
    log = out / "log.jsonl"
    lines = log.read_text().splitlines() if log.exists() else []
    kept = [line for line in lines if json.loads(line)["step"] <= saved["step"]]
    write_atomically(log, "".join(f"{line}\n" for line in kept).encode())
    return int(saved["step"])
