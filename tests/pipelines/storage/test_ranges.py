"""What is fetched of audio behind URLs: little more than what is decoded, by few requests."""

import http.server
import io
import os
import threading
from typing import ClassVar

import fsspec
import numpy as np
import pytest
import soundfile

from pipelines.sources import audio_bytes
from pipelines.sources.audio import read_wave
from pipelines.sources.cuts import SourceCut, whole_recording
from pipelines.sources.manifests import find_inputs, read_cuts
from pipelines.sources.shar import located
from pipelines.sources.shar_tars import find_pair
from pipelines.storage import ranges
from pipelines.storage.ranges import RangedBytes, head_of
from tests.pipelines.storage.slow_s3 import counts, slow_s3


@pytest.fixture(scope="module")
def s3():
    pytest.importorskip("moto", reason="needs moto[server] and s3fs")
    pytest.importorskip("s3fs", reason="needs moto[server] and s3fs")
    with slow_s3(0.0) as address:
        yield address


@pytest.fixture(autouse=True)
def forget():
    ranges._heads.clear()
    audio_bytes._known.clear()
    audio_bytes._ogg_maps.clear()
    ranges._tails.clear()
    audio_bytes._whole_files._files.clear()


def noise(seconds, rate=44100, channels=2):
    """Noise that is louder in some seconds than in others, so that FLAC's bytes a second differ."""
    samples = int(seconds * rate)
    loudness = np.sin(np.arange(samples) / rate * 1.3) ** 2 * 3000 + 50
    wave = np.random.default_rng(0).standard_normal((samples, channels)) * loudness[:, None]
    return wave.astype(np.int16)


def encoded(wave, rate, kind):
    file = io.BytesIO()
    soundfile.write(file, wave, rate, format=kind)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["FLAC", "WAV"])
def test_cuts_of_a_long_recording_fetch_little_more_than_themselves(s3, kind, tmp_path):
    wave = noise(120)
    data = encoded(wave, 44100, kind)
    fsspec.filesystem("s3").pipe_file(f"speech/long.{kind}", data)
    (tmp_path / "long").write_bytes(data)

    def cut(number, source):
        recording = {
            "id": "long",
            "sources": [{"type": source[0], "channels": [0, 1], "source": source[1]}],
            "sampling_rate": 44100,
            "num_samples": len(wave),
            "duration": 120.0,
            "channel_ids": [0, 1],
        }
        return SourceCut({**whole_recording(recording), "start": 11.3 * (7 * number % 10), "duration": 5.0})

    before = counts(s3)
    for number in range(10):
        found = read_wave(cut(number, ("url", f"s3://speech/long.{kind}")), 16000)
        np.testing.assert_array_equal(found, read_wave(cut(number, ("file", str(tmp_path / "long"))), 16000))
    fetched = counts(s3) - before
    assert fetched["bytes"] / (10 * 5 / 120 * len(data)) < 1.2 and fetched["GET"] < 150 and fetched["HEAD"] <= 1


@pytest.mark.parametrize(("kind", "most"), [("OPUS", 0.125), ("VORBIS", 0.115)])
def test_cuts_of_long_ogg_fetch_their_own_pages(s3, kind, most, tmp_path, monkeypatch):
    monkeypatch.setattr(audio_bytes, "MEMORY_BYTES", 100_000)  # so that a short file is a long one
    file, wave = io.BytesIO(), noise(120, 16000, 1)
    with soundfile.SoundFile(file, "w", 16000, 1, format="OGG", subtype=kind) as sound:
        for begin in range(0, len(wave), 16000):
            sound.write(wave[begin : begin + 16000])
    (tmp_path / "long.ogg").write_bytes(file.getvalue())
    fsspec.filesystem("s3").pipe_file("speech/long.ogg", file.getvalue())
    found = [*read_cuts(["s3://speech/long.ogg"]), *read_cuts([str(tmp_path / "long.ogg")])]
    assert [item.cut["duration"] for item in found] == [120.0, 120.0]
    fetched = []
    for start in (31.7, 80.2):
        before = counts(s3)["bytes"]
        far, near = (SourceCut({**item.cut, "start": start, "duration": 10.0}) for item in found)
        np.testing.assert_array_equal(read_wave(far, 16000), read_wave(near, 16000))
        fetched.append((counts(s3)["bytes"] - before) / len(file.getvalue()))
    # The first cut has looked whether it is one stream. The second fetches its own twelfth (0.083), a second before it
    # and where it begins: 0.119 of the file for Opus and 0.107 for Vorbis.
    assert fetched[0] < 0.25 and fetched[1] < most


def test_a_small_file_is_one_request(s3):
    fsspec.filesystem("s3").pipe_file("speech/small.wav", encoded(noise(2, 16000, 1), 16000, "WAV"))
    (item,) = read_cuts(find_inputs("s3://speech/small.wav"))
    before = counts(s3)
    assert len(read_wave(item, 16000)) == 32000
    fetched = counts(s3) - before
    assert (fetched["GET"], fetched["HEAD"]) == (1, 0)


