"""Bits in, the same bits out, at random widths; and the file is little larger than the codes must be."""

import numpy as np
import pytest

from pipelines.format.packed import PackedShard, pack, pack_codes, unpack_codes
from tokenizer.errors import InputError


@pytest.mark.parametrize("bits", range(1, 17))
def test_random_codes_of_every_width(bits, tmp_path):
    rng = np.random.default_rng(bits)
    cuts = [
        (f"cut-{i}%2F~{i}", rng.integers(0, 1 << bits, length).astype(np.uint16))
        for i, length in enumerate([*rng.integers(1, 300, 20), 1, 7, 8, 9])
    ]
    (tmp_path / "codes.bits").write_bytes(pack(cuts, bits))
    shard = PackedShard(tmp_path / "codes.bits")
    assert len(shard) == 24 and shard.ids == [member for member, _ in cuts]
    assert shard.lengths.tolist() == [len(codes) for _, codes in cuts]
    for i in rng.permutation(24):
        np.testing.assert_array_equal(shard.codes(i), cuts[i][1])
        assert shard.codes(i).dtype == np.uint16
    for i in (-1, 24):
        with pytest.raises(IndexError):
            shard.codes(i)


def test_the_layout_of_the_bits():
    codes = np.array([0b101, 0b010, 0b111], np.uint16)
    assert pack_codes(codes, 3) == bytes([0b10101011, 0b10000000])
    np.testing.assert_array_equal(unpack_codes(np.array([0b10101011, 0b10000000], np.uint8), 3, 3), codes)


def test_near_the_ideal_size():
    """Utterances of 1 to 20 s at 50 Hz and 12 bits, with ids as long as those of LibriSpeech."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(50, 1000, 2000)
    cuts = [
        (f"{rng.integers(1e4)}-{rng.integers(1e6)}-{i:04d}", rng.integers(0, 4096, n).astype(np.uint16))
        for i, n in enumerate(lengths)
    ]
    assert len(pack(cuts, 12)) < 1.03 * lengths.sum() * 12 / 8


@pytest.mark.parametrize("harm", [b"", b"FSBITS", b"RIFF" * 100, "short", "long", "header"])
def test_damage_is_named(tmp_path, harm):
    whole = pack([("a", np.arange(100, dtype=np.uint16)), ("b", np.arange(9, dtype=np.uint16))], 12)
    content = {"short": whole[:-1], "long": whole + b"\0", "header": whole.replace(b"bits", b"bats", 2)}.get(harm, harm)
    (tmp_path / "codes.bits").write_bytes(content)
    with pytest.raises(InputError, match=r"codes\.bits: (expected|damaged|\d+ bytes)"):
        PackedShard(tmp_path / "codes.bits")
