"""Workers that are actors of a Ray cluster, for `workers.run_crew`: they may come late, and go with their machine.

Every machine must see the input, OUT and the codec by the same names: a shared file system, or URLs.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.bulk.encoding import fixed_cpu_threads
from pipelines.bulk.worker_process import (
    Event,
    Progress,
    Ready,
    Receipt,
    ShardWork,
    Survived,
    Task,
    Worker,
    do_task,
    load_codec,
    portable,
)
from tokenizer.errors import InputError

log = logging.getLogger(__name__)

NODE_LOSS_SECONDS = 10.0  # a cluster needs some time to find out that a machine is gone, not only an actor
PATIENCE_SECONDS = 60.0  # without any worker, before that is worth a line


@dataclass(frozen=True)
class RayOptions:
    """Where the cluster is and what one worker asks of it.

    Attributes:
        address: of its head ("auto", "10.0.0.1:6379", "ray://..."); None: $RAY_ADDRESS, or a cluster found on this
            machine, or a new one of this machine alone.
        gpus_per_worker: a whole number, or a fraction that workers share a GPU by; used where the device is cuda.
    """

    address: str | None = None
    gpus_per_worker: float = 1.0

    def __post_init__(self) -> None:
        if not (0 < self.gpus_per_worker <= 1 or self.gpus_per_worker == int(self.gpus_per_worker) >= 1):
            raise InputError(
                f"gpus_per_worker is {self.gpus_per_worker}, expected a fraction of one GPU (0.25) or a whole number"
            )


class Shards:
    """The actor: a codec, and the tasks it is given. Errors are returned: raised ones would lose their class."""

    def __init__(self, work: ShardWork) -> None:
        self._work = work

    def load(self) -> str | Exception:
        """Load the codec. Returns the id of the node this is on."""
        import ray

        try:
            node = ray.get_runtime_context().get_node_id()
            self._codec = load_codec(self._work)
            return node
        except Exception as error:
            return portable(error)

    def do(self, task: Task) -> tuple[float, Receipt | Survived] | Exception:
        """Do a task. Returns the seconds of audio it dealt with, and what became of it."""
        seconds = 0.0

        def progress(more: float) -> None:
            nonlocal seconds
            seconds += more

        try:
            with fixed_cpu_threads():
                done = do_task(self._work, task, self._codec, progress)
            return seconds, done
        except MemoryError:
            os._exit(1)  # as the kernel would have ended it: the shard is tried again
        except Exception as error:
            return portable(error)


class RayWorker:
    """One actor, from when it is asked for: the cluster may place it at once, late or never."""

    def __init__(self, actor: Any) -> None:
        self.task: Task | None = None
        self.reported = 0.0
        self._actor = actor
        self._node: str | None = None
        self._error: Exception | None = None
        self._loaded = actor.load.remote()
        self._asked = self._loaded
        self._ready: deque[Event] = deque()

    @property
    def asked(self) -> Any:
        """What Ray is to be waited for; None where an event is here already."""
        return None if self._ready else self._asked

    def take(self, task: Task) -> None:
        self.task, self.reported = task, 0.0
        self._asked = self._actor.do.remote(task)

    def event(self) -> Event | None:
        import ray
        from ray.exceptions import GetTimeoutError, RayError, RayTaskError

        if self._ready:
            return self._ready.popleft()
        try:
            if self._node is None:
                self._node = self._result(ray.get(self._loaded))
                if self._asked is self._loaded:
                    return Ready()
            seconds, done = self._result(ray.get(self._asked))
        except (RayTaskError, GetTimeoutError):  # a defect of ours
            raise
        except RayError as error:  # the actor, its process or its machine is gone
            self._error = error
            return None
        self._ready.append(done)
        self.reported += seconds
        return Progress(seconds)

    def ending(self) -> str | None:
        self.stop()
        if self._is_node_gone():
            log.warning("a machine of the cluster is gone; its shard is done again")
            return None
        return next(iter(str(self._error).strip().splitlines()), type(self._error).__name__)

    def stop(self) -> None:
        import ray

        with contextlib.suppress(Exception):  # it is gone, or the cluster is
            ray.kill(self._actor)

    @staticmethod
    def _result(value: Any) -> Any:
        if isinstance(value, Exception):
            raise value
        return value

    def _is_node_gone(self) -> bool:
        import ray

        if "node has died" in str(self._error) or getattr(self._error, "preempted", False):
            return True
        until = time.monotonic() + NODE_LOSS_SECONDS
        while self._node is not None and time.monotonic() < until:
            if not any(node["NodeID"] == self._node and node["Alive"] for node in ray.nodes()):
                return True
            time.sleep(0.5)
        return False


class Cluster:
    """Workers on a Ray cluster."""

    def __init__(self, work: ShardWork, options: RayOptions) -> None:
        import ray

        self._work = work
        gpus = options.gpus_per_worker if work.encoding.device != "cpu" else 0
        self._asks: dict[str, Any] = {"num_cpus": 1, "num_gpus": gpus}
        # A lost actor is not restarted by Ray: its task may be at fault, which `run_crew` has to know.
        self._actors = ray.remote(Shards).options(**self._asks, max_restarts=0, max_task_retries=0)
        self._begun, self._is_silent = time.monotonic(), True

    @property
    def room(self) -> int:
        """Workers that the cluster has room for as it is now; at least 1, for it may grow."""
        import ray

        there = ray.cluster_resources()
        kind, each = ("GPU", self._asks["num_gpus"]) if self._asks["num_gpus"] else ("CPU", 1)
        return max(1, int(there.get(kind, 0) / each))

    def hire(self) -> RayWorker:
        return RayWorker(self._actors.remote(self._work))

    def heard(self, workers: Sequence[Worker], seconds: float | None) -> list[Worker]:
        import ray

        ours = [worker for worker in workers if isinstance(worker, RayWorker)]
        if here := [worker for worker in ours if worker.asked is None]:
            return list(here)
        if not ours:
            time.sleep(seconds or 0.0)
            return []
        asked = {worker.asked: worker for worker in ours}
        done, _ = ray.wait(list(asked), num_returns=1, timeout=seconds or PATIENCE_SECONDS)
        if done:
            self._is_silent = False
        elif self._is_silent and time.monotonic() - self._begun > PATIENCE_SECONDS:
            self._is_silent = False
            log.warning("Ray has placed no worker yet: each asks for %s, the cluster has %s", self._asks, _free())
        return [asked[ref] for ref in done]


def _free() -> dict[str, float]:
    import ray

    return {name: ray.cluster_resources().get(name, 0.0) for name in ("CPU", "GPU")}


@contextlib.contextmanager
def connected(options: RayOptions) -> Iterator[None]:
    """With a connection to the cluster: that of this process, where it has one already.

    Raises:
        InputError: Ray is not installed, or no cluster answers at the address.
    """
    try:
        import ray
    except ImportError:
        raise InputError("--engine ray needs Ray: pip install 'focalstream[ray]'") from None
    if ray.is_initialized():
        yield
        return
    on_term = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(options.address, log_to_driver=False, logging_level=logging.WARNING)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_term)  # Ray's own would end the process as if by a defect
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise InputError(f"--ray-address {options.address}: no cluster can be used there ({error})") from error
    try:
        yield
    finally:
        ray.shutdown()
