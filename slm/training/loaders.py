"""The batches of a training run: all tasks mixed for training, and each task alone for validation."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from pipelines.dataset.batches import Framing, PackedBatches
from pipelines.dataset.mixture import MixedBatches, WeightedData
from pipelines.dataset.token_dataset import TokenDataset
from slm.documents.interleaved import InterleavedBatches, InterleavedFraming
from slm.documents.tasks import (
    INTERLEAVED_TASK,
    SPEECH_TASK,
    TEXT_TASKS,
    TWO_PART_TASKS,
    TextBatches,
    TextFraming,
    Texts,
    fitting,
)
from slm.documents.word_times import Words
from slm.text_model import texts_of
from slm.training.held_out import sources_of, split
from slm.training.settings import TrainSettings
from slm.vocabulary import BOS, EOS, FIRST_CODE, Vocabulary
from tokenizer.errors import InputError
from tokenizer.runs.ranks import Ranks

FRAMING = Framing(begin=BOS, end=EOS, first_code=FIRST_CODE)
TASK_SEED = 31  # bits of the run's seed; the bits above hold the task, because tasks share cuts


class Loaders(NamedTuple):
    training: PackedBatches | MixedBatches  # this process's
    validation: dict[str, PackedBatches]  # of each task, with all rows
    targets_per_character: float  # of held-out texts, including their end tokens; NaN without text
    texts: str | None  # sha256 of all texts' pieces, and of the word times if a task has them
    sources: dict[str, PackedBatches]  # held-out speech of each dataset of a mixture by itself; may be empty
    note: str  # which cuts are used for the tasks with text; "" without text


class Transcripts(NamedTuple):
    """What tasks with text need in addition to the tokens; None if no task needs it."""

    texts: Texts | None
    words: Words | None


def loaders(
    settings: TrainSettings,
    dataset: TokenDataset,
    vocabulary: Vocabulary,
    held_out: TokenDataset | None,
    weights: Sequence[float] | None = None,
    ranks: Ranks = Ranks(),  # noqa: B008
) -> Loaders:
    """Batches mixed by the weights of the tasks, and within a task by the weights of the dataset's folders, if given.

    Folders without texts are used only for the speech task.

    Raises:
        InputError: a dataset is empty or smaller than a row; a task with text has no text model, texts or word times;
            or there is a text model without such a task.
    """
    tasks = {task: weight for task, weight in settings.task_weights.items() if weight}
    check_text(vocabulary, list(tasks))
    training, held_out_cuts = split(dataset, held_out, settings)
    transcripts = read_transcripts(dataset, vocabulary, list(tasks))
    held_out_transcripts = transcripts if held_out is None else read_transcripts(held_out, vocabulary, list(tasks))
    folders = [training]
    if weights is not None:
        folders = np.split(training, np.searchsorted(training, dataset.folder_begins[1:-1]))
        if (empty := next((n for n, folder in enumerate(folders) if not len(folder)), None)) is not None:
            raise InputError(
                f"{dataset.places[empty]}: all of its cuts are held out for validation; name --held-out, or leave this "
                "dataset out"
            )
    parts, shares, validation = [], [], {}
    for task, task_weight in tasks.items():
        found = [
            (made, weight)
            for folder, weight in zip(folders, weights or [1.0], strict=True)
            if (made := _batches(task, settings, dataset, vocabulary, transcripts, folder, ranks)) is not None
        ]
        source = dataset if held_out is None else held_out
        checked = _batches(task, settings, source, vocabulary, held_out_transcripts, held_out_cuts)
        if not found or checked is None:
            whose = "held-out cut" if found else "cut for training"
            raise InputError(f"train.{task}_weight is {task_weight}, but no {whose} {lacking(task, settings)}")
        validation[task] = checked
        parts += [made for made, _ in found]
        scale = task_weight / sum(weight for _, weight in found) if len(tasks) > 1 else 1.0
        shares += [weight * scale for _, weight in found]
    mixed: PackedBatches | MixedBatches = parts[0]
    if len(tasks) > 1 or weights is not None:
        mixed = MixedBatches(parts, shares, settings.rows, settings.seed, ranks.rank, ranks.world)
    if mixed.tokens_per_epoch < settings.row_tokens:
        raise InputError(
            f"train.row_tokens is {settings.row_tokens}, but all cuts for training together have "
            f"{mixed.tokens_per_epoch} tokens: give shorter rows or more audio"
        )
    targets_per_character = float("nan")
    if held_out_transcripts.texts is not None:
        targets, characters = targets_and_characters(held_out_transcripts.texts, held_out_cuts)
        targets_per_character = targets / characters
    source = dataset if held_out is None else held_out
    sources = {}
    if settings.validate_by_source and SPEECH_TASK in tasks and (weights is not None or held_out is not None):
        parts_of = sources_of(source.places, source.folder_begins, held_out_cuts)
        for name, part in parts_of.items() if len(parts_of) > 1 else ():
            speech = _batches(SPEECH_TASK, settings, source, vocabulary, held_out_transcripts, part)
            assert speech is not None
            sources[name] = speech
    return Loaders(
        mixed,
        validation,
        targets_per_character,
        identity(transcripts),
        sources,
        note(transcripts, dataset, training, settings),
    )


def read_transcripts(dataset: TokenDataset, vocabulary: Vocabulary, tasks: Sequence[str]) -> Transcripts:
    """Read the texts and the word times that the tasks need; each reads all files of cuts, of a large dataset once."""
    texts, words, model = None, None, vocabulary.text
    if model is None:
        return Transcripts(texts, words)
    text_model, name = model, model.fingerprint[:32]
    if any(task in TWO_PART_TASKS for task in tasks):
        kept = dataset.kept(f"texts-1-{name}", lambda: vars(Texts.encode(text_model, texts_of(dataset.cuts()))))
        texts = Texts(**kept)
    if INTERLEAVED_TASK in tasks:
        kept = dataset.kept(
            f"words-1-{name}",
            lambda: vars(Words.read(text_model, dataset.cuts(), dataset.lengths, dataset.token_rate)),
        )
        words = Words(**kept)
    return Transcripts(texts, words)


def identity(transcripts: Transcripts) -> str | None:
    """Sha256 of the texts and word times; None if there are none."""
    if transcripts.texts is None and transcripts.words is None:
        return None
    sha = hashlib.sha256()
    if transcripts.texts is not None:
        sha.update(transcripts.texts.pieces.tobytes() + transcripts.texts.begins.tobytes())
    if transcripts.words is not None:
        words = transcripts.words
        for part in (words.begins, words.codes, words.written, words.piece_begins, words.pieces):
            sha.update(part.tobytes())
    return sha.hexdigest()


def lacking(task: str, settings: TrainSettings) -> str:
    """What the cuts of a task lack, and what to do, for an error message."""
    if task == INTERLEAVED_TASK:
        return (
            "has word times that lie in its supervisions; give datasets whose supervisions have Lhotse's "
            'alignment["word"], with times in seconds from the start of the recording'
        )
    return (
        f"has a text and fits a row of {settings.row_tokens} tokens with it; give datasets with texts, or longer rows"
    )


def check_text(vocabulary: Vocabulary, tasks: Sequence[str]) -> None:
    """Raise InputError unless there is a text model if and only if there are tasks with text."""
    with_text = [task for task in tasks if task in TEXT_TASKS]
    if with_text and vocabulary.text is None:
        raise InputError(
            f"train.{with_text[0]}_weight is above 0, but there is no text model; make one with `focalstream "
            "train-text --data DATASET --out text.model` and pass --text-model text.model"
        )
    if vocabulary.text is not None and not with_text:
        raise InputError(
            "a text model is given, but no task uses it; set one or more of --text-to-speech-weight, "
            "--speech-to-text-weight and --interleaved-weight"
        )


def _batches(
    task: str,
    settings: TrainSettings,
    dataset: TokenDataset,
    vocabulary: Vocabulary,
    transcripts: Transcripts,
    cuts: np.ndarray,
    ranks: Ranks = Ranks(),  # noqa: B008
) -> PackedBatches | None:
    """The batches of one task over some cuts; None if no cut has the text or the word times that the task needs."""
    rows, row_tokens, place = settings.rows, settings.row_tokens, (ranks.rank, ranks.world)
    if task == SPEECH_TASK:
        return PackedBatches(dataset, FRAMING, rows, row_tokens, settings.seed, cuts, *place)
    seed = settings.seed + (1 + TEXT_TASKS.index(task) << TASK_SEED)
    if task == INTERLEAVED_TASK:
        assert transcripts.words is not None
        cuts = cuts[transcripts.words.counts[cuts] > 0]
        turns = InterleavedFraming(vocabulary.first_piece, transcripts.words, seed)
        return InterleavedBatches(dataset, turns, rows, row_tokens, seed, cuts, *place) if len(cuts) else None
    assert transcripts.texts is not None
    framing = TextFraming(task, vocabulary.first_piece, transcripts.texts)
    cuts = fitting(framing, dataset, cuts, row_tokens)
    return TextBatches(dataset, framing, rows, row_tokens, seed, cuts, *place) if len(cuts) else None


def targets_and_characters(texts: Texts, cuts: np.ndarray) -> tuple[int, int]:
    """Number of targets (pieces and end tokens) and of characters in the texts of some cuts."""
    spoken = cuts[texts.lengths[cuts] > 0]
    return int(texts.lengths[spoken].sum()) + len(spoken), int(texts.characters[spoken].sum())


def note(transcripts: Transcripts, dataset: TokenDataset, cuts: np.ndarray, settings: TrainSettings) -> str:
    """How many training cuts are used for the tasks with text: a line for texts and a line for word times."""
    lines = []
    if transcripts.texts is not None:
        with_text = int((transcripts.texts.lengths[cuts] > 0).sum())
        taken = len(fitting(TextFraming(TWO_PART_TASKS[0], 0, transcripts.texts), dataset, cuts, settings.row_tokens))
        lines.append(
            f"tasks with text: {taken:,} of {len(cuts):,} cuts for training; {len(cuts) - with_text:,} have no text, "
            f"{with_text - taken:,} are longer than a row with it"
        )
    if transcripts.words is not None:
        taken = int((transcripts.words.counts[cuts] > 0).sum())
        lines.append(
            f"interleaved: {taken:,} of {len(cuts):,} cuts for training; {len(cuts) - taken:,} have no word times that "
            "lie in their supervisions"
        )
    return "\n".join(lines)


def data_identity(
    dataset: TokenDataset,
    held_out: TokenDataset | None,
    sources: WeightedData,
    init_from: str | None,
    vocabulary: Vocabulary,
    texts: str | None,
    related_codec: bool = False,
    initial_weights: str | None = None,
) -> dict[str, Any]:
    """What identifies a run beside its settings. Held-out data is part of it, because it decides the training cuts, and
    so is the sha256 of the initial weights where a checkpoint does not hold all of them."""
    validation = held_out.lengths if held_out is not None else np.zeros(0, np.int64)
    return {
        "codec_fingerprint": dataset.fingerprint,
        "cut_lengths": hashlib.sha256(np.ascontiguousarray(dataset.lengths).data).hexdigest(),
        "held_out_cut_lengths": hashlib.sha256(np.ascontiguousarray(validation).data).hexdigest(),
        "weights": list(sources.weights) if sources.weights else None,
        **({"init_from": init_from} if init_from is not None else {}),
        **({"related_codec": True} if related_codec else {}),
        **({"initial_weights": initial_weights} if initial_weights is not None else {}),
        **({"text_model": vocabulary.text.fingerprint, "texts": texts} if vocabulary.text is not None else {}),
    }
