"""Compare this codec with the published implementation's outputs, stage by stage, of whole utterances and streams.

    python benchmarks/parity.py DIR

DIR holds one folder a case, with config.json, model.safetensors and expected.safetensors.

Prints the worst error of each stage relative to the largest expected value, and the tokens that differ: in all, and
where every |latent| of the frame is above 1e-5 (there a float32 sign is no matter of rounding, so it must be 0).
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from tokenizer import Codec

MARGIN = 1e-5  # a latent nearer to zero than this may round to either sign in float32


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest absolute difference over the largest absolute expected value."""
    return float((got - expected).abs().max() / expected.abs().max())


def stream(codec: Codec, wave: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Encode `wave` [B, S] and decode `tokens` [B, T], one chunk at a time."""
    state = codec.init_state(len(wave))
    encoded, decoded = [], []
    for chunk, part in zip(wave.split(codec.chunk_samples, 1), tokens.split(codec.tokens_per_chunk, 1), strict=True):
        out, state = codec.encode_step(chunk, state)
        encoded.append(out)
        audio, state = codec.decode_step(part, state)
        decoded.append(audio)
    return torch.cat(encoded, 1), torch.cat(decoded, 1)


def compare(case: Path) -> dict[str, float]:
    """Errors of one case by stage name; each stage gets the expected output of the stage before it."""
    codec = Codec.from_pretrained(case)
    expected = load_file(case / "expected.safetensors")
    firm = expected["lats"].abs().amin(-1) > MARGIN
    tokens = codec.encode(expected["sig"])
    errors: dict[str, float] = {
        "feats": relative_error(codec.features(expected["sig"]), expected["feats"]),
        "lats": relative_error(codec.latents(expected["feats"]), expected["lats"]),
        "codes": relative_error(codec.codes(expected["toks"]), expected["codes"]),
        "qfeats": relative_error(codec.dequantize(expected["toks"]), expected["qfeats"]),
        "rec_sig": relative_error(codec.decode(expected["toks"]), expected["rec_sig"]),
        "toks": int((tokens != expected["toks"]).sum()),
        "firm toks": int((tokens != expected["toks"])[firm].sum()),
        "of": tokens.numel(),
    }
    if codec.causal:
        streamed, streamed_wave = stream(codec, expected["sig"], expected["toks"])
        errors["stream_rec_sig"] = relative_error(streamed_wave, expected["stream_rec_sig"])
        errors["stream_toks"] = int((streamed != expected["stream_toks"]).sum())
        errors["firm stream_toks"] = int((streamed != expected["stream_toks"])[firm].sum())
    return errors


def main() -> int:
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir():
        print(__doc__, file=sys.stderr)
        return 2
    for case in sorted(path.parent for path in Path(sys.argv[1]).glob("*/expected.safetensors")):
        print(
            case.name,
            " ".join(f"{k}={v:.1e}" if isinstance(v, float) else f"{k}={v}" for k, v in compare(case).items()),
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
