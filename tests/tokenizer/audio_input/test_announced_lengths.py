"""What is read is what decoding gives to the end, never what a header promises."""

import io
import struct

import numpy as np
import pytest
import soundfile

from tokenizer.audio import read_audio
from tokenizer.audio_input.byte_source import FileBytes
from tokenizer.audio_input.contents import BadAudio
from tokenizer.audio_input.ogg import _pages
from tokenizer.audio_input.reader import AudioReader, examine
from tokenizer.errors import InputError


def noise(seconds, seed=0, rate=16000, loudness=0.1):
    return (loudness * np.random.default_rng(seed).standard_normal(round(seconds * rate))).astype(np.float32)


def encoded(wave, rate=16000, **format_):
    buffer = io.BytesIO()
    soundfile.write(buffer, wave, rate, **format_)
    return buffer.getvalue()


def reader_of(data):
    return AudioReader(FileBytes(io.BytesIO(data), len(data)))


def decoded(data, start=0, frames=None, block=None):
    return np.concatenate([*reader_of(data).read(start, frames, block), np.zeros((0, 1), np.float32)])[:, 0]


def by_libsndfile(data):
    with soundfile.SoundFile(io.BytesIO(data)) as file:
        return file.read(dtype="float32", always_2d=True)[:, 0]


