"""What the machine has: cores within affinity and quota, devices and engines refused by name."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from tokenizer import machine
from tokenizer.errors import InputError
from tokenizer.machine import available_cores, check_device, check_engine, cpu_quota


def test_a_quota_of_version_2_is_the_least_on_the_way_to_the_root(tmp_path: Path) -> None:
    group = tmp_path / "slice" / "job"
    group.mkdir(parents=True)
    membership = tmp_path / "cgroup"
    membership.write_text("0::/slice/job\n")
    assert cpu_quota(membership, tmp_path) == math.inf
    (group / "cpu.max").write_text("max 100000\n")
    assert cpu_quota(membership, tmp_path) == math.inf
    (group / "cpu.max").write_text("350000 100000\n")
    assert cpu_quota(membership, tmp_path) == 3.5
    (tmp_path / "slice" / "cpu.max").write_text("150000 100000\n")
    assert cpu_quota(membership, tmp_path) == 1.5


def test_a_quota_of_version_1_is_read_where_its_controller_is_mounted(tmp_path: Path) -> None:
    group = tmp_path / "cpu,cpuacct" / "docker" / "1f"
    group.mkdir(parents=True)
    (group / "cpu.cfs_quota_us").write_text("-1\n")
    (group / "cpu.cfs_period_us").write_text("100000\n")
    membership = tmp_path / "cgroup"
    membership.write_text("4:memory:/other\n3:cpu,cpuacct:/docker/1f\n0::/\n")
    assert cpu_quota(membership, tmp_path) == math.inf
    (group / "cpu.cfs_quota_us").write_text("250000\n")
    assert cpu_quota(membership, tmp_path) == 2.5


def test_without_control_groups_there_is_no_quota(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path / "missing", tmp_path) == math.inf


@pytest.mark.parametrize(("quota", "cores"), [(math.inf, 6), (8.0, 6), (1.5, 2), (0.2, 1)])
def test_cores_are_the_lesser_of_affinity_and_quota(monkeypatch: pytest.MonkeyPatch, quota: float, cores: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(3, 9)), raising=False)
    monkeypatch.setattr(machine, "cpu_quota", lambda: quota)
    assert available_cores() == cores


def test_cores_without_affinity_are_those_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    monkeypatch.setattr(machine, "cpu_quota", lambda: math.inf)
    assert available_cores() == 5


@pytest.mark.parametrize("device", ["gpu", "meta", "cuda:97"])
def test_a_device_that_is_not_there_is_refused_by_name(device: str) -> None:
    with pytest.raises(InputError, match=device):
        check_device(device)


def test_an_engine_is_refused_for_what_it_does_not_run() -> None:
    check_engine("torch", "bf16", "cpu")
    check_engine("onnx", "int8", "cpu")
    with pytest.raises(InputError, match=r"engine 'jax': expected one of torch, onnx"):
        check_engine("jax", "fp32", "cpu")
    with pytest.raises(InputError, match='int8 needs engine="onnx"'):
        check_engine("torch", "int8", "cpu")


INTEL = "processor\t: 0\nmodel name\t: A CPU @ 2 GHz\nflags\t\t: fpu sse4_2 avx2 fma avx512_bf16\n\nprocessor\t: 1\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd asimddp i8mm bf16\n"
APPLE = "machdep.cpu.brand_string: Apple M3\nhw.optional.arm.FEAT_DotProd: 1\nhw.optional.arm.FEAT_BF16: 0\n"


def test_instructions_are_read_from_what_systems_print():
    assert machine.parsed_cpuinfo(INTEL) == ("A CPU @ 2 GHz", ("sse4_2", "avx2", "fma", "avx512_bf16"))
    assert machine.parsed_cpuinfo(ARM).instructions == ("asimd", "asimddp", "i8mm", "bf16")
    assert machine.parsed_sysctl(APPLE) == ("Apple M3", ("asimddp",))
    assert machine.parsed_cpuinfo("nothing here").instructions == ()


@pytest.mark.parametrize(
    ("instructions", "limit", "wanted", "expected"),
    [
        (("avx2", "avx512_bf16"), "", None, "bfloat16"),
        (("avx2", "amx_bf16"), "", None, "bfloat16"),
        (("avx2", "fma"), "", None, "float32"),
        (("avx2", "avx512_bf16"), "avx2", None, "float32"),  # held to fewer instructions than there are
        (("avx2", "fma"), "", True, "bfloat16"),
        (("avx2", "avx512_bf16"), "", False, "float32"),
    ],
)
def test_training_takes_bfloat16_where_the_processor_multiplies_it(monkeypatch, instructions, limit, wanted, expected):
    monkeypatch.setattr(machine, "processor", lambda: machine.Processor("some", instructions))
    monkeypatch.setattr("platform.system", lambda: "Linux")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert machine.training_precision("cpu", wanted).value == expected


def test_without_an_instruction_for_it_sums_of_bytes_saturate(monkeypatch):
    for instructions, exact in ((("avx2",), False), (("avx2", "avx_vnni"), True), ((), True)):
        monkeypatch.setattr(machine, "processor", lambda found=instructions: machine.Processor("some", found))
        assert machine.sums_bytes() is exact
