"""Every state that a crash can leave on disk leads to the same final bytes."""

import os
import shutil

import pytest

from pipelines.bulk import tasks


def test_resuming_from_the_state_at_every_rename(audio_folder, run, tmp_path, file_bytes, monkeypatch):
    """A run is photographed before each of its renames and after the last; from each picture a new run ends with the
    same bytes.

    Between two renames only temporary files change, which `test_killed_at_random_moments` leaves in all states.
    """
    pictures, replace = [], os.replace

    def photograph_and_replace(source, target):
        photograph()
        replace(source, target)
        if str(target).endswith("dataset.json"):
            photograph()

    def photograph():
        pictures.append(shutil.copytree(tmp_path / "out", tmp_path / f"at-{len(pictures)}"))

    with monkeypatch.context() as patch:
        patch.setattr(tasks, "STORES", 1)  # nothing changes while a picture is taken
        patch.setattr(os, "replace", photograph_and_replace)
        run(audio_folder, tmp_path / "out", shard_cuts=8)
    whole = file_bytes(tmp_path / "out")
    assert (
        len(pictures) == 1 + 3 * 5 + 4 + 1
    )  # plan; 4 files and a receipt a shard; ledgers, dataset.json twice; the end
    for picture in pictures:
        run(audio_folder, picture, shard_cuts=8)
        assert file_bytes(picture) == whole


@pytest.mark.parametrize("lost", ["shards/codes.000001.tar", "index/codes.000001.npy"])
def test_a_shard_whose_file_is_gone_is_done_again(audio_folder, run, tmp_path, file_bytes, monkeypatch, lost):
    run(audio_folder, tmp_path / "whole", shard_cuts=8)
    with monkeypatch.context() as patch:
        patch.setattr("pipelines.bulk.run.finalize", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(audio_folder, tmp_path / "out", shard_cuts=8)
    (tmp_path / "out" / lost).unlink()
    run(audio_folder, tmp_path / "out", shard_cuts=8)
    assert file_bytes(tmp_path / "out") == file_bytes(tmp_path / "whole")


def interrupted(*arguments):
    raise KeyboardInterrupt
