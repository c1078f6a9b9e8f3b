"""Make the demo's speech set again: `python slm/demo/speech/make_demo_speech.py` (needs the program espeak-ng).

Eighty sentences written for this project (`sentences.txt`) are read in turn by ten espeak-ng voices. The same
espeak-ng, libsndfile and soxr give the same bytes. It writes `audio/` and `cuts.jsonl.gz` beside itself.
"""

from __future__ import annotations

import gzip
import json
import shutil
import struct
import subprocess
import tempfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import soxr
from lhotse import MonoCut, Recording, SupervisionSegment
from lhotse.audio import AudioSource

HERE = Path(__file__).resolve().parent
SAMPLE_RATE = 16_000  # Hz
LEVEL = 0.06  # root mean square of every clip, of full scale 1
SILENCE = 0.15  # s, before and after the words
OPUS_COMPRESSION = 0.87  # libsndfile's scale from 0 (largest) to 1; this is about 33 kbit/s


class Voice(NamedTuple):
    """One synthetic speaker."""

    speaker: str
    espeak: str  # espeak-ng's language and variant
    gender: str
    speed: int  # words per minute
    pitch: int  # 0 to 99


VOICES = (
    Voice("ada", "en-us+f2", "F", 147, 52),
    Voice("ben", "en-us+m1", "M", 142, 44),
    Voice("cleo", "gmw/en+f4", "F", 152, 56),
    Voice("dan", "en-gb-x-rp+m4", "M", 140, 40),
    Voice("eve", "en-gb-scotland+f3", "F", 144, 50),
    Voice("finn", "en-gb-scotland+m3", "M", 148, 36),
    Voice("gail", "en-gb-x-gbclan+f5", "F", 142, 60),
    Voice("hugh", "gmw/en+m7", "M", 154, 48),
    Voice("iris", "en-us+f1", "F", 137, 46),
    Voice("jack", "en-029+m5", "M", 146, 42),
)


def main() -> None:
    """Speak, write and describe every sentence."""
    sentences = (HERE / "sentences.txt").read_text(encoding="utf-8").splitlines()
    audio_dir = HERE / "audio"
    shutil.rmtree(audio_dir, ignore_errors=True)
    audio_dir.mkdir()
    cuts = []
    for index, sentence in enumerate(sentences):
        voice = VOICES[index % len(VOICES)]
        clip_id = f"{voice.speaker}-{index // len(VOICES) + 1:02d}"
        # The last sentence of every voice is held out: known speakers, unknown sentences.
        subset = "heldout" if index >= len(sentences) - len(VOICES) else "train"
        wave = speak(sentence, voice)
        write_ogg(audio_dir / f"{clip_id}.ogg", wave, serial=index + 1)
        cuts.append(describe(clip_id, sentence, voice, subset, len(wave)))
    lines = "".join(json.dumps(cut.to_dict()) + "\n" for cut in cuts)
    (HERE / "cuts.jsonl.gz").write_bytes(gzip.compress(lines.encode(), mtime=0))
    size = sum(path.stat().st_size for path in audio_dir.iterdir())
    print(f"{len(cuts)} clips, {sum(cut.duration for cut in cuts) / 60:.1f} min, {size / 1e6:.2f} MB of audio")


def speak(sentence: str, voice: Voice) -> np.ndarray:
    """The sentence in this voice: float32 [S] at SAMPLE_RATE, with a little silence at both ends."""
    with tempfile.TemporaryDirectory() as folder:
        wav = Path(folder) / "speech.wav"
        options = ["-v", voice.espeak, "-s", str(voice.speed), "-p", str(voice.pitch), "-w", str(wav)]
        subprocess.run(["espeak-ng", *options, sentence], check=True)
        wave, rate = soundfile.read(wav, dtype="float32")
    loud = np.flatnonzero(np.abs(wave) > 0.01 * np.abs(wave).max())
    wave = soxr.resample(wave[loud[0] : loud[-1] + 1], rate, SAMPLE_RATE, quality="VHQ")
    wave = wave * (LEVEL / np.sqrt(np.mean(wave**2)))
    return np.pad(wave, round(SILENCE * SAMPLE_RATE)).astype(np.float32)


def write_ogg(path: Path, wave: np.ndarray, serial: int) -> None:
    """Write Ogg Opus with a fixed stream number: libsndfile draws one from the clock, so no two files would agree."""
    soundfile.write(path, wave, SAMPLE_RATE, format="OGG", subtype="OPUS", compression_level=OPUS_COMPRESSION)
    data, start = bytearray(path.read_bytes()), 0
    while start < len(data):  # page by page: a 27 byte header, the segment table, the segments
        table = start + 27
        body = table + data[start + 26]
        end = body + sum(data[table:body])
        data[start + 14 : start + 18] = struct.pack("<I", serial)
        data[start + 22 : start + 26] = bytes(4)  # the checksum is taken with its own field at zero
        data[start + 22 : start + 26] = struct.pack("<I", ogg_checksum(data[start:end]))
        start = end
    path.write_bytes(data)


def ogg_checksum(page: bytes | bytearray) -> int:
    """Ogg's CRC-32: zlib's polynomial, but most significant bit first and without the inversions.

    Reversing the bits of every byte turns it into zlib's bit order; starting at all ones undoes zlib's own inversion.
    """
    mirrored = bytes(int(f"{byte:08b}"[::-1], 2) for byte in page)
    return int(f"{zlib.crc32(mirrored, 0xFFFFFFFF) ^ 0xFFFFFFFF:032b}"[::-1], 2)


def describe(clip_id: str, sentence: str, voice: Voice, subset: str, samples: int) -> MonoCut:
    """The clip as a Lhotse cut; its path is relative to the manifest's folder."""
    duration = samples / SAMPLE_RATE
    recording = Recording(
        id=clip_id,
        sources=[AudioSource(type="file", channels=[0], source=f"audio/{clip_id}.ogg")],
        sampling_rate=SAMPLE_RATE,
        num_samples=samples,
        duration=duration,
    )
    supervision = SupervisionSegment(
        id=clip_id,
        recording_id=clip_id,
        start=0.0,
        duration=duration,
        text=sentence,
        language="English",
        speaker=voice.speaker,
        gender=voice.gender,
        custom={"synthetic": True, "voice": voice.espeak},
    )
    return MonoCut(
        id=clip_id,
        start=0.0,
        duration=duration,
        channel=0,
        recording=recording,
        supervisions=[supervision],
        custom={"subset": subset},
    )


if __name__ == "__main__":
    main()
