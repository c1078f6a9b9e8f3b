"""Text in the language model: pieces, documents of two parts, what of them is learned, training, speaking, writing."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import shutil

import numpy as np
import pytest
import torch

from pipelines.dataset.batches import Batch, PackedBatches
from pipelines.dataset.token_dataset import TokenDataset
from slm.checkpoint import load_lm, save_lm
from slm.cli import main
from slm.documents.tasks import NO_DOCUMENT, TextBatches, TextFraming, Texts, fitting, targets_of
from slm.generation.engines import TensorModel
from slm.generation.extend import extend
from slm.generation.generate import generate
from slm.generation.sampling import Sampling
from slm.generation.spoken_text import speak, transcribe
from slm.llama import export_lm
from slm.model.cross_entropy import IGNORED
from slm.model.transformer import LanguageModel, ModelConfig
from slm.text_model import TextModel, texts_of
from slm.training.loaders import identity, read_transcripts
from slm.training.train import train
from slm.training.warm_start import warm_start
from slm.vocabulary import BOS, EOS, FIRST_CODE, SPEECH, TEXT, Vocabulary
from tests.slm.conftest import sentences
from tokenizer.errors import InputError

CODES = 64
CONFIG = ModelConfig(width=16, layers=1, heads=2, kv_heads=1, ffn_width=24, context=60)


@pytest.fixture(scope="module")
def text_model() -> TextModel:
    return TextModel.train(sentences(200), 60)


@pytest.fixture(scope="module")
def vocabulary(text_model: TextModel) -> Vocabulary:
    return Vocabulary(CODES, 50.0, "some/codec", "ab" * 32, text_model)


class FakeDataset:
    """Random codes of 30 cuts in memory."""

    def __init__(self) -> None:
        random = np.random.default_rng(5)
        self.lengths = random.integers(1, 25, 30)
        self.codes = [random.integers(0, CODES, n).astype(np.uint16) for n in self.lengths]

    def gather(self, cuts: np.ndarray, before: int = 0, after: int = 0) -> np.ndarray:
        pads = np.zeros(before, np.uint16), np.zeros(after, np.uint16)
        return np.concatenate([part for i in cuts for part in (pads[0], self.codes[i], pads[1])])


def model_of(vocabulary: Vocabulary, **options: object) -> LanguageModel:
    torch.manual_seed(0)
    config = dataclasses.replace(CONFIG, **options)
    model = LanguageModel(config, vocabulary.size, vocabulary.pieces).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def test_texts_come_back_normalised_and_the_same_texts_make_the_same_model(text_model, tmp_path):
    assert TextModel.train(sentences(200), 60) == text_model
    assert text_model.pieces == 60
    for text in sentences(20, seed=1):
        assert text_model.decode(text_model.encode(text.upper())) == text
    assert text_model.unknown_characters("fox 漢é") == "漢é"
    text_model.save(tmp_path / "text.model")
    assert TextModel.load(tmp_path / "text.model") == text_model


def test_the_text_of_a_cut_is_that_of_its_supervisions_in_order():
    later, earlier = {"start": 2.0, "text": " fox "}, {"start": 0.5, "text": "the  quick"}
    cuts = [{"supervisions": [later, earlier, {"start": 1.0}]}, {}, {"supervisions": [{"text": None}]}]
    assert list(texts_of(cuts)) == ["the quick fox", "", ""]


@pytest.mark.parametrize(
    ("texts", "pieces", "message"),
    [
        (["", " "], 60, "none of the cuts has a text"),
        (sentences(50), 5000, "--pieces 5000: cannot be made from 50 texts .*too high"),
        (sentences(50), 7, "--pieces 7: .*smaller than required_chars"),
        (sentences(50), 0, "--pieces 0: expected at least 2"),
    ],
)
def test_text_models_that_cannot_be_are_refused(texts, pieces, message):
    with pytest.raises(InputError, match=message):
        TextModel.train(texts, pieces)


@pytest.mark.parametrize("task", ["text_to_speech", "speech_to_text"])
def test_documents_are_whole_and_only_answers_to_seen_questions_are_learned(task, vocabulary, text_model):
    """Row by row, against documents made one by one."""
    dataset = FakeDataset()
    said = ["" if i % 7 == 3 else text for i, text in enumerate(sentences(30, seed=2))]
    texts = Texts.encode(text_model, said)
    framing = TextFraming(task, vocabulary.first_piece, texts)
    cuts = fitting(framing, dataset, np.arange(30), row_tokens=40)
    assert 5 < len(cuts) < 30 and not {i for i in cuts if not said[i]}
    written = [[p + vocabulary.first_piece for p in text_model.encode(text)] for text in said]
    spoken = [(codes.astype(int) + FIRST_CODE).tolist() for codes in dataset.codes]
    if task == "text_to_speech":
        parts = [([BOS, TEXT, *written[i], SPEECH], [*spoken[i], EOS]) for i in cuts]
    else:
        parts = [([BOS, SPEECH, *spoken[i], TEXT], [*written[i], EOS]) for i in cuts]
    expected = {tuple(question + answer): len(question) for question, answer in parts}

    batches = TextBatches(dataset, framing, 4, 40, seed=1, cuts=cuts)
    plain = PackedBatches(dataset, framing, 4, 40, seed=1, cuts=cuts)
    assert batches.tokens_per_epoch == sum(map(len, expected))
    stream = [BOS, *np.concatenate([plain.batch(step).tokens[:, 1:].ravel() for step in range(6)]).tolist()]
    begins = [i for i, token in enumerate(stream) if token == BOS]
    documents = [tuple(stream[begin:end]) for begin, end in itertools.pairwise(begins)]
    assert set(documents) == set(expected) and len(documents) > len(expected)
    learned = set()
    for document, begin in zip(documents, begins, strict=False):
        question, length = expected[document], len(document)
        row_end = (begin // 40 + 1) * 40 if begin % 40 else begin + 40  # at a shared token: the row that it begins
        learned |= set(range(begin + question, min(begin + length, row_end + 1)))
    for step in range(6):
        batch = batches.batch(step)
        targets = targets_of(batch)
        assert (batch.tokens == plain.batch(step).tokens).all()
        for row in range(4):
            first = (step * 4 + row) * 40
            for column in range(40):
                place = first + column + 1
                if place < begins[-1]:
                    wanted = stream[place] if place in learned else IGNORED
                    assert targets[row, column] == wanted, (step, row, column)


def test_speech_alone_is_learned_whole_beside_documents_with_text():
    tokens = np.array([[20, 21, EOS, BOS, TEXT, 90, 91, SPEECH, 22, 23, EOS, BOS, 24]])
    documents = np.array([[7, 7, 7, 8, 8, 8, 8, 8, 8, 8, 8, 9, 9]])
    positions = np.array([[5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7, 0, 1]])
    wanted = [21, EOS, *[IGNORED] * 5, 22, 23, EOS, IGNORED, 24]
    assert targets_of(Batch(tokens, documents, positions)).tolist() == [wanted]
    hidden = Batch(tokens, np.where(documents == 8, NO_DOCUMENT, documents), positions)
    assert targets_of(hidden).tolist() == [[21, EOS, *[IGNORED] * 9, 24]]


def test_a_vocabulary_with_text_comes_back_and_keeps_its_own_text_model(vocabulary, tmp_path):
    vocabulary.save(tmp_path / "vocabulary.json")
    assert Vocabulary.load(tmp_path / "vocabulary.json") == vocabulary
    assert vocabulary.size == FIRST_CODE + CODES + 60
    ids = torch.tensor([BOS, FIRST_CODE, FIRST_CODE + CODES - 1, FIRST_CODE + CODES, vocabulary.size - 1])
    assert vocabulary.codes(ids).tolist() == [-1, 0, CODES - 1, -1, -1]
    TextModel.train(sentences(200, seed=9), 60).save(tmp_path / "text.model")
    with pytest.raises(InputError, match=r"text\.model: is not the text model of"):
        Vocabulary.load(tmp_path / "vocabulary.json")
    (tmp_path / "text.model").write_bytes(b"no model")
    with pytest.raises(InputError, match=r"text\.model: cannot be read as a text model"):
        Vocabulary.load(tmp_path / "vocabulary.json")
    (tmp_path / "text.model").unlink()
    with pytest.raises(InputError, match=r"text\.model is missing; copy it"):
        Vocabulary.load(tmp_path / "vocabulary.json")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"code_embedding": "bits", "head_groups": 2, "tied_embeddings": False},
        {"code_embedding": "table_from_bits", "tied_embeddings": False},
    ],
)
def test_models_with_text_say_codes_and_write_pieces(options, vocabulary, text_model, tmp_path):
    model = model_of(vocabulary, **options)
    ids = torch.randint(0, vocabulary.size, (2, 30), generator=torch.Generator().manual_seed(1))
    logits = model(ids)
    assert logits.shape == (2, 30, vocabulary.size)
    loss = model(ids[:, :-1], targets=ids[:, 1:])
    exact = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")
    torch.testing.assert_close(loss, exact, rtol=1e-5, atol=0.0)  # float32 sums in another order
    save_lm(model, vocabulary, tmp_path / "lm")
    loaded, read = load_lm(tmp_path / "lm")
    assert read == vocabulary and torch.equal(loaded(ids), logits)

    codes = torch.stack(list(generate(loaded, vocabulary, [torch.tensor([3, 60])], Sampling(), [1], 40, 40)))
    assert int(codes.min()) >= 0 and int(codes.max()) < CODES and len(codes.unique()) > 10
    said = speak(loaded, vocabulary, text_model, "the lazy fox", Sampling(), seed=1)
    assert len(said) and said.min() >= 0 and said.max() < CODES
    assert np.array_equal(said, speak(loaded, vocabulary, text_model, "the lazy fox", Sampling(), seed=1))
    model, prompt = TensorModel(loaded), np.array([[BOS, SPEECH, 20, 21, TEXT]])
    pieces = np.concatenate(list(extend(model, prompt, np.array([5]), vocabulary.piece_ids, Sampling(), [1], 40, 40)))
    pieces += 1
    assert pieces.min() >= 1 and pieces.max() < 60 and len(np.unique(pieces)) > 10
    # The same ids, scored without a cache: greedy writing takes the likeliest piece each time.
    text = transcribe(loaded, vocabulary, text_model, np.array([4, 5]), Sampling(temperature=0.0))
    likeliest, row = [], [BOS, SPEECH, 20, 21, TEXT]
    while len(row) < CONFIG.context:
        scores = loaded(torch.tensor([row]))[0, -1]
        best = int(scores[[EOS, *vocabulary.piece_ids]].argmax())
        if not best:
            break
        likeliest.append(best)
        row.append(vocabulary.first_piece + best)
    assert text == text_model.decode(likeliest)


def test_what_cannot_be_said_or_written_is_refused(vocabulary, text_model):
    model = model_of(vocabulary)
    for text, message in (("", "the text is empty"), ("fox é", "the text has 'é'"), ("fox " * 40, "sees 60 tokens")):
        with pytest.raises(InputError, match=message):
            speak(model, vocabulary, text_model, text, Sampling())
    with pytest.raises(InputError, match=r"the speech is 1\.2 s long; split it into shorter parts"):
        transcribe(model, vocabulary, text_model, np.arange(60) % CODES, Sampling())


def test_a_warm_start_keeps_the_codes_of_a_model_of_speech(vocabulary, tmp_path):
    speech = dataclasses.replace(vocabulary, text=None)
    old = model_of(speech)
    save_lm(old, speech, tmp_path / "speech")
    model = LanguageModel(CONFIG, vocabulary.size, vocabulary.pieces)
    warm_start(model, vocabulary, str(tmp_path / "speech"), seed=1)
    table = model.embed_tokens.weight.detach()
    assert torch.equal(table[: speech.size], old.embed_tokens.weight)
    assert float(table[speech.size :].std()) == pytest.approx(
        float(old.embed_tokens.weight.std()), rel=0.2
    )  # 960 draws


def test_an_exported_model_brings_its_text_model(vocabulary, tmp_path):
    model = model_of(vocabulary)
    export_lm(model, vocabulary, tmp_path / "out")
    loaded, read = load_lm(tmp_path / "out")
    ids = torch.tensor([[BOS, TEXT, vocabulary.size - 1, SPEECH, 30]])
    assert read == vocabulary and torch.equal(loaded(ids), model(ids))
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    drawn = set(range(vocabulary.size)) - set(generation["suppress_tokens"])
    assert drawn == {EOS, *vocabulary.code_ids}
    assert f"| {vocabulary.first_piece} to {vocabulary.size - 1} | piece 0" in (tmp_path / "out/README.md").read_text()


def test_texts_of_a_large_dataset_are_encoded_once(texted_dataset, vocabulary, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("pipelines.dataset.token_dataset.KEPT_FROM", 0)
    first = read_transcripts(TokenDataset(texted_dataset), vocabulary, ["text_to_speech"])
    monkeypatch.setattr(TokenDataset, "cuts", None)  # can be read no more
    again = read_transcripts(TokenDataset(texted_dataset), vocabulary, ["speech_to_text"])
    assert identity(again) == identity(first) and int((again.texts.lengths > 0).sum()) == 14
    np.testing.assert_array_equal(again.texts.characters, first.texts.characters)
    other = dataclasses.replace(vocabulary, text=TextModel.train(sentences(50, seed=9), 55))
    with pytest.raises(TypeError):  # its pieces are others
        read_transcripts(TokenDataset(texted_dataset), other, ["text_to_speech"])


TASKS = {"text_to_speech_weight": 1.0, "speech_to_text_weight": 2.0, "steps": 6, "validate_every": 3, "save_every": 3}


def test_training_goes_on_exactly_and_its_model_speaks_and_writes(
    texted_dataset, tiny_codec_dir, lm_config, lm_settings, tmp_path, capsys
):
    out = tmp_path / "text.model"
    assert main(["train-text", "--data", str(texted_dataset), "--out", str(out), "--pieces", "50"]) == 0
    assert "50 pieces from 14 texts of 16 cuts" in capsys.readouterr().out
    assert sum(map(bool, texts_of(TokenDataset(texted_dataset).cuts()))) == 14
    assert main(["train-text", "--pieces", "50", str(texted_dataset), str(tmp_path / "old.model")]) == 0
    assert (tmp_path / "old.model").read_bytes() == out.read_bytes()
    assert "note: DATASET ... OUT is now --data DATASET ... --out OUT" in capsys.readouterr().err
    assert main(["train-text", "--data", str(texted_dataset), str(out)]) == 2
    settings = dataclasses.replace(lm_settings, **TASKS, warmup_steps=1)
    options = {"show_progress": False, "text_model": tmp_path / "text.model"}
    report = train(lm_config, settings, [texted_dataset], tmp_path / "whole", **options)
    assert report.best_bits_per_second is None and report.best_bits_per_token > 0
    shutil.copytree(tmp_path / "whole", tmp_path / "half")
    shutil.rmtree(tmp_path / "half" / "step-000006")  # as if it had been killed after the checkpoint before
    (tmp_path / "half" / "best.json").unlink(missing_ok=True)
    train(lm_config, settings, [texted_dataset], tmp_path / "half", resume=True, **options)
    weights = [(tmp_path / run / "step-000006" / "model.safetensors").read_bytes() for run in ("whole", "half")]
    assert weights[0] == weights[1]
    last = json.loads((tmp_path / "whole" / "log.jsonl").read_text().splitlines()[-1])
    parts = [last[f"held_out_{task}_bits_per_token"] for task in ("speech", "text_to_speech", "speech_to_text")]
    assert last["held_out_bits_per_token"] == pytest.approx((parts[0] + parts[1] + 2 * parts[2]) / 4)
    assert all(math.isfinite(bits) for bits in parts) and "held_out_bits_per_second" not in last

    with pytest.raises(InputError, match=r"another data\.text_model"):
        TextModel.train(sentences(200), 50).save(tmp_path / "other.model")
        other = {**options, "text_model": tmp_path / "other.model"}
        train(lm_config, settings, [texted_dataset], tmp_path / "half", resume=True, **other)

    models = ["--lm", str(tmp_path / "whole"), "--codec", str(tiny_codec_dir)]
    assert main(["speak", "the fox", str(tmp_path / "out.wav"), *models]) == 0
    assert main(["transcribe", str(tmp_path / "out.wav"), *models]) in (0, 2)  # 2: what it said fills its context


def test_text_settings_that_do_not_fit_are_refused(
    texted_dataset, tiny_lm_dir, lm_config, lm_settings, tmp_path, capsys
):
    TextModel.train(sentences(200), 50).save(tmp_path / "text.model")
    with_text = dataclasses.replace(lm_settings, speech_to_text_weight=1.0)
    for settings, text_model, message in (
        (with_text, None, "speech_to_text_weight is above 0, but there is no text model; make one"),
        (lm_settings, tmp_path / "text.model", "a text model is given, but no task uses it"),
        (
            dataclasses.replace(with_text, row_tokens=4),
            tmp_path / "text.model",
            "no cut for training has a text and fits",
        ),
    ):
        config = dataclasses.replace(lm_config, context=min(lm_config.context, settings.row_tokens))
        with pytest.raises(InputError, match=message):
            train(config, settings, [texted_dataset], tmp_path / "run", show_progress=False, text_model=text_model)
    assert not (tmp_path / "run").exists()
    with pytest.raises(InputError, match=r"speech_weight, .* are all 0"):
        dataclasses.replace(lm_settings, speech_weight=0.0)
    assert main(["speak", "the fox", str(tmp_path / "out.wav"), "--lm", str(tiny_lm_dir)]) == 2
    assert "has no text: it was trained on speech alone. To train one" in capsys.readouterr().err
    assert not (tmp_path / "out.wav").exists()
