"""Mixes are loaded by Lhotse, which does not see what is damaged; files of a MultiCut go side by side."""

import io
import json

import numpy as np
import pytest
import soundfile
from lhotse import Recording

from pipelines.sources.audio import read_wave
from pipelines.sources.cuts import SourceCut
from tokenizer.errors import InputError


def damaged_mp3(wave):
    buffer = io.BytesIO()
    soundfile.write(buffer, wave, 16000, format="MP3")
    data = bytearray(buffer.getvalue())
    for k in range(len(data) // 2, len(data) // 2 + 600):
        data[k] ^= 0x5A
    return bytes(data)


def test_a_mix_over_damage_is_refused_and_one_before_it_is_not(speech, tmp_path):
    (tmp_path / "a.mp3").write_bytes(damaged_mp3(speech(0, 4.0)))
    soundfile.write(tmp_path / "b.wav", speech(1, 1.0), 16000)
    first, second = (Recording.from_file(tmp_path / name).to_cut() for name in ("a.mp3", "b.wav"))
    over = first.append(second).with_id("over")
    with pytest.raises(InputError, match=r"damaged, 6?\d+ bytes at"):
        read_wave(SourceCut(over.to_dict()), 16000)
    before = first.truncate(duration=1.0).append(second).with_id("before")
    assert len(read_wave(SourceCut(before.to_dict()), 16000)) == 32000


def test_files_of_several_kinds_go_side_by_side(speech, tmp_path):
    left, right = speech(0, 25.0), speech(1, 25.0)  # longer than a block
    soundfile.write(tmp_path / "l.wav", left, 16000, subtype="FLOAT")
    for i, part in enumerate(np.split(right, [100_000, 250_000])):
        soundfile.write(tmp_path / f"{i}.flac", part, 16000, subtype="PCM_24")
    (tmp_path / "r.flac").write_bytes(b"".join((tmp_path / f"{i}.flac").read_bytes() for i in range(3)))
    sources = [
        {"type": "file", "channels": [i], "source": str(tmp_path / name)} for i, name in enumerate(("l.wav", "r.flac"))
    ]
    recording = {"id": "r", "sources": sources, "sampling_rate": 16000, "num_samples": 400_000, "duration": 25.0}
    cut = {"id": "c", "start": 0.0, "duration": 25.0, "channel": [0, 1], "recording": recording, "type": "MultiCut"}
    found = read_wave(SourceCut(json.loads(json.dumps(cut))), 16000)
    np.testing.assert_allclose(found, (left + right) / 2, atol=1e-6)
