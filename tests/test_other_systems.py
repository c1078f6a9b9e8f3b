"""What of macOS and Windows can be seen from here: modules they lack, names of files, how processes start."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import PureWindowsPath

import pytest

from pipelines.format.layout import Layout
from tests.import_graph import MODULES, ROOT

UNIX_ONLY = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}
UNIX_NAMES = {f"os.{name}" for name in ("forkpty", "geteuid", "getuid", "killpg", "mkfifo", "setsid")}
UNIX_NAMES |= {f"signal.{name}" for name in ("SIGKILL", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGALRM")}
GET_CONTEXT = "multiprocessing.get_context"
FORKS = {"os.fork", GET_CONTEXT, *(f"multiprocessing.{name}" for name in ("Process", "Pool", "Queue"))}
LOCKS = "pipelines.storage.locks"  # the only module that may import fcntl

IMPORT_ALL = f"""
import importlib, shutil, subprocess, sys  # what the library has of Unix stays
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name in {UNIX_ONLY}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
for name in {UNIX_ONLY}:
    sys.modules.pop(name, None)
sys.meta_path.insert(0, Missing())
for name in sys.stdin.read().split():
    importlib.import_module(name)
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
        if dotted(node) in UNIX_NAMES:
            yield f"{module}, line {node.lineno}: Windows has no {dotted(node)}"
        if isinstance(node, ast.Call) and dotted(node.func) in FORKS and not spawns(node):
            yield f"{module}, line {node.lineno}: take it of multiprocessing.get_context('spawn')"


def spawns(call: ast.Call) -> bool:
    return dotted(call.func) == GET_CONTEXT and bool(call.args) and ast.unparse(call.args[0]) == "'spawn'"


def dotted(node: ast.AST) -> str:
    """The text of `name.attribute`; "" of everything else."""
    is_plain = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    return f"{node.value.id}.{node.attr}" if is_plain else ""


def test_faults_are_found():
    bad = "import fcntl\nos.kill(1, signal.SIGKILL)\nmultiprocessing.Process()\nmultiprocessing.get_context('fork')"
    assert sorted(int(fault.split("line ")[1][0]) for fault in faults("some.module", bad)) == [1, 1, 2, 3, 4]
    assert not list(faults("some.module", "try:\n    import resource\nexcept ImportError:\n    resource = None"))


@pytest.mark.slow
def test_everything_can_be_imported_without_them():
    names = " ".join(sorted(MODULES))
    done = subprocess.run([sys.executable, "-c", IMPORT_ALL], input=names, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]


def test_names_in_a_dataset_have_slashes_on_every_system():
    layout = Layout(PureWindowsPath("C:\\tokens"))  # type: ignore[arg-type]
    names = [layout.name(path) for path in (*layout.shard_files(3), layout.quarantine)]
    assert names[:2] == ["shards/cuts.000003.jsonl.gz", "shards/codes.000003.tar"] and names[-1] == "quarantine.jsonl"
    assert not any(os.path.isabs(name) or "\\" in name for name in names)
