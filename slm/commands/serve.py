"""`focalstream serve`: live speech continuation for many clients, with a page to try it."""

from __future__ import annotations

import argparse
import ipaddress
import os
import re
import sys
from pathlib import Path

from slm.commands.lm_options import LM_HELP, add_lm_engine_arguments, check_lm_engine
from tokenizer.commands.codec_options import add_codec_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_codec_arguments(parser)
    parser.set_defaults(engine=None)
    parser.add_argument("--lm", default="small", help=LM_HELP)
    add_lm_engine_arguments(parser, "the codec's")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; 0.0.0.0: all addresses of this machine"
    )
    parser.add_argument("--port", type=int, default=8000, help="port; 0: any free port, which is printed")
    parser.add_argument(
        "--slots", type=int, default=8, metavar="N", help="clients served at once; further clients wait in a queue"
    )
    parser.add_argument("--queue", type=int, default=16, metavar="N", help="clients that may wait for a slot")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of the model's process")
    parser.add_argument(
        "--auth-token",
        metavar="TOKEN",
        help="token required of clients; safer in the variable FOCALSTREAM_AUTH_TOKEN, because `ps` shows options",
    )
    parser.add_argument(
        "--origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="origin of another page that may connect, such as https://example.org; repeatable; *: all",
    )
    parser.add_argument("--certfile", metavar="FILE", help="TLS certificate (PEM), for https; with --keyfile")
    parser.add_argument("--keyfile", metavar="FILE", help="private key of the certificate (PEM)")
    parser.add_argument(
        "--root-path", default="", metavar="PATH", help="path below which a proxy shows the server, such as /speech"
    )
    parser.add_argument(
        "--local",
        metavar="FOLDER",
        type=Path,
        help="folder of `focalstream export-web`, to serve at /local the page that runs in the visitor's browser",
    )
    parser.add_argument(
        "--lead-ms", type=float, default=240.0, help="how far generation is ahead of playback, in milliseconds"
    )
    parser.add_argument("--prompt-seconds", type=float, default=30.0, help="longest prompt, in seconds")
    parser.add_argument("--speech-seconds", type=float, default=120.0, help="longest continuation, in seconds")
    parser.add_argument("--session-seconds", type=float, default=3600.0, help="longest connection, in seconds")
    parser.add_argument("--connections", type=int, default=256, help="most WebSockets at once")
    parser.add_argument("--drain-seconds", type=float, default=10.0, help="time for streams to end after SIGTERM")


def run(args: argparse.Namespace) -> int:
    """Load, listen, serve until SIGTERM or Ctrl-C."""
    from tokenizer.errors import InputError

    check_request(args)
    try:
        from slm.serve.server import bound_socket, check_certificate, serve
        from slm.serve.service import Service
    except ImportError as error:
        raise InputError(f'the package {error.name} is not installed; pip install "focalstream[serve]"') from None
    from slm.serve.model_process import ModelProcess, ModelSettings
    from slm.serve.protocol import Limits

    engine = args.engine or fastest_engine(args)
    lm_engine = args.lm_engine or engine
    check_lm_engine(args, engine, lm_engine)
    certificate = check_certificate(args.certfile, args.keyfile)
    origins = tuple(normal_origin(origin) for origin in args.origin)
    token = args.auth_token or os.environ.get("FOCALSTREAM_AUTH_TOKEN") or None
    listener = bound_socket(args.host, args.port)
    model = ModelProcess(
        ModelSettings(
            codec=args.codec,
            engine=engine,
            precision=args.precision,
            device=args.device,
            lm=args.lm,
            slots=args.slots,
            queue=args.queue,
            lead_seconds=args.lead_ms / 1000,
            threads=args.threads,
            lm_engine=lm_engine,
            lm_precision=args.lm_precision,
        )
    )
    limits = Limits(
        prompt_seconds=args.prompt_seconds,
        speech_seconds=args.speech_seconds,
        session_seconds=args.session_seconds,
        connections=args.connections,
    )
    service = Service(model, limits, token, origins, local=args.local)

    def say_where() -> None:
        host, port = listener.getsockname()[:2]
        models = model.models
        print(
            f"codec {models.codec} ({models.engine} {models.precision}), language model {models.lm} "
            f"({models.lm_parameters / 1e6:.1f} M), {models.slots} slots"
        )
        print(address_for_people(host, port, args.root_path, certificate is not None), flush=True)
        for warning in warnings(host, token, certificate is not None):
            print(f"focalstream serve: {warning}", file=sys.stderr, flush=True)

    return serve(service, listener, args.drain_seconds, say_where, args.root_path, certificate)


def address_for_people(host: str, port: int, root_path: str, tls: bool) -> str:
    """A URL that works in a browser on this machine; all addresses are also this machine's loopback."""
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"{'https' if tls else 'http'}://{shown}:{port}{root_path.rstrip('/')}/"


def warnings(host: str, token: str | None, tls: bool) -> list[str]:
    """What an operator should know of a server that listens on this address."""
    if ipaddress.ip_address(host).is_loopback:
        return []
    said = []
    if token is None:
        said.append(f"everybody who reaches {host} can use this server; set FOCALSTREAM_AUTH_TOKEN to require a token")
    if not tls:
        said.append(
            "other machines reach it by http, where browsers allow no microphone and others can listen; give "
            "--certfile and --keyfile, or put a TLS proxy in front"
        )
    return said


def normal_origin(origin: str) -> str:
    """An origin as browsers send it: without a path and a final slash. Raises InputError for anything else."""
    from urllib.parse import urlsplit

    from tokenizer.errors import InputError

    if origin == "*":
        return origin
    try:
        parts = urlsplit(origin)
        if parts.scheme in ("http", "https") and parts.hostname and parts.path in ("", "/") and not parts.query:
            standard = {"http": 80, "https": 443}[parts.scheme]
            name = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
            return f"{parts.scheme}://{name}{'' if parts.port in (None, standard) else f':{parts.port}'}"
    except ValueError:
        pass
    raise InputError(
        f"--origin {origin}: expected an origin such as https://example.org or http://localhost:3000, or *"
    )


def check_request(args: argparse.Namespace) -> None:
    """Raise InputError for numbers out of range and a folder that is none, before loading anything."""
    from tokenizer.errors import InputError

    least = {"slots": 1, "queue": 0, "threads": 1, "connections": 1, "port": 0, "drain_seconds": 0}
    if args.root_path and not re.fullmatch(r"(/[\w.~-]+)+/?", args.root_path):
        raise InputError(f"--root-path {args.root_path}: expected a path such as /speech")
    if args.local is not None and not (args.local / "focalstream.json").is_file():
        raise InputError(f"--local {args.local}: is no folder of `focalstream export-web`; make one with that command")
    if args.port > 65535:
        raise InputError(f"--port {args.port}: expected 0 to 65535")
    positive = ("lead_ms", "prompt_seconds", "speech_seconds", "session_seconds")
    for name, low in least.items():
        if not low <= getattr(args, name) < 1e9:
            raise InputError(f"--{name.replace('_', '-')} {getattr(args, name)}: expected at least {low}")
    for name in positive:
        if not 0.08 <= getattr(args, name) < 1e9:
            raise InputError(f"--{name.replace('_', '-')} {getattr(args, name)}: expected at least 0.08, and finite")


def fastest_engine(args: argparse.Namespace) -> str:
    """ONNX Runtime if it is installed and supports the options, else PyTorch."""
    from importlib.util import find_spec

    able = args.device == "cpu" and args.precision != "bf16" and find_spec("onnxruntime") and find_spec("onnx")
    return "onnx" if able else "torch"