def test_several_cuts_of_a_file_that_is_read_through_fetch_it_once(s3):
    data = encoded(noise(60, 16000, 1), 16000, "MP3")
    fsspec.filesystem("s3").pipe_file("speech/talk.mp3", data)
    (item,) = read_cuts(find_inputs("s3://speech/talk.mp3"))
    before = counts(s3)
    for start in (1.0, 20.0, 40.0):
        assert len(read_wave(SourceCut({**item.cut, "start": start, "duration": 4.0}), 16000)) == 64000
    assert (counts(s3) - before)["bytes"] < 1.2 * len(data)


def test_shar_on_a_store(s3, tmp_path):
    from lhotse import CutSet, Recording

    os.mkdir(tmp_path / "shar")
    for i in range(40):
        soundfile.write(tmp_path / f"{i}.flac", noise(2.5, 16000, 1), 16000)
    cuts = CutSet.from_cuts(Recording.from_file(tmp_path / f"{i}.flac").to_cut() for i in range(40))
    cuts.to_shar(tmp_path / "shar", fields={"recording": "flac"}, shard_size=15)
    fsspec.filesystem("s3").put(f"{tmp_path}/shar/", "speech/shar/", recursive=True)
    before = counts(s3)
    items = list(read_cuts(["s3://speech/shar"]))
    lists = sum(os.path.getsize(tmp_path / "shar" / f"cuts.00000{i}.jsonl.gz") for i in range(3))
    assert (counts(s3) - before)["bytes"] < lists + 10_000  # and the names in the folder: no tar is looked into
    assert [item.cut for item in items] == [item.cut for item in read_cuts([str(tmp_path / "shar")])]
    found = located(items)
    wanted = sum(find_pair(item.audio).size for item in found)
    between = counts(s3)
    for item in found:
        read_wave(item, 16000)
    assert (counts(s3) - between)["GET"] == len(items)
    assert (counts(s3) - before)["bytes"] < 1.2 * wanted


def test_any_order_of_reads_gives_the_bytes_of_the_file():
    data = np.random.default_rng(1).bytes(300_000)
    fsspec.filesystem("memory").pipe_file("/speech/any", data)
    fsspec.filesystem("memory").pipe_file("/speech/none", b"")
    head = head_of("memory://speech/any", 1000)
    assert (head.data, head.size) == (data[:1000], len(data))
    assert (head_of("memory://speech/none").data, head_of("memory://speech/none").size) == (b"", 0)
    source = RangedBytes("memory://speech/any", 100, 290_000, 50_000, b"")
    random = np.random.default_rng(2)
    at = 0
    for _ in range(300):
        at, size = (
            (at, 8192) if random.random() < 0.7 else (int(random.integers(0, 295_000)), int(random.integers(0, 40_000)))
        )
        assert source.read_at(at, size) == data[100:290_100][at : at + size]
        at += size


class Server(http.server.BaseHTTPRequestHandler):
    """Files of a dictionary, in ranges where `ranges` says so; counts what was asked."""

    files: ClassVar[dict[str, bytes]] = {}
    asked: ClassVar[list[str]] = []
    ranges = True

    def do_HEAD(self):
        self.answer(False)

    def do_GET(self):
        self.answer(True)

    def answer(self, body):
        self.asked.append(self.command)
        data, part = self.files[self.path], self.headers.get("Range")
        partial = self.ranges and part and body
        if partial:
            begin, _, end = part.removeprefix("bytes=").partition("-")
            sent = data[int(begin) : int(end) + 1]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {begin}-{end}/{len(data)}")
        else:
            sent = data
            self.send_response(200)
        if self.ranges:
            self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(sent)))
        self.end_headers()
        if body:
            self.wfile.write(sent)

    def log_message(self, *arguments):
        pass


@pytest.mark.parametrize("has_ranges", [True, False])
def test_http_with_and_without_ranges(has_ranges, monkeypatch):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    server.handle_error = lambda *arguments: None  # a client that has read enough goes away
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(Server, "ranges", has_ranges)
    Server.files.update({"/long.wav": encoded(noise(20), 44100, "WAV"), "/small.wav": encoded(noise(1), 44100, "WAV")})
    url = f"http://127.0.0.1:{server.server_port}"
    (long,), (small,) = read_cuts([f"{url}/long.wav"]), read_cuts([f"{url}/small.wav"])
    part = SourceCut({**long.cut, "start": 12.0, "duration": 2.0})
    assert len(read_wave(long, 16000)) == 320000
    np.testing.assert_allclose(read_wave(part, 16000)[100:-100], read_wave(long, 16000)[192100:223900], atol=1e-3)
    Server.asked.clear()
    assert len(read_wave(small, 16000)) == 16000 and Server.asked.count("GET") == (1 if has_ranges else 2)
    server.shutdown()
