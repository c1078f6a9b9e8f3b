"""`focalstream segment`: long recordings to a manifest of cuts with speech, for `focalstream tokenize`."""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

from pipelines.segmentation.segments import Segmentation
from tokenizer.errors import InputError, counted


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from pipelines.commands.corpus_options import SOURCE_HELP, add_access_arguments

    defaults = Segmentation()
    parser.add_argument("source", metavar="IN", help=SOURCE_HELP)
    parser.add_argument("output", metavar="CUTS.jsonl.gz", help="Lhotse cuts, .jsonl or .jsonl.gz")
    parser.add_argument(
        "--min-seconds", type=float, default=defaults.min_seconds, metavar="S", help="drop shorter segments, and count"
    )
    parser.add_argument(
        "--max-seconds", type=float, default=defaults.max_seconds, metavar="S", help="divide longer ones at a pause"
    )
    parser.add_argument(
        "--merge-pauses", type=float, default=defaults.merge_pauses, metavar="S", help="bridge pauses up to this"
    )
    parser.add_argument(
        "--margin", type=float, default=defaults.margin, metavar="S", help="keep so much before and after speech"
    )
    parser.add_argument(
        "--threshold", type=float, default=defaults.threshold, metavar="P", help="likelihood at which speech begins"
    )
    parser.add_argument(
        "--measure", action="store_true", help="write level_dbfs, clipped and bandwidth_hz into the cuts (custom)"
    )
    parser.add_argument("--min-level", type=float, metavar="DB", help="drop segments below this level (dB full scale)")
    parser.add_argument(
        "--max-clipped", type=float, metavar="X", help="drop segments with more than this share of samples clipped"
    )
    parser.add_argument("--min-bandwidth", type=float, metavar="HZ", help="drop segments with less bandwidth")
    parser.add_argument(
        "--min-dnsmos",
        type=float,
        metavar="M",
        help="drop segments whose predicted opinion score (DNSMOS, 1 to 5) is below this, and write it as dnsmos; "
        "needs focalstream[judges]",
    )
    add_access_arguments(parser)
    parser.add_argument("--dry-run", action="store_true", help="print the statistics only, write nothing")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    from pipelines.segmentation.measures import Limits
    from pipelines.segmentation.recordings import Statistics, segment_recordings
    from pipelines.sources.access import Access
    from pipelines.sources.manifests import MANIFEST_SUFFIXES, find_inputs, places_of, read_cuts
    from tokenizer.audio import check_output

    if not args.output.endswith(MANIFEST_SUFFIXES):
        raise InputError(f"{args.output}: expected a name that ends in {' or '.join(MANIFEST_SUFFIXES)}")
    wanted = Segmentation(args.min_seconds, args.max_seconds, args.merge_pauses, args.margin, args.threshold)
    limits = Limits(args.min_level, args.max_clipped, args.min_bandwidth, args.min_dnsmos)
    access = Access(args.allow_commands, tuple(args.allow_host))
    inputs, statistics = find_inputs(args.source), Statistics()
    check_output(args.output, *(place for place in places_of(inputs) if "://" not in place))
    began = time.perf_counter()
    cuts = segment_recordings(read_cuts(inputs, access), wanted, limits, args.measure, statistics)
    if args.dry_run:
        for _ in cuts:
            pass
    else:
        write_manifest(args.output, cuts)
    if statistics.recordings == statistics.failed:
        raise InputError(f"{args.source}: none of {counted(statistics.recordings, 'recording')} in it can be read")
    elapsed = time.perf_counter() - began
    speed = {"elapsed_seconds": round(elapsed, 2), "times_real_time": round(statistics.seconds / elapsed, 1)}
    result = {**statistics.to_dict(), **speed}
    print(json.dumps(result) if args.json else "\n".join(_lines(args, result)))
    return 0


def write_manifest(path: str, cuts: Any) -> None:
    """Cuts as JSON lines, written as they come. The file appears whole, by rename, or not at all."""
    import gzip
    import os
    import tempfile

    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        raise InputError(f"{path}: its folder does not exist")
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=".segment-")
    try:
        with os.fdopen(handle, "wb") as raw:
            packed = gzip.GzipFile("", "wb", 6, raw, mtime=0) if path.endswith(".gz") else raw
            for cut in cuts:
                packed.write(json.dumps(cut).encode("ascii") + b"\n")
            if packed is not raw:
                packed.close()
            raw.flush()
            os.fsync(raw.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _umask() -> int:
    import os

    mask = os.umask(0)
    os.umask(mask)
    return mask


def _lines(args: argparse.Namespace, result: dict[str, Any]) -> list[str]:
    lengths = result["segment_seconds"]
    target = "dry run" if args.dry_run else args.output
    lines = [
        f"{target}: {counted(result['segments'], 'segment')}, {result['kept_hours']:.2f} of {result['hours']:.2f} h "
        f"({100 * result['kept_share']:.0f} %) of {counted(result['recordings'], 'recording')}"
    ]
    if lengths:
        lines.append("lengths  {shortest:.2f} to {longest:.2f} s, median {median:.2f} s".format(**lengths))
    dropped = [f"{result['too_short']:,} shorter than {args.min_seconds:g} s ({result['too_short_hours']:.2f} h)"]
    dropped += [f"{number:,} by {name}" for name, number in result["dropped_by_limits"].items()]
    lines.append(f"dropped  {', '.join(dropped)}")
    if result["failed"]:
        lines.append(f"failed   {counted(result['failed'], 'recording')} that cannot be read (see above)")
    lines.append(f"took     {result['elapsed_seconds']:.0f} s, {result['times_real_time']:.0f}x real time")
    return lines
