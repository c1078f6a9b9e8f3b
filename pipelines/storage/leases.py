"""Leases: locks in object stores, which have none of their own.

A lease is a small file that its holder rewrites every `BEAT_SECONDS`. When the holder is killed the file stops
changing, and after `SILENCE_SECONDS` another run may take the lease. Clocks of different machines are never compared: a
waiting run watches the file itself.

No file ever changes hands. Each holder makes a file of its own, the next generation of the lease (`plan.lock`,
`plan.lock.1`, `plan.lock.2`, ...), by a write that the store refuses when the file exists ("If-None-Match: *" on S3).
So of many runs that see the same lease free or silent, one makes the next generation, and the others go on waiting. The
lease belongs to the highest generation; it is never removed alone, only together with all of `work/`. A holder that was
cut off for long can only change or free its own generation, which no one heeds any more:

    free or silent generation n   ->  create n+1; refused: another was faster, wait for it
    created n+1                   ->  list: is it the highest? If not, the list that showed n was old; wait
                                      (the file stays, and the holder of the highest removes it)
    holder of n+1                 ->  removes the generations below; at the end marks its own as free

All of this needs conditional creation and listings that show what was written before (S3, Google's, Azure's and
everything that speaks S3 in full have both). Where a protocol has no conditional creation, a run writes the file, waits
`SETTLE_SECONDS` and holds the lease if its own words still stand there; one line of the log says so.

A holder that cannot reach the store stops before others may take over (`StillHeld`). If the machine is suspended
between that check and a write, two runs may write; a shard has the same bytes whichever run writes it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pipelines.storage.folders import RemotePath, sizes_in
from pipelines.storage.redirects import origin
from tokenizer.errors import InputError

log = logging.getLogger(__name__)

BEAT_SECONDS = 15.0  # between two changes of the file by its holder
SILENCE_SECONDS = 60.0  # without a change, after which the holder counts as dead
LOOK_SECONDS = 2.0  # between the first two reads of the file by a run that waits; then half as much more every time
SPARING = 8.0  # a waiting run pauses at least so many times as long as a look takes, to spare the store
SETTLE_SECONDS = 5.0  # where writes have no conditions: every write that began earlier has arrived by then
LOOKS_AT_A_TIME = 16

StillHeld = Callable[[], None]
"""Raises InputError when another run has taken the lock, or may soon. Only a lease can be taken."""


State = tuple[int, bytes | None]
"""Number and content of a generation of a lease; (-1, None) where there is none."""

_conditional: dict[str, bool] = {}  # whether a store refuses to create a file that exists, as far as is known


class NotNeeded(Exception):
    """What the lease was for has been done by others."""


@contextlib.contextmanager
def lease(
    path: RemotePath,
    wait: bool,
    done: Callable[[], bool] = lambda: False,
    at_end: Callable[[], None] = lambda: None,
) -> Iterator[StillHeld]:
    """Hold a lease.

    Args:
        wait: when another process holds it, wait until it is free; otherwise raise BlockingIOError.
        done: whether there is nothing left to wait for; asked before every look at the lease.
        at_end: called last, unless another run has the lease by then; may remove the file, which is not rewritten now.

    Raises:
        BlockingIOError: saying who holds it.
        NotNeeded: it is `done`.
    """
    holder = _Holder(path)
    holder.acquire(wait, done)
    if done():  # by the one that held it before
        holder.release()
        raise NotNeeded
    keeper = threading.Thread(target=holder.keep, name="keep-lease", daemon=True)
    keeper.start()
    try:
        yield holder.check
    finally:
        holder.ended.set()
        keeper.join()
        if not holder.others_have_it():
            at_end()
            holder.release()


class _Holder:
    """One run that wants a lease, has it, or had it."""

    def __init__(self, path: RemotePath) -> None:
        self.path, self.number, self.beat = path, -1, 0
        self.older: list[int] = []  # generations below, when this one was made
        self.who = {"host": socket.gethostname(), "process": os.getpid(), "lease": uuid.uuid4().hex}
        self.ended, self.lost, self.writing = threading.Event(), threading.Event(), threading.Lock()
        self.confirmed = 0.0  # when the latest write began that the store has confirmed

    @property
    def mine(self) -> RemotePath:
        return _generation(self.path, self.number)

    def content(self, **more: Any) -> bytes:
        return json.dumps({**self.who, "beat": self.beat, **more}).encode("ascii")

    def acquire(self, wait: bool, done: Callable[[], bool]) -> None:
        began = time.monotonic()
        seen, since, pause, told = newest(self.path), time.monotonic(), LOOK_SECONDS, False
        took = since - began
        while not done():
            number, content = seen
            now: State | None
            if _is_free(content) or time.monotonic() - since >= SILENCE_SECONDS:
                self.number, self.confirmed = number + 1, time.monotonic()
                now = self.make(self.content())
                if now is None:
                    if self.still_has_it():
                        return
                    self.lost.clear()
                    now = newest(self.path)
            else:
                if not told:
                    words = "%s: held by %s; watching for up to %g s whether it is alive"
                    log.info(words, self.path, _describe(content), SILENCE_SECONDS)
                    told = True
                time.sleep(max(pause, min(SPARING * took, BEAT_SECONDS)) * random.uniform(0.5, 1.5))
                pause = min(1.5 * pause, BEAT_SECONDS / 2)
                began = time.monotonic()
                now = _looked_again(self.path, seen)
                took = time.monotonic() - began
            if now != seen:
                if not wait and not _is_free(now[1]):
                    raise BlockingIOError(_describe(now[1]))
                if now[0] != number:  # the lease changes hands: the next time may be soon
                    pause = LOOK_SECONDS
                seen, since = now, time.monotonic()
        raise NotNeeded

    def make(self, data: bytes) -> State | None:
        """Make this generation, if no other run does. Returns None if this run now has the lease, else its state."""
        found = self.mine.create(data)
        if found is None:
            return newest(self.path)
        if found != data:
            return self.number, found
        store = origin(self.path.url)
        if store not in _conditional:
            again = data + b" "
            refuses = not self.mine.looks_then_writes() and self.mine.create(again) != again
            if not refuses and not self.is_newest():  # it may have been removed before it was made again
                return newest(self.path)
            _conditional[store] = refuses
        if not _conditional[store]:
            log.warning("%s: no conditional writes there; do not start several runs at the same moment", self.path)
            self.mine.write_bytes(data)
            time.sleep(SETTLE_SECONDS)
        # If two runs create one file at the same moment, Ceph may confirm both and keep what one of them wrote.
        *self.older, number = sorted(_numbers(self.path)) or [-1]
        now = _looked_again(self.path, (number, data)) if number == self.number else newest(self.path)
        return None if now == (self.number, data) else now

    def is_newest(self) -> bool:
        return max(_numbers(self.path), default=-1) == self.number

    def keep(self) -> None:
        with contextlib.suppress(Exception):  # what is left there changes nothing
            for number in self.older:
                _generation(self.path, number).unlink(missing_ok=True)
        while not self.ended.wait(BEAT_SECONDS) and not self.lost.is_set():
            with contextlib.suppress(Exception):  # the store does not answer; a later beat or `check` will tell
                self.renew()

    def renew(self) -> None:
        """Show that the holder is alive, unless another has the lease."""
        with self.writing:
            began = time.monotonic()
            if not self.is_newest():
                self.lost.set()
                return
            self.beat += 1
            self.mine.write_bytes(self.content())
            self.confirmed = began

    def still_has_it(self) -> bool:
        """Whether this run still has the lease, and no other may take it soon."""
        if not self.lost.is_set() and time.monotonic() - self.confirmed > SILENCE_SECONDS - BEAT_SECONDS:
            self.renew()
            time.sleep(2 * LOOK_SECONDS)  # one that read the file just before may be taking over now
            self.renew()
        return not self.lost.is_set()

    def others_have_it(self) -> bool:
        """Whether another run took it. If no generation is left, none has: they go when all work is done."""
        if not self.lost.is_set():
            return False
        with contextlib.suppress(InputError):  # the store does not answer
            return bool(_numbers(self.path))
        return True

    def check(self) -> None:
        """Raise InputError if another run has the lease, or may have it soon (`StillHeld`)."""
        if not self.still_has_it():
            raise InputError(
                f"{self.path}: another run has taken over, because this one could not reach the store for "
                f"{SILENCE_SECONDS:g} s; that run continues the work"
            )

    def release(self) -> None:
        with contextlib.suppress(InputError):  # the store does not answer; then the lease ends by silence
            if self.is_newest():
                self.mine.write_bytes(self.content(free=True))


def is_unclaimed(path: RemotePath) -> bool:
    """Whether nobody has ever held a lease, or its last holder has let go of it."""
    _, found = newest(path)
    return found is None or _is_free(found)


def are_exact(path: RemotePath) -> bool:
    """Whether the store of a lease that this process has taken refuses to create a file that exists."""
    return _conditional.get(origin(path.url), False)


def first_alive(paths: Sequence[RemotePath]) -> str | None:
    """A holder of one of these leases, in words; None when all are free, which takes a wait where some are not."""
    with ThreadPoolExecutor(LOOKS_AT_A_TIME) as pool:

        def look(watched: Sequence[RemotePath]) -> dict[RemotePath, State]:
            found = zip(watched, pool.map(newest, watched), strict=True)
            return {path: (n, data) for path, (n, data) in found if not _is_free(data)}

        before = look(paths)
        until = time.monotonic() + SILENCE_SECONDS
        while before and time.monotonic() < until:
            time.sleep(LOOK_SECONDS)
            now = look(list(before))
            for path, state in now.items():
                if state != before[path]:
                    return _describe(state[1])
            before = now
    return None


def lease_of(name: str) -> str:
    """The name of the lease that a file belongs to: "plan.lock" of "plan.lock.12"."""
    return re.sub(r"\.\d+\Z", "", name)


def newest(path: RemotePath) -> State:
    """Number and content of the newest generation of a lease; (-1, None) where there is none."""
    while numbers := _numbers(path):
        with contextlib.suppress(FileNotFoundError):  # a newer one has replaced it since
            return max(numbers), _generation(path, max(numbers)).read_small()
        time.sleep(LOOK_SECONDS / 4)
    return -1, None


def _looked_again(path: RemotePath, state: State) -> State:
    """The state of a lease by reading one file if it is still there, else by the two requests of `newest`.

    A newer generation may exist as well. Then making the next one is refused, or it turns out not to be the newest.
    """
    with contextlib.suppress(FileNotFoundError):
        return state[0], _generation(path, state[0]).read_small()
    return newest(path)


def _numbers(path: RemotePath) -> list[int]:
    """The generations of a lease that are there."""
    names = (name for name in sizes_in(path.parent) if lease_of(name) == path.name)
    return [int(name[len(path.name) + 1 :] or 0) for name in names]


def _generation(path: RemotePath, number: int) -> RemotePath:
    return path.parent / (f"{path.name}.{number}" if number else path.name)


def _parsed(content: bytes) -> dict[str, Any]:
    with contextlib.suppress(ValueError):
        value = json.loads(content)
        if isinstance(value, dict):
            return value
    return {}


def _is_free(content: bytes | None) -> bool:
    return content is None or _parsed(content).get("free") is True


def _describe(content: bytes | None) -> str:
    holder = _parsed(content or b"")
    return f"process {holder.get('process')} on {holder.get('host')}"
