"""Work that is metered before it is done: commands a turn, starts of a client, messages to parse, uploads to hold."""

from __future__ import annotations

import asyncio
import io
import json
import resource
import subprocess
import sys
import threading
import time
from typing import Any

import numpy as np
import pytest
import soundfile

pytest.importorskip("starlette", reason='needs pip install "focalstream[serve]"')

from slm.serve.client import ServerError, connect
from slm.serve.messages import Cancel, Feed, Open, Request, Stop
from slm.serve.model_process import COMMANDS, execute_commands
from slm.serve.protocol import Budget, Limits, Refused, parse
from slm.serve.scheduler import Scheduler
from slm.serve.session import BURST_STARTS
from slm.serve.slots import SlotBatch
from slm.serve.uploads import audio_of, body_of
from tests.slm.serve.test_whole_files import TOKEN, post, sound_file


def test_a_budget_refills_with_time() -> None:
    now = [0.0]
    budget = Budget(2.0, 3, lambda: now[0])
    assert [budget.take() for _ in range(4)] == [True, True, True, False]
    now[0] = 0.5
    assert [budget.take() for _ in range(2)] == [True, False]
    now[0] = 100.0
    assert sum(budget.take() for _ in range(10)) == 3


class EndlessPipe:
    """A pipe on which commands never end."""

    def __init__(self, command: Any) -> None:
        self.command, self.taken = command, 0

    def poll(self, _: float | None) -> bool:
        return True

    def recv(self) -> Any:
        self.taken += 1
        return self.command


class Counting:
    def __init__(self, seconds: float = 0.0) -> None:
        self.done, self.seconds = 0, seconds

    def do(self, _: Any) -> None:
        self.done += 1
        time.sleep(self.seconds)


def test_commands_without_end_leave_time_for_work() -> None:
    pipe, scheduler = EndlessPipe(Cancel(1)), Counting()
    assert execute_commands(pipe, scheduler, None) and scheduler.done == pipe.taken <= COMMANDS  # type: ignore[arg-type]
    pipe, scheduler = EndlessPipe(Cancel(1)), Counting(seconds=0.01)
    assert execute_commands(pipe, scheduler, None) and scheduler.done == 1  # type: ignore[arg-type]
    assert not execute_commands(EndlessPipe(Stop()), scheduler, None)  # type: ignore[arg-type]


def test_starting_and_cancelling_costs_the_models_nothing(tiny_codec: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    from slm.model.transformer import LanguageModel, ModelConfig
    from slm.vocabulary import Vocabulary

    vocabulary = Vocabulary(tiny_codec.codebook_size, tiny_codec.token_rate, "tiny", tiny_codec.fingerprint)
    config = ModelConfig(width=32, layers=1, heads=2, kv_heads=1, ffn_width=32, context=16)
    model = LanguageModel(config, vocabulary.size).eval().requires_grad_(False)
    batch = SlotBatch(tiny_codec, model, vocabulary, 2)
    begun: list[int] = []
    begin = batch.begin
    monkeypatch.setattr(batch, "begin", lambda slot: (begun.append(slot), begin(slot))[1])
    scheduler = Scheduler(batch, lambda _: None)
    from slm.generation.sampling import Sampling

    request = Request(Sampling(), 0, 0.0, 1.0)
    for number in range(50):
        scheduler.do(Open(number, request))
        scheduler.do(Cancel(number))
        assert scheduler.work() is None
    assert begun == []
    scheduler.do(Open(99, request))
    scheduler.do(Feed(99, np.zeros(4 * tiny_codec.chunk_samples, np.float32)))
    assert scheduler.work() == 0.0 and begun == [0]


@pytest.mark.slow
def test_a_client_may_start_so_many_streams(server: Any) -> None:
    async def run() -> tuple[list[str], float]:
        async with connect(server.websocket, TOKEN) as client:
            began = time.monotonic()
            for _ in range(2 * BURST_STARTS):
                await client.tell(type="start")
                await client.tell(type="cancel")
            await client.tell(type="continue")  # of no stream: what is refused after all others
            refused: list[str] = []
            while "not_ready" not in refused:
                try:
                    await client.receive()
                except ServerError as error:
                    refused.append(error.code)
            seconds = time.monotonic() - began
            await asyncio.sleep(1.1)
            await client.start()  # the budget refills, and the connection is still open
            return refused[:-1], seconds

    refused, seconds = asyncio.run(run())
    refilled = 1 + seconds * server.service.limits.starts_per_second
    assert set(refused) == {"too_many_starts"} and BURST_STARTS - refilled <= len(refused) <= BURST_STARTS


def test_a_long_control_message_is_refused_before_it_is_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json, "loads", lambda *_, **__: pytest.fail("it was parsed"))
    with pytest.raises(Refused, match=r"text message has \d+ characters; expected 4096 at most"):
        parse(json.dumps({"type": "start", **{f"a{n}": n for n in range(450)}}))


