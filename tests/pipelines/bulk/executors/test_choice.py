"""Which executor the options of `tokenize` name, and what an executor does by default."""

import pytest

from pipelines.bulk.encoding import Encoding
from pipelines.bulk.executors import local
from pipelines.bulk.executors.inline import Inline
from pipelines.bulk.executors.local import Local
from pipelines.bulk.executors.ray import Ray
from pipelines.bulk.executors.slurm import ArrayTask
from pipelines.bulk.ownership import Part
from pipelines.bulk.tasks import ShardWork, Task
from pipelines.commands.tokenize import read_executor
from slm.cli import main
from tokenizer.errors import InputError


@pytest.fixture
def chosen(monkeypatch):
    """chosen(*options) -> the executor that `tokenize` takes."""

    def choose(*options):
        found = []
        monkeypatch.setattr("pipelines.commands.tokenize.run", lambda args: found.append(read_executor(args)) or 0)
        assert main(["tokenize", "in", "out", *options]) == 0
        return found[0]

    return choose


def test_options_name_an_executor(chosen):
    assert chosen() == Local(inline_if_one=True)
    assert chosen("--workers", "3") == Local(3, inline_if_one=True)
    assert chosen("--executor", "inline") == Inline()
    assert chosen("--executor", "local", "--workers", "2") == Local(2)
    assert chosen("--executor", "ray", "--ray-address", "auto", "--gpus-per-worker", "0.5") == Ray(None, "auto", 0.5)
    assert chosen("--part", "2/3", "--executor", "inline") == ArrayTask(part=Part(2, 3), within=Inline())


def test_several_gpus_have_a_worker_each(chosen, monkeypatch, tmp_path, capsys):
    devices = ("cuda:0", "cuda:1", "cuda:2")
    executor = chosen("--device", ",".join(devices))
    assert executor == Local(inline_if_one=True, devices=devices)
    given, crews = [], []
    monkeypatch.setattr(local, "run_crew", lambda crew, out, tasks, report, size, claim: crews.append((crew, size)))
    monkeypatch.setattr(local, "available_cores", lambda: 12)
    monkeypatch.setattr(local, "WorkerProcess", lambda work: given.append(work) or Alive())
    work = ShardWork(tmp_path, "tiny", "0", Encoding(device="cuda:0"), False)
    executor.run(work, [Task(shard) for shard in range(9)], print, None, list)
    ((crew, size),) = crews
    workers = [crew.hire() for _ in range(size)]
    workers[1].is_alive = lambda: False
    crew.hire()
    assert [work.encoding.device for work in given] == [*devices, "cuda:1"]  # one that died leaves its GPU free
    assert {work.decoders for work in given} == {3}
    for wrong in ("cpu,cuda:0", "cuda:0,cuda:0"):
        assert main(["tokenize", "in", "out", "--device", wrong]) == 2
        assert "different GPUs with commas" in capsys.readouterr().err
    assert main(["tokenize", "in", "out", "--device", "cuda:0,cuda:1", "--executor", "ray"]) == 2
    assert "several GPUs need worker processes" in capsys.readouterr().err


class Alive:
    """A worker process that is none."""

    def __init__(self):
        self.process = self

    def is_alive(self):
        return True


def test_the_old_name_of_the_option_works_with_a_note(chosen, capsys):
    for name, executor in {"inline": Inline(), "local": Local(), "ray": Ray()}.items():
        assert chosen("--engine", name) == executor
        assert capsys.readouterr().err == "note: --engine is now --executor; the next release drops --engine\n"
    assert chosen("--executor", "inline") == Inline() and capsys.readouterr().err == ""


def test_both_names_must_agree(tmp_path, capsys):
    words = ["tokenize", str(tmp_path), str(tmp_path / "out"), "--executor", "inline", "--engine", "local"]
    assert main(words) == 2
    assert "--executor is inline and --engine local" in capsys.readouterr().err


def test_a_part_asks_the_executor_within():
    part = ArrayTask(part=Part(1, 2), within=Ray())
    assert part.spans_machines and not part.works_here
    assert ArrayTask(part=Part(1, 2), within=Local(inline_if_one=True)).after_interruption() == ArrayTask(
        part=Part(1, 2), within=Local()
    )
    with pytest.raises(InputError, match="its own GPU"):
        part.check_device("cuda:1")


@pytest.mark.parametrize(
    ("workers", "cores", "shards", "processes"), [(None, 1, 3, 0), (None, 4, 3, 3), (4, 1, 1, 0), (2, 1, 3, 2)]
)
def test_processes_are_started_only_for_parallel_work(monkeypatch, tmp_path, workers, cores, shards, processes):
    started, inline = [], []
    monkeypatch.setattr(local, "available_cores", lambda: cores)
    monkeypatch.setattr(local, "run_crew", lambda crew, out, tasks, report, size, claim: started.append(size))
    monkeypatch.setattr(Inline, "run", lambda *arguments: inline.append(0))
    work, tasks = ShardWork(tmp_path, "tiny", "0", Encoding(), False), [Task(shard) for shard in range(shards)]
    Local(workers, inline_if_one=True).run(work, tasks, print, None, list)
    assert (started, inline) == (([processes], []) if processes else ([], [0]))
    started.clear()
    Local(workers).run(work, tasks, print, None, list)
    assert started == [max(processes, 1)]
