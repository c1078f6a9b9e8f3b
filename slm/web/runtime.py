"""onnxruntime-web, which runs the graphs in a browser: one pinned version of its npm package, found, checked, unpacked.

This is the only place that names the version and its checksums. To move to another version, take the checksums that
`npm view onnxruntime-web@VERSION dist.integrity` and `sha256sum` on the unpacked files give, and run the tests.
"""

from __future__ import annotations

import base64
import hashlib
import os
import tarfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import IO

from tokenizer.errors import InputError
from tokenizer.files import cache_folder, write_atomically

VERSION = "1.30.0"
PACKAGE = f"onnxruntime-web-{VERSION}.tgz"
PACKAGE_SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="  # base64
REGISTRY = "https://registry.npmjs.org"
MODULE, LOADER, BINARY = "ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"
FILES = {  # of the package's folder `dist`, with their sha256
    MODULE: "219e6a1fc8a9938268d18efca3c91d310bd2f4a59bbd13744df5b2b7fc6cee3b",
    LOADER: "e13f7f94fc51b4ca72b12faeb1ee95f4ace6dfbc8939bc718aabdc0a27c4299b",
    BINARY: "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
TIMEOUT = 60.0  # seconds without a byte
HINT = f"get it with `npm pack onnxruntime-web@{VERSION}` where there is a network, and give it by --runtime {PACKAGE}"


def runtime_files(source: Path | None = None) -> dict[str, bytes]:
    """The files of FILES.

    Args:
        source: the npm package, as the .tgz or unpacked (its folder, or `node_modules/onnxruntime-web`); None: from the
            user's cache, into which it is downloaded first if it is not there.

    Raises:
        InputError: it is not there, is of another version, or cannot be downloaded.
    """
    if source is not None and source.is_dir():
        return _from_folder(source)
    return _from_package(source or cached_package() or download())


def cached_package() -> Path | None:
    """The package in the user's cache."""
    path = cache_folder() / "web" / PACKAGE
    return path if path.is_file() else None


def download() -> Path:
    """Fetch the package into the user's cache: 33 MB. $NPM_CONFIG_REGISTRY names another registry, as for npm.

    Raises:
        InputError: there is no network, or what came is not the package.
    """
    registry = os.environ.get("NPM_CONFIG_REGISTRY") or REGISTRY
    address = f"{registry.rstrip('/')}/onnxruntime-web/-/{PACKAGE}"
    if not address.startswith(("https://", "http://")):
        raise InputError(f"NPM_CONFIG_REGISTRY {registry}: expected an address that begins with https://")
    try:
        with urllib.request.urlopen(address, timeout=TIMEOUT) as answer:
            data = answer.read()
    except (OSError, urllib.error.URLError) as error:
        raise InputError(f"{address}: cannot be downloaded ({getattr(error, 'reason', error)}); {HINT}") from None
    _check_package(address, data)
    path = cache_folder() / "web" / PACKAGE
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, data)
    return path


def _from_package(path: Path) -> dict[str, bytes]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"--runtime {path}: cannot be read ({error.strerror}); {HINT}") from None
    _check_package(str(path), data)
    with tarfile.open(path) as package:
        return {name: _member(package, name).read() for name in FILES}


def _member(package: tarfile.TarFile, name: str) -> IO[bytes]:
    file = package.extractfile(f"package/dist/{name}")
    assert file is not None, "the checksum is that of a package that has it"
    return file


def _check_package(name: str, data: bytes) -> None:
    if base64.b64encode(hashlib.sha512(data).digest()).decode() != PACKAGE_SHA512:
        raise InputError(f"{name}: is not the npm package onnxruntime-web {VERSION} (its sha512 differs); {HINT}")


def _from_folder(folder: Path) -> dict[str, bytes]:
    dist = next((place for place in (folder / "dist", folder / "package" / "dist") if place.is_dir()), folder)
    found = {}
    for name, digest in FILES.items():
        try:
            found[name] = (dist / name).read_bytes()
        except OSError as error:
            raise InputError(f"--runtime {folder}: {dist / name} cannot be read ({error.strerror}); {HINT}") from None
        if hashlib.sha256(found[name]).hexdigest() != digest:
            raise InputError(f"--runtime {folder}: {name} is not that of onnxruntime-web {VERSION}; {HINT}")
    return found
