"""Locks on disk, and operating systems that have none."""

import errno
import fcntl
import os
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

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


@pytest.fixture
def windows(monkeypatch):
    """msvcrt.locking in place of flock, as its documentation has it: refusals at once, by PermissionError."""
    unlock, lock_now = 0, 2

    def locking(descriptor, mode, count):
        assert count == 1 and os.lseek(descriptor, 0, os.SEEK_CUR) == 0
        try:
            fcntl.flock(descriptor, fcntl.LOCK_UN if mode == unlock else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PermissionError(errno.EACCES, "Permission denied") from None

    monkeypatch.setattr(locks, "msvcrt", SimpleNamespace(LK_NBLCK=lock_now, LK_UNLCK=unlock, locking=locking))
    monkeypatch.setattr(locks, "fcntl", None)
    monkeypatch.setattr(locks, "PAUSE", 0.01)


def test_on_windows_a_lock_is_held_once_and_passed_on(tmp_path, windows):
    path, order = tmp_path / "work" / "lock", []

    def wait_for_it():
        with flocked(path, wait=True):
            order.append("second")

    with flocked(path, wait=False):
        assert is_flocked(path)
        with pytest.raises(BlockingIOError, match="it holds lock"), flocked(path, wait=False):
            raise AssertionError("held twice")
        second = threading.Thread(target=wait_for_it)
        second.start()
        time.sleep(0.05)
        order.append("first")
    second.join(10)
    assert order == ["first", "second"] and not is_flocked(path) and not path.exists()


def test_without_file_locks_there_is_one_clear_error(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "fcntl", None)
    with (
        pytest.raises(InputError, match=r"lock: this operating system has no file locks.*behind a URL"),
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
