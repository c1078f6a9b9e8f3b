"""`focalstream demo`: the whole path on a small bundled speech set, with a page to listen to."""

from __future__ import annotations

import argparse
from pathlib import Path

from slm.commands.lm_options import LM_HELP
from tokenizer.commands.codec_options import CODEC_HELP


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("demo"),
        metavar="DIR",
        help="folder to write; an earlier demo in it is replaced",
    )
    parser.add_argument(
        "--data",
        metavar="DATA",
        help="your own speech: a Lhotse manifest, a folder of audio, or a quoted glob (default: the bundled speech)",
    )
    parser.add_argument("--codec", default="small", help=CODEC_HELP)
    parser.add_argument("--lm", default="small", help=f"the trained language model: {LM_HELP}")
    parser.add_argument(
        "--steps",
        type=int,
        metavar="N",
        help="optimizer steps of the short training, at most (default: those of the tiny config)",
    )
    parser.add_argument(
        "--train-seconds", type=float, default=60.0, metavar="S", help="time that the training takes, at most"
    )
    parser.add_argument(
        "--prompt-seconds", type=float, default=3.0, metavar="S", help="length of the prompt in seconds"
    )
    parser.add_argument(
        "--seconds", type=float, default=6.0, metavar="S", help="length of each continuation in seconds"
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed of training and sampling")


def run(args: argparse.Namespace) -> int:
    from slm.demo.run import DemoSettings, run_demo

    def say(step: str, line: str) -> None:
        print(f"{step:12}{line}", flush=True)

    run_demo(DemoSettings(**{name: getattr(args, name) for name in DemoSettings.__dataclass_fields__}), say)
    for path in sorted(args.out.glob("continuation-*.wav")):
        say("listen", str(path))
    say("look", str(args.out / "index.html"))
    return 0
