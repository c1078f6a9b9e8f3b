"""Pairs to choose from: how they are made of a dataset and of published folders, and how choices are counted."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.dataset.token_dataset import TokenDataset
from slm.evaluation.benchmarks import read_benchmark
from slm.evaluation.pairs import Pair, accuracy, wilson
from slm.evaluation.swaps import SwapOptions, cut_fields, join_codes, join_waves, make_swaps
from tokenizer.errors import InputError

OPTIONS = SwapOptions(pairs=90, prompt_seconds=2, continuation_seconds=1.5, min_seconds=1, seed=4)


class Cuts:
    """A dataset whose codes tell where they are from: cut i has the codes 1000 i, 1000 i + 1, ..."""

    token_rate = 10.0

    def __init__(self, count: int) -> None:
        self.lengths = np.random.default_rng(0).integers(8, 80, count)

    def codes(self, i: int) -> np.ndarray:
        return 1000 * i + np.arange(self.lengths[i])


@pytest.fixture
def said() -> list[dict[str, str | None]]:
    """Speaker 0 has most of the cuts, the last says nothing; speakers 0 to 2 are of one room, 3 and 4 of another."""
    speakers = np.random.default_rng(1).choice(5, 120, p=[0.6, 0.1, 0.1, 0.1, 0.1]).tolist()
    fields = [{"speaker": f"s{s}", "gender": "FM"[s % 2], "room": "a" if s < 3 else "b"} for s in speakers]
    return [*fields, {"speaker": None, "gender": None, "room": None}]


@pytest.mark.parametrize("field", ["speaker", "gender"])
@pytest.mark.parametrize("hold", ["", "room"])
def test_swaps_are_what_they_say(said, field, hold):
    dataset = Cuts(len(said))
    options = dataclasses.replace(OPTIONS, hold=hold)
    swaps = make_swaps(dataset, said, field, options)
    assert len(swaps.true) == OPTIONS.pairs
    values = [said[swap.first][field] for swap in swaps.true]
    assert max(map(values.count, values)) - min(map(values.count, values)) <= 1
    for kind, chosen in (("true", swaps.true), ("matched", swaps.matched)):
        assert len(chosen) > 60
        for swap in chosen:
            first, better, worse = swap
            assert dataset.lengths[list(swap)].min() >= 20
            assert said[first][field] == said[better][field] != said[worse][field] is not None
            assert (first == better) == (kind == "true")
            if hold:
                assert said[first][hold] == said[better][hold] == said[worse][hold]
            pair = join_codes(dataset, swap, options)
            np.testing.assert_array_equal(pair.better[: pair.prompt], pair.worse[: pair.prompt])
            assert len(pair.better) == len(pair.worse) and 10 <= pair.prompt <= 20
            assert 10 <= len(pair.better) - pair.prompt <= 15
            for codes, of in ((pair.better, better), (pair.worse, worse)):
                assert codes[pair.prompt - 1] == 1000 * first + dataset.lengths[first] // 2 - 1
                assert codes[pair.prompt] == 1000 * of + dataset.lengths[of] // 2
                assert set(np.diff(np.delete(codes, np.s_[: pair.prompt]))) == {1}


def test_waves_are_joined_where_codes_would_be(said):
    """A codec whose tokens are the means of 160 samples, and waves that hold each code 160 times."""
    dataset = Cuts(len(said))

    class Codec:
        sample_rate_in, token_rate = 1600, Cuts.token_rate

        def encode(self, wave: torch.Tensor) -> torch.Tensor:
            return wave.view(1, -1, 160).double().mean(-1).round().long()

    for swap in make_swaps(dataset, said, "speaker", OPTIONS).matched:
        by_codes = join_codes(dataset, swap, OPTIONS)
        by_waves = join_waves(dataset, swap, OPTIONS, Codec(), lambda i: np.repeat(dataset.codes(i), 160))
        assert by_waves.prompt == by_codes.prompt
        np.testing.assert_array_equal(by_waves.better, by_codes.better)
        np.testing.assert_array_equal(by_waves.worse, by_codes.worse)


def test_the_seed_decides_the_swaps(said):
    swaps = [
        make_swaps(Cuts(len(said)), said, "speaker", dataclasses.replace(OPTIONS, seed=seed)) for seed in (4, 4, 5)
    ]
    assert swaps[0] == swaps[1] != swaps[2]


def test_what_cannot_be_swapped_is_refused(said):
    dataset = Cuts(len(said))
    with pytest.raises(InputError, match=r"0 background\(s\) with recordings of at least 2 s"):
        make_swaps(dataset, said, "background", OPTIONS)
    with pytest.raises(InputError, match="no room can be swapped with another one of the same room"):
        make_swaps(dataset, said, "room", dataclasses.replace(OPTIONS, hold="room"))
    with pytest.raises(InputError, match="expected at least min_seconds, 1"):
        SwapOptions(prompt_seconds=0.5)


def test_fields_come_from_the_shards_in_their_order(spoken_dataset):
    fields = list(cut_fields(TokenDataset([spoken_dataset, spoken_dataset])))
    assert [field["speaker"] for field in fields[:5]] == ["anna", "ben", "cleo", "dan", "anna"]
    assert [field["source"] for field in fields[13:17]] == ["ab", "ab", "cd", "cd"]
    assert len(fields) == 26


def test_accuracy_is_of_items_and_of_means_behind_the_prompt():
    def scorer(documents):
        return [np.concatenate((codes, [1000.0])) for codes in documents]  # the end must not count

    def pair(better: list[float], worse: list[float], item: str = "") -> Pair:
        return Pair(np.array([99.0, *better]), np.array([0.0, *worse]), prompt=1, item=item)

    assert accuracy(scorer, [pair([1, 2], [1, 3])]).accuracy == 1
    assert accuracy(scorer, [pair([1, 3], [4])]).accuracy == 1  # a mean, not a sum
    assert accuracy(scorer, [pair([2], [2])]).accuracy == 0.5
    found = accuracy(scorer, [pair([2], [1], "a"), pair([1], [2], "b"), pair([1], [2], "b"), pair([2], [1], "b")])
    assert (found.accuracy, found.items) == (pytest.approx(1 / 3), 2)


def test_the_interval_is_wilsons():
    found = wilson(0.8, 10)  # published examples of this interval give 0.490 to 0.943
    assert (found.low, found.high) == (pytest.approx(0.490, abs=5e-4), pytest.approx(0.943, abs=5e-4))
    assert wilson(1.0, 5).high == 1 and wilson(0.0, 5).low == 0


def touch(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


def test_zerospeech_folders(tmp_path):
    gold = "filename,id,voice,frequency,word,phones,length,correct\n"
    gold += "a,1,A,12,brick,x,5,1\nb,1,A,,blick,x,5,0\nc,1,B,12,brick,x,5,1\nd,1,B,,blick,x,5,0\n"
    gold += "e,2,A,oov,zorp,x,4,1\nf,2,A,,zurp,x,4,0\n"
    lexical = touch(tmp_path / "lexical" / "dev", *(f"{name}.wav" for name in "abcdef"))
    (lexical / "gold.csv").write_text(gold)
    touch(tmp_path / "lexical" / "test", "zzz.wav")
    syntactic = touch(tmp_path / "syntactic" / "dev", "g.wav", "h.wav")
    columns = "filename,id,voice,type,subtype,transcription,correct\n"
    (syntactic / "gold.csv").write_text(columns + 'h,1,A,agreement,x,"dogs, eats",0\ng,1,A,agreement,x,dogs eat,1\n')
    for folder in (tmp_path, lexical):
        name, pairs = next(iter(read_benchmark(folder)))
        assert name == "lexical/dev"
        found = [(pair.better.name, pair.worse.name, pair.subset) for pair in pairs]
        assert found == [
            ("a.wav", "b.wav", "in vocabulary"),
            ("c.wav", "d.wav", "in vocabulary"),
            ("e.wav", "f.wav", ""),
        ]
        assert pairs[0].item == pairs[1].item != pairs[2].item
    (name, pairs) = list(read_benchmark(tmp_path))[1]
    assert (name, pairs[0].better.name, pairs[0].subset) == ("syntactic/dev", "g.wav", "agreement")


def test_salmon_and_numbered_folders(tmp_path):
    touch(tmp_path / "salmon" / "speaker_consistency", *(f"sample_{i}_{j}.wav" for i in (0, 2, 10) for j in (0, 1)))
    touch(tmp_path / "salmon" / "gender_consistency", "sample_0_0.wav", "sample_0_1.wav", "metadata.json")
    tests = dict(read_benchmark(tmp_path / "salmon"))
    assert list(tests) == ["gender_consistency", "speaker_consistency"]
    last = tests["speaker_consistency"][-1]
    assert (last.better.name, last.worse.name) == ("sample_10_0.wav", "sample_10_1.wav")
    ((name, pairs),) = read_benchmark(touch(tmp_path / "tSC", "0_x.wav", "1_y.wav", "10_x.wav", "11_y.wav"))
    assert name == "tSC"
    assert [(pair.better.name, pair.worse.name) for pair in pairs] == [("0_x.wav", "1_y.wav"), ("10_x.wav", "11_y.wav")]


def test_broken_benchmark_folders_are_refused(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        list(read_benchmark(tmp_path / "nosuch"))
    with pytest.raises(InputError, match="not the layout of a benchmark"):
        list(read_benchmark(touch(tmp_path / "empty")))
    with pytest.raises(InputError, match=r"sample_0_1.wav: is missing"):
        list(read_benchmark(touch(tmp_path / "half", "sample_0_0.wav")))
    with pytest.raises(InputError, match="3 WAV files, an odd number"):
        list(read_benchmark(touch(tmp_path / "odd", "0.wav", "1.wav", "2.wav")))
    with pytest.raises(InputError, match="starts with a distinct number"):
        list(read_benchmark(touch(tmp_path / "names", "0_a.wav", "0_b.wav")))
    gold = touch(tmp_path / "gold", "a.wav") / "gold.csv"
    gold.write_text("filename,id,voice,correct\na,1,A,1\n")
    with pytest.raises(InputError, match="has 1 correct and 0 incorrect"):
        list(read_benchmark(gold.parent))
    gold.write_text("filename,id,correct\na,1,1\n")
    with pytest.raises(InputError, match=r"gold.csv, line 2: 'voice'; expected the columns"):
        list(read_benchmark(gold.parent))
