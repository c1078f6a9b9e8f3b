"""The tokens of a shard: equal to the codec's own, whatever the batches, the windows and the failures around them."""

import copy

import numpy as np
import pytest
import soundfile
import soxr
import torch

from pipelines.bulk import encoding as encoding_module
from pipelines.bulk.encoding import Encoding, encode_cuts
from pipelines.bulk.feed.batches import lay_out
from pipelines.format.ledger import Quarantined
from pipelines.sources.audio import expected_samples, read_resampled, resampled_length
from pipelines.sources.cuts import PlannedCut
from pipelines.sources.manifests import find_inputs, read_cuts


class Exact:
    """A codec in float64, in which the tokens of an utterance depend on nothing but the utterance."""

    def __init__(self, codec):
        self.codec = copy.deepcopy(codec).double()

    def __getattr__(self, name):
        return getattr(self.codec, name)

    def encode(self, wave, lengths=None):
        return self.codec.encode(wave.double(), lengths)

    def encode_step(self, chunk, state):
        return self.codec.encode_step(chunk.double(), state)


@pytest.fixture(scope="module")
def exact_codec(tiny_codec):
    return Exact(tiny_codec)


def planned(source):
    return [
        PlannedCut(item.cut, item.audio, member=f"m{i}") for i, item in enumerate(read_cuts(find_inputs(str(source))))
    ]


def alone(codec, cut):
    samples = expected_samples(cut.cut, cut.seconds, 16000)
    return codec.encode(torch.from_numpy(np.concatenate(list(read_resampled(cut, samples, 16000)))))[0].numpy()


@pytest.mark.parametrize("batch_seconds", [0.5, 5.0, 1000.0])
def test_tokens_are_those_of_each_cut_alone(audio_folder, exact_codec, batch_seconds):
    cuts = planned(audio_folder)
    seconds = []
    outcomes = encode_cuts(cuts, exact_codec, Encoding(batch_seconds), seconds.append)
    for cut, codes in zip(cuts, outcomes, strict=True):
        assert codes.dtype == np.uint16
        np.testing.assert_array_equal(codes, alone(exact_codec, cut))
    assert sum(seconds) == pytest.approx(sum(cut.seconds for cut in cuts))


def test_long_recordings_in_windows_equal_one_pass(write_manifest, speech, exact_codec, monkeypatch):
    monkeypatch.setattr(encoding_module, "LONG_SECONDS", 2.0)
    monkeypatch.setattr(encoding_module, "WINDOW_SECONDS", 0.7)
    cuts = planned(write_manifest({"short": speech(0, 1.1), "long": speech(1, 5.03), "longer": speech(2, 9.9)}, 22050))
    seconds = []
    outcomes = encode_cuts(cuts, exact_codec, Encoding(), seconds.append)
    for cut, codes in zip(cuts, outcomes, strict=True):
        np.testing.assert_array_equal(codes, alone(exact_codec, cut))
    assert len(seconds) > 15  # in windows indeed


def test_a_codec_that_does_not_stream_gets_every_cut_whole(write_manifest, speech, whole_codec, monkeypatch):
    monkeypatch.setattr(encoding_module, "LONG_SECONDS", 2.0)  # windows that would begin here
    monkeypatch.setattr("tokenizer.rates.LONGEST_WHOLE", 4.0)
    codec = Exact(whole_codec)
    seconds = {"short": 1.1, "shorter": 0.01, "long": 3.03, "too long": 4.1}
    cuts = planned(write_manifest({key: speech(i, s, 22050) for i, (key, s) in enumerate(seconds.items())}, 22050))
    done = []
    outcomes = encode_cuts(cuts, codec, Encoding(), done.append)
    for cut, codes in zip(cuts[:3], outcomes, strict=False):
        np.testing.assert_array_equal(codes, alone(codec, cut))
    assert isinstance(outcomes[3], Quarantined) and outcomes[3].reason == "too long"
    assert "lasts 4.1 s" in outcomes[3].detail and "at most 4 s" in outcomes[3].detail
    assert sum(done) == pytest.approx(sum(cut.seconds for cut in cuts))


