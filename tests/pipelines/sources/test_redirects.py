"""HTTP servers that send requests elsewhere, and servers that are not there."""

from __future__ import annotations

import http.server
import json
import threading
from pathlib import Path

import pytest

from pipelines.format.layout import Layout
from pipelines.sources.audio import read_wave
from pipelines.sources.cuts import Selection
from pipelines.sources.manifests import read_cuts
from pipelines.storage import retries
from tokenizer.errors import InputError


class Server(http.server.ThreadingHTTPServer):
    """Serves a folder; `moved` maps paths to where they redirect; `asked` are the paths that were asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.moved, self.asked = folder, {}, []
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        target, file = self.server.moved.get(self.path), self.server.folder / self.path[1:]
        if target is not None or not file.is_file():
            self.send_response(404 if target is None else 302)
            if target is not None:
                self.send_header("Location", target)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        data = file.read_bytes()
        begin, end = 0, len(data)
        if wanted := self.headers.get("Range"):
            first, last = wanted.removeprefix("bytes=").split("-")
            begin, end = int(first), min(int(last or end) + 1, end)
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{len(data)}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(end - begin))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data[begin:end])

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def servers(tmp_path):
    pair = [Server(tmp_path), Server(tmp_path)]
    yield pair
    for server in pair:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(retries, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(retries, "_silent", {})


def with_source(line: dict, place: str, cut_id: str) -> dict:
    source = {"type": "url", "channels": [0], "source": place}
    return {**line, "id": cut_id, "recording": {**line["recording"], "sources": [source]}}


def test_a_redirect_to_a_host_that_is_not_allowed_is_refused(servers, write_manifest, speech, run, tmp_path):
    here, inside = servers
    line = json.loads(write_manifest({"a": speech(0, 1.0)}).read_text())
    here.moved = {"/moved.wav": f"{inside.url}/audio/0.wav", "/near.wav": "/audio/0.wav"}
    places = {"away": "moved.wav", "near": "near.wav", "plain": "audio/0.wav"}
    lines = [with_source(line, f"{here.url}/{place}", key) for key, place in places.items()]
    mix = {"id": "mix", "type": "MixedCut", "tracks": [{"cut": lines[0], "type": "MonoCut", "offset": 0.0}]}
    (tmp_path / "cuts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*lines, mix]))
    totals = run(f"{here.url}/cuts.jsonl", tmp_path / "out")
    assert totals["cuts"] == 2
    entries = [json.loads(entry) for entry in Layout(tmp_path / "out").quarantine.read_text().splitlines()]
    assert {entry["id"] for entry in entries} == {"away", "mix"}
    for entry in entries:
        assert entry["reason"] == "refused" and f"--allow-host {inside.url}" in entry["detail"]
    assert not inside.asked
    allowed = Selection(allow_hosts=(inside.url,))
    assert run(f"{here.url}/cuts.jsonl", tmp_path / "more", selection=allowed)["cuts"] == 4
    assert inside.asked


def test_a_local_manifest_goes_anywhere(servers, write_manifest, speech, tmp_path):
    here, inside = servers
    line = json.loads(write_manifest({"a": speech(0, 1.0)}).read_text())
    here.moved = {"/moved.wav": f"{inside.url}/audio/0.wav"}
    (tmp_path / "cuts.jsonl").write_text(json.dumps(with_source(line, f"{here.url}/moved.wav", "away")) + "\n")
    (item,) = read_cuts([str(tmp_path / "cuts.jsonl")])
    assert len(read_wave(item, 16000)) == 16000 and inside.asked


def test_a_host_that_does_not_answer_is_not_asked_for_every_cut(servers, write_manifest, speech, tmp_path, monkeypatch):
    here, gone = servers
    line = json.loads(write_manifest({"a": speech(0, 1.0)}).read_text())
    gone.shutdown()
    gone.server_close()
    lines = [with_source(line, f"{gone.url}/audio/0.wav", f"cut-{i}") for i in range(20)]
    lines.append(with_source(line, f"{here.url}/audio/0.wav", "there"))
    (tmp_path / "cuts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    pauses = []
    monkeypatch.setattr(retries.time, "sleep", pauses.append)
    *missing, there = read_cuts([str(tmp_path / "cuts.jsonl")])
    for item in missing:
        with pytest.raises(InputError, match=r"cut-\d+ .*http://127"):
            read_wave(item, 16000)
    assert len(pauses) == retries.TRIES - 1
    assert len(read_wave(there, 16000)) == 16000


def test_a_host_that_is_back_is_asked_again(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(retries.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(retries.time, "sleep", lambda _: None)
    asked = []

    def request():
        asked.append(clock[0])
        if clock[0] < 100:
            raise ConnectionRefusedError("nobody there")
        return "here"

    for seconds in (0.0, 1.0, 59.0, 61.0, 62.0, 130.0, 131.0):
        clock[0] = seconds
        if seconds < 100:
            with pytest.raises(OSError, match=r"nobody there|did not answer"):
                retries.retried(request, "http://host")
        else:
            assert retries.retried(request, "http://host") == "here"
    assert asked == [0.0] * retries.TRIES + [61.0, 130.0, 131.0]
    with pytest.raises(ConnectionRefusedError):
        clock[0] = 1.0
        retries.retried(request, "http://other")
