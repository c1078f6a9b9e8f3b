"""Text as pieces: a SentencePiece model that is trained on the transcripts of the datasets and never downloaded.

Byte pair encoding (arXiv 1508.07909) by SentencePiece (arXiv 1808.06226), with Unicode normalised (NFKC) and upper case
lowercased: case is not audible, and corpora differ in it. Piece 0 stands for unknown characters.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pipelines.dataset.epochs import shuffled
from tokenizer.errors import InputError
from tokenizer.files import write_atomically

UNKNOWN = 0  # the piece of characters that the training texts did not have
MOST_TEXTS = 1_000_000  # used in training; more would need memory without changing the pieces
LONGEST_TEXT = 1 << 24  # bytes: SentencePiece skips longer texts silently


@dataclass(frozen=True)
class TextModel:
    """Texts to pieces and back.

    Attributes:
        proto: the serialised SentencePiece model.
    """

    proto: bytes = field(repr=False)

    @cached_property
    def _processor(self) -> Any:
        from sentencepiece import SentencePieceProcessor

        return SentencePieceProcessor(model_proto=self.proto)

    @cached_property
    def pieces(self) -> int:
        """Number of pieces, including piece 0."""
        return int(self._processor.get_piece_size())

    @cached_property
    def fingerprint(self) -> str:
        """Identity of the pieces (hex sha256)."""
        return hashlib.sha256(self.proto).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Text to pieces, `UNKNOWN` for unknown characters."""
        return list(self._processor.encode(text))

    def decode(self, pieces: Sequence[int]) -> str:
        """Pieces to normalised text."""
        return str(self._processor.decode(list(pieces)))

    def unknown_characters(self, text: str) -> str:
        """The characters of a text that no piece has, each once, in order."""
        return "".join(dict.fromkeys(c for c in text if UNKNOWN in self.encode(c)))

    def save(self, path: Path) -> None:
        """Write a SentencePiece model file; it is replaced atomically."""
        write_atomically(path, self.proto)

    @classmethod
    def load(cls, path: Path) -> TextModel:
        """Read what `save`, or SentencePiece itself, wrote.

        Raises:
            InputError: the file is missing or is not a SentencePiece model.
        """
        try:
            model = cls(path.read_bytes())
            if model.proto and model.pieces:  # an empty file loads without an error
                return model
            reason = "it has no pieces"
        except (OSError, RuntimeError) as error:
            reason = " ".join(str(error).split())
        raise InputError(f"{path}: cannot be read as a text model ({reason}); `focalstream train-text` makes one")

    @classmethod
    def train(cls, texts: Iterable[str], pieces: int) -> TextModel:
        """Make a model; the same texts give the same bytes.

        Args:
            texts: empty ones are skipped; `MOST_TEXTS` are drawn if there are more.
            pieces: how many to make, including piece 0.

        Raises:
            InputError: there are no texts, or the number of pieces is too high or too low for them.
        """
        from sentencepiece import SentencePieceTrainer

        if pieces < 2:
            raise InputError(f"--pieces {pieces}: expected at least 2, usually several hundred")
        said = [text for text in texts if text.strip()]
        if not said:
            raise InputError("none of the cuts has a text: give datasets whose manifests have supervisions with text")
        if len(said) > MOST_TEXTS:
            said = [said[i] for i in shuffled(len(said), 0)[:MOST_TEXTS].tolist()]
        written = io.BytesIO()
        try:
            SentencePieceTrainer.train(
                sentence_iterator=iter(said),
                model_writer=written,
                vocab_size=pieces,
                model_type="bpe",
                normalization_rule_name="nmt_nfkc_cf",
                character_coverage=1.0,
                max_sentence_length=LONGEST_TEXT,
                unk_id=UNKNOWN,
                bos_id=-1,
                eos_id=-1,
                pad_id=-1,
                num_threads=1,
                minloglevel=2,
            )
        except RuntimeError as error:
            reason = " ".join(str(error).split()).rpartition("] ")[2]
            raise InputError(f"--pieces {pieces}: cannot be made from {len(said):,} texts ({reason})") from None
        return cls(written.getvalue())


def texts_of(cuts: Iterable[dict[str, Any]]) -> Iterator[str]:
    """The text of each cut: its supervisions' texts joined in order of time, or "" if it has none."""
    for cut in cuts:
        said = sorted(cut.get("supervisions") or [], key=lambda supervision: supervision.get("start") or 0.0)
        texts = [text for supervision in said if isinstance(text := supervision.get("text"), str)]
        yield " ".join(" ".join(texts).split())