def test_resampling_in_blocks_equals_one_pass(write_manifest, speech, monkeypatch):
    wave = speech(3, 7.77, 44100)
    (cut,) = planned(write_manifest({"a": wave}, 44100))
    samples = expected_samples(cut.cut, cut.seconds, 16000)
    for block_seconds in (0.1, 0.333, 10.0):
        monkeypatch.setattr("pipelines.sources.audio.BLOCK_SECONDS", block_seconds)
        found = np.concatenate(list(read_resampled(cut, samples, 16000)))
        np.testing.assert_array_equal(found, soxr.resample(wave, 44100, 16000))


def test_lengths_by_arithmetic_are_those_of_the_resampler():
    rng = np.random.default_rng(0)
    for rate in (8000, 11025, 22050, 24000, 44100, 48000):
        for samples in rng.integers(50, 5000, 50):
            wave = np.zeros(samples, np.float32)
            assert abs(resampled_length(int(samples), rate, 16000) - len(soxr.resample(wave, rate, 16000))) <= 1


def test_channels(write_manifest, speech):
    stereo = np.stack([speech(4, 1.0), speech(5, 1.0)], axis=1)
    (both,) = planned(write_manifest({"a": stereo}))
    right = PlannedCut({**both.cut, "channel": 1, "type": "MonoCut"}, member="m")
    np.testing.assert_array_equal(np.concatenate(list(read_resampled(both, 16000, 16000))), stereo.mean(axis=1))
    np.testing.assert_array_equal(np.concatenate(list(read_resampled(right, 16000, 16000))), stereo[:, 1])


def test_one_file_per_channel(write_manifest, speech, tmp_path):
    left, right = speech(6, 1.0), speech(7, 1.0)
    soundfile.write(tmp_path / "left.wav", left, 16000, subtype="FLOAT")
    soundfile.write(tmp_path / "right.wav", right, 16000, subtype="FLOAT")
    (cut,) = planned(write_manifest({"a": left}))
    sources = [
        {"type": "file", "channels": [i], "source": str(tmp_path / f"{side}.wav")}
        for i, side in enumerate(("left", "right"))
    ]
    recording = {**cut.cut["recording"], "sources": sources, "channel_ids": [0, 1]}
    both = PlannedCut({**cut.cut, "recording": recording, "channel": [0, 1], "type": "MultiCut"}, member="m")
    found = np.concatenate(list(read_resampled(both, 16000, 16000)))
    np.testing.assert_array_equal(found, np.stack([left, right], axis=1).mean(axis=1))


def test_a_cut_in_the_middle_of_a_recording(write_manifest, speech):
    wave = speech(8, 3.0)
    (cut,) = planned(write_manifest({"a": wave}))
    middle = PlannedCut({**cut.cut, "start": 0.7, "duration": 1.3}, member="m")
    found = np.concatenate(list(read_resampled(middle, expected_samples(middle.cut, 1.3, 16000), 16000)))
    np.testing.assert_array_equal(found, wave[11200 : 11200 + 20800])


def test_the_rate_of_the_file_counts_where_the_manifest_says_another(write_manifest, speech):
    """As for Opus, which decodes at rates of its own."""
    wave = speech(11, 1.5, 24000)
    (cut,) = planned(write_manifest({"a": wave}, 24000))
    recording = {**cut.cut["recording"], "sampling_rate": 16000, "num_samples": 24000}
    found = np.concatenate(
        list(read_resampled(PlannedCut({**cut.cut, "recording": recording}, member="m"), 24000, 16000))
    )
    np.testing.assert_array_equal(found, soxr.resample(wave, 24000, 16000))


def test_transforms_and_mixes_are_lhotses(write_manifest, speech, tmp_path):
    from lhotse import CutSet

    first, second = CutSet.from_file(write_manifest({"a": speech(9, 1.0), "b": speech(10, 1.5)}))
    first, second = (cut.with_recording_path_prefix(tmp_path) for cut in (first, second))
    for cut in (first.perturb_volume(0.25), first.mix(second, snr=10), first.append(second)):
        cut = cut.with_id("changed")
        item = PlannedCut(cut.to_dict(), member="m")
        found = np.concatenate(list(read_resampled(item, expected_samples(item.cut, item.seconds, 16000), 16000)))
        np.testing.assert_array_equal(found, cut.load_audio()[0])


