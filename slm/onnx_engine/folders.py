"""Exported models for a process that does without PyTorch; another process finds or makes them.

Finding a model by name and exporting it both import PyTorch, which takes 200 MB. So a short-lived process does that; it
leaves two folders in the cache and says where they are.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from slm.onnx_engine.arrays import ArrayLanguageModel
from slm.vocabulary import Vocabulary
from tokenizer.errors import InputError
from tokenizer.onnx_engine.arrays import ArrayCodec


def load_arrays(
    codec: str, precision: str, lm: str, lm_precision: str, threads: int
) -> tuple[ArrayCodec, ArrayLanguageModel, Vocabulary]:
    """A codec, a language model and its vocabulary on ONNX Runtime, without PyTorch in this process.

    Args:
        codec, precision, lm, lm_precision: as for `exported_folders`.
        threads: of the CPU, for each of the two.

    Raises:
        InputError: as for `exported_folders`.
    """
    codec_folder, lm_folder = exported_folders(codec, precision, lm, lm_precision)
    return (
        ArrayCodec(codec_folder, precision, threads, codec),
        ArrayLanguageModel(lm_folder, lm_precision, threads),
        Vocabulary.load(lm_folder / "vocabulary.json"),
    )


def exported_folders(codec: str, precision: str, lm: str, lm_precision: str) -> tuple[Path, Path]:
    """The folders of a codec and a language model on ONNX Runtime, exported into the user's cache if need be.

    Args:
        codec: as for `Codec.from_pretrained` with the engine "onnx".
        precision: of the codec, "fp32" or "int8".
        lm: as for `slm.checkpoint.load_lm`.
        lm_precision: of the language model, likewise.

    Raises:
        InputError: for what loading or exporting them raises it.
    """
    command = [sys.executable, "-m", "slm.onnx_engine.folders", codec, precision, lm, lm_precision]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        raise InputError(
            f"codec {codec} and language model {lm}: cannot be exported; the message of the process that tried is above"
        ) from None
    if "error" in answer:
        raise InputError(answer["error"])
    return Path(answer["codec"]), Path(answer["lm"])


def main(codec: str, precision: str, lm: str, lm_precision: str) -> None:
    """Print where the models are as one line of JSON, or why they are not."""
    from slm.checkpoint import locate
    from slm.onnx_engine.export import cached as cached_lm
    from tokenizer.onnx_engine.cache import cached as cached_codec
    from tokenizer.onnx_engine.manifest import MANIFEST

    try:
        folder = Path(codec) if (Path(codec) / MANIFEST).is_file() else cached_codec(codec, precision)
        answer = {"codec": str(folder), "lm": str(cached_lm(locate(lm), lm_precision))}
    except InputError as error:
        answer = {"error": str(error)}
    print(json.dumps(answer))


if __name__ == "__main__":
    main(*sys.argv[1:])
