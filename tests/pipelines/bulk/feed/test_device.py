"""The device's side of a run, without a GPU: what is queued, in which order, and that nobody is too early."""

from __future__ import annotations

import contextlib
import weakref

import numpy as np
import pytest
import torch

from pipelines.bulk import encoding as encoding_module
from pipelines.bulk.encoding import Encoding, encode_cuts
from pipelines.bulk.feed.buffers import SharedMemory
from pipelines.bulk.feed.device import Device, products_in
from tests.pipelines.bulk.test_encoding import planned


class LateDevice(Device):
    """A device that does nothing before somebody waits for tokens, and then everything that was queued until these."""

    def __init__(self, codec, place):
        super().__init__(codec, place)
        self.queued = []

    def encode(self, wave, lengths):
        return self._queue(lambda: super(LateDevice, self).encode(wave, lengths).result())

    def encode_step(self, wave, state):
        def work():
            tokens, later.state = super(LateDevice, self).encode_step(wave, state.state)
            return tokens.result()

        later = self._queue(work)
        return later, later

    def renewed(self, state, rows, fresh):
        def work():
            later.state = super(LateDevice, self).renewed(state and state.state, rows, fresh)

        later = self._queue(work)
        return later

    def _queue(self, work):
        later = Later(self, work)
        self.queued.append(later)
        return later


class Later:
    def __init__(self, device, work):
        self._device, self._work = device, work

    def result(self):
        while self in self._device.queued:
            first = self._device.queued.pop(0)
            first.tokens = first._work()
        return self.tokens


def test_what_was_given_stays_as_it_is_until_its_tokens_are_there(write_manifest, speech, tiny_codec, monkeypatch):
    """The samples of a batch and the state of a stream: a GPU may read them after the call that queued the work."""
    monkeypatch.setattr(encoding_module, "LONG_SECONDS", 1.0)
    monkeypatch.setattr(encoding_module, "WINDOW_SECONDS", 0.5)
    cuts = planned(write_manifest({f"cut-{i}": speech(60 + i, 0.3 + 0.13 * (7 * i % 20)) for i in range(20)}))
    encoding = Encoding(batch_seconds=1.5, long_rows=2)
    wanted = encode_cuts(cuts, tiny_codec, encoding)
    monkeypatch.setattr(encoding_module, "BATCHES_AHEAD", 1)
    monkeypatch.setattr(encoding_module, "JOB_SECONDS", 0.1)  # two buffers
    monkeypatch.setattr(encoding_module, "Device", LateDevice)
    for outcome, codes in zip(encode_cuts(cuts, tiny_codec, encoding), wanted, strict=True):
        np.testing.assert_array_equal(outcome, codes)


@contextlib.contextmanager
def nobody_waits():
    """Fails where a value of a tensor is looked at: on a GPU that waits for all that is queued there."""

    def looked(*arguments):
        raise AssertionError("somebody waits for the device")

    with pytest.MonkeyPatch.context() as patch:
        for look in ("__float__", "__int__", "__bool__", "__index__", "item", "tolist", "numpy", "cpu"):
            patch.setattr(torch.Tensor, look, looked)
        yield


class FakeCuda:
    """Writes down what is asked of CUDA; tensors stay where they are."""

    def __init__(self, monkeypatch):
        self.log, self.here, self.place = [], "computing", "another"
        for name in ("Stream", "stream", "current_stream", "device", "Event", "synchronize", "cudart"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))
        empty = torch.empty
        monkeypatch.setattr(torch, "empty", lambda *shape, pin_memory=False, **more: empty(*shape, **more))
        from_numpy = torch.from_numpy
        monkeypatch.setattr(torch, "from_numpy", lambda array: self.note("move") or from_numpy(array).clone())
        monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: self.note(f"kept for {stream.name}"))
        self.refuses = 0

    def note(self, what):
        self.log.append(f"{self.place} {self.here}: {what}")

    def Stream(self, place):
        return FakeStream(self, "copies")

    @contextlib.contextmanager
    def stream(self, stream):
        before, self.here = self.here, stream.name
        yield
        self.here = before

    def current_stream(self):
        return FakeStream(self, self.here)

    @contextlib.contextmanager
    def device(self, place):
        before, self.place = self.place, str(place)
        yield
        self.place = before

    def Event(self, blocking=False):
        return FakeEvent(self, blocking)

    def synchronize(self):
        self.note("wait for all")

    def cudart(self):
        return self

    def cudaHostRegister(self, address, size, flags):
        self.note(f"pin {size}")
        return self.refuses

    def cudaHostUnregister(self, address):
        self.note("unpin")


