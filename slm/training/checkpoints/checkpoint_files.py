"""The files of a checkpoint, listed with sizes and checksums in files.json, so that a torn or damaged one is noticed.

All processes call these functions together; each reads its share of the files.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import socket
import struct
import time
from pathlib import Path

from tokenizer.errors import InputError
from tokenizer.files import write_atomically
from tokenizer.runs.ranks import Ranks

LIST = "files.json"
AT_ONCE = 1 << 22  # bytes of a file read at once
SEEN_WITHIN = 20.0  # seconds until a file that one machine made is there for the others (network file systems)


def seal(folder: Path, ranks: Ranks) -> None:
    """Write files.json into a folder that is complete otherwise: every file's bytes and sha256. Syncs every file.

    Raises:
        InputError: the processes do not see the same files, or a file is shorter than its own header says.
        OSError: a file cannot be read or synced.
    """
    names = _names(folder)
    seen = ranks.gather({name: (folder / name).stat().st_size for name in names})
    if other := next((rank for rank, sizes in enumerate(seen) if sizes != seen[0]), None):
        odd = sorted(set(seen[0].items()) ^ set(seen[other].items()))[0][0]
        raise InputError(
            f"{folder}: processes 0 and {other} do not see the same {odd}; --out must be a folder that all machines "
            "share"
        )
    with ranks.together():
        mine = {}
        for name in names[ranks.rank :: ranks.world]:
            path = folder / name
            if path.suffix == ".safetensors" and path.stat().st_size != announced_bytes(path):
                raise InputError(f"{path}: {path.stat().st_size} bytes were written of {announced_bytes(path)}")
            mine[name] = {"bytes": path.stat().st_size, "sha256": checksum(path, sync=True)}
    files = {name: entry for part in ranks.gather(mine) for name, entry in part.items()}
    if not ranks.rank:
        write_atomically(folder / LIST, (json.dumps({n: files[n] for n in names}, indent=1) + "\n").encode())


def check_files(folder: Path, ranks: Ranks) -> None:
    """Compare a checkpoint's files with files.json. Older checkpoints have no such list and pass.

    Raises:
        InputError: naming the first file that is missing, has another size or other content.
    """
    with ranks.together():
        listed = _listed(folder)
        for name, entry in list(listed.items())[ranks.rank :: ranks.world]:
            path = folder / name
            if not path.is_file():
                raise InputError(f"{name} is missing")
            if (size := path.stat().st_size) != entry["bytes"]:
                raise InputError(f"{name} has {size:,} bytes instead of {entry['bytes']:,}")
            if checksum(path) != entry["sha256"]:
                raise InputError(f"{name} has another content than was written (sha256)")


def check_shared(folder: Path, ranks: Ranks) -> None:
    """Check that all processes see one folder, by a file that the first one makes and removes.

    Raises:
        InputError: in all processes, if one does not see it.
    """
    if ranks.world == 1:
        return
    name, host = ranks.gather((f".shared-{secrets.token_hex(8)}", socket.gethostname()))[0]
    probe = folder / name
    with ranks.together():
        if not ranks.rank:
            probe.touch()
    try:
        with ranks.together():
            until = time.monotonic() + SEEN_WITHIN
            while not probe.exists():
                if time.monotonic() > until:
                    raise InputError(
                        f"{folder}: process {ranks.rank} on {socket.gethostname()} does not see there what process 0 "
                        f"on {host} writes; --out must be a folder that all machines share"
                    )
                time.sleep(0.2)
    finally:
        if not ranks.rank:
            probe.unlink(missing_ok=True)


def announced_bytes(path: Path) -> int:
    """The size that a safetensors file has according to its header. Raises InputError if there is no whole header."""
    try:
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        return 8 + length + max((e["data_offsets"][1] for k, e in header.items() if k != "__metadata__"), default=0)
    except (struct.error, ValueError, LookupError, TypeError, OverflowError):
        raise InputError(f"{path}: its header was not written whole") from None


def checksum(path: Path, sync: bool = False) -> str:
    """Sha256 in hex of a file's content; `sync` writes it to the disk."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(AT_ONCE):
            digest.update(part)
        if sync:
            os.fsync(file.fileno())
    return digest.hexdigest()


def _names(folder: Path) -> list[str]:
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() and path.name != LIST
    )


def _listed(folder: Path) -> dict[str, dict]:
    try:
        listed = json.loads((folder / LIST).read_text(encoding="utf-8"))
        if all(set(entry) == {"bytes", "sha256"} for entry in listed.values()):
            return listed
    except FileNotFoundError:
        return {}
    except (ValueError, AttributeError, TypeError):
        pass
    raise InputError(f"{LIST} is damaged")
