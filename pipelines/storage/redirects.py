"""HTTP requests that may be answered by certain hosts only: a redirect to another one is refused before it is followed.

Audio that a manifest from a URL names is fetched from the hosts that the user allows. Such a host, or whoever wrote the
manifest, can answer with a redirect to any other: to a service inside the user's network, for one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urljoin, urlsplit


class RedirectRefused(Exception):
    """A redirect to a host that is not allowed."""


def origin(url: str) -> str:
    """Scheme and host (or bucket) of a URL: "https://host"; of a chain like "zip::s3://..." those of its last part."""
    scheme, _, rest = url.rpartition("::")[2].partition("://")
    return f"{scheme}://{rest.partition('/')[0]}".lower()


@functools.cache
def client_for(hosts: tuple[str, ...]) -> Callable[..., Any]:
    """What makes the HTTP client of fsspec (its `get_client`) that goes to these hosts, such as "https://host", only,
    and to https where a host sends its own visitors there."""

    async def get_client(**options: Any) -> Any:
        import aiohttp
        from fsspec.implementations.http import get_client as usual

        trace = aiohttp.TraceConfig()
        trace.on_request_redirect.append(check)
        return await usual(**options, trace_configs=[trace])

    async def check(_session: Any, _context: Any, redirect: Any) -> None:
        headers = redirect.response.headers
        begin = str(redirect.response.url)
        target = urljoin(begin, headers.get("Location") or headers.get("URI") or "")
        secured = target.startswith("https://") and urlsplit(target).netloc.lower() == urlsplit(begin).netloc.lower()
        if not secured and origin(target) not in hosts:
            raise RedirectRefused(f"{begin} redirects to {target}; `--allow-host {origin(target)}` lets it")

    return get_client


def refused_redirect(error: BaseException) -> RedirectRefused | None:
    """The refused redirect that an error of fsspec comes from, if it does."""
    return next((cause for cause in _causes(error) if isinstance(cause, RedirectRefused)), None)


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__
