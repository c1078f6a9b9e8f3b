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
from tokenizer.audio_input.mpeg import parse_header
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


@pytest.mark.parametrize(("begin", "name"), [(0, "MP4"), (1, "MP3")])
def test_a_file_without_a_magic_number_is_not_heard_as_sound(begin, name):
    buffer = io.BytesIO()
    soundfile.write(buffer, noise(1.0, 16000), 16000, format="MP3")
    data = buffer.getvalue()
    frame = parse_header(data[:4])  # of the header frame: what follows has no text to tell it by
    data = (b"\0\0\0\x20ftypM4A " + data, data[frame.length :])[begin]
    with pytest.raises(InputError, match=rf"begins as an {name} file.*/dev/stdin"):
        list(read_pcm(io.BytesIO(data), 1280))


def test_samples_that_are_one_header_of_a_frame_pass():
    pcm = b"\xff\xfb\x90\x00" + (noise(0.1, 16000) * 32767).astype("<i2").tobytes()
    assert sum(len(block) for block in read_pcm(io.BytesIO(pcm), 1280)) == 1602


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
