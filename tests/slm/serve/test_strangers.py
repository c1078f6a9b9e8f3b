"""Strangers: idle sockets, half requests, odd paths and hosts, wrong tokens, other origins, and what answers carry."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import socket
import ssl
import subprocess
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tokenizer.errors import InputError

pytest.importorskip("starlette", reason='needs pip install "focalstream[serve]"')

from slm.serve import http_protocol
from slm.serve.client import ServerError, connect
from slm.serve.protocol import Limits
from slm.serve.service import Service
from tests.slm.serve.test_refusals import HELLO, replaced, talk
from tests.slm.serve.test_whole_files import TOKEN, post

pytestmark = pytest.mark.slow  # it takes seconds to start the model's process


def raw(server: Any, sent: bytes = b"", seconds: float = 10.0) -> socket.socket:
    one = socket.create_connection(("127.0.0.1", server.port), seconds)
    one.sendall(sent)
    return one


def answer(server: Any, sent: bytes) -> bytes:
    """All that the server says to these bytes, until it closes."""
    with raw(server, sent) as one:
        return b"".join(iter(lambda: one.recv(65536), b""))


def get(server: Any, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    try:
        with urllib.request.urlopen(urllib.request.Request(server.http + path, headers=headers), timeout=120) as found:
            return found.status, dict(found.headers), found.read()
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), error.read()


def is_closed(one: socket.socket) -> bool:
    """Whether the server has closed it, within the time limit of the socket."""
    try:
        while one.recv(1000):  # what it had answered before
            pass
        return True
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False


@pytest.mark.parametrize(
    "sent", [b"", b"GET / HTTP/1.1\r\nHost: x\r\n", b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nGET"]
)
def test_half_a_request_is_closed(server: Any, sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "HEAD_SECONDS", 0.3)
    with raw(server, sent) as one:
        if sent.endswith(b"GET"):
            assert one.recv(1000).startswith(b"HTTP/1.1 200")
        assert is_closed(one)


def test_bytes_that_drip_in_do_not_keep_a_connection_open(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "HEAD_SECONDS", 0.5)
    with raw(server, b"GET / HTTP/1.1\r\n") as one, pytest.raises(OSError, match=r"reset|roken pipe"):
        for number in range(40):
            one.sendall(f"A{number}: b\r\n".encode())
            time.sleep(0.1)


def test_half_a_body_is_refused(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    replaced(monkeypatch, server, upload_seconds=0.3)
    head = f"POST /v1/encode HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: 100\r\n"
    assert b"too_slow" in answer(server, f"{head}Connection: close\r\n\r\nhalf".encode())


def test_idle_sockets_keep_nobody_out(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "IDLE_CONNECTIONS", 20)
    with contextlib.ExitStack() as opened:
        crowd = [opened.enter_context(raw(server, b"GET / HT" if n % 2 else b"")) for n in range(60)]
        assert get(server, "/healthz")[0] == 200 and get(server, "/")[0] == 200
        assert is_closed(crowd[0]) and is_closed(crowd[30])
        crowd[-1].settimeout(0.2)
        assert not is_closed(crowd[-1])


def test_idle_websockets_make_room(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from slm.serve import service

    replaced(monkeypatch, server, connections=2)

    async def run() -> None:
        async with connect(server.websocket, TOKEN) as busy, connect(server.websocket, TOKEN) as idle:
            await busy.start()
            monkeypatch.setattr(service, "IDLE_SECONDS", 0.0)
            await asyncio.to_thread(get, server, "/v1/status")  # asking closes nobody
            await idle.tell(type="cancel")
            async with connect(server.websocket, TOKEN) as third:
                with pytest.raises(ServerError, match="idle"):
                    await asyncio.wait_for(idle.receive(), 10)
                await third.tell(type="start")
                await busy.cancel()
                assert (await busy.receive())["reason"] == "cancelled"

    asyncio.run(run())


@pytest.mark.parametrize("path", ["/page/" + "x" * 300, "/page/%00", "/examples/" + "y" * 300 + ".wav", "/nothing"])
def test_odd_paths_are_not_found_and_safe_in_frames(server: Any, path: str) -> None:
    status, headers, _ = get(server, path)
    assert status == 404
    assert headers["X-Frame-Options".lower()] == "DENY"


def test_every_answer_has_the_security_headers(server: Any) -> None:
    wrong = {"Authorization": "Bearer x"}
    for path in ("/", "/page/page.js", "/examples", "/examples/ada-01.wav", "/healthz", "/metrics", "/v1/encode"):
        _, headers, _ = get(server, path, **(wrong if path == "/v1/encode" else {}))
        found = {name.lower(): value for name, value in headers.items()}
        assert "frame-ancestors 'none'" in found["content-security-policy"], path
        assert found["x-content-type-options"] == "nosniff", path


@pytest.mark.parametrize("host", ["[", "]", "a:b:c", "[::1", "x" * 1000])
def test_odd_hosts_are_refused_without_a_traceback(server: Any, host: str) -> None:
    sent = f"POST /v1/encode HTTP/1.1\r\nHost: {host}\r\nOrigin: http://{host}\r\nAuthorization: Bearer {TOKEN}\r\n"
    said = answer(server, f"{sent}Connection: close\r\nContent-Length: 0\r\n\r\n".encode())
    assert b" 500 " not in said
    assert not Service(None, Limits()).trusts(f"http://{host}", host)  # type: ignore[arg-type]


def test_a_wrong_token_is_refused_late_and_its_address_logged(server: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "focalstream.serve"):
        began = time.monotonic()
        assert post(server, "/v1/encode", b"", token="guess")[0] == 401
        assert time.monotonic() - began >= server.service.wrong_token_seconds
        assert asyncio.run(talk(server, [HELLO.replace(TOKEN, "guess")]))[1] == 4401
    logged = [json.loads(record.message) for record in caplog.records]
    assert [line["address"] for line in logged if line["event"] == "wrong_token"] == ["127.0.0.1"] * 2
    assert [line["address"] for line in logged if line["event"] == "session"] == ["127.0.0.1"]
    assert "guess" not in caplog.text


def test_pages_of_allowed_origins_may_read_answers(server: Any) -> None:
    request = urllib.request.Request(f"{server.http}/v1/encode", method="OPTIONS")
    request.add_header("Access-Control-Request-Method", "POST")
    request.add_header("Access-Control-Request-Headers", "authorization")
    request.add_header("Origin", "https://friend.example")
    with urllib.request.urlopen(request, timeout=120) as found:
        assert found.headers["access-control-allow-origin"] == "https://friend.example"
    _, headers, _ = get(server, "/healthz", Origin="https://friend.example")
    assert headers["access-control-allow-origin"] == "https://friend.example"
    _, headers, _ = get(server, "/healthz", Origin="https://foe.example")
    assert "access-control-allow-origin" not in headers


def test_status_says_why_a_page_is_refused(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(origin: str) -> Any:
        return json.loads(get(server, f"/v1/status?origin={origin}")[2])["refused"]

    assert refused(server.http) is None and refused("http://foe.example") == "bad_origin"
    replaced(monkeypatch, server, connections=0)
    assert refused(server.http) == "too_many_connections"


def test_invalid_utf8_and_pings_without_end_close_a_websocket(server: Any) -> None:
    import websockets

    async def run() -> None:
        async with websockets.connect(server.websocket) as socket:
            await socket.send(b"\xff\xfe", text=True)
            assert json.loads(await socket.recv())["code"] == "bad_message"
        async with websockets.connect(server.websocket) as socket:
            with pytest.raises(websockets.ConnectionClosed):
                for _ in range(2 * http_protocol.SMALL_FRAMES):
                    await socket.ping()
                await asyncio.wait_for(socket.recv(), 10)

    asyncio.run(run())


def test_little_is_parsed_at_once(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from websockets.server import ServerProtocol

    sizes: list[int] = []
    receive = ServerProtocol.receive_data
    monkeypatch.setattr(
        ServerProtocol, "receive_data", lambda self, data: (sizes.append(len(data)), receive(self, data))[1]
    )
    assert asyncio.run(talk(server, [HELLO, bytes(60_000)]))[0][-1]["code"] == "not_ready"
    assert sum(sizes) > 60_000 and max(sizes) <= http_protocol.READ_BYTES


def test_an_event_loop_reports_each_kind_of_error_once_a_second() -> None:
    said: list[str] = []
    handle = http_protocol.one_line_errors(lambda event, message: said.append(message))
    loop = asyncio.new_event_loop()
    for _ in range(1000):
        handle(loop, {"message": "socket.accept() out of system resource", "exception": OSError(24, "Too many files")})
    loop.close()
    assert said == ["socket.accept() out of system resource: OSError(24, 'Too many files')"]


def test_below_a_path_with_and_without_a_proxy_that_removes_it() -> None:
    from starlette.responses import PlainTextResponse

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await PlainTextResponse(scope["path"])(scope, receive, send)

    async def path_of(path: str) -> tuple[int, str]:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "path": path, "headers": [], "method": "GET"}
        await http_protocol.BelowPath(app, "/speech/")(scope, None, send)  # type: ignore[arg-type]
        return sent[0]["status"], sent[1]["body"].decode()

    for path, found in [("/speech/page/a.js", "/page/a.js"), ("/speech/", "/"), ("/healthz", "/healthz")]:
        assert asyncio.run(path_of(path)) == (200, found)
    assert asyncio.run(path_of("/speech"))[0] == 307


@pytest.mark.parametrize(
    ("given", "normal"),
    [
        ("https://example.org/", "https://example.org"),
        ("https://Example.org:443", "https://example.org"),
        ("http://localhost:3000", "http://localhost:3000"),
        ("http://[::1]:80/", "http://[::1]"),
        ("*", "*"),
    ],
)
def test_origins_as_browsers_send_them(given: str, normal: str) -> None:
    from slm.commands.serve import normal_origin

    assert normal_origin(given) == normal


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--origin", "example.org"], "--origin example.org: expected an origin such as https://example.org"),
        (["--origin", "https://example.org/page"], "--origin https://example.org/page"),
        (["--origin", "https://["], "--origin https://["),
        (["--root-path", "speech"], "--root-path speech: expected a path such as /speech"),
        (["--certfile", "cert.pem"], "--certfile and --keyfile belong together"),
        (["--certfile", "no.pem", "--keyfile", "no.key"], "--certfile no.pem --keyfile no.key"),
    ],
)
def test_bad_options_of_the_network_are_one_line(options: list[str], message: str, capsys: Any) -> None:
    from slm.cli import main

    assert main(["serve", "--port", "0", *options]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_an_open_server_is_warned_of_and_its_address_works() -> None:
    from slm.commands.serve import address_for_people, warnings

    assert warnings("127.0.0.1", None, False) == warnings("::1", None, False) == []
    assert warnings("192.168.1.5", "token", True) == []
    open_to_all = warnings("0.0.0.0", None, False)
    assert "FOCALSTREAM_AUTH_TOKEN" in open_to_all[0] and "--certfile" in open_to_all[1]
    assert address_for_people("0.0.0.0", 8000, "", False) == "http://127.0.0.1:8000/"
    assert address_for_people("::", 8000, "/speech/", True) == "https://[::1]:8000/speech/"


def test_a_certificate_that_is_none_is_refused(tmp_path: Path) -> None:
    from slm.serve.server import check_certificate

    (tmp_path / "a.pem").write_text("hello")
    with pytest.raises(InputError, match="not a certificate and its key as PEM files"):
        check_certificate(str(tmp_path / "a.pem"), str(tmp_path / "a.pem"))
    assert check_certificate(None, None) is None


def test_a_handshake_that_does_not_end_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    openssl = shutil.which("openssl") or pytest.skip("needs openssl")
    key, certificate = str(tmp_path / "key.pem"), str(tmp_path / "cert.pem")
    new_key = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-days", "1"]
    subprocess.run([*new_key, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    from slm.serve import server as serving

    monkeypatch.setattr(serving, "HANDSHAKE_SECONDS", 0.3)
    model = SimpleNamespace(listen=lambda *_: None)
    listener, started = serving.bound_socket("127.0.0.1", 0), threading.Event()
    server = serving.Server(Service(model), 0.0, started.set, certificate=(certificate, key))  # type: ignore[arg-type]
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        assert started.wait(120)
        with socket.create_connection(listener.getsockname(), 10) as silent:
            assert is_closed(silent)
        url = f"https://127.0.0.1:{listener.getsockname()[1]}/healthz"
        anyone = ssl._create_unverified_context()
        assert urllib.request.urlopen(url, timeout=120, context=anyone).read() == b"ok\n"
    finally:
        server._loop.call_soon_threadsafe(server.stop)
        thread.join(120)
    assert not thread.is_alive()
