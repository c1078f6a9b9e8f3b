"""An S3 server on this machine (moto) that refuses a seeded share of all requests."""

from __future__ import annotations

import random
import sys

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server


class Flaky:
    """WSGI: `share` of the requests is answered by 503 SlowDown, half of them after they were carried out."""

    def __init__(self, app, share: float, seed: int) -> None:
        self.app, self.share, self.random = app, share, random.Random(seed)

    def __call__(self, environ, start_response):
        if self.random.random() >= self.share:
            return self.app(environ, start_response)
        if self.random.random() < 0.5:
            for _ in self.app(environ, lambda *a, **k: None):
                pass
        print("refused", environ["REQUEST_METHOD"], environ["PATH_INFO"], flush=True)
        body = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>"
        start_response("503 Slow Down", [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
        return [body]


if __name__ == "__main__":
    app = Flaky(DomainDispatcherApplication(create_backend_app), float(sys.argv[1]), seed=int(sys.argv[2]))
    server = make_server("127.0.0.1", 0, app, threaded=True)
    print(server.port, flush=True)
    server.serve_forever()
