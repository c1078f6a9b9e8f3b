"""The `focalstream` command: imports the module of a subcommand, parses, runs, and prints bad input as one line.

A subcommand is a module with two functions:

    add_arguments(parser)     declares every option with its unit and default
    run(args) -> int          does the work and returns the exit status

Its help line is in the table below, so that listing the commands imports none of them.
"""

from __future__ import annotations

import argparse
import importlib
import io
import logging
import os
import sys

from tokenizer.errors import InputError, PrintableFormatter, TerminalText, printable

COMMANDS: dict[str, tuple[str, str]] = {
    # AUDIO <-> TOKENS
    "encode": ("tokenizer.commands.encode", "audio file or live pipe to tokens"),
    "decode": ("tokenizer.commands.decode", "tokens to an audio file or live pipe"),
    "roundtrip": ("tokenizer.commands.roundtrip", "encode and decode a file; print bitrate, speed and quality"),
    "convert": ("tokenizer.commands.convert", "voice conversion of a file or live pipe"),
    "export": ("tokenizer.commands.export", "export a codec as ONNX graphs that run without this package"),
    "push": ("slm.commands.push", "upload a codec, an exported model or a dataset to the Hugging Face Hub"),
    "train-codec": ("pipelines.commands.train_codec", "train a codec from a Lhotse manifest"),
    "eval-codec": ("pipelines.commands.eval_codec", "measure a codec on held-out speech"),
    # AUDIO -> SHARDS
    "segment": ("pipelines.commands.segment", "cut long recordings at their pauses, for tokenizing"),
    "plan": ("pipelines.commands.plan", "estimate shards, bytes, device-hours and cost of a corpus"),
    "tokenize": ("pipelines.commands.tokenize", "a manifest or a folder of audio to token shards"),
    "verify": ("pipelines.commands.verify", "read a tokenized dataset again and list all errors in it"),
    "repair": ("pipelines.commands.repair", "rewrite broken or missing shards of a tokenized dataset"),
    "report": (
        "pipelines.commands.report",
        "describe a tokenized dataset: figures, a page with plots and audio samples",
    ),
    "merge": ("pipelines.commands.merge", "merge tokenized datasets of one codec"),
    "split": ("pipelines.commands.split", "split a tokenized dataset into several"),
    "export-dataset": (
        "pipelines.commands.export_dataset",
        "export a tokenized dataset for Hugging Face datasets or Megatron",
    ),
    # TOKENS -> TOKENS -> AUDIO
    "train-text": ("slm.commands.train_text", "train a text model on the transcripts of token shards"),
    "train-lm": ("slm.commands.train_lm", "train a language model on token shards"),
    "eval-lm": ("slm.commands.eval_lm", "measure a language model on held-out tokens"),
    "sample-pairs": ("slm.commands.sample_pairs", "sample pairs of continuations for train-lm --preferences"),
    "export-lm": ("slm.commands.export_lm", "export a language model for transformers and vLLM"),
    "export-web": ("slm.commands.export_web", "export live continuation as a static folder that runs in a browser"),
    "continue": ("slm.commands.continue_speech", "continue a spoken prompt"),
    "serve": ("slm.commands.serve", "live speech continuation for many clients, with a page to try it"),
    "speak": ("slm.commands.speak", "text to speech with a language model trained with text"),
    "transcribe": ("slm.commands.transcribe", "speech to text with a language model trained with text"),
    "doctor": (
        "slm.commands.doctor",
        "show what this machine has, what is chosen on it, and how fast the models run",
    ),
    "demo": ("slm.commands.demo", "run the whole pipeline on a small bundled speech set and write a page"),
}

EXIT_BAD_INPUT = 2


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Adds the default of options that have one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.required or action.default is None or action.default is False:
            return action.help
        return super()._get_help_string(action)


def main(argv: list[str] | None = None) -> int:
    """Run one subcommand.

    Args:
        argv: arguments after the program's name; `sys.argv[1:]` when None.

    Returns:
        The exit status: 0 success, 1 a negative result (for example `verify` found damage), 2 bad input,
        130 interrupted.
    """
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(
        prog="focalstream",
        description="Speech to tokens to shards to a language model, and back to speech.",
        epilog="`focalstream COMMAND --help` lists every option of a command.",
    )
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    wanted = next((word for word in argv if not word.startswith("-")), None)
    modules = {}
    for name, (module_name, summary) in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=summary, description=summary, formatter_class=HelpFormatter)
        if name == wanted:  # only this command is imported, so that `focalstream --help` is instant
            modules[name] = importlib.import_module(module_name)
            modules[name].add_arguments(subparser)
    args = parser.parse_args(argv)
    if sys.stdin is None:  # closed by the shell; reads as empty
        sys.stdin = io.TextIOWrapper(io.BytesIO())
    if sys.stdout is None:
        print(f"focalstream {args.command}: standard output is closed; give it a file or a pipe", file=sys.stderr)
        return EXIT_BAD_INPUT
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files need not be UTF-8
        sys.stdout.reconfigure(errors="backslashreplace")
        if sys.stdout.isatty():
            plain = sys.stdout
            encoding = plain.encoding
            sys.stdout = TerminalText(plain.detach(), encoding, "backslashreplace", line_buffering=True)
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(PrintableFormatter())
    try:
        status = int(modules[args.command].run(args) or 0)
        sys.stdout.flush()  # here a full disk is one line; at exit it would be a traceback
        return status
    except (InputError, FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError) as error:
        if not getattr(error, "is_said", False):
            print(f"focalstream {args.command}: {describe(error)}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print(f"focalstream {args.command}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our pipe is gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a full disk or a failing device
        print(f"focalstream {args.command}: {describe(error)}", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BAD_INPUT


def describe(error: Exception) -> str:
    """The line that is printed for bad input."""
    if isinstance(error, OSError) and error.filename is not None:
        return printable(f"{error.filename}: {error.strerror}")
    if isinstance(error, OSError) and error.strerror:
        return f"reading or writing failed: {error.strerror}"
    return printable(str(error))


if __name__ == "__main__":
    sys.exit(main())
