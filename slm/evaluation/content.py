"""WAVES -> CONTENT: whether a recogniser takes what a model says for words.

A recogniser of the Whisper kind writes words for any sound; what tells speech from babble is how many it hears in a
second, and of how many it is sure. Both are measured on what the recordings go on with too, as the codec renders them:
that is the ceiling of a model on its tokens.

Legend: S samples at 16 kHz.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from slm.evaluation.text_judges import TextJudge, auto_bleu, perplexity
from tokenizer.metrics import METRICS_RATE
from tokenizer.metrics.recogniser import Word, WordRecogniser

SURE = 0.5  # probability from which on a word counts as recognised
SHORTEST = METRICS_RATE // 2  # samples; less holds no word to speak of


def listen(recogniser: WordRecogniser, wave: np.ndarray) -> list[Word]:
    """The words of float32 [S]; none where it is too short for any."""
    return recogniser(wave) if len(wave) >= SHORTEST else []


def content_figures(
    recogniser: WordRecogniser, waves: Sequence[np.ndarray], judge: TextJudge | None = None
) -> tuple[dict[str, float | None], list[str]]:
    """Figures of the words of float32 [S] each, and their texts.

    Returns:
        Those of `word_figures`; auto_bleu; with a judge generation_perplexity.
    """
    heard = [listen(recogniser, wave) for wave in waves]
    texts = [" ".join(word.text for word in words) for words in heard]
    figures = {**word_figures(heard, sum(map(len, waves))), "auto_bleu": auto_bleu(texts)}
    if judge is not None:
        figures["generation_perplexity"] = perplexity(judge, texts)
    return figures, texts


def word_figures(heard: Sequence[Sequence[Word]], samples: int) -> dict[str, float | None]:
    """Figures of the words of continuations of this many samples in all.

    Returns:
        words_per_second: that the recogniser writes, of all continuations together; sure_words: share of them whose
        probability is at least `SURE`; sure_words_per_second: how many those are. None without any sound, or words.
    """
    words = sum(map(len, heard))
    sure = sum(word.probability >= SURE for one in heard for word in one)
    seconds = samples / METRICS_RATE
    return {
        "words_per_second": words / seconds if seconds else None,
        "sure_words": sure / words if words else None,
        "sure_words_per_second": sure / seconds if seconds else None,
    }