def headerless(mp3):
    """An MP3 without its first frame, which holds the length."""
    at = max(mp3[:400].find(b"Xing"), mp3[:400].find(b"Info"))
    start = mp3.rindex(b"\xff", 0, at)
    kbps = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)[mp3[start + 2] >> 4]
    rate = (22050, 24000, 16000)[mp3[start + 2] >> 2 & 3]
    return mp3[start + 72000 * kbps // rate + (mp3[start + 2] >> 1 & 1) :]


def delay(found, wave):
    """Samples by which `found` comes later than `wave`."""
    size = 1 << 19
    product = np.fft.rfft(found, size) * np.conj(np.fft.rfft(wave, size))
    best = int(np.argmax(np.fft.irfft(product, size)))
    return best - size if best > size // 2 else best


def unknown_length(flac):
    return flac[:21] + bytes((flac[21] & 0xF0,)) + bytes(20) + flac[42:]


FORMATS = {
    "flac": {"format": "FLAC"},
    "flac 24": {"format": "FLAC", "subtype": "PCM_24"},
    "flac 8": {"format": "FLAC", "subtype": "PCM_S8"},
    "vorbis": {"format": "OGG", "subtype": "VORBIS"},
    "opus": {"format": "OGG", "subtype": "OPUS"},
    "mp3": {"format": "MP3"},
    "vbr mp3": {"format": "MP3", "bitrate_mode": "VARIABLE"},
    "wav": {"format": "WAV"},
    "float wav": {"format": "WAV", "subtype": "FLOAT"},
    "aiff": {"format": "AIFF"},
    "w64": {"format": "W64"},
    "rf64": {"format": "RF64"},
    "caf": {"format": "CAF"},
    "au": {"format": "AU"},
    "sph": {"format": "NIST"},
    "voc": {"format": "VOC"},
}


@pytest.mark.parametrize("name", FORMATS)
def test_sound_files_decode_to_the_same_bits_as_by_libsndfile(name):
    data = encoded(noise(3.0), **FORMATS[name])
    expected = by_libsndfile(data)
    np.testing.assert_array_equal(decoded(data, block=len(expected)), expected)
    assert len(decoded(data, 16000, 9000)) == 9000
    exact = not name.endswith("mp3") and name != "opus"  # a decoder that begins in the middle rounds otherwise
    np.testing.assert_allclose(decoded(data, 16000, 9000), expected[16000:25000], atol=0 if exact else 0.05)


def test_a_vbr_mp3_without_a_header_frame_is_read_to_its_end():
    wave = np.concatenate([noise(5.0, loudness=0.3), noise(5.0, seed=1, loudness=0.0003)])
    data = encoded(wave, format="MP3", bitrate_mode="VARIABLE", compression_level=0.4)
    bare = headerless(data)
    assert len(by_libsndfile(bare)) < 7 * 16000  # guessed from the first frame
    found = decoded(bare)
    assert 160_000 <= len(found) < 160_000 + 2 * 576  # what fills up the last frame, nobody can tell
    assert delay(found, wave) == 0
    assert reader_of(bare).frames() == len(found)
    np.testing.assert_allclose(decoded(bare, 50_000, 9000), found[50_000:59_000], atol=0.05)


def test_a_header_frame_that_says_no_delay():
    """Of an encoder older than LAME: the frames are announced, and nothing behind that."""
    wave = noise(3.0)
    data = bytearray(encoded(wave, format="MP3"))
    at = data.index(b"LAME")
    whole = decoded(bytes(data))
    data[at : at + 36] = bytes(36)
    found = decoded(bytes(data))
    assert delay(whole, wave) == delay(found, wave) == 0
    assert len(whole) == len(wave) < len(found) < len(wave) + 2 * 576
    source = FileBytes(io.BytesIO(data), len(data))
    assert AudioReader(source, examine(source, quick=True)).frames() == len(found)


@pytest.mark.parametrize("name", ["flac", "flac 24"])
def test_a_flac_of_unknown_length(name, tmp_path):
    data = encoded(noise(2.5), **FORMATS[name])
    np.testing.assert_array_equal(decoded(unknown_length(data), block=1000), by_libsndfile(data))
    np.testing.assert_array_equal(decoded(unknown_length(data), 20_000, 900), by_libsndfile(data)[20_000:20_900])
    (tmp_path / "a.flac").write_bytes(unknown_length(data))
    assert len(read_audio(tmp_path / "a.flac", 16000)) == 40_000


@pytest.mark.parametrize("name", ["flac", "vorbis", "opus", "mp3", "vbr mp3", "wav"])
def test_joined_files_are_read_one_after_another(name):
    parts = [encoded(noise(seconds, seed=i), **FORMATS[name]) for i, seconds in enumerate((1.5, 0.7, 2.0))]
    expected = np.concatenate([by_libsndfile(part) for part in parts])
    found = decoded(b"".join(parts))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert reader_of(b"".join(parts)).frames() == len(expected)
    np.testing.assert_allclose(decoded(b"".join(parts), 20_000, 20_000), expected[20_000:40_000], atol=0.05)


def test_joined_mp3s_of_which_one_has_no_header_frame():
    first, second = (encoded(noise(1.5, seed=i), format="MP3") for i in range(2))
    found = decoded(first + headerless(second))
    assert 48_000 <= len(found) <= 48_000 + 3 * 1152
    np.testing.assert_allclose(found[:24_000], by_libsndfile(first), atol=1e-6)


def test_joined_streams_of_several_rates_are_refused():
    both = encoded(noise(1.0), format="OGG") + encoded(noise(1.0), 44100, format="OGG")
    with pytest.raises(BadAudio, match=r"16000 Hz with 1 channels and of 44100 Hz"):
        decoded(both)


@pytest.mark.parametrize("size", [0, 0x7FFFF000, 0xFFFFFFFF, 0xFFFFFFFF - 36])
def test_a_wav_that_was_never_finalised(size):
    data = bytearray(encoded(noise(2.0), format="WAV"))
    data[4:8] = data[40:44] = struct.pack("<I", size)
    np.testing.assert_array_equal(decoded(bytes(data)), by_libsndfile(encoded(noise(2.0), format="WAV")))


class Sparse:
    """A source of 4 GiB and more that takes no room: a header, zeros, and an end."""

    def __init__(self, head, size, end):
        self.head, self.size, self.end = head, size, end

    def read_at(self, offset, size):
        size = min(size, self.size - offset)
        data = self.head[offset : offset + size].ljust(size, b"\0")
        behind = offset - (self.size - len(self.end))
        if behind >= 0:
            return self.end[behind : behind + size]
        return data[:-behind] + self.end[: max(0, size + behind)]

    def close(self):
        pass


@pytest.mark.parametrize("behind", [b"", b"LIST\4\0\0\0INFO"])
def test_a_wav_above_4_gib_whose_size_wrapped(behind):
    wave = noise(1.0)
    samples = (1 << 31) + 16_000_000
    head = bytearray(encoded(wave[:1], format="WAV")[:44])
    head[40:44] = struct.pack("<I", 2 * samples % (1 << 32))
    end = (wave * 32767).astype("<i2").tobytes()
    reader = AudioReader(Sparse(bytes(head), 44 + 2 * samples + len(behind), end + behind))
    assert reader.frames() == samples
    found = np.concatenate(list(reader.read(samples - 20_000)))[:, 0]
    assert len(found) == 20_000 and not found[:4000].any()
    np.testing.assert_allclose(found[4000:], wave, atol=1 / 16384)


@pytest.mark.parametrize("name", FORMATS)
def test_what_was_cut_off_is_refused_with_both_figures(name):
    data = encoded(noise(4.0), **FORMATS[name])
    if name == "voc":
        pytest.skip("its blocks end where they end")
    with pytest.raises(BadAudio, match=r"announces|has no end|lost") as error:
        decoded(data[: len(data) * 6 // 10])
    assert error.value.reason == "truncated"
    if name in ("wav", "aiff", "flac", "au"):
        assert len(decoded(data[: len(data) * 6 // 10], 0, 8000)) == 8000  # what lies before the break is sound


@pytest.mark.parametrize("name", ["flac", "flac 24", "vorbis", "opus", "mp3", "vbr mp3"])
def test_damage_inside_is_refused(name, tmp_path):
    data = bytearray(encoded(noise(4.0), **FORMATS[name]))
    middle = len(data) // 2
    for k in range(middle, middle + 600):
        data[k] ^= 0x5A
    with pytest.raises(BadAudio):
        decoded(bytes(data))
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(InputError, match=r"a: is (damaged|truncated): "):
        read_audio(tmp_path / "a", 16000)
    assert len(decoded(bytes(data), 0, 8000)) == 8000


def test_one_flipped_bit_of_a_flac_is_found():
    data = bytearray(encoded(noise(4.0), format="FLAC"))
    data[len(data) // 2] ^= 1
    with pytest.raises(BadAudio, match=r"checksum|lost sync"):
        decoded(bytes(data))


def test_a_flac_that_announces_another_length():
    data = encoded(noise(3.0), format="FLAC")
    for samples, word in ((30_000, "announces 1.875 s, but 3.000 s"), (90_000, "announces 5.625 s, but 3.000 s")):
        lying = data[:21] + bytes((data[21] & 0xF0,)) + struct.pack(">I", samples) + data[26:]
        with pytest.raises(BadAudio, match=word):
            decoded(lying)


def test_tags_around_the_audio_do_no_harm():
    flac, mp3 = encoded(noise(2.0), format="FLAC"), encoded(noise(2.0), format="MP3")
    v1 = b"TAG" + b"title".ljust(125, b"\0")
    v2 = b"ID3\4\0\0\0\0\1\x00" + bytes(128)
    np.testing.assert_array_equal(decoded(flac + v1), by_libsndfile(flac))
    np.testing.assert_array_equal(decoded(v2 + mp3 + v1), by_libsndfile(mp3))
    np.testing.assert_array_equal(decoded(v2 + mp3 + v1 + v2 + mp3 + v1), np.tile(by_libsndfile(mp3), 2))


def test_adpcm_whose_byte_rate_is_rounded():
    data = bytearray(encoded(noise(2.0), format="WAV", subtype="IMA_ADPCM"))
    data[28:32] = struct.pack("<I", 16000)
    np.testing.assert_array_equal(decoded(bytes(data)), by_libsndfile(bytes(data)))


def test_a_page_instead_of_audio_is_called_so(tmp_path):
    (tmp_path / "a.mp3").write_text("<!DOCTYPE html><title>403 Forbidden</title>" * 300)
    with pytest.raises(InputError, match=r"a\.mp3: .*no MP3 in it.*begins with '<!DOCTYPE"):
        read_audio(tmp_path / "a.mp3", 16000)


@pytest.mark.parametrize("loudness", [0.2 * 32768, 150.0])
def test_floats_of_another_scale_are_refused(tmp_path, loudness):
    wave = noise(1.0)
    soundfile.write(tmp_path / "a.wav", wave / np.abs(wave).max() * loudness, 16000, subtype="FLOAT")
    with pytest.raises(InputError, match="peak"):
        read_audio(tmp_path / "a.wav", 16000)


@pytest.mark.parametrize("name", ["flac", "vorbis", "opus", "mp3", "vbr mp3"])
def test_a_quick_look_at_a_sound_file_reads_little_and_finds_the_same_length(name):
    data = encoded(np.concatenate([noise(5.0)] * 8), **FORMATS[name])
    read = []

    class Counting(FileBytes):
        def read_at(self, offset, size):
            found = super().read_at(offset, size)
            read.append(len(found))
            return found

    source = Counting(io.BytesIO(data), len(data))
    contents = examine(source, quick=True)
    assert sum(read) <= 3 << 16 or "mp3" not in name  # the others: see test_glances
    assert AudioReader(source, contents).frames() == reader_of(data).frames()
    joined = data + encoded(noise(1.0, seed=1), **FORMATS[name])
    quick = examine(FileBytes(io.BytesIO(joined), len(joined)), quick=True)
    assert len(quick.streams) == 2


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_a_live_stream_that_was_joined_on_its_way(subtype):
    """Its header pages, then pages from the middle, whose numbers and times go on from what was never received."""
    data = encoded(noise(8.0), format="OGG", subtype=subtype)
    pages = [page for _, page, _ in _pages(FileBytes(io.BytesIO(data), len(data)))]
    heads = [page for page in pages if struct.unpack("<q", page[6:14])[0] <= 0]
    tail = pages[len(heads) :][len(pages) // 2 :]
    joined = b"".join(heads + tail)
    assert 8000 < len(decoded(joined)) < 100_000
    with pytest.raises(BadAudio, match="pages are lost"):
        decoded(b"".join(heads + pages[len(heads) : len(heads) + 2] + tail))


def test_a_wav_whose_header_was_written_before_its_end():
    data = bytearray(encoded(noise(3.0), format="WAV"))
    data[40:44] = struct.pack("<I", 32_000)
    with pytest.raises(BadAudio, match="announces 32000 bytes of samples, but there are 96000"):
        decoded(bytes(data))
    data[40:44] = struct.pack("<I", 96_000)
    assert len(decoded(bytes(data) + b"TAG" + b"t" * 125)) == 48_000


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24"])
def test_flac_and_wav_of_the_same_integers_are_the_same(subtype):
    """From floats libsndfile writes other integers into the one than into the other."""
    integers = np.random.default_rng(0).integers(-(2**31), 2**31, 30_000).astype(np.int32)
    wav, flac = (encoded(integers, format=format_, subtype=subtype) for format_ in ("WAV", "FLAC"))
    np.testing.assert_array_equal(decoded(wav), decoded(flac))
    np.testing.assert_array_equal(decoded(wav, 5001, 9000), decoded(flac, 5001, 9000))
