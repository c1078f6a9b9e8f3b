"""From likelihoods to segments: every rule by itself, and properties of random ones."""

import itertools

import numpy as np
import pytest

from pipelines.segmentation.measures import Limits, measure
from pipelines.segmentation.segments import Segmentation, find_segments
from pipelines.segmentation.speech_activity import FRAME_SECONDS
from tokenizer.errors import InputError


def likelihoods(*parts):
    """(likelihood, frames) one after another."""
    return np.concatenate([np.full(frames, value, np.float32) for value, frames in parts])


def spans(probabilities, **options):
    found, dropped = find_segments(probabilities, len(probabilities) * FRAME_SECONDS, Segmentation(**options))
    frames = [(round(s.start / FRAME_SECONDS, 2), round(s.end / FRAME_SECONDS, 2)) for s in found]
    return frames, len(dropped)


EXACT = {"margin": 0.0, "min_seconds": 0.0, "merge_pauses": 0.0}


def test_two_thresholds_do_not_flicker():
    wobbling = likelihoods((0.0, 10), (0.6, 5), (0.4, 5), (0.6, 5), (0.4, 5), (0.3, 10), (0.4, 10))
    assert spans(wobbling, **EXACT) == ([(10, 30)], 0)


def test_pauses_are_bridged_up_to_a_length_and_no_further_than_the_longest():
    speech = likelihoods((0.9, 20), (0.0, 10), (0.9, 20), (0.0, 11), (0.9, 20))
    pause = 10.5 * FRAME_SECONDS
    assert spans(speech, **{**EXACT, "merge_pauses": pause}) == ([(0, 50), (61, 81)], 0)
    assert spans(speech, **{**EXACT, "merge_pauses": pause, "max_seconds": 45 * FRAME_SECONDS})[0][0] == (0, 20)


def test_short_segments_are_dropped_and_counted():
    assert spans(likelihoods((0.9, 5), (0, 50), (0.9, 40)), **{**EXACT, "min_seconds": 0.5}) == ([(55, 95)], 1)


def test_margins_share_a_pause():
    found, _ = spans(likelihoods((0, 2), (0.9, 20), (0.0, 4), (0.9, 20)), **{**EXACT, "margin": 4 * FRAME_SECONDS})
    assert found == [(0, 24), (24, 46)]


def test_long_speech_is_divided_where_it_is_least_likely():
    speech = likelihoods((0.9, 180))
    speech[70], speech[130] = 0.51, 0.6
    assert spans(speech, **{**EXACT, "max_seconds": 100 * FRAME_SECONDS}) == ([(0, 70), (70, 130), (130, 180)], 0)


@pytest.mark.parametrize("seed", range(5))
def test_random_likelihoods_keep_the_promises(seed):
    rng = np.random.default_rng(seed)
    slow = np.convolve(rng.normal(0, 0.4, 20_000), np.ones(100), "same") + rng.normal(0, 1, 20_000)
    walk = 1 / (1 + np.exp(-slow))
    wanted = Segmentation(min_seconds=1.0, max_seconds=7.0, merge_pauses=0.4, margin=0.15)
    seconds = len(walk) * FRAME_SECONDS - 0.01
    kept, dropped = find_segments(walk.astype(np.float32), seconds, wanted)
    assert kept and all(1.0 <= s.seconds <= 7.0 + 1e-3 for s in kept) and all(s.seconds < 1.0 for s in dropped)
    assert kept[0].start >= 0 and kept[-1].end <= seconds
    assert all(a.end <= b.start + 1e-3 for a, b in itertools.pairwise(kept))
    covered = np.zeros(len(walk), bool)
    for s in (*kept, *dropped):
        covered[round(s.start / FRAME_SECONDS) : round(s.end / FRAME_SECONDS) + 1] = True
    assert covered[walk >= 0.5].all()


def test_nothing_is_nothing():
    assert spans(np.zeros(0, np.float32)) == spans(likelihoods((0.0, 100))) == ([], 0)


@pytest.mark.parametrize(
    "bad", [{"min_seconds": 5, "max_seconds": 4}, {"margin": -1}, {"threshold": 1.5}, {"merge_pauses": float("nan")}]
)
def test_nonsense_is_refused(bad):
    with pytest.raises(InputError, match="expected"):
        Segmentation(**bad)


def test_measures():
    rng = np.random.default_rng(2)
    noise = 0.1 * rng.standard_normal(160_000)
    spectrum = np.fft.rfft(noise)
    spectrum[int(len(spectrum) * 0.5) :] = 0
    narrow = measure(np.fft.irfft(spectrum).astype(np.float32), 16000)
    assert 3900 <= narrow["bandwidth_hz"] <= 4100
    wide = measure(noise.astype(np.float32), 16000)
    assert wide["bandwidth_hz"] > 7900 and abs(wide["level_dbfs"] + 20) < 0.2 and wide["clipped"] == 0
    clipped = measure(np.clip(30 * noise, -1, 1).astype(np.float32), 16000)
    assert clipped["clipped"] > 0.7
    assert Limits(max_clipped=0.5).broken(clipped) == "clipped" and Limits(max_clipped=0.5).broken(wide) is None
    assert Limits(min_level=-10).broken(wide) == "level_dbfs" and not Limits().any
    assert measure(np.zeros(100, np.float32), 16000) == {"level_dbfs": -120.0, "clipped": 0.0, "bandwidth_hz": 0}
