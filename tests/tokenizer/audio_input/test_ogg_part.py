"""Seconds out of a long Ogg file: the samples that a decoder gives that has all of it, from few of its bytes."""

import io
import itertools
import re
import struct

import numpy as np
import pytest
import soundfile

from tokenizer.audio_input.byte_source import FileBytes
from tokenizer.audio_input.contents import BadAudio
from tokenizer.audio_input.ogg import _checksum, page_at
from tokenizer.audio_input.ogg_part import FarOgg, OggMap
from tokenizer.audio_input.reader import AudioReader, examine

SECONDS = 40


class Counted(FileBytes):
    def __init__(self, data):
        super().__init__(io.BytesIO(data), len(data))
        self.fetched = self.reads = 0

    def read_at(self, offset, size):
        data = super().read_at(offset, size)
        self.fetched += len(data)
        self.reads += 1
        return data


class Remembering(Counted):
    """Counts every byte once, as what is fetched from a store."""

    def __init__(self, data):
        super().__init__(data)
        self.seen = bytearray(len(data))

    def read_at(self, offset, size):
        data = super().read_at(offset, size)
        self.seen[offset : offset + len(data)] = b"\1" * len(data)
        self.fetched = sum(self.seen)
        return data


def encoded(kind, rate):
    wave = np.random.default_rng(0).normal(0, 0.1, SECONDS * rate)
    wave *= np.sin(np.arange(len(wave)) / rate) ** 2  # so that bytes a second differ
    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", rate, 1, format="OGG", subtype=kind) as sound:
        for begin in range(0, len(wave), rate):
            sound.write(wave[begin : begin + rate])
    return file.getvalue()


@pytest.mark.parametrize(("kind", "rate"), [("OPUS", 48000), ("OPUS", 16000), ("VORBIS", 22050)])
def test_parts_have_the_samples_of_the_whole(kind, rate):
    data, rng = encoded(kind, rate), np.random.default_rng(1)
    whole, far = AudioReader(Counted(data)), Counted(data)
    contents, known = examine(Counted(data)), OggMap(far)
    total = whole.frames()
    cuts = [(0, rate), (total - rate, rate), (total - 10, 10)]
    cuts += [(int(rng.integers(total - 4 * rate)), int(rng.integers(1, 4 * rate))) for _ in range(8)]
    for start, frames in cuts:
        expected = np.concatenate(list(whole.read(start, frames)))
        found = np.concatenate(list(AudioReader(FarOgg(far, known), contents).read(start, frames)))
        np.testing.assert_array_equal(found, expected)


def test_the_last_page_of_vorbis():
    """libsndfile itself seeks there to samples of elsewhere."""
    whole = AudioReader(Counted(encoded("VORBIS", 22050)))
    every = np.concatenate(list(whole.read()))
    for left in (10, 3000):
        np.testing.assert_array_equal(np.concatenate(list(whole.read(len(every) - left, left))), every[-left:])


def test_few_bytes_are_fetched():
    data = encoded("VORBIS", 48000)
    far = Counted(data)
    part = FarOgg(far, OggMap(far))
    opened = far.fetched
    found, end = part.part(20 * 48000, 5 * 48000, 48000)
    assert end >= 25 * 48000 and len(found) < len(data) / 4
    assert far.fetched - opened < len(data) / 3


def test_looks_and_parts_of_opus_fetch_few_bytes_beside_the_pages():
    """Pages of a second are long, so a look reads to the next header and not to the end of its page, and a part ends
    with its last page."""
    data = encoded("OPUS", 48000)
    pages = [at.start() for at in re.finditer(b"OggS", data)]
    page = max(end - begin for begin, end in itertools.pairwise(pages))
    looks = Remembering(data)
    examine(looks, quick=True)
    assert looks.fetched < 2 * (1 << 16) + 9 * (page + (1 << 13))  # both ends of the file, and nine looks
    far = Remembering(data)
    part = FarOgg(far, OggMap(far))
    opened = far.fetched
    found, _ = part.part(10 * 48000, 8 * 48000, 48000)
    assert far.fetched - opened < len(found) + 2 * page
    before = far.fetched
    found, _ = part.part(18 * 48000, 8 * 48000, 48000)  # goes on where the other ends: the page is known
    assert far.fetched - before < len(found)


def with_picture(data, size):
    """Opus whose comments hold so many bytes more: pages that are full, and go on in the next one."""
    first, rest, at = data[: len(page_at(data))], [], len(page_at(data))
    while at < len(data):
        rest.append(page_at(data, at))
        at += len(rest[-1])
    packet = b"OpusTags" + struct.pack("<III", 0, 1, size) + bytes(size)
    laced = [255] * (len(packet) // 255) + [len(packet) % 255]
    pages = []
    for begin in range(0, len(laced), 255):
        lengths = bytes(laced[begin : begin + 255])
        granule = 0 if begin + 255 >= len(laced) else -1
        head = b"OggS\0" + struct.pack("<Bq", begin > 0, granule) + bytes(12) + bytes([len(lengths)]) + lengths
        pages.append(head + packet[255 * begin :][: sum(lengths)])
    numbered = [
        page[:14] + first[14:18] + struct.pack("<I", number) + bytes(4) + page[26:]
        for number, page in enumerate(pages + rest[1:], 1)
    ]
    return first + b"".join(page[:22] + _checksum(page) + page[26:] for page in numbered)


def test_a_picture_in_the_comments_takes_few_requests():
    data = with_picture(encoded("OPUS", 48000), 1 << 20)
    far = Counted(data)
    known = OggMap(far)
    assert far.reads < 16 and far.fetched < 1.6 * len(known.head) + (1 << 16)
    whole, cut = AudioReader(Counted(data)), (10 * 48000, 48000)
    found = np.concatenate(list(AudioReader(FarOgg(far, known), examine(Counted(data))).read(*cut)))
    np.testing.assert_array_equal(found, np.concatenate(list(whole.read(*cut))))


def test_a_page_may_end_where_the_bytes_that_were_read_end():
    for known in range(5):
        assert page_at(b"OggS\0"[:known]) is None
    assert page_at(b"Oggs") == b""


def test_a_lost_or_damaged_page_within_the_part_is_noticed():
    data = encoded("VORBIS", 22050)
    contents = examine(Counted(data))
    middle = data.find(b"OggS", len(data) // 2)
    after = data.find(b"OggS", middle + 1)
    seconds = SECONDS * middle / len(data)
    flipped = bytearray(data)
    flipped[middle + 200] ^= 1
    for damaged, word in (
        (data[:middle] + data[after:], "1 Ogg pages are lost"),
        (bytes(flipped), "no whole Ogg page"),
    ):
        far = Counted(damaged)
        reader = AudioReader(FarOgg(far, OggMap(far)), contents)
        with pytest.raises(BadAudio, match=word):
            list(reader.read(int((seconds - 8) * 22050), 16 * 22050))


def test_a_file_that_became_shorter_is_noticed():
    data = encoded("VORBIS", 22050)
    known = OggMap(Counted(data))
    far = Counted(data[: len(data) // 4])
    far.size = len(data)
    with pytest.raises(BadAudio, match=f"it had {len(data)} bytes"):
        FarOgg(far, known).part(30 * 22050, 22050, 22050)
    with pytest.raises(BadAudio, match="no Ogg page in the last"):
        OggMap(Counted(data + bytes(1 << 17)))
