"""The two readers of a whole shard agree, and what is written again has the same bytes."""

import numpy as np
import pytest

from pipelines.format.layout import Layout
from pipelines.format.ledger import Quarantined
from pipelines.format.shards import make_shard, read_codes, read_cuts, read_pairs, store_shard, stored_cuts
from pipelines.sources.cuts import PlannedCut

FAILED = Quarantined("lost", "lost.wav", "missing file", "FileNotFoundError", "", 2)


@pytest.fixture
def shard(tmp_path):
    """A shard of 9 cuts, of which the fourth failed, and the codes of the others."""
    rng = np.random.default_rng(3)
    cuts = [
        PlannedCut(
            {"id": f"cut.{i}", "start": 0.0, "duration": i + 0.5, "channel": 0, "supervisions": [], "type": "MonoCut"},
            member=f"cut%2E{i}",
        )
        for i in range(9)
    ]
    codes = [rng.integers(0, 4096, rng.integers(1, 400)).astype(np.uint16) for _ in cuts]
    outcomes = [FAILED if i == 3 else found for i, found in enumerate(codes)]
    layout = Layout(tmp_path)
    store_shard(layout, make_shard(layout, 7, cuts, outcomes, token_rate=50.0, pack_bits=12))
    return Layout(tmp_path), cuts[:3] + cuts[4:], codes[:3] + codes[4:]


def test_reading_by_the_index_gives_what_the_tar_holds(shard):
    layout, cuts, codes = shard
    pairs = list(read_pairs(layout.codes_tar(7)))
    assert [pair.member for pair in pairs] == [cut.member for cut in cuts]
    assert [cut["id"] for cut in read_cuts(layout.cuts_file(7))] == [cut.member for cut in cuts]
    for pair, by_index, expected in zip(pairs, read_codes(layout, 7), codes, strict=True):
        np.testing.assert_array_equal(pair.codes, expected)
        np.testing.assert_array_equal(by_index, expected)


def test_stored_cuts_written_again_are_the_same_bytes(shard, tmp_path):
    layout, cuts, _ = shard
    again = list(stored_cuts(layout, 7))
    assert [cut.cut for cut, _ in again] == [cut.cut | {"custom": {}} for cut in cuts]
    copy = Layout(tmp_path / "copy")
    copy.out.mkdir()
    planned, codes = zip(*again, strict=True)
    store_shard(copy, make_shard(copy, 7, planned, codes, token_rate=50.0, pack_bits=12))
    for path, copied in zip(layout.shard_files(7), copy.shard_files(7), strict=True):
        assert path.read_bytes() == copied.read_bytes()
