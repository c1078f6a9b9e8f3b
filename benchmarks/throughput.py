"""How much of the codec's own speed a bulk run keeps: `focalstream tokenize` beside the bare codec, in one run.

    python benchmarks/throughput.py --source ../shared/speech/train.jsonl.gz --hours 0.5 --rounds 5
    python benchmarks/throughput.py --source ../shared/speech/test.jsonl.gz --as wav,flac,opus,mp3,m4a --hours 0.1

"Bare" is `codec.encode` over the same batches, in one thread, of audio that lies decoded and resampled in memory;
"pipeline" reads, decodes, resamples, encodes, checks and writes shards. They alternate, in one process and in two, and
each ratio is of two runs that follow one another. Importing, loading the codec and planning are not in the rates: a
pipeline's clock runs from its first batch to its last shard (`tokenize --log`); what came before is told as start-up.

Where every core is busy with the codec, reading takes time from it: the bound is the codec's share of the processor
time of both, measured here in one thread. Prints a Markdown table.

`--as` writes the audio in those formats first, and compares them by processor time in this one process: in each round
and for each format the bare codec, reading, and the pipeline.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pipelines.bulk.executors.base import Executor
    from tokenizer import Codec

Batch = tuple[np.ndarray, np.ndarray]
"""float32 [B, S] and the samples of each row that count, int64 [B]."""
SHARD_HOURS = 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, help="what `focalstream tokenize` takes")
    parser.add_argument("--hours", type=float, default=0.5, help="of audio, from the beginning")
    parser.add_argument("--codec", default="small")
    parser.add_argument(
        "--rounds", type=int, default=5, help="0: processor time alone, which other work hardly changes"
    )
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--as", dest="formats", metavar="F,F", help="of wav, flac, vorbis, opus, mp3, m4a")
    args = parser.parse_args()
    if args.formats:
        compare_formats(args, args.formats.split(","))
        return
    from pipelines.bulk.executors.inline import Inline
    from pipelines.bulk.executors.local import Local

    with tempfile.TemporaryDirectory() as folder:
        manifest, seconds = write_part(args.source, args.hours, Path(folder))
        next(batches(manifest))  # imports what reads
        began = time.process_time()
        held = list(batches(manifest))
        reading = time.process_time() - began
        np.savez(Path(folder, "audio.npz"), **flat(held))
        del held
        codec_time = bare(Path(folder, "audio.npz"), args.codec, 1)[1]
        whole_time = pipeline_processor_time(manifest, args.codec, Path(folder, "once"))
        executors = {
            "in one process": (Inline(), 1),
            f"in {args.workers} processes": (Local(args.workers), args.workers),
        }
        rates: dict[str, list[tuple[float, float]]] = {name: [] for name in executors}
        starts: dict[str, list[float]] = {name: [] for name in executors}
        for number in range(args.rounds):
            for name, (executor, processes) in executors.items():
                elapsed = bare(Path(folder, "audio.npz"), args.codec, processes)[0]
                out = Path(folder, f"{type(executor).__name__.lower()}-{number}")
                rate, start = pipeline(manifest, out, args.codec, executor)
                rates[name].append((seconds / elapsed, rate))
                starts[name].append(start)
                print(f"{name}: bare {seconds / elapsed:.1f} x, pipeline {rate:.1f} x real time", flush=True)
    if args.rounds:
        print_table(args, seconds, rates, starts)
    print(
        f"\nprocessor time: codec {codec_time:.2f} s, reading, decoding and resampling {reading:.2f} s; with all cores "
        f"busy no pipeline can keep more than {codec_time / (codec_time + reading):.3f}. The whole pipeline, in one "
        f"process: {whole_time:.2f} s, which keeps {codec_time / whole_time:.3f}"
    )


def compare_formats(args: argparse.Namespace, kinds: list[str]) -> None:
    """Processor time of the codec, of reading and of the pipeline, by format; medians over the rounds."""
    import torch
    from sound_formats import write_as

    from pipelines.bulk.encoding import fixed_cpu_threads
    from tokenizer import Codec

    codec = Codec.from_pretrained(args.codec)
    taken: dict[str, list[tuple[float, float, float]]] = {kind: [] for kind in kinds}
    with tempfile.TemporaryDirectory() as folder:
        manifest, seconds = write_part(args.source, args.hours, Path(folder))
        manifests = {kind: write_as(kind, manifest, Path(folder, kind)) for kind in kinds}
        held = {
            kind: [(torch.from_numpy(wave), torch.from_numpy(lengths)) for wave, lengths in batches(manifests[kind])]
            for kind in kinds
        }
        for number in range(max(1, args.rounds)):
            for kind in kinds:
                with fixed_cpu_threads():
                    encode(codec, held[kind][:1])
                    began = time.process_time()
                    encode(codec, held[kind])
                    codec_time = time.process_time() - began
                began = time.process_time()
                for _ in batches(manifests[kind]):
                    pass
                reading = time.process_time() - began
                whole = pipeline_processor_time(manifests[kind], args.codec, Path(folder, f"{kind}-{number}"))
                taken[kind].append((codec_time, reading, whole))
                print(f"{kind}: codec {codec_time:.2f} s, reading {reading:.2f} s, pipeline {whole:.2f} s", flush=True)
    print(f"\n{args.codec}, {seconds / 3600:.2f} h, {max(1, args.rounds)} rounds, processor time\n")
    print("| format | codec | reading, decoding, resampling | whole pipeline | share of the codec | of all rounds |")
    print("|---|---|---|---|---|---|")
    for kind, rounds in taken.items():
        codec_time, reading, whole = (statistics.median(side) for side in zip(*rounds, strict=True))
        shares = sorted(bare_time / pipe for bare_time, _, pipe in rounds)
        print(
            f"| {kind} | {codec_time:.2f} s | {reading:.2f} s | {whole:.2f} s | {statistics.median(shares):.3f} | "
            f"{shares[0]:.3f} to {shares[-1]:.3f} |"
        )


def print_table(
    args: argparse.Namespace,
    seconds: float,
    rates: dict[str, list[tuple[float, float]]],
    starts: dict[str, list[float]],
) -> None:
    print(f"\n{args.codec}, {seconds / 3600:.2f} h, {args.rounds} rounds\n")
    print(
        "| | bare codec, x real time | pipeline | ratio, median | of all rounds | start-up, s |\n"
        "|---|---|---|---|---|---|"
    )
    for name, pairs in rates.items():
        ratios = sorted(pipe / bare for bare, pipe in pairs)
        medians = [statistics.median(side) for side in zip(*pairs, strict=True)]
        print(
            f"| {name} | {medians[0]:.1f} | {medians[1]:.1f} | {statistics.median(ratios):.3f} | "
            f"{ratios[0]:.3f} to {ratios[-1]:.3f} | {statistics.median(starts[name]):.1f} |"
        )


def write_part(source: str, hours: float, folder: Path) -> tuple[Path, float]:
    """A manifest of the first `hours` of a source, and its seconds."""
    from pipelines.sources.cuts import duration
    from pipelines.sources.manifests import find_inputs, read_cuts

    seconds, lines = 0.0, []
    for item in read_cuts(find_inputs(source)):
        lines.append(json.dumps(item.cut) + "\n")
        seconds += duration(item.cut)
        if seconds >= 3600 * hours:
            break
    manifest = folder / "cuts.jsonl"
    manifest.write_text("".join(lines))
    return manifest, seconds


def batches(manifest: Path) -> Iterator[Batch]:
    """Those that a run gives its codec, shard by shard."""
    from pipelines.bulk.encoding import LONG_SECONDS, Encoding
    from pipelines.bulk.feed.batches import lay_out
    from pipelines.bulk.plan import Sharding
    from pipelines.sources.audio import expected_samples, read_wave
    from pipelines.sources.cuts import PlannedCut
    from pipelines.sources.manifests import read_cuts

    rate, sharding = 16000, Sharding(hours=SHARD_HOURS)
    shard: list[PlannedCut] = []
    cuts = [PlannedCut.of(item, "") for item in read_cuts([str(manifest)])]
    for number, cut in enumerate(cuts, 1):
        shard.append(cut)
        if number < len(cuts) and not sharding.is_full(len(shard), sum(cut.seconds for cut in shard)):
            continue
        samples = [expected_samples(cut.cut, cut.seconds, rate) for cut in shard]
        laid_out, long_cuts = lay_out(samples, Encoding.batch_seconds * rate, LONG_SECONDS * rate)
        assert not long_cuts, "this benchmark is about cuts in batches; give it shorter ones"
        for rows in laid_out:
            padded = np.zeros((len(rows), max(samples[i] for i in rows)), np.float32)
            for row, i in enumerate(rows):
                padded[row, : samples[i]] = read_wave(shard[i], rate)
            yield padded, np.array([samples[i] for i in rows])
        shard = []


def pipeline_processor_time(manifest: Path, name: str, out: Path) -> float:
    """Seconds of processor time in which one process reads, encodes and writes everything."""
    from pipelines.bulk.encoding import Encoding, encode_cuts, fixed_cpu_threads
    from pipelines.format.layout import Layout
    from pipelines.format.shards import make_shard, store_shard
    from pipelines.sources.cuts import PlannedCut
    from pipelines.sources.manifests import read_cuts
    from tokenizer import Codec

    out.mkdir(parents=True)
    codec = Codec.from_pretrained(name)
    cuts = [PlannedCut.of(item, f"cut-{i}") for i, item in enumerate(read_cuts([str(manifest)]))]
    with fixed_cpu_threads():
        encode_cuts(cuts[:1], codec, Encoding())
        began = time.process_time()
        layout, outcomes = Layout(out), encode_cuts(cuts, codec, Encoding())
        store_shard(layout, make_shard(layout, 0, cuts, outcomes, codec.token_rate))
        return time.process_time() - began


def flat(pairs: list[Batch]) -> dict[str, np.ndarray]:
    return {f"{kind}{i}": array for i, pair in enumerate(pairs) for kind, array in zip("wl", pair, strict=True)}


def bare(audio: Path, codec: str, workers: int) -> tuple[float, float]:
    """Seconds that `workers` processes take for all batches, dealt out by length; the processor time of the first."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(workers)
    with context.Pool(workers, initializer=wait_here, initargs=(barrier,)) as pool:
        spans = pool.starmap(encode_all, [(audio, codec, i, workers) for i in range(workers)], chunksize=1)
    return max(end for _, end, _ in spans) - min(begin for begin, _, _ in spans), spans[0][2]


