"""Codec2 and Opus on the clips of `focalstream eval-codec`, with the same metrics, for scale.

    python benchmarks/peers.py --manifest TEST.jsonl.gz --per-source 12

Needs c2enc and c2dec (Debian: codec2), opusenc and opusdec (opus-tools); a row whose programs are missing is left out.
Decoders delay their output, so each clip is aligned with its original by cross-correlation before it is measured.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import soundfile
import soxr

from pipelines.commands.eval_codec import held_out_clips, means
from tokenizer.metrics import METRICS_RATE, speech_quality

CODEC2_RATE = 8000  # Hz
LONGEST_DELAY = 2000  # samples at 16 kHz, 125 ms


def codec2(wave: np.ndarray, mode: str, folder: Path) -> np.ndarray:
    """float32 [S] at 16 kHz through Codec2 in `mode` ("700C", "1200", ...)."""
    pcm = np.rint(np.clip(soxr.resample(wave, METRICS_RATE, CODEC2_RATE), -1, 1) * 32767).astype("<i2")
    (folder / "in.raw").write_bytes(pcm.tobytes())
    subprocess.run(["c2enc", mode, folder / "in.raw", folder / "c2"], check=True, capture_output=True)
    subprocess.run(["c2dec", mode, folder / "c2", folder / "out.raw"], check=True, capture_output=True)
    out = np.frombuffer((folder / "out.raw").read_bytes(), "<i2").astype(np.float32) / 32768
    return soxr.resample(out, CODEC2_RATE, METRICS_RATE)


def opus(wave: np.ndarray, kbps: str, folder: Path) -> np.ndarray:
    """float32 [S] at 16 kHz through Opus at `kbps`."""
    soundfile.write(folder / "in.wav", wave, METRICS_RATE)
    encode = ["opusenc", "--quiet", "--hard-cbr", "--bitrate", kbps, folder / "in.wav", folder / "o.opus"]
    subprocess.run(encode, check=True)
    decode = ["opusdec", "--quiet", "--rate", str(METRICS_RATE), folder / "o.opus", folder / "out.wav"]
    subprocess.run(decode, check=True, capture_output=True)
    return soundfile.read(folder / "out.wav", dtype="float32")[0]


def aligned(decoded: np.ndarray, wave: np.ndarray) -> np.ndarray:
    """`decoded` without its delay, found where it correlates best with `wave`."""
    samples = min(len(wave), len(decoded))
    spectrum = np.fft.rfft(decoded[:samples], 2 * samples) * np.conj(np.fft.rfft(wave[:samples], 2 * samples))
    delay = int(np.argmax(np.abs(np.fft.irfft(spectrum)[:LONGEST_DELAY])))
    return np.pad(decoded[delay:], (0, max(0, len(wave) - len(decoded) + delay)))[: len(wave)]


PEERS = [("Codec2 700C", codec2, "700C"), ("Codec2 1200", codec2, "1200"), ("Codec2 3200", codec2, "3200")]
PEERS += [("Opus 6", opus, "6")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest", required=True, help="Lhotse manifest or folder of held-out speech")
    parser.add_argument("--min-seconds", type=float, default=3.0, help="skip shorter clips")
    parser.add_argument("--per-source", type=int, default=0, help="first N clips of each source; 0: all")
    args = parser.parse_args()
    rows: dict[str, dict[str, list]] = defaultdict(lambda: defaultdict(list))
    with tempfile.TemporaryDirectory() as name:
        for source, wave in held_out_clips(args, METRICS_RATE):
            for label, run, mode in PEERS:
                if shutil.which("c2enc" if run is codec2 else "opusenc"):
                    decoded = aligned(run(wave, mode, Path(name)), wave)
                    rows[label][source].append(speech_quality(wave, decoded))
    for label, sources in rows.items():
        row = means([means(clips) for clips in sources.values()])
        print(f"| {label} | " + " | ".join(f"{row[m]:.3f}" for m in ("pesq_wb", "stoi", "estoi")) + " |")


if __name__ == "__main__":
    main()
