"""Locks on disk, and operating systems that have none."""

import subprocess
import sys

import pytest

from pipelines.storage import locks
from pipelines.storage.locks import flocked, is_flocked
from tokenizer.errors import InputError


def test_a_lock_is_held_once(tmp_path):
    path = tmp_path / "work" / "lock"
    assert not is_flocked(path)
    with flocked(path, wait=False):
        assert is_flocked(path)
        with pytest.raises(BlockingIOError, match="it holds lock"), flocked(path, wait=False):
            raise AssertionError("held twice")
    assert not is_flocked(path)


def test_without_file_locks_there_is_one_clear_error(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "fcntl", None)
    with (
        pytest.raises(InputError, match=r"lock: this operating system has no file locks.*WSL"),
        flocked(tmp_path / "lock", wait=True),
    ):
        raise AssertionError("held without a lock")
    assert not (tmp_path / "lock").exists()


def test_imports_need_no_unix():
    """As on Windows: neither fcntl nor resource."""
    code = (
        "import sys; sys.modules['fcntl'] = sys.modules['resource'] = None\n"
        "import slm.cli, pipelines.dataset, pipelines.bulk.run, pipelines.tools.repair, pipelines.tools.verify\n"
        "from pipelines.dataset.open_files import MOST_MAPPED\n"
        "from pipelines.dataset.token_dataset import MAPPED_SHARDS\n"
        "assert MAPPED_SHARDS == MOST_MAPPED"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
