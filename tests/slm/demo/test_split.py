"""The demo's division of a data set, and its choice of examples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from pipelines.sources.audio import read_wave
from pipelines.sources.manifests import SourceCut, find_inputs, read_cuts
from slm.demo import split as demo_split
from tokenizer.errors import InputError

BUNDLED = Path(demo_split.__file__).parent / "speech" / "cuts.jsonl.gz"


@pytest.fixture
def folder(tmp_path):
    """Twenty-three noisy files of 0.1 to 0.3 s at 16 kHz."""
    rng = np.random.default_rng(5)
    for index in range(23):
        wave = rng.uniform(-0.5, 0.5, rng.integers(1600, 4800))
        soundfile.write(tmp_path / f"{index:02d}.wav", wave, 16_000)
    return tmp_path


def cut(name: str, seconds: float, speaker: str = "") -> SourceCut:
    supervisions = [{"speaker": speaker, "text": f"words of {name}"}] if speaker else []
    return SourceCut({"id": name, "type": "MonoCut", "duration": seconds, "supervisions": supervisions})


def corrupt(path: Path) -> None:
    path.write_bytes(np.random.default_rng(1).bytes(3000))


def ids(cuts) -> list[str]:
    return [source.cut["id"] for source in cuts]


def test_bundled_speech_says_what_is_held_out():
    split = demo_split.split_data(str(BUNDLED))
    assert len(split.train) == 70 and len(split.held_out) == 10
    assert {demo_split.speaker(source.cut) for source in split.train} == {
        demo_split.speaker(source.cut) for source in split.held_out
    }
    assert not {demo_split.text(source.cut) for source in split.train} & {
        demo_split.text(source.cut) for source in split.held_out
    }
    for source in split.held_out:
        wave = read_wave(source, 16_000)
        assert len(wave) == source.cut["recording"]["num_samples"]
        assert 0.02 < np.sqrt(np.mean(wave**2)) < 0.2


def test_every_tenth_cut_is_held_out_where_nothing_is_said(folder):
    split = demo_split.split_data(str(folder))
    assert ids(split.held_out) == ["09.wav", "19.wav"]
    assert len(split.train) == 21


def test_of_few_cuts_the_last_is_held_out(folder):
    split = demo_split.split_data(str(folder / "0[0-3].wav"))
    assert (len(split.train), ids(split.held_out)) == (3, ["03.wav"])
    assert split.rule == "the last cut is held out"


def test_a_cut_that_cannot_be_read_is_not_held_out(folder):
    corrupt(folder / "09.wav")
    split = demo_split.split_data(str(folder))
    assert ids(split.held_out) == ["19.wav"]
    assert split.rule == "every 10th cut is held out where it can be read"

    corrupt(folder / "02.wav")
    damaged = (folder / "03.wav").read_bytes()
    (folder / "03.wav").write_bytes(damaged[:20])
    split = demo_split.split_data(str(folder / "0[0-3].wav"))
    assert (ids(split.train), ids(split.held_out)) == (["00.wav", "02.wav", "03.wav"], ["01.wav"])
    assert split.rule == "the last cut that can be read is held out"


def test_one_readable_cut_cannot_be_divided(folder):
    for name in ("00.wav", "01.wav", "03.wav"):
        corrupt(folder / name)
    with pytest.raises(InputError, match="of 4 cuts, 3 are to train on, and none of these can be read"):
        demo_split.split_data(str(folder / "0[0-3].wav"))
    corrupt(folder / "02.wav")
    with pytest.raises(InputError, match="none of these can be read"):
        demo_split.split_data(str(folder / "0[0-3].wav"))


def test_one_cut_cannot_be_divided(folder):
    with pytest.raises(InputError, match="at least two cuts"):
        demo_split.split_data(str(folder / "00.wav"))


def test_written_manifest_reads_as_the_same_cuts(folder, tmp_path):
    split = demo_split.split_data(str(folder))
    path = tmp_path / "lists" / "train.jsonl.gz"
    demo_split.write_manifest(path, split.train)
    assert list(read_cuts(find_inputs(str(path)))) == split.train


def test_clips_come_from_different_speakers_and_have_a_pleasant_length():
    cuts = [cut("a", 3, "x"), cut("b", 4, "x"), cut("c", 0.4, "y"), cut("d", 5, "z"), cut("e", 6, "z")]
    assert ids(demo_split.pick_clips(cuts, 3)) == ["a", "d", "b"]
    assert ids(demo_split.pick_clips(cuts, 9)) == ["a", "d", "b", "e", "c"]


def test_prompt_is_the_first_that_is_long_enough_or_the_longest():
    cuts = [cut("a", 2.0), cut("b", 3.5), cut("c", 9.0)]
    assert demo_split.pick_prompt(cuts, 3.0).cut["id"] == "b"
    assert demo_split.pick_prompt(cuts[:2], 30.0).cut["id"] == "b"


def test_missing_audio_is_named(folder):
    split = demo_split.split_data(str(folder))
    (folder / "09.wav").unlink()
    with pytest.raises(InputError, match=r"cut 09\.wav"):
        read_wave(split.held_out[0], 16_000)


def test_audio_arrives_at_the_rate_asked_for(folder):
    split = demo_split.split_data(str(folder))
    wave = read_wave(split.held_out[0], 8_000)
    assert wave.dtype == np.float32
    assert len(wave) == round(split.held_out[0].cut["recording"]["num_samples"] / 2)
