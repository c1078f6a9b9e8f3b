"""The server as clients meet it: streams, the queue, and how it starts and ends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tokenizer import Codec
from tokenizer.errors import InputError
from tokenizer.live import to_pcm

websockets = pytest.importorskip("websockets", reason='needs pip install "focalstream[serve]"')
pytest.importorskip("starlette", reason='needs pip install "focalstream[serve]"')

from slm.serve.client import Client, ServerError, connect  # noqa: E402
from tests.slm.serve.conftest import until_draining  # noqa: E402

TOKEN = "open sesame"
pytestmark = pytest.mark.slow  # it takes seconds to start the model's process


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    count = int(seconds * 16000)
    return (
        0.3 * rng.standard_normal(count) * np.interp(np.arange(count), [0, count / 2, count], rng.random(3))
    ).astype(np.float32)


async def spoken(client: Client, prompt: np.ndarray, **settings: Any) -> tuple[list[int], list[int], np.ndarray]:
    """A stream's prompt codes, new codes and samples."""
    await client.start(**settings)
    await client.send(to_pcm(prompt))
    sounds = [sound async for sound in client.go_on()]
    codes = [[code for sound in sounds if sound.new == new for code in sound.codes.tolist()] for new in (False, True)]
    return codes[0], codes[1], np.concatenate([sound.samples for sound in sounds])


def test_prompts_are_continued_the_same_for_one_and_for_two(server: Any, tiny_codec: Codec) -> None:
    prompt = noise(1.3)
    settings = {"seconds": 1.6, "min_seconds": 1.6, "seed": 4, "top_p": 0.9}

    async def alone() -> Any:
        async with connect(server.websocket, TOKEN) as client:
            assert client.models["fingerprint"] == tiny_codec.fingerprint and client.limits["prompt_seconds"] == 4.0
            said = await spoken(client, prompt, **settings)
            assert client.done["reason"] == "length" and client.done["first_audio_ms"] > 0
            return said

    async def beside() -> Any:
        async with connect(server.websocket, TOKEN) as other, connect(server.websocket, TOKEN) as client:
            both = await asyncio.gather(
                spoken(other, noise(2, seed=9), seconds=2.4, seed=8), spoken(client, prompt, **settings)
            )
            return both[1]

    first, second = asyncio.run(alone()), asyncio.run(beside())
    pcm = np.frombuffer(to_pcm(prompt), "<i2").astype(np.float32) / 32768
    whole = torch.from_numpy(pcm[: 16 * 1280])[None]
    assert first[0] == tiny_codec.encode(whole)[0].tolist() and len(first[1]) == 80
    assert len(first[2]) == 320 * (64 + 80) and first[2].any()
    assert first[:2] == second[:2]
    np.testing.assert_array_equal(first[2], second[2])


def test_a_prompt_at_another_rate_is_resampled(server: Any) -> None:
    async def run() -> None:
        async with connect(server.websocket, TOKEN) as client:
            prompt, new, _ = await spoken(client, noise(3.0), rate=48000, seconds=0.4, min_seconds=0.4)
            assert len(prompt) == 4 * 12 and len(new) == 20  # 3 x 16,000 samples are a second at 48 kHz

    asyncio.run(run())


def test_a_queue_then_cancel_then_the_same_connection_again(server: Any) -> None:
    async def run() -> None:
        async with (
            connect(server.websocket, TOKEN) as a,
            connect(server.websocket, TOKEN) as b,
            connect(server.websocket, TOKEN) as c,
        ):
            await a.start()
            await b.start()
            await c.tell(type="start", seconds=0.4, min_seconds=0.4)
            assert await c.receive() == {"type": "queued", "position": 1}
            with pytest.raises(ServerError, match="busy"):
                await a.start()
            await a.cancel()
            assert (await a.receive())["reason"] == "cancelled"
            assert await c.receive() == {"type": "ready"}
            await c.send(to_pcm(noise(0.5)))
            assert len([sound async for sound in c.go_on() if sound.new]) == 5
            assert len((await spoken(a, noise(0.5), seconds=0.4, min_seconds=0.4))[1]) == 20
            await b.cancel()

    asyncio.run(run())


@pytest.mark.parametrize("long_prompt", [False, True])
def test_continue_after_the_stream_has_gone_is_refused_and_the_connection_goes_on(
    server: Any, long_prompt: bool
) -> None:
    """Cancelled by the client, or by the server for a prompt that is too long."""

    async def run() -> None:
        async with connect(server.websocket, TOKEN) as client:
            await client.start()
            if long_prompt:
                await client.send(to_pcm(noise(4.5)))
            else:
                await client.cancel()
            await client.tell(type="continue")
            refused = []
            while "not_ready" not in refused:
                try:
                    await client.receive()
                except ServerError as error:
                    refused.append(error.code)
            assert refused == ["prompt_too_long"] * long_prompt + ["not_ready"]
            assert len((await spoken(client, noise(0.5), seconds=0.4, min_seconds=0.4))[1]) == 20

    asyncio.run(run())


def test_a_full_queue_is_an_error_of_the_client(server: Any) -> None:
    async def run() -> None:
        async with contextlib.AsyncExitStack() as opened:
            clients = [await opened.enter_async_context(connect(server.websocket, TOKEN)) for _ in range(5)]
            for client in clients[:4]:  # two with a slot, two in the queue
                await client.tell(type="start")
            with pytest.raises(ServerError, match="full"):
                await asyncio.wait_for(clients[4].start(), 20)

    asyncio.run(run())


def test_sigterm_lets_a_stream_finish(run_server: Any) -> None:
    async def work(url: str, pid: int) -> None:
        async with connect(url) as client, connect(url) as late:
            await client.start(seconds=2.0, min_seconds=2.0)
            await client.send(to_pcm(noise(1)))
            chunks = 0
            async for sound in client.go_on():
                chunks += sound.new
                if chunks == 2:
                    os.kill(pid, signal.SIGTERM)
                    await until_draining(url)
                    with pytest.raises(ServerError, match="stopping"):
                        await late.start()
            assert chunks == 25 and client.done["reason"] == "length"
            with pytest.raises(ServerError, match="stopping"):
                await client.receive()

    status, log = run_server(work)
    assert status == 0 and "Traceback" not in log
    events = [json.loads(line)["event"] for line in log.splitlines()]
    assert events.count("session") == 2 and "draining" in events


def test_a_dead_model_ends_the_server(run_server: Any) -> None:
    async def work(url: str, pid: int) -> None:
        async with connect(url) as client:
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            for child in children:
                if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                    os.kill(int(child), signal.SIGKILL)
            with pytest.raises(ServerError, match="model_died"):
                await asyncio.wait_for(client.receive(), 120)

    status, log = run_server(work)
    assert status == 1 and "model_died" in log


def test_a_port_that_is_taken_is_refused_before_anything_is_loaded() -> None:
    from slm.serve.server import bound_socket

    with (
        bound_socket("127.0.0.1", 0) as listener,
        pytest.raises(InputError, match=r"--port .*Address already in use"),
    ):
        bound_socket("127.0.0.1", listener.getsockname()[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--slots", "0"], "--slots 0: expected at least 1"),
        (["--lead-ms", "nan"], "--lead-ms nan"),
        (["--port", "99999"], "--port 99999"),
        (["--lm", "nosuch"], "language model 'nosuch'"),
    ],
)
def test_bad_options_exit_with_2_and_one_line(options: list[str], message: str, capsys: Any) -> None:
    from slm.cli import main

    assert main(["serve", "--port", "0", *options]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
