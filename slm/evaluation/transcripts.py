"""Error rates of a model with text: its greedy transcripts of held-out speech against the reference texts.

An error rate is the edit distance (insertions, deletions, substitutions) summed over all transcripts, divided by the
length of all references. It can exceed 1 if transcripts are much longer than their references.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from pipelines.dataset.epochs import shuffled
from pipelines.dataset.token_dataset import TokenDataset
from slm.generation.sampling import Sampling
from slm.generation.spoken_text import transcribe
from slm.model.transformer import LanguageModel
from slm.text_model import TextModel, texts_of
from slm.vocabulary import Vocabulary
from tokenizer.errors import InputError
from tokenizer.metrics.words import character_errors, edit_distance, word_errors

TRANSCRIPT_STREAM = 6  # separates this draw from others of the same seed
GREEDY = Sampling(temperature=0.0)
MARKS = 3  # ids of the prompt beside the codes: begin, speech, text


class Transcript(NamedTuple):
    """The reference text of a cut, from its supervisions, and the model's transcript."""

    cut: int
    text: str
    written: str


def write_transcripts(
    model: LanguageModel, vocabulary: Vocabulary, text_model: TextModel, dataset: TokenDataset, count: int, seed: int
) -> list[Transcript]:
    """Transcribe some cuts that have a text and together with it fit the model's context.

    Args:
        model: in evaluation mode.
        vocabulary: the model's.
        text_model: the vocabulary's (`Vocabulary.check_text`).
        dataset: the held-out cuts.
        count: transcripts at most.
        seed: of the draw of cuts.

    Raises:
        InputError: no cut has a text and fits the context.
    """
    texts = list(texts_of(dataset.cuts()))
    room = model.config.context - MARKS - dataset.lengths
    fit = [cut for cut, text in enumerate(texts) if text and len(text_model.encode(text)) < room[cut]]
    if not fit:
        raise InputError(f"no held-out cut has a text and fits the {model.config.context} tokens that the model sees")
    chosen = sorted(fit[i] for i in shuffled(len(fit), seed, TRANSCRIPT_STREAM)[:count].tolist())
    return [
        Transcript(
            cut,
            texts[cut],
            transcribe(model, vocabulary, text_model, dataset.codes(cut).astype(np.int64), GREEDY),
        )
        for cut in chosen
    ]


def error_rates(transcripts: Sequence[Transcript], text_model: TextModel) -> dict[str, Any]:
    """Error rates of transcripts against the references.

    Returns:
        piece_error_rate: of the text model's pieces; character_error_rate, word_error_rate: without case and
        punctuation (`tokenizer.metrics.words`). None if the references are empty. words: number of reference words.
    """
    errors, said = {"piece": 0, "character": 0, "word": 0}, {"piece": 0, "character": 0, "word": 0}
    for transcript in transcripts:
        wanted, got = text_model.encode(transcript.text), text_model.encode(transcript.written)
        counted = {
            "piece": (edit_distance(wanted, got), len(wanted)),
            "character": character_errors(transcript.text, transcript.written),
            "word": word_errors(transcript.text, transcript.written),
        }
        for kind, (wrong, of) in counted.items():
            errors[kind] += wrong
            said[kind] += of
    rates = {f"{kind}_error_rate": errors[kind] / said[kind] if said[kind] else None for kind in errors}
    return {**rates, "words": said["word"]}
