"""The loss in pieces against the plain one."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from slm.model import cross_entropy
from slm.model.cross_entropy import IGNORED, summed_cross_entropy


def example(count: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(count)
    hidden = torch.randn(count, 8, generator=random, dtype=dtype).requires_grad_()
    weight = torch.randn(30, 8, generator=random, dtype=dtype).requires_grad_()
    targets = torch.randint(0, 30, (count,), generator=random)
    targets[::3] = IGNORED
    return hidden, weight, targets


@pytest.mark.parametrize("count", [1, 16, 37])
def test_loss_and_gradients_are_those_of_all_logits_at_once(count, monkeypatch):
    monkeypatch.setattr(cross_entropy, "ROWS_AT_ONCE", 16)
    hidden, weight, targets = example(count, torch.float64)
    loss = summed_cross_entropy(hidden, weight, targets)
    found = torch.autograd.grad(loss * 0.7, (hidden, weight))
    plain = F.cross_entropy(F.linear(hidden, weight), targets, ignore_index=IGNORED, reduction="sum")
    expected = torch.autograd.grad(plain * 0.7, (hidden, weight))
    # The same sums in float64.
    torch.testing.assert_close((loss, *found), (plain, *expected), rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(summed_cross_entropy(hidden, weight, targets), plain, rtol=1e-12, atol=1e-12)


def test_under_autocast_it_rounds_as_the_plain_one_does():
    hidden, weight, targets = example(700, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss = summed_cross_entropy(hidden, weight, targets)
        plain = F.cross_entropy(F.linear(hidden, weight).float(), targets, ignore_index=IGNORED, reduction="sum")
    torch.testing.assert_close(loss, plain, rtol=1e-5, atol=0)  # the same bfloat16 logits, summed in another order
    found, expected = (torch.autograd.grad(total, (hidden, weight)) for total in (loss, plain))
    for ours, theirs in zip(found, expected, strict=True):  # bfloat16 keeps 8 bits
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0.02 * float(theirs.abs().max()))
