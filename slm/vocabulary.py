"""The language model's token ids: special tokens first, then the codec's codes. All conversions are here.

    id      0      1      2      3 .. 15                                  16 .. 16 + codebook_size - 1
            <pad>  <bos>  <eos>  kept free for the control tokens of       codes 0 .. codebook_size - 1
                                 further tasks

A vocabulary also names the codec its codes come from. Codes of another codec mean nothing to the model, so every
meeting of a model with a dataset or a codec goes through `check`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from tokenizer.atomic import write_atomically
from tokenizer.errors import InputError

PAD, BOS, EOS = 0, 1, 2
FIRST_CODE = 16
NO_CODE = -1  # the codec's "no token"


@dataclass(frozen=True)
class Vocabulary:
    """Ids of one model, bound to one codec.

    Raises:
        InputError: sizes or rates that no codec has.
    """

    codebook_size: int
    token_rate: float  # tokens per second of speech
    codec_name: str  # what the codec was loaded by, for messages; the fingerprint is what counts
    codec_fingerprint: str

    def __post_init__(self) -> None:
        if self.codebook_size < 2:
            raise InputError(f"vocabulary: codebook_size is {self.codebook_size}; expected at least 2")
        if not self.token_rate > 0:
            raise InputError(f"vocabulary: token_rate is {self.token_rate}; expected tokens per second above 0")

    @property
    def size(self) -> int:
        """The number of ids."""
        return FIRST_CODE + self.codebook_size

    def ids(self, codes: Tensor) -> Tensor:
        """Codes (0 .. codebook_size - 1, any shape) to ids."""
        return codes + FIRST_CODE

    def codes(self, ids: Tensor) -> Tensor:
        """Ids to codes; special ids become `NO_CODE` (-1)."""
        return (ids - FIRST_CODE).clamp(min=NO_CODE)

    def check(self, what: str, fingerprint: str, codebook_size: int) -> None:
        """Refuse a dataset or a codec with codes that are not this vocabulary's.

        Args:
            what: the dataset or codec, as the user named it.
            fingerprint: its codec fingerprint (hex sha256).
            codebook_size: its number of codes.

        Raises:
            InputError: another fingerprint or another codebook size.
        """
        if fingerprint == self.codec_fingerprint and codebook_size == self.codebook_size:
            return
        raise InputError(
            f"{what} has codes of another codec (fingerprint {fingerprint[:12]}, {codebook_size} codes) than the "
            f"language model, which was trained on codes of codec '{self.codec_name}' (fingerprint "
            f"{self.codec_fingerprint[:12]}, {self.codebook_size} codes); use codec '{self.codec_name}', or a model "
            "trained on codes of this one"
        )

    def save(self, path: Path) -> None:
        """Write as JSON; the file appears by rename."""
        write_atomically(path, (json.dumps(asdict(self), indent=2) + "\n").encode())

    @classmethod
    def load(cls, path: Path) -> Vocabulary:
        """Read what `save` wrote.

        Raises:
            InputError: a missing file, or one that is not a vocabulary.
        """
        try:
            values: Any = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: cannot be read as a vocabulary ({error})") from error
        kinds: dict[str, type | tuple[type, ...]] = {
            "codebook_size": int,
            "token_rate": (int, float),
            "codec_name": str,
            "codec_fingerprint": str,
        }
        assert kinds.keys() == {field.name for field in fields(cls)}
        if (
            not isinstance(values, dict)
            or values.keys() != kinds.keys()
            or not all(isinstance(values[key], kind) for key, kind in kinds.items())
        ):
            raise InputError(f"{path}: is not a vocabulary; expected exactly the keys {', '.join(kinds)}")
        return cls(**values)
