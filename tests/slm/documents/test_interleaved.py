"""Interleaved documents: words at their times, each once, changes that (seed, epoch) decides, training."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lhotse import MonoCut

from pipelines.bulk.executors.inline import Inline
from pipelines.bulk.plan import Sharding
from pipelines.bulk.run import Job, tokenize
from pipelines.dataset.batches import Batch
from pipelines.dataset.epochs import shuffled
from pipelines.dataset.token_dataset import TokenDataset
from slm.cli import main
from slm.documents.interleaved import SPAN_WORDS, InterleavedBatches, InterleavedFraming
from slm.documents.tasks import targets_of
from slm.documents.word_times import TimedWord, Words, codes_of, timed_words
from slm.model.cross_entropy import IGNORED
from slm.text_model import TextModel
from slm.training.loaders import loaders
from slm.training.train import train
from slm.vocabulary import BOS, EOS, FIRST_CODE, INTERLEAVED, SPEECH, TEXT, Vocabulary
from tests.slm.conftest import PANGRAM, sentences
from tests.slm.training.test_train import log_of, weights_of
from tokenizer.errors import InputError
from tokenizer.runs.ranks import Ranks

CODES, RATE = 64, 50.0


@pytest.fixture(scope="module")
def text_model() -> TextModel:
    return TextModel.train(sentences(200), 60)


def aligned_cut(random: np.random.Generator, tokens: int, start: float = 0.0) -> dict[str, Any]:
    """A cut from `start` on in its recording with a word a quarter of a second or so, and pauses between them."""
    seconds = tokens / RATE
    count = max(1, int(seconds * 4))
    edges = np.linspace(0, seconds, count + 1)
    items = []
    for begin, end in itertools.pairwise(edges.tolist()):
        pause = random.uniform(0, 0.4 * (end - begin), 2)
        items.append([str(random.choice(PANGRAM.split())), start + begin + pause[0], end - begin - pause.sum(), None])
    said = {"id": "s", "start": 0.0, "duration": seconds, "alignment": {"word": items}}
    said["text"] = " ".join(symbol for symbol, *_ in items)
    return {"id": "c", "start": start, "duration": seconds, "supervisions": [said]}


class Spoken:
    """30 cuts in memory with random codes; two have no word times."""

    def __init__(self) -> None:
        random = np.random.default_rng(5)
        self.lengths = random.integers(10, 300, 30)
        self.codes = [random.integers(0, CODES, n).astype(np.uint16) for n in self.lengths]
        self.cuts = [aligned_cut(random, n, float(random.choice([0.0, 3.21]))) for n in self.lengths.tolist()]
        del self.cuts[4]["supervisions"][0]["alignment"], self.cuts[9]["supervisions"]

    def gather(self, cuts: np.ndarray, before: int = 0, after: int = 0) -> np.ndarray:
        return np.concatenate([np.pad(self.codes[i], (before, after)) for i in cuts])

    def words(self, model: TextModel) -> Words:
        return Words.read(model, self.cuts, self.lengths, RATE)


@pytest.fixture(scope="module")
def spoken() -> Spoken:
    return Spoken()


@pytest.fixture(scope="module")
def framing(spoken: Spoken, text_model: TextModel) -> InterleavedFraming:
    return InterleavedFraming(FIRST_CODE + CODES, spoken.words(text_model), seed=8)


def test_each_code_belongs_to_the_word_that_is_nearest_to_its_middle():
    random = np.random.default_rng(0)
    for _ in range(30):
        times = np.sort(random.uniform(0, 4, 2 * int(random.integers(1, 12)))).tolist()
        words = [TimedWord("x", begin, end) for begin, end in zip(times[::2], times[1::2], strict=True)]
        middles = [(a.end + b.begin) / 2 for a, b in itertools.pairwise(words)]
        owners = [sum(middle < (code + 0.5) / RATE for middle in middles) for code in range(200)]
        assert codes_of(words, 200, RATE) == [owners.count(number) for number in range(len(words))]
    at = [TimedWord("x", 0.0, 0.24), TimedWord("x", 0.26, 0.31), TimedWord("x", 0.31, 0.5)]
    assert codes_of(at, 25, RATE) == [13, 3, 9]  # 12.5 and 15.5: halves are rounded up
    overlapping = [TimedWord("x", 0.0, 0.9), TimedWord("x", 0.1, 0.2), TimedWord("x", 0.2, 1.4)]
    assert codes_of(overlapping, 50, RATE) == [25, 0, 25]
    assert codes_of([], 50, RATE) == []


def test_word_times_count_from_the_recordings_start_and_must_lie_in_their_supervision():
    items = [["later", 12.0, 0.4, 0.9], ["", 11.5, 0.5], ["first", 11.0, 0.5], ["<eps>", 12.4, 0.1]]
    said = {"start": 1.0, "duration": 2.0, "text": "first later", "alignment": {"word": items}}
    cut = {"id": "c", "start": 10.0, "supervisions": [said]}
    words = timed_words(cut, 5.0)
    assert [word.symbol for word in words] == ["first", "later"]
    np.testing.assert_allclose([word[1:] for word in words], [(1.0, 1.5), (2.0, 2.4)])
    old = {"symbol": "first", "start": 11.0, "duration": 0.5}  # as Lhotse wrote it before 1.8
    assert timed_words({**cut, "supervisions": [{**said, "alignment": {"word": [old]}}]}, 5.0) == words[:1]
    assert timed_words(cut, 2.1) == words[:1]  # more than half of "later" is behind the end of the codes
    assert timed_words({**cut, "start": 0.0}, 20.0) == []  # times that are not of this recording's clock
    assert timed_words({**cut, "supervisions": [said, {"start": 3.0, "duration": 1.0, "text": "more"}]}, 5.0) == []
    assert timed_words({**cut, "supervisions": [said, {"start": 3.0, "duration": 1.0}]}, 5.0) == words
    assert timed_words({"id": "c"}, 5.0) == []
    for broken in (["first"], ["first", "11.0", 0.5], [None, 11.0, 0.5], ["first", 11.0, -1.0], 7):
        with pytest.raises(InputError, match=r"cut c: its word alignment has .*expected \[symbol, start, duration"):
            timed_words({**cut, "supervisions": [{**said, "alignment": {"word": [broken]}}]}, 5.0)


def test_a_part_of_a_cut_has_the_words_that_lhotse_cuts_out_for_them():
    """Lhotse's own cut of a word, `trim_to_alignments`, begins where ours says that the word does."""
    line = aligned_cut(np.random.default_rng(1), 200, start=3.21)
    recording = {"id": "r", "sources": [], "sampling_rate": 16000, "num_samples": 160_000, "duration": 10.0}
    line["supervisions"][0] |= {"recording_id": "r", "channel": 0}
    cut = MonoCut.from_dict({**line, "channel": 0, "recording": recording})
    part = cut.truncate(offset=1.0, duration=2.0)
    words = timed_words(part.to_dict(), 2.0)
    cut_out = cut.trim_to_alignments("word", max_pause=0.0)
    within = [word for word in cut_out if 0 <= word.start + word.duration / 2 - part.start < 2.0]
    assert [word.symbol for word in words] == [word.supervisions[0].text for word in within] and len(words) == 8
    for ours, theirs in zip(words, within, strict=True):
        # Lhotse rounds to samples of 1/16,000 s.
        assert (ours.begin, ours.end - ours.begin) == pytest.approx(
            (theirs.start - part.start, theirs.duration), abs=1 / 16000
        )


