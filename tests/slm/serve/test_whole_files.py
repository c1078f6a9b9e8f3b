"""Whole files by HTTP: the same as live, refused in one line, and given up when nobody waits for them."""

from __future__ import annotations

import asyncio
import http.client
import io
import json
import os
import signal
import time
import urllib.error
import urllib.request
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from tests.slm.serve.conftest import until_draining
from tokenizer import Codec

pytest.importorskip("starlette", reason='needs pip install "focalstream[serve]"')

TOKEN = "open sesame"
pytestmark = pytest.mark.slow  # it takes seconds to start the model's process


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return (0.3 * np.random.default_rng(seed).standard_normal(int(seconds * 16000))).astype(np.float32)


def post(server: Any, path: str, body: bytes, token: str | None = TOKEN) -> tuple[int, bytes]:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(server.http + path, body, headers), timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def sound_file(wave: np.ndarray, rate: int = 16000, kind: str = "FLAC") -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, wave, rate, format=kind)
    return buffer.getvalue()


def test_whole_files(server: Any, tiny_codec: Codec) -> None:
    status, body = post(server, "/v1/encode", sound_file(noise(1.5)))
    answer = json.loads(body)
    wave, _ = soundfile.read(io.BytesIO(sound_file(noise(1.5))), dtype="float32")
    assert status == 200 and answer["tokens"] == tiny_codec.encode(torch.from_numpy(wave))[0].tolist()
    status, body = post(server, "/v1/decode", json.dumps(answer).encode())
    decoded, rate = soundfile.read(io.BytesIO(body))
    assert (status, rate, len(decoded)) == (200, 16000, 320 * 75) and decoded.any()
    path = "/v1/continue?seconds=2&min_seconds=2&seed=3&temperature=0.8"
    status, body = post(server, path, sound_file(noise(1.5)))
    assert status == 200 and post(server, path, sound_file(noise(1.5))) == (status, body)
    assert len(soundfile.read(io.BytesIO(body))[0]) == 16000 * 2 + 18 * 1280  # the prompt's whole chunks
    assert b"</html>" in post_get(server, "/") and b"--accent" in post_get(server, "/page/base.css")
    assert len(soundfile.read(io.BytesIO(post_get(server, "/examples/ada-01.wav")))[0]) == 48000


def post_get(server: Any, path: str) -> bytes:
    with urllib.request.urlopen(server.http + path, timeout=60) as answer:
        return answer.read()


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("/v1/encode", b"not audio", 400, b"bad_audio"),
        ("/v1/encode", b"", 400, b"bad_audio"),
        ("/v1/encode", b"\0" * 8_000_001, 413, b"too_large"),
        ("/v1/encode", sound_file(noise(4.1)), 413, b"too_long"),
        ("/v1/continue", sound_file(noise(0.05)), 400, b"bad_request"),
        ("/v1/continue?temperature=x", b"", 400, b"bad_request"),
        ("/v1/continue?rate=1", b"", 400, b"bad_request"),
        ("/v1/continue?type=5", b"", 400, b"bad_request"),
        ("/v1/decode", b"[1]", 400, b"bad_request"),
        ("/v1/decode", b'{"tokens": [1], "token": 1}', 400, b"bad_request"),
        ("/v1/decode", b'{"tokens": []}', 400, b"bad_request"),
        ("/v1/decode", b'{"tokens": [[1]]}', 400, b"bad_request"),
        ("/v1/decode", b'{"tokens": [256]}', 400, b"bad_request"),
        ("/v1/decode", b'{"tokens": [1e99]}', 400, b"bad_request"),
        ("/v1/decode", b'{"tokens": [1], "fingerprint": "0"}', 409, b"other_codec"),
        ("/page/..%2fapp.py", b"", 404, b"not found"),
    ],
)
def test_bad_requests_get_one_line(server: Any, path: str, body: bytes, status: int, code: bytes) -> None:
    if path.startswith("/page"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            post_get(server, path)
        return
    answered, text = post(server, path, body)
    assert answered == status and code in text and b"/tmp" not in text


def test_tokens_health_and_metrics(server: Any) -> None:
    for path in ("/v1/encode", "/v1/decode", "/v1/continue"):
        assert post(server, path, b"", token=None)[0] == post(server, path, b"", token="wrong")[0] == 401
    assert post_get(server, "/healthz") == b"ok\n"
    request = urllib.request.Request(server.http + "/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert b"focalstream_streams 0.0" in answer.read()
    with pytest.raises(urllib.error.HTTPError, match="401"):
        post_get(server, "/metrics")


def metric(server: Any, name: str) -> float:
    request = urllib.request.Request(server.http + "/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    return float(next(line for line in lines if line.startswith(f"{name} ")).split()[1])


def test_a_request_is_given_up_when_its_client_goes_away(server: Any) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    path = "/v1/continue?seconds=120&min_seconds=120"
    connection.request("POST", path, sound_file(noise(1.0)), {"Authorization": f"Bearer {TOKEN}"})
    wait(lambda: metric(server, "focalstream_streams") == 1)
    connection.close()
    wait(lambda: metric(server, "focalstream_streams") == 0, 5)  # the speech takes longer, by far


def wait(happened: Any, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_token_of_any_letters_opens_both_ways(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.service, "auth_token", "pässwört")
    assert server.service.knows("pässwört".encode()) and not server.service.knows("pässwort".encode())
    request = urllib.request.Request(server.http + "/metrics")
    request.add_header("Authorization", "Bearer pässwört".encode().decode("latin-1"))  # the bytes that curl sends
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert answer.status == 200
    monkeypatch.setattr(server.service, "auth_token", os.fsdecode(b"\xff\xfe"))  # no UTF-8, in the environment
    assert server.service.knows(b"\xff\xfe")


def test_a_second_signal_does_not_wait_for_a_file(run_server: Any) -> None:
    async def work(url: str, pid: int) -> None:
        place = url.split("/")[2]
        connection = http.client.HTTPConnection(place)
        connection.request("POST", "/v1/continue?seconds=120&min_seconds=120", sound_file(noise(1.0)))
        server = SimpleNamespace(http=f"http://{place}")
        await asyncio.to_thread(wait, lambda: metric(server, "focalstream_streams") == 1)
        os.kill(pid, signal.SIGTERM)
        await until_draining(url)
        os.kill(pid, signal.SIGTERM)
        answer = await asyncio.to_thread(connection.getresponse)
        assert answer.status == 503 and b"stopping" in answer.read()

    status, log = run_server(work)
    assert status == 0 and "Traceback" not in log


def test_a_damaged_or_foreign_upload_is_refused_with_the_reason():
    from slm.serve.protocol import Refused
    from slm.serve.uploads import audio_of

    mp3 = bytearray(sound_file(noise(3.0), kind="MP3"))
    for k in range(len(mp3) // 2, len(mp3) // 2 + 600):
        mp3[k] ^= 0x5A
    with pytest.raises(Refused, match=r"the file: is damaged: \d+ bytes at"):
        audio_of(bytes(mp3), 16000, 10.0)
    with pytest.raises(Refused, match=r"the file: not a readable sound file.*begins with '<html>"):
        audio_of(b"<html>\x1b[2J" * 100, 16000, 10.0)
