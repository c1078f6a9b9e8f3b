"""Make a trained codec as loud as its originals in every band, on average over clips.

    python benchmarks/equalise.py CODEC MANIFEST OUT [--per-source 17]

Losses of log spectra leave a codec too soft where it is not certain, by some dB above 1 kHz. Here clips are rendered,
and what their mean power spectra lack, beside those of the originals, goes to the bias of the log magnitudes that a
Fourier head predicts. Tokens stay what they are; the codec's fingerprint does not.

Legend: S samples, K bins of the head's spectrum.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from pipelines.evaluation.clips import held_out_clips
from tokenizer import Codec
from tokenizer.network.fourier import FourierHead

SMOOTH = 2.0  # turns a hop (100 Hz at hops of 20 ms), standard deviation over which spectra are smoothed


def power(wave: Tensor, head: FourierHead) -> Tensor:
    """[S] -> [K], summed over frames."""
    window = torch.hann_window(head.n_fft)
    return torch.stft(wave, head.n_fft, head.hop // 2, window=window, return_complex=True).abs().square().sum(1)


def smoothed(spectrum: Tensor, head: FourierHead) -> Tensor:
    """[K] -> [K]."""
    bins = torch.arange(len(spectrum)) * head.hop / head.n_fft  # turns a hop
    near = torch.exp(-0.5 * ((bins[:, None] - bins) / SMOOTH).square())
    return near @ spectrum / near.sum(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("codec", help='shipped name, directory or Hub id of a codec with head "istft" or "comb"')
    parser.add_argument("manifest", help="Lhotse manifest or folder of speech that the codec was trained on")
    parser.add_argument("out", help="folder of the equalised codec")
    parser.add_argument("--per-source", type=int, default=17, help="first N clips of each source")
    args = parser.parse_args()
    codec = Codec.from_pretrained(args.codec)
    if not isinstance(head := codec.decoder.head, FourierHead):
        parser.error(f"{args.codec}: its decoder has no Fourier head; expected a codec with head istft or comb")
    if codec.sample_rate_out != codec.sample_rate_in:
        parser.error(f"{args.codec}: {codec.sample_rate_in} Hz in and {codec.sample_rate_out} out; expected one rate")
    wanted = got = torch.zeros(head.n_fft // 2 + 1)
    for clip in tqdm(held_out_clips(args.manifest, codec.sample_rate_in, 3.0, args.per_source), unit="clip"):
        wave = torch.from_numpy(clip.wave)
        heard = codec.decode(codec.encode(wave[None]))[0]
        heard = F.pad(heard, (0, len(wave) - len(heard)))  # cut, or filled with silence
        energy = wave.square().sum() + 1e-9  # so that clips count alike
        wanted, got = wanted + power(wave, head) / energy, got + power(heard, head) / energy
    if not got.any():
        parser.error(f"{args.manifest}: no clip of 3 s or more that is not silent")
    missing = 0.5 * (smoothed(wanted, head) / smoothed(got, head)).log()
    with torch.no_grad():
        head.proj.bias[: len(missing)] += missing
    codec.save_pretrained(args.out, torch.float16)
    decibels = 20 * missing / torch.log(torch.tensor(10.0))
    for hertz in (250, 500, 1000, 2000, 4000, 6000):
        print(f"{hertz:5} Hz: {decibels[hertz * head.n_fft // codec.sample_rate_out]:+.1f} dB")


if __name__ == "__main__":
    main()
