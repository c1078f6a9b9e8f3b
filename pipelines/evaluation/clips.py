"""The clips a codec is measured on: held-out speech, by source."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pipelines.sources.audio import read_wave
from pipelines.sources.manifests import find_inputs, read_cuts


@dataclass(frozen=True)
class Clip:
    """wave: float32 [S] at the rate that was asked for. `text` is empty where it is not known."""

    id: str
    source: str
    text: str
    english: bool  # as far as the manifest says
    wave: np.ndarray


def held_out_clips(manifest: str, sample_rate: int, min_seconds: float = 3.0, per_source: int = 0) -> Iterator[Clip]:
    """The clips of a manifest or folder, in its order.

    Args:
        manifest: what `tokenize` takes; a cut's source is `custom.source` of its first supervision, else "all".
        sample_rate: Hz of the waves.
        min_seconds: shorter clips are skipped.
        per_source: only the first so many clips of each source; 0: all of them.

    Raises:
        InputError: nothing is there, or a cut cannot be read.
    """
    seen: dict[str, int] = defaultdict(int)
    for cut in read_cuts(find_inputs(manifest)):
        said = (cut.cut.get("supervisions") or [{}])[0]
        source = (said.get("custom") or {}).get("source", "all")
        if cut.seconds < min_seconds or (per_source and seen[source] >= per_source):
            continue
        seen[source] += 1
        english = (said.get("language") or "en").lower().startswith("en")
        yield Clip(cut.id, source, said.get("text") or "", english, read_wave(cut, sample_rate))
