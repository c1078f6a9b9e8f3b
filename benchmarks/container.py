"""The steps of configs/container/Dockerfile without Docker: in an empty folder, without environment, not as root.

    python benchmarks/container.py [--arg TORCH_INDEX=URL]

What the Dockerfile copies is copied, and its RUN lines are run in order with `env -i` and its ENV; paths such as
/opt/focalstream mean the same path below the folder. After USER, commands run as that user (if this script is root),
with no HOME, and, as in a container with `--read-only`, nothing but the working directory is written to. Then the
image's own command encodes and decodes a bundled recording by both engines, and continues it. What this cannot show:
the base image.
Prints a line a step; exit status 1 where one fails.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCKERFILE = ROOT / "configs/container/Dockerfile"
INSIDE = ("/opt/focalstream", "/src", "/var/cache/focalstream", "/data")  # absolute paths of the Dockerfile
SPOKEN = "slm/demo/speech/audio/eve-01.ogg"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--arg", action="append", default=[], metavar="NAME=VALUE", help="as `docker build --build-arg`"
    )
    given = dict(pair.split("=", 1) for pair in parser.parse_args().arg)
    image = Path(tempfile.mkdtemp(prefix="image-"))
    image.chmod(0o755)
    environment = {"PATH": f"{Path(os.path.realpath(sys.executable)).parent}:/usr/bin:/bin"}
    arguments: dict[str, str] = {}
    user, folder = None, image
    for instruction, words in instructions():
        began = time.monotonic()
        if instruction == "COPY":
            copy_context(image / "src")
        elif instruction == "ARG":
            name, default = words.split("=", 1)
            arguments[name] = given.get(name, default)
        elif instruction == "ENV":
            name, value = words.split("=", 1)
            environment[name] = inside(value, image).replace("$PATH", environment["PATH"])
        elif instruction == "USER":
            user = int(words.split(":")[0])
        elif instruction == "WORKDIR":
            folder = Path(inside(words, image))
        elif instruction == "RUN":
            run(["bash", "-ec", inside(words, image)], {**environment, **arguments}, None, folder)
        print(f"{instruction} {words[:70]}: {time.monotonic() - began:.0f} s", flush=True)
    (image / "data").chmod(0o777)
    shutil.copy(ROOT / SPOKEN, image / "data/in.ogg")
    before = files_of(image)
    for engine in ("torch", "onnx"):
        words = ["focalstream", "roundtrip", "in.ogg", f"{engine}.wav", "--engine", engine]
        run(words, environment, user, folder)
        print(f"{' '.join(words)}, as user {user} without HOME: {(folder / f'{engine}.wav').stat().st_size} bytes")
    run(["focalstream", "continue", "in.ogg", "more.wav", "--lm-engine", "onnx"], environment, user, folder)
    written = {path for path in files_of(image) - before if "__pycache__" not in path}
    if written != {"data/torch.wav", "data/onnx.wav", "data/more.wav"}:
        print(f"FAILED: written besides the output: {sorted(written)[:10]}")
        return 1
    size = sum(path.stat().st_size for path in image.rglob("*") if path.is_file()) / 1e6
    print(f"{size:,.0f} MB above the base image")
    shutil.rmtree(image)
    return 0


def instructions() -> list[tuple[str, str]]:
    """(instruction, the rest of its line) of the Dockerfile, with continued lines joined."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in joined.splitlines() if line]


def copy_context(target: Path) -> None:
    """What .dockerignore lets through."""
    names = [
        line[1:]
        for line in (DOCKERFILE.parent / f"{DOCKERFILE.name}.dockerignore").read_text().split()
        if line[0] == "!"
    ]
    target.mkdir(parents=True)
    for name in names:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, target / name)


def inside(text: str, image: Path) -> str:
    return re.sub(rf"(?<![\w/.-])({'|'.join(INSIDE)})\b", lambda found: str(image) + found[1], text)


def run(command: list[str], environment: dict[str, str], user: int | None, folder: Path) -> None:
    """Run a command in this environment alone. The script ends with its output if it fails."""
    if user is not None and os.geteuid() == 0:
        command = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", *command]
    done = subprocess.run(
        command, env=environment, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        sys.exit(f"FAILED: {' '.join(command)[:200]}\n{done.stdout[-3000:]}")


def files_of(image: Path) -> set[str]:
    return {str(path.relative_to(image)) for path in image.rglob("*") if path.is_file()}


if __name__ == "__main__":
    sys.exit(main())