def test_failures_do_not_change_the_batch_around_them(write_manifest, speech, tiny_codec, tmp_path, monkeypatch):
    waves = {f"cut-{i}": speech(20 + i, 0.5 + i / 7) for i in range(9)}
    cuts = planned(write_manifest(waves))
    shapes = []
    whole = encode_cuts(cuts, spy(tiny_codec, shapes), Encoding(4.0))
    (tmp_path / "audio/3.wav").unlink()
    (tmp_path / "audio/5.wav").write_bytes(b"RIFF but no more")
    shapes_damaged = []
    damaged = encode_cuts(cuts, spy(tiny_codec, shapes_damaged), Encoding(4.0))
    assert shapes_damaged == shapes and len(shapes) > 1
    for i, (before, after) in enumerate(zip(whole, damaged, strict=True)):
        if i in (3, 5):
            assert isinstance(after, Quarantined) and after.attempts == 2
        else:
            np.testing.assert_array_equal(before, after)
    assert [damaged[i].reason for i in (3, 5)] == ["missing file", "unreadable"]


class spy:
    """A codec that writes down the shapes it is given and can refuse some waves."""

    def __init__(self, codec, shapes, refuse=lambda wave: False):
        self.codec, self.shapes, self.refuse = codec, shapes, refuse

    def __getattr__(self, name):
        return getattr(self.codec, name)

    def encode(self, wave, lengths=None):
        self.shapes.append((tuple(wave.shape), lengths.tolist()))
        if self.refuse(wave):
            raise RuntimeError("no memory for this\nand more lines")
        return self.codec.encode(wave, lengths)


def test_a_cut_the_codec_fails_at_is_quarantined_alone(write_manifest, speech, tiny_codec, caplog):
    waves = {f"cut-{i}": speech(30 + i, 0.5 + i / 7) for i in range(4)}
    waves["cut-2"][100] = 0.987
    cuts = planned(write_manifest(waves))
    codec = spy(tiny_codec, [], lambda wave: bool((wave == np.float32(0.987)).any()))
    outcomes = encode_cuts(cuts, codec, Encoding())
    assert [isinstance(outcome, Quarantined) for outcome in outcomes] == [False, False, True, False]
    assert outcomes[2].reason == "encoder failed" and "no memory for this" in outcomes[2].detail
    assert "a batch of 4 cuts failed (RuntimeError: no memory for this" in caplog.text


def test_a_codec_that_fails_at_silence_stops_the_run(write_manifest, speech, tiny_codec):
    cuts = planned(write_manifest({"a": speech(0, 0.5), "b": speech(1, 0.5)}))
    with pytest.raises(RuntimeError, match="no memory"):
        encode_cuts(cuts, spy(tiny_codec, [], lambda wave: True), Encoding())


def test_layout_bounds_memory_and_holds_every_cut_once():
    rng = np.random.default_rng(0)
    samples = [int(n) for n in rng.integers(0, 70 * 100, 500)]
    batches, long_cuts = lay_out(samples, batch=120.0 * 100, longest=60.0 * 100)
    assert sorted(sum(batches, long_cuts)) == list(range(500))
    assert all(samples[i] > 60 * 100 for i in long_cuts) and long_cuts
    assert all(len(batch) == 1 or max(samples[i] for i in batch) * len(batch) <= 120 * 100 for batch in batches)
    assert lay_out(samples, 12000.0, 6000.0) == (batches, long_cuts)


def test_a_cut_in_the_middle_of_a_format_without_seeking(write_manifest, speech, tmp_path):
    (cut,) = planned(write_manifest({"a": speech(8, 3.0, 8000)}, 8000))
    soundfile.write(tmp_path / "audio/0.wav", speech(8, 3.0, 8000), 8000, format="WAV", subtype="GSM610")
    with soundfile.SoundFile(tmp_path / "audio/0.wav") as file:
        whole = file.read(24000, dtype="float32")
    middle = PlannedCut({**cut.cut, "start": 0.7, "duration": 1.3}, member="m")
    found = np.concatenate(list(read_resampled(middle, expected_samples(middle.cut, 1.3, 8000), 8000)))
    np.testing.assert_array_equal(found, whole[5600 : 5600 + 10400])
