"""Mixtures: exact shares, the rows each part would have alone, and exact resuming on any number of ranks."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.dataset.batches import Batch, Framing, PackedBatches
from pipelines.dataset.mixture import BLOCK_ROWS, MixedBatches, WeightedData, read_data, shares
from tokenizer.errors import InputError

FRAMING = Framing(begin=1, end=2, first_code=16)
ROW_TOKENS = 21


class Cuts:
    """A dataset in memory whose codes say which part it is."""

    def __init__(self, part: int) -> None:
        random = np.random.default_rng(part)
        self.lengths = random.integers(1, 60, 30 + 10 * part)
        self._codes = [random.integers(1000 * part, 1000 * part + 999, n).astype(np.uint16) for n in self.lengths]

    def gather(self, cuts: np.ndarray, before: int = 0, after: int = 0) -> np.ndarray:
        return np.concatenate([np.pad(self._codes[i], (before, after)) for i in cuts])


def part(number: int) -> PackedBatches:
    return PackedBatches(Cuts(number), FRAMING, 8, ROW_TOKENS, seed=3)


def mixed(weights: list[float], seed: int = 5, **ranks: int) -> MixedBatches:
    return MixedBatches([part(i) for i in range(len(weights))], weights, 8, seed, **ranks)


def part_of(batch: Batch) -> np.ndarray:
    return (batch.tokens.max(axis=1) - 16) // 1000


def assert_equal(left: Batch, right: Batch) -> None:
    for name in Batch._fields:
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name), err_msg=name)


def test_shares_are_exact_over_a_block_and_near_the_weights_in_any_stretch():
    weights = np.array([0.7, 0.2, 0.1])
    loader = mixed(weights.tolist())
    parts = part_of(loader.rows(0, 2 * BLOCK_ROWS))
    for block in np.split(parts, 2):
        np.testing.assert_array_equal(np.bincount(block), weights * BLOCK_ROWS)
    # Shares of 250 rows drawn by weight have a standard deviation of at most sqrt(0.25 / 250) = 0.032.
    for stretch in parts[:BLOCK_ROWS].reshape(40, 250):
        assert np.abs(np.bincount(stretch, minlength=3) / 250 - weights).max() < 5 * 0.032
    assert len(np.unique(np.diff(np.flatnonzero(parts == 2)))) > 10  # and not in a fixed pattern
    assert not np.array_equal(*np.split(parts, 2))


def test_each_part_has_the_rows_that_it_would_have_alone():
    loader = mixed([2.0, 1.0])
    first, last = BLOCK_ROWS - 40, BLOCK_ROWS + 40
    before = np.bincount(part_of(loader.rows(0, first)))
    rows = loader.rows(first, last)
    parts = part_of(rows)
    for number in range(2):
        mine = Batch(*(field[parts == number] for field in rows))
        begin = int(before[number])
        assert_equal(mine, part(number).rows(begin, begin + len(mine.tokens)))


def test_interrupted_anywhere_on_one_two_and_four_ranks_the_batches_are_the_same():
    steady = mixed([0.5, 0.3, 0.2])
    steps = np.random.default_rng(0).choice(2 * BLOCK_ROWS // 8, 20, replace=False).tolist()
    for step in [*steps, BLOCK_ROWS // 8 - 1, BLOCK_ROWS // 8]:
        expected = steady.batch(step)
        for world_size in (1, 2, 4):
            ranks = [mixed([0.5, 0.3, 0.2], rank=rank, world_size=world_size) for rank in range(world_size)]
            parts = [rank.batch(step) for rank in ranks]
            assert_equal(Batch(*(np.concatenate(field) for field in zip(*parts, strict=True))), expected)


def test_weights_are_relative_and_rounded_to_whole_rows():
    assert shares([7, 3]).tolist() == shares([1.4e308, 0.6e308]).tolist() == [7000, 3000]
    thirds = shares([1.0, 1.0, 1.0])
    assert thirds.sum() == BLOCK_ROWS and sorted(thirds) == [3333, 3333, 3334]


@pytest.mark.parametrize("weights", [[1.0, 0.0], [1.0, -1.0], [float("nan"), 1.0], [1.0, float("inf")]])
def test_weights_that_are_none_are_refused(weights):
    with pytest.raises(InputError, match="expected numbers above 0"):
        shares(weights)


def test_a_weight_below_one_row_and_ranks_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match=r"weight 1e-06 of 1 is less than one row in 10,000"):
        shares([1.0, 1e-6])
    with pytest.raises(InputError, match="8 rows per step cannot be divided among 3"):
        mixed([1.0, 1.0], rank=1, world_size=3)


def test_data_as_commands_name_it(tmp_path):
    assert read_data(["a", tmp_path]) == WeightedData(("a", str(tmp_path)))
    assert read_data(["a:0.7", "s3://b/c:3"]) == WeightedData(("a", "s3://b/c"), (0.7, 3.0))
    assert read_data(["s3://b/c"]) == WeightedData(("s3://b/c",))
    colon = tmp_path / "odd:1"
    colon.mkdir()
    assert read_data([colon]) == WeightedData((str(colon),))
    with pytest.raises(InputError, match="b has no weight, but other datasets have"):
        read_data(["a:0.7", "b"])


def test_data_in_a_file(tmp_path):
    path = tmp_path / "mixture.yaml"
    path.write_text("tokens/a: 0.7\ns3://b/c: 2\n")
    assert read_data([path]) == WeightedData(("tokens/a", "s3://b/c"), (0.7, 2.0), str(path))
    path.write_text("tokens/a: 5e5\ntokens/b: 1e-5\n")
    assert read_data([path]).weights == (5e5, 1e-5)
    for content in ("- a\n", "", "a: heavy\n", "a: [1", "a: true\n"):
        path.write_text(content)
        with pytest.raises(InputError, match=r"mixture\.yaml: "):
            read_data([path])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: 1\nb: 0\n", r"m\.yaml: b: has the weight 0; expected a number above 0"),
        ("a: 1\nb: -.inf\n", r"m\.yaml: b: has the weight -inf"),
        ("a: 1\nb:\n", r"m\.yaml: b: has no weight"),
        ("a: 1\nb: 2\na: 3\n", r"m\.yaml: line 3: the key 'a' is there twice"),
    ],
)
def test_a_weight_that_is_none_is_named_with_file_and_key(tmp_path, content, message):
    (tmp_path / "m.yaml").write_text(content)
    with pytest.raises(InputError, match=message):
        read_data([tmp_path / "m.yaml"])


def test_a_weight_of_zero_on_the_command_line_is_named():
    with pytest.raises(InputError, match="--data b:0: the weight is 0; expected a number above 0"):
        read_data(["a:1", "b:0"])


def test_an_empty_dataset_is_named():
    with pytest.raises(InputError, match=r"^m\.yaml: b: this dataset has no cuts"):
        WeightedData(("a", "b"), (1.0, 2.0), "m.yaml").check_cuts([0, 5, 5])
    with pytest.raises(InputError, match=r"^a: this dataset has no cuts"):
        WeightedData(("a", "b")).check_cuts([0, 0, 0])
    WeightedData(("a", "b")).check_cuts([0, 0, 5])
