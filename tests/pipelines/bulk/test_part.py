"""Parts of a run: the same bytes by any number of them, nothing twice, and no two of what must be alone."""

import fcntl
import json
import subprocess
import sys
import time

import pytest

from pipelines.bulk.executors.inline import Inline
from pipelines.bulk.executors.slurm import ArrayTask, read_part
from pipelines.bulk.ownership import Part, once, only_run
from pipelines.bulk.run import Job
from pipelines.bulk.stored_plan import read_plan
from pipelines.format.layout import Layout
from pipelines.tools.verify import verify
from slm.cli import main
from tokenizer.errors import InputError


def array(task, first, last, count, step=1):
    values = {"ID": task, "MIN": first, "MAX": last, "COUNT": count, "STEP": step}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in values.items()}


def test_what_part_a_text_means():
    assert read_part("3/16") == Part(3, 16)
    assert read_part("slurm", array(0, 0, 15, 16)) == Part(1, 16)
    assert read_part("slurm", array(16, 1, 16, 16)) == Part(16, 16)
    assert read_part("slurm", array(10, 4, 12, 5, step=2)) == Part(4, 5)
    for text in ("0/4", "5/4", "1", "a/b", "1/0", "-1/4", ""):
        with pytest.raises(InputError, match="expected I/N"):
            read_part(text)
    with pytest.raises(InputError, match=r"SLURM_ARRAY_TASK_COUNT.*--array=0-15"):
        read_part("slurm", {"SLURM_ARRAY_TASK_ID": "3"})
    with pytest.raises(InputError, match="unbroken range"):
        read_part("slurm", array(7, 3, 7, 2))  # --array=3,7


@pytest.mark.parametrize("of", [2, 7])
def test_parts_give_the_same_bytes_and_do_no_shard_twice(
    finished, audio_folder, run, tmp_path, file_bytes, monkeypatch, of
):
    """7 parts of 5 shards: two of them find nothing to do."""
    from pipelines.bulk import tasks

    done, store = [], tasks.store_shard
    monkeypatch.setattr(tasks, "store_shard", lambda out, made: done.append(made.receipt.shard) or store(out, made))
    out = tmp_path / "out"
    for number in range(of, 0, -1):
        assert not (out / "dataset.json").exists()
        run(audio_folder, out, part=Part(number, of))
    assert file_bytes(out) == file_bytes(finished) and not (out / "work").exists()
    assert sorted(done) == list(range(5))
    assert run(audio_folder, out, part=Part(1, of))["cuts"] == 24  # already complete


def test_what_a_part_left_is_done_by_a_plain_run(finished, audio_folder, run, tmp_path, file_bytes):
    totals = run(audio_folder, tmp_path / "out", part=Part(2, 3))
    assert (totals["cuts"], totals["planned"]) == (5 + 4, 24)  # the shards 1 and 4, of which the last is not full
    run(audio_folder, tmp_path / "out")
    assert file_bytes(tmp_path / "out") == file_bytes(finished)


def test_another_plan_is_refused(audio_folder, run, tmp_path):
    run(audio_folder, tmp_path / "out", part=Part(1, 2))
    with pytest.raises(InputError, match="--shard-cuts was 5, now 6"):
        run(audio_folder, tmp_path / "out", part=Part(2, 2), shard_cuts=6)


def test_who_may_work_beside_whom(tmp_path):
    layout = Layout(tmp_path / "out")
    with only_run(layout, Part(1, 4)):
        for other in (Part(1, 4), Part(1, 3), None):
            with pytest.raises(InputError, match="another run is writing there"), only_run(layout, other):
                pass
        with only_run(layout, Part(2, 4)), only_run(layout, Part(4, 4)):
            pass
    with only_run(layout), pytest.raises(InputError, match="another run"), only_run(layout, Part(1, 4)):
        pass
    with only_run(layout, Part(1, 3)):  # what a part held that came to its end holds nobody up
        pass
    assert not layout.out.exists()


