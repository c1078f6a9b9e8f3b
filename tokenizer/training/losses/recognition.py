"""FEATURES -> LETTERS: the recognition task that makes a teacher's features carry what is said.

Connectionist temporal classification: Graves et al., ICML 2006. Legend: B batch, T frames, D channels.
"""

from __future__ import annotations

import unicodedata

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LETTERS = " 'abcdefghijklmnopqrstuvwxyz"  # class 0 is CTC's blank, so the first letter is class 1


def letters(text: str) -> list[int]:
    """Classes of a text: letters without accents in lower case, the apostrophe, one space between words."""
    plain = unicodedata.normalize("NFKD", text).lower().replace("\u2019", "'")
    words = "".join(c if c in LETTERS else " " if not unicodedata.combining(c) else "" for c in plain).split()
    return [LETTERS.index(c) + 1 for c in " ".join(words)]


class Recogniser(nn.Module):
    """A letter for each frame. Args: dim, the features' channels."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.proj = nn.Linear(dim, len(LETTERS) + 1)

    def forward(self, features: Tensor, frames: Tensor, texts: tuple[str, ...]) -> Tensor:
        """CTC loss a letter.

        Args:
            features: [B, T, D].
            frames: int64 [B], of each row that count.
            texts: what is said in each row; rows without text do not count.
        """
        targets = [letters(text) for text in texts]
        spoken = [row for row, target in enumerate(targets) if target and len(target) <= int(frames[row])]
        if not spoken:
            return features.sum() * 0
        chosen = torch.tensor(spoken, device=features.device)
        scores = self.proj(self.norm(features[chosen])).float().log_softmax(-1).transpose(0, 1)
        flat = torch.tensor([letter for row in spoken for letter in targets[row]], device=features.device)
        counts = torch.tensor([len(targets[row]) for row in spoken], device=features.device)
        return F.ctc_loss(scores, flat, frames[chosen].clamp(max=features.shape[1]), counts, zero_infinity=True)
