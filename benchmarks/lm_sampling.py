"""What sampling settings do to continuations: length, silence, repetition, and the entropy of their codes.

    python benchmarks/lm_sampling.py --data TOKENS [--lm small] [--top-p .9 .95 1] [--temperature .8 1] [--samples 20]

The same held-out prompts of 3 s for every pair of settings, continued for up to `--seconds`, beside the rest of their
recordings. Silent is a frame of 20 ms that is 40 dB below the clip's loud frames. Entropy is that of all codes of a row
together; it grows with their number, so compare rows of about equal length.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence

import numpy as np
import torch

from pipelines.dataset.token_dataset import TokenDataset
from slm.checkpoint import load_lm
from slm.evaluation.samples import Sample, SampleOptions, code_figures, decode_sample, draw_samples, silence
from slm.generation.engines import codec_on_arrays
from slm.generation.sampling import Sampling
from slm.generation.silence import with_silent_codes
from tokenizer import Codec

HEADER = (
    "| top-p | temperature | length, s | ended | entropy, bits | repeated codes | repeated runs of 4 | silent |\n"
    "|---|---|---|---|---|---|---|---|"
)


def silent_share(codec: Codec, samples: Sequence[Sample], generated: bool) -> float:
    """The share of silent frames behind the prompts."""
    frames = []
    for sample in samples:
        wave = decode_sample(codec, sample)[generated]
        frames.append(silence(wave, codec.sample_rate_out, len(sample.prompt) * codec.samples_per_token))
    return float(np.concatenate(frames).mean())


def row(name: str, codes: Sequence[np.ndarray], silent: float, rate: float, most: int) -> str:
    found = code_figures(codes, rate, most)
    shares = [f"{found[name]:.1%}" for name in ("repeated", "repeated_ngrams")]
    figures = [f"{found['seconds']:.1f}", f"{found['ended']:.0%}", f"{found['entropy_bits']:.2f}", *shares]
    return f"| {name} | {' | '.join(figures)} | {silent:.1%} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", required=True, help="held-out datasets of `focalstream tokenize`")
    parser.add_argument("--lm", default="small")
    parser.add_argument("--top-p", nargs="+", type=float, default=[0.9, 0.95, 1.0])
    parser.add_argument("--temperature", nargs="+", type=float, default=[0.8, 1.0])
    parser.add_argument("--silence-limit", type=int, default=0)
    parser.add_argument("--samples", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=20.0, help="longest continuation")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model, vocabulary = load_lm(args.lm, "cpu")
    codec = Codec.from_pretrained(vocabulary.codec_name)
    dataset = TokenDataset(args.data)
    vocabulary.check(args.data[0], dataset.fingerprint, dataset.codebook_size)
    rate, most = dataset.token_rate, round(args.seconds * dataset.token_rate)
    print(HEADER)
    for number, (top_p, temperature) in enumerate(itertools.product(args.top_p, args.temperature)):
        sampling = Sampling(temperature=temperature, top_p=top_p, silence_limit=args.silence_limit)
        sampling = with_silent_codes(sampling, codec_on_arrays(codec))
        options = SampleOptions(args.samples, seconds=args.seconds, seed=args.seed, sampling=sampling)
        samples = draw_samples(model, vocabulary, dataset, options)
        if number == 0:
            recorded = [sample.recorded for sample in samples]
            print(row("recordings | ", recorded, silent_share(codec, samples, False), rate, most))
        generated, silent = [sample.generated for sample in samples], silent_share(codec, samples, True)
        print(row(f"{top_p:g} | {temperature:g}", generated, silent, rate, most), flush=True)


if __name__ == "__main__":
    main()
