"""What this machine has: devices, cores, and which engine runs which precision on it."""

from __future__ import annotations

import math
import os
from pathlib import Path

from tokenizer.errors import InputError

ENGINES = {"torch": ("fp32", "bf16"), "onnx": ("fp32", "int8")}  # the precisions that each engine runs


def check_device(device: str) -> None:
    """Raise InputError unless PyTorch can put a tensor on `device` ("cpu", "cuda", "cuda:1")."""
    import torch

    try:
        if torch.device(device).type == "meta":
            raise RuntimeError("it holds no data")
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).split("\n")[0].split(":")[0][:100]
        raise InputError(
            f"device '{device}' cannot be used ({reason}); expected \"cpu\" or a GPU of this machine"
        ) from None


def check_engine(engine: str, precision: str, device: str) -> None:
    """Raise InputError unless there is such an engine and it runs that precision on that device."""
    if engine not in ENGINES:
        raise InputError(f"engine {engine!r}: expected one of {', '.join(ENGINES)}")
    if precision not in ENGINES[engine]:
        able = [other for other, precisions in ENGINES.items() if precision in precisions]
        hint = f'; {precision} needs engine="{able[0]}"' if able else ""
        raise InputError(f'precision {precision!r}: engine "{engine}" runs {" and ".join(ENGINES[engine])}{hint}')
    check_device(device)
    if engine == "onnx" and device.partition(":")[0] != "cpu":
        raise InputError(f'device {device!r}: engine "onnx" runs on the CPU; use engine="torch" there')


def available_cores() -> int:
    """CPU cores that this process may use, at least 1: its affinity, or its control group's quota where that is less.

    A quota of 1.5 cores counts as 2.
    """
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, math.ceil(min(cores, cpu_quota())))


def cpu_quota(membership: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> float:
    """Cores that Linux control groups allow this process, as containers and Slurm set them; infinity without a limit.

    Args:
        membership: the kernel's list of the groups that the process is in.
        root: where the groups are mounted.
    """
    try:
        lines = membership.read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return math.inf
    quotas = [math.inf]
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers == "" or "cpu" in controllers.split(","):
            mount = root / controllers  # version 2 has no controllers here, and one tree
            # Every group up to the root limits those in it. In a container its own group may be mounted as the root.
            below = [part for part in Path(group.lstrip("/")).parts if part != ".."]
            quotas += [_group_quota(mount.joinpath(*below[:depth])) for depth in range(len(below) + 1)]
    return min(quotas)


def _group_quota(group: Path) -> float:
    """Cores that one control group allows; infinity where it says nothing."""
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):  # version 2, version 1
        try:
            quota, period = " ".join((group / name).read_text(encoding="ascii") for name in names).split()
        except (OSError, ValueError):
            continue
        if quota.isdigit() and int(period) > 0:  # "max" and -1 mean no limit
            return int(quota) / int(period)
    return math.inf