def test_words_without_a_code_or_a_piece_go_with_their_neighbours(text_model):
    def read(*items: tuple[str, float, float], tokens: int = 50) -> tuple[list[int], list[int], str]:
        said = {"start": 0.0, "duration": 1.0, "alignment": {"word": [list(item) for item in items]}}
        words = Words.read(text_model, [{"supervisions": [said]}], [tokens], RATE)
        assert words.codes.sum() == (tokens if len(words.codes) else 0)
        assert words.begins.tolist() == [0, len(words.codes)] and words.written.sum() == len(words.pieces)
        pieces = np.split(words.pieces, np.cumsum(words.written)[:-1])
        return words.codes.tolist(), [text_model.decode(part.tolist()) for part in pieces]

    assert read(("the", 0.0, 0.4), ("quick", 0.4, 0.4)) == ([20, 30], ["the", "quick"])
    assert read(("the", 0.1, 0.1), ("quick", 0.2, 0.004), ("fox", 0.204, 0.2)) == ([10, 40], ["the", "quick fox"])
    assert read(("the", 0.1, 0.1), ("quick", 0.9, 0.09), ("fox", 0.996, 0.003)) == ([28, 22], ["the", "quick fox"])
    assert read(("the", 0.1, 0.3), ("\u200b", 0.4, 0.2), ("fox", 0.6, 0.2)) == ([20, 30], ["the", "fox"])  # no sound
    assert read(("the", 0.1, 0.3), ("\u200b", 0.4, 0.2)) == ([50], ["the"])
    assert read(("\u200b", 0.1, 0.3)) == ([], [""])
    assert read(("the", 0.0, 0.001), tokens=0) == ([], [""])


