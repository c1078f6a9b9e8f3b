"""Muon's work divided among four processes: the weights of one process, for replicas, shards, and groups of shards."""

from __future__ import annotations

import multiprocessing

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from tokenizer.runs.divided_muon import DividedMuon, rows_of, shares

WORLD = 4
SHAPES = ((64, 96), (96, 64), (64, 96), (80, 80), (5, 7), (2, 9))  # rows that four processes cannot share evenly


def trained(kind, place, steps=3):
    """Whole weights after some steps; `place` makes this process's part of a tensor."""
    torch.manual_seed(0)
    parameters = [torch.nn.Parameter(place(torch.randn(shape))) for shape in SHAPES]
    optimizer = kind(parameters, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(steps):
        for parameter, shape in zip(parameters, SHAPES, strict=True):
            parameter.grad = place(torch.randn(shape))
        optimizer.step()
    return [getattr(p, "full_tensor", p.detach)().detach() for p in parameters]


def process(rank, out):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{out}/meeting", rank=rank, world_size=WORLD)
    whole, grid = init_device_mesh("cpu", (WORLD,)), init_device_mesh("cpu", (2, 2))
    found = {
        "replicas": trained(DividedMuon, lambda x: x),
        "shards": trained(DividedMuon, lambda x: distribute_tensor(x, whole, [Shard(0)])),
        "groups": trained(DividedMuon, lambda x: distribute_tensor(x, grid, [Replicate(), Shard(0)])),
    }
    torch.save(found, f"{out}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_four_processes_make_the_updates_of_one(tmp_path):
    multiprocessing.set_forkserver_preload([__name__])  # PyTorch is imported once, not four times
    torch.multiprocessing.start_processes(process, (tmp_path,), WORLD, start_method="forkserver")
    start, expected = trained(torch.optim.Muon, lambda x: x, steps=0), trained(torch.optim.Muon, lambda x: x)
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(WORLD)]
    for how in found[0]:
        for got, one, before in zip(found[0][how], expected, start, strict=True):
            assert (got - one).norm() <= 0.01 * (one - before).norm(), how  # bfloat16 products in another order
        for other in found[1:]:
            torch.testing.assert_close(other[how], found[0][how], rtol=0, atol=0)


def test_every_matrix_has_one_owner_and_every_row_one_place():
    for world in (1, 2, 3, 8):
        owned = shares([7, 100, 3, 50, 50], world)
        assert sorted(place for places in owned for place in places) == [0, 1, 2, 3, 4]
        for rows in (1, 2, 5, 64):
            parts = [len(part) for part in torch.zeros(rows, 1).chunk(world)]
            assert rows_of(rows, world) == parts + [0] * (world - len(parts))
