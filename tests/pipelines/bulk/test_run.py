"""Whole runs: the same bytes by every engine, nothing lost, and clear ends of all kinds."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from pipelines.bulk.crew import WorkerDied
from pipelines.bulk.run import Job
from pipelines.bulk.worker_process import WorkerProcess
from pipelines.dataset.token_dataset import TokenDataset
from pipelines.tools.verify import verify
from slm.cli import main
from tokenizer.errors import InputError


def command(source, out, codec, *options):
    return [
        "tokenize",
        str(source),
        str(out),
        "--codec",
        str(codec),
        "--shard-cuts",
        "5",
        "--batch-seconds",
        "6",
        *options,
    ]


def test_same_bytes_again(finished, audio_folder, run, tmp_path, file_bytes):
    run(audio_folder, tmp_path / "out")
    assert file_bytes(tmp_path / "out") == file_bytes(finished)
    assert not (tmp_path / "out/work").exists()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_same_bytes_by_worker_processes(finished, audio_folder, run, tmp_path, file_bytes, workers):
    run(audio_folder, tmp_path / "out", engine="local", workers=workers)
    assert file_bytes(tmp_path / "out") == file_bytes(finished)


def test_everything_that_was_planned_is_accounted_for(write_manifest, speech, run, tmp_path):
    waves = {f"cut-{i}": speech(i, 0.4 + i / 10) for i in range(12)}
    waves["cut-12"] = speech(12, 0.5)
    waves["cut-1"] = np.zeros(0, np.float32)
    waves["cut-2"][77] = np.nan
    waves["cut-3"][-1] = np.inf
    manifest = write_manifest(waves)
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    (tmp_path / "audio/4.wav").unlink()
    (tmp_path / "audio/5.wav").write_bytes(b"this is no audio")
    (tmp_path / "audio/6.wav").write_bytes((tmp_path / "audio/6.wav").read_bytes()[:1000])
    del lines[7]["recording"]
    lines[8]["channel"] = 3
    lines[9]["duration"] = 1e9
    lines[10]["duration"] = 1e-6
    soundfile.write(tmp_path / "audio/12.wav", speech(12, 0.5) * np.float32(1e30), 16000, subtype="FLOAT")
    lines.append(lines[0])  # the same id again
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    totals = run(manifest, tmp_path / "out", max_quarantine_rate=1.0)
    quarantined = [json.loads(line) for line in (tmp_path / "out/quarantine.jsonl").read_text().splitlines()]
    assert {entry["id"]: entry["reason"] for entry in quarantined} == {
        "cut-1": "zero length",
        "cut-2": "not finite",
        "cut-3": "not finite",
        "cut-4": "missing file",
        "cut-5": "unreadable",
        "cut-6": "truncated",
        "cut-7": "zero length",
        "cut-8": "no such channel",
        "cut-9": "truncated",
        "cut-10": "zero length",
        "cut-12": "not audio",
    }
    assert all(entry["source"] or entry["id"] == "cut-7" for entry in quarantined)
    assert all(entry["detail"] and entry["attempts"] == 2 for entry in quarantined)
    assert (totals["planned"], totals["cuts"], totals["quarantined"], totals["duplicate_ids"]) == (14, 3, 11, 1)
    dataset = TokenDataset(tmp_path / "out")
    assert [dataset.cut_id(i) for i in range(3)] == ["cut-0", "cut-11", "cut-0"]
    np.testing.assert_array_equal(dataset.codes(0), dataset.codes(2))
    assert verify(tmp_path / "out") == []  # the shard 5..9 has no cut left, and no files


def test_audio_a_little_short_is_filled_with_silence(write_manifest, speech, run, tmp_path):
    manifest = write_manifest({"a": speech(0, 1.0)})
    line = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**line, "duration": 1.02}) + "\n")
    assert run(manifest, tmp_path / "out")["tokens"] == 51
    manifest.write_text(json.dumps({**line, "duration": 1.03}) + "\n")
    assert run(manifest, tmp_path / "out2", max_quarantine_rate=1.0)["quarantined"] == 1


def test_broken_files_in_a_folder_are_quarantined(audio_folder, run, tmp_path):
    shutil.copytree(audio_folder, tmp_path / "audio")
    (tmp_path / "audio/broken.wav").write_bytes(b"no audio")
    (tmp_path / "audio/empty.flac").write_bytes(b"")
    totals = run(tmp_path / "audio", tmp_path / "out")
    assert (totals["planned"], totals["cuts"], totals["quarantined"]) == (26, 24, 2)
    quarantined = [json.loads(line) for line in (tmp_path / "out/quarantine.jsonl").read_text().splitlines()]
    assert {entry["id"]: entry["reason"] for entry in quarantined} == {
        "broken.wav": "unreadable",
        "empty.flac": "zero length",
    }


def test_folders_that_may_not_be_read_stop_the_run(audio_folder, run, tmp_path, monkeypatch):
    scan, locked = os.scandir, audio_folder / "locked"

    def forbidden(path):  # a mode of 000 does not keep root out
        if Path(path) == locked:
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    locked.mkdir()
    monkeypatch.setattr("os.scandir", forbidden)
    try:
        with pytest.raises(PermissionError, match="locked"):
            run(audio_folder, tmp_path / "out")
    finally:
        locked.rmdir()


def test_shar_input_has_the_tokens_of_its_audio(write_manifest, speech, run, tmp_path):
    from lhotse import CutSet

    manifest = write_manifest({f"cut-{i}": np.round(speech(i, 0.5 + i / 10) * 2**15) / 2**15 for i in range(5)})
    (tmp_path / "shar").mkdir()
    CutSet.from_file(manifest).with_recording_path_prefix(tmp_path).to_shar(
        tmp_path / "shar", {"recording": "flac"}, shard_size=2
    )
    run(manifest, tmp_path / "from-files")
    run(tmp_path / "shar", tmp_path / "from-shar")
    files, shar = TokenDataset(tmp_path / "from-files"), TokenDataset(tmp_path / "from-shar")
    for i in range(5):
        assert files.cut_id(i) == shar.cut_id(i)
        np.testing.assert_array_equal(files.codes(i), shar.codes(i))


@pytest.mark.parametrize("mended", [True, False])
def test_too_many_failures_stop_the_run(write_manifest, speech, run, tmp_path, mended):
    manifest = write_manifest({f"cut-{i}": speech(i, 0.4) for i in range(10)})
    for i in (0, 1, 2):
        (tmp_path / f"audio/{i}.wav").rename(tmp_path / f"{i}.wav")
    with pytest.raises(InputError, match=r"3 of 10 cuts failed.*missing file.*--max-quarantine-rate"):
        run(manifest, tmp_path / "out", max_quarantine_rate=0.2)
    if mended:
        for i in (0, 1, 2):
            (tmp_path / f"{i}.wav").rename(tmp_path / f"audio/{i}.wav")
        assert run(manifest, tmp_path / "out", max_quarantine_rate=0.2)["quarantined"] == 0
    else:
        assert run(manifest, tmp_path / "out", max_quarantine_rate=0.6)["quarantined"] == 3


def test_nothing_could_be_tokenized(write_manifest, speech, run, tmp_path):
    manifest = write_manifest({"a": speech(0, 0.4)})
    (tmp_path / "audio/0.wav").unlink()
    assert run(manifest, tmp_path / "out", max_quarantine_rate=1.0)["cuts"] == 0
    assert verify(tmp_path / "out") == []
    assert len(TokenDataset(tmp_path / "out")) == 0


def test_a_finished_run_is_left_alone(finished, audio_folder, run, tmp_path, file_bytes):
    out = shutil.copytree(finished, tmp_path / "out")
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    assert run(audio_folder, out)["cuts"] == 24
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()} == times
    with pytest.raises(InputError, match=r"--shard-cuts was 5, now 6"):
        run(audio_folder, out, shard_cuts=6)
    assert file_bytes(out) == file_bytes(finished)


def test_refused_input_leaves_nothing_behind(run, tmp_path, capsys, tiny_codec_dir):
    (tmp_path / "cuts.jsonl").write_text("{broken\n")
    with pytest.raises(InputError, match="line 1"):
        run(tmp_path / "cuts.jsonl", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").write_text("mine")
    assert main(command(tmp_path, tmp_path / "file", tiny_codec_dir)) == 2
    assert "is a file; expected a folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "unfinished"),
    [
        ("holiday.jpg", False),
        ("dataset.json", False),
        ("shards/codes.000000.tar", False),
        ("work/lock", False),
        ("work/photo.jpg", False),
        ("work/photo.jpg", True),
        ("work/plan/notes.txt", True),
        ("work/tmp/draft.txt", True),
        ("work/receipts/2024/may.json", True),
    ],
)
def test_files_of_others_are_never_touched(
    write_manifest, speech, run, tmp_path, monkeypatch, file_bytes, name, unfinished
):
    manifest, out = write_manifest({"a": speech(0, 0.4), "b": speech(1, 0.4)}), tmp_path / "out"
    if unfinished:
        with monkeypatch.context() as patch:
            patch.setattr("pipelines.bulk.run.finalize", interrupted)
            with pytest.raises(KeyboardInterrupt):
                run(manifest, out)
    (out / name).parent.mkdir(parents=True, exist_ok=True)
    (out / name).write_text('{"mine": true}')
    before = file_bytes(out)
    with pytest.raises(InputError, match=re.escape(name.partition("/")[0])):
        run(manifest, out)
    assert file_bytes(out) == before


def test_a_folder_of_others_beside_a_finished_dataset_stays(finished, audio_folder, run, tmp_path, file_bytes):
    out = shutil.copytree(finished, tmp_path / "out")
    (out / "work").mkdir()
    (out / "work/photo.jpg").write_text("mine")
    before = file_bytes(out)
    with pytest.raises(InputError, match=r"work/photo\.jpg was not made by focalstream.*another OUT"):
        run(audio_folder, out)
    assert file_bytes(out) == before


def test_an_empty_folder_and_the_trace_of_an_early_kill_are_free(write_manifest, speech, run, tmp_path):
    manifest = write_manifest({"a": speech(0, 0.4)})
    (tmp_path / "out/work").mkdir(parents=True)
    assert run(manifest, tmp_path / "out")["cuts"] == 1


def interrupted(*arguments):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--workers", "0"], "workers is 0"),
        (["--max-quarantine-rate", "1.5"], "max_quarantine_rate is 1.5"),
        (["--batch-seconds", "-1"], "batch_seconds is -1"),
        (["--codec", "no/such/codec"], "no/such/codec"),
        (["--device", "gramophone"], "device 'gramophone' cannot be used"),
    ],
)
def test_bad_options_are_one_line(audio_folder, tmp_path, capsys, tiny_codec_dir, options, words):
    assert main([*command(audio_folder, tmp_path / "out", tiny_codec_dir), *options]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_command_prints_json(write_manifest, speech, tmp_path, capsys, tiny_codec_dir):
    manifest = write_manifest({"a": speech(0, 1.0)})
    assert main(command(manifest, tmp_path / "out", tiny_codec_dir, "--engine", "inline", "--json")) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["cuts"], result["tokens"], result["was_complete"]) == (1, 50, False)
    assert main(command(manifest, tmp_path / "out", tiny_codec_dir, "--json")) == 0
    assert json.loads(capsys.readouterr().out)["was_complete"]


def test_one_run_at_a_time(audio_folder, tiny_codec_dir, run, tmp_path):
    import fcntl

    (tmp_path / "out/work").mkdir(parents=True)
    with open(tmp_path / "out/work/lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another run is writing there"):
            run(audio_folder, tmp_path / "out")


def test_default_job_is_an_hour_a_shard():
    assert Job("in", "out", "small").sharding.hours == 1.0


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_leave_whole_shards_only(finished, audio_folder, tiny_codec_dir, run, tmp_path, file_bytes, number):
    """Sent to the whole process group, as a terminal and most schedulers do."""
    out = tmp_path / "out"
    arguments = command(audio_folder, out, tiny_codec_dir, "--workers", "2", "--engine", "local")
    command_line = [sys.executable, "-m", "slm.cli", *arguments]
    process = subprocess.Popen(command_line, stderr=subprocess.PIPE, text=True, start_new_session=True)
    moment = "work/receipts/*.json" if number == signal.SIGTERM else "work/plan.json"  # the latter: workers load
    while process.poll() is None and not list(out.glob(moment)):
        time.sleep(0.01)
    time.sleep(0.3 if number == signal.SIGINT else 0.0)
    os.killpg(process.pid, number)
    _, error = process.communicate(timeout=60)
    if process.returncode != 0:  # 0: it was faster than the signal
        assert process.returncode == 130 and "interrupted" in error and "Traceback" not in error
        assert not (out / "work/tmp").exists() and not (out / "dataset.json").exists()
        whole = {f"{int(path.stem):06d}" for path in out.glob("work/receipts/*.json")}
        assert {path.name.split(".")[1] for path in out.glob("shards/codes.*.tar")} >= whole
    run(audio_folder, out)
    assert file_bytes(out) == file_bytes(finished)


@pytest.mark.slow
def test_a_killed_worker_is_replaced(finished, audio_folder, run, tmp_path, file_bytes, monkeypatch):
    kill_workers(monkeypatch, times=1)
    run(audio_folder, tmp_path / "out", engine="local", workers=2)
    assert file_bytes(tmp_path / "out") == file_bytes(finished)


@pytest.mark.slow
def test_a_shard_that_kills_its_workers_whatever_is_in_it_ends_the_run(audio_folder, run, tmp_path, monkeypatch):
    kill_workers(monkeypatch, times=10)
    with pytest.raises(WorkerDied, match=r"shard \d+ brought down 2 workers .*SIGKILL.* no cut of it is to blame"):
        run(audio_folder, tmp_path / "out", engine="local", workers=1)


def kill_workers(monkeypatch, times):
    """SIGKILL a worker right after it was given a task, the first `times` times."""
    take, left = WorkerProcess.take, [times]

    def take_and_die(worker, task):
        take(worker, task)
        if left[0] and task is not None:
            left[0] -= 1
            os.kill(worker.process.pid, signal.SIGKILL)

    monkeypatch.setattr(WorkerProcess, "take", take_and_die)


def test_a_refusal_names_options_as_they_are_given(finished, audio_folder, tiny_codec_dir, tmp_path, capsys):
    out = shutil.copytree(finished, tmp_path / "out")
    options = ["--min-seconds", "0.1", "--channel", "1", "--pack", "--batch-seconds", "7", "--shard-hours", "2"]
    given = [word for word in command(audio_folder, out, tiny_codec_dir, *options) if word not in ("--shard-cuts", "5")]
    assert main(given) == 2
    error = capsys.readouterr().err
    for words in (
        "--min-seconds was not given, now 0.1",
        "--channel was not given, now 1",
        "--pack was not given, now True",
        "--batch-seconds was 6.0, now 7.0",
        "--shard-cuts was 5, now not given",
        "--shard-hours was not given, now 2.0",
    ):
        assert words in error


@pytest.mark.parametrize("retry", [False, True])
def test_the_closing_rate_counts_only_what_this_run_encoded(write_manifest, speech, run, tmp_path, monkeypatch, retry):
    """A retry in a shard whose other cuts are sound, and a run of which nothing is left to encode."""
    from pipelines.bulk import progress

    manifest, seconds = write_manifest({f"cut-{i}": speech(i, 0.5 + i / 10) for i in range(4)}), []
    (tmp_path / "audio/2.wav").rename(tmp_path / "2.wav")
    if retry:
        run(manifest, tmp_path / "out")
        (tmp_path / "2.wav").rename(tmp_path / "audio/2.wav")
    else:
        with monkeypatch.context() as patch:
            patch.setattr("pipelines.bulk.run.finalize", interrupted)
            with pytest.raises(KeyboardInterrupt):
                run(manifest, tmp_path / "out")
    leave = progress.ProgressBar.__exit__

    def see_and_leave(bar, *error):
        seconds.append((bar._seconds, bar._done + bar._seconds))
        leave(bar, *error)

    monkeypatch.setattr(progress.ProgressBar, "__exit__", see_and_leave)
    run(manifest, tmp_path / "out", retry_quarantined=retry)
    ((this_run, in_all),) = seconds
    assert this_run == pytest.approx(0.7 if retry else 0.0) and in_all == pytest.approx(2.6)


def test_the_line_a_minute_never_has_less_than_nothing_left(capsys, monkeypatch):
    """Durations summed in another order end a little above their sum."""
    from pipelines.bulk import progress
    from pipelines.bulk.worker_process import Progress

    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    with progress.ProgressBar(360.0, 0.0, 0) as bar:
        bar.see(Progress(360.1))
    assert capsys.readouterr().err.rstrip().endswith("0 failed, about 0 min left")
