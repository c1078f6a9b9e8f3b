"""Batches where nobody says how large: by memory on a GPU, and never other ones in the middle of a dataset."""

import shutil
from types import SimpleNamespace

import pytest

from pipelines.bulk import batch_size
from pipelines.bulk.batch_size import MOST_SECONDS, batch_sharing, default_batch_seconds, fitting_seconds
from pipelines.bulk.encoding import Encoding
from pipelines.bulk.plan import Sharding
from pipelines.format.layout import Layout


@pytest.mark.parametrize(
    ("free", "seconds"),
    [(0, 30.0), (119e6, 30.0), (120e6, 60.0), (239e6, 60.0), (1e9, 480.0), (1.9e9, 480.0), (1e15, MOST_SECONDS)],
)
def test_half_of_the_free_memory_in_steps(free, seconds):
    assert fitting_seconds(free, 1e6) == seconds


@pytest.fixture
def gpu(monkeypatch):
    """A GPU that is none: 2 GB are free, and a second of audio takes 1 MB of it."""
    import torch

    fake = SimpleNamespace(free=2e9)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (fake.free, 80e9))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 5e6)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 5e6 + 80e6)  # 4 rows of 20 s
    zeros, encoded = torch.zeros, []
    monkeypatch.setattr(torch, "zeros", lambda *size, device: zeros(*size))
    codec = SimpleNamespace(sample_rate_in=16000, encode=encoded.append)
    monkeypatch.setattr("tokenizer.Codec.from_pretrained", lambda name, device: codec)
    return fake


def test_a_gpu_gets_what_its_memory_takes(gpu, tmp_path):
    assert default_batch_seconds(Layout(tmp_path), "any", "cuda:1") == 960.0
    gpu.free = 60e6
    assert default_batch_seconds(Layout(tmp_path), "any", "cuda") == 30.0
    assert default_batch_seconds(Layout(tmp_path), "any", "cpu") == Encoding.batch_seconds


def test_a_run_keeps_its_batches(gpu, finished, tmp_path):
    layout = Layout(shutil.copytree(finished, tmp_path / "out"))
    assert default_batch_seconds(layout, "any", "cuda") == 960.0  # it was made on a CPU, in batches of 6 s
    text = layout.dataset.read_text()
    layout.dataset.write_text(text.replace('"device_type": "cpu"', '"device_type": "cuda"'))
    assert default_batch_seconds(layout, "any", "cuda") == 6.0
    (layout.work).mkdir()
    (layout.work / "plan.json").write_text(layout.dataset.read_text().replace('"made_from"', '"identity"'))
    layout.dataset.unlink()
    assert default_batch_seconds(layout, "any", "cuda") == 6.0


def test_batches_are_shared_by_shards_that_hold_many_of_them(finished, tmp_path):
    def shared(seconds, device="cuda", asked=None, out=tmp_path, **sharding):
        return batch_sharing(Layout(out), seconds, device, Sharding(**sharding), asked)

    assert shared(960.0, hours=1.0) == {"batch_shards": 18, "long_rows": 96}
    assert shared(30.0, hours=1.0) == {"batch_shards": 1, "long_rows": 3}
    assert shared(1e6, hours=1.0)["batch_shards"] == 64
    assert shared(960.0, "cpu", hours=1.0) == {} and shared(30.0, "cpu", 5, hours=1.0)["batch_shards"] == 5
    layout = Layout(shutil.copytree(finished, tmp_path / "out"))
    text = layout.dataset.read_text().replace('"device_type": "cpu"', '"device_type": "cuda"')
    layout.dataset.write_text(text)  # made by the version before: what it began with is what it goes on with
    assert shared(960.0, out=tmp_path / "out", hours=1.0) == {"batch_shards": 1, "long_rows": 1}


def test_without_that_gpu_here_it_is_as_on_a_cpu(monkeypatch, tmp_path):
    monkeypatch.setattr(batch_size, "bytes_per_second", None)  # is not called
    assert default_batch_seconds(Layout(tmp_path), "any", "cuda") == Encoding.batch_seconds
