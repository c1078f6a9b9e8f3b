"""What a manifest may make this program do: read files, and what the user allows besides.

A Lhotse source of type "command" is a line for the shell, so whoever writes a manifest could run anything. A manifest
from a URL is written by others; its audio is fetched from where it came from, and from the hosts that the user names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipelines.storage.places import is_url

REFUSED = "refused"  # the type of a source that may not be read
_INSIDE = ("zip", "tar", "libarchive", "simplecache", "filecache", "blockcache")  # of a file that is elsewhere


@dataclass(frozen=True)
class Access:
    """What the user allows.

    Attributes:
        commands: sources that run a shell command.
        hosts: such as "https://host" or "s3://bucket", from which a manifest that came from a URL may fetch audio.
    """

    commands: bool = False
    hosts: tuple[str, ...] = ()

    def allows(self, source: dict[str, Any], manifest: str) -> bool:
        """Whether a source of this manifest may be read."""
        if source["type"] == "command":
            return self.commands
        place = source["source"]
        if not is_url(manifest) or not isinstance(place, str) or not is_url(place):
            return True
        allowed = {host.rstrip("/").lower() for host in self.hosts} | {origin(manifest)}
        *outer, last = place.split("::")
        return origin(last) in allowed and all(part.partition("://")[0] in _INSIDE for part in outer)


NO_MORE = Access()
"""Nothing is allowed besides."""


def origin(url: str) -> str:
    """Scheme and host (or bucket) of a URL: "https://host"; of a chain like "zip::s3://..." those of its last part."""
    scheme, _, rest = url.rpartition("::")[2].partition("://")
    return f"{scheme}://{rest.partition('/')[0]}".lower()


def why_refused(source: dict[str, Any]) -> str:
    """What to tell the user of a source that may not be read."""
    place = str(source["source"])
    if is_url(place):
        return f"its manifest came from elsewhere than {place}; if you trust it, give --allow-host {origin(place)}"
    return f"it would run the shell command {place!r}; if you trust the manifest, give --allow-commands"
