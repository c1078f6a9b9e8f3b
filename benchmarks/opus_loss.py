"""What Opus on the wire costs: bit/s of speech, tokens and bits that change in a prompt, PESQ of the server's sound.

    python benchmarks/opus_loss.py [--codec small] [--clips 10]

The bundled speech, each clip encoded and decoded as a client and the server do it (`slm.generation.opus`).
"""

from __future__ import annotations

import argparse

import numpy as np
import soxr
import torch

from slm.generation.opus import DECODED_RATE, SKIP, OpusDecoder, OpusEncoder
from slm.serve.assets import SPEECH
from tokenizer import Codec
from tokenizer.audio import read_audio
from tokenizer.live import to_pcm
from tokenizer.metrics import METRICS_RATE
from tokenizer.metrics.codes import flipped_bits
from tokenizer.metrics.intrusive import speech_quality


def through_opus(wave: np.ndarray, rate: int) -> tuple[np.ndarray, int]:
    """Float32 [S] at `rate` Hz as it comes out, and the bytes on the wire."""
    encoder = OpusEncoder(rate)
    packets = encoder.encode(to_pcm(wave)) + encoder.end()
    decoded = OpusDecoder().decode(packets)[SKIP :: DECODED_RATE // rate][: len(wave)]
    return decoded.astype(np.float32) / 32768, len(packets)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--codec", default="small")
    parser.add_argument("--clips", type=int, default=10, help="of the bundled speech, spread over its speakers")
    args = parser.parse_args()
    codec = Codec.from_pretrained(args.codec)
    torch.set_num_threads(1)
    places = sorted(SPEECH.glob("*.ogg"))
    sent, seconds, flips, pesq = 0, 0.0, [], []
    for place in places[:: max(1, len(places) // args.clips)][: args.clips]:
        speech = read_audio(place, codec.sample_rate_in)
        received, size = through_opus(speech, codec.sample_rate_in)
        sent, seconds = sent + size, seconds + len(speech) / codec.sample_rate_in
        tokens, others = (codec.encode(torch.from_numpy(wave))[0] for wave in (speech, received))
        flips.append(flipped_bits(tokens.numpy(), others.numpy(), codec.bits_per_token))
        rendered = codec.decode(tokens[None])[0].numpy()
        heard, _ = through_opus(rendered, codec.sample_rate_out)
        both = (soxr.resample(wave, codec.sample_rate_out, METRICS_RATE) for wave in (rendered, heard))
        pesq.append(speech_quality(*both)["pesq_wb"])
    changed = np.concatenate(flips)
    print(f"{len(pesq)} clips, {seconds:.1f} s, codec {codec.name}: {sent * 8 / seconds / 1000:.1f} kbit/s")
    print(f"of a prompt, {changed.any(1).mean():.1%} of the tokens and {changed.mean():.1%} of the bits change")
    if known := [value for value in pesq if value is not None]:
        print(f"PESQ-WB of the server's sound, against the same in PCM: {np.mean(known):.2f}")


if __name__ == "__main__":
    main()
