"""What kind of file it is, by its first bytes. Names decide nothing."""

from __future__ import annotations

import os

from tokenizer.audio_input.mpeg import first_frame
from tokenizer.audio_input.tags import id3v2_size

HEAD_BYTES = 1 << 16  # that tell

_AT_START = {
    b"fLaC": "FLAC",
    b"OggS": "Ogg",
    b"RF64": "RF64",
    b"BW64": "RF64",
    b"riff\x2e\x91\xcf\x11": "W64",
    b".snd": "AU",
    b"dns.": "AU",
    b"caff": "CAF",
    b"NIST_1A": "SPH",
    b"Creative Voice File": "VOC",
    b"PVF1": "PVF",
    b"2BIT": "AVR",
    b" paf": "PAF",
    b"fap ": "PAF",
    b"Extended Instrument:": "XI",
    b"ALawSoundFile**": "WVE",
    b"MATLAB 5.0": "MAT",
    b"\x64\xa3": "IRCAM",
    b"\x00\x01\xa3\x64": "IRCAM",
    # from here on for the decoders of `media`
    b"\x1a\x45\xdf\xa3": "Matroska",
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11": "ASF",
    b"#!AMR": "AMR",
    b"wvpk": "WavPack",
    b"MAC ": "APE",
    b"TTA1": "TTA",
    b"MPCK": "Musepack 8",
    b"MP+": "Musepack 7",
    b"\x0b\x77": "AC-3",
    b"FLV\x01": "FLV",
    b"\x00\x00\x01\xba": "MPEG-PS",
}

MEDIA_FORMATS = {
    "MP4": "mov",
    "Matroska": "matroska",
    "ASF": "asf",
    "AMR": "amr",
    "ADTS": "aac",
    "WavPack": "wv",
    "APE": "ape",
    "TTA": "tta",
    "Musepack 8": "mpc8",
    "Musepack 7": "mpc",
    "AC-3": "ac3",
    "FLV": "flv",
    "MPEG-PS": "mpeg",
    "MPEG-TS": "mpegts",
    "AVI": "avi",
    # kinds that libsndfile reads with some codecs only
    "WAV": "wav",
    "Ogg": "ogg",
    "CAF": "caf",
    "AIFF": "aiff",
    "AU": "au",
    "MPEG": "mp3",
}
"""FFmpeg's name of the container for each kind. Only these are ever given to FFmpeg, and each by name: formats that
make it open other files (playlists, concatenations) are not among them."""

LIBSNDFILE_KINDS = (frozenset(_AT_START.values()) | {"WAV", "AIFF", "SVX", "MPEG"}) - (
    frozenset(MEDIA_FORMATS) - {"WAV", "Ogg", "CAF", "AIFF", "AU", "MPEG"}
)

_SUFFIXES = """wav flac ogg oga opus mp3 aif aiff aifc au caf w64 rf64 sph snd voc mp2 m4a m4b aac mp4 webm weba mkv mka
wma amr 3gp spx wv ape tta ac3 mov avi flv"""
AUDIO_SUFFIXES = frozenset("." + suffix for suffix in _SUFFIXES.split())
"""Endings of names of audio files. If such a file holds no audio it counts as damaged, and is not passed over."""


def kind_of(head: bytes) -> str | None:
    """The kind of a file from its first `HEAD_BYTES` bytes; None where they are of no audio that is known."""
    if head[:4] in (b"RIFF", b"RIFX"):
        return {b"WAVE": "WAV", b"AVI ": "AVI"}.get(head[8:12])
    if head[:4] == b"FORM":
        return {b"AIFF": "AIFF", b"AIFC": "AIFF", b"8SVX": "SVX", b"16SV": "SVX"}.get(head[8:12])
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide"):
        return "MP4"
    for magic, kind in _AT_START.items():
        if head.startswith(magic):
            return kind
    if head[:1] == b"\x47" and head[188:189] == b"\x47" and head[376:377] == b"\x47":
        return "MPEG-TS"
    body = head[id3v2_size(head) :]
    if body[:4] == b"fLaC":
        return "FLAC"
    if _is_adts(body):
        return "ADTS"
    # a tag longer than the head hides what follows; MP3 is what such tags are for
    if head[:3] == b"ID3" and (not body or first_frame(body) is not None):
        return "MPEG"
    return "MPEG" if first_frame(body, within=4096) is not None else None


def is_audio_file(path: str | os.PathLike[str]) -> bool:
    """Whether the first bytes of a local file, or else its name, say that it is audio. If only its name does, reading
    it will say what is wrong."""
    if os.path.splitext(path)[1].lower() in AUDIO_SUFFIXES:
        return True
    try:
        if not os.path.isfile(path):
            return False
        with open(path, "rb") as file:
            return kind_of(file.read(HEAD_BYTES)) is not None
    except OSError:
        return False


def _is_adts(body: bytes) -> bool:
    """Whether three frames of AAC follow one another."""
    at = 0
    for _ in range(3):
        if len(body) < at + 7 or body[at] != 0xFF or body[at + 1] & 0xF6 != 0xF0:
            return False
        length = (body[at + 3] & 3) << 11 | body[at + 4] << 3 | body[at + 5] >> 5
        if length < 7:
            return False
        at += length
    return True