def parsed(ids: list[int], first_piece: int) -> list[tuple[int, list[int]]]:
    """The spans of a document: (mark, codes or pieces)."""
    assert ids[:2] == [BOS, INTERLEAVED] and ids[-1] == EOS
    spans: list[tuple[int, list[int]]] = []
    for token in ids[2:-1]:
        if token in (SPEECH, TEXT):
            spans.append((token, []))
        else:
            mark, inside = spans[-1]
            assert (token >= first_piece) == (mark == TEXT) and token >= FIRST_CODE
            inside.append(token - (first_piece if mark == TEXT else FIRST_CODE))
    return spans


def test_a_document_has_each_word_once_as_its_codes_or_as_its_text(spoken, framing, text_model):
    cuts = np.flatnonzero(framing.words.counts)
    assert len(cuts) == 28 and not {4, 9} & set(cuts.tolist())
    variants: dict[int, set[tuple[int, ...]]] = {cut: set() for cut in cuts.tolist()}
    for epoch in range(6):
        made = dataclasses.replace(framing, epoch=epoch)
        lengths = made.lengths(spoken)
        for cut in cuts.tolist():
            ids = made.ids(spoken, np.array([cut])).tolist()
            assert len(ids) == lengths[cut]
            variants[cut].add(tuple(ids))
            symbols = [item[0] for item in spoken.cuts[cut]["supervisions"][0]["alignment"]["word"]]
            edges = np.cumsum([0, *codes_of(timed_words(spoken.cuts[cut], 1e9), int(spoken.lengths[cut]), RATE)])
            spans = parsed(ids, made.first_piece)
            at = 0
            for number, (mark, inside) in enumerate(spans):
                if number:
                    assert mark != spans[number - 1][0]
                if mark == TEXT:
                    words = text_model.decode(inside).split()
                    assert words == symbols[at : at + len(words)] and words
                    at += len(words)
                else:
                    last = int(np.searchsorted(edges, edges[at] + len(inside)))
                    assert inside == spoken.codes[cut][edges[at] : edges[last]].tolist() and last > at
                    at = last
            assert at == len(symbols)
        together = made.ids(spoken, cuts)
        assert together.tolist() == [i for cut in cuts for i in made.ids(spoken, np.array([cut])).tolist()]
    assert {document[2] for documents in variants.values() for document in documents} == {SPEECH, TEXT}
    longest = int(spoken.lengths.argmax())
    assert len(variants[longest]) == 6  # another one in each epoch


def test_a_kind_lasts_eight_words_in_the_mean():
    counts = np.full(4000, 100)
    words = Words(
        np.concatenate([[0], np.cumsum(counts)]), np.ones(400_000), np.ones(400_000), np.zeros(0), np.zeros(0)
    )
    in_text = InterleavedFraming(0, words, seed=3).in_text.reshape(4000, 100)
    changes = (in_text[:, 1:] != in_text[:, :-1]).mean()
    assert changes == pytest.approx(1 / SPAN_WORDS, abs=0.003)  # 396,000 draws: six standard deviations
    assert in_text[:, 0].mean() == pytest.approx(0.5, abs=0.05)
    assert abs(np.corrcoef(in_text[1:, 0], in_text[:-1, -1])[0, 1]) < 0.1  # a cut does not go on where another ended


