"""An S3 server on this machine (moto) that answers late, keeps to conditions, and counts what it was asked for.

    python slow_s3.py SECONDS     prints its port; GET /-/count says what was asked, as JSON

moto looks whether a file exists and writes it then, so two writes with "If-None-Match: *" can both succeed, and a file
that is read while it is written gives an error. A real store's do not: here requests are answered one at a time.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from threading import Lock
from urllib.request import urlopen


class Slow:
    """WSGI: every request takes `seconds` longer."""

    def __init__(self, app, seconds: float) -> None:
        self.app, self.seconds, self.answering, self.counts = app, seconds, Lock(), Counter()

    def __call__(self, environ, start_response):
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        if path == "/-/count":
            body = json.dumps(self.counts).encode()
            start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
            return [body]
        time.sleep(self.seconds)
        with self.answering:
            answer = list(self.app(environ, start_response))
            self.counts[method] += 1
            if method == "GET":
                self.counts["bytes"] += sum(map(len, answer))
        return answer


@contextlib.contextmanager
def slow_s3(seconds: float, bucket: str = "speech") -> Iterator[str]:
    """Run the server with an empty bucket, and point this process and its children to it. Yields its address."""
    import fsspec

    server = subprocess.Popen([sys.executable, str(Path(__file__)), str(seconds)], stdout=subprocess.PIPE, text=True)
    before = dict(os.environ)
    try:
        assert server.stdout is not None
        address = f"http://127.0.0.1:{server.stdout.readline().strip()}"
        os.environ |= {
            "AWS_ENDPOINT_URL": address,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        fsspec.filesystem("s3").clear_instance_cache()
        fsspec.filesystem("s3").mkdir(bucket)
        yield address
    finally:
        server.kill()
        server.communicate()
        os.environ.clear()
        os.environ |= before
        fsspec.filesystem("s3").clear_instance_cache()


def counts(address: str) -> Counter[str]:
    """Requests so far by method, and the bytes that were sent ("bytes")."""
    with urlopen(f"{address}/-/count") as answer:
        return Counter(json.load(answer))


if __name__ == "__main__":
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"  # connections are kept

        def log_request(self, *arguments) -> None:
            pass

    app = Slow(DomainDispatcherApplication(create_backend_app), float(sys.argv[1]))
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Quiet)
    server.socket.listen(256)
    print(server.port, flush=True)
    server.serve_forever()
