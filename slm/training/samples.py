"""Samples during training: continuations of held-out speech, to hear the progress.

OUT/samples/step-000500/0.npy    tokens, int64 [T]: a prompt and its continuation
OUT/samples/step-000500/0.wav    the same as audio, if a codec is given
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipelines.dataset.batches import PackedBatches
from slm.generation.generate import generate
from slm.generation.sampling import Sampling
from slm.model.transformer import LanguageModel
from slm.vocabulary import FIRST_CODE, Vocabulary
from tokenizer import Codec
from tokenizer.audio import write_wav

COUNT = 2
PROMPT_SECONDS = 3.0  # or less, if the speech is shorter
NEW_SECONDS = 5.0
SAMPLING = Sampling(temperature=1.0, top_p=0.95)


def write_samples(
    model: LanguageModel, vocabulary: Vocabulary, held_out: PackedBatches, codec: Codec | None, folder: Path
) -> list[Tensor]:
    """Continue the same prompts with the same seeds each time.

    Args:
        model: in evaluation mode.
        vocabulary: the model's.
        held_out: the batches that the prompts come from.
        codec: the vocabulary's; None: tokens only.
        folder: created if it is missing.

    Returns:
        The audio, float32 [S] at `codec.sample_rate_out`; an empty list without a codec.
    """
    prompts = [prompt(held_out, row, round(PROMPT_SECONDS * vocabulary.token_rate)) for row in range(COUNT)]
    steps = list(
        generate(
            model,
            vocabulary,
            prompts,
            SAMPLING,
            seeds=range(COUNT),
            max_codes=round(NEW_SECONDS * vocabulary.token_rate),
        )
    )
    new = torch.stack(steps) if steps else torch.zeros(0, COUNT, dtype=torch.int64)
    folder.mkdir(parents=True, exist_ok=True)
    waves = []
    for number, (before, after) in enumerate(zip(prompts, new.T, strict=True)):
        codes = torch.cat((before, after[after >= 0]))
        np.save(folder / f"{number}.npy", codes.numpy())
        if codec is not None:
            wave = codec.decode(codes[None])[0].float().cpu()
            write_wav(folder / f"{number}.wav", wave.numpy(), codec.sample_rate_out)
            waves.append(wave)
    return waves


def prompt(batches: PackedBatches, row: int, longest: int) -> Tensor:
    """The first codes, int64 [at most longest], of the document with the most tokens in a row."""
    batch = batches.rows(row, row + 1)
    documents, counts = np.unique(batch.documents[0], return_counts=True)
    ids = batch.tokens[0][batch.documents[0] == documents[counts.argmax()]]
    return torch.from_numpy(ids[ids >= FIRST_CODE][:longest] - FIRST_CODE)