class FakeStream:
    def __init__(self, cuda, name):
        self.cuda, self.name = cuda, name

    def wait_stream(self, other):
        self.cuda.note(f"wait for {other.name}")


class FakeEvent:
    def __init__(self, cuda, blocking):
        self.cuda, self.blocking = cuda, blocking

    def record(self):
        self.cuda.note("event")

    def synchronize(self):
        self.cuda.note("asleep until event" if self.blocking else "spinning until event")


@pytest.fixture
def cuda(monkeypatch):
    return FakeCuda(monkeypatch)


def on_fake_gpu(codec):
    device = Device(codec, "cpu")
    device._copies = torch.cuda.Stream(device.place)
    assert device.is_gpu
    return device


def test_batches_are_queued_in_order_and_nobody_waits(cuda, tiny_codec):
    wave, lengths = np.float32(0.1 * np.random.default_rng(0).standard_normal((3, 9000))), np.array([9000, 5, 7777])
    wanted = Device(tiny_codec, "cpu").encode(wave, lengths).result()
    cuda.log.clear()
    with nobody_waits():
        tokens = on_fake_gpu(tiny_codec).encode(wave, lengths)
    queued = ["copies: move", "computing: wait for copies", "computing: kept for computing", "computing: event"]
    assert cuda.log == [f"cpu {entry}" for entry in queued]
    np.testing.assert_array_equal(tokens.result(), wanted)
    assert cuda.log[4:] == ["cpu computing: asleep until event"]


def test_streams_are_queued_and_nobody_waits(cuda, tiny_codec):
    rng, chunk = np.random.default_rng(1), tiny_codec.chunk_samples
    waves = [np.float32(0.1 * rng.standard_normal((rows, 3 * chunk))) for rows in (3, 3, 2)]
    host, device = Device(tiny_codec, "cpu"), on_fake_gpu(tiny_codec)
    before, now = None, None
    for wave, fresh in zip(waves, ([0, 1, 2], [1], []), strict=True):
        wanted, before = host.encode_step(wave, host.renewed(before, len(wave), fresh))
        with nobody_waits():
            tokens, now = device.encode_step(wave, device.renewed(now, len(wave), fresh))
        np.testing.assert_array_equal(tokens.result(), wanted.result())


def test_memory_is_pinned_for_its_gpu_and_let_go_when_nothing_reads_it(cuda):
    memory = SharedMemory(2, 100)
    memory.pin(torch.device("cuda:1"))
    memory.close()
    assert cuda.log == [f"cuda:1 computing: {what}" for what in ("pin 800", "wait for all", "unpin")]


def test_memory_that_cannot_be_pinned_is_used_all_the_same(cuda, caplog):
    cuda.refuses = 2
    memory = SharedMemory(1, 100)
    memory.pin(torch.device("cpu"))
    memory.close()
    assert "CUDA error 2" in caplog.text and len(cuda.log) == 1


def test_an_error_lets_go_of_its_memory_before_cuts_are_tried_alone(write_manifest, speech, tiny_codec):
    class Full:
        """No memory for more than a cut at a time, nor for one while that of the failed batch is held."""

        def __getattr__(self, name):
            return getattr(tiny_codec, name)

        def encode(self, wave, lengths=None):
            if len(wave) == 1:
                assert held() is None
                return tiny_codec.encode(wave, lengths)
            activations = torch.zeros(10)
            held_by.append(weakref.ref(activations))
            raise torch.OutOfMemoryError

    held_by = []

    def held():
        return held_by[-1]() if held_by else None

    cuts = planned(write_manifest({f"cut-{i}": speech(80 + i, 0.5) for i in range(3)}))
    outcomes = encode_cuts(cuts, Full(), Encoding())
    assert held_by and all(isinstance(outcome, np.ndarray) for outcome in outcomes)


def test_settings_of_cuda_are_put_back():
    matrices, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn

    def settings():
        return matrices.allow_tf32, convolutions.allow_tf32, convolutions.deterministic, convolutions.benchmark

    before = settings()
    for precision, tf32 in (("fp32", False), ("tf32", True), ("bf16", False)):
        with products_in(precision):
            assert settings() == (tf32, tf32, True, False)
        assert settings() == before
