"""What a run refuses: folders and files of others, other settings, bad options; nothing is changed by a refusal."""

import re
import shutil
import signal
import threading

import pytest

from pipelines.bulk.interruption import interrupted_by_sigterm
from slm.cli import main
from tokenizer.errors import InputError


def test_a_finished_run_is_left_alone(finished, audio_folder, run, tmp_path, file_bytes):
    out = shutil.copytree(finished, tmp_path / "out")
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    assert run(audio_folder, out)["cuts"] == 24
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()} == times
    with pytest.raises(InputError, match=r"--shard-cuts was 5, now 6"):
        run(audio_folder, out, shard_cuts=6)
    assert file_bytes(out) == file_bytes(finished)


def test_refused_input_leaves_nothing_behind(run, tmp_path, capsys, command):
    (tmp_path / "cuts.jsonl").write_text("{broken\n")
    with pytest.raises(InputError, match="line 1"):
        run(tmp_path / "cuts.jsonl", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").write_text("mine")
    assert main(command(tmp_path, tmp_path / "file")) == 2
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
def test_bad_options_are_one_line(audio_folder, tmp_path, capsys, command, options, words):
    assert main([*command(audio_folder, tmp_path / "out"), *options]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_one_run_at_a_time(audio_folder, tiny_codec_dir, run, tmp_path):
    import fcntl

    (tmp_path / "out/work").mkdir(parents=True)
    with open(tmp_path / "out/work/lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another run is writing there"):
            run(audio_folder, tmp_path / "out")


def test_a_refusal_names_options_as_they_are_given(finished, audio_folder, command, tmp_path, capsys):
    out = shutil.copytree(finished, tmp_path / "out")
    options = ["--min-seconds", "0.1", "--channel", "1", "--pack", "--batch-seconds", "7", "--shard-hours", "2"]
    given = [word for word in command(audio_folder, out, *options) if word not in ("--shard-cuts", "5")]
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


def interrupted(*arguments):
    raise KeyboardInterrupt


def test_files_that_systems_leave_make_no_folder_strange(write_manifest, speech, run, tmp_path):
    manifest = write_manifest({"a": speech(0, 0.4)})
    for name in (".DS_Store", "work/.DS_Store", "work/.nfs0000000000c3a1f200000005", "work/receipts/._0.json"):
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).write_bytes(b"")
    (tmp_path / "out/shards").mkdir()  # empty folders are no one's
    assert run(manifest, tmp_path / "out")["cuts"] == 1


@pytest.mark.parametrize("gone", ["the folder", "what is in it"])  # the latter: `rm -r` that a new file has stopped
def test_a_folder_that_is_removed_in_mid_run_is_not_made_again(
    write_manifest, speech, run, tmp_path, monkeypatch, gone
):
    from pipelines.bulk import tasks

    manifest, out = write_manifest({f"{i}": speech(i, 0.2) for i in range(4)}), tmp_path / "out"
    store, one_at_a_time = tasks.store_shard, threading.Lock()

    def remove_and_store(*arguments):
        with one_at_a_time:
            shutil.rmtree(out, ignore_errors=True)
            if gone != "the folder":
                out.mkdir(exist_ok=True)
            return store(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(tasks, "store_shard", remove_and_store)
        with pytest.raises(InputError, match="was removed while a run was writing there"):
            run(manifest, out, shard_cuts=2)
    assert not out.exists() or not [path for path in out.rglob("*") if path.is_file()]
    assert run(manifest, out, shard_cuts=2)["cuts"] == 4


def test_only_the_first_signal_interrupts_what_is_being_put_in_order():
    ended = []
    with pytest.raises(KeyboardInterrupt), interrupted_by_sigterm():
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            signal.raise_signal(signal.SIGINT)
            ended.append("in order")
    assert ended == ["in order"]
