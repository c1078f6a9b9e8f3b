"""The Fourier head's parts."""

from __future__ import annotations

import pytest
import torch

from tokenizer.network.fourier import overlap_add


@pytest.mark.parametrize(("hop", "length"), [(320, 640), (320, 1280), (320, 1024), (320, 320)])
def test_overlap_add_is_folding(hop: int, length: int) -> None:
    frames = torch.randn(3, 7, length)
    total = 6 * hop + length
    folded = torch.nn.functional.fold(frames.transpose(1, 2), (1, total), (1, length), stride=(1, hop)).flatten(1)
    assert torch.equal(overlap_add(frames, hop), folded)