def flac(seconds: float, rate: int, channels: int) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros((int(seconds * rate), channels), np.int16), rate, format="FLAC")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("rate", "channels", "reason"),
    [(655350, 1, "has 655350 Hz; expected 4000 to 192000"), (16000, 8, ""), (1000, 1, "has 1000 Hz")],
)
def test_rate_and_channels_are_bounded_before_anything_is_decoded(
    rate: int, channels: int, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tokenizer.audio_input.reader import AudioReader

    if not reason:
        assert len(audio_of(flac(1.0, rate, channels), 16000, 4.0)) == 16000
        return
    monkeypatch.setattr(AudioReader, "read", lambda *_: pytest.fail("it was decoded"))
    with pytest.raises(Refused, match=reason):
        audio_of(flac(1.0, rate, channels), 16000, 4.0)


def test_a_file_that_is_too_long_is_refused_by_its_header(monkeypatch: pytest.MonkeyPatch) -> None:
    from tokenizer.audio_input.reader import AudioReader

    monkeypatch.setattr(AudioReader, "read", lambda *_: pytest.fail("it was decoded"))
    with pytest.raises(Refused, match="longer than 4 s"):
        audio_of(flac(60.0, 48000, 2), 16000, 4.0)


def test_decoding_takes_little_memory() -> None:
    """30 s of 8 channels at 192 kHz are 184 MB of samples, in a file of some kilobytes."""
    body = flac(30.0, 192000, 8)
    assert len(body) < 200_000
    audio_of(flac(0.1, 192000, 8), 16000, 30.0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert len(audio_of(body, 16000, 30.0)) == 480_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 30_000  # KiB


class Body:
    """A request whose body comes in pieces, with pauses."""

    def __init__(self, pieces: list[bytes], pause: float = 0.0) -> None:
        self.pieces, self.pause = pieces, pause

    async def stream(self) -> Any:
        for piece in self.pieces:
            yield piece
            await asyncio.sleep(self.pause)


def test_bodies_are_bounded_in_size_time_and_number() -> None:
    from slm.serve.service import Service

    service = Service(None, Limits(upload_bytes=100, upload_seconds=1.0))  # type: ignore[arg-type]

    async def read(request: Body, most: int = 100) -> bytes:
        async with body_of(service, request, most) as body:  # type: ignore[arg-type]
            assert service.held_bytes >= len(body)
            return body

    async def run() -> None:
        assert await read(Body([b"a" * 60, b"b" * 40])) == b"a" * 60 + b"b" * 40
        for request, most, code in (
            (Body([b"a"] * 101), 100, "too_large"),
            (Body([b"a"] * 30), 20, "too_large"),
            (Body([b"a"] * 9, pause=0.4), 100, "too_slow"),
        ):
            with pytest.raises(Refused) as refused:
                await read(request, most)
            assert refused.value.code == code
        slow = [asyncio.create_task(read(Body([b"a" * 100], pause=0.1))) for _ in range(5)]
        found = await asyncio.gather(*slow, return_exceptions=True)
        assert [getattr(one, "code", "read") for one in found] == ["read"] * 4 + ["busy"]
        assert service.held_bytes == 0

    asyncio.run(run())


@pytest.mark.slow
def test_long_json_is_refused_and_never_parsed(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert post(server, "/v1/decode", json.dumps({"tokens": [1] * 2_000_000}).encode())[0] == 413
    tokens = json.loads(post(server, "/v1/encode", sound_file(np.zeros(16000, np.float32)))[1])
    assert post(server, "/v1/decode", json.dumps(tokens, indent=4).encode())[0] == 200


class ChattySocket:
    """A client whose messages have all arrived already."""

    def __init__(self, messages: list[str]) -> None:
        self.messages = messages

    async def receive(self) -> dict[str, Any]:
        if not self.messages:
            await asyncio.Event().wait()
        return {"type": "websocket.receive", "text": self.messages.pop(0)}

    async def send_json(self, _: Any) -> None:
        pass

    async def close(self, code: int, reason: str) -> None:
        pass


def test_others_have_their_turn_between_two_messages_of_a_client() -> None:
    from types import SimpleNamespace

    from slm.serve.model_process import Models
    from slm.serve.service import Service
    from slm.serve.session import Session

    names = Models.__dataclass_fields__
    model = SimpleNamespace(models=Models(**dict.fromkeys(names, 1)), backlog=0, send=lambda _: None)  # type: ignore[arg-type]

    async def run() -> int:
        socket = ChattySocket(['{"type": "hello", "version": 1}'] + ['{"type": "cancel"}'] * 100)
        task = asyncio.create_task(Session(socket, Service(model)).run())  # type: ignore[arg-type]
        turns = 0
        while socket.messages:
            await asyncio.sleep(0)
            turns += 1
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return turns

    assert asyncio.run(run()) >= 100


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_freed_blocks_go_back_to_the_system() -> None:
    """Also below a block that stays, and after a larger one was freed."""
    code = """
import numpy as np
from tokenizer.runs.memory import return_large_blocks
resident = lambda: int(open("/proc/self/statm").read().split()[1]) * 4096 >> 20
return_large_blocks()
np.ones(1 << 22, np.uint8)
blocks = [np.ones(1 << 20, np.uint8) for _ in range(50)]
kept, before = blocks.pop(), resident()
blocks.clear()
print(before - resident())
"""
    assert int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout) > 40


class GoneRequest(Body):
    """Its client sends a body and goes away."""

    async def receive(self) -> dict[str, Any]:
        return {"type": "http.disconnect"}


def test_an_upload_of_a_client_that_has_left_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    from slm.serve import uploads
    from slm.serve.service import Service

    free = threading.Event()
    uploads.DECODER.submit(free.wait)  # another's file
    monkeypatch.setattr(uploads, "audio_of", lambda *_: pytest.fail("it was decoded"))
    service = Service(SimpleNamespace(models=SimpleNamespace(sample_rate_in=16000)))  # type: ignore[arg-type]
    with pytest.raises(Refused, match="disconnected"):
        asyncio.run(uploads.uploaded_audio(service, GoneRequest([b"sound"])))  # type: ignore[arg-type]
    free.set()
    assert service.held_bytes == 0 and uploads.DECODER.submit(lambda: 1).result() == 1
