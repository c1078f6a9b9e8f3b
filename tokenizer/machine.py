"""What this machine has (processor, cores, memory, devices), which engine runs which precision, and what is chosen.

Nothing here imports PyTorch unless a device has to be asked for.
"""

from __future__ import annotations

import math
import os
import platform
import subprocess
from functools import cache
from pathlib import Path
from typing import NamedTuple

from tokenizer.errors import InputError

ENGINES = {"torch": ("fp32", "bf16"), "onnx": ("fp32", "int8")}  # the precisions that each engine runs


# Instructions that something here depends on, by their names in Linux's /proc/cpuinfo.
INSTRUCTIONS = (
    *("sse4_2", "avx", "avx2", "fma", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16"),
    *("amx_int8", "amx_bf16", "asimd", "asimddp", "i8mm", "bf16", "sve"),
)
MULTIPLY_BFLOAT16 = {"avx512_bf16", "amx_bf16", "bf16"}
SUM_BYTES = {"avx_vnni", "avx512_vnni", "amx_int8", "asimddp"}  # products of bytes in 32 bits, which cannot saturate
# What PyTorch's matrix library may be held to, below the instructions for bfloat16.
WITHOUT_BFLOAT16 = {"DEFAULT", "SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX512_CORE", "AVX512_CORE_VNNI"}
APPLE = {  # what `sysctl` calls them
    "hw.optional.arm.FEAT_DotProd": "asimddp",
    "hw.optional.arm.FEAT_I8MM": "i8mm",
    "hw.optional.arm.FEAT_BF16": "bf16",
    "hw.optional.neon": "asimd",
    "hw.optional.avx2_0": "avx2",
    "hw.optional.avx512f": "avx512f",
}


class Processor(NamedTuple):
    """A processor's name, and which of INSTRUCTIONS it has; none where the system does not say."""

    name: str
    instructions: tuple[str, ...]


@cache
def processor() -> Processor:
    """This machine's processor."""
    try:
        return parsed_cpuinfo(Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    except OSError:  # not Linux
        pass
    try:
        command = ["sysctl", "-i", "machdep.cpu.brand_string", *APPLE]
        return parsed_sysctl(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    except (OSError, subprocess.CalledProcessError):  # not macOS
        return Processor(platform.processor() or platform.machine(), ())


def parsed_cpuinfo(text: str) -> Processor:
    """The first core of Linux's /proc/cpuinfo; on ARM it has no name there."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    name = fields.get("model name") or platform.machine()
    return Processor(name, tuple(flag for flag in INSTRUCTIONS if flag in flags))


def parsed_sysctl(text: str) -> Processor:
    """What macOS's `sysctl` prints."""
    fields = dict(line.split(": ", 1) for line in text.splitlines() if ": " in line)
    flags = {flag for key, flag in APPLE.items() if fields.get(key) == "1"}
    name = fields.get("machdep.cpu.brand_string", platform.machine())
    return Processor(name, tuple(flag for flag in INSTRUCTIONS if flag in flags))


def memory_bytes() -> int | None:
    """Bytes of main memory; None where the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


class Choice(NamedTuple):
    """Something chosen for this machine, and why, in a few words."""

    value: str
    reason: str


def training_precision(device: str, wanted: bool | None = None) -> Choice:
    """ "bfloat16" or "float32" to train in on `device`.

    Args:
        device: a torch device.
        wanted: whether bfloat16 was asked for; None: where the hardware multiplies it. Elsewhere it is emulated, at a
            third of the speed of float32.
    """
    if wanted is not None:
        return Choice("bfloat16" if wanted else "float32", "as asked for")
    kind = device.partition(":")[0]
    if kind == "cuda":
        import torch

        major, minor = torch.cuda.get_device_capability(device)
        reason = f"{torch.cuda.get_device_name(device)}, compute capability {major}.{minor}"
        return Choice("bfloat16" if major >= 8 else "float32", reason)
    if kind != "cpu" or platform.system() == "Darwin":  # PyTorch has no fast products of it there
        return Choice("float32", f"on {device if kind != 'cpu' else 'macOS'} PyTorch's bfloat16 is no faster")
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()
    if limit in WITHOUT_BFLOAT16:
        return Choice("float32", f"ONEDNN_MAX_CPU_ISA is {limit}")
    able = sorted(MULTIPLY_BFLOAT16 & set(processor().instructions))
    if able:
        return Choice("bfloat16", f"the processor has {able[0]}")
    return Choice("float32", "the processor does not multiply bfloat16")


def sums_bytes() -> bool:
    """Whether the processor sums products of signed bytes without saturation; true where the system does not say."""
    found = processor().instructions
    return not found or bool(SUM_BYTES & set(found))


def check_device(device: str) -> None:
    """Raise InputError unless PyTorch can put a tensor on `device` ("cpu", "cuda", "cuda:1")."""
    if device == "cpu":
        return
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
