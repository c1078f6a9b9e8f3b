"""Shards by workers of a Ray cluster, which may start late and may be lost together with their machine.

Every machine must find the input, OUT and the codec under the same names: on a shared file system, or behind URLs.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pipelines.bulk.crew import run_crew
from pipelines.bulk.encoding import fixed_cpu_threads
from pipelines.bulk.executors.base import Executor
from pipelines.bulk.executors.local import check_workers
from pipelines.bulk.feed.processes import portable
from pipelines.bulk.tasks import (
    Claim,
    Event,
    Progress,
    Ready,
    Report,
    ShardWork,
    Task,
    TasksInHand,
    WantsMore,
    Worker,
    do_tasks,
    in_bundles,
    load_codec,
)
from pipelines.format.layout import Layout
from tokenizer.errors import InputError, first_line

if TYPE_CHECKING:
    from tokenizer import Codec

log = logging.getLogger(__name__)

NODE_LOSS_SECONDS = 10.0  # that a cluster takes to notice that a machine is lost, not only an actor
PATIENCE_SECONDS = 60.0  # without any worker, before a warning
PROGRESS_SECONDS = 1.0  # between two events of progress
DECODERS = 4  # of a worker with a GPU, unasked; each is one CPU more that it asks the cluster for
CALLS = 4  # of an actor at the same time: `events` waits while `take` is called


@dataclass(frozen=True)
class Ray(Executor):
    """Workers on a Ray cluster.

    Attributes:
        workers: how many; None: as many as the cluster has room for.
        address: of its head ("auto", "10.0.0.1:6379", "ray://..."); None: $RAY_ADDRESS, or a cluster found on this
            machine, or a new one of this machine alone.
        gpus_per_worker: a whole number, or a fraction, so that workers share a GPU; used where the device is cuda.
    """

    workers: int | None = None
    address: str | None = None
    gpus_per_worker: float = 1.0

    spans_machines = True
    works_here = False  # the head of a cluster needs no GPU

    def __post_init__(self) -> None:
        check_workers(self.workers)
        if not (0 < self.gpus_per_worker <= 1 or self.gpus_per_worker == int(self.gpus_per_worker) >= 1):
            raise InputError(
                f"gpus_per_worker is {self.gpus_per_worker}, expected a fraction of one GPU (0.25) or a whole number"
            )

    def check_device(self, device: str) -> None:
        if ":" in device:
            raise InputError(f"device is {device}: Ray gives each worker its own GPU; expected cuda or cpu")

    def run(self, work: ShardWork, tasks: list[Task], report: Report, codec: Codec, claim: Claim) -> None:
        if not tasks:
            return
        with connected(self.address):
            if work.decoders is None:
                work = replace(work, decoders=0 if work.encoding.device == "cpu" else DECODERS)
            cluster = Cluster(work, self.gpus_per_worker)
            workers = min(self.workers or cluster.room, len(list(in_bundles(tasks))))
            run_crew(cluster, Layout(work.out), tasks, report, workers, claim)


class Shards:
    """The actor: loads a codec and does tasks in a thread. It returns errors, because raised ones would lose their
    class."""

    def __init__(self, work: ShardWork) -> None:
        self._work = work
        self._tasks: queue.SimpleQueue[Sequence[Task]] = queue.SimpleQueue()
        self._events: queue.SimpleQueue[Event | Exception] = queue.SimpleQueue()

    def load(self) -> str | Exception:
        """Load the codec, and wait for tasks. Returns the id of the node that the actor is on."""
        import ray

        try:
            node = ray.get_runtime_context().get_node_id()
            self._codec = load_codec(self._work)
            threading.Thread(target=self._do, name="do-tasks", daemon=True).start()
            return node
        except Exception as error:
            return portable(error)

    def take(self, tasks: Sequence[Task]) -> None:
        """More tasks, which share batches."""
        self._tasks.put(tasks)

    def events(self) -> list[Event] | Exception:
        """Wait for what happens next; progress alone is told once a second."""
        happened: list[Event] = []
        until = time.monotonic() + PROGRESS_SECONDS
        while True:
            try:
                event = self._events.get(timeout=max(0.0, until - time.monotonic()) if happened else None)
            except queue.Empty:
                return happened
            if isinstance(event, Exception):
                return event
            if isinstance(event, Progress):
                before = happened[0].seconds if happened and isinstance(happened[0], Progress) else 0.0
                happened = [Progress(before + event.seconds)]
            else:
                return [*happened, event]

    def _do(self) -> None:
        def bundles(emit: Report) -> Iterator[Sequence[Task]]:
            while True:
                emit(WantsMore())
                yield self._tasks.get()

        try:
            with fixed_cpu_threads():
                do_tasks(self._work, bundles, self._codec, self._events.put)
        except MemoryError:
            os._exit(1)  # like a process that the kernel kills: the shard is tried again
        except Exception as error:
            self._events.put(portable(error))


class RayWorker(TasksInHand):
    """One actor, from the request on: the cluster may start it at once, late or never."""

    def __init__(self, actor: Any) -> None:
        super().__init__()
        self._actor = actor
        self._node: str | None = None
        self._error: Exception | None = None
        self._asked = actor.load.remote()
        self._happened: deque[Event] = deque()

    @property
    def asked(self) -> Any:
        """The reference to wait for; None when an event is here already."""
        return None if self._happened else self._asked

    def take(self, tasks: Sequence[Task]) -> None:
        self.tasks += tasks
        self._actor.take.remote(list(tasks))

    def event(self) -> Event | None:
        import ray
        from ray.exceptions import GetTimeoutError, RayError, RayTaskError

        if not self._happened:
            try:
                answer = self._result(ray.get(self._asked))
            except (RayTaskError, GetTimeoutError):  # a defect of ours
                raise
            except RayError as error:  # the actor, its process or its machine is lost
                self._error = error
                return None
            if self._node is None:
                self._node, answer = answer, [Ready()]
            self._happened += answer
            self._asked = self._actor.events.remote()
        event = self._happened.popleft()
        self.count(event)
        return event

    def ending(self) -> str | None:
        self.stop()
        if self._is_node_lost():
            log.warning("a machine of the cluster was lost; its shard is done again")
            return None
        assert self._error is not None, "asked for only when `event` has found the worker dead"
        return first_line(self._error)

    def stop(self) -> None:
        import ray

        with contextlib.suppress(Exception):  # the actor or the cluster is lost already
            ray.kill(self._actor)

    @staticmethod
    def _result(value: Any) -> Any:
        if isinstance(value, Exception):
            raise value
        return value

    def _is_node_lost(self) -> bool:
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
    """The `Crew` of Ray actors."""

    def __init__(self, work: ShardWork, gpus_per_worker: float) -> None:
        import ray

        self._work = work
        gpus = gpus_per_worker if work.encoding.device != "cpu" else 0
        self._asks: dict[str, Any] = {"num_cpus": 1 + (work.decoders or 0), "num_gpus": gpus}
        # Ray does not restart a lost actor, because `run_crew` counts deaths: the task may be at fault.
        self._actors = ray.remote(Shards).options(
            **self._asks, max_restarts=0, max_task_retries=0, max_concurrency=CALLS
        )
        self._begun, self._is_silent = time.monotonic(), True

    @property
    def room(self) -> int:
        """Workers that the cluster has room for now; at least 1, because it may grow."""
        import ray

        there = ray.cluster_resources()
        kinds = {"CPU": self._asks["num_cpus"], "GPU": self._asks["num_gpus"]}
        return max(1, min(int(there.get(kind, 0) / each) for kind, each in kinds.items() if each))

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
def connected(address: str | None) -> Iterator[None]:
    """Connect to the cluster; an existing connection of this process is used.

    Raises:
        InputError: Ray is not installed, or no cluster answers at the address.
    """
    try:
        import ray
    except ImportError:
        raise InputError("--executor ray needs Ray: pip install 'focalstream[ray]'") from None
    if ray.is_initialized():
        yield
        return
    on_term = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.WARNING)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_term)  # Ray's own handler would end the process as if by a defect
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise InputError(f"--ray-address {address}: no cluster can be used there ({error})") from error
    try:
        yield
    finally:
        ray.shutdown()
