"""`focalstream export-lm OUT_DIR --lm LM`: a language model for transformers, vLLM, llama.cpp and similar programs."""

from __future__ import annotations

import argparse
from pathlib import Path

from slm.commands.lm_options import LM_HELP
from tokenizer.hub import add_push_arguments, check_push, push_as_asked


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("old", nargs="?", metavar="LM", help=argparse.SUPPRESS)
    parser.add_argument("output", metavar="OUT_DIR", type=Path, help="new or empty folder to write")
    parser.add_argument("--lm", help=LM_HELP)
    parser.add_argument(
        "--dtype", default="float32", choices=("float32", "float16", "bfloat16"), help="of the stored weights"
    )
    parser.add_argument(
        "--gguf", action="store_true", help="write model.gguf too, the same model for llama.cpp (focalstream[gguf])"
    )
    add_push_arguments(parser, "the folder")


def run(args: argparse.Namespace) -> int:
    """Write the folder and report its size."""
    from slm.checkpoint import load_lm
    from slm.llama import export_lm
    from slm.publishing import LIBRARY, TAGS
    from tokenizer.commands.old_options import note
    from tokenizer.errors import InputError

    check_push(args)
    if (args.lm is None) == (args.old is None):
        raise InputError(f"export-lm {args.output}: expected one language model, as --lm LM")
    if args.old is not None:
        note("LM OUT_DIR is now OUT_DIR --lm LM; the next release drops the old form")
    lm = args.lm or args.old
    model, vocabulary = load_lm(lm)
    export_lm(model, vocabulary, args.output, args.dtype, args.gguf)
    size = sum(path.stat().st_size for path in args.output.iterdir())
    kind = f"LlamaForCausalLM, {args.dtype}, {vocabulary.size:,} ids"
    print(f"{args.output}: {kind}, {size / 1e6:.1f} MB; see its README.md")
    push_as_asked(args, args.output, TAGS, library=LIBRARY)
    return 0
