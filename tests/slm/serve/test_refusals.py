"""What the server refuses: messages, origins, and clients that take too much."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from tokenizer.live import to_pcm

websockets = pytest.importorskip("websockets", reason='needs pip install "focalstream[serve]"')
pytest.importorskip("starlette", reason='needs pip install "focalstream[serve]"')

from slm.serve.client import ServerError, connect  # noqa: E402
from slm.serve.protocol import Limits  # noqa: E402
from slm.serve.service import Service  # noqa: E402
from slm.serve.session import Session  # noqa: E402
from tests.slm.serve.test_server import noise  # noqa: E402

TOKEN = "open sesame"
pytestmark = pytest.mark.slow  # it takes seconds to start the model's process

HELLO = json.dumps({"type": "hello", "version": 1, "token": TOKEN})


async def talk(server: Any, messages: list[str | bytes], **options: Any) -> tuple[list[dict[str, Any]], int | None]:
    """Send messages, then what the server said and the code it closed with; None: it was still open after a while."""
    heard: list[dict[str, Any]] = []
    async with websockets.connect(server.websocket, compression=None, max_queue=None, **options) as socket:
        try:
            for message in messages:
                await socket.send(message)
            while True:
                answer = await asyncio.wait_for(socket.recv(), 3)
                if isinstance(answer, str):
                    heard.append(json.loads(answer))
                    if heard[-1].get("code") in ("not_ready", "bad_request", "prompt_too_long"):
                        return heard, None
        except websockets.ConnectionClosed:
            return heard, socket.close_code


@pytest.mark.parametrize(
    ("messages", "code", "closed"),
    [
        (["{"], "bad_message", 1008),
        (["[" * 100_00], "bad_message", 1008),
        (['"hello"'], "bad_message", 1008),
        ([b"\0\0"], "bad_message", 1008),
        ([json.dumps({"type": "hello", "version": 99})], "bad_hello", 1008),
        ([json.dumps({"type": "start"})], "bad_hello", 1008),
        ([json.dumps({"type": "hello", "version": 1})], "bad_token", 4401),
        ([json.dumps({"type": "hello", "version": 1, "token": ["x"]})], "bad_token", 4401),
        ([json.dumps({"type": "hello", "version": 1, "token": "open sesamf"})], "bad_token", 4401),
        ([json.dumps({"type": "hello", "version": 1, "token": "\ud800"})], "bad_token", 4401),
        ([json.dumps({"type": "hello", "version": True, "token": TOKEN})], "bad_hello", 1008),
        ([json.dumps({"type": "hello", "version": 1, "token": TOKEN, "as": "root"})], "bad_hello", 1008),
        ([HELLO, '{"type": "continue", "now": 1}'], "bad_request", None),
        ([HELLO, '{"type": "cancel", "all": 1}'], "bad_request", None),
        ([HELLO, '{"type": "sudo"}'], "bad_message", 1008),
        ([HELLO, b"\0\0\0"], "not_ready", None),
        ([HELLO, b"\0\0"], "not_ready", None),
        ([HELLO, '{"type": "continue"}'], "not_ready", None),
        ([HELLO, '{"type": "start", "temperature": -1}'], "bad_request", None),
        ([HELLO, '{"type": "start", "temperature": NaN}'], "bad_message", 1008),
        ([HELLO, '{"type": "start", "temperature": 1e999}'], "bad_request", None),
        ([HELLO, '{"type": "start", "top_p": 0}'], "bad_request", None),
        ([HELLO, '{"type": "start", "seed": true}'], "bad_request", None),
        ([HELLO, '{"type": "start", "seconds": 1e6}'], "bad_request", None),
        ([HELLO, '{"type": "start", "shell": "rm"}'], "bad_request", None),
        ([HELLO, b"\0" * 70_000], None, 1009),
        ([HELLO] + ['{"type": "cancel"}'] * 600, "too_many_messages", 4429),
    ],
)
def test_what_may_not_be_said_is_refused(server: Any, messages: Any, code: str | None, closed: int | None) -> None:
    heard, close_code = asyncio.run(talk(server, messages))
    assert [answer["code"] for answer in heard if answer["type"] == "error"] == ([code] if code else [])
    assert close_code == closed


def test_origins(server: Any) -> None:
    own = f"http://127.0.0.1:{server.port}"
    for origin in (None, own, "https://friend.example"):
        assert asyncio.run(talk(server, ["{"], origin=origin))[1] == 1008
    for origin in ("https://foe.example", "null", "https://friend.example.foe.example"):
        with pytest.raises(websockets.InvalidStatus, match="403"):
            asyncio.run(talk(server, [], origin=origin))


@pytest.mark.parametrize(
    ("host", "token", "trusted"),
    [
        ("127.0.0.1:8000", None, True),
        ("[::1]:8000", None, True),
        ("localhost:8000", None, True),
        ("foe.example:8000", None, False),  # a name of the foe's that leads here
        ("speech.example", "open sesame", True),
    ],
)
def test_a_page_under_a_name_of_its_own_needs_the_token(host: str, token: str | None, trusted: bool) -> None:
    service = Service(None, Limits(), token)  # type: ignore[arg-type]
    assert service.trusts(f"http://{host}", host) == trusted and service.trusts(None, host)
    assert Service(None, Limits(), token, (f"http://{host}",)).trusts(f"http://{host}", host)  # type: ignore[arg-type]


def replaced(monkeypatch: pytest.MonkeyPatch, server: Any, **limits: Any) -> None:
    monkeypatch.setattr(server.service, "limits", dataclasses.replace(server.service.limits, **limits))


def test_limits(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def too_long() -> None:
        async with connect(server.websocket, TOKEN) as client:
            await client.start()
            await client.send(to_pcm(noise(4.5)))
            with pytest.raises(ServerError, match="prompt_too_long"):
                while True:
                    await client.receive()

    asyncio.run(too_long())
    with monkeypatch.context() as patch:
        replaced(patch, server, hello_seconds=0.2)
        heard, closed = asyncio.run(talk(server, []))
        assert (heard[0]["code"], closed) == ("no_hello", 1008)
    with monkeypatch.context() as patch:
        replaced(patch, server, session_seconds=0.3)
        heard, closed = asyncio.run(talk(server, [HELLO]))
        assert (heard[-1]["code"], closed) == ("session_time", 1001)
    with monkeypatch.context() as patch:
        replaced(patch, server, connections=0)
        with pytest.raises(websockets.InvalidStatus, match="403"):
            asyncio.run(talk(server, []))


class StuckSocket:
    """A client that says hello and start, and never reads."""

    def __init__(self) -> None:
        self.messages = [HELLO, '{"type": "start"}']
        self.closed: int | None = None

    async def receive(self) -> dict[str, Any]:
        if not self.messages:
            await asyncio.Event().wait()
        return {"type": "websocket.receive", "text": self.messages.pop(0)}

    async def send_json(self, _: Any) -> None:
        await asyncio.Event().wait()

    send_bytes = send_json

    async def close(self, code: int, reason: str) -> None:
        self.closed = code


def test_a_slow_reader_is_dropped_and_its_stream_cancelled(server: Any) -> None:
    from slm.serve.messages import Cancel, Open, Ready, Sound

    class Model:
        models = server.service.model.models
        backlog = 0
        commands: list[Any] = []  # noqa: RUF012

        def send(self, command: Any) -> None:
            self.commands.append(command)

    async def run() -> None:
        service = Service(Model(), Limits(unread_frames=5), TOKEN)  # type: ignore[arg-type]
        task = asyncio.create_task(Session(StuckSocket(), service).run())  # type: ignore[arg-type]
        while not Model.commands:
            await asyncio.sleep(0.01)
        number = Model.commands[0].stream
        service._hand_on(Ready(number))
        for _ in range(10):
            service._hand_on(Sound(number, True, np.zeros(4, np.uint16), bytes(2560), 1.0, 0.0))
        await asyncio.wait_for(task, 10)
        assert [type(command) for command in Model.commands] == [Open, Cancel] and service.idle.is_set()
        assert 'refused_total{reason="slow_reader"} 1.0' in service.metrics.text().decode()

    asyncio.run(run())