@pytest.mark.slow
def test_a_part_waits_while_another_plans(audio_folder, tiny_codec_dir, tmp_path):
    layout = Layout(tmp_path / "out")
    (tmp_path / "out/work/parts").mkdir(parents=True)
    command = ["tokenize", str(audio_folder), str(layout.out), "--codec", str(tiny_codec_dir), "--executor", "inline"]
    options = ["--shard-cuts", "5", "--batch-seconds", "6", "--part", "1/1", "--json"]
    with open(tmp_path / "out/work/plan.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        process = subprocess.Popen([sys.executable, "-m", "slm.cli", *command, *options], stdout=subprocess.PIPE)
        while not (layout.work / "parts/1-of-1").exists():
            assert process.poll() is None
            time.sleep(0.05)
        time.sleep(0.3)
        assert not (layout.work / "plan").exists()
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0 and json.loads(output)["shards_left"] == 0
    assert verify(layout.out) == []


@pytest.mark.slow
def test_parts_at_the_same_time_some_killed(finished, audio_folder, tiny_codec_dir, tmp_path, file_bytes):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "slm.cli", "tokenize", str(audio_folder), str(out)]
    command += ["--codec", str(tiny_codec_dir), "--shard-cuts", "5", "--batch-seconds", "6"]

    def begin(number):
        executor = ["--executor", "local", "--workers", "1"] if number == 2 else ["--executor", "inline"]
        return subprocess.Popen([*command, "--part", f"{number}/3", *executor], stderr=subprocess.PIPE, text=True)

    parts = [begin(1), begin(2), begin(3), begin(3)]
    while not list(out.glob("work/receipts/*")) and any(part.poll() is None for part in parts):
        time.sleep(0.005)
    parts[0].kill()
    errors = [part.communicate(timeout=600)[1] for part in parts]
    twice = [part.returncode for part in parts[2:]]
    assert twice in ([0, 2], [2, 0], [0, 0]), errors  # [0, 0]: the one had come to its end before the other began
    assert parts[1].returncode == 0
    again = begin(1)
    again.communicate(timeout=600)
    assert again.returncode == 0
    assert file_bytes(out) == file_bytes(finished) and not (out / "work").exists()


def test_failures_of_all_parts_count(write_manifest, speech, run, tmp_path):
    manifest = write_manifest({f"cut-{i}": speech(i, 0.4) for i in range(10)})
    for i in (0, 1, 5, 6):
        (tmp_path / f"audio/{i}.wav").write_bytes(b"no audio")
    # Each part by itself, and what it sees of the other's, stays below 4 of 10.
    run(manifest, tmp_path / "out", part=Part(1, 2), max_quarantine_rate=0.3)
    with pytest.raises(InputError, match="4 of 10 cuts failed"):
        run(manifest, tmp_path / "out", part=Part(2, 2), max_quarantine_rate=0.3)
    assert not (tmp_path / "out/dataset.json").exists()


def test_a_part_of_a_retry_is_refused(tmp_path):
    with pytest.raises(InputError, match="leave out --part"):
        Job("in", tmp_path, "small", executor=ArrayTask(Part(1, 2), Inline()), retry_quarantined=True)


def test_planning_that_is_refused_leaves_nothing(run, tmp_path):
    (tmp_path / "cuts.jsonl").write_text("{broken\n")
    with pytest.raises(InputError, match="line 1"):
        run(tmp_path / "cuts.jsonl", tmp_path / "out", part=Part(1, 2))
    assert not (tmp_path / "out").exists()


def test_once_is_one_at_a_time(tmp_path):
    layout = Layout(tmp_path)
    with once(layout, "plan", lambda: False), open(layout.work / "plan.lock") as lock, pytest.raises(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    (layout.work / "plan.lock").unlink()
    with once(layout, "plan", lambda: True):
        assert not (layout.work / "plan.lock").exists()


def test_parts_of_a_stored_plan_read_no_manifest_and_no_receipts_of_others(
    write_manifest, speech, run, tmp_path, monkeypatch
):
    from pipelines.bulk import plan
    from pipelines.format import ledger

    manifest, out = write_manifest({f"{i}": speech(i, 0.2) for i in range(6)}), tmp_path / "out"
    assert run(manifest, out, shard_cuts=2, plan_only=True) | {"planned": 6, "cuts": 0} == run(
        manifest, out, shard_cuts=2, plan_only=True
    )
    receipts, read = [], ledger._receipt_path
    with monkeypatch.context() as patch:
        patch.setattr(plan, "content_digest", None)
        patch.setattr(ledger, "_receipt_path", lambda layout, shard: receipts.append(shard) or read(layout, shard))
        assert run(manifest, out, shard_cuts=2, part=Part(1, 3))["cuts"] == 2 and set(receipts) == {0}
    manifest.write_text(manifest.read_text().replace("some words", "more words"))
    with pytest.raises(InputError, match="the content of the input was"):
        run(manifest, out, shard_cuts=2, part=Part(2, 3))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_parts_on_gpus_are_planned_without_one(write_manifest, speech, tiny_codec_dir, tmp_path, capsys, precision):
    manifest, out = write_manifest({f"{i}": speech(i, 0.2) for i in range(6)}), tmp_path / "out"
    command = ["tokenize", str(manifest), str(out), "--codec", str(tiny_codec_dir), "--plan-only", "--shard-cuts", "2"]
    command += ["--device", "cuda", "--precision", precision]
    assert main(command) == 2
    assert "--batch-seconds must be given with --plan-only and --device cuda" in capsys.readouterr().err
    assert main([*command, "--batch-seconds", "600"]) == 0
    assert "planned 6 cuts in 3 shards" in capsys.readouterr().out
    assert read_plan(Layout(out)).identity["encoding"]["device_type"] == "cuda"
