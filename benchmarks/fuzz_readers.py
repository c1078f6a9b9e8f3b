"""What `fuzz.py` feeds: mutations of bytes and of JSON, readers to take them, and sound input to start from."""

from __future__ import annotations

import contextlib
import copy
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ODD_VALUES: tuple[Any, ...] = (
    *(
        None,
        True,
        -1,
        0,
        1e308,
        -1e-9,
        1 << 40,
        float("nan"),
        float("inf"),
        "",
        "x" * 500,
        "\x1b[2J",
        "\ud800",
        [],
        [1],
        {},
    ),
    *({"a": []}, "../../etc/passwd", "memory://x", "command", [[]], 0.5),
)

# ---- mutations --------------------------------------------------------------------------------------------------


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """A few random changes: bytes flipped, overwritten by edge values, cut out, repeated, put in or cut off."""
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 5))):
        if not changed:
            break
        # half of the changes hit the first bytes, where headers are
        reach = len(changed) if rng.random() < 0.5 else min(len(changed), 256)
        at, size = int(rng.integers(reach)), int(rng.integers(1, 65))
        kind = int(rng.integers(7))
        if kind == 0:
            changed[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            changed[at : at + size] = rng.bytes(size)
        elif kind == 2:
            value = int(rng.choice([0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFFFFFE, 0x10000]))
            changed[at : at + 4] = value.to_bytes(4, "little" if rng.random() < 0.5 else "big")
        elif kind == 3:
            del changed[at : at + size * int(rng.integers(1, 50))]
        elif kind == 4:
            changed[at:at] = changed[at : at + size * 10]
        elif kind == 5:
            changed[at:at] = rng.bytes(size)
        else:
            del changed[int(rng.integers(len(changed))) :]
    return bytes(changed)


def mutated_json(value: Any, rng: np.random.Generator) -> Any:
    """A parsed JSON value with one to three of its parts replaced, removed or renamed."""
    value = json.loads(json.dumps(value))
    for _ in range(int(rng.integers(1, 4))):
        holders: list[Any] = [[value]]
        for holder in holders:
            parts = holder.values() if isinstance(holder, dict) else holder
            holders.extend(part for part in parts if isinstance(part, (dict, list)) and part)
        holder = holders[int(rng.integers(len(holders)))]
        keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        key = keys[int(rng.integers(len(keys)))]
        kind = int(rng.integers(4))
        if kind == 0 and holder is not holders[0]:
            del holder[key]
        elif kind == 1 and isinstance(holder, dict):
            holder[f"{key}x"] = holder.pop(key)
        else:
            holder[key] = copy.deepcopy(ODD_VALUES[int(rng.integers(len(ODD_VALUES)))])
        value = holders[0][0] if holder is holders[0] else value
    return value


def mutated_text(value: Any, rng: np.random.Generator) -> bytes:
    """A JSON value as text, with its parts or its bytes changed, or nested very deeply."""
    if rng.random() < 0.02:
        return b'{"a":' * 100_000 + b"1" + b"}" * 100_000
    text = json.dumps(mutated_json(value, rng) if rng.random() < 0.8 else value).encode()
    return text if rng.random() < 0.7 else mutated(text, rng)


# ---- readers ----------------------------------------------------------------------------------------------------


def wave_of(seconds: float = 0.6) -> np.ndarray:
    rng = np.random.default_rng(7)
    return (0.2 * rng.standard_normal(round(16000 * seconds))).astype(np.float32)


def audio_seeds() -> list[bytes]:
    """A short sound file of every kind that can be made here."""
    import soundfile

    kinds = [
        ("WAV", None),
        ("FLAC", None),
        ("OGG", "VORBIS"),
        ("OGG", "OPUS"),
        ("MP3", None),
        ("AIFF", None),
        ("AU", None),
    ]
    kinds += [
        ("CAF", None),
        ("W64", None),
        ("RF64", None),
        ("NIST", None),
        ("VOC", None),
        ("WAV", "IMA_ADPCM"),
        ("WAV", "FLOAT"),
        ("SVX", None),
        ("AVR", None),
        ("PAF", "PCM_16"),
        ("PAF", "PCM_24"),
        ("IRCAM", None),
        ("MAT5", None),
    ]
    seeds = []
    for kind, subtype in kinds:
        buffer = io.BytesIO()
        soundfile.write(buffer, wave_of(), 16000, format=kind, subtype=subtype)
        seeds.append(buffer.getvalue())
    return seeds + media_seeds()


def media_seeds() -> list[bytes]:
    try:
        import av
    except ImportError:
        return []
    seeds = []
    for container, codec in (
        ("ipod", "aac"),
        ("adts", "aac"),
        ("webm", "libopus"),
        ("asf", "wmav2"),
        ("matroska", "flac"),
        ("mp2", "mp2"),
        ("mpegts", "aac"),
        ("mpegts", "mp2"),
        ("mpeg", "mp2"),
        ("avi", "mp2"),
        ("flv", "aac"),
        ("ac3", "ac3"),
        ("mp4", "libmp3lame"),
    ):
        rate = {"libopus": 48000, "ac3": 48000}.get(codec, 44100 if container in ("flv", "mp4") else 16000)
        buffer = io.BytesIO()
        with av.open(buffer, "w", format=container) as file:
            stream = file.add_stream(codec, rate=rate)
            stream.layout, stream.bit_rate = "mono", 64000
            frame = av.AudioFrame.from_ndarray((wave_of() * 32767).astype("<i2")[None], format="s16", layout="mono")
            frame.sample_rate, frame.pts, at = 16000, 0, 0
            resampler = av.AudioResampler(format=stream.codec_context.format, layout="mono", rate=rate)
            queue, size = av.AudioFifo(), stream.codec_context.frame_size or 1024
            for piece in [*resampler.resample(frame), *resampler.resample(None)]:
                queue.write(piece)
            while piece := queue.read(size):
                piece.pts, at = at, at + piece.samples
                for packet in stream.encode(piece):
                    file.mux(packet)
            for packet in stream.encode(None):
                file.mux(packet)
        seeds.append(buffer.getvalue())
    return seeds


def audio(rng: np.random.Generator, folder: Path, seeds: dict[str, Any]) -> None:
    from tokenizer.audio import read_audio
    from tokenizer.audio_input.byte_source import FileBytes
    from tokenizer.audio_input.contents import BadAudio
    from tokenizer.audio_input.reader import examine

    data = mutated(seeds["audio"][int(rng.integers(len(seeds["audio"])))], rng)
    (folder / "a").write_bytes(data)
    with contextlib.suppress(BadAudio):
        examine(FileBytes(io.BytesIO(data), len(data)), quick=True)
    read_audio(folder / "a", 16000)


def manifest(rng: np.random.Generator, folder: Path, seeds: dict[str, Any]) -> None:
    from pipelines.sources.audio import read_wave
    from pipelines.sources.manifests import read_cuts

    hit = int(rng.integers(len(seeds["cuts"])))
    lines = b"\n".join(
        mutated_text(x, rng) if i == hit else json.dumps(x).encode() for i, x in enumerate(seeds["cuts"])
    )
    packed = rng.random() < 0.3
    (folder / ("m.jsonl.gz" if packed else "m.jsonl")).write_bytes(
        mutated(gzip.compress(lines), rng) if packed else lines
    )
    (folder / "a.wav").write_bytes(seeds["audio"][0])
    for item in read_cuts([str(folder / ("m.jsonl.gz" if packed else "m.jsonl"))]):
        if item.seconds < 60:
            try:
                read_wave(item, 16000)
            except ValueError:  # one cut that a run would quarantine
                continue


def shar(rng: np.random.Generator, folder: Path, seeds: dict[str, Any]) -> None:
    from pipelines.sources.audio import read_wave
    from pipelines.sources.manifests import read_cuts

    hit = sorted(seeds["shar"])[int(rng.integers(len(seeds["shar"])))]
    for name, data in seeds["shar"].items():
        (folder / name).write_bytes(mutated(data, rng) if name == hit else data)
    for item in read_cuts([str(folder)]):
        if item.seconds < 60:
            try:
                read_wave(item, 16000)
            except ValueError:
                continue


def config(rng: np.random.Generator, folder: Path, seeds: dict[str, Any]) -> None:
    from tokenizer import CodecConfig

    (folder / "config.json").write_bytes(mutated_text(json.loads(seeds["codec"]["config.json"]), rng))
    CodecConfig.from_file(folder / "config.json")


def weights(rng: np.random.Generator, folder: Path, seeds: dict[str, Any]) -> None:
    from tokenizer.checkpoint import read_weights

    name = "model.pt" if rng.random() < 0.3 else "model.safetensors"
    (folder / name).write_bytes(mutated(seeds["weights"][name], rng))
    read_weights(folder / name)


def dataset(rng: np.random.Generator, folder: Path, seeds: dict[str, Any]) -> None:
    from pipelines.dataset.token_dataset import TokenDataset

    for name, data in seeds["dataset"].items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    if rng.random() < 0.7:
        data = mutated_text(json.loads(seeds["dataset"]["dataset.json"]), rng)
        (folder / "dataset.json").write_bytes(data)
    else:
        names = sorted(seeds["dataset"])
        hit = names[int(rng.integers(len(names)))]
        (folder / hit).write_bytes(mutated(seeds["dataset"][hit], rng))
    found = TokenDataset(folder)
    for i in range(min(len(found), 5)):
        found.codes(i)
        found.cut_id(i)


def packed(rng: np.random.Generator, folder: Path, seeds: dict[str, Any]) -> None:
    from pipelines.format.packed import PackedShard

    name = next(name for name in seeds["dataset"] if name.startswith("packed/"))
    (folder / "p").write_bytes(mutated(seeds["dataset"][name], rng))
    found = PackedShard(folder / "p")
    for i in range(min(len(found), 5)):
        found.codes(i)
    _ = found.ids


def npy(rng: np.random.Generator, folder: Path, seeds: dict[str, Any]) -> None:
    from tokenizer.commands.decode import read_tokens

    buffer = io.BytesIO()
    tokens = np.arange(200, dtype="<u2") % 256
    np.savez_compressed(buffer, tokens) if rng.random() < 0.2 else np.save(buffer, tokens)
    (folder / "t.npy").write_bytes(mutated(buffer.getvalue(), rng))
    read_tokens(str(folder / "t.npy"), 256)


def messages(rng: np.random.Generator, folder: Path, seeds: dict[str, Any]) -> None:
    from slm.serve.protocol import Limits, check_fields, parse, parse_start

    start = {"type": "start", "seed": 3, "seconds": 4.0, "temperature": 1.0, "top_k": 5, "top_p": 0.9, "rate": 16000}
    start |= {"min_p": 0.1, "min_seconds": 1.0, "repetition_penalty": 1.1, "repetition_window": 20}
    text = mutated_text(start if rng.random() < 0.8 else {"type": "stop"}, rng).decode("utf-8", "replace")
    message = parse(text)
    if message["type"] == "start":
        parse_start(message, 16000, Limits())
    else:
        check_fields(message, set())


READERS: dict[str, Callable[[np.random.Generator, Path, dict[str, Any]], None]] = {
    "audio": audio,
    "manifest": manifest,
    "shar": shar,
    "config": config,
    "weights": weights,
    "dataset": dataset,
    "packed": packed,
    "npy": npy,
    "messages": messages,
}


def make_seeds(folder: Path, codec_dir: Path) -> dict[str, Any]:
    """Sound input of every reader: a corpus of a few cuts, its Shar folder, and a dataset tokenized from it."""
    import soundfile
    import torch
    from lhotse import CutSet, Recording
    from safetensors.torch import load_file

    from pipelines.bulk.plan import Sharding
    from pipelines.bulk.run import Job, tokenize

    (folder / "in").mkdir()
    for i in range(3):
        soundfile.write(folder / f"in/{i}.wav", wave_of(0.5 + i / 10), 16000)
    cuts = CutSet.from_cuts([Recording.from_file(folder / f"in/{i}.wav").to_cut() for i in range(3)])
    (folder / "shar").mkdir()
    cuts.to_shar(folder / "shar", fields={"recording": "flac"}, shard_size=3)
    tokenize(Job(str(folder / "in"), folder / "out", str(codec_dir), Sharding(cuts=2, pack=True)))
    state = load_file(codec_dir / "model.safetensors")
    torch.save(state, folder / "model.pt")
    lines = [cut.to_dict() for cut in cuts]
    lines.append(cuts[0].append(cuts[1]).with_id("mix").to_dict())
    for line in lines[:3]:
        line["recording"]["sources"][0]["source"] = "a.wav"
    files = {
        path.relative_to(folder / "out").as_posix(): path
        for path in sorted((folder / "out").rglob("*"))
        if path.is_file()
    }
    return {
        "audio": audio_seeds(),
        "cuts": lines,
        "shar": {path.name: path.read_bytes() for path in sorted((folder / "shar").iterdir())},
        "codec": {"config.json": (codec_dir / "config.json").read_bytes()},
        "weights": {
            "model.safetensors": (codec_dir / "model.safetensors").read_bytes(),
            "model.pt": (folder / "model.pt").read_bytes(),
        },
        "dataset": {name: path.read_bytes() for name, path in files.items() if not name.startswith(".")},
    }
