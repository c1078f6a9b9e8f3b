"""The stacked Muon beside torch's: the same weights up to rounding, and interchangeable states."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from tokenizer.machine import Choice
from tokenizer.runs import optimizers, stacked_muon
from tokenizer.runs.optimizers import Optimizers
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


@pytest.fixture(params=["bfloat16", "float32"])
def precision(request, monkeypatch):
    """What the processor is said to multiply."""
    for module in (stacked_muon, optimizers):
        monkeypatch.setattr(module, "training_precision", lambda device: Choice(request.param, "of the test"))
    return request.param


def test_a_processor_without_bfloat16_is_never_asked_to_multiply_it(precision, monkeypatch):
    multiplied = set()
    product = torch.baddbmm
    monkeypatch.setattr(torch, "baddbmm", lambda *a, **k: multiplied.add(a[0].dtype) or product(*a, **k))
    (found,) = stacked_muon.orthogonalized(torch.randn(1, 64, 96), (3.4445, -4.775, 2.0315), 5, 1e-7)
    assert multiplied == {getattr(torch, precision)} and found.dtype == torch.bfloat16
    assert (torch.linalg.svdvals(found.float()) - 1).abs().max() < 0.5
    settings = SimpleNamespace(optimizer="muon", beta1=0.9, beta2=0.95, weight_decay=0.0)
    _, muon = Optimizers([("a", torch.nn.Parameter(torch.randn(64, 96)))], settings, 1e-3).members
    assert type(muon) is (torch.optim.Muon if precision == "bfloat16" else StackedMuon)


def test_it_makes_the_updates_of_torchs(precision):
    expected, got = trained([torch.optim.Muon] * 2), trained([StackedMuon, torch.optim.Muon])
    start = trained([StackedMuon], steps=0)
    for p, q, s in zip(expected, got, start, strict=True):
        change = (p - s).norm()
        assert (p - q).norm() <= 0.01 * change  # bfloat16 in another order, or not at all
    assert torch.equal(got[-1], start[-1])
    assert all((p - s).norm() > 0.1 for p, s in zip(got[:-1], start[:-1], strict=True))


def test_a_checkpoint_from_elsewhere_changes_no_group_of_an_optimizer_on_the_device() -> None:
    """A captured step needs `capturable`, which other runs' checkpoints deny."""
    settings = SimpleNamespace(optimizer="muon", beta1=0.9, beta2=0.95, weight_decay=0.0)
    weight = torch.nn.Parameter(torch.randn(64, 96))
    elsewhere, here = (Optimizers([("a", weight)], settings, 1e-3, on_device=on) for on in (False, True))
    for optimizer in (elsewhere, here):
        weight.grad = torch.randn(64, 96)
        optimizer.set_rate(0.5)
        optimizer.step()
    here.load_state_dict(elsewhere.state_dict())
    adamw, muon = here.members
    assert isinstance(muon.param_groups[0]["lr"], torch.Tensor) and adamw.param_groups[0]["capturable"]
    here.set_rate(0.25)
    assert muon.param_groups[0]["lr"] == adamw.param_groups[0]["lr"] == pytest.approx(0.25e-3)
