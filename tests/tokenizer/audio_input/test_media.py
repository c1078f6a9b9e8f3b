"""What libsndfile does not read, through PyAV: decoded to the end, refused where damaged, named where unreadable."""

import io

import numpy as np
import pytest
import soundfile
import soxr

from tokenizer.audio import read_audio
from tokenizer.audio_input.byte_source import FileBytes
from tokenizer.audio_input.contents import BadAudio
from tokenizer.audio_input.kinds import kind_of
from tokenizer.audio_input.reader import AudioReader
from tokenizer.errors import InputError

av = pytest.importorskip("av")

FORMATS = {
    # name: (container, codec, rate, bits a second, kind, samples that a decoder may put before the first)
    "m4a": ("ipod", "aac", 16000, 64000, "MP4", 0),
    "mp4": ("mp4", "aac", 44100, 96000, "MP4", 0),
    "alac.m4a": ("ipod", "alac", 16000, None, "MP4", 0),
    "mov": ("mov", "pcm_s16le", 16000, None, "MP4", 0),
    "aac": ("adts", "aac", 16000, 64000, "ADTS", 1024),
    "webm": ("webm", "libopus", 48000, 48000, "Matroska", 0),
    "mkv": ("matroska", "flac", 16000, None, "Matroska", 0),
    "wma": ("asf", "wmav2", 16000, 64000, "ASF", 0),
    "mp2": ("mp2", "mp2", 16000, 64000, "MPEG", 481),
    "amr": ("amr", "libopencore_amrnb", 8000, 12200, "AMR", 40),
    "wv": ("wv", "wavpack", 16000, None, "WavPack", 0),
    "ac3": ("ac3", "ac3", 32000, 96000, "AC-3", 256),
    "ts": ("mpegts", "aac", 16000, 64000, "MPEG-TS", 1024),
}
LOSSLESS = ("alac.m4a", "mov", "mkv")


def tone(seconds, rate=16000, seed=0):
    """float32: a few harmonics whose pitch wanders, which every codec keeps."""
    rng = np.random.default_rng(seed)
    pitch = np.interp(
        np.arange(seconds * rate),
        np.arange(0, seconds * rate + rate, rate / 4),
        rng.uniform(100, 250, int(4 * seconds) + 4)[: int(4 * seconds) + 4],
    )
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    return (0.3 * sum(np.sin(k * phase) / k for k in range(1, 6))).astype(np.float32)


def encoded(name, wave):
    """The wave (16 kHz) in that container and codec."""
    container, codec, rate, bits, _, _ = FORMATS[name]
    wave = wave if rate == 16000 else soxr.resample(wave, 16000, rate)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as file:
        stream = file.add_stream(codec, rate=rate)
        stream.layout = "mono"
        if bits:
            stream.bit_rate = bits
        frame = av.AudioFrame.from_ndarray((wave * 32767).astype("<i2")[None], format="s16", layout="mono")
        frame.sample_rate, frame.pts = rate, 0
        resampler = av.AudioResampler(format=stream.codec_context.format, layout="mono", rate=rate)
        queue, size, at = av.AudioFifo(), stream.codec_context.frame_size or 1024, 0
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            queue.write(piece)
        while piece := queue.read(size) or (queue.read(0, True) if queue.samples else None):
            piece.pts, at = at, at + piece.samples
            for packet in stream.encode(piece):
                file.mux(packet)
        for packet in stream.encode(None):
            file.mux(packet)
    return buffer.getvalue()


def reader_of(data):
    return AudioReader(FileBytes(io.BytesIO(data), len(data)))


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_read_by_its_content(name, tmp_path):
    wave = tone(4)
    data = encoded(name, wave)
    (tmp_path / "named.txt").write_bytes(data)
    reader, rate = reader_of(data), FORMATS[name][2]
    assert (reader.kind, reader.sample_rate, reader.channels) == (FORMATS[name][4], rate, 1)
    whole = np.concatenate(list(reader.read()))[:, 0]
    assert len(whole) == reader.frames()
    found = read_audio(tmp_path / "named.txt", 16000)
    if name in LOSSLESS:
        np.testing.assert_allclose(found, wave, atol=1 / 16384)
    else:
        assert abs(len(found) - len(wave)) < 3000
        spectrum = [np.abs(np.fft.rfft(x[8000:40000] * np.hanning(32000)))[:4000] for x in (found, wave)]
        assert np.corrcoef(*spectrum)[0, 1] > 0.9
    middle = np.concatenate(list(reader.read(3 * rate, rate // 2)))[:, 0]
    np.testing.assert_allclose(middle, whole[3 * rate : 3 * rate + rate // 2], atol=1e-4)


@pytest.mark.parametrize("name", [name for name in FORMATS if name not in ("mov", "ts", "mp2")])
def test_damage_and_broken_ends_are_refused(name):
    data = encoded(name, tone(4))
    broken = bytearray(data)
    for k in range(len(data) // 2, len(data) // 2 + 600):
        broken[k] ^= 0x5A
    for bad in (bytes(broken), data[: len(data) * 6 // 10 + 3]):
        with pytest.raises(BadAudio) as error:
            list(reader_of(bad).read())
        assert error.value.reason in ("damaged", "truncated", "unreadable")


def test_a_long_m4a_is_entered_in_the_middle_with_the_same_samples():
    reader = reader_of(encoded("m4a", tone(20)))
    whole = np.concatenate(list(reader.read()))
    for start in (40_000, 100_001, 250_000):
        np.testing.assert_allclose(
            np.concatenate(list(reader.read(start, 30_000))), whole[start : start + 30_000], atol=1e-5
        )


def test_video_without_sound_and_text_are_named(tmp_path):
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as file:
        stream = file.add_stream("ffv1", rate=10)
        stream.width = stream.height = 16
        stream.pix_fmt = "yuv420p"
        for packet in stream.encode(av.VideoFrame(16, 16, "yuv420p")):
            file.mux(packet)
        for packet in stream.encode(None):
            file.mux(packet)
    (tmp_path / "a.mkv").write_bytes(buffer.getvalue())
    with pytest.raises(InputError, match=r"a\.mkv.*no audio in this Matroska"):
        read_audio(tmp_path / "a.mkv", 16000)


def test_without_pyav_the_advice_names_the_extra(tmp_path, monkeypatch):
    (tmp_path / "a.m4a").write_bytes(encoded("m4a", tone(1)))
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(InputError, match=r"focalstream\[media\]"):
        read_audio(tmp_path / "a.m4a", 16000)


def test_a_playlist_is_no_audio(tmp_path):
    """FFmpeg would open what such a file names."""
    soundfile.write(tmp_path / "a.wav", tone(1), 16000)
    for name, text in {
        "a.m3u8": "#EXTM3U\n#EXTINF:1,\na.wav\n",
        "b.ffconcat": "ffconcat version 1.0\nfile a.wav\n",
    }.items():
        assert kind_of(text.encode()) is None
        (tmp_path / name).write_text(text)
        with pytest.raises(InputError, match="no audio of a known kind"):
            read_audio(tmp_path / name, 16000)
