"""The stacked Muon beside torch's: the same weights up to rounding, and interchangeable states."""

from __future__ import annotations

import torch

from tokenizer.runs.stacked_muon import StackedMuon

SHAPES = ((64, 96), (96, 64), (64, 96), (80, 80))


def trained(kinds, steps=4):
    torch.manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(shape)) for shape in SHAPES]
    state = None
    for kind in kinds:
        optimizer = kind(parameters, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
        if state is not None:
            optimizer.load_state_dict(state)
        for _ in range(steps):
            for p in parameters[:-1]:  # the last one has no gradient
                p.grad = torch.randn(p.shape)
            optimizer.step()
        state = optimizer.state_dict()
    return parameters


def test_it_makes_the_updates_of_torchs():
    expected, got = trained([torch.optim.Muon] * 2), trained([StackedMuon, torch.optim.Muon])
    start = trained([StackedMuon], steps=0)
    for p, q, s in zip(expected, got, start, strict=True):
        change = (p - s).norm()
        assert (p - q).norm() <= 0.01 * change  # bfloat16 products in another order
    assert torch.equal(got[-1], start[-1])
    assert all((p - s).norm() > 0.1 for p, s in zip(got[:-1], start[:-1], strict=True))
