"""How often rounding flips a code bit, when the same audio is encoded alone, in a batch, in chunks, or on ONNX Runtime.

    python benchmarks/flips.py --manifest TEST.jsonl.gz [--codec small] [--clips 32]

Prints the flipped bits of all bits and the largest |latent| at a flip: rounding can only flip what is next to zero, and
8 bits round further than float32.
"""

from __future__ import annotations

import argparse
import itertools

import torch

from pipelines.evaluation.clips import held_out_clips
from pipelines.evaluation.consistency import compare, encode_alone, encode_together
from tokenizer import Codec
from tokenizer.commands.roundtrip import stream


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--codec", default="small", help="shipped name, directory or Hub id")
    parser.add_argument("--manifest", required=True, help="Lhotse manifest or folder of speech")
    parser.add_argument("--clips", type=int, default=32, help="first N clips, encoded as one batch")
    args = parser.parse_args()
    torch.set_num_threads(1)
    codec = Codec.from_pretrained(args.codec)
    waves = [clip.wave for clip in itertools.islice(held_out_clips(args.manifest, codec.sample_rate_in), args.clips)]
    alone = encode_alone(codec, waves)
    onnx = Codec.from_pretrained(args.codec, engine="onnx")
    int8 = Codec.from_pretrained(args.codec, engine="onnx", precision="int8")
    others = {
        "batch": encode_together(codec, waves),
        "streaming": [stream(codec, torch.from_numpy(wave)[None])[0][0].numpy() for wave in waves],
        "ONNX Runtime": encode_alone(onnx, waves),
        "ONNX Runtime in 8 bits": encode_alone(int8, waves),
    }
    for name, tokens in others.items():
        flips = compare(codec, waves, alone, tokens)
        print(
            f"{name} against solo: {flips.flipped} of {flips.bits} bits flipped ({flips.rate:.1e}); "
            f"largest |latent| there {flips.margin or 0:.1e}"
        )


if __name__ == "__main__":
    main()
