"""`dataset.json` is read and written without loss, and what is wrong with it is named."""

import dataclasses
import json
import random

import pytest

from pipelines.format.description import (
    CodecEntry,
    Description,
    ShardEntry,
    Totals,
    is_intact,
    read_description,
    restore_description,
    write_description,
)
from pipelines.format.layout import Layout
from pipelines.storage.stable_bytes import StoredFile
from tokenizer.errors import InputError


def random_description(seed: int, first_samples: int | None) -> Description:
    rng = random.Random(seed)

    def number():
        return round(rng.uniform(0, 9999), 6)  # more digits than a double holds would hide a changed one

    def stored():
        return StoredFile(rng.randrange(1 << 40), f"{rng.getrandbits(256):064x}")

    shards = tuple(
        ShardEntry(
            shard,
            {f"shards/codes.{shard:06d}.tar": stored()},
            rng.randrange(99),
            rng.randrange(9999),
            number(),
            1,
        )
        for shard in range(rng.randrange(1, 9))
    )
    return Description(
        codec=CodecEntry("tïny", "f" * 64, 256, 8, 50.0, 16000, 320, first_samples),
        made_from={"input": {"paths": ["/ä"]}, "sharding": {"hours": number()}},
        tools={"torch": "2.0"},
        totals=Totals(rng.randrange(9), 7, 6, 1, 0, rng.randrange(10**9), number(), number()),
        files={"quarantine.jsonl": stored()},
        shards=shards,
    )


@pytest.mark.parametrize("first_samples", [1, 800, None])
def test_what_is_written_is_read(tmp_path, first_samples):
    layout = Layout(tmp_path)
    written = write_description(layout, random_description(3, first_samples))
    assert read_description(layout) == written and len(written.checksum) == 64
    assert is_intact(layout.dataset) and layout.dataset.read_bytes() == layout.dataset_copy.read_bytes()
    assert ("first_samples" in json.loads(layout.dataset.read_text())["codec"]) == (first_samples is not None)


def test_a_dataset_of_version_0_1_0_is_read(tmp_path):
    layout = Layout(tmp_path)
    written = write_description(layout, random_description(4, None))
    content = json.loads(layout.dataset.read_text())
    del content["has_copy"], content["totals"]["skipped"]
    layout.dataset.write_text(json.dumps(content))
    found = read_description(layout)
    assert not found.has_copy and found.totals == dataclasses.replace(written.totals, skipped=0)
    assert found.shards == written.shards and found.codec.first_samples is None


def test_any_changed_value_breaks_the_checksum(tmp_path):
    layout = Layout(tmp_path)
    write_description(layout, random_description(5, 1))
    content = layout.dataset.read_bytes()
    for at in [i for i, byte in enumerate(content) if chr(byte).isdigit()]:
        layout.dataset.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        assert not is_intact(layout.dataset)
    assert restore_description(layout) == ["dataset.json"] and layout.dataset.read_bytes() == content


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c["shards"][0].update(tokens="9"), "shard number 0: a count is not a number"),
        (lambda c: c["shards"][0].update(surprise=9), r"shard number 0: a key is missing or unknown.*surprise"),
        (lambda c: c["shards"][0]["files"].update(a={"bytes": 1}), r"shard number 0: a file has no size.*sha256"),
        (lambda c: c["codec"].pop("token_rate"), r"codec.*token_rate"),
        (lambda c: c["codec"].update(token_rate=10**400), r"codec: token_rate is 1000.*expected float"),
        (lambda c: c["totals"].update(cuts=None), "totals: cuts is None, expected int"),
        (lambda c: c.update(tools=["torch"]), "tools is list, expected a mapping"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, change, words):
    layout = Layout(tmp_path)
    write_description(layout, random_description(6, 1))
    content = json.loads(layout.dataset.read_text())
    change(content)
    layout.dataset.write_text(json.dumps(content))
    with pytest.raises(InputError, match=rf"dataset\.json: {words}"):
        read_description(layout)
