"""Documents of text and speech: how a cut with a transcript is written as tokens, which of them are targets, the loss.

    speech            <bos> codes <eos>                                                     each token
    text to speech    <bos> <text> pieces <speech> codes <eos>                              codes <eos>
    speech to text    <bos> <speech> codes <text> pieces <eos>                              pieces <eos>
    interleaved       <bos> <interleaved> <speech> codes <text> pieces <speech> ... <eos>   codes, pieces, <eos>

The right column lists the targets. The prompt part is always given at inference, so it is left out of the loss: it
would take capacity, and the loss would mix two things. Marks are not targets either, because the task, and where
interleaved documents switch (`slm.documents.interleaved`), are drawn at random.

An answer is a target only if its whole prompt is in the same row. So where the end of a row cuts a document of two
parts, the rest in the next row is not a target, and a document longer than a row is left out. The rest of a cut
interleaved document is a target, as it is for speech.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from pipelines.dataset.batches import Batch, Codes, PackedBatches
from slm.model.cross_entropy import IGNORED
from slm.text_model import TextModel
from slm.vocabulary import BOS, EOS, FIRST_CODE, INTERLEAVED, SPEECH, TEXT

SPEECH_TASK = "speech"
TWO_PART_TASKS = ("text_to_speech", "speech_to_text")
INTERLEAVED_TASK = "interleaved"
TEXT_TASKS = (*TWO_PART_TASKS, INTERLEAVED_TASK)  # tasks that need a text model
NO_DOCUMENT = -1  # number of a document whose tokens are not targets
MARKS = 4  # ids of a document of two parts other than codes and pieces


@dataclass(frozen=True)
class Texts:
    """The texts of a dataset as pieces, one after another: 2 bytes a piece (4 with more than 65,536), 8 bytes a cut."""

    pieces: np.ndarray  # uint16 or uint32
    begins: np.ndarray  # int64 [N + 1]: first piece of each cut, then the total
    characters: np.ndarray  # int32 [N]: characters of each text, normalised

    @classmethod
    def encode(cls, model: TextModel, texts: Iterable[str]) -> Texts:
        """Encode the text of each cut of a dataset; "" for cuts without text."""
        pieces, counts, characters = bytearray(), [0], []
        dtype = np.uint16 if model.pieces <= 1 << 16 else np.uint32
        for text in texts:
            found = model.encode(text)
            pieces += np.array(found, dtype).tobytes()
            counts.append(len(found))
            characters.append(len(model.decode(found)))
        return cls(np.frombuffer(bytes(pieces), dtype), np.cumsum(counts), np.array(characters, np.int32))

    @property
    def lengths(self) -> np.ndarray:
        """int64 [N]: number of pieces of each cut."""
        return np.diff(self.begins)


@dataclass(frozen=True)
class TextFraming:
    """Documents of two parts, for `pipelines.dataset.batches`."""

    task: str  # one of TWO_PART_TASKS
    first_piece: int  # the id of piece 0
    texts: Texts

    def lengths(self, dataset: Codes) -> np.ndarray:
        return dataset.lengths + self.texts.lengths + MARKS

    def ids(self, dataset: Codes, cuts: np.ndarray) -> np.ndarray:
        codes = np.add(dataset.gather(cuts), FIRST_CODE, dtype=np.int32)
        spoken = np.split(codes, np.cumsum(dataset.lengths[cuts])[:-1])
        bos, eos, text, speech = (np.array([mark], np.int32) for mark in (BOS, EOS, TEXT, SPEECH))
        parts = []
        for cut, said in zip(cuts.tolist(), spoken, strict=True):
            begin, end = self.texts.begins[cut : cut + 2]
            written = np.add(self.texts.pieces[begin:end], self.first_piece, dtype=np.int32)
            if self.task == "text_to_speech":
                parts += [bos, text, written, speech, said, eos]
            else:
                parts += [bos, speech, said, text, written, eos]
        return np.concatenate(parts)


class TextBatches(PackedBatches):
    """Batches of documents of two parts. A document that started in an earlier row has the number `NO_DOCUMENT`."""

    def rows(self, first: int, last: int) -> Batch:
        batch = super().rows(first, last)
        cut_off = (batch.positions[:, :1] > 0) & (batch.documents == batch.documents[:, :1])
        batch.documents[cut_off] = NO_DOCUMENT
        return batch


def fitting(framing: TextFraming, dataset: Codes, cuts: np.ndarray, row_tokens: int) -> np.ndarray:
    """The cuts that have a text and together with it fit a row."""
    return cuts[(framing.texts.lengths[cuts] > 0) & (framing.lengths(dataset)[cuts] <= row_tokens + 1)]


def summed_loss(model: nn.Module, batch: Batch, bfloat16: bool) -> Tensor:
    """Cross-entropy in nats, summed over the targets of a batch.

    Args:
        model: a `LanguageModel`, or what distributes one over processes.
        batch: rows of the loader.
        bfloat16: compute under bfloat16 autocast.
    """
    device = next(model.parameters()).device
    tokens, documents, positions = (torch.from_numpy(field[:, :-1]).to(device) for field in batch)
    targets = torch.from_numpy(targets_of(batch)).to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
        loss: Tensor = model(tokens, documents, positions, targets)
    return loss


def targets_of(batch: Batch) -> np.ndarray:
    """int64 [rows, row_tokens]: the next token of the same document, or `IGNORED` for marks and for the prompt part of
    documents of two parts."""
    same = (batch.documents[:, 1:] == batch.documents[:, :-1]) & (batch.documents[:, 1:] != NO_DOCUMENT)
    marks = (batch.tokens == TEXT) | (batch.tokens == SPEECH) | (batch.tokens == INTERLEAVED)
    if marks.any():
        # The prompt part follows the first mark, the answer the second; `<interleaved>` counts as two marks.
        count = np.cumsum(marks + (batch.tokens == INTERLEAVED), axis=1)
        begins = np.arange(count.shape[1]) - batch.positions
        in_document = count - np.take_along_axis(count, begins.clip(0), axis=1)
        question = (in_document == 1) & (begins >= 0)  # the rest of a document of two parts is NO_DOCUMENT
        same &= ~(question | marks)[:, 1:]
    return np.where(same, batch.tokens[:, 1:], IGNORED)
