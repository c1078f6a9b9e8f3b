"""Muon over several processes: each orthogonalizes a share of the matrices, and all get all directions.

With replicas (DDP) every process has all gradients, and the directions are gathered. With shards (FSDP2) a process has
some rows of every matrix: the rows are exchanged so that each process has its share of the matrices whole, and the
rows of the directions are exchanged back. Both are bfloat16, to which one process rounds them too, so the updates are
those of one process up to the order of sums. Groups of replicas with shards (HSDP) exchange within each group.

Dimension letters:  R rows    C columns
"""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

from tokenizer.runs.stacked_muon import StackedMuon

WIRE = torch.uint8  # what bytes are sent as: not every backend knows bfloat16


class DividedMuon(StackedMuon):
    """`StackedMuon` for parameters that several processes hold, all whole or all sharded by rows."""

    def _directions(self, parameters: list[Tensor], updates: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
        first = parameters[0]
        if isinstance(first, DTensor):
            (dim,) = (dim for dim, placement in enumerate(first.placements) if isinstance(placement, Shard))
            return self._of_shards(parameters, updates, group, first.device_mesh.get_group(dim))
        return self._of_replicas(updates, group)

    def _of_replicas(self, updates: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
        world, rank = dist.get_world_size(), dist.get_rank()
        owned = shares([update.numel() for update in updates], world)
        sizes = [sum(updates[place].numel() for place in places) for places in owned]
        mine = self._orthogonal([updates[place] for place in owned[rank]], group)
        sent = updates[0].new_zeros(max(sizes), dtype=torch.bfloat16)
        torch.cat([sent[:0], *(matrix.flatten() for matrix in mine)], out=sent[: sizes[rank]])
        got = sent.new_empty(world, len(sent))
        dist.all_gather_into_tensor(got.view(WIRE).flatten(), sent.view(WIRE))
        found = list(updates)
        for places, row, size in zip(owned, got, sizes, strict=True):
            pieces = row[:size].split([updates[place].numel() for place in places])
            for place, piece in zip(places, pieces, strict=True):
                found[place] = piece.view_as(updates[place])
        return found

    def _of_shards(
        self, parameters: list[Tensor], updates: list[Tensor], group: dict[str, Any], processes: dist.ProcessGroup
    ) -> list[Tensor]:
        world, rank = dist.get_world_size(processes), dist.get_rank(processes)
        owned = shares([parameter.numel() for parameter in parameters], world)
        rows = [rows_of(parameter.shape[0], world) for parameter in parameters]
        columns = [parameter.shape[1] for parameter in parameters]
        # To the owner of each matrix, this process's rows; from every process, its rows of this one's matrices.
        here = [[rows[place][rank] * columns[place] for place in places] for places in owned]
        mine = [[rows[place][other] * columns[place] for place in owned[rank]] for other in range(world)]
        sent = [updates[place].bfloat16().flatten() for places in owned for place in places]
        parts = exchanged(sent, here, mine, processes)
        wholes = [
            torch.cat([part[number] for part in parts]).view(-1, columns[place])
            for number, place in enumerate(owned[rank])
        ]
        directions = self._orthogonal(wholes, group)
        cut = [matrix.split(rows[place]) for matrix, place in zip(directions, owned[rank], strict=True)]
        back = exchanged([matrix[other].flatten() for other in range(world) for matrix in cut], mine, here, processes)
        found = list(updates)
        for places, part in zip(owned, back, strict=True):
            for place, piece in zip(places, part, strict=True):
                found[place] = piece.view_as(updates[place])
        return found


def exchanged(
    pieces: list[Tensor], sizes: list[list[int]], expected: list[list[int]], processes: dist.ProcessGroup
) -> list[list[Tensor]]:
    """Send pieces to all processes and get theirs.

    Args:
        pieces: bfloat16, flat; those for the first process first.
        sizes: to each process, the size of each of its pieces.
        expected: from each process, the size of each of its pieces.
    """
    sent = torch.cat(pieces)
    totals, coming = [2 * sum(each) for each in sizes], [2 * sum(each) for each in expected]  # bytes
    got = sent.new_empty(sum(coming) // 2)
    dist.all_to_all_single(got.view(WIRE), sent.view(WIRE), coming, totals, processes)
    flat = got.split([size for each in expected for size in each])
    ends = list(accumulate(map(len, expected)))
    return [list(flat[end - len(each) : end]) for each, end in zip(expected, ends, strict=True)]


def shares(sizes: list[int], world: int) -> list[list[int]]:
    """The places of each process: in turn, the largest first."""
    order = sorted(range(len(sizes)), key=lambda place: -sizes[place])
    return [order[rank::world] for rank in range(world)]


def rows_of(rows: int, world: int) -> list[int]:
    """The rows that each process has of a matrix in FSDP2, as `torch.chunk` divides them."""
    each = -(-rows // world)
    return [max(0, min(each, rows - rank * each)) for rank in range(world)]
