"""`focalstream doctor`: what was found on this machine, what is chosen and why; what to paste into a bug report."""

from __future__ import annotations

import argparse
import json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seconds", type=float, default=1.0, help="for which each model is timed; 0: none is")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Look, choose, measure, print."""
    from slm.doctor import chosen, found, speeds, versions
    from tokenizer.errors import InputError

    if not 0 <= args.seconds <= 60:
        raise InputError(f"--seconds {args.seconds}: expected 0 to 60")
    machine, choices, packages = found(), chosen(), versions()
    measured = speeds(args.seconds) if args.seconds else {}
    if args.json:
        stated = {name: choice._asdict() for name, choice in choices.items()}
        report = {"found": machine, "chosen": stated, "versions": packages, "times_real_time": measured}
        print(json.dumps(report, indent=2))
        return 0
    memory = machine["memory_bytes"]
    print(f"{machine['processor']}: {' '.join(machine['instructions']) or 'instructions unknown'}")
    print(
        f"{machine['cores']} cores, {'unknown' if memory is None else f'{memory / 2**30:.1f} GiB'} of memory, ", end=""
    )
    print(f"GPUs: {', '.join(machine['gpus']) or 'none'}")
    print(f"{machine['system']}, Python {machine['python']}, PyTorch on {machine['pytorch_instructions']}\n")
    for name, choice in choices.items():
        print(f"{name}: {choice.value} ({choice.reason})")
    print("\n" + ", ".join(f"{name} {version or 'not installed'}" for name, version in packages.items()))
    if measured:
        print("\nshipped models, one stream on one thread, times real time:")
        for name, speed in measured.items():
            print(f"  {name:28} {speed:6.1f}")
    return 0
