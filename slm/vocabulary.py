"""The language model's token ids: special tokens, then the codec's codes, then the pieces of text, if it has text.

    id   0      1      2      3       4         5              6 .. 15    16 .. 16 + codebook_size - 1  from there on
         <pad>  <bos>  <eos>  <text>  <speech>  <interleaved>  reserved   codes 0 .. codebook_size - 1  pieces from 0

`<text>` and `<speech>` start a part of a document that has both. `<interleaved>` starts a document in which such parts
alternate. A document of speech alone has none of them (`slm.documents.tasks`).

A vocabulary also names the codec of its codes. Codes of another codec mean nothing to the model, so `check` is called
wherever a model meets a dataset or a codec. The text model is stored beside it, in `text.model`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from slm.text_model import UNKNOWN, TextModel
from tokenizer.errors import InputError
from tokenizer.files import write_atomically

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    Array = TypeVar("Array", Tensor, np.ndarray)

PAD, BOS, EOS, TEXT, SPEECH, INTERLEAVED = range(6)
FIRST_CODE = 16
NO_CODE = -1  # the codec's "no token"
TEXT_MODEL = "text.model"  # stored beside the vocabulary
KINDS: dict[str, type | tuple[type, ...]] = {  # required keys of the file
    "codebook_size": int,
    "token_rate": (int, float),
    "codec_name": str,
    "codec_fingerprint": str,
}


@dataclass(frozen=True)
class Vocabulary:
    """Ids of one model, bound to one codec.

    Raises:
        InputError: sizes or rates that no codec has.
    """

    codebook_size: int
    token_rate: float  # tokens per second of speech
    codec_name: str  # the name it was loaded by, for messages; the fingerprint identifies it
    codec_fingerprint: str
    text: TextModel | None = None

    def __post_init__(self) -> None:
        if self.codebook_size < 2:
            raise InputError(f"vocabulary: codebook_size is {self.codebook_size}; expected at least 2")
        if not self.token_rate > 0:
            raise InputError(f"vocabulary: token_rate is {self.token_rate}; expected tokens per second above 0")

    @property
    def size(self) -> int:
        """The number of ids."""
        return self.first_piece + self.pieces

    @property
    def first_piece(self) -> int:
        """The id of piece 0: one more than the last code's."""
        return FIRST_CODE + self.codebook_size

    @property
    def pieces(self) -> int:
        """The number of pieces of text; 0 without text."""
        return 0 if self.text is None else self.text.pieces

    @property
    def code_ids(self) -> range:
        """The ids of codes."""
        return range(FIRST_CODE, self.first_piece)

    @property
    def piece_ids(self) -> range:
        """The ids of pieces of text, without the unknown piece."""
        return range(self.first_piece + UNKNOWN + 1, self.size)

    def ids(self, codes: Array) -> Array:
        """Codes (0 .. codebook_size - 1, any shape, a tensor or NumPy) to ids."""
        return codes + FIRST_CODE

    def codes(self, ids: Array) -> Array:
        """Ids to codes; special ids and pieces become `NO_CODE` (-1)."""
        is_code = (ids >= FIRST_CODE) & (ids < self.first_piece)
        return (ids - FIRST_CODE - NO_CODE) * is_code + NO_CODE

    def check(self, what: str, fingerprint: str, codebook_size: int) -> None:
        """Check that a dataset or a codec has the codes of this vocabulary.

        Args:
            what: the dataset or codec, as the user named it.
            fingerprint: its codec fingerprint (hex sha256).
            codebook_size: its number of codes.

        Raises:
            InputError: its fingerprint or its codebook size differs.
        """
        if fingerprint == self.codec_fingerprint and codebook_size == self.codebook_size:
            return
        raise InputError(
            f"{what} has codes of another codec (fingerprint {fingerprint[:12]}, {codebook_size} codes) than the "
            f"language model, which was trained on codes of codec '{self.codec_name}' (fingerprint "
            f"{self.codec_fingerprint[:12]}, {self.codebook_size} codes); use codec '{self.codec_name}', or a model "
            "trained on codes of this one"
        )

    def check_text(self, lm: str) -> TextModel:
        """The text model. Raises InputError if the language model, named `lm` by the user, has none."""
        if self.text is not None:
            return self.text
        raise InputError(
            f"language model '{lm}' has no text: it was trained on speech alone. To train one with text: "
            "`focalstream train-text --data DATASET --out text.model`, then `focalstream train-lm ... --text-model "
            "text.model --text-to-speech-weight 1 --speech-to-text-weight 1`"
        )

    def save(self, path: Path) -> None:
        """Write the text model and then the vocabulary as JSON; each file is replaced atomically."""
        values: dict[str, Any] = {key: getattr(self, key) for key in KINDS}
        if self.text is not None:
            self.text.save(path.with_name(TEXT_MODEL))
            values["text"] = {"pieces": self.text.pieces, "fingerprint": self.text.fingerprint}
        write_atomically(path, (json.dumps(values, indent=2) + "\n").encode())

    @classmethod
    def load(cls, path: Path) -> Vocabulary:
        """Read what `save` wrote.

        Raises:
            InputError: the file is missing or not a vocabulary, or the text model does not belong to it.
        """
        try:
            values: Any = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"{path}: cannot be read as a vocabulary ({error})") from error
        if (
            not isinstance(values, dict)
            or values.keys() - {"text"} != KINDS.keys()
            or not all(isinstance(values[key], kind) for key, kind in KINDS.items())
        ):
            raise InputError(
                f"{path}: is not a vocabulary; expected exactly the keys {', '.join(KINDS)}, and optionally text"
            )
        if "text" not in values:
            return cls(**values)
        if not path.with_name(TEXT_MODEL).exists():
            raise InputError(
                f"{path}: belongs to a model with text, but {TEXT_MODEL} is missing; copy it from the original folder"
            )
        text = TextModel.load(path.with_name(TEXT_MODEL))
        if values["text"] != {"pieces": text.pieces, "fingerprint": text.fingerprint}:
            raise InputError(
                f"{path.with_name(TEXT_MODEL)}: is not the text model of {path}, which says {values['text']}; copy "
                "both files again from the folder of the language model"
            )
        return cls(**{**values, "text": text})
