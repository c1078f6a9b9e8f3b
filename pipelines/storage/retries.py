"""Network requests, repeated while their errors are temporary: throttling, server errors, timeouts."""

from __future__ import annotations

import errno
import logging
import random
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

log = logging.getLogger(__name__)

TRIES = 8  # about a minute with the pauses below
FIRST_PAUSE = 0.5  # seconds; doubled every time
LONGEST_PAUSE = 30.0  # seconds
SILENT_SECONDS = 60.0  # for which a host that did not answer is not asked again

PASSING_STATUS = {408, 425, 429}  # of HTTP; and all from 500 on
PASSING_ERRNO = {
    getattr(errno, name)
    for name in (
        "EAGAIN",
        "EBUSY",
        "EINTR",
        "EIO",
        "EREMOTEIO",  # not everywhere
        "EPIPE",
        "ETIMEDOUT",
        "ECONNABORTED",
        "ECONNREFUSED",
        "ECONNRESET",
        "EHOSTUNREACH",
        "ENETDOWN",
        "ENETRESET",
        "ENETUNREACH",
    )
    if hasattr(errno, name)
}
# Of aiohttp, botocore and urllib3, which are not imported here: whether they are installed depends on the protocol.
PASSING_CLASSES = {
    "ClientConnectionError",
    "ClientPayloadError",
    "ConnectionClosedError",
    "ConnectTimeoutError",
    "EndpointConnectionError",
    "FSTimeoutError",
    "HTTPClientError",
    "IncompleteRead",
    "IncompleteReadError",
    "ProtocolError",
    "ReadTimeoutError",
    "ResponseStreamingError",
    "TimeoutError",  # asyncio's, which is not Python's before 3.11
}

Result = TypeVar("Result")
_silent: dict[str, float] = {}  # hosts that did not answer, and when they are asked again


class SilentHost(OSError):
    """A host that did not answer before, and is not asked yet."""


def retried(request: Callable[[], Result], host: str = "") -> Result:
    """The result of `request`, which is repeated after temporary errors, up to `TRIES` times in all. Where a `host` did
    not answer so many times, it is asked once a minute until it does, and requests in between fail at once.

    Pauses are drawn between 0 and a bound that doubles ("full jitter": https://aws.amazon.com/blogs/architecture/
    exponential-backoff-and-jitter), so that a thousand workers that were throttled together do not return together.

    Raises:
        SilentHost: the host did not answer within the last minute.
        the error of the request, if it is permanent (not found, not allowed) or the last try.
    """
    if time.monotonic() < _silent.get(host, 0.0):
        raise SilentHost(f"{host} did not answer {TRIES} times; it is asked again later")
    for number in range(TRIES if host in _silent else 1, TRIES + 1):
        try:
            result = request()
        except Exception as error:
            if number == TRIES and host and may_pass(error) and not _answered(error):
                _silent[host] = time.monotonic() + SILENT_SECONDS
            if number == TRIES or not may_pass(error):
                raise
            pause = random.uniform(0, min(LONGEST_PAUSE, FIRST_PAUSE * 2**number))
            log.info("try %d of %d failed (%s: %s); next in %.1f s", number, TRIES, type(error).__name__, error, pause)
            time.sleep(pause)
        else:
            _silent.pop(host, None)
            return result
    raise AssertionError("the last try returns or raises")


def _answered(error: BaseException) -> bool:
    """Whether a host was there, if only to say that it is busy."""
    return any(_http_status(cause) is not None for cause in _causes(error))


def may_pass(error: BaseException) -> bool:
    """Whether the same request may succeed later."""
    return any(_passes(cause) for cause in _causes(error))


def condition_failed(error: BaseException) -> bool:
    """Whether a store has refused a write because of its condition (412): the file is there."""
    return any(_http_status(cause) == 412 for cause in _causes(error))


def _passes(error: BaseException) -> bool:
    if isinstance(error, (TimeoutError, ConnectionError)):
        return True
    status = _http_status(error)
    if status is not None:
        return status in PASSING_STATUS or status >= 500
    if isinstance(error, OSError) and error.errno in PASSING_ERRNO:
        return True
    return any(kind.__name__ in PASSING_CLASSES for kind in type(error).__mro__)


def _http_status(error: BaseException) -> int | None:
    """Of aiohttp (`status`), gcsfs (`code`) or botocore (`response`)."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        return response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    found = (getattr(error, name, None) for name in ("status", "code"))
    return next((int(value) for value in found if isinstance(value, int) and 100 <= value < 600), None)


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__
