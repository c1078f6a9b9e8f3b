"""The level of rendered speech: a prompt sounds as loud after the codec as before it, and so does what follows it."""

from __future__ import annotations

import numpy as np

LEAST, MOST = 0.5, 2.0  # of the gain: 6 dB
SILENCE = 1e-4  # root mean square below which no level is measured, -80 dB


class LevelMatch:
    """The gain of one stream. It follows the prompt piece by piece, without a step between two pieces, and stays as it
    is after the prompt's end."""

    def __init__(self) -> None:
        self._original = self._rendered = 0.0  # energy so far, in seconds times squares
        self.gain = 1.0
        self._begun = False

    def prompt(self, original: np.ndarray, rendered: np.ndarray, seconds: float) -> np.ndarray:
        """A piece of the prompt, float32 [S] as it was and [S'] as the codec renders it, of so many seconds.

        Returns:
            float32 [S'] at the level of the original.
        """
        self._original += seconds * float(np.mean(np.square(original, dtype=np.float64)))
        self._rendered += seconds * float(np.mean(np.square(rendered, dtype=np.float64)))
        before = self.gain
        if min(self._original, self._rendered) > seconds * SILENCE**2:
            self.gain = float(np.clip(np.sqrt(self._original / self._rendered), LEAST, MOST))
            before, self._begun = (before if self._begun else self.gain), True
        return rendered * np.linspace(before, self.gain, len(rendered), dtype=np.float32)

    def speech(self, rendered: np.ndarray) -> np.ndarray:
        """New speech, float32 [S]."""
        return rendered * np.float32(self.gain)
