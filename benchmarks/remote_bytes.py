"""Bytes and requests that reading audio from a store takes, against the bytes of the audio that is wanted.

    python benchmarks/remote_bytes.py [--minutes 5] [--milliseconds 0]
    python benchmarks/remote_bytes.py --minutes 20 --only Opus --seconds 30

Ten cuts of 5 s of one long recording (noise whose loudness wanders, 48 kHz, two channels) in several formats, a Shar
folder of 120 cuts with its planning, and 200 small files. The store is moto on this machine.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import soundfile

sys.path.insert(0, str(Path(__file__).parents[1]))

from pipelines.sources import audio_bytes
from pipelines.sources.audio import read_wave
from pipelines.sources.cuts import SourceCut, whole_recording
from pipelines.sources.manifests import read_cuts
from pipelines.sources.pieces import TarPair
from pipelines.sources.shar import located
from pipelines.sources.shar_tars import find_pair
from tests.pipelines.storage.slow_s3 import counts, slow_s3

RATE = 48000  # Opus has no 44,100
REPEATED = 240.0  # seconds, after which the noise of a long recording begins again
KINDS = ("FLAC", "WAV", "Opus", "Vorbis", "MP3")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0, help="of the long recording")
    parser.add_argument("--milliseconds", type=float, default=0.0, help="added to each request")
    parser.add_argument("--seconds", type=float, default=5.0, help="of a cut of the long recording")
    parser.add_argument("--only", default="", help=f"formats of the long recording, of {','.join(KINDS)}, and no more")
    parser.add_argument("--memory", type=float, help="MB of a file that is fetched whole at most, in place of 33.6")
    args = parser.parse_args()
    print("| input | bytes wanted | fetched | ratio | requests |\n|---|---|---|---|---|")
    with slow_s3(args.milliseconds / 1000) as address, tempfile.TemporaryDirectory() as folder:
        for kind in KINDS if not args.only else args.only.split(","):
            size, seconds = put_recording(kind, 60 * args.minutes)
            if args.memory:
                audio_bytes.MEMORY_BYTES = round(args.memory * 1e6)
            before = counts(address)
            for number in range(10):
                read_wave(cut_of(kind, seconds, (seconds - args.seconds) * (7 * number % 10) / 10, args.seconds), 16000)
            row(
                f"ten cuts of {args.seconds:g} s of {size / 1e6:.0f} MB of {kind}",
                10 * args.seconds / seconds * size,
                counts(address) - before,
            )
        if args.only:
            return
        audio, before = put_shar(folder), counts(address)
        cuts = list(read_cuts(["s3://speech/shar"]))
        planned = counts(address)
        row("Shar, 120 cuts in 3 tars: planning", audio, planned - before)
        for item in located(cuts):
            read_wave(item, 16000)
        row("the same: reading", audio, counts(address) - planned)
        small = encoded(noise(2.0), "FLAC")
        fsspec.filesystem("s3").pipe({f"speech/small/{i:03}.flac": small for i in range(200)})
        cuts = list(read_cuts(["s3://speech/small"]))
        before = counts(address)
        for item in cuts:
            read_wave(item, 16000)
        row("200 small files", 200 * len(small), counts(address) - before)


def row(what: str, wanted: float, fetched: Any) -> None:
    requests = fetched["GET"] + fetched["HEAD"]
    ratio = fetched["bytes"] / wanted
    print(
        f"| {what} | {wanted / 1e6:.1f} MB | {fetched['bytes'] / 1e6:.1f} MB | {ratio:.2f} | {requests} |", flush=True
    )


def noise(seconds: float) -> np.ndarray:
    samples = int(seconds * RATE)
    loudness = np.sin(np.arange(samples, dtype=np.float32) / RATE * 1.3) ** 2 * 3000 + 50
    return (np.random.default_rng(0).standard_normal((samples, 2), np.float32) * loudness[:, None]).astype(np.int16)


def encoded(wave: np.ndarray, kind: str) -> bytes:
    file = io.BytesIO()
    coding = {"format": "OGG", "subtype": kind} if kind in ("Opus", "Vorbis") else {"format": kind}
    with soundfile.SoundFile(file, "w", RATE, wave.shape[-1] if wave.ndim > 1 else 1, **coding) as sound:
        for begin in range(0, len(wave), RATE):  # libsndfile's Vorbis keeps all of a write on the stack
            sound.write(wave[begin : begin + RATE])
    return file.getvalue()


def put_recording(kind: str, seconds: float) -> tuple[int, float]:
    wave = noise(min(seconds, REPEATED))
    data = encoded(np.tile(wave, (round(seconds / REPEATED) or 1, 1)), kind)
    fsspec.filesystem("s3").pipe_file(f"speech/long.{kind}", data)
    return len(data), len(wave) * max(1, round(seconds / REPEATED)) / RATE


def cut_of(kind: str, seconds: float, start: float, length: float) -> SourceCut:
    recording = {
        "id": "long",
        "sources": [{"type": "url", "channels": [0, 1], "source": f"s3://speech/long.{kind}"}],
        "sampling_rate": RATE,
        "num_samples": int(seconds * RATE),
        "duration": seconds,
        "channel_ids": [0, 1],
    }
    return SourceCut({**whole_recording(recording), "start": start, "duration": length})


def put_shar(folder: str) -> int:
    """A Shar folder on the store. Returns the bytes of its audio."""
    from lhotse import CutSet, Recording

    wave, shar = noise(1.1 * 120), os.path.join(folder, "shar")
    os.mkdir(shar)
    for i in range(120):
        soundfile.write(f"{folder}/{i}.flac", wave[i * RATE : (i + 1) * RATE, 0], RATE)
    cuts = CutSet.from_cuts(Recording.from_file(f"{folder}/{i}.flac").to_cut() for i in range(120))
    cuts.to_shar(shar, fields={"recording": "flac"}, shard_size=40)
    fsspec.filesystem("s3").put(f"{shar}/", "speech/shar/", recursive=True)
    return sum(find_pair(item.audio).size for item in read_cuts([shar]) if isinstance(item.audio, TarPair))


if __name__ == "__main__":
    main()
