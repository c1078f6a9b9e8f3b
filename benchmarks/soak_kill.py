"""Hundreds of `kill -9`, and every byte of the dataset is that of an undisturbed run.

    OMP_NUM_THREADS=1 python benchmarks/soak_kill.py --kills 200

A small corpus with cuts that fail is tokenized in one process and by two workers in turn. At random moments, from the
start to the last rename, the run or one of its workers is killed, up to four times; the same command is given
again until it completes, and the names and sha256 of all files are compared. Runs are forked from a process that has
made the dataset once and so has everything imported: kills hit the work and not imports. Workers are processes of
their own as ever. The codec is a tiny one with random weights.

Ends with one line of figures; exit status 1 with the folder kept where anything differs, is lost or comes twice.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

EXECUTORS = {"inline": ["--executor", "inline"], "local": ["--executor", "local", "--workers", "2"]}
CUTS, SHARD_CUTS = 30, 5
RATE = 16000


class Difference(Exception):
    """What is not as it should be, in one line."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where to work; kept. When not given, a temporary one")
    args = parser.parse_args()
    folder = args.folder or Path(tempfile.mkdtemp(prefix="soak-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        Soak(folder, random.Random(args.seed)).run(args.kills)
    except Difference as difference:
        print(f"DIFFERENT: {difference}; everything is kept in {folder}")
        return 1
    if not args.folder:
        shutil.rmtree(folder)
    return 0


class Soak:
    def __init__(self, folder: Path, rng: random.Random) -> None:
        self.folder, self.rng = folder, rng
        self.manifest = write_corpus(folder / "corpus", rng)
        self.codec = write_codec(folder / "codec")
        self.kills: Counter[str] = Counter()
        self.seconds: dict[str, float] = {}  # of the shortest run that completed
        self.log = folder / "log"

    def run(self, kills: int) -> None:
        began, rounds = time.monotonic(), 0
        shutil.rmtree(self.folder / "undisturbed", ignore_errors=True)
        self._expect(self._tokenize("inline", self.folder / "undisturbed"), (0,))  # in this process: see above
        whole = digests(self.folder / "undisturbed")
        for executor in EXECUTORS:
            shutil.rmtree(self.folder / "out", ignore_errors=True)
            self._complete(executor, self.folder / "out")
            self._compare(whole, self.folder / "out")
        failed = self._nothing_lost(self.folder / "undisturbed")
        print(f"{CUTS} cuts, {failed} fail, {len(whole)} files; undisturbed by executor, s: {self.seconds}", flush=True)
        while self.kills.total() < kills:
            executor = "local" if rounds % 4 == 3 else "inline"  # workers import PyTorch each time: slow
            out = self.folder / "out"
            shutil.rmtree(out, ignore_errors=True)
            wanted = min(self.rng.randint(1, 4), kills - self.kills.total())
            history = self._round(executor, out, wanted)
            self._compare(whole, out)
            self._nothing_lost(out)
            rounds += 1
            print(
                f"round {rounds}, {executor}: {', '.join(history)}; the same ({self.kills.total()} kills)", flush=True
            )
        each = ", ".join(f"{count} of {victim}" for victim, count in sorted(self.kills.items()))
        print(
            f"{self.kills.total()} kills ({each}) in {rounds} rounds: all {len(whole)} files the same each time, "
            f"{CUTS - failed} cuts tokenized and {failed} quarantined, none lost or doubled; "
            f"{time.monotonic() - began:.0f} s"
        )

    def _round(self, executor: str, out: Path, kills: int) -> list[str]:
        """Kill `kills` times, then let it complete. What happened, in words."""
        history: list[str] = []
        for _ in range(kills):
            pid = self._start(executor, out)
            victim = "a worker" if executor == "local" and self.rng.random() < 0.4 else "the run"
            moment = self._wait_for_a_moment(pid, executor, out)
            if victim == "a worker":
                workers = workers_of(pid)
                if workers:
                    os.kill(self.rng.choice(workers), signal.SIGKILL)
                    self.kills[f"a worker, {executor}"] += 1
                    history.append(f"a worker {moment}")
                status = ended(pid)
                self._expect(status, (0,))
                return history or ["complete before the kill"]
            os.kill(pid, signal.SIGKILL)
            status = ended(pid)
            self._expect(status, (0, -signal.SIGKILL))
            if status == 0:  # complete, and only waiting for us
                return history or ["complete before the kill"]
            self.kills[f"the run, {executor}"] += 1
            history.append(f"the run {moment}")
        self._complete(executor, out)
        return history

    def _complete(self, executor: str, out: Path) -> None:
        """Let a run end. Of those that do everything it is remembered how short one can be."""
        began, is_fresh = time.monotonic(), not out.exists()
        self._expect(ended(self._start(executor, out)), (0,))
        if is_fresh:
            self.seconds[executor] = min(time.monotonic() - began, self.seconds.get(executor, 3600.0))

    def _wait_for_a_moment(self, pid: int, executor: str, out: Path) -> str:
        """Sleep until a random moment of the run, by the clock or by what it has written."""
        if self.rng.random() < 0.5:
            seconds = self.rng.uniform(0, self.seconds[executor])
            wait_while(pid, lambda elapsed: elapsed < seconds)
            return f"after {seconds:.2f} s"
        files, wanted = count_files(out), self.rng.randint(1, 30)
        wait_while(pid, lambda elapsed: abs(count_files(out) - files) < wanted)
        time.sleep(self.rng.uniform(0, 0.02))
        return f"{wanted} files on"

    def _tokenize(self, executor: str, out: Path) -> int:
        from slm.cli import main as focalstream

        options = ["--codec", str(self.codec), "--shard-cuts", str(SHARD_CUTS), "--batch-seconds", "6", "--pack"]
        return focalstream(["tokenize", str(self.manifest), str(out), *options, *EXECUTORS[executor]])

    def _start(self, executor: str, out: Path) -> int:
        """The process id of a `focalstream tokenize`."""
        pid = os.fork()
        if pid:
            return pid
        status = 70
        try:
            with open(self.log, "w") as log:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
            status = self._tokenize(executor, out)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)

    def _expect(self, status: int, expected: tuple[int, ...]) -> None:
        if status not in expected:
            raise Difference(f"exit status {status}: {self.log.read_text()[-2000:]}")

    def _compare(self, whole: dict[str, str], out: Path) -> None:
        found = digests(out)
        names = sorted(name for name in {**whole, **found} if whole.get(name) != found.get(name))
        if names:
            raise Difference(f"{out}: {', '.join(names)}")

    def _nothing_lost(self, out: Path) -> int:
        """How many cuts are quarantined, when all are there once."""
        from pipelines.dataset.token_dataset import TokenDataset

        dataset = TokenDataset(out)
        ids = [dataset.cut_id(i) for i in range(len(dataset))]
        failed = [json.loads(line)["id"] for line in (out / "quarantine.jsonl").read_text().splitlines()]
        planned = [json.loads(line)["id"] for line in self.manifest.read_text().splitlines()]
        if sorted(ids + failed) != sorted(planned):
            raise Difference(f"{out}: cuts are lost or doubled: {Counter(planned)} against {Counter(ids + failed)}")
        return len(failed)


def ended(pid: int) -> int:
    """The exit status of a process, waited for; negative: the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def wait_while(pid: int, condition: Callable[[float], bool]) -> None:
    """Until the condition on the seconds since now fails, or the process has ended."""
    began = time.monotonic()
    while condition(time.monotonic() - began):
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return
        time.sleep(0.001)


def workers_of(pid: int) -> list[int]:
    """Worker processes of a run; its resource tracker is none."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    found = []
    for child in children:
        try:
            if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                found.append(int(child))
        except OSError:
            continue
    return found


def count_files(folder: Path) -> int:
    return sum(len(files) for _, _, files in os.walk(folder))


def digests(out: Path) -> dict[str, str]:
    return {
        path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in sorted(out.rglob("*"))
    }


def write_codec(folder: Path) -> Path:
    import torch

    from tokenizer import Codec

    sizes = {"dim": 16, "ffn_dim": 32, "num_layers": 1}
    attention = {"num_heads": 2, "num_buckets": 16, "max_distance": 16, "conv_pos": 4, "conv_pos_groups": 2}
    focal = {"causal": True, "hidden_dims": [16], "focal_window": 3, "window_size": 6}
    raw = {
        "encoder_config": {"causal": True, "stem": "logmel", "mel_bins": 16, "window_size": 8, **sizes, **attention},
        "compressor_config": {"input_dim": 16, "output_dim": 8, "downscale_factors": [1], **focal},
        "quantizer_config": {"codebook_size": 256},
        "decompressor_config": {
            "input_dim": 8,
            "output_dim": 16,
            "upscale_factors": [1],
            "last_window_size": 6,
            **focal,
        },
        "decoder_config": {"causal": True, "input_dim": 16, "hop_length": 320, "head": "istft", **sizes},
    }
    torch.set_num_threads(1)  # no threads of PyTorch: this process forks
    torch.manual_seed(0)
    Codec.from_config(raw).save_pretrained(folder)
    return folder


def write_corpus(folder: Path, rng: random.Random) -> Path:
    """Noise of 0.3 to 1.5 s a cut; some files are missing, cut off, no audio, not finite, or empty."""
    import numpy as np
    import soundfile

    noise = np.random.default_rng(rng.randrange(1 << 30))
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for i in range(CUTS):
        path, samples = folder / f"{i}.wav", rng.randint(RATE // 3, 3 * RATE // 2)
        wave = 0.2 * noise.standard_normal(samples).astype(np.float32) * np.linspace(0.1, 1, samples, dtype=np.float32)
        if i == 9:
            wave[samples // 2] = np.nan
        soundfile.write(path, wave, RATE, subtype="FLOAT")
        if i == 3:
            path.unlink()
        elif i == 12:
            path.write_bytes(path.read_bytes()[: 2 * samples])
        elif i == 17:
            path.write_bytes(b"no audio")
        elif i in range(20, 25):  # a whole shard of nothing
            path.write_bytes(b"")
        seconds = samples / RATE
        source = {"type": "file", "channels": [0], "source": str(path)}
        recording = {"id": str(i), "sources": [source], "sampling_rate": RATE, "num_samples": samples}
        recording |= {"duration": seconds, "channel_ids": [0]}
        cut = {"id": f"cut {i}", "start": 0.0, "duration": seconds, "channel": 0, "supervisions": []}
        lines.append(json.dumps({**cut, "recording": recording, "type": "MonoCut"}) + "\n")
    manifest = folder / "cuts.jsonl"
    manifest.write_text("".join(lines))
    return manifest


if __name__ == "__main__":
    sys.exit(main())
