"""Sound files through pipes: read where a file is expected, refused where raw samples are."""

import io
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import soundfile

from slm.cli import main
from tokenizer.audio import read_audio
from tokenizer.errors import InputError
from tokenizer.live import read_pcm


def noise(seconds=1.0, rate=44100):
    return (0.1 * np.random.default_rng(5).standard_normal(round(seconds * rate))).astype(np.float32)


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "AIFF", "CAF", "RF64"])
def test_a_header_is_not_heard_as_sound(kind):
    buffer = io.BytesIO()
    soundfile.write(buffer, noise(0.2), 44100, format=kind)
    buffer.seek(0)
    with pytest.raises(InputError, match=r"standard input: begins as a.*/dev/stdin"):
        list(read_pcm(buffer, 320))


def test_samples_that_are_no_header_pass():
    pcm = (noise(0.1, 16000) * 32767).astype("<i2").tobytes()
    assert sum(len(block) for block in read_pcm(io.BytesIO(pcm), 320)) == 1600


def test_a_named_pipe_is_read_into_memory(tmp_path):
    soundfile.write(tmp_path / "a.wav", noise(), 44100)
    os.mkfifo(tmp_path / "pipe")
    data = (tmp_path / "a.wav").read_bytes()
    writer = threading.Thread(target=lambda: (tmp_path / "pipe").write_bytes(data))
    writer.start()
    found = read_audio(tmp_path / "pipe", 16000)
    writer.join()
    np.testing.assert_array_equal(found, read_audio(tmp_path / "a.wav", 16000))


def test_dev_stdin_is_a_file(tmp_path, tiny_codec_dir):
    soundfile.write(tmp_path / "a.flac", noise(), 44100)
    script = "import sys; from slm.cli import main; sys.exit(main())"
    words = ["encode", "/dev/stdin", str(tmp_path / "x.npy"), "--codec", str(tiny_codec_dir)]
    with open(tmp_path / "a.flac", "rb") as file:
        piped = subprocess.run([sys.executable, "-c", script, *words], input=file.read(), capture_output=True)
    assert piped.returncode == 0, piped.stderr
    assert main(["encode", str(tmp_path / "a.flac"), str(tmp_path / "y.npy"), "--codec", str(tiny_codec_dir)]) == 0
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), np.load(tmp_path / "y.npy"))
