"""Text to speech and speech to text by a language model trained on both (`slm.documents.tasks`).

Speech is generated from codes only and text from pieces only; other ids are excluded.
"""

from __future__ import annotations

import numpy as np
import torch

from slm.generation.generate import Sampling, extend, framed
from slm.model.transformer import LanguageModel
from slm.text_model import TextModel
from slm.vocabulary import BOS, SPEECH, TEXT, Vocabulary
from tokenizer.errors import InputError


def speak(
    model: LanguageModel,
    vocabulary: Vocabulary,
    text_model: TextModel,
    text: str,
    sampling: Sampling,
    seed: int = 0,
    most: int | None = None,
) -> np.ndarray:
    """Text to speech. The voice is random.

    Args:
        model: in evaluation mode.
        vocabulary: the model's.
        text_model: the vocabulary's (`Vocabulary.check_text`).
        text: what to say.
        sampling: how codes are drawn.
        seed: the same seed gives the same speech.
        most: codes at most; fewer if text and speech would exceed the model's context.

    Returns:
        Tokens, int64 [T].

    Raises:
        InputError: the text is empty, has characters that the text model does not know, or is too long.
    """
    pieces = text_model.encode(text)
    if not pieces:
        raise InputError("the text is empty; give some words to say")
    if unknown := text_model.unknown_characters(text):
        raise InputError(
            f"the text has {unknown!r}, which do not occur in the training texts; spell the text without them"
        )
    ids = torch.tensor([[BOS, TEXT, *(vocabulary.first_piece + piece for piece in pieces), SPEECH]])
    room = room_for_answer(model, ids.shape[1], f"the text has {len(pieces)} pieces; give a shorter one")
    said = extend(
        model,
        ids,
        torch.tensor([ids.shape[1]]),
        vocabulary.code_ids,
        sampling,
        [seed],
        least=1,
        most=room if most is None else min(most, room),
    )
    return torch.cat(list(said)).numpy()


def transcribe(
    model: LanguageModel,
    vocabulary: Vocabulary,
    text_model: TextModel,
    codes: np.ndarray,
    sampling: Sampling,
    seed: int = 0,
) -> str:
    """Speech to text, in the text model's normalisation (lower case).

    Args:
        model, vocabulary, text_model: as for `speak`.
        codes: the tokens of the speech, int64 [T].
        sampling: how pieces are drawn.
        seed: the same seed gives the same text.

    Raises:
        InputError: the vocabulary does not have a code, or the speech is too long.
    """
    tokens, _ = framed([torch.from_numpy(codes)], vocabulary)
    marked = torch.cat((tokens[:, :1], torch.tensor([[SPEECH]]), tokens[:, 1:], torch.tensor([[TEXT]])), dim=1)
    assert tokens[0, 0] == BOS
    seconds = len(codes) / vocabulary.token_rate
    room = room_for_answer(model, marked.shape[1], f"the speech is {seconds:.1f} s long; split it into shorter parts")
    said = extend(
        model, marked, torch.tensor([marked.shape[1]]), vocabulary.piece_ids, sampling, [seed], least=0, most=room
    )
    known = vocabulary.piece_ids.start - vocabulary.first_piece
    return text_model.decode([int(place) + known for place in said])


def room_for_answer(model: LanguageModel, prompt: int, remedy: str) -> int:
    """How many ids fit the model's context after a prompt of `prompt` ids. Raises InputError if none do."""
    room = model.config.context - prompt
    if room < 1:
        raise InputError(
            f"the model sees {model.config.context} tokens at a time, the prompt alone has {prompt}: {remedy}"
        )
    return room
