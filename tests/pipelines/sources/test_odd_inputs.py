"""Folders and manifests of odd and broken things: each is tokenized, or quarantined with the right reason."""

import io
import json
import os

import numpy as np
import pytest
import soundfile

from pipelines.dataset.token_dataset import TokenDataset
from pipelines.format.layout import Layout
from pipelines.tools.verify import verify

TOKENIZED = "tokenized"


def encoded(wave, rate=16000, **format_):
    buffer = io.BytesIO()
    soundfile.write(buffer, wave, rate, **format_)
    return buffer.getvalue()


def odd_files(speech):
    """{name: (content, what should become of it)}; content is bytes or a function of the path that makes the file."""
    mono = speech(0, 1.0)
    pcm = {"format": "WAV", "subtype": "PCM_16"}
    floats = {"format": "WAV", "subtype": "FLOAT"}
    wav = encoded(mono, **pcm)
    nan, infinite = mono.copy(), mono.copy()
    nan[77], infinite[-1] = np.nan, -np.inf
    piped = bytearray(wav)  # as a program writes it that does not know how much will come
    piped[4:8] = piped[40:44] = b"\xff\xff\xff\xff"
    files = {
        # sample formats
        **{
            f"wav {subtype}.wav": (encoded(mono, format="WAV", subtype=subtype), TOKENIZED)
            for subtype in ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW", "IMA_ADPCM")
        },
        "gsm.wav": (encoded(speech(1, 1.0, 8000), 8000, format="WAV", subtype="GSM610"), TOKENIZED),
        **{f"{s}.flac": (encoded(mono, format="FLAC", subtype=s), TOKENIZED) for s in ("PCM_S8", "PCM_16", "PCM_24")},
        # containers and codecs
        **{
            f"container.{suffix}": (encoded(mono, format=name), TOKENIZED)
            for suffix, name in {
                "aiff": "AIFF",
                "au": "AU",
                "caf": "CAF",
                "w64": "W64",
                "rf64": "RF64",
                "mp3": "MP3",
                "ogg": "OGG",
                "sph": "NIST",
            }.items()
        },
        "container.opus": (encoded(mono, format="OGG", subtype="OPUS"), TOKENIZED),
        # rates and channels
        **{
            f"{rate} Hz.wav": (encoded(speech(2, 0.7, rate), rate, **pcm), TOKENIZED)
            for rate in (1000, 8000, 11025, 22050, 44100, 48000, 96000, 192000)
        },
        **{f"{n} channels.wav": (encoded(speech(n, n).reshape(-1, n), **pcm), TOKENIZED) for n in (2, 3, 6, 8)},
        # lengths and levels
        "one sample.wav": (encoded(mono[:1], **pcm), TOKENIZED),
        "one frame.wav": (encoded(mono[:320], **pcm), TOKENIZED),
        "one sample of 192 kHz.wav": (encoded(mono[:1], 192000, **pcm), "zero length"),
        "no samples.wav": (encoded(mono[:0], **pcm), "zero length"),
        "silence.wav": (encoded(0 * mono, **pcm), TOKENIZED),
        "constant.wav": (encoded(0 * mono + 1, **pcm), TOKENIZED),
        "clipped.wav": (encoded(np.clip(30 * mono, -1, 1), **pcm), TOKENIZED),
        "louder than full scale.wav": (encoded(30 * mono, **floats), TOKENIZED),
        "nan.wav": (encoded(nan, **floats), "not finite"),
        "infinite.wav": (encoded(infinite, **floats), "not finite"),
        "overflowing.wav": (encoded(mono * np.float32(1e30), **floats), "not audio"),
        # names and lies
        "a flac inside.wav": (encoded(mono, format="FLAC"), TOKENIZED),
        "UPPER.WAV": (wav, TOKENIZED),
        "dots.in.the.name.wav": (wav, TOKENIZED),
        "spaces  and\ttabs.wav": (wav, TOKENIZED),
        "Füße, 話す, 🎙.wav": (wav, TOKENIZED),
        "-rf.wav": (wav, TOKENIZED),
        "%2F~2.wav": (wav, TOKENIZED),
        f"{'deep/' * 60}down.wav": (wav, TOKENIZED),
        f"{'l' * 250}.wav": (wav, TOKENIZED),
        "same name.wav": (wav, TOKENIZED),
        "same name.flac": (encoded(mono, format="FLAC"), TOKENIZED),
        # damage
        "empty.wav": (b"", "zero length"),
        "empty.mp3": (b"", "zero length"),
        "text.wav": (b"this is no audio\n" * 100, "unreadable"),
        "header only.wav": (wav[:44], "truncated"),
        "half a header.wav": (wav[:20], "unreadable"),
        "zeros.flac": (bytes(10_000), "unreadable"),
        "half.wav": (wav[: len(wav) // 2], "truncated"),
        "half.aiff": (encoded(mono, format="AIFF")[:16_000], "truncated"),
        "half.flac": (encoded(mono, format="FLAC")[:9_000], "truncated"),
        "a flipped bit.flac": (flipped(encoded(mono, format="FLAC")), "damaged"),
        "unknown length.flac": (without_length(encoded(mono, format="FLAC")), TOKENIZED),
        "two in one.ogg": (encoded(mono, format="OGG") + encoded(mono[::-1], format="OGG"), TOKENIZED),
        "two in one.mp3": (2 * encoded(mono, format="MP3"), TOKENIZED),
        "two in one.flac": (2 * encoded(mono, format="FLAC"), TOKENIZED),
        "half.ogg": (encoded(speech(3, 20.0), format="OGG")[:60_000], "truncated"),
        "half.mp3": (encoded(mono, format="MP3")[:2_000], "truncated"),
        "padded.wav": (wav + bytes(100), TOKENIZED),
        "piped.wav": (bytes(piped), TOKENIZED),
        "nowhere.wav": (lambda path: path.symlink_to("gone"), "missing file"),
        "a pipe.wav": (os.mkfifo, "unreadable"),
        "itself.wav": (lambda path: path.symlink_to(path.name), "unreadable"),
        "linked.wav": (lambda path: path.symlink_to("UPPER.WAV"), TOKENIZED),
    }
    return files


def flipped(flac):
    """With one bit of its samples flipped."""
    data = bytearray(flac)
    data[-3000] ^= 1
    return bytes(data)


def without_length(flac):
    """As it comes out of a pipe: neither length nor checksum in its header."""
    return flac[:21] + bytes((flac[21] & 0xF0,)) + bytes(20) + flac[42:]


def test_a_folder_of_odd_files(speech, run, tmp_path):
    files = odd_files(speech)
    assert len(files) >= 60
    for name, (content, _) in files.items():
        path = tmp_path / "audio" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content) if isinstance(content, bytes) else content(path)
    (tmp_path / "audio/a folder.wav").mkdir()
    totals = run(tmp_path / "audio", tmp_path / "out", shard_cuts=20)
    found = {entry["id"]: entry for entry in ledger(tmp_path / "out")}
    dataset = TokenDataset(tmp_path / "out")
    tokenized = {dataset.cut_id(i): dataset.lengths[i] for i in range(len(dataset))}
    outcomes = {**{name: entry["reason"] for name, entry in found.items()}, **dict.fromkeys(tokenized, TOKENIZED)}
    assert outcomes == {name: outcome for name, (_, outcome) in files.items()}
    assert len(found) + len(tokenized) == len(files) == totals["planned"]  # none in both
    assert totals["cuts"] + totals["quarantined"] == totals["planned"]
    assert all(entry["source"].endswith(name) and entry["detail"] for name, entry in found.items())
    assert tokenized["one sample.wav"] == 1 and tokenized["UPPER.WAV"] == 50
    assert verify(tmp_path / "out") == []


def test_a_manifest_of_odd_cuts(speech, run, tmp_path, write_manifest, nasty_ids):
    """Ids of all kinds, some twice, and cuts that say impossible things of sound audio."""
    manifest = write_manifest({cut_id: speech(i, 0.3) for i, cut_id in enumerate(nasty_ids)})
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    sound = lines[0]
    recording = sound["recording"]
    odd = {
        "begins before the recording": ({"start": -1.0}, "impossible start"),
        "begins behind its end": ({"start": 5.0}, "truncated"),
        "reaches beyond its end": ({"start": 0.2, "duration": 0.7}, "truncated"),
        "has no duration": ({"duration": None}, "zero length"),
        "lasts nothing": ({"duration": 0.0}, "zero length"),
        "lasts for ever": ({"duration": 1e300}, "zero length"),
        "lasts digits": ({"duration": 10**400}, "zero length"),
        "begins never": ({"start": 10**400}, "impossible start"),
        "lasts text": ({"duration": "long"}, "zero length"),
        "channel 9": ({"channel": 9}, "no such channel"),
        "no recording": ({"recording": None}, "zero length"),
        "rate 0": ({"recording": {**recording, "sampling_rate": 0}}, "zero length"),
        "rate NaN": ({"recording": {**recording, "sampling_rate": float("nan")}}, "zero length"),
        "no sources": ({"recording": {**recording, "sources": []}}, "no such channel"),
        "a command that fails": ({"recording": with_source(recording, "command", "exit 3")}, "refused"),
        "an unknown source": ({"recording": with_source(recording, "gramophone", "x")}, "unreadable"),
        "a URL of nothing": ({"recording": with_source(recording, "url", "memory://nothing.wav")}, "missing file"),
        "a protocol of nobody": ({"recording": with_source(recording, "url", "gopher://a/b.wav")}, "unreadable"),
    }
    lines += [sound, lines[3], {**sound, "id": "~2"}]
    lines += [{**sound, "id": key, **changes} for key, (changes, _) in odd.items()]
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    totals = run(manifest, tmp_path / "out", shard_cuts=7)
    assert {entry["id"]: entry["reason"] for entry in ledger(tmp_path / "out")} == {
        key: reason for key, (_, reason) in odd.items()
    }
    assert max(len(entry["detail"]) for entry in ledger(tmp_path / "out")) < 300
    dataset = TokenDataset(tmp_path / "out")
    assert [dataset.cut_id(i) for i in range(len(dataset))] == [*nasty_ids, nasty_ids[0], nasty_ids[3], "~2"]
    assert (totals["planned"], totals["duplicate_ids"]) == (len(lines), 2)
    assert verify(tmp_path / "out") == []


def with_source(recording, kind, source):
    return {**recording, "sources": [{"type": kind, "channels": [0], "source": source}]}


def ledger(out):
    return [json.loads(line) for line in Layout(out).quarantine.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("seconds", [0.0, 0.01])
def test_a_corpus_of_nothing_usable(run, tmp_path, write_manifest, speech, seconds):
    manifest = write_manifest({"a": speech(0, 0.3)})
    line = {**json.loads(manifest.read_text()), "start": 9.0, "duration": seconds}
    manifest.write_text(json.dumps(line) + "\n")
    assert run(manifest, tmp_path / "out", max_quarantine_rate=1.0)["quarantined"] == 1