def batches(spoken: Spoken, framing: InterleavedFraming, **place: int) -> InterleavedBatches:
    cuts = np.flatnonzero(framing.words.counts)
    return InterleavedBatches(spoken, framing, 4, 50, 8, cuts, **place)


def assert_equal(left: Batch, right: Batch) -> None:
    for name in Batch._fields:
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name), err_msg=name)


def test_batches_are_those_of_the_obvious_version_through_epochs_of_different_lengths(spoken, framing):
    cuts = np.flatnonzero(framing.words.counts)
    stream: list[tuple[int, int, int]] = []
    ends = []
    for epoch in range(4):
        made = dataclasses.replace(framing, epoch=epoch)
        for cut in cuts[shuffled(len(cuts), 8, epoch)]:
            number = stream[-1][1] + 1 if stream else 0
            ids = made.ids(spoken, np.array([cut])).tolist()
            stream += [(token, number, position) for position, token in enumerate(ids)]
        ends.append(len(stream))
    assert len(set(np.diff([0, *ends]))) == 4
    steps = len(stream) // (4 * 50) - 1
    steady = batches(spoken, framing)
    ranks = [batches(spoken, framing, rank=rank, world_size=2) for rank in range(2)]
    for step in range(steps):
        rows = [stream[row * 50 : (row + 1) * 50 + 1] for row in range(step * 4, step * 4 + 4)]
        expected = Batch(*np.moveaxis(np.array(rows, np.int64), -1, 0))
        assert_equal(steady.batch(step), expected)
        halves = [rank.batch(step) for rank in ranks]
        assert_equal(Batch(*map(np.concatenate, zip(*halves, strict=True))), expected)
    wandering = batches(spoken, framing)
    for step in np.random.default_rng(1).permutation(steps).tolist():
        assert_equal(wandering.batch(step), steady.batch(step))
        if step % 9 == 0:
            assert_equal(batches(spoken, framing).batch(step), steady.batch(step))


def test_all_but_marks_is_learned_whether_or_not_the_document_began_in_the_row(spoken, framing):
    loader = batches(spoken, framing)
    seen_going_on = 0
    for step in range(20):
        batch = loader.batch(step)
        targets = targets_of(batch)
        wanted = batch.tokens[:, 1:].copy()
        wanted[np.isin(wanted, (BOS, INTERLEAVED, SPEECH, TEXT))] = IGNORED
        np.testing.assert_array_equal(targets, wanted)
        seen_going_on += int((batch.positions[:, 0] > 1).sum())
    assert seen_going_on > 40
    tokens = np.array([[90, SPEECH, 22, EOS, BOS, INTERLEAVED, TEXT, 90, SPEECH, 23, EOS, BOS, TEXT, 91, SPEECH, 24]])
    documents = np.array([[3] * 4 + [4] * 7 + [5] * 5])
    positions = np.array([[*range(6, 10), *range(7), *range(5)]])
    learned = [IGNORED, 22, EOS, *[IGNORED] * 3, 90, IGNORED, 23, EOS, *[IGNORED] * 4, 24]
    assert targets_of(Batch(tokens, documents, positions)).tolist() == [learned]


