"""How well a bulk run feeds a fast device: `tokenize` with a codec that only takes the time a device would.

    python benchmarks/simulated_device.py                                   # audio that costs nothing to read
    python benchmarks/simulated_device.py --kinds wav,opus --decoders 1,2   # decoded for real
    python benchmarks/simulated_device.py --kinds long --speeds 1000 --batches 600
    python benchmarks/simulated_device.py --layout                          # padding alone, by arithmetic

The stand-in has the rates of the shipped codec. Encoding sleeps for (rows x padded seconds) / speed, so the device is
busy and the processor is free, and gives zeros as tokens. Everything else is the real run: plan, reading, batches,
shards, receipts.

"Processor" is what the run itself took, decoders and their start included, in seconds for an hour of audio: 3,600 over
it is the most that one core could feed. Other work on the machine hardly changes it. The clock runs from the first
batch to the last receipt. "Share kept" is the speed of the run over the smaller of the device's speed and what as many
processes as there are decoders can read, measured in the same run ("reading"). Padding is the silence that was
encoded, over the audio. Kinds of audio:

    free        utterances of 1 to 30 s (log-normal, median 6 s) that are silence and cost nothing to read
    wav, flac, opus   the same lengths, decoded from files at 16 kHz
    long        recordings of 5 to 60 minutes, at no cost
    mixed       nine tenths of the hours in utterances, the rest in long recordings, at no cost
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

RATE = 16000
FILES = 100  # different ones; cuts beyond that read them again
FREE = ("free", "long", "mixed")


def free_audio(item: Any, samples: int, sample_rate: int) -> Iterator[np.ndarray]:
    """Stands in for `read_resampled`."""
    for begin in range(0, samples, 10 * sample_rate):
        yield SILENCE[: min(10 * sample_rate, samples - begin)]


SILENCE = np.zeros(10 * RATE, np.float32)
if os.environ.get("SIMULATED_AUDIO") in FREE:  # decoders, which import this file as their main module, see it too
    import pipelines.sources.audio

    pipelines.sources.audio.read_resampled = free_audio


class SimulatedCodec:
    """A codec whose device is busy for a while, and gives zeros.

    Attributes:
        padded: seconds of audio that it was given, silence included.
        calls: batches and windows.
        began, used: when the first one did, and the processor time of this process until then.
    """

    def __init__(self, codec: Any, speed: float) -> None:
        self._codec, self._speed = codec, speed
        self.padded, self.calls, self.began, self.used = 0.0, 0, 0.0, 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._codec, name)

    def encode(self, wave: Any, lengths: Any = None) -> Any:
        import torch

        self._work(wave)
        return torch.zeros(len(wave), self._codec.token_count(wave.shape[1]), dtype=torch.int64)

    def encode_step(self, chunk: Any, state: Any) -> tuple[Any, Any]:
        import torch

        self._work(chunk)
        tokens = chunk.shape[1] // self._codec.chunk_samples * self._codec.tokens_per_chunk
        return torch.zeros(len(chunk), tokens, dtype=torch.int64), state

    def _work(self, wave: Any) -> None:
        if not self.calls:
            self.began, self.used = time.perf_counter(), time.process_time()
        seconds = wave.shape[0] * wave.shape[1] / RATE
        self.padded, self.calls = self.padded + seconds, self.calls + 1
        time.sleep(seconds / self._speed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", default="free", help="of audio, with commas")
    parser.add_argument("--speeds", default="1000,5000", help="of the device, times real time")
    parser.add_argument("--batches", default="30,600,3840", help="--batch-seconds")
    parser.add_argument("--shards", default="1", help="--shard-hours")
    parser.add_argument("--decoders", default="0", help="processes that decode; 0: threads of the run itself")
    parser.add_argument("--hours", type=float, default=8.0, help="of audio at a speed of 1,000; more at a higher one")
    parser.add_argument("--layout", action="store_true", help="print the padding of batches, and run nothing")
    args = parser.parse_args()
    if args.layout:
        print_layout()
        return
    print(
        "| audio | shard, h | batch, s | decoders | device | reading | run | share kept | padding | calls | processor |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for kind in args.kinds.split(","):
            files = write_files(kind, Path(folder, kind))
            for decoders in numbers(args.decoders, int):
                reading = read_all(kind, files, max(decoders, 1)) if files else np.inf
                for speed in numbers(args.speeds, float):
                    manifest, seconds = write_manifest(kind, files, args.hours * speed / 1000, Path(folder))
                    for shard in numbers(args.shards, float):
                        for batch in numbers(args.batches, float):
                            found = in_process(kind, speed, manifest, Path(folder, "out"), shard, batch, decoders)
                            rate = seconds / found["elapsed"]
                            bound = min(speed, reading)
                            print(
                                f"| {kind} | {shard:g} | {batch:g} | {decoders} | {speed:,.0f} x | "
                                f"{'free' if np.isinf(reading) else f'{reading:,.0f} x'} | {rate:,.0f} x | "
                                f"{rate / bound:.3f} | {found['padded'] / seconds - 1:.1%} | {found['calls']} | "
                                f"{3600 * found['processor'] / seconds:.2f} s |",
                                flush=True,
                            )


def print_layout() -> None:
    """Padding in batches of one shard, and of the shards that share them by default, over 130 h of utterances."""
    from pipelines.bulk.batch_size import together
    from pipelines.bulk.feed.batches import lay_out
    from pipelines.bulk.plan import Sharding
    from pipelines.format.layout import Layout

    cuts = [round(seconds * RATE) for seconds in lengths("free", 130)]
    print("| shard, h | batch, s | padding in batches of one shard | shards that share batches | padding | ", end="")
    print("batches an hour of audio |\n|---|---|---|---|---|---|")
    for hours in (0.1, 1.0, 5.0):
        shards = divided(cuts, 3600 * hours * RATE)
        for batch in (30, 120, 600, 960, 3840):
            number = together(Layout(Path("nowhere")), batch, "cuda", Sharding(hours=hours))["batch_shards"]
            found = []
            for group in (1, number):
                joined = [list(itertools.chain(*shards[i : i + group])) for i in range(0, len(shards), group)]
                padded, batches = 0, 0
                for cut in joined:
                    for rows in lay_out(cut, batch * RATE, 60 * RATE)[0]:
                        padded, batches = padded + len(rows) * max(cut[i] for i in rows), batches + 1
                found.append(padded / sum(cuts) - 1)
            print(
                f"| {hours:g} | {batch:,} | {found[0]:.1%} | {number} | {found[1]:.1%} | "
                f"{batches / (sum(cuts) / RATE / 3600):.1f} |"
            )


def divided(cuts: list[int], most: float) -> list[list[int]]:
    """Cuts in shards that end once they hold `most` samples."""
    shards: list[list[int]] = [[]]
    for samples in cuts:
        if sum(shards[-1]) >= most:
            shards.append([])
        shards[-1].append(samples)
    return shards


def numbers(text: str, kind: Any) -> list[Any]:
    return [kind(part) for part in text.split(",")]


def in_process(kind: str, *work: Any) -> dict[str, float]:
    """`tokenize_all` in a fresh process, which reads audio of that kind."""
    os.environ["SIMULATED_AUDIO"] = kind
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=tokenize_all, args=(theirs, *work))
    process.start()
    theirs.close()
    found = ours.recv()
    process.join()
    return found


def tokenize_all(link: Any, speed: float, manifest: Path, out: Path, shard: float, batch: float, decoders: int) -> None:
    from pipelines.bulk.batch_size import together
    from pipelines.bulk.encoding import Encoding
    from pipelines.bulk.executors.inline import Inline
    from pipelines.bulk.plan import Sharding
    from pipelines.bulk.run import Job, tokenize
    from pipelines.format.layout import Layout
    from tokenizer import Codec

    codec = SimulatedCodec(Codec.from_pretrained("small"), speed)
    Codec.from_pretrained = lambda *name, **options: codec  # type: ignore[method-assign, assignment]
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        sharding = Sharding(hours=shard)
        shared = together(Layout(Path(folder)), batch, "cuda", sharding)
        encoding = Encoding(batch, **shared)
        tokenize(Job(str(manifest), Path(folder), "small", sharding, encoding, executor=Inline(), decoders=decoders))
        ended = max(path.stat().st_mtime for path in Path(folder, "shards").iterdir())
    elapsed = ended - time.time() + time.perf_counter() - codec.began
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = time.process_time() - codec.used + children.ru_utime + children.ru_stime
    link.send({"elapsed": elapsed, "padded": codec.padded, "calls": codec.calls, "processor": used})


def lengths(kind: str, hours: float) -> list[float]:
    """Seconds of each cut, in the order of the manifest."""
    rng = np.random.default_rng(0)
    wanted = 3600 * hours
    long_share = {"long": 1.0, "mixed": 0.1}.get(kind, 0.0)
    found: list[float] = []
    long_seconds = short_seconds = 0.0
    while long_seconds < long_share * wanted:
        found.append(float(rng.uniform(300, 3600)))
        long_seconds += found[-1]
    while short_seconds < (1 - long_share) * wanted:
        found.append(float(np.clip(rng.lognormal(np.log(6), 0.7), 1, 30)))
        short_seconds += found[-1]
    return [round(found[i], 3) for i in rng.permutation(len(found))]


def write_files(kind: str, folder: Path) -> list[tuple[str, float]]:
    """Paths and seconds of sound files; none of a kind that costs nothing."""
    if kind in FREE:
        return []
    from sound_formats import encoded

    folder.mkdir()
    files = []
    rng = np.random.default_rng(1)
    for number, seconds in enumerate(lengths(kind, 1.0)[:FILES]):
        loudness = np.interp(np.arange(round(seconds * RATE)), np.arange(0, 31 * RATE, RATE), rng.uniform(0, 0.2, 31))
        path = folder / f"{number}.{kind}"
        path.write_bytes(encoded((loudness * rng.standard_normal(len(loudness))).astype(np.float32), RATE, kind))
        files.append((str(path), seconds))
    return files


def write_manifest(kind: str, files: list[tuple[str, float]], hours: float, folder: Path) -> tuple[Path, float]:
    """A manifest of that many hours, and its seconds."""
    if files:
        times = round(3600 * hours / sum(seconds for _, seconds in files)) or 1
        cuts = files * times
    else:
        cuts = [(f"/nowhere/{number}.wav", seconds) for number, seconds in enumerate(lengths(kind, hours))]
    manifest = folder / f"{kind}-{hours:g}.jsonl"
    with open(manifest, "w") as lines:
        for number, (path, seconds) in enumerate(cuts):
            lines.write(json.dumps(cut(f"cut-{number}", path, round(seconds * RATE))) + "\n")
    return manifest, sum(seconds for _, seconds in cuts)


def cut(name: str, path: str, samples: int) -> dict[str, Any]:
    supervision = {"id": name, "recording_id": name, "start": 0.0, "duration": samples / RATE, "channel": 0}
    return {
        "id": name,
        "start": 0.0,
        "duration": samples / RATE,
        "channel": 0,
        "supervisions": [{**supervision, "text": "so many words", "speaker": "anna", "language": "en"}],
        "recording": {
            "id": name,
            "sources": [{"type": "file", "channels": [0], "source": path}],
            "sampling_rate": RATE,
            "num_samples": samples,
            "duration": samples / RATE,
            "channel_ids": [0],
        },
        "type": "MonoCut",
    }


def read_all(kind: str, files: list[tuple[str, float]], processes: int) -> float:
    """How many times faster than real time that many processes read the files, each all of them."""
    os.environ["SIMULATED_AUDIO"] = kind
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(processes)
    with context.Pool(processes, initializer=wait_here, initargs=(barrier,)) as pool:
        spans = pool.map(read_files, [files] * processes, chunksize=1)
    return processes * sum(seconds for _, seconds in files) / (max(e for _, e in spans) - min(b for b, _ in spans))


def wait_here(barrier: Any) -> None:
    global ready
    ready = barrier


def read_files(files: list[tuple[str, float]]) -> tuple[float, float]:
    from pipelines.sources.audio import read_wave
    from pipelines.sources.cuts import SourceCut

    items = [SourceCut(cut(path, path, round(seconds * RATE))) for path, seconds in files]
    read_wave(items[0], RATE)
    ready.wait()
    began = time.time()
    for item in items:
        read_wave(item, RATE)
    return began, time.time()


if __name__ == "__main__":
    main()
