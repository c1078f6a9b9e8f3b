"""Documents of text and speech: how a cut with a transcript stands in the stream, and what of it is learned.

    speech            <bos> codes <eos>                                                     each token
    text to speech    <bos> <text> pieces <speech> codes <eos>                              codes <eos>
    speech to text    <bos> <speech> codes <text> pieces <eos>                              pieces <eos>
    interleaved       <bos> <interleaved> <speech> codes <text> pieces <speech> ... <eos>   codes, pieces, <eos>

On the right is what the model learns to predict. A question is given when the model is used, so learning to predict it
would take capacity, and mix two things into one figure; speech as such is the first task's. Marks are no targets: which
task it is, and where interleaved documents change (`slm.documents.interleaved`), is drawn at random.

An answer counts where its whole question is in the row. So where the end of a row cuts a document of two parts, what
goes on in the next row counts for nothing there, and one that is longer than a row takes no part. What goes on of an
interleaved document counts, as of speech.
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
TEXT_TASKS = (*TWO_PART_TASKS, INTERLEAVED_TASK)  # those that need a text model
NO_DOCUMENT = -1  # tokens of this document are targets of nothing
MARKS = 4  # ids of a document of two parts that are neither codes nor pieces


@dataclass(frozen=True)
class Texts:
    """The texts of a dataset as pieces, one after another: 2 bytes a piece (4 with more than 65,536), 8 a cut."""

    pieces: np.ndarray  # uint16 or uint32
    begins: np.ndarray  # int64 [N + 1]: where each cut's begin, then the end
    characters: np.ndarray  # int32 [N]: of each text, normalised

    @classmethod
    def encode(cls, model: TextModel, texts: Iterable[str]) -> Texts:
        """Encode the text of each cut of a dataset; "" where there is none."""
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
        """int64 [N]: pieces of each cut."""
        return np.diff(self.begins)


@dataclass(frozen=True)
class TextFraming:
    """`pipelines.dataset.batches.Documents` of two parts."""

    task: str  # of TWO_PART_TASKS
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
    """Batches of documents of two parts; one that began in an earlier row has the number `NO_DOCUMENT`."""

    def rows(self, first: int, last: int) -> Batch:
        batch = super().rows(first, last)
        cut_off = (batch.positions[:, :1] > 0) & (batch.documents == batch.documents[:, :1])
        batch.documents[cut_off] = NO_DOCUMENT
        return batch


def fitting(framing: TextFraming, dataset: Codes, cuts: np.ndarray, row_tokens: int) -> np.ndarray:
    """Those of `cuts` that have a text and fit a row with it."""
    return cuts[(framing.texts.lengths[cuts] > 0) & (framing.lengths(dataset)[cuts] <= row_tokens + 1)]


def summed_loss(model: nn.Module, batch: Batch, bfloat16: bool) -> Tensor:
    """Cross-entropy in nats, summed over the targets of a batch.

    Args:
        model: a `LanguageModel`, or what distributes one over processes.
        batch: rows of the loader.
        bfloat16: compute under autocast.
    """
    device = next(model.parameters()).device
    tokens, documents, positions = (torch.from_numpy(field[:, :-1]).to(device) for field in batch)
    targets = torch.from_numpy(targets_of(batch)).to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
        loss: Tensor = model(tokens, documents, positions, targets)
    return loss


def targets_of(batch: Batch) -> np.ndarray:
    """int64 [rows, row_tokens]: the next token, but nothing after a document's end, where the next one is unrelated, no
    mark of a part, and of documents of two parts the answer alone (`slm.documents.tasks`)."""
    same = (batch.documents[:, 1:] == batch.documents[:, :-1]) & (batch.documents[:, 1:] != NO_DOCUMENT)
    marks = (batch.tokens == TEXT) | (batch.tokens == SPEECH) | (batch.tokens == INTERLEAVED)
    if marks.any():
        # After one mark comes the question, after the second the answer; `<interleaved>` counts as two.
        count = np.cumsum(marks + (batch.tokens == INTERLEAVED), axis=1)
        begins = np.arange(count.shape[1]) - batch.positions
        in_document = count - np.take_along_axis(count, begins.clip(0), axis=1)
        question = (in_document == 1) & (begins >= 0)  # what goes on here of two parts is no document
        same &= ~(question | marks)[:, 1:]
    return np.where(same, batch.tokens[:, 1:], IGNORED)
