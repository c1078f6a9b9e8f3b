"""What a manifest may make this program do: read files, and what the user allows besides.

A Lhotse source of type "command" is a line for the shell, so whoever writes a manifest could run anything. A manifest
from a URL is written by others; its audio is fetched from where it came from, and from the hosts that the user names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipelines.storage.places import is_url
from pipelines.storage.redirects import origin

REFUSED = "refused"  # the type of a source that may not be read; what it was stands in "refused"
FILE_SOURCES = ("file", "url")  # Lhotse's audio sources that are a path or a URL
LOCAL_FILES = "file://"  # the "host" of files on this machine
_INSIDE = ("zip", "tar", "libarchive", "simplecache", "filecache", "blockcache")  # of a file that is elsewhere


@dataclass(frozen=True)
class Access:
    """What the user allows.

    Attributes:
        commands: sources that run a shell command.
        hosts: such as "https://host" or "s3://bucket", from which a manifest that came from a URL may fetch audio;
            "file://" for files of this machine.
    """

    commands: bool = False
    hosts: tuple[str, ...] = ()

    def allows(self, source: dict[str, Any], manifest: str) -> bool:
        """Whether a source of this manifest may be read."""
        if source["type"] == "command":
            return self.commands
        place, allowed = source["source"], self.reachable(manifest)
        if allowed is None or source["type"] not in FILE_SOURCES or not isinstance(place, str):
            return True
        if not is_url(place):
            return LOCAL_FILES.rstrip("/") in allowed
        *outer, last = place.split("::")
        return origin(last).rstrip("/") in allowed and all(part.partition("://")[0] in _INSIDE for part in outer)

    def reachable(self, manifest: str) -> tuple[str, ...] | None:
        """The hosts that audio of this manifest may come from; None for any."""
        if not is_url(manifest):
            return None
        return tuple(sorted({host.rstrip("/").lower() for host in (*self.hosts, origin(manifest))}))


NO_MORE = Access()
"""Nothing is allowed besides."""


def why_refused(source: dict[str, Any]) -> str:
    """What to tell the user of a source that may not be read."""
    place = str(source["source"])
    if source["refused"] != "command" and not is_url(place):
        return f"its manifest came from a URL and names {place} here; `tokenize --allow-host {LOCAL_FILES}` reads it"
    if is_url(place):
        return f"its manifest came from elsewhere than {place}; `tokenize --allow-host {origin(place)}` fetches it"
    return f"it would run the shell command {place!r}; `tokenize --allow-commands` runs it"
