"""What a process says when another one is gone, and its own GPU."""

from __future__ import annotations

import pytest
import torch

from tokenizer.errors import InputError
from tokenizer.runs.ranks import Ranks, join_ranks, lost_process_as_input_error


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(
            "[../third_party/gloo/gloo/transport/tcp/pair.cc:538] Connection closed by peer [127.0.0.1]:1\nat"
        ),
        torch.distributed.DistBackendError("NCCL error in: remote process exited or there was a network error"),
    ],
)
@pytest.mark.parametrize("local", [0, 1])
def test_a_lost_process_is_one_line(error: Exception, local: int) -> None:
    said = r"^process 3 of 8 on .* has died or stopped answering"
    with pytest.raises(InputError, match=said) as caught, lost_process_as_input_error(Ranks(3, 8), local):
        raise error
    assert "\n" not in str(caught.value) and caught.value.is_said == (local == 1)


def test_other_errors_keep_their_traceback() -> None:
    with pytest.raises(RuntimeError, match="CUDA out of memory"), lost_process_as_input_error(Ranks(3, 8), 0):
        raise RuntimeError("CUDA out of memory")


def test_more_processes_than_gpus_is_said_before_they_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4", "LOCAL_RANK": "3", "RANK": "3"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    said = "started 4 processes here, but this machine has 2 GPUs: give --nproc-per-node 2"
    with pytest.raises(InputError, match=said), join_ranks("cuda"):
        raise AssertionError("joined")


def test_each_process_sets_its_gpu_before_it_joins(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "4", "LOCAL_RANK": "1", "RANK": "3"}.items():
        monkeypatch.setenv(name, value)
    calls: list[object] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", calls.append)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *given, **_: calls.append(given))
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: calls.append("end"))
    with join_ranks("cuda") as (ranks, device):
        assert (ranks, device) == (Ranks(3, 4), "cuda:1")
    assert calls == ["cuda:1", ("cpu:gloo,cuda:nccl",), "end"]