def wait_here(barrier: Barrier) -> None:
    global ready
    ready = barrier


def encode_all(audio: Path, name: str, first: int, step: int) -> tuple[float, float, float]:
    """When the work began and ended, and its processor time."""
    import torch

    from tokenizer import Codec

    torch.set_num_threads(1)
    codec = Codec.from_pretrained(name)
    with np.load(audio) as arrays:
        order = sorted(range(len(arrays.files) // 2), key=lambda i: -arrays[f"w{i}"].size)
        mine = [(torch.from_numpy(arrays[f"w{i}"]), torch.from_numpy(arrays[f"l{i}"])) for i in order[first::step]]
    encode(codec, mine[:1])
    ready.wait()
    began, used = time.time(), time.process_time()
    encode(codec, mine)
    return began, time.time(), time.process_time() - used


def encode(codec: Codec, batches: list) -> None:
    for wave, lengths in batches:
        codec.encode(wave, lengths)


def pipeline(manifest: Path, out: Path, codec: str, executor: Executor) -> tuple[float, float]:
    """x real time from the first batch on, and the seconds before it."""
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=tokenize_all, args=(manifest, out, codec, executor))
    began = time.time()
    process.start()
    process.join()
    assert process.exitcode == 0
    events = [json.loads(line) for line in out.with_suffix(".log").read_text().splitlines()]
    first = next(event for event in events if event["event"] == "first audio")
    last = events[-1]
    return (last["seconds"] - first["seconds"]) / (last["time"] - first["time"]), first["time"] - began


def tokenize_all(manifest: Path, out: Path, codec: str, executor: Executor) -> None:
    from pipelines.bulk.plan import Sharding
    from pipelines.bulk.run import Job, tokenize

    sharding = Sharding(hours=SHARD_HOURS)
    tokenize(Job(str(manifest), out, codec, sharding, executor=executor, log=out.with_suffix(".log")))


if __name__ == "__main__":
    main()
