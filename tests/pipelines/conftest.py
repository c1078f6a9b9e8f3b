"""A small random corpus, and a finished dataset made from it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import fsspec
import numpy as np
import pytest
import soundfile

from pipelines.bulk.encoding import Encoding
from pipelines.bulk.executors.inline import Inline
from pipelines.bulk.executors.slurm import ArrayTask
from pipelines.bulk.plan import Sharding
from pipelines.bulk.run import Job, tokenize

NASTY_IDS = [
    "plain-id_1",
    "speaker/42.take 1",
    "..",
    "a.b.c",
    "a/b/c",
    "__hidden__",
    ".hidden",
    "100%~2",
    "Füße und 話す",
    "new\nline\ttab",
    "quote\"'\\back",
    "x" * 300,
    "y" * 299 + "1",
    "y" * 299 + "2",
    "ü" * 120,
    "-rf",
]


def speechlike(rng: np.random.Generator, seconds: float, rate: int) -> np.ndarray:
    """float32 [seconds * rate]: noise whose loudness wanders, so that no two pieces are alike."""
    samples = round(seconds * rate)
    corners = np.arange(0, samples + rate, rate // 10)  # ten a second
    loudness = np.interp(np.arange(samples), corners, rng.uniform(0.01, 0.5, len(corners)))
    return (rng.standard_normal(samples) * loudness * 0.3).astype(np.float32)


@pytest.fixture(scope="session")
def audio_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 files in folders, of several rates, channels and formats, 0.05 to 3 s."""
    rng = np.random.default_rng(1)
    folder = tmp_path_factory.mktemp("audio")
    for i in range(24):
        rate = (8000, 16000, 22050, 24000, 44100, 48000)[i % 6]
        wave = speechlike(rng, float(rng.uniform(0.05, 3.0)), rate)
        if i % 5 == 0:
            wave = np.stack([wave, speechlike(rng, len(wave) / rate, rate)[: len(wave)]], axis=1)
        path = folder / f"speaker {i % 3}" / f"take.{i:02d}{('.wav', '.flac')[i % 2]}"
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, wave, rate, subtype="PCM_16")
    return folder


@pytest.fixture
def write_manifest(tmp_path: Path) -> Callable[..., Path]:
    """write_manifest(waves: {id: [S] or [S, C]}, rate) -> a CutSet whose recording paths are relative to it."""

    def write(waves: dict[str, np.ndarray], rate: int = 16000) -> Path:
        lines = []
        for i, (cut_id, wave) in enumerate(waves.items()):
            name = f"audio/{i}.wav"
            (tmp_path / "audio").mkdir(exist_ok=True)
            soundfile.write(tmp_path / name, wave, rate, subtype="FLOAT")
            lines.append(cut_line(cut_id, name, len(wave), rate, channels=1 if wave.ndim == 1 else wave.shape[1]))
        manifest = tmp_path / "cuts.jsonl"
        manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return manifest

    return write


def cut_line(cut_id: str, path: str, samples: int, rate: int, channels: int = 1) -> dict:
    """A MonoCut (or MultiCut) of a whole file as Lhotse writes it."""
    ids = list(range(channels))
    return {
        "id": cut_id,
        "start": 0.0,
        "duration": samples / rate,
        "channel": 0 if channels == 1 else ids,
        "supervisions": [
            {
                "id": f"{cut_id}-s",
                "recording_id": cut_id,
                "start": 0.0,
                "duration": samples / rate,
                "channel": 0 if channels == 1 else ids,
                "text": "some words",
                "speaker": "anna",
            }
        ],
        "recording": {
            "id": cut_id,
            "sources": [{"type": "file", "channels": ids, "source": path}],
            "sampling_rate": rate,
            "num_samples": samples,
            "duration": samples / rate,
            "channel_ids": ids,
        },
        "type": "MonoCut" if channels == 1 else "MultiCut",
    }


@pytest.fixture
def run(tiny_codec_dir: Path) -> Callable[..., dict]:
    """run(source, out, shard_cuts=5, pack=False, part=None, **job fields) -> the totals of the finished dataset."""

    def call(
        source: Path, out: Path, shard_cuts: int = 5, batch_seconds: float = 6.0, pack: bool = False, **fields
    ) -> dict:
        fields = {"codec": str(tiny_codec_dir), "executor": Inline(), **fields}
        if part := fields.pop("part", None):
            fields["executor"] = ArrayTask(part, fields["executor"])
        encoding = Encoding(batch_seconds=batch_seconds)
        return asdict(
            tokenize(
                Job(str(source), out, sharding=Sharding(cuts=shard_cuts, pack=pack), encoding=encoding, **fields)
            ).totals
        )

    return call


@pytest.fixture(scope="session")
def finished(audio_folder: Path, tiny_codec_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of `audio_folder`; do not change it in place."""
    out = tmp_path_factory.mktemp("finished") / "out"
    tokenize(
        Job(
            str(audio_folder),
            out,
            str(tiny_codec_dir),
            Sharding(cuts=5),
            Encoding(batch_seconds=6.0),
            executor=Inline(),
        )
    )
    return out


@pytest.fixture(scope="session")
def nasty_ids() -> list[str]:
    """Ids that break naive tar member names, all different."""
    return NASTY_IDS


@pytest.fixture
def speech() -> Callable[..., np.ndarray]:
    """speech(seed, seconds, rate=16000) -> float32 [S]."""
    return lambda seed, seconds, rate=16000: speechlike(np.random.default_rng(seed), seconds, rate)


@pytest.fixture
def file_bytes() -> Callable[[Path], dict[str, bytes]]:
    """file_bytes(folder) -> {relative path: content} of every file below it."""
    return lambda folder: {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


@pytest.fixture
def memory_store() -> Callable[[Path], str]:
    """memory_store(folder) -> the URL of a copy of it in a store in memory."""

    def upload(folder: Path) -> str:
        url = f"memory://{folder.parent.name}/{folder.name}"
        for path in folder.rglob("*"):
            if path.is_file():
                fsspec.filesystem("memory").pipe_file(f"{url}/{path.relative_to(folder)}", path.read_bytes())
        return url

    fsspec.filesystem("memory").store.clear()
    return upload


def files_at(url: str) -> dict[str, bytes]:
    """{relative path: content} of every file below a URL."""
    files = fsspec.filesystem("memory")
    root = files._strip_protocol(url)
    return {name.removeprefix(f"{root}/"): files.cat_file(name) for name in files.find(root)}


@pytest.fixture
def command(tiny_codec_dir: Path) -> Callable[..., list[str]]:
    """command(source, out, *options) -> the words of `focalstream tokenize` for shards of 5 cuts."""

    def words(source: Path, out: Path, *options: str) -> list[str]:
        sizes = ["--shard-cuts", "5", "--batch-seconds", "6"]
        return ["tokenize", str(source), str(out), "--codec", str(tiny_codec_dir), *sizes, *options]

    return words
