"""How often rounding flips a code bit, when the same audio is encoded alone, in a batch, in chunks, or on ONNX Runtime.

    python benchmarks/flips.py --manifest TEST.jsonl.gz [--codec small] [--clips 32]

Prints the flipped bits of all bits and the largest |latent| at a flip: rounding can only flip what is next to zero, and
8 bits round further than float32.
"""

from __future__ import annotations

import argparse
import itertools

import numpy as np
import torch

from pipelines.commands.eval_codec import held_out_clips
from tokenizer import Codec
from tokenizer.commands.roundtrip import stream


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--codec", default="small", help="shipped name, directory or Hub id")
    parser.add_argument("--manifest", required=True, help="Lhotse manifest or folder of speech")
    parser.add_argument("--clips", type=int, default=32, help="first N clips, encoded as one batch")
    parser.set_defaults(min_seconds=3.0, per_source=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    codec = Codec.from_pretrained(args.codec)
    waves = [wave for _, wave in itertools.islice(held_out_clips(args, codec.sample_rate_in), args.clips)]
    lengths = torch.tensor([len(wave) for wave in waves])
    batch = torch.from_numpy(np.stack([np.pad(wave, (0, int(lengths.max()) - len(wave))) for wave in waves]))
    together = codec.encode(batch, lengths)
    others = {
        "streaming": lambda wave: stream(codec, wave)[0],
        "ONNX Runtime": Codec.from_pretrained(args.codec, engine="onnx").encode,
        "ONNX Runtime in 8 bits": Codec.from_pretrained(args.codec, engine="onnx", precision="int8").encode,
    }
    for name in ("batch", *others):
        flipped, bits, margin = 0, 0, 0.0
        for row, wave in enumerate(waves):
            samples = torch.from_numpy(wave)[None]
            solo = codec.encode(samples)
            other = together[row : row + 1, : solo.shape[1]] if name == "batch" else others[name](samples)
            differs = codec.codes(solo) != codec.codes(other)
            latents = codec.latents(codec.features(samples)).abs()
            flipped, bits = flipped + int(differs.sum()), bits + differs.numel()
            margin = max([margin, *latents[:, : solo.shape[1]][differs].tolist()])
        share = f"{flipped} of {bits} bits flipped ({flipped / bits:.1e})"
        print(f"{name} against solo: {share}; largest |latent| there {margin:.1e}")


if __name__ == "__main__":
    main()
