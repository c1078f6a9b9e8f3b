"""A cluster that loses a machine, and a cut that kills actors: the same bytes as in one process."""

import json
import sys
from types import SimpleNamespace

import pytest

from pipelines.bulk.executors import ray as ray_executor
from pipelines.bulk.executors.ray import Cluster, Ray
from pipelines.bulk.tasks import ShardWork
from pipelines.sources.cuts import Selection
from tokenizer.errors import InputError

CLUSTER_MEMORY = 80 << 20  # bytes of each node's object store, about the least that Ray takes


def test_gpus_are_whole_or_a_fraction_of_one():
    assert Ray(gpus_per_worker=0.25).gpus_per_worker == 0.25
    for wrong in (0.0, -1.0, 1.5):
        with pytest.raises(InputError, match="expected a fraction of one GPU"):
            Ray(gpus_per_worker=wrong)


def test_one_gpu_cannot_be_picked(run, audio_folder, tmp_path):
    from pipelines.bulk.encoding import Encoding
    from pipelines.bulk.run import Job

    with pytest.raises(InputError, match=r"device is cuda:1.*its own GPU"):
        Job("in", tmp_path, "small", executor=Ray(), encoding=Encoding(device="cuda:1"))


def test_workers_ask_for_the_cpus_of_their_decoders(monkeypatch, tmp_path):
    from pipelines.bulk.encoding import Encoding

    asked = {}
    actors = SimpleNamespace(options=lambda **options: asked.update(options))
    resources = {"CPU": 13.0, "GPU": 8.0}
    ray = SimpleNamespace(remote=lambda actor: actors, cluster_resources=lambda: resources)
    monkeypatch.setitem(sys.modules, "ray", ray)
    cluster = Cluster(ShardWork(tmp_path, "any", "0", Encoding(device="cuda"), False, decoders=3), 0.5)
    assert (asked["num_cpus"], asked["num_gpus"]) == (4, 0.5)
    assert cluster.room == 3  # by its CPUs; its GPUs are enough for 16
    resources["GPU"] = 1.0
    assert cluster.room == 2


@pytest.mark.soak
def test_a_cluster_that_loses_a_machine(
    finished, audio_folder, write_manifest, speech, run, tmp_path, file_bytes, monkeypatch
):
    """Starting Ray takes long, so one cluster serves for all. Its head has no CPU to give."""
    ray = pytest.importorskip("ray", reason="needs Ray: pip install focalstream[ray]")
    from ray.cluster_utils import Cluster as LocalCluster

    monkeypatch.setenv("RAY_worker_niceness", "0")  # by default 15: on a busy machine nothing would move
    cluster = LocalCluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "object_store_memory": CLUSTER_MEMORY, "include_dashboard": False},
    )
    try:
        doomed = cluster.add_node(num_cpus=1, object_store_memory=CLUSTER_MEMORY)
        ray.init(cluster.address, log_to_driver=False)
        lose_after_first_take(monkeypatch, cluster, doomed)
        run(audio_folder, tmp_path / "out", executor=Ray(workers=3))
        assert file_bytes(tmp_path / "out") == file_bytes(finished)

        # No machine goes from here on, and every death would wait that long to find out.
        monkeypatch.setattr(ray_executor, "NODE_LOSS_SECONDS", 0.0)
        manifest = write_manifest({f"cut-{i}": speech(i, 0.5 + i / 10) for i in range(2)})
        lines = [json.loads(line) for line in manifest.read_text().splitlines()]
        lines[1]["recording"]["sources"][0].update(type="command", source="kill -SEGV $PPID")
        manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
        totals = run(manifest, tmp_path / "deadly", executor=Ray(workers=1), selection=Selection(allow_commands=True))
        assert (totals["cuts"], totals["quarantined"]) == (1, 1)
        entry = json.loads((tmp_path / "deadly/quarantine.jsonl").read_text())
        assert (entry["id"], entry["reason"]) == ("cut-1", "killed its worker")
    finally:
        ray.shutdown()
        cluster.shutdown()


def lose_after_first_take(monkeypatch, cluster, node):
    """Kill the only machine with a CPU while its actor is at a shard; another joins a little later."""
    take, lost = ray_executor.RayWorker.take, []

    def take_and_lose(worker, task):
        take(worker, task)
        if not lost:
            lost.append(task)
            cluster.remove_node(node, allow_graceful=False)
            cluster.add_node(num_cpus=2, object_store_memory=CLUSTER_MEMORY)

    monkeypatch.setattr(ray_executor.RayWorker, "take", take_and_lose)
