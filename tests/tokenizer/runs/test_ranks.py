"""Two processes train as one with their batches side by side."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from tests.rank_processes import together
from tests.tokenizer.training.conftest import make_corpus, quick, records
from tokenizer import Codec
from tokenizer.runs.ranks import Ranks, join_ranks
from tokenizer.training.batches import Batch, Crops, Rates
from tokenizer.training.loop import run_stage

RATES = Rates(16000, 16000, 1280)
SETTINGS = {"batch_size": 2, "bfloat16": False, "losses": {"mel": 1.0}, "steps": 4}


def one_of_two(folder: Path) -> None:
    with join_ranks("cpu") as (ranks, device):
        codec = Codec.from_pretrained(str(folder / "start")).train()
        crops = Crops(make_corpus(), RATES, 1280 * 6, 2, seed=0)
        run_stage("tune", quick("tune", **SETTINGS), codec, None, crops, crops, folder / "two", device, 0, ranks)


class Joined:
    """Batches 2n and 2n + 1 of another's as batch n."""

    def __init__(self, batches: Crops) -> None:
        self.batches, self.per_epoch = batches, batches.per_epoch

    def __getitem__(self, step: int) -> Batch:
        left, right = self.batches[2 * step], self.batches[2 * step + 1]
        wave, target, lengths = (torch.cat(pair) for pair in zip(left[:3], right[:3], strict=True))
        return Batch(wave, target, lengths, left.texts + right.texts)


@pytest.mark.slow
def test_two_processes_are_one_with_twice_the_batch(tiny_codec: Codec, tmp_path: Path) -> None:
    tiny_codec.save_pretrained(tmp_path / "start")
    codec = Codec.from_pretrained(str(tmp_path / "start")).train()
    crops = Crops(make_corpus(), RATES, 1280 * 6, 2, seed=0)
    run_stage("tune", quick("tune", **SETTINGS), codec, None, Joined(crops), None, tmp_path / "one")
    together(one_of_two, tmp_path)
    one, two = records(tmp_path / "one"), records(tmp_path / "two")
    # Sums in another order: float32's rounding, which AdamW's first steps carry on.
    np.testing.assert_allclose([r["loss"] for r in two], [r["loss"] for r in one], rtol=1e-4)
    assert len({json.dumps(r["loss"]) for r in one}) == 4
    other = Codec.from_pretrained(str(tmp_path / "two" / "codec"))
    for name, tensor in codec.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], tensor, atol=2e-4, rtol=1e-3)


def test_a_process_whose_batch_left_a_parameter_unused_still_takes_part(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    monkeypatch.setattr(dist, "all_reduce", lambda flat: sizes.append(len(flat)))
    parameters = [torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2))]
    parameters[0].sum().backward()
    Ranks(0, 2).average_gradients(parameters)
    assert sizes == [5] and parameters[1].grad is not None
