"""Receipts are read back as they were written; a shard without a whole one is to be done again."""

import random

import pytest

from pipelines.format.layout import Layout
from pipelines.format.ledger import Quarantined, Receipt, read_receipts, write_receipt
from pipelines.storage.stable_bytes import stored_file


def receipts(layout: Layout, count: int) -> list[Receipt]:
    """Random ones, with their files on disk."""
    rng, made = random.Random(count), []
    for shard in range(count):
        data = rng.randbytes(rng.randrange(1, 99))
        layout.write(layout.codes_tar(shard), data)
        failed = Quarantined(f"cut-{rng.randrange(99)}", "a.wav", "unreadable", "OSError", "no such file", 2)
        files = {layout.name(layout.codes_tar(shard)): stored_file(data)}
        made.append(Receipt(shard, files, rng.randrange(99), rng.randrange(999), rng.uniform(0, 99), (failed,)))
        write_receipt(layout, made[-1])
    return made


def test_receipts_are_read_as_written(tmp_path):
    layout = Layout(tmp_path)
    assert read_receipts(layout, range(4)) == [None] * 4
    written = receipts(layout, 4)
    assert read_receipts(layout, [3, 1, 9]) == [written[3], written[1], None]


@pytest.mark.parametrize("content", ["", "{", "[1]", "{}", '{"files": [], "quarantined": []}', '{"files": {"a": {}}}'])
def test_a_shard_with_a_damaged_receipt_is_done_again(tmp_path, content):
    layout = Layout(tmp_path)
    written = receipts(layout, 3)
    (layout.receipts / "000001.json").write_text(content)
    assert read_receipts(layout, range(3)) == [written[0], None, written[2]]


def test_a_shard_whose_file_is_missing_or_cut_off_is_done_again(tmp_path):
    layout = Layout(tmp_path)
    written = receipts(layout, 3)
    layout.codes_tar(0).unlink()
    layout.codes_tar(2).write_bytes(layout.codes_tar(2).read_bytes()[:-1])
    assert read_receipts(layout, range(3)) == [None, written[1], None]
