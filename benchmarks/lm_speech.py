"""The speech on which the shipped language model was trained: pauses shortened, utterances of one voice joined.

    python benchmarks/lm_speech.py OUT.jsonl.gz MANIFEST... [--later SECONDS]

A model that is trained on single utterances learns to fall silent after a few seconds. Here each cut loses the silence
at its ends and the middle of its long pauses, and cuts of one speaker follow one another up to the model's context.
`--later 0.045` adds each document a second time without its first 45 ms, so that no frame falls on the same samples.
"""

from __future__ import annotations

import argparse
import random
from collections import defaultdict
from pathlib import Path

import numpy as np
from lhotse import CutSet, MonoCut
from lhotse.cut import Cut
from tqdm import tqdm

FRAME = 160  # samples at 16 kHz, 10 ms
BELOW = 35.0  # dB below the loud frames of a cut, from where on a frame is silent
BEFORE, AFTER = 0.1, 0.2  # seconds kept at both ends of what is said, so 0.3 s of every longer pause
DOCUMENT = 20.0  # seconds of joined cuts at most, unless one cut is longer


def spoken(wave: np.ndarray) -> list[tuple[float, float]]:
    """Start and end, seconds, of the pieces of float32 [S] at 16 kHz that are kept."""
    frames = wave[: len(wave) // FRAME * FRAME].reshape(-1, FRAME)
    level = 10 * np.log10(np.square(frames).mean(1) + 1e-10)
    voiced = np.flatnonzero(level > np.percentile(level, 95) - BELOW) if len(level) else np.zeros(0, dtype=int)
    pieces: list[tuple[float, float]] = []
    total = len(wave) / 16000
    for frame in voiced:
        start, end = max(0.0, frame / 100 - BEFORE), min(total, (frame + 1) / 100 + AFTER)
        if pieces and start <= pieces[-1][1]:
            pieces[-1] = pieces[-1][0], end
        else:
            pieces.append((start, end))
    return [(round(start, 4), round(end, 4)) for start, end in pieces]


def shortened(cut: MonoCut) -> Cut | None:
    """A cut without its long pauses; None: nothing is said in it."""
    pieces = [
        cut.truncate(offset=start, duration=end - start)
        for start, end in spoken(cut.resample(16000).load_audio()[0])
        if end - start >= BEFORE + AFTER + 0.05  # a click is shorter
    ]
    return joined(pieces) if pieces else None


def joined(cuts: list[Cut]) -> Cut:
    """Cuts one after the other."""
    out = cuts[0]
    for cut in cuts[1:]:
        out = out.append(cut)
    return out


def documents(cuts: CutSet) -> list[Cut]:
    """Joined cuts of each speaker, in random order; cuts of unknown speakers stay alone."""
    voices: dict[str, list[Cut]] = defaultdict(list)
    for cut in tqdm(cuts, desc="finding the pauses"):
        short = shortened(cut)
        if short is not None:
            speaker = cut.supervisions[0].speaker if cut.supervisions else None
            voices[speaker or cut.id].append(short)
    out, rng = [], random.Random(0)
    for voice, spoken_cuts in sorted(voices.items()):
        rng.shuffle(spoken_cuts)
        together: list[list[Cut]] = [[]]
        for cut in spoken_cuts:
            if together[-1] and sum(c.duration for c in together[-1]) + cut.duration > DOCUMENT:
                together.append([])
            together[-1].append(cut)
        out += [joined(group).with_id(f"{voice}_{i:03}") for i, group in enumerate(together) if group]
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("manifests", type=Path, nargs="+")
    parser.add_argument("--later", type=float, default=0.0, metavar="SECONDS")
    args = parser.parse_args()
    cuts = [c for path in args.manifests for c in CutSet.from_file(path).with_recording_path_prefix(str(path.parent))]
    found = documents(CutSet.from_cuts(cuts))
    if args.later:
        long = [c for c in found if c.duration > args.later + 0.5]
        found += [c.truncate(offset=args.later).with_id(f"{c.id}_later") for c in long]
    CutSet.from_cuts(found).to_file(args.out)
    print(
        f"{len(cuts):,} cuts, {sum(c.duration for c in cuts) / 3600:.2f} h -> {len(found):,} documents, "
        f"{sum(c.duration for c in found) / 3600:.2f} h"
    )


if __name__ == "__main__":
    main()
