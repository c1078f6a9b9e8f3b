"""Text to speech and speech to text by a language model trained on both (`slm.documents.tasks`).

Speech is generated from codes only and text from pieces only; other ids are excluded.
"""

from __future__ import annotations

import numpy as np

from slm.generation.engines import TensorModel
from slm.generation.extend import extend, framed
from slm.generation.sampling import Sampling
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
    ids = np.array([BOS, TEXT, *(vocabulary.first_piece + piece for piece in pieces), SPEECH])
    room = room_for_answer(model, len(ids), f"the text has {len(pieces)} pieces; give a shorter one")
    return _answer(model, ids, vocabulary.code_ids, sampling, seed, 1, room if most is None else min(most, room))


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
    framed_codes = framed([codes], vocabulary)[0][0]  # the begin token, then the codes as ids
    ids = np.concatenate((framed_codes[:1], [SPEECH], framed_codes[1:], [TEXT]))
    seconds = len(codes) / vocabulary.token_rate
    room = room_for_answer(model, len(ids), f"the speech is {seconds:.1f} s long; split it into shorter parts")
    known = vocabulary.piece_ids.start - vocabulary.first_piece
    said = _answer(model, ids, vocabulary.piece_ids, sampling, seed, 0, room)
    return text_model.decode([int(place) + known for place in said])


def _answer(
    model: LanguageModel, prompt: np.ndarray, allowed: range, sampling: Sampling, seed: int, least: int, most: int
) -> np.ndarray:
    """What follows a prompt of ids [T]: int64 [N], `least` to `most` indices in `allowed`."""
    lengths = np.array([len(prompt)])
    drawn = list(extend(TensorModel(model), prompt[None], lengths, allowed, sampling, [seed], least, most))
    return np.concatenate(drawn) if drawn else np.zeros(0, np.int64)


def room_for_answer(model: LanguageModel, prompt: int, remedy: str) -> int:
    """How many ids fit the model's context after a prompt of `prompt` ids. Raises InputError if none do."""
    room = model.config.context - prompt
    if room < 1:
        raise InputError(
            f"the model sees {model.config.context} tokens at a time, the prompt alone has {prompt}: {remedy}"
        )
    return room
