"""An S3 server on this machine (moto) that refuses one of so many requests of each method."""

from __future__ import annotations

import random
import sys
from collections import Counter, defaultdict
from threading import Lock

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server


class Flaky:
    """WSGI: of `every` requests of a method, one at a seeded place is answered by 503 SlowDown, every second one of
    these after it was carried out."""

    def __init__(self, app, every: int, seed: int) -> None:
        self.app, self.every = app, every
        self.random, self.lock = random.Random(seed), Lock()
        self.seen: Counter[str] = Counter()
        self.place = defaultdict(lambda: self.random.randrange(every))
        self.refused = 0

    def refuses(self, method: str) -> bool:
        with self.lock:
            block, place = divmod(self.seen[method], self.every)
            self.seen[method] += 1
            refused = place == self.place[method, block]
            self.refused += refused
            return refused

    def __call__(self, environ, start_response):
        if not self.refuses(environ["REQUEST_METHOD"]):
            return self.app(environ, start_response)
        if self.refused % 2:
            for _ in self.app(environ, lambda *a, **k: None):
                pass
        # one write: `print` makes several, between which another thread's may fall
        sys.stdout.write(f"refused {environ['REQUEST_METHOD']} {environ['PATH_INFO']}\n")
        sys.stdout.flush()
        body = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>"
        start_response("503 Slow Down", [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
        return [body]


if __name__ == "__main__":
    app = Flaky(DomainDispatcherApplication(create_backend_app), int(sys.argv[1]), seed=int(sys.argv[2]))
    server = make_server("127.0.0.1", 0, app, threaded=True)
    print(server.port, flush=True)
    server.serve_forever()
