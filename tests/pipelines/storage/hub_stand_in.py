"""A stand-in for the Hugging Face Hub on this machine, with one dataset repository: what HfFileSystem asks for."""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
from collections.abc import Iterator
from urllib.parse import parse_qs, unquote, urlsplit

REPOSITORY = "owner/speech"
SHA = "0123456789abcdef0123456789abcdef01234567"


class _Hub(http.server.BaseHTTPRequestHandler):
    files: dict[str, bytes]

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        api, resolve = f"/api/datasets/{REPOSITORY}", f"/datasets/{REPOSITORY}/resolve/"
        if path in (api, f"{api}/revision/main"):
            self.say({"id": REPOSITORY, "sha": SHA, "siblings": []})
        elif path.startswith(f"{api}/tree/"):
            folder = path.removeprefix(f"{api}/tree/").partition("/")[2]
            self.say(self.listed(folder, "true" in parse_qs(urlsplit(self.path).query.lower()).get("recursive", [])))
        elif path.startswith(resolve) and (name := path.removeprefix(resolve).partition("/")[2]) in self.files:
            self.send_part(self.files[name])
        else:
            self.say({"error": "Entry not found"}, 404)

    def do_POST(self):
        asked = self.rfile.read(int(self.headers["Content-Length"])).decode()
        paths = json.loads(asked)["paths"] if asked.startswith("{") else parse_qs(asked)["paths"]
        self.say([entry for entry in self.listed("", True) if entry["path"] in paths])

    def listed(self, folder, recursive):
        prefix, found = f"{folder}/" if folder else "", {}
        for path, data in self.files.items():
            if path.startswith(prefix):
                parts = path.removeprefix(prefix).split("/")
                for depth in range(1, len(parts) if recursive else min(2, len(parts))):
                    name = prefix + "/".join(parts[:depth])
                    found[name] = {"type": "directory", "path": name, "oid": SHA, "size": 0}
                if recursive or len(parts) == 1:
                    found[path] = {"type": "file", "path": path, "oid": SHA, "size": len(data)}
        return list(found.values())

    def send_part(self, data):
        begin, end = 0, len(data)
        if part := self.headers.get("Range"):
            first, _, last = part.removeprefix("bytes=").partition("-")
            begin, end = int(first), min(int(last or end) + 1, end)
        headers = {"Content-Range": f"bytes {begin}-{end - 1}/{len(data)}"} if part else {}
        headers |= {"X-Repo-Commit": SHA, "ETag": f'"{SHA}"', "Accept-Ranges": "bytes"}
        self.answer(206 if part else 200, data[begin:end], headers)

    def say(self, content, status=200):
        self.answer(status, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def answer(self, status, body, headers):
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *arguments):
        pass


@contextlib.contextmanager
def hub_stand_in(files: dict[str, bytes]) -> Iterator[str]:
    """A Hub with these files, for this process. Yields the URL of their folder, such as "hf://datasets/NAME"."""
    from huggingface_hub import HfFileSystem, constants

    handler = type("Hub", (_Hub,), {"files": files})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    before = constants.ENDPOINT, constants.HUGGINGFACE_CO_URL_TEMPLATE
    constants.ENDPOINT = f"http://127.0.0.1:{server.server_port}"
    constants.HUGGINGFACE_CO_URL_TEMPLATE = before[1].replace(before[0], constants.ENDPOINT)
    HfFileSystem.clear_instance_cache()
    try:
        yield f"hf://datasets/{REPOSITORY}"
    finally:
        constants.ENDPOINT, constants.HUGGINGFACE_CO_URL_TEMPLATE = before
        HfFileSystem.clear_instance_cache()
        server.shutdown()
        server.server_close()