@pytest.fixture(scope="module")
def aligned_dataset(record_noise: Any, tiny_codec_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder written by `tokenize`: 16 cuts of 1 to 2 s of noise, 14 of them with word times, half of them from the
    middle of their recordings."""
    folder, lines = tmp_path_factory.mktemp("aligned"), []
    random = np.random.default_rng(3)
    for number in range(16):
        start = 0.5 * (number % 2)
        cut = aligned_cut(random, int(random.integers(50, 100)), start)
        samples = round((start + cut["duration"]) * 16000)
        recording = record_noise(folder, number, random, samples)
        (said,) = cut["supervisions"]
        said |= {"recording_id": f"r{number}", "channel": 0}
        if number % 8 == 0:
            del said["alignment"]
        lines.append({**cut, "id": f"c{number}", "channel": 0, "recording": recording, "type": "MonoCut"})
    (folder / "cuts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = tmp_path_factory.mktemp("aligned-tokens") / "out"
    tokenize(Job(str(folder / "cuts.jsonl"), out, str(tiny_codec_dir), Sharding(cuts=6), executor=Inline()))
    return out


def test_training_learns_goes_on_exactly_and_is_the_same_for_two_ranks(
    aligned_dataset, lm_config, lm_settings, text_model, tmp_path, capsys
):
    text_model.save(tmp_path / "text.model")
    weights = {"speech_weight": 0.0, "interleaved_weight": 1.0, "speech_to_text_weight": 0.5, "row_tokens": 150}
    settings = dataclasses.replace(lm_settings, **weights)
    train(lm_config, settings, [aligned_dataset], tmp_path / "whole", text_model=tmp_path / "text.model")
    assert "interleaved: 11 of 13 cuts for training; 2 have no word times" in capsys.readouterr().err
    log = log_of(tmp_path / "whole")
    assert log[-1]["bits_per_token"] < log[0]["bits_per_token"] - 1
    bits = [log[-1][f"held_out_{task}_bits_per_token"] for task in ("speech_to_text", "interleaved")]
    assert log[-1]["held_out_bits_per_token"] == pytest.approx((0.5 * bits[0] + bits[1]) / 1.5)
    shutil.copytree(tmp_path / "whole", tmp_path / "half")
    shutil.rmtree(tmp_path / "half" / "step-000024")  # as if it had been killed after the checkpoint before
    (tmp_path / "half" / "best.json").unlink(missing_ok=True)
    options = {"show_progress": False, "text_model": tmp_path / "text.model"}
    train(lm_config, settings, [aligned_dataset], tmp_path / "half", resume=True, **options)
    assert weights_of(tmp_path / "whole", 24) == weights_of(tmp_path / "half", 24)
    assert log_of(tmp_path / "half") == log

    dataset = TokenDataset(aligned_dataset)
    vocabulary = Vocabulary(dataset.codebook_size, dataset.token_rate, "tiny", dataset.fingerprint, text_model)
    alone = loaders(settings, dataset, vocabulary, None).training
    ranks = [loaders(settings, dataset, vocabulary, None, ranks=Ranks(rank, 2)).training for rank in range(2)]
    for step in range(30):
        halves = [rank.batch(step) for rank in ranks]
        assert_equal(Batch(*map(np.concatenate, zip(*halves, strict=True))), alone.batch(step))


def test_with_weighted_datasets_those_without_word_times_have_rows_of_speech_alone(
    aligned_dataset, token_dataset, lm_settings, text_model
):
    dataset = TokenDataset([aligned_dataset, token_dataset])
    vocabulary = Vocabulary(dataset.codebook_size, dataset.token_rate, "tiny", dataset.fingerprint, text_model)
    settings = dataclasses.replace(lm_settings, interleaved_weight=3.0, row_tokens=150)
    rows = loaders(settings, dataset, vocabulary, None, [1.0, 1.0]).training.rows(0, 2000).tokens
    # Documents are shorter than a row, so one begins in each row of the task.
    assert np.isin(rows, (TEXT, SPEECH)).any(axis=1).mean() == pytest.approx(0.75, abs=0.02)


def test_what_cannot_be_interleaved_is_refused(token_dataset, lm_settings, text_model, tmp_path, capsys):
    text_model.save(tmp_path / "text.model")
    arguments = ["train-lm", "--config", "tiny", "--data", str(token_dataset), "--out", str(tmp_path / "run")]
    arguments += ["--interleaved-weight", "0.5"]
    assert main(arguments) == 2
    assert "train.interleaved_weight is above 0, but there is no text model" in capsys.readouterr().err
    assert main([*arguments, "--text-model", str(tmp_path / "text.model")]) == 2
    error = capsys.readouterr().err
    assert "train.interleaved_weight is 0.5, but no cut for training has word times" in error
    refusals = [line for line in error.splitlines() if line.startswith("focalstream train-lm:")]
    assert len(refusals) == 1 and 'alignment["word"]' in refusals[0] and "Traceback" not in error
    assert not (tmp_path / "run").exists()
    with pytest.raises(InputError, match=r"train\.interleaved_weight is -1"):
        dataclasses.replace(lm_settings, interleaved_weight=-1.0)
