"""What of macOS and Windows can be seen from here: modules they lack, names of files, how processes start."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import PureWindowsPath
from typing import Any

import numpy as np
import pytest
import soundfile

from pipelines.format.layout import Layout
from tests.import_graph import MODULES, ROOT

UNIX_ONLY = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}
UNIX_NAMES = {f"os.{name}" for name in ("forkpty", "geteuid", "getuid", "killpg", "mkfifo", "setsid")}
UNIX_NAMES |= {f"signal.{name}" for name in ("SIGKILL", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGALRM")}
GET_CONTEXT = "multiprocessing.get_context"
FORKS = {"os.fork", GET_CONTEXT, *(f"multiprocessing.{name}" for name in ("Process", "Pool", "Queue"))}
LOCKS = "pipelines.storage.locks"  # the only module that may import fcntl

IMPORT_ALL = """
import importlib, sys
from slm.cli import COMMANDS, main
for name in sys.stdin.read().split():
    importlib.import_module(name)
for command in COMMANDS:
    try:
        main([command, "--help"])
    except SystemExit as end:
        assert not end.code, command
"""


RUN_ALL = """
import json, sys
from slm.cli import main
for words in json.load(sys.stdin):
    assert main(words) == 0, words
"""


def test_what_only_unix_has_is_asked_for_with_care():
    """Imported where its absence is caught; functions and signals looked up nowhere."""
    found = [fault for module, path in MODULES.items() for fault in faults(module, path.read_text(encoding="utf-8"))]
    assert not found, "\n".join(found)


def faults(module: str, text: str) -> Iterator[str]:
    tree = ast.parse(text)
    caught = {
        node
        for block in ast.walk(tree)
        if isinstance(block, ast.Try) and any("ImportError" in ast.unparse(handler) for handler in block.handlers)
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = {alias.name for alias in node.names} if isinstance(node, ast.Import) else {node.module}
            if names & UNIX_ONLY and node not in caught:
                yield f"{module}, line {node.lineno}: import it where ImportError is caught"
            if "fcntl" in names and module != LOCKS:
                yield f"{module}, line {node.lineno}: imports fcntl; lock by {LOCKS}"
        if isinstance(node, ast.Call) and translates_newlines(node):
            yield f"{module}, line {node.lineno}: give newline, or Windows writes other bytes"
        if dotted(node) in UNIX_NAMES:
            yield f"{module}, line {node.lineno}: Windows has no {dotted(node)}"
        if isinstance(node, ast.Call) and dotted(node.func) in FORKS and not spawns(node):
            yield f"{module}, line {node.lineno}: take it of multiprocessing.get_context('spawn')"


def spawns(call: ast.Call) -> bool:
    return dotted(call.func) == GET_CONTEXT and bool(call.args) and ast.unparse(call.args[0]) == "'spawn'"


def translates_newlines(call: ast.Call) -> bool:
    """Whether it writes text without saying how lines end: `write_text`, or `open` with a mode such as "w"."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    mode = call.args[1].value if len(call.args) > 1 and isinstance(call.args[1], ast.Constant) else ""
    is_text = name == "open" and isinstance(mode, str) and mode[:1] in ("w", "a", "x") and "b" not in mode
    return (is_text or name == "write_text") and not any(option.arg == "newline" for option in call.keywords)


def dotted(node: ast.AST) -> str:
    """The text of `name.attribute`; "" of everything else."""
    is_plain = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    return f"{node.value.id}.{node.attr}" if is_plain else ""


def test_faults_are_found():
    bad = "import fcntl\nos.kill(1, signal.SIGKILL)\nmultiprocessing.Process()\nmultiprocessing.get_context('fork')"
    bad += "\nopen('x', 'w')"
    assert sorted(int(fault.split("line ")[1][0]) for fault in faults("some.module", bad)) == [1, 1, 2, 3, 4, 5]
    assert not list(faults("some.module", "try:\n    import resource\nexcept ImportError:\n    resource = None"))


def as_on_windows(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run Python, and the processes that it starts, with `tests/as_windows`."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT / "tests/as_windows"), str(ROOT)))}
    command = [sys.executable, *command]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, **options)


@pytest.mark.slow
def test_everything_can_be_imported_and_helps_without_them():
    done = as_on_windows(["-c", IMPORT_ALL], input=" ".join(sorted(MODULES)))
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
def test_the_whole_way_without_flock_and_without_touching_open_files(tmp_path, tiny_codec_dir):
    """Speech to tokens by two processes, a model trained and resumed, speech from it."""
    (tmp_path / "speech").mkdir()
    for i in range(6):
        noise = np.random.default_rng(i).standard_normal(16000) * np.linspace(0.01, 0.2, 16000)
        soundfile.write(tmp_path / "speech" / f"{i}.wav", noise, 16000)
    tokens, run, sound = (str(tmp_path / name) for name in ("tokens", "run", "out.wav"))
    codec = ["--codec", str(tiny_codec_dir)]
    train = ["train-lm", "--config", "tiny", "--data", tokens, "--out", run, "--model", "context=32"]
    for option in ("row-tokens=32", "rows=2", "rows-at-once=2", "validation-rows=2", "warmup-steps=0"):
        train += [f"--{option}"]
    train += ["--steps"]
    commands = [
        [
            "tokenize",
            str(tmp_path / "speech"),
            tokens,
            *codec,
            "--executor",
            "local",
            "--workers",
            "2",
            "--shard-cuts",
            "2",
        ],
        ["verify", tokens],
        [*train, "1"],
        [*train, "2", "--resume"],
        ["continue", str(tmp_path / "speech" / "0.wav"), sound, *codec, "--lm", run, "--seconds", "0.5"],
    ]
    done = as_on_windows(["-c", RUN_ALL], input=json.dumps(commands))
    assert done.returncode == 0, done.stderr[-2000:]
    assert soundfile.info(sound).frames and not (tmp_path / "tokens" / "work").exists()


def test_names_in_a_dataset_have_slashes_on_every_system():
    layout = Layout(PureWindowsPath("C:\\tokens"))  # type: ignore[arg-type]
    names = [layout.name(path) for path in (*layout.shard_files(3), layout.quarantine)]
    assert names[:2] == ["shards/cuts.000003.jsonl.gz", "shards/codes.000003.tar"] and names[-1] == "quarantine.jsonl"
    assert not any(os.path.isabs(name) or "\\" in name for name in names)
