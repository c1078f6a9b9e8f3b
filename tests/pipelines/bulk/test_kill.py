"""`kill -9` at random moments, the same command again, and the bytes are those of an undisturbed run."""

import os
import random
import subprocess
import sys
import time

import pytest

from pipelines.tools.verify import verify


def files_in(folder) -> int:
    """Files anywhere under `folder`; unlike `Path.rglob`, `os.walk` bears that folders go while it looks."""
    return sum(len(files) for _, _, files in os.walk(folder))


@pytest.mark.soak
def test_killed_at_random_moments(finished, audio_folder, tiny_codec_dir, tmp_path, file_bytes):
    """By turns in one process and with two workers, so that each way takes up what the other has left."""
    arguments = ["--codec", str(tiny_codec_dir), "--shard-cuts", "5", "--batch-seconds", "6"]
    rng, out, kills = random.Random(0), tmp_path / "out", 0
    command = [sys.executable, "-m", "slm.cli", "tokenize", str(audio_folder), str(out), *arguments]
    for start in range(40):
        executor = ["--executor", "local", "--workers", "2"] if start % 2 else ["--executor", "inline"]
        process = subprocess.Popen([*command, *executor], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        files = files_in(out)
        while process.poll() is None and files_in(out) < files + rng.randint(1, 12):
            time.sleep(0.002)
        time.sleep(rng.uniform(0.0, 0.03))
        process.kill()
        _, error = process.communicate()
        if process.returncode == 0:
            break
        assert process.returncode == -9, error
        kills += 1
    assert process.returncode == 0 and kills >= 2
    assert file_bytes(out) == file_bytes(finished)
    assert verify(out) == []
