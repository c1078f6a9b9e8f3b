"""What a model with text writes down of held-out speech, beside what was said: error rates of its greedy transcripts.

Errors are the least edits (put in, leave out, change) over all transcripts together, by what was said in all. A
transcript that goes on and on can have more errors than there was to say, so that a rate is above 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from pipelines.dataset.batches import shuffled
from pipelines.dataset.token_dataset import TokenDataset
from slm.generation.generate import Sampling
from slm.generation.spoken_text import transcribe
from slm.model.transformer import LanguageModel
from slm.text_model import TextModel, texts_of
from slm.vocabulary import Vocabulary
from tokenizer.errors import InputError
from tokenizer.metrics.words import character_errors, edit_distance, word_errors

TRANSCRIPT_STREAM = 6  # keeps this draw apart from others of the same seed
GREEDY = Sampling(temperature=0.0)
MARKS = 3  # ids of the question beside its codes: begin, speech, text


class Transcript(NamedTuple):
    """What was said in a cut, as its supervisions have it, and what the model wrote."""

    cut: int
    text: str
    written: str


def write_transcripts(
    model: LanguageModel, vocabulary: Vocabulary, text_model: TextModel, dataset: TokenDataset, count: int, seed: int
) -> list[Transcript]:
    """Transcribe some cuts that have a text, and fit the model's context with it.

    Args:
        model: in evaluation mode.
        vocabulary: the model's.
        text_model: the vocabulary's (`Vocabulary.check_text`).
        dataset: the held-out cuts.
        count: transcripts at most.
        seed: of the choice of cuts.

    Raises:
        InputError: no cut has a text and fits.
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
    """Error rates of transcripts, each by what was said.

    Returns:
        piece_error_rate: of the pieces that the text model spells both texts with; character_error_rate,
        word_error_rate: without case and punctuation (`tokenizer.metrics.words`). None where nothing was said of the
        kind. words: how many were said.
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
