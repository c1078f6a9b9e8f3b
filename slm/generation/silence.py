"""The codes of silence, which sampling may limit, because speech models tend to get stuck in a pause."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from slm.generation.sampling import Sampling

LEVELS = (0.0, 1e-4, 3e-4)  # root mean squares of digital silence and of quiet rooms, -80 and -70 dB
SECONDS = 2.0  # of each level


def silent_codes(codec: Any) -> tuple[int, ...]:
    """The codes that a codec on arrays gives for silence and very quiet noise, sorted."""
    noise = np.random.default_rng(0).standard_normal(int(SECONDS * codec.sample_rate_in)).astype(np.float32)
    whole = len(noise) // codec.chunk_samples * codec.chunk_samples
    found = [codec.encode(np.float32(level) * noise[None, :whole]) for level in LEVELS]
    return tuple(np.unique(np.concatenate(found)).tolist())


def with_silent_codes(sampling: Sampling, codec: Any) -> Sampling:
    """The same sampling, which knows the codec's silent codes if it limits them."""
    return replace(sampling, silent_codes=silent_codes(codec)) if sampling.silence_limit else sampling
