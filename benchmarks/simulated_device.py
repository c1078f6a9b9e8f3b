"""How well a bulk run feeds a fast device: `tokenize` with a device that only takes the time a GPU would.

    python benchmarks/simulated_device.py                                   # audio that costs nothing to read
    python benchmarks/simulated_device.py --kinds wav,opus --decoders 1,2   # decoded for real
    python benchmarks/simulated_device.py --kinds long --speeds 1000 --batches 600
    python benchmarks/simulated_device.py --waits                           # calls wait for the device, as on a CPU

The stand-in has the rates of the shipped codec. As on a GPU, a call queues a batch, the device is busy with it for
(rows x padded seconds) / speed after the one before, and tokens, zeros, are there at the end. The processor is free
meanwhile. Everything else is the real run: plan, reading, batches, shards, receipts.

    run         audio over the time from the first batch to the last receipt, and its share of the bound: the smaller of
                the device's speed and of what as many processes as there are decoders read, measured just before
    steady      the same share from the first batch to the end of the last one
    busy        of the steady time, how long the device was: what is missing is gaps; the rest of "steady" is padding
    start, end  seconds from the stored plan to the first batch, and from the last batch to the last receipt
    padding     silence that was encoded, over the audio
    main, decoders, reading   seconds of processor time for an hour of audio: of the process of the run, of its decoders
                (without their start and first cut), of reading alone. Other work hardly changes these
    of cores    reading alone over main + decoders: the share of what the cores can decode, where they are the bound

Kinds of audio:

    free        utterances of 1 to 30 s (log-normal, median 6 s) that are silence and cost nothing to read
    wav, flac, opus   the same lengths, decoded from files at 16 kHz
    even        cuts of 1 to 60 s, all lengths alike, at no cost
    long        recordings of 5 to 60 minutes, at no cost
    mixed       nine tenths of the hours in utterances, the rest in long recordings, at no cost
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

RATE = 16000
FILES = 100  # different ones; cuts beyond that read them again
READINGS = 3  # of them, to know how fast that is alone
FREE = ("free", "even", "long", "mixed")


def free_audio(item: Any, samples: int, sample_rate: int) -> Iterator[np.ndarray]:
    """Stands in for `read_resampled`."""
    for begin in range(0, samples, 10 * sample_rate):
        yield SILENCE[: min(10 * sample_rate, samples - begin)]


SILENCE = np.zeros(10 * RATE, np.float32)
if os.environ.get("SIMULATED_AUDIO") in FREE:  # decoders, which import this file as their main module, see it too
    import pipelines.sources.audio

    pipelines.sources.audio.read_resampled = free_audio


class SimulatedDevice:
    """Stands in for `pipelines.bulk.feed.device.Device`.

    Attributes:
        padded: seconds of audio that it was given, silence included.
        calls: batches and windows.
        began, used: when the first one did, and the processor time of this process until then.
        free_at: when it has done what it was given.
    """

    is_gpu, place = True, None

    def __init__(self, codec: Any, speed: float, waits: bool) -> None:
        self.codec, self._speed, self._waits = codec, speed, waits
        self.padded, self.calls, self.began, self.used, self.free_at = 0.0, 0, 0.0, 0.0, 0.0

    def encode(self, wave: np.ndarray, lengths: np.ndarray) -> Coming:
        return self._given(wave, self.codec.token_count(wave.shape[1]))

    def encode_step(self, wave: np.ndarray, state: Any) -> tuple[Coming, Any]:
        return self._given(wave, wave.shape[1] // self.codec.chunk_samples * self.codec.tokens_per_chunk), state

    def renewed(self, state: Any, rows: int, fresh: Any) -> Any:
        return state

    def _given(self, wave: np.ndarray, tokens: int) -> Coming:
        if not self.calls:
            self.began, self.used = time.perf_counter(), time.process_time()
        seconds = wave.shape[0] * wave.shape[1] / RATE
        self.padded, self.calls = self.padded + seconds, self.calls + 1
        self.free_at = max(self.free_at, time.perf_counter()) + seconds / self._speed
        coming = Coming(np.zeros((len(wave), tokens), np.int32), self.free_at)
        if self._waits:
            coming.result()
        return coming


class Coming(NamedTuple):
    tokens: np.ndarray
    ready_at: float

    def result(self) -> np.ndarray:
        time.sleep(max(0.0, self.ready_at - time.perf_counter()))
        return self.tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", default="free", help="of audio, with commas")
    parser.add_argument("--speeds", default="1000,5000", help="of the device, times real time")
    parser.add_argument("--batches", default="30,600,960", help="--batch-seconds")
    parser.add_argument("--shards", default="1", help="--shard-hours")
    parser.add_argument("--decoders", default="0", help="processes that decode; 0: threads of the run itself")
    parser.add_argument("--hours", type=float, default=4.0, help="of audio at a speed of 1,000; more at a higher one")
    parser.add_argument("--waits", action="store_true", help="calls wait for the device")
    args = parser.parse_args()
    columns = "audio|shard, h|batch, s|decoders|device|run|share kept|steady|busy|start, end|padding|calls|"
    columns += "main|decoders|reading|of cores"
    print("| " + " | ".join(columns.split("|")) + " |\n" + "|---" * len(columns.split("|")) + "|")
    with tempfile.TemporaryDirectory() as folder:
        for kind in args.kinds.split(","):
            files = write_files(kind, Path(folder, kind))
            for decoders in numbers(args.decoders, int):
                reading, read_cpu = read_all(kind, files, max(decoders, 1)) if files else (np.inf, 0.0)
                for speed in numbers(args.speeds, float):
                    manifest, seconds = write_manifest(kind, files, args.hours * speed / 1000, Path(folder))
                    for shard in numbers(args.shards, float):
                        for batch in numbers(args.batches, float):
                            work = (speed, manifest, Path(folder, "out"), shard, batch, decoders, args.waits)
                            found = in_process(kind, *work)
                            labels = [kind, f"{shard:g}", f"{batch:g}", str(decoders)]
                            print_row(labels, speed, reading, read_cpu, seconds, found)


def print_row(labels: list[str], speed: float, reading: float, read_cpu: float, seconds: float, found: Any) -> None:
    """A row of the table; `found` as `tokenize_all` sends it."""
    bound, hours, steady = min(speed, reading), seconds / 3600, found["steady"]
    rate, ours, theirs = seconds / (steady + found["end"]), found["main"] / hours, found["decoders"] / hours
    cells = [
        *labels,
        f"{speed:,.0f} x",
        f"{rate:,.0f} x" + ("" if reading >= speed else f" of {reading:,.0f}"),
        f"{rate / bound:.3f}",
        f"{seconds / steady / bound:.3f}",
        f"{found['padded'] / speed / steady:.3f}",
        f"{found['start']:.2f}, {found['end']:.2f} s",
        f"{found['padded'] / seconds - 1:.1%}",
        f"{found['calls']:.0f}",
        f"{ours:.2f}",
        f"{theirs:.2f}",
        f"{read_cpu:.2f}" if read_cpu else "",
        f"{read_cpu / (ours + theirs):.3f}" if read_cpu else "",
    ]
    print("| " + " | ".join(cells) + " |", flush=True)


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


def tokenize_all(
    link: Any, speed: float, manifest: Path, out: Path, shard: float, batch: float, decoders: int, waits: bool
) -> None:
    """Seconds of each phase, and of processor time, through `link`."""
    from pipelines.bulk import encoding as bulk_encoding
    from pipelines.bulk.batch_size import batch_sharing
    from pipelines.bulk.encoding import Encoding
    from pipelines.bulk.executors.inline import Inline
    from pipelines.bulk.feed.buffers import SharedMemory
    from pipelines.bulk.plan import Sharding
    from pipelines.bulk.run import Job, tokenize
    from pipelines.format.layout import Layout
    from tokenizer import Codec

    class Timed(Inline):
        def run(self, *work: Any) -> None:
            begun.append(time.perf_counter())
            super().run(*work)

    begun: list[float] = []
    device = SimulatedDevice(Codec.from_pretrained("small"), speed, waits)
    bulk_encoding.Device = lambda *place: device  # type: ignore[misc, assignment]
    SharedMemory.pin = lambda *places: None  # type: ignore[method-assign]
    starting = decoder_start(manifest) if decoders else 0.0
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        sharding = Sharding(hours=shard)
        encoding = Encoding(batch, **batch_sharing(Layout(Path(folder)), batch, "cuda", sharding))
        tokenize(Job(str(manifest), Path(folder), "small", sharding, encoding, executor=Timed(), decoders=decoders))
        ended = max(path.stat().st_mtime for path in Path(folder, "shards").iterdir())
    ended += time.perf_counter() - time.time()
    link.send(
        {
            "start": device.began - begun[0],
            "steady": device.free_at - device.began,
            "end": ended - device.free_at,
            "padded": device.padded,
            "calls": device.calls,
            "main": time.process_time() - device.used,
            "decoders": children_time() - starting * (decoders + 1),
        }
    )


def decoder_start(manifest: Path) -> float:
    """Seconds of processor time that a decoder takes to start and to read a first cut, for which it imports more."""
    from pipelines.bulk.feed.buffers import SharedMemory
    from pipelines.bulk.feed.decoders import DecoderLane
    from pipelines.bulk.feed.reading import ReadRows, Request
    from pipelines.sources.cuts import PlannedCut

    with open(manifest) as lines:
        first = PlannedCut(json.loads(next(lines)), member="first")
    samples = first.cut["recording"]["num_samples"]
    memory = SharedMemory(1, samples)
    lane = DecoderLane(memory)
    lane.do(ReadRows(0, (1, samples), (Request(0, 0, first, samples, 0, samples),), RATE))
    lane.close()
    memory.close()
    return children_time()


def children_time() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


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
        utterance = np.clip(rng.lognormal(np.log(6), 0.7), 1, 30)
        found.append(float(rng.uniform(1, 60) if kind == "even" else utterance))
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


def read_all(kind: str, files: list[tuple[str, float]], processes: int) -> tuple[float, float]:
    """How many times faster than real time that many processes read the files, each all of them; and the seconds of
    processor time for an hour of audio."""
    os.environ["SIMULATED_AUDIO"] = kind
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(processes)
    with context.Pool(processes, initializer=wait_here, initargs=(barrier,)) as pool:
        spans = pool.map(read_files, [files] * processes, chunksize=1)
    seconds = processes * sum(seconds for _, seconds in files)
    elapsed = max(end for _, end, _ in spans) - min(begin for begin, _, _ in spans)
    return READINGS * seconds / elapsed, 3600 * sum(used for _, _, used in spans) / seconds


def wait_here(barrier: Any) -> None:
    global ready
    ready = barrier


def read_files(files: list[tuple[str, float]]) -> tuple[float, float, float]:
    """When it began and ended, and the processor time that it took."""
    from pipelines.sources.audio import read_wave
    from pipelines.sources.cuts import SourceCut

    items = [SourceCut(cut(path, path, round(seconds * RATE))) for path, seconds in files]
    read_wave(items[0], RATE)
    ready.wait()
    began, used = time.time(), time.process_time()
    for _ in range(READINGS):
        for item in items:
            read_wave(item, RATE)
    return began, time.time(), (time.process_time() - used) / READINGS


if __name__ == "__main__":
    main()
